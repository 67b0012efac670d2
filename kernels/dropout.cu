// dropout: elements zeroed with a probability, the rest scaled up, by masks that are computed anew from a counter.
//
//   y[n,c] = x[n,c] scale where the element's draw reaches the threshold, else 0
//
// Shapes    x, y [N, C] bf16; the key is that of Dropout::key, `first` the tokens of the step before this pack.
// Plan      A thread computes 8 neighbouring columns of a row: one call of Philox. blockDim.x = THREADS, grid
//           ceil(N C / 8 / THREADS). The backward is the same call on dy.
// Cost      N C flops, about 10 integer operations an element; bytes 4 N C.
// Numerics  The mask is exact: that of src/ops/dropout.rs, bit by bit. One rounding to bf16.
// Limits    C a multiple of 8, N C below 2^34; rows at 16-byte boundaries.
// Source    Srivastava et al. 2014; Philox: Salmon et al., SC 2011.
#include "common.cuh"
#include "philox.cuh"

EXPORT constexpr int THREADS = 256;

KERNEL void __launch_bounds__(THREADS)
dropout_fwd(bf16* __restrict__ y, const bf16* __restrict__ x, int N, int C, int plane, const Draw dropout) {
    const unsigned at = blockIdx.x * THREADS + threadIdx.x, row = at / (C / BF16S), v = at % (C / BF16S);
    if (row >= unsigned(N)) return;
    float t[BF16S];
    widen(t, load(x, at));
    const unsigned kept = dropout.kept(row, plane, v);
#pragma unroll
    for (int i = 0; i < BF16S; i++) t[i] = kept >> i & 1 ? t[i] * dropout.scale : 0.0f;
    store(y, at, narrow(t));
}
