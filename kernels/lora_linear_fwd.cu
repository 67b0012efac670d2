// lora_linear_fwd: the matrix product of the graph with the low-rank deltas of its segments in the same sums.
//
//   xa[n, s R + r] = sum_k drop_s(x)[n,k] a[s R + r, k]
//   y[n,m]         = residual[n,m] + bias[m] + sum_k x[n,k] w[m,k] + scale_s sum_r xa[n, s R + r] b[m,r],  s that of column m
//
// Shapes    x [N, K], w [M, K], bias [M], residual and y [N, M], xa [N, S R] bf16; a [S R, K], b [M, R] f32, rounded to bf16
//           where they are multiplied, the scale within b. Segment s takes columns up to end_s; parts [splits, N, S R] f32.
// Plan      lora_linear_xa: a block takes 128 tokens, a warp 16 of them, and up to SLICES times 16 ranks; x goes from
//           memory to registers as fragments (eight neighbouring columns a lane, the same order of k in a's fragments), once
//           for all segments; a goes through two stages of shared memory. K is split where tokens are too few to fill the
//           GPU: partial sums, which lora_linear_round adds in order. lora_linear_fwd_128 and _64: product.cuh. The low-rank
//           product is done while the first stages are on their way, fragments straight from memory; only columns of a
//           segment see its xa. Two blocks of _128 a multiprocessor, three or four of _64.
// Cost      T is the side of a tile, N' and M' are rounded up to it, M'' the columns of the tiles that each adapted segment
//           has, together, K' and R' rounded up to 32 and 16, N'' and K'' to 128 and 64. flops: 2 N' (M' K' + M'' R'), xa
//           2 N'' S R' K''. Bytes: 2 K (N M' + M N') / T + 2 N M, with a residual 2 N M more, with a bias 32 M N' / T; for
//           the low-rank term 4 N R M'' / T and 8 R N' / T a row of an adapted segment; xa 2 N K ceil(S R' / 64) +
//           4 S R K N'' / 128 + 2 N S R, or 4 N S R splits for it where K is split, which round reads again for 2 N S R.
// Numerics  bf16 products, f32 sums: the low-rank ones first, then k in its order (the ragged 32 first), bias, residual; one
//           rounding. xa is rounded once, after the dropout's scale. Masks are those of src/ops/dropout.rs, bit by bit, and
//           are drawn only where there is a dropout.
// Sectors   Twice bytes / 32 for the ranks of lora_linear_fwd_64 and lora_linear_fwd_128, whose fragments take 4 and 8 bytes
//           a lane of rows that are far apart, and for a in lora_linear_xa, eight floats by two loads; the rest is in L1.
// Limits    K and M and the ends of segments multiples of 8, S at most 3; rows at 16-byte boundaries.
// Source    Hu et al. 2021, arXiv:2106.09685, eq. 3; low-rank step in the same sums: Zhu et al. 2025, arXiv:2510.00206.
#include "lora_linear.cuh"

EXPORT constexpr int XA_THREADS = 256;
EXPORT constexpr int XA_TOKENS = 128;
EXPORT constexpr int XA_DEPTH = 64;
EXPORT constexpr int SLICES = 4;
EXPORT constexpr int STEP = 16;
EXPORT constexpr int DEPTH = 32;
static_assert(SLICES == SLICES_OF_BLOCK && STEP == RANKS && DEPTH == Linear<4, false>::DEPTH, "the host counts by them");
EXPORT constexpr int ROUND_THREADS = 256;

// Tile of a, one block's ranks by XA_DEPTH columns: two panels of 32 columns, so that a lane's 16 bytes hold two k-steps.
constexpr int XA_ROWS = SLICES * RANKS, PANELS = XA_DEPTH / 32;

KERNEL void __launch_bounds__(XA_THREADS, 2)
lora_linear_xa(bf16* __restrict__ xa, float* __restrict__ parts_or_null, const bf16* __restrict__ x,
               const float* __restrict__ a, int N, int K, int R, const Segments segments, int depth,
               const Draw dropout) {
    __shared__ __align__(128) uint4 tiles[2][PANELS][XA_ROWS][4];
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Slices slices(segments, blockIdx.x * SLICES, R);
    const int stacked = segments.count * R;
    const int row = blockIdx.y * XA_TOKENS + threadIdx.x / 32 * 16 + g;
    const int from = blockIdx.z * depth, to = min(K, from + depth);

    // This thread's chunk of a's panels.
    const int each = ceil_div(R, RANKS), slice_a = blockIdx.x * SLICES + threadIdx.x / 64;
    const int rank_a = slice_a % each * RANKS + threadIdx.x / 4 % RANKS;
    const bool there_a = threadIdx.x / 64 < slices.count && rank_a < R;
    const float* a_row = a + size_t(slice_a / each * R + rank_a) * K;
    const bf16* rows[2] = {x + size_t(row) * K, x + size_t(row + 8) * K};
    uint4 ahead[PANELS][2];
    float4 a_ahead[PANELS][2];
    const auto fetch = [&](int k) {
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
            const int at = k + 32 * p + BF16S * t;
#pragma unroll
            for (int i = 0; i < 2; i++)
                ahead[p][i] = row + 8 * i < N && at < to ? load(rows[i] + at, 0) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 2; i++)
                a_ahead[p][i] = there_a && at < to ? load(a_row + at, i) : make_float4(0, 0, 0, 0);
        }
    };

    float sums[SLICES][2][4] = {};
    fetch(from);
    for (int k = from, turn = 0; k < to; k += XA_DEPTH, turn ^= 1) {
        uint4 now[PANELS][2];
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
            const float4 low = a_ahead[p][0], high = a_ahead[p][1];
            if (threadIdx.x / 64 < slices.count)
                tiles[turn][p][threadIdx.x / 4][t] = make_uint4(narrow(low.x, low.y), narrow(low.z, low.w),
                                                                narrow(high.x, high.y), narrow(high.z, high.w));
            now[p][0] = ahead[p][0], now[p][1] = ahead[p][1];
        }
        __syncthreads();
        if (k + XA_DEPTH < to) fetch(k + XA_DEPTH);
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
            uint4 upper = now[p][0], lower = now[p][1];
#pragma unroll
            for (int j = 0; j < SLICES; j++) {
                if (j >= slices.count) break;
                if (dropout.least && slices.fresh(j)) {
                    upper = now[p][0], lower = now[p][1];
                    if (slices.adapted >> j & 1) {
                        upper = dropped(dropout, upper, row, slices.segment[j], (k + 32 * p) / BF16S + t);
                        lower = dropped(dropout, lower, row + 8, slices.segment[j], (k + 32 * p) / BF16S + t);
                    }
                }
                const unsigned even[4] = {upper.x, lower.x, upper.y, lower.y};
                const unsigned odd[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const uint4 b = tiles[turn][p][j * RANKS + i * 8 + g][t];
                    mma_m16n8k16(sums[j][i], even, b.x, b.y);
                    mma_m16n8k16(sums[j][i], odd, b.z, b.w);
                }
            }
        }
    }

#pragma unroll
    for (int j = 0; j < SLICES; j++) {
        if (j >= slices.count) break;
        const float kept = slices.adapted >> j & 1 ? dropout.scale : 1;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const int r = slices.rank[j] + e / 4 * 8 + 2 * t + e % 2, n = row + e / 2 % 2 * 8;
            if (r >= R || n >= N) continue;
            const size_t at = size_t(n) * stacked + slices.segment[j] * R + r;
            const float value = sums[j][e / 4][e % 4] * kept;
            if (parts_or_null) parts_or_null[size_t(blockIdx.z) * N * stacked + at] = value;
            else xa[at] = narrow(value);
        }
    }
}

// out[n, s R + r], the sum of its segment's parts in their order; 0 where it has none. Parts are [end of the last, N, R].
KERNEL void __launch_bounds__(ROUND_THREADS)
lora_linear_round(bf16* __restrict__ out, const float* __restrict__ parts, int N, int R, const Segments segments) {
    const unsigned stacked = segments.count * R, at = blockIdx.x * ROUND_THREADS + threadIdx.x;
    const unsigned n = at / stacked, r = at % stacked;
    if (n >= unsigned(N)) return;
    const int segment = r / R;
    float sum = 0;
    for (int p = segments.start(segment); p < segments.end(segment); p++) sum += parts[(size_t(p) * N + n) * R + r % R];
    out[at] = narrow(sum);
}

// Adds the segments' low-rank products to the sums of a tile at `row`, `column`.
template <bool EVEN, int BLOCKS>
__device__ __forceinline__ void low_rank(Linear<BLOCKS, false>& product, const bf16* xa, const float* b, int N, int R,
                                         const Segments& of, int row, int column) {
    using P = Linear<BLOCKS, false>;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, m = column + product.warp_column + g;
    for (int s = 0; s < of.count; s++) {
        const int start = of.start(s), end = of.end(s);
        const float scale = of.scale(s);
        if (scale == 0 || end <= column || start >= column + P::TILE) continue;
        for (int r = 0; r < R; r += RANKS) {
            unsigned rows[BLOCKS][4];
            load_ranks<EVEN>(rows, xa + s * R, row + product.warp_row + g, N, of.count * R, r + 2 * t, R);
#pragma unroll
            for (int j = 0; j < P::EIGHTS; j++) {
                const int at = m + 8 * j;
                const bool there = at >= start && at < end;
                const unsigned low = there ? rank_pair<EVEN>(b + size_t(at) * R, r + 2 * t, R, scale) : 0;
                const unsigned high = there ? rank_pair<EVEN>(b + size_t(at) * R, r + 2 * t + 8, R, scale) : 0;
#pragma unroll
                for (int i = 0; i < BLOCKS; i++) mma_m16n8k16(product.d[i][j], rows[i], low, high);
            }
        }
    }
}

template <int BLOCKS>
__device__ __forceinline__ void linear(bf16* y, const bf16* x, const bf16* w, const bf16* bias, const bf16* residual,
                                       const bf16* xa, const float* b, int N, int K, int M, int R, const Segments& of) {
    using P = Linear<BLOCKS, false>;
    __shared__ __align__(128) bf16 ring[P::RING / sizeof(bf16)];
    const int2 tile = tile_of_block(ceil_div(N, P::TILE), ceil_div(M, P::TILE));
    const int row = tile.x * P::TILE, column = tile.y * P::TILE;
    P product;
    product.begin(ring, {x, N, K, K}, {w, M, K, K}, row, column);
    if (xa && R % 2 == 0) low_rank<true>(product, xa, b, N, R, of, row, column);
    else if (xa) low_rank<false>(product, xa, b, N, R, of, row, column);
    product.finish();
    product.end(ring, y, bias, residual, N, M, row, column);
}

EXPORT constexpr int PRODUCT_THREADS = 128;

KERNELS(lora_linear_fwd, _, SIDE, (128, 64), __launch_bounds__(PRODUCT_THREADS, SIDE == 128 ? 2 : 4),
        (bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ w, const bf16* __restrict__ bias_or_null,
         const bf16* __restrict__ residual_or_null, const bf16* __restrict__ xa_or_null, const float* __restrict__ b_or_null,
         int N, int K, int M, int R, const Segments segments) {
            linear<SIDE / 32>(y, x, w, bias_or_null, residual_or_null, xa_or_null, b_or_null, N, K, M, R, segments);
        })
