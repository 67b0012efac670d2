// masked_xent: cross-entropy of the language-model head at the rows that have a label, a 128 x 128 tile of logits at a time.
//
//   forward   z[p,v] = x[rows[p]] . w[v],  lse[p] = log sum_v e^z[p,v],  loss[p] = lse[p] - z[p,labels[p]]
//             total = mean loss; rows whose largest logit, the first of equals, is the label's
//   backward  dz[p,v] = dmean / P (e^(z[p,v] - lse[p]) - [v = labels[p]]),  dx[rows] = dz w, else 0,  dw += dz^T x[rows]
//
// Shapes    x, dx [N, C], w [V, C] bf16, dw [V, C] f32 or none, rows (each at most once), labels [P] i32, loss, lse [P],
//           total [2] f32. Workspace: forward most, sum [S, P], label [P] f32, best [S, P] i32; backward dz [W, ceil8(V)] bf16.
// Plan      One product of bf16 matrices serves all: a block of 8 warps, 32 x 64 a warp, 32 of the inner dimension in each
//           of 3 stages of cp.async, which gathers the rows on the way. masked_xent_fwd: grid (ceil(P / 128), S), row
//           tiles first, so that blocks that run together read the same w from L2; a block folds its share of the
//           vocabulary into (most, sum, best), its pipeline running through from tile to tile;
//           masked_xent_total, one block, merges the S shares in order. Backward by waves of W rows, so that dz is bounded
//           and dx is whole at once: masked_xent_bwd writes dz, masked_xent_dx and masked_xent_dw multiply it;
//           masked_xent_zero goes before. dz and dx leave through shared memory, 16 bytes a lane.
// Cost      p, v, c are the sizes P, V, C in tiles of 128. Tensor flops: forward 2 (128 p) (128 v) up32(C); backward the same,
//           and for each wave 2 up128(W) 128 c up32(V), with dw 2 (128 v) (128 c) up32(W).
//           Bytes: forward 2 C (P v + V p) + 24 S P + 32 P v + 16 P S + 20 P + 8, but for 2 C (P + V) from L2; backward
//           2 N C + 2 C (P v + V p) + 80 P v + 2 P V, and for each wave 2 W V c + 2 V C ceil(W / 128) + 2.5 W C, with dw
//           2 W V c + (2 C + 64 c) W v + 8 V C, V in rows of dz being ceil8(V). No bank conflicts.
// Numerics  Logits, sums and statistics f32, exp and log CUDA's (2 ulp), the mean in f64; dz rounded to bf16 once, as an
//           operand, and dx once. Fixed order everywhere. dw is added a wave at a time.
// Limits    C a multiple of 8; rows at 16-byte boundaries. P, V any. A row that comes twice gets one of its gradients.
// Source    Wijmans et al. 2024, arXiv:2411.09009 (logits never held); running sum from Milakov & Gimelshein 2018,
//           arXiv:1805.02867.
#include "lse.cuh"
#include "mma.cuh"

EXPORT constexpr int TILE = 128;
EXPORT constexpr int DEEP = 32;
EXPORT constexpr int STAGES = 3;
EXPORT constexpr int THREADS = 256;
EXPORT constexpr int TOTAL_THREADS = 1024;
// Of shared memory: STAGES tiles of both operands, rows padded by 8.
EXPORT constexpr int SHARED = STAGES * 2 * TILE * (DEEP + 8) * 2;

// bf16 of one operand's tile; 32 rows of 128 take less than 128 rows of 32.
constexpr int AREA = TILE * (DEEP + BF16S);
static_assert(SHARED == STAGES * 2 * AREA * sizeof(bf16), "what a launch asks for is what the stages take");
extern __shared__ __align__(16) bf16 shared[];

// Half of a product: TILE of its outer dimension by DEEP of the inner one at a time. Rows of the matrix run along the
// outer dimension, or ACROSS it, along the inner one. Row r is the picks[r]-th of `data`, if there are picks.
template <bool ACROSS>
struct Operand {
    static constexpr int COLUMNS = ACROSS ? TILE : DEEP;
    static constexpr int CHUNKS = COLUMNS / BF16S;
    static constexpr int VECTORS = TILE * DEEP / BF16S / THREADS;
    const bf16* data;
    const int* picks;
    int rows, columns, outer;
    size_t stride;
    // This thread's rows where rows run along the outer dimension, and how far each reaches: 0 for one that is not there.
    const bf16* begin[VECTORS];
    int width[VECTORS];

    __device__ inline Operand(const bf16* data, const int* picks, int rows, int columns)
        : data(data), picks(picks), rows(rows), columns(columns), stride(columns) {}

    // Where in the tile this thread's vector i lies. Rows of four chunks go to a quarter of a warp by twos that are four
    // apart: five chunks' stride brings those to different banks.
    __device__ static inline int row(int i) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = THREADS / 32;
        if (ACROSS) return (i * warps + warp) * 2 + lane / 16;
        return (i * warps + warp) * 8 + lane / 4 % 2 * 4 + lane / 8;
    }
    __device__ static inline int column() { return threadIdx.x % CHUNKS * BF16S; }

    __device__ inline const bf16* find(int r) const {
        return data + (r < rows ? picks ? picks[r] : r : 0) * stride + column();
    }

    __device__ inline void aim(int at) {
        outer = at;
        if constexpr (!ACROSS) {
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                begin[i] = find(outer + row(i));
                width[i] = outer + row(i) < rows ? columns - column() : 0;
            }
        }
    }

    __device__ inline void fetch(bf16* to, int inner) const {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            bf16* place = Tile<COLUMNS>{to}.at(row(i), column());
            if constexpr (ACROSS)
                cp_async(place, find(inner + row(i)) + outer, inner + row(i) < rows && outer + column() < columns);
            else
                cp_async(place, begin[i] + inner, inner < width[i]);
        }
    }
};

// A warp's 32 x 64 of a tile; element [i][j][e] stands at row(i, e), column(j, e).
struct Sums {
    float at[2][8][4];

    __device__ static inline int row(int i, int e) {
        return threadIdx.x / 64 * 32 + i * 16 + e / 2 * 8 + threadIdx.x % 32 / 4;
    }
    __device__ static inline int column(int j, int e) {
        return threadIdx.x / 32 % 2 * 64 + j * 8 + threadIdx.x % 4 * 2 + e % 2;
    }
    // Of a row's 16 columns, how far the k-th lies from the first.
    __device__ static constexpr int apart(int k) { return k / 2 * 8 + k % 2; }
};

// done(tile, sums of A B) for the tiles `first` to `last` of B's outer dimension; A is aimed; K is the inner dimension.
template <bool A_ACROSS, bool B_ACROSS, typename Done>
__device__ inline void products(const Operand<A_ACROSS>& a, Operand<B_ACROSS> b, int first, int last, int K, Done done) {
    const int warp_m = threadIdx.x / 64 * 32, warp_n = threadIdx.x / 32 % 2 * 64;
    const int steps = ceil_div(K, DEEP);
    int tile = first, step = 0;
    auto fetch = [&](int stage) {
        if (tile < last) {
            if (step == 0) b.aim(tile * TILE);
            a.fetch(shared + stage * 2 * AREA, step * DEEP);
            b.fetch(shared + stage * 2 * AREA + AREA, step * DEEP);
            if (++step == steps) step = 0, tile++;
        }
        cp_async_commit();
    };
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(stage);
    int stage = 0;
    for (int at = first; at < last; at++) {
        Sums sum = {};
        for (int s = 0; s < steps; s++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            fetch(stage == 0 ? STAGES - 1 : stage - 1);
            const Tile<Operand<A_ACROSS>::COLUMNS> left{shared + stage * 2 * AREA};
            const Tile<Operand<B_ACROSS>::COLUMNS> right{shared + stage * 2 * AREA + AREA};
#pragma unroll
            for (int k = 0; k < DEEP; k += 16) {
                unsigned fa[2][4];
                fragment_a<A_ACROSS>(fa[0], left, warp_m, k);
                fragment_a<A_ACROSS>(fa[1], left, warp_m + 16, k);
#pragma unroll
                for (int j = 0; j < 8; j += 2) {
                    unsigned fb[4];
                    fragment_b<B_ACROSS>(fb, right, warp_n + j * 8, k);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        mma_m16n8k16(sum.at[i][j], fa[i], fb[0], fb[1]);
                        mma_m16n8k16(sum.at[i][j + 1], fa[i], fb[2], fb[3]);
                    }
                }
            }
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
        done(at, sum);
    }
}

// The tile as bf16, by way of shared memory: row r to where row(r) says, if anywhere, up to `columns`.
template <typename Row>
__device__ inline void leave(const Sums& sum, int first_column, int columns, Row row) {
    __syncthreads();
    const Tile<TILE> tile{shared};
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e += 2)
                *reinterpret_cast<unsigned*>(tile.at(Sums::row(i, e), Sums::column(j, 0))) =
                    narrow(sum.at[i][j][e], sum.at[i][j][e + 1]);
    __syncthreads();
    constexpr int CHUNKS = TILE / BF16S;
    const int column = threadIdx.x % CHUNKS * BF16S;
    if (first_column + column >= columns) return;
    for (int r = threadIdx.x / CHUNKS; r < TILE; r += THREADS / CHUNKS)
        if (bf16* to = row(r)) store(to + first_column + column, 0, load(tile.at(r, column), 0));
}

KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_fwd(float* __restrict__ most, float* __restrict__ sum, int* __restrict__ best, float* __restrict__ label,
                const bf16* __restrict__ x, const bf16* __restrict__ w, const int* __restrict__ rows,
                const int* __restrict__ labels, int P, int V, int C, int tiles) {
    // By half of the columns; only the first of the four lanes that share a row there touches its entry.
    __shared__ Seen seen[2][TILE];
    const int p0 = blockIdx.x * TILE, first = blockIdx.y * tiles, last = min(first + tiles, ceil_div(V, TILE));
    Seen* mine = seen[threadIdx.x / 32 % 2] + Sums::row(0, 0);
    if (threadIdx.x % 4 == 0)
        for (int apart = 0; apart < 32; apart += 8) mine[apart] = Seen::none();
    Operand<false> a(x, rows, P, C);
    a.aim(p0);
    products(a, Operand<false>(w, nullptr, V, C), first, last, C, [&](int tile, const Sums& z) {
        const int v0 = tile * TILE + Sums::column(0, 0), ahead = V - v0;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int p = p0 + Sums::row(i, 2 * h), label_at = (p < P ? labels[p] : -1) - v0;
                Seen here = Seen::none();
#pragma unroll
                for (int k = 0; k < 16; k++) {
                    const float logit = z.at[i][k / 2][2 * h + k % 2];
                    if (Sums::apart(k) == label_at) label[p] = logit;
                    if (Sums::apart(k) < ahead && logit > here.lse.most)
                        here.lse.most = logit, here.best = v0 + Sums::apart(k);
                }
#pragma unroll
                for (int k = 0; k < 16; k++)
                    if (Sums::apart(k) < ahead) here.lse.add(z.at[i][k / 2][2 * h + k % 2]);
                here.merge_across(1);
                here.merge_across(2);
                if (threadIdx.x % 4 == 0) mine[i * 16 + h * 8].merge(here);
            }
    });
    __syncthreads();
    const int row = threadIdx.x;
    if (row >= TILE || p0 + row >= P) return;
    Seen all = seen[0][row];
    all.merge(seen[1][row]);
    const size_t to = size_t(blockIdx.y) * P + p0 + row;
    most[to] = all.lse.most, sum[to] = all.lse.sum, best[to] = all.best;
}

KERNEL void __launch_bounds__(TOTAL_THREADS)
masked_xent_total(float* __restrict__ total, float* __restrict__ loss, float* __restrict__ lse, const float* __restrict__ most,
                  const float* __restrict__ sum, const int* __restrict__ best, const float* __restrict__ label,
                  const int* __restrict__ labels, int P, int splits) {
    __shared__ double losses[32];
    __shared__ int rights[32];
    double mean = 0;
    int right = 0;
    for (int p = threadIdx.x; p < P; p += TOTAL_THREADS) {
        Seen all = Seen::none();
        for (int s = 0; s < splits; s++) {
            const size_t at = size_t(s) * P + p;
            all.merge(Seen{Lse{most[at], sum[at]}, best[at]});
        }
        // Of a small loss, lse minus logit would leave little.
        const float off = all.lse.most - label[p] + logf(all.lse.sum);
        lse[p] = all.lse.most + logf(all.lse.sum);
        loss[p] = off;
        mean += off;
        right += all.best == labels[p];
    }
    mean = block_sum(mean, losses);
    right = block_sum(right, rights);
    if (threadIdx.x == 0) total[0] = float(mean / P), total[1] = float(right);
}

// dx = 0
KERNEL void __launch_bounds__(THREADS)
masked_xent_zero(bf16* __restrict__ dx, int N, int C) {
    const size_t vectors = size_t(N) * C / BF16S;
    for (size_t v = size_t(blockIdx.x) * THREADS + threadIdx.x; v < vectors; v += size_t(gridDim.x) * THREADS)
        store(dx, v, make_uint4(0, 0, 0, 0));
}

// dz of `count` rows from `first` on; columns past V up to `stride` are 0.
KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_bwd(bf16* __restrict__ dz, const bf16* __restrict__ x, const bf16* __restrict__ w, const int* __restrict__ rows,
                const int* __restrict__ labels, const float* __restrict__ lse, int first, int count, int V, int C, int stride,
                float scale) {
    const int r0 = blockIdx.x * TILE, tile = blockIdx.y;
    Operand<false> a(x, rows + first, count, C);
    a.aim(r0);
    products(a, Operand<false>(w, nullptr, V, C), tile, tile + 1, C, [&](int, Sums& z) {
        const int v0 = tile * TILE + Sums::column(0, 0), ahead = V - v0;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = r0 + Sums::row(i, 2 * h);
                if (r >= count) continue;
                const float of = lse[first + r];
                const int label_at = labels[first + r] - v0;
#pragma unroll
                for (int k = 0; k < 16; k++) {
                    float& d = z.at[i][k / 2][2 * h + k % 2];
                    const float one = Sums::apart(k) == label_at ? 1.0f : 0.0f;
                    d = Sums::apart(k) < ahead ? (expf(d - of) - one) * scale : 0.0f;
                }
            }
        leave(z, tile * TILE, stride, [&](int r) { return r0 + r < count ? dz + size_t(r0 + r) * stride : nullptr; });
    });
}

// dx of the `count` rows picked by rows[first] on.
KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_dx(bf16* __restrict__ dx, const bf16* __restrict__ dz, const bf16* __restrict__ w, const int* __restrict__ rows,
               int first, int count, int V, int C, int stride) {
    const int r0 = blockIdx.x * TILE, tile = blockIdx.y;
    Operand<false> a(dz, nullptr, count, stride);
    a.aim(r0);
    products(a, Operand<true>(w, nullptr, V, C), tile, tile + 1, V, [&](int, const Sums& sum) {
        leave(sum, tile * TILE, C, [&](int r) {
            return r0 + r < count ? dx + size_t(rows[first + r0 + r]) * C : nullptr;
        });
    });
}

// What `count` rows from `first` on add to dw.
KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_dw(float* __restrict__ dw, const bf16* __restrict__ dz, const bf16* __restrict__ x, const int* __restrict__ rows,
               int first, int count, int V, int C, int stride) {
    const int v0 = blockIdx.x * TILE, tile = blockIdx.y;
    Operand<true> a(dz, nullptr, count, stride);
    a.aim(v0);
    products(a, Operand<true>(x, rows + first, count, C), tile, tile + 1, count, [&](int, const Sums& sum) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e += 2) {
                    const int v = v0 + Sums::row(i, e), column = tile * TILE + Sums::column(j, 0);
                    if (v >= V || column >= C) continue;
                    float2& to = *reinterpret_cast<float2*>(dw + size_t(v) * C + column);
                    to = make_float2(to.x + sum.at[i][j][e], to.y + sum.at[i][j][e + 1]);
                }
    });
}
