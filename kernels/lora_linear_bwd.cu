// lora_linear_bwd: what the product sends back to x and to the low-rank factors; w and bias are frozen.
//
//   dxa[n, s R + r]  = scale_s sum_m dy[n,m] b[m,r]           m in segment s
//   db[m,r]         += scale_s sum_n dy[n,m] xa[n, s R + r]
//   dx[n,k]          = sum_m dy[n,m] w[m,k] + sum_s mask_s[n,k] sum_r dxa[n, s R + r] a[s R + r, k]
//   da[s R + r, k]  += sum_n dxa[n, s R + r] drop_s(x)[n,k]
//
// Shapes    as in lora_linear_fwd.cu; dy [N, M], dx [N, K], dxa [N, S R] bf16, da and db f32 like a and b. Parts in f32:
//           of dxa [tiles, N, R], of db [splits, M, R], of da [splits, S R, K].
// Plan      lora_linear_dxa: both products with dy in one pass. A block takes a tile of up to 512 columns of one segment, 16
//           ranks and a run of tokens, 32 at a time; its part of scale b stays in registers as fragments, and so do its
//           sums of db. dxa is summed over the block's columns and then, by lora_linear_round, over tiles; db over the runs,
//           by lora_linear_add. lora_linear_dx_128 and _64: product.cuh with w as it lies; the low-rank terms come first,
//           a fragment at a time, masked before they are mixed: the mask of a warp's part is drawn ahead, into bits.
//           lora_linear_da: 128 columns of x and a run of tokens a block; x goes through registers, where each segment's
//           mask is drawn once an element, to one tile of shared memory a segment. Blocks of 256 threads, two a
//           multiprocessor, three of lora_linear_da; those of dx have 128, two of _128 a multiprocessor and four of _64.
// Cost      N' is N rounded up to 32, R' R to 16, A the adapted segments, M_A their columns, M' each rounded up to 256, X
//           the tiles of 512 columns, s the splits of a launch. dxa: 2 flops N' M' R', twice with db; bytes
//           2 N M_A R' / 16 + 8 s M_A R + 4 X N R, with db 2 X N R + 4 s M_A R more; round 4 X N R + 2 N S R. dx, with T the
//           side of a tile, N and K rounded up to it in N'' and K'': flops 2 N'' K'' (up32(M) + A R'), bytes
//           2 M (N K'' + K N'') / T + 2 N K + A R (4 N K'' + 4 K N'') / T. da: flops 2 N' up128(K) A R', bytes
//           2 N K ceil(S R' / 64) + 2 N S R ceil(K / 128) + 4 s A R K. add: 4 (2 + s) a float that is added to.
// Sectors   up to twice bytes / 32 for what goes by 4 or 8 bytes a lane, a's and b's ranks and the parts of db
//           (lora_linear_dxa).
// Numerics  bf16 products, f32 sums in a fixed order: parts are added in theirs, and no block adds to another's. dxa and dx
//           are rounded once. A dropout's scale multiplies sums, never x. Masks as in the forward.
// Limits    as in the forward; segments without an adapter (scale 0) give no da, no db and a dxa of 0.
// Source    chain rule; low-rank terms ahead of the main product: Zhu et al. 2025, arXiv:2510.00206.
#include "lora_linear.cuh"

EXPORT constexpr int THREADS = 256;
EXPORT constexpr int TOKENS = 32;
EXPORT constexpr int DXA_COLUMNS = 512;
EXPORT constexpr int DA_COLUMNS = 128;
EXPORT constexpr int ADD_THREADS = 256;
EXPORT constexpr int PRODUCT_THREADS = 128;

// Columns that lora_linear_dxa has in a stage, and stages in a tile.
EXPORT constexpr int SPAN = 256;
constexpr int SLICES = SLICES_OF_BLOCK, SPANS = DXA_COLUMNS / SPAN, SPAN_CHUNKS = SPAN / BF16S;

// Shared memory of lora_linear_dxa.
struct DxaRoom {
    uint4 dy[2][TOKENS * SPAN_CHUNKS];
    uint4 xa[TOKENS * RANKS / BF16S];
    // One sum a quarter of the columns; rows 24 apart touch all banks once, two floats a lane or one.
    float sums[4][TOKENS][RANKS + 8];
};

KERNEL void __launch_bounds__(THREADS, 2)
lora_linear_dxa(float* __restrict__ dxa_parts, float* __restrict__ db_parts_or_null, const bf16* __restrict__ dy,
                const bf16* __restrict__ xa_or_null, const float* __restrict__ b, int N, int M, int R,
                const Segments segments, int tiles0, int tiles1, int run) {
    __shared__ __align__(128) DxaRoom room;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Segments& of = segments;
    const int tile = blockIdx.y, segment = (tile >= tiles0) + (tile >= tiles1);
    const int before = segment == 0 ? 0 : segment == 1 ? tiles0 : tiles1;
    const int column = of.start(segment) + (tile - before) * DXA_COLUMNS, end = of.end(segment);
    const int spans = end - column > SPAN ? SPANS : 1, rank = blockIdx.x * RANKS;
    const int from = blockIdx.z * run, to = min(N, from + run);
    const float scale = of.scale(segment);

    // dxa: warps take 16 tokens and a quarter of the span's columns; their fragments of scale b stand still.
    const int token_row = warp % 2 * 16, quarter = warp / 2;
    unsigned factors[SPANS][4][2][2];
#pragma unroll
    for (int p = 0; p < SPANS; p++)
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int m = column + p * SPAN + quarter * 64 + k * 16 + c % 2 * 8 + 2 * t, r = rank + c / 2 * 8 + g;
                const bool there = m < end && r < R;
                factors[p][k][c / 2][c % 2] = narrow(there ? b[size_t(m) * R + r] * scale : 0,
                                                     there ? b[size_t(m + 1) * R + r] * scale : 0);
            }

    // This thread's chunks of dy, four a stage, and its pair of xa.
    const int chunk = threadIdx.x % SPAN_CHUNKS, row = threadIdx.x / SPAN_CHUNKS;
    const unsigned dy_room = shared_address(room.dy), xa_room = shared_address(room.xa);
    const auto fetch = [&](int n, int p, int turn) {
        const bool there = column + p * SPAN + chunk * BF16S < end;
        const bf16* at = dy + size_t(n + row) * M + column + p * SPAN + chunk * BF16S;
#pragma unroll
        for (int i = 0; i < TOKENS; i += THREADS / SPAN_CHUNKS)
            cp_async(dy_room + turn * int(sizeof room.dy[0]) + swizzled<SPAN_CHUNKS>(row + i, chunk), at + size_t(i) * M,
                     there && n + row + i < to);
        cp_async_commit();
    };
    const int xa_row = threadIdx.x / 8, xa_rank = threadIdx.x % 8 * 2;
    const auto pair = [&](int n) {
        if (!xa_or_null || n + xa_row >= to) return 0u;
        const bf16* at = xa_or_null + size_t(n + xa_row) * segments.count * R + segment * R;
        return R % 2 ? rank_pair<false>(at, rank + xa_rank, R) : rank_pair<true>(at, rank + xa_rank, R);
    };

    float grads[SPANS][2][2][4] = {};
    unsigned next = pair(from);
    fetch(from, 0, 0);
    for (int n = from, turn = 0; n < to; n += TOKENS) {
        *reinterpret_cast<unsigned*>(reinterpret_cast<char*>(room.xa) +
                                     swizzled<RANKS / BF16S>(xa_row, xa_rank / BF16S) + xa_rank % BF16S * 2) = next;
        float sums[2][4] = {};
#pragma unroll
        for (int p = 0; p < SPANS; p++) {
            if (p >= spans) break;
            cp_async_wait<0>();
            __syncthreads();
            if (p + 1 < spans) fetch(n, p + 1, turn ^ 1);
            else if (n + TOKENS < to) fetch(n + TOKENS, 0, turn ^ 1);
            if (p == 0 && n + TOKENS < to) next = pair(n + TOKENS);
            const unsigned stage = dy_room + turn * int(sizeof room.dy[0]);
            turn ^= 1;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                unsigned a[4];
                ldmatrix_x4(a, stage + swizzled<SPAN_CHUNKS>(token_row + lane % 16, quarter * 8 + k * 2 + lane / 16));
#pragma unroll
                for (int j = 0; j < 2; j++) mma_m16n8k16(sums[j], a, factors[p][k][j][0], factors[p][k][j][1]);
            }
            if (!db_parts_or_null) continue;
            // db: warps take 32 columns, as rows.
#pragma unroll
            for (int k = 0; k < TOKENS; k += 16) {
                unsigned ranks[4];
                ldmatrix_x4_trans(ranks, xa_room + swizzled<RANKS / BF16S>(k + lane % 16, lane / 16));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    unsigned a[4];
                    ldmatrix_x4_trans(a, stage + swizzled<SPAN_CHUNKS>(k + lane % 8 + lane / 16 * 8,
                                                                       warp * 4 + i * 2 + lane / 8 % 2));
                    mma_m16n8k16(grads[p][i][0], a, ranks[0], ranks[1]);
                    mma_m16n8k16(grads[p][i][1], a, ranks[2], ranks[3]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                *reinterpret_cast<float2*>(&room.sums[quarter][token_row + g + 8 * c][8 * j + 2 * t]) =
                    make_float2(sums[j][2 * c], sums[j][2 * c + 1]);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = warp * 4 + lane / 16 * 2 + i, r = lane % 16;
            float sum = 0;
#pragma unroll
            for (int q = 0; q < 4; q++) sum += room.sums[q][at][r];
            if (n + at < to && rank + r < R) dxa_parts[(size_t(tile) * N + n + at) * R + rank + r] = sum;
        }
    }

    if (!db_parts_or_null) return;
    float* parts = db_parts_or_null + size_t(blockIdx.z) * M * R;
#pragma unroll
    for (int p = 0; p < SPANS; p++)
#pragma unroll
        for (int e = 0; e < 16; e++) {
            const int m = column + p * SPAN + warp * 32 + e / 8 * 16 + e / 2 % 2 * 8 + g;
            const int r = rank + e / 4 % 2 * 8 + 2 * t + e % 2;
            if (m < end && r < R) parts[size_t(m) * R + r] = grads[p][e / 8][e / 4 % 2][e % 4] * scale;
        }
}

// to[row, .] += its parts in their order, for rows of segments that have an adapter; parts are [splits, rows, width].
KERNEL void __launch_bounds__(ADD_THREADS)
lora_linear_add(float* __restrict__ to, const float* __restrict__ parts, int rows, int width, int splits,
                const Segments segments) {
    const size_t count = size_t(rows) * width, at = (size_t(blockIdx.x) * ADD_THREADS + threadIdx.x) * FLOATS;
    if (at >= count) return;
    // Four floats never belong to two segments: the ends are multiples of 4 elements.
    const int row = unsigned(at) / unsigned(width);
    if (segments.scale((row >= segments.end0) + (row >= segments.end1)) == 0) return;
    float4 v = load(to + at, 0);
    for (int p = 0; p < splits; p++) {
        const float4 more = load(parts + p * count + at, 0);
        v = make_float4(v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w);
    }
    store(to + at, 0, v);
}

// Which elements of the C fragments at `row` and `row` + 16, `column` a dropout keeps, four bits each. A lane of a quad draws
// the eight columns of one of their four rows, and all four share their bytes.
__device__ __forceinline__ unsigned kept_of_fragments(const Draw& dropout, int row, int plane, int column) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    unsigned bits = dropout.kept(row + g + 8 * t, plane, column / BF16S) << 8 * t;
    bits |= __shfl_xor_sync(ALL, bits, 1);
    bits |= __shfl_xor_sync(ALL, bits, 2);
    // This lane's two columns of the rows g, g + 8, g + 16, g + 24.
    bits = bits >> 2 * t & 0x03030303u;
    bits |= bits >> 6;
    return (bits & 0xf) | (bits >> 12 & 0xf0);
}

// Adds the segments' masked low-rank terms to the sums of a tile at `row`, `column`. `room` holds 16 rows of a.
template <int BLOCKS>
__device__ __forceinline__ void low_rank(Linear<BLOCKS, true>& product, bf16* room, const bf16* dxa, const float* a, int N,
                                         int K, int R, const Segments& of, const Draw& dropout, int row, int column) {
    using P = Linear<BLOCKS, true>;
    constexpr int WORDS = P::EIGHTS * BLOCKS / 8, CHUNKS = P::TILE / BF16S;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const unsigned room_address = shared_address(room);
    const int first_column = column;
    row += product.warp_row, column += product.warp_column;
    for (int s = 0; s < of.count; s++) {
        if (of.scale(s) == 0) continue;
        // The mask of the warp's part, drawn ahead: fragment i, j has bits 4 (j BLOCKS + i) on.
        unsigned keep[WORDS];
#pragma unroll
        for (int word = 0; word < WORDS; word++) {
            keep[word] = dropout.least ? 0 : ALL;
            if (dropout.least)
#pragma unroll 1
                for (int i = 0; i < 8; i += 2) {
                    const int at = 8 * word + i;
                    keep[word] |= kept_of_fragments(dropout, row + at % BLOCKS * 16, s, column + at / BLOCKS * 8) << 4 * i;
                }
        }
        for (int r = 0; r < R; r += RANKS) {
            __syncthreads();
#pragma unroll 1
            for (int i = 0; i < RANKS * CHUNKS; i += P::THREADS) {
                const int rank = (threadIdx.x + i) / CHUNKS, chunk = threadIdx.x % CHUNKS, k = first_column + chunk * BF16S;
                const bool there = r + rank < R && k < K;
                const float* at = a + size_t(s * R + r + rank) * K + k;
                const float4 low = there ? load(at, 0) : make_float4(0, 0, 0, 0);
                const float4 high = there ? load(at, 1) : make_float4(0, 0, 0, 0);
                store(room, swizzled<CHUNKS>(rank, chunk) / 16,
                      make_uint4(narrow(low.x, low.y), narrow(low.z, low.w), narrow(high.x, high.y), narrow(high.z, high.w)));
            }
            unsigned ranks[BLOCKS][4];
            if (R % 2 == 0) load_ranks<true>(ranks, dxa + s * R, row + g, N, of.count * R, r + 2 * t, R);
            else load_ranks<false>(ranks, dxa + s * R, row + g, N, of.count * R, r + 2 * t, R);
            __syncthreads();
            unsigned b[4];
#pragma unroll
            for (int j = 0; j < P::EIGHTS; j++) {
                if (j % 2 == 0)
                    ldmatrix_x4_trans(b, room_address + swizzled<CHUNKS>(lane % 16, (product.warp_column + 8 * j) / BF16S + lane / 16));
#pragma unroll
                for (int i = 0; i < BLOCKS; i++) {
                    float sums[4] = {};
                    mma_m16n8k16(sums, ranks[i], b[j % 2 * 2], b[j % 2 * 2 + 1]);
                    const unsigned bits = keep[(j * BLOCKS + i) / 8] >> (j * BLOCKS + i) % 8 * 4;
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        product.d[i][j][c] += bits >> c & 1 ? sums[c] * dropout.scale : 0;
                }
            }
        }
    }
}

template <int BLOCKS>
__device__ __forceinline__ void linear_dx(bf16* dx, const bf16* dy, const bf16* w, const bf16* dxa, const float* a, int N,
                                          int K, int M, int R, const Segments& of, const Draw& dropout) {
    using P = Linear<BLOCKS, true>;
    __shared__ __align__(128) bf16 ring[P::RING / sizeof(bf16)];
    const int2 tile = tile_of_block(ceil_div(N, P::TILE), ceil_div(K, P::TILE));
    const int row = tile.x * P::TILE, column = tile.y * P::TILE;
    P product;
    // Before the copies are under way, whose addresses have no registers beside the masks'.
    if (dxa) {
        low_rank(product, ring, dxa, a, N, K, R, of, dropout, row, column);
        __syncthreads();
    }
    product.begin(ring, {dy, N, M, M}, {w, K, M, K}, row, column);
    product.finish();
    product.end(ring, dx, nullptr, nullptr, N, K, row, column);
}

KERNELS(lora_linear_dx, _, SIDE, (128, 64), __launch_bounds__(PRODUCT_THREADS, SIDE == 128 ? 2 : 4),
        (bf16* __restrict__ dx, const bf16* __restrict__ dy, const bf16* __restrict__ w, const bf16* __restrict__ dxa_or_null,
         const float* __restrict__ a_or_null, int N, int K, int M, int R, const Segments segments, const Draw dropout) {
            linear_dx<SIDE / 32>(dx, dy, w, dxa_or_null, a_or_null, N, K, M, R, segments, dropout);
        })

KERNEL void __launch_bounds__(THREADS, 3)
lora_linear_da(float* __restrict__ parts, const bf16* __restrict__ dxa, const bf16* __restrict__ x, int N, int K, int R,
               const Segments segments, int run, const Draw dropout) {
    constexpr int CHUNKS = DA_COLUMNS / BF16S, ROWS_AT_ONCE = THREADS / CHUNKS, LOADS = TOKENS / ROWS_AT_ONCE;
    constexpr int RANK_CHUNKS = SLICES * RANKS / BF16S;
    __shared__ __align__(128) uint4 tiles[3][TOKENS * CHUNKS];
    __shared__ __align__(128) uint4 rank_tile[TOKENS * RANK_CHUNKS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Slices slices(segments, blockIdx.x * SLICES, R);
    const int stacked = segments.count * R, last = (blockIdx.x * SLICES + slices.count - 1) / ceil_div(R, RANKS);
    const int column = blockIdx.y * DA_COLUMNS, from = blockIdx.z * run, to = min(N, from + run);

    // This thread's chunks of x, and its pair of dxa, every eighth token.
    const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS, at_x = column + chunk * BF16S;
    const int each = ceil_div(R, RANKS), pair_slice = blockIdx.x * SLICES + lane / 8;
    const int pair_rank = pair_slice % each * RANKS + lane % 8 * 2;
    const bf16* const pair_column = dxa + pair_slice / each * R;
    uint4 ahead[LOADS];
    unsigned pairs[TOKENS / 8];
    const auto fetch = [&](int n) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int at = n + row + i * ROWS_AT_ONCE;
            ahead[i] = at < to && at_x < K ? load(x + size_t(at) * K + at_x, 0) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < TOKENS / 8; i++) {
            const int at = n + warp + 8 * i;
            const bf16* from = pair_column + size_t(at) * stacked;
            pairs[i] = lane / 8 >= slices.count || at >= to ? 0
                       : R % 2 ? rank_pair<false>(from, pair_rank, R) : rank_pair<true>(from, pair_rank, R);
        }
    };

    // Where slice j's x is: one tile for all where nothing is dropped.
    const auto copy = [&](int j) { return dropout.least ? (slices.segment[j] - slices.segment[0]) * TOKENS * CHUNKS : 0; };
    const unsigned tiles_room = shared_address(tiles), rank_room = shared_address(rank_tile);
    float sums[SLICES][2][4] = {};
    fetch(from);
    for (int n = from; n < to; n += TOKENS) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int at = row + i * ROWS_AT_ONCE;
            uint4* const tile = tiles[0] + swizzled<CHUNKS>(at, chunk) / 16;
            if (!dropout.least) *tile = ahead[i];
            else
#pragma unroll 1
                for (int s = slices.segment[0]; s <= last; s++)
                    if (segments.scale(s) != 0)
                        tile[(s - slices.segment[0]) * TOKENS * CHUNKS] = dropped(dropout, ahead[i], n + at, s, at_x / BF16S);
        }
#pragma unroll
        for (int i = 0; i < TOKENS / 8; i++)
            *reinterpret_cast<unsigned*>(reinterpret_cast<char*>(rank_tile) +
                                         swizzled<RANK_CHUNKS>(warp + 8 * i, lane / 4) + lane % 4 * 4) = pairs[i];
        __syncthreads();
        if (n + TOKENS < to) fetch(n + TOKENS);
#pragma unroll
        for (int k = 0; k < TOKENS; k += 16) {
            unsigned b[4];
#pragma unroll
            for (int j = 0; j < SLICES; j++) {
                if (j >= slices.count || !(slices.adapted >> j & 1)) continue;
                if (slices.fresh(j))
                    ldmatrix_x4_trans(b, tiles_room + copy(j) * 16 + swizzled<CHUNKS>(k + lane % 16, warp * 2 + lane / 16));
                unsigned a[4];
                ldmatrix_x4_trans(a, rank_room + swizzled<RANK_CHUNKS>(k + lane % 8 + lane / 16 * 8, j * 2 + lane / 8 % 2));
                mma_m16n8k16(sums[j][0], a, b[0], b[1]);
                mma_m16n8k16(sums[j][1], a, b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int j = 0; j < SLICES; j++) {
        if (j >= slices.count || !(slices.adapted >> j & 1)) continue;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int r = slices.rank[j] + e % 2 * 8 + g, k = column + warp * 16 + e / 2 * 8 + 2 * t;
            if (r >= R || k >= K) continue;
            const float* c = sums[j][e / 2] + e % 2 * 2;
            *reinterpret_cast<float2*>(parts + (size_t(blockIdx.z) * stacked + slices.segment[j] * R + r) * K + k) =
                make_float2(c[0] * dropout.scale, c[1] * dropout.scale);
        }
    }
}
