// finite: how many numbers of a matrix are NaN or infinite, and the first row that has one.
//
//   found[at,0] += number of (n, c) with x[n,c] not finite
//   found[at,1]  = min(found[at,1], least n with such a c)
//
// Shapes    found [S, 2] i32, from the host as 0 and the largest integer; x [N, C] bf16.
// Plan      A warp looks through a row, 16 bytes a lane; grid ceil(N / ROWS_PER_BLOCK). Only a warp that has found something
//           writes.
// Cost      0 flops; bytes 2 N C + 8.
// Numerics  Integers alone: the atomics may come in any order. The count is modulo 2^32; that there is one, the row says.
// Limits    C a multiple of 8; rows at 16-byte boundaries.
// Source    IEEE 754: an exponent of ones alone.
#include "common.cuh"

EXPORT constexpr int ROWS_PER_BLOCK = 8;

// Of the two bf16 in a word, those that are not finite.
__device__ inline int strange(unsigned pair) {
    return ((pair & 0x7f80u) == 0x7f80u) + ((pair & 0x7f800000u) == 0x7f800000u);
}

KERNEL void __launch_bounds__(32 * ROWS_PER_BLOCK)
finite_fwd(int* __restrict__ found, const bf16* __restrict__ x, int at, int N, int C) {
    const int n = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n >= N) return;
    const bf16* row = x + size_t(n) * C;
    int count = 0;
#pragma unroll 4
    for (int v = lane; v < C / BF16S; v += 32) {
        const uint4 a = load(row, v);
        count += strange(a.x) + strange(a.y) + strange(a.z) + strange(a.w);
    }
    count = warp_sum(count);
    if (lane == 0 && count > 0) {
        atomicAdd(found + 2 * at, count);
        atomicMin(found + 2 * at + 1, n);
    }
}
