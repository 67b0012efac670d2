// embed: token ids to rows of a table.
//
//   x[n] = table[ids[n]]
//
// Shapes    x [N, C] bf16, table [V, C] bf16, ids [N] i32 in [0, V).
// Plan      A warp copies a row, 16 bytes a lane, four vectors in flight; grid ceil(N / ROWS_PER_BLOCK).
// Cost      0 flops; bytes 4 N C + 4 N (a row that is read twice may come from the cache).
// Numerics  A copy. A row whose id lies outside the table becomes NaN: nothing can be reported from here, and the loss shows it.
// Limits    C a multiple of 8; rows at 16-byte boundaries.
// Source    none needed.
#include "common.cuh"

EXPORT constexpr int ROWS_PER_BLOCK = 8;

KERNEL void __launch_bounds__(32 * ROWS_PER_BLOCK)
embed_fwd(bf16* __restrict__ x, const bf16* __restrict__ table, const int* __restrict__ ids, int N, int V, int C) {
    const int n = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n >= N) return;
    const int id = ids[n];
    const bool inside = unsigned(id) < unsigned(V);
    const unsigned nan = 0x7fc07fc0u;
    const bf16* from = table + size_t(inside ? id : 0) * C;
    bf16* to = x + size_t(n) * C;
#pragma unroll 4
    for (int v = lane; v < C / BF16S; v += 32) {
        const uint4 row = load(from, v);
        store(to, v, inside ? row : make_uint4(nan, nan, nan, nan));
    }
}
