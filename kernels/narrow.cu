// narrow: f32 numbers rounded to bf16.
//
//   y[k] = the bf16 nearest to x[k], ties to even
//
// Shapes    y [K] bf16, x [K] f32.
// Plan      A thread rounds 8 neighbours: two 16-byte loads, one store. Grid ceil(K / 8 / THREADS).
// Cost      0 flops; bytes 6 K.
// Numerics  One rounding. NaN stays NaN, what exceeds the largest bf16 becomes infinite.
// Limits    K a multiple of 8; arrays at 16-byte boundaries.
// Source    none needed.
#include "common.cuh"

EXPORT constexpr int THREADS = 256;

KERNEL void __launch_bounds__(THREADS) narrow_fwd(bf16* __restrict__ y, const float* __restrict__ x, int K) {
    const int v = blockIdx.x * THREADS + threadIdx.x;
    if (v >= K / BF16S) return;
    const float4 a = load(x, size_t(v) * 2), b = load(x, size_t(v) * 2 + 1);
    store(y, v, make_uint4(narrow(a.x, a.y), narrow(a.z, a.w), narrow(b.x, b.y), narrow(b.z, b.w)));
}
