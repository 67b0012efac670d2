// contrastive_sm90: contrastive.cu's products on Hopper, where there are many: six of bf16 for each of f32, by wgmma.
//
// Shapes    q, dq [P, C], c, dc [M, C], limit, positive, lse [P] f32, ids [M] i32 or null; planes of c [3, M, C], of a wave of q
//           [3, W, C] and its dz [3, up64(W), stride] bf16: a number is the sum of its three, stride M rounded up to 8 (_1: one plane). most,
//           sum, rival [tiles, W] f32, then [P]. Maps, by 64 columns: what has the output's rows by ROWS, in contrastive_dc_sm90
//           by DEPTH rows; c by TILE / CLUSTER rows, on the diagonal TILE, across by DEPTH / CLUSTER.
// Plan      Kernels that end in _3 multiply f32, numbers of three planes; in _1 numbers rounded to bf16, of one plane, whose
//           products go through a ring of six stages as lora_linear_sm90's do.
//           contrastive_split_sm90 takes numbers apart, once for all products. tile_sm90.cuh with tiles of 128 by 128, whose
//           second set of sums is what joins the first every 32 of the depth. With a margin contrastive_limit_sm90 first takes
//           the tiles on the diagonal. By waves of W rows: contrastive_fwd_sm90 ends in (most, sum, rival) of a row and a tile,
//           and contrastive_fold_sm90 in those of a row, a warp each, for contrastive_total. contrastive_bwd_sm90 ends in dz,
//           taken apart as it is written; contrastive_dq_sm90 and contrastive_dc_sm90 multiply it by candidates and queries as
//           they lie; dc goes on where the wave before stopped.
// Cost      WW, MM are W, M rounded up to 256 (W to 128 in contrastive_limit_sm90), M', C' M and C to 128, tiles M' / 128. Planes
//           are read to the ends of tiles, past which the next plane lies: rows to R of r are 2 R + r, below r:R. Flops: products
//           of scores 12 WW M' up64(C), limit 12 WW 128 up64(C), dq 12 WW C' up64(M), dc 12 MM C' up64(W). Bytes: split 10 a
//           number; scores 2 C (W:WW M' / 128 + M:M' WW / 256), with ids 4 W M + 16 W tiles and with a margin 16 W tiles more,
//           and forward 12 W tiles + 4 W, backward 6 up64(W) stride + 16 W tiles; limit 2 C (W:WW + 3 WW) + 4 W; fold 12 W tiles
//           + 12 W; dq 2 stride up64(W):WW C' / 128 + 2 C M:up64(M) WW / 256 + 4 W C; dc 6 up64(W) stride C' / 128 + 2 C
//           W:up64(W) MM / 256 + 4 M C, from the second wave on 4 M C more.
//           _1: a sixth of the flops, a third of the bytes of planes.
// Numerics  As contrastive.cu, whose order of the sums over a depth this is; in _1 a tensor core adds up the whole depth:
//           losses are off the rounded vectors' by 1.7e-5 where those are by 3.1e-6, gradients alike.
// Sectors   more than bytes / 32 where threads have four bytes of a row: dz's planes (contrastive_bwd_sm90_3, contrastive_bwd_sm90_1);
//           where they read ids and limits for themselves (contrastive_fwd_sm90_3, contrastive_fwd_sm90_1); rows of tiles that lie apart (contrastive_fold_sm90); eight floats
//           by two loads, the second from L1 (contrastive_split_sm90_3, contrastive_split_sm90_1); one number of each row
//           (contrastive_limit_sm90_3, contrastive_limit_sm90_1); rows of dz that begin within a sector (contrastive_dq_sm90_1).
// Limits    C a multiple of 8, all arrays at 16-byte boundaries. A number that is not finite spreads to the rows and columns of
//           its tile.
// Source    as contrastive.cu and tile_sm90.cuh.
#include "lse.cuh"
#include "tile_sm90.cuh"

EXPORT constexpr int THREADS = 384;
EXPORT constexpr int ROWS = 128;
EXPORT constexpr int DEPTH = 64;
EXPORT constexpr int TILE = 128;
EXPORT constexpr int CLUSTER = 2;
EXPORT constexpr int SHARED = 230496;
EXPORT constexpr int SHARED_OF_ONE = 230560;
EXPORT constexpr int ROW_THREADS = 256;

template <int PLANES> using ScoreTile = HopperTile<TILE, CLUSTER, PLAIN, PLANES>;
template <int PLANES> using DiagonalTile = HopperTile<TILE, 1, ON_DIAGONAL, PLANES>;
template <int PLANES> using QueryTile = HopperTile<TILE, CLUSTER, B_ACROSS, PLANES>;
template <int PLANES> using CandidateTile = HopperTile<TILE, CLUSTER, B_ACROSS | A_DOWN, PLANES>;
template <int PLANES, int BYTES>
constexpr bool takes = ScoreTile<PLANES>::SHARED == BYTES && DiagonalTile<PLANES>::SHARED == BYTES &&
                       QueryTile<PLANES>::SHARED == BYTES && CandidateTile<PLANES>::SHARED == BYTES;
static_assert(takes<3, SHARED> && takes<1, SHARED_OF_ONE> && ScoreTile<3>::THREADS == THREADS &&
                  ScoreTile<3>::ROWS == ROWS && ScoreTile<3>::DEPTH == DEPTH,
              "the host launches by them");

// Of a row, how far the i-th of a thread's 32 columns lies from its first.
constexpr int MINE = TILE / 4;
__device__ constexpr int apart(int i) { return i / 2 * 8 + i % 2; }
// That sum, of the upper row or the one eight below.
__device__ constexpr int place(int i, int half) { return i / 2 * 4 + 2 * half + i % 2; }
// The upper of this thread's rows of the tile whose first row is `row`.
__device__ __forceinline__ int own_row(int consumer, int row) {
    return row + 64 * consumer + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

// Rows between the planes of a wave's dz.
__device__ __forceinline__ int pitch(int rows) { return ceil_div(rows, DEPTH) * DEPTH; }

// Two numbers as so many pairs of bf16.
template <int PLANES>
__device__ __forceinline__ void take_apart(unsigned (&planes)[PLANES], float low, float high) {
#pragma unroll
    for (int i = 0; i < PLANES; i++) {
        planes[i] = narrow(low, high);
        low -= __uint_as_float(planes[i] << 16), high -= __uint_as_float(planes[i] & 0xffff0000u);
    }
}

// Of `rows` rows from `first` on, eight numbers a thread.
template <int PLANES>
__device__ __forceinline__ void split(bf16* to, const float* x, int first, int rows, int C) {
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x, count = size_t(rows) * C;
    if (at * BF16S >= count) return;
    const float* from = x + size_t(first) * C;
    const float4 low = load(from, 2 * at), high = load(from, 2 * at + 1);
    unsigned w[4][PLANES];
    take_apart(w[0], low.x, low.y), take_apart(w[1], low.z, low.w);
    take_apart(w[2], high.x, high.y), take_apart(w[3], high.z, high.w);
#pragma unroll
    for (int i = 0; i < PLANES; i++) store(to + i * count, at, make_uint4(w[0][i], w[1][i], w[2][i], w[3][i]));
}
KERNELS(contrastive_split_sm90, _, PLANES, (3, 1), __launch_bounds__(ROW_THREADS),
        (bf16* __restrict__ to, const float* __restrict__ x, int first, int rows, int C) {
            split<PLANES>(to, x, first, rows, C);
        })

// A product whose sums go nowhere but through `finish`.
template <class T>
struct Summed : HopperOp<T> {
    int planes_a, planes_b;

    __device__ __forceinline__ int pitch_a() const { return planes_a; }
    __device__ __forceinline__ int pitch_b() const { return planes_b; }
    __device__ __forceinline__ static constexpr bool stores() { return false; }
    __device__ __forceinline__ void sum(typename T::Sums& d, Consumer<T>& consumer, int, int) const { total(d, consumer, false); }
    // The sum over the depth, on top of d if that is to `keep`.
    __device__ __forceinline__ void total(typename T::Sums& d, Consumer<T>& consumer, bool keep) const {
        const int stages = ceil_div(this->depth, T::DEPTH);
        if constexpr (T::PLANES == 1) {
            add_stages(d, consumer, stages, keep);
        } else {
#pragma unroll
            for (int i = 0; i < T::COLUMNS / 2; i++) d[i] = keep ? d[i] : 0;
            add_exactly(d, consumer, stages);
        }
    }
};

// Which candidates count for a query; first is the wave's first.
struct Rule {
    const int* ids;
    const float* limit;
    int first, M;
};

// Calls use(i, m, counts, own) for this thread's columns of row p, from m on.
template <class F>
__device__ __forceinline__ void each_candidate(const Rule& rule, const float* d, int half, int p, int m, F use) {
    const int text = rule.ids ? rule.ids[p] : 0;
    const float most = rule.limit ? rule.limit[p] : INFINITY;
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const int at = m + apart(i);
        const bool own = at == p, same = rule.ids && at < rule.M && rule.ids[at] == text;
        use(i, own, at < rule.M && (own || !(same || d[place(i, half)] > most)));
    }
}

// limit[p] = x[p,p] + margin; tiles of the diagonal alone.
template <int PLANES>
struct LimitOp : Summed<DiagonalTile<PLANES>> {
    float* limit;
    float margin;

    __device__ __forceinline__ void finish(typename DiagonalTile<PLANES>::Sums& d, int consumer, int row, int column) const {
        const int m = column + threadIdx.x % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = own_row(consumer, row) + 8 * half, p = column - row + r;
#pragma unroll
            for (int i = 0; i < MINE; i++)
                if (m + apart(i) == p && r < this->extent.rows) limit[p] = d[place(i, half)] + margin;
        }
    }
};

// Of `rows` queries from `first` on.
KERNELS(contrastive_limit_sm90, _, PLANES, (3, 1), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap candidates, float* __restrict__ limit,
         int first, int rows, int M, int C, float margin) {
            hopper_product<DiagonalTile<PLANES>>(
                LimitOp<PLANES>{{{{rows, first}, C, q, q, candidates}, rows, M}, limit, margin});
        })

template <int PLANES>
struct ForwardOp : Summed<ScoreTile<PLANES>> {
    Rule rule;
    float *most, *sum_, *rival, *positive;
    float scale;

    __device__ __forceinline__ void finish(typename ScoreTile<PLANES>::Sums& d, int consumer, int row, int column) const {
        const int t = threadIdx.x % 4, m = column + 2 * t;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = own_row(consumer, row) + 8 * half;
            unsigned counted = 0;
            float top = LOWEST, above = LOWEST, total = 0;
            if (r < this->extent.rows)
                each_candidate(rule, d, half, rule.first + r, m, [&](int i, bool own, bool counts) {
                    const float cosine = d[place(i, half)];
                    if (own) positive[rule.first + r] = cosine;
                    if (!counts) return;
                    counted |= 1u << i;
                    top = fmaxf(top, cosine * scale);
                    if (!own) above = rival_of(above, cosine);
                });
#pragma unroll
            for (int apart = 1; apart < 4; apart *= 2) {
                top = fmaxf(top, __shfl_xor_sync(ALL, top, apart));
                above = rival_of(above, __shfl_xor_sync(ALL, above, apart));
            }
#pragma unroll
            for (int i = 0; i < MINE; i++)
                if (counted >> i & 1) total += expf(d[place(i, half)] * scale - top);
            total += __shfl_xor_sync(ALL, total, 1);
            total += __shfl_xor_sync(ALL, total, 2);
            if (t == 0 && r < this->extent.rows) {
                const size_t to = size_t(column / TILE) * this->extent.rows + r;
                most[to] = top, sum_[to] = total, rival[to] = above;
            }
        }
    }
};

// Tiles of `rows` queries from `first` on, whose planes q holds.
KERNELS(contrastive_fwd_sm90, _, PLANES, (3, 1), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap candidates, float* __restrict__ most,
         float* __restrict__ sum, float* __restrict__ rival, float* __restrict__ positive, const int* __restrict__ ids_or_null,
         const float* __restrict__ limit_or_null, int first, int rows, int M, int C, float scale) {
            hopper_product<ScoreTile<PLANES>>(ForwardOp<PLANES>{{{{rows, M}, C, q, q, candidates}, rows, M},
                                                                {ids_or_null, limit_or_null, first, M},
                                                                most, sum, rival, positive, scale});
        })

// Folds the tiles of `rows` queries from `first` on, a warp a row; lanes take tiles in turn and merge in a tree.
KERNEL void __launch_bounds__(ROW_THREADS)
contrastive_fold_sm90(float* __restrict__ top, float* __restrict__ mass, float* __restrict__ highest,
                      const float* __restrict__ most, const float* __restrict__ sum, const float* __restrict__ rival, int first,
                      int rows, int tiles) {
    const int row = blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    Lse all = Lse::none();
    float above = LOWEST;
    for (int tile = lane; tile < tiles; tile += 32) {
        const size_t at = size_t(tile) * rows + row;
        all.merge(Lse{most[at], sum[at]});
        above = rival_of(above, rival[at]);
    }
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        all.merge_across(apart);
        above = rival_of(above, __shfl_xor_sync(ALL, above, apart));
    }
    if (lane == 0) top[first + row] = all.most, mass[first + row] = all.sum, highest[first + row] = above;
}

template <int PLANES>
struct BackwardOp : Summed<ScoreTile<PLANES>> {
    Rule rule;
    bf16* dz;
    const float* lse;
    int stride;
    float scale, weight;

    __device__ __forceinline__ void finish(typename ScoreTile<PLANES>::Sums& d, int consumer, int row, int column) const {
        const int m = column + threadIdx.x % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = own_row(consumer, row) + 8 * half, p = rule.first + r;
            // Rows up to the next multiple of a stage's depth are there for contrastive_dc_sm90, and are 0.
            if (r >= pitch(this->extent.rows)) continue;
            if (r < this->extent.rows) {
                const float of = lse[p];
                each_candidate(rule, d, half, p, m, [&](int i, bool own, bool counts) {
                    float& x = d[place(i, half)];
                    x = counts ? expf(x * scale - of) * weight : 0.0f;
                    if (own) x -= weight;
                });
            } else {
#pragma unroll
                for (int i = 0; i < MINE; i++) d[place(i, half)] = 0;
            }
#pragma unroll
            for (int i = 0; i < MINE; i += 2) {
                if (m + apart(i) >= stride) break;
                unsigned planes[PLANES];
                take_apart(planes, d[place(i, half)], d[place(i + 1, half)]);
#pragma unroll
                for (int k = 0; k < PLANES; k++)
                    reinterpret_cast<unsigned*>(dz + (size_t(k) * pitch(this->extent.rows) + r) * stride + m)[apart(i) / 2] = planes[k];
            }
        }
    }
};

// dz of `rows` queries from `first` on, and zeros for rows up to a multiple of 64 and columns past M.
KERNELS(contrastive_bwd_sm90, _, PLANES, (3, 1), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap candidates, bf16* __restrict__ dz,
         const int* __restrict__ ids_or_null, const float* __restrict__ limit_or_null, const float* __restrict__ lse, int first,
         int rows, int M, int C, int stride, float scale, float weight) {
            hopper_product<ScoreTile<PLANES>>(BackwardOp<PLANES>{{{{rows, M}, C, q, q, candidates}, rows, M},
                                                                 {ids_or_null, limit_or_null, first, M},
                                                                 dz, lse, stride, scale, weight});
        })

// Stores floats; sums go on from those that are there if there are `more`.
template <class T>
struct FloatOp : Summed<T> {
    float* to;
    bool more;

    // Calls use(two sums, their place) for all of this thread's that lie in the output.
    template <class F>
    __device__ __forceinline__ void each_pair(typename T::Sums& d, int row, int column, F use) const {
        const int m = column + threadIdx.x % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row + 8 * half;
            if (r >= this->extent.rows) continue;
#pragma unroll
            for (int i = 0; i < MINE; i += 2) {
                if (m + apart(i) >= this->extent.columns) break;
                use(d + place(i, half), *reinterpret_cast<float2*>(to + size_t(r) * this->extent.columns + m + apart(i)));
            }
        }
    }
    __device__ __forceinline__ void sum(typename T::Sums& d, Consumer<T>& consumer, int row, int column) const {
        if (more) {
#pragma unroll
            for (int i = 0; i < T::COLUMNS / 2; i++) d[i] = 0;
            each_pair(d, own_row(consumer.index, row), column, [](float* x, const float2& at) { x[0] = at.x, x[1] = at.y; });
        }
        this->total(d, consumer, more);
    }
    __device__ __forceinline__ void finish(typename T::Sums& d, int consumer, int row, int column) const {
        each_pair(d, own_row(consumer, row), column, [](const float* x, float2& at) { at = make_float2(x[0], x[1]); });
    }
};

// dq of `rows` queries, the first of which is dq's.
KERNELS(contrastive_dq_sm90, _, PLANES, (3, 1), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap dz, const __grid_constant__ CUtensorMap candidates, float* __restrict__ dq, int first,
         int rows, int M, int C) {
            using Tile = QueryTile<PLANES>;
            hopper_product<Tile>(
                FloatOp<Tile>{{{{rows, C}, M, dz, dz, candidates}, pitch(rows), M}, dq + size_t(first) * C, false});
        })

// dc, or what `rows` queries from `first` on add to it.
KERNELS(contrastive_dc_sm90, _, PLANES, (3, 1), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap dz, const __grid_constant__ CUtensorMap q, float* __restrict__ dc, int first, int rows,
         int M, int C) {
            using Tile = CandidateTile<PLANES>;
            hopper_product<Tile>(FloatOp<Tile>{{{{M, C}, rows, dz, dz, q}, pitch(rows), rows}, dc, first > 0});
        })
