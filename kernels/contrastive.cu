// contrastive: InfoNCE over in-batch and hard negatives, a 64 x 64 tile of the score matrix at a time.
//
//   forward   x[p,m] = q[p] . c[m],  lse[p] = log sum_m e^(s x[p,m]) over what counts,  loss[p] = lse[p] - s x[p,p]
//             m counts if m = p, or if ids[m] != ids[p] and x[p,m] <= x[p,p] + margin
//             total = mean loss; queries whose x[p,p] is above every negative that counts
//   backward  dz[p,m] = s dmean / P (e^(s x[p,m] - lse[p]) - [m = p]),  dq = dz c,  dc = dz^T q
//
// Shapes    q, dq [P, C], c, dc [M, C] f32, loss, lse [P], total [2] f32, ids [M] i32 or null; M >= P. Workspace: forward
//           most, sum, rival [S, P] and positive, limit [P] f32; backward dz [W, ceil8(M)] and limit [P] f32.
// Plan      Kernels that end in _3 multiply f32, in _1 numbers rounded to bf16 as they are loaded, dz among them.
//           One product of f32 matrices serves all: a block of 4 warps, 32 x 32 a warp, 32 of the inner dimension at a time,
//           the next 32 on their way in registers meanwhile. With a margin contrastive_limit first takes the diagonal tiles
//           (the same sums in the same order, so a candidate equal to the positive ties with it). contrastive_fwd: grid
//           (ceil(P / 64), S), a block folds its share of a row of tiles into (most, sum, rival) in registers;
//           contrastive_total, one block, merges the S shares in order. Backward by waves of W rows, so that dz is
//           bounded: contrastive_bwd writes it (grid of tiles), contrastive_dq and contrastive_dc multiply it (grids
//           (ceil(C / 64), ceil(W / 64)) and (ceil(C / 64), ceil(M / 64))); dc goes on where the wave before stopped.
//           Unit length stays an op of its own: it is saved for its own backward, is the encoder's last step as well, and
//           moves (2 + 3) 4 (P + M) C bytes, where these products read (P + M) C floats ceil(M / 64) times from L2.
// Cost      PP, MM, CC are the sizes rounded up to 64, 64 and 32, p = PP / 64, m = MM / 64, c = ceil(C / 64). Tensor flops (_1: a sixth):
//           forward 12 PP MM CC, six products of bf16 for each of f32, and 12 PP 64 CC with a margin; backward the same, and
//           for each wave 12 up64(W) 64 c up32(M) + 12 MM 64 c up32(W).
//           Bytes: forward 4 C (P m + M p) + 24 S P + 16 P + 8, with a margin 8 P C + 4 P + 32 P m more, with ids
//           32 P m + 64 M p; but for 4 C (P + M) from L2. Backward the same but 32 P m + 4 P M for dz in place of what
//           leaves, and a wave 8 W M c + 4 C (M ceil(W / 64) + W m) + 4 C (W + M), from the second on 4 M C more; M in rows
//           of dz being ceil8(M). No bank conflicts.
// Sectors   up to twice bytes / 32: a lane loads eight floats by two loads, and the second finds its sectors in L1
//           (contrastive_fwd_3, contrastive_fwd_1, contrastive_limit_3, contrastive_limit_1, contrastive_bwd_3, contrastive_bwd_1,
//           contrastive_dq_3, contrastive_dq_1, contrastive_dc_3, contrastive_dc_1).
// Numerics  Every f32 is the exact sum of three bf16; six of the nine products are kept, those left out are below 2^-26 of
//           |x||y|. A tensor core may cut what it adds to, so 32 columns are summed in fresh accumulators and those added
//           to the sum by IEEE addition. With sums cut to 24 bits, cosines of 4096 columns are off by at most 4.3e-7, where
//           one accumulator throughout leaves 3.0e-5 and a chain of f32 FMAs 2.5e-6 (simulated, worst of 72). exp and log
//           are CUDA's f32 (2 ulp); the mean in f64. Fixed order everywhere; waves change no bit.
//           Of 24 unit vectors of 4096 numbers against 48 at scale 50, root mean square, relative: losses and gradients of _3 are
//           off by 2.3e-6 and 1.9e-6; those of _1 are off the rounded vectors' by 3.1e-6 and 1.5e-3, which is dz's rounding, and
//           off the exact ones by 1.4e-3 and 2.7e-3 (tests/device/cases.rs, on the emulator).
// Limits    C a multiple of 8; rows at 16-byte boundaries; P, M below 64 * 65536. Other sizes any.
// Source    Oord et al. 2018, arXiv:1807.03748, eq. 4; margin from Solatorio 2024, arXiv:2402.16829; the three bf16 from
//           Henry, Tang & Heinecke 2019, arXiv:1904.06376.
#include "lse.cuh"
#include "mma.cuh"

EXPORT constexpr int TILE = 64;
EXPORT constexpr int DEEP = 32;
EXPORT constexpr int THREADS = 128;
EXPORT constexpr int TOTAL_THREADS = 1024;

// A vector to shared memory in one store, which nvcc else takes apart.
__device__ inline void st_shared(bf16* to, const uint4& x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

// bf16 of one term of one operand's tile; 32 rows of 64 take less than 64 rows of 32.
constexpr int AREA = TILE * (DEEP + BF16S);
template <int TERMS>
struct Shared {
    alignas(16) bf16 terms[2][TERMS][AREA];
};

// Half of a product: TILE of its outer dimension by DEEP of the inner one at a time. Rows of the matrix run along the
// outer dimension, or ACROSS it, along the inner one.
template <bool ACROSS>
struct Operand {
    static constexpr int COLUMNS = ACROSS ? TILE : DEEP;
    static constexpr int CHUNKS = COLUMNS / BF16S;
    static constexpr int VECTORS = TILE * DEEP / BF16S / THREADS;
    const float* data;
    int rows, columns;
    float4 next[VECTORS][2];

    __device__ inline Operand(const float* data, int rows, int columns)
        : data(data), rows(rows), columns(columns) {}

    // Where in the tile this thread's vector i lies. Rows of four chunks go to a quarter of a warp by twos that are four
    // apart: five chunks' stride brings those to different banks.
    __device__ static inline int row(int i) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = THREADS / 32;
        if (ACROSS) return (i * warps + warp) * 4 + lane / 8;
        return (i * warps + warp) * 8 + lane / 4 % 2 * 4 + lane / 8;
    }
    __device__ static inline int column() { return threadIdx.x % CHUNKS * BF16S; }

    __device__ inline void load(int outer, int inner) {
        const int row0 = ACROSS ? inner : outer, column0 = ACROSS ? outer : inner;
        const int at = column0 + column();
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int from = row0 + row(i);
            const bool inside = from < rows && at < columns;
            const float4* vector = reinterpret_cast<const float4*>(data + from * size_t(columns) + at);
#pragma unroll
            for (int j = 0; j < 2; j++) next[i][j] = inside ? vector[j] : make_float4(0, 0, 0, 0);
        }
    }

    // Its numbers' first TERMS terms: x = terms 0 + 1 + 2, or is rounded to term 0.
    template <int TERMS>
    __device__ inline void store(bf16 (&terms)[TERMS][AREA]) const {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float rest[BF16S] = {next[i][0].x, next[i][0].y, next[i][0].z, next[i][0].w,
                                 next[i][1].x, next[i][1].y, next[i][1].z, next[i][1].w};
#pragma unroll
            for (int term = 0; term < TERMS; term++) {
                const uint4 rounded = narrow(rest);
                float taken[BF16S];
                widen(taken, rounded);
#pragma unroll
                for (int k = 0; k < BF16S; k++) rest[k] -= taken[k];
                st_shared(Tile<COLUMNS>{terms[term]}.at(row(i), column()), rounded);
            }
        }
    }
};

// A warp's 32 x 32 of a tile; element [i][j][e] stands at row(i, e), column(j, e).
struct Sums {
    float at[2][4][4];

    __device__ static inline int row(int i, int e) {
        return threadIdx.x / 64 * 32 + i * 16 + e / 2 * 8 + threadIdx.x % 32 / 4;
    }
    __device__ static inline int column(int j, int e) {
        return threadIdx.x / 32 % 2 * 32 + j * 8 + threadIdx.x % 4 * 2 + e % 2;
    }
};

// sum += A B of the tile whose first row is m and first column n, over an inner dimension of K.
template <int TERMS, bool A_ACROSS, bool B_ACROSS>
__device__ inline void product(Sums& sum, Shared<TERMS>& shared, Operand<A_ACROSS> a, int m, Operand<B_ACROSS> b, int n, int K) {
    const int warp_m = Sums::row(0, 0) / 32 * 32, warp_n = Sums::column(0, 0) / 32 * 32;
    a.load(m, 0);
    b.load(n, 0);
    for (int k0 = 0; k0 < K; k0 += DEEP) {
        __syncthreads();
        a.store(shared.terms[0]);
        b.store(shared.terms[1]);
        __syncthreads();
        if (k0 + DEEP < K) {
            a.load(m, k0 + DEEP);
            b.load(n, k0 + DEEP);
        }
        float part[2][4][4] = {};
#pragma unroll
        for (int k = 0; k < DEEP; k += 16) {
            unsigned fa[TERMS][2][4], fb[TERMS][2][4];
#pragma unroll
            for (int term = 0; term < TERMS; term++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    fragment_a<A_ACROSS>(fa[term][i], Tile<Operand<A_ACROSS>::COLUMNS>{shared.terms[0][term]}, warp_m + i * 16, k);
                    fragment_b<B_ACROSS>(fb[term][i], Tile<Operand<B_ACROSS>::COLUMNS>{shared.terms[1][term]}, warp_n + i * 16, k);
                }
            }
            // The smallest products first; of one term there is the last alone.
#pragma unroll
            for (int pair = TERMS == 3 ? 0 : 5; pair < 6; pair++) {
                constexpr int LEFT[] = {1, 0, 2, 0, 1, 0}, RIGHT[] = {1, 2, 0, 1, 0, 0};
#pragma unroll
                for (int i = 0; i < 2; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const unsigned(&right)[4] = fb[RIGHT[pair]][j / 2];
                        mma_m16n8k16(part[i][j], fa[LEFT[pair]][i], right[j % 2 * 2], right[j % 2 * 2 + 1]);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum.at[i][j][e] += part[i][j][e];
    }
}

// The cosines of the tile whose first query is p and first candidate m.
template <int TERMS>
__device__ inline Sums cosines(Shared<TERMS>& shared, const float* q, const float* c, int P, int M, int C, int p, int m) {
    Sums sum = {};
    product(sum, shared, Operand<false>(q, P, C), p, Operand<false>(c, M, C), m, C);
    return sum;
}

// Of a row's 8 columns that a thread has, how far the k-th lies from the first.
__device__ constexpr int apart(int k) { return k / 2 * 8 + k % 2; }

// Which candidates take part: for the 8 columns of a thread, from m on, in each of its rows.
struct Rule {
    const int* ids;
    const float* limit;
    int m, texts[8];
    int p, text;
    float most;

    __device__ inline void columns(int first, int M) {
        m = first;
#pragma unroll
        for (int k = 0; k < 8; k++) texts[k] = ids && m + apart(k) < M ? ids[m + apart(k)] : 0;
    }
    __device__ inline void row(int at) {
        p = at;
        text = ids ? ids[p] : 0;
        most = limit ? limit[p] : INFINITY;
    }
    __device__ inline bool counts(int k, float cosine) const {
        return m + apart(k) == p || !(ids && texts[k] == text || cosine > most);
    }
};

// limit[p] = x[p,p] + margin
template <int TERMS>
__device__ inline void take_limit(float* limit, const float* q, const float* candidates, int P, int C, float margin) {
    __shared__ Shared<TERMS> shared;
    const int first = blockIdx.x * TILE;
    const Sums x = cosines(shared, q, candidates, P, P, C, first, first);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int row = Sums::row(i, e);
                if (row == Sums::column(j, e) && first + row < P) limit[first + row] = x.at[i][j][e] + margin;
            }
}
KERNELS(contrastive_limit, _, TERMS, (3, 1), __launch_bounds__(THREADS),
        (float* __restrict__ limit, const float* __restrict__ q, const float* __restrict__ candidates, int P, int C,
         float margin) {
            take_limit<TERMS>(limit, q, candidates, P, C, margin);
        })

template <int TERMS>
__device__ inline void forward(float* most, float* sum, float* rival, float* positive, const float* q,
                               const float* candidates, const int* ids, const float* limit, int P, int M, int C, int tiles,
                               float scale) {
    __shared__ Shared<TERMS> shared;
    __shared__ float halves[2][3][TILE];
    Rule rule{ids, limit};
    const int p0 = blockIdx.x * TILE;
    const int begin = blockIdx.y * tiles * TILE, end = min(begin + tiles * TILE, M);
    Lse seen[2][2] = {{Lse::none(), Lse::none()}, {Lse::none(), Lse::none()}};
    float above[2][2] = {{LOWEST, LOWEST}, {LOWEST, LOWEST}};
    for (int m0 = begin; m0 < end; m0 += TILE) {
        const Sums x = cosines(shared, q, candidates, P, M, C, p0, m0);
        rule.columns(m0 + Sums::column(0, 0), M);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int p = p0 + Sums::row(i, 2 * h), ahead = M - rule.m;
                if (p >= P) continue;
                rule.row(p);
                float top = LOWEST;
                unsigned counts = 0;
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    const float cosine = x.at[i][k / 2][2 * h + k % 2];
                    const bool own = rule.m + apart(k) == p;
                    if (own) positive[p] = cosine;
                    if (apart(k) >= ahead || !rule.counts(k, cosine)) continue;
                    counts |= 1u << k;
                    top = fmaxf(top, cosine * scale);
                    if (!own) above[i][h] = rival_of(above[i][h], cosine);
                }
                seen[i][h].raise(top);
#pragma unroll
                for (int k = 0; k < 8; k++)
                    if (counts >> k & 1) seen[i][h].add(x.at[i][k / 2][2 * h + k % 2] * scale);
            }
    }
    // Four lanes and two warps have parts of each row.
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            Lse all = seen[i][h];
            float highest = above[i][h];
#pragma unroll
            for (int apart = 1; apart < 4; apart *= 2) {
                all.merge_across(apart);
                highest = rival_of(highest, __shfl_xor_sync(ALL, highest, apart));
            }
            float(&half)[3][TILE] = halves[threadIdx.x / 32 % 2];
            const int row = Sums::row(i, 2 * h);
            if (threadIdx.x % 4 == 0) half[0][row] = all.most, half[1][row] = all.sum, half[2][row] = highest;
        }
    __syncthreads();
    const int row = threadIdx.x, p = p0 + row;
    if (row >= TILE || p >= P) return;
    Lse all{halves[0][0][row], halves[0][1][row]};
    all.merge(Lse{halves[1][0][row], halves[1][1][row]});
    const size_t to = size_t(blockIdx.y) * P + p;
    most[to] = all.most, sum[to] = all.sum;
    rival[to] = rival_of(halves[0][2][row], halves[1][2][row]);
}
KERNELS(contrastive_fwd, _, TERMS, (3, 1), __launch_bounds__(THREADS),
        (float* __restrict__ most, float* __restrict__ sum, float* __restrict__ rival, float* __restrict__ positive,
         const float* __restrict__ q, const float* __restrict__ candidates, const int* __restrict__ ids_or_null,
         const float* __restrict__ limit_or_null, int P, int M, int C, int tiles, float scale) {
            forward<TERMS>(most, sum, rival, positive, q, candidates, ids_or_null, limit_or_null, P, M, C, tiles, scale);
        })

KERNEL void __launch_bounds__(TOTAL_THREADS)
contrastive_total(float* __restrict__ total, float* __restrict__ loss, float* __restrict__ lse, const float* __restrict__ most,
                  const float* __restrict__ sum, const float* __restrict__ rival, const float* __restrict__ positive, int P,
                  int splits, float scale) {
    __shared__ double losses[32];
    __shared__ int wins[32];
    double mean = 0;
    int won = 0;
    for (int p = threadIdx.x; p < P; p += TOTAL_THREADS) {
        Lse all = Lse::none();
        float highest = LOWEST;
        for (int s = 0; s < splits; s++) {
            const size_t at = size_t(s) * P + p;
            all.merge(Lse{most[at], sum[at]});
            highest = rival_of(highest, rival[at]);
        }
        // Of a small loss, lse minus score would leave little.
        const float off = all.most - positive[p] * scale + logf(all.sum);
        lse[p] = all.most + logf(all.sum);
        loss[p] = off;
        mean += off;
        won += highest < positive[p];
    }
    mean = block_sum(mean, losses);
    won = block_sum(won, wins);
    if (threadIdx.x == 0) total[0] = float(mean / P), total[1] = float(won);
}

// dz of `rows` queries from `first` on; columns past M up to `stride` are 0.
template <int TERMS>
__device__ inline void backward(float* dz, const float* q, const float* candidates, const int* ids, const float* limit,
                                const float* lse, int first, int rows, int M, int C, int stride, float scale, float weight) {
    __shared__ Shared<TERMS> shared;
    Rule rule{ids, limit};
    const int end = first + rows, p0 = first + blockIdx.x * TILE, m0 = blockIdx.y * TILE;
    const Sums x = cosines(shared, q, candidates, end, M, C, p0, m0);
    rule.columns(m0 + Sums::column(0, 0), M);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int p = p0 + Sums::row(i, 2 * h), ahead = M - rule.m;
            if (p >= end) continue;
            rule.row(p);
            const float of = lse[p];
            float* to = dz + size_t(p - first) * stride + rule.m;
#pragma unroll
            for (int k = 0; k < 8; k += 2) {
                float pair[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float cosine = x.at[i][k / 2][2 * h + e];
                    const bool counts = apart(k + e) < ahead && rule.counts(k + e, cosine);
                    pair[e] = counts ? expf(cosine * scale - of) * weight : 0.0f;
                    if (rule.m + apart(k + e) == p) pair[e] -= weight;
                }
                if (rule.m + apart(k) < stride)
                    *reinterpret_cast<float2*>(to + apart(k)) = make_float2(pair[0], pair[1]);
            }
        }
}
KERNELS(contrastive_bwd, _, TERMS, (3, 1), __launch_bounds__(THREADS),
        (float* __restrict__ dz, const float* __restrict__ q, const float* __restrict__ candidates,
         const int* __restrict__ ids_or_null, const float* __restrict__ limit_or_null, const float* __restrict__ lse,
         int first, int rows, int M, int C, int stride, float scale, float weight) {
            backward<TERMS>(dz, q, candidates, ids_or_null, limit_or_null, lse, first, rows, M, C, stride, scale, weight);
        })

// The tile of rows m and columns n of a matrix of `rows` rows, in pairs.
template <typename Use>
__device__ inline void each_pair(Sums& sum, float* matrix, int rows, int C, int m, int n, Use use) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = m + Sums::row(i, 2 * h), column = n + Sums::column(j, 0);
                if (row >= rows || column >= C) continue;
                use(sum.at[i][j] + 2 * h, *reinterpret_cast<float2*>(matrix + size_t(row) * C + column));
            }
}

__device__ inline void write(const float* pair, float2& to) { to = make_float2(pair[0], pair[1]); }
__device__ inline void read(float* pair, const float2& from) { pair[0] = from.x, pair[1] = from.y; }

// dq of `rows` queries from `first` on.
template <int TERMS>
__device__ inline void query_gradient(float* dq, const float* dz, const float* candidates, int first, int rows, int M,
                                      int C, int stride) {
    __shared__ Shared<TERMS> shared;
    const int n = blockIdx.x * TILE, m = blockIdx.y * TILE;
    Sums sum = {};
    product(sum, shared, Operand<false>(dz, rows, stride), m, Operand<true>(candidates, M, C), n, M);
    each_pair(sum, dq + size_t(first) * C, rows, C, m, n, [](float* pair, float2& to) { write(pair, to); });
}
KERNELS(contrastive_dq, _, TERMS, (3, 1), __launch_bounds__(THREADS),
        (float* __restrict__ dq, const float* __restrict__ dz, const float* __restrict__ candidates, int first, int rows,
         int M, int C, int stride) {
            query_gradient<TERMS>(dq, dz, candidates, first, rows, M, C, stride);
        })

// dc, or what `rows` queries from `first` on add to it.
template <int TERMS>
__device__ inline void candidate_gradient(float* dc, const float* dz, const float* q, int first, int rows, int M, int C,
                                          int stride) {
    __shared__ Shared<TERMS> shared;
    const int n = blockIdx.x * TILE, m = blockIdx.y * TILE;
    Sums sum = {};
    if (first > 0) each_pair(sum, dc, M, C, m, n, [](float* pair, float2& from) { read(pair, from); });
    const Operand<true> left(dz, rows, stride), right(q + size_t(first) * C, rows, C);
    product(sum, shared, left, m, right, n, rows);
    each_pair(sum, dc, M, C, m, n, [](float* pair, float2& to) { write(pair, to); });
}
KERNELS(contrastive_dc, _, TERMS, (3, 1), __launch_bounds__(THREADS),
        (float* __restrict__ dc, const float* __restrict__ dz, const float* __restrict__ q, int first, int rows, int M,
         int C, int stride) {
            candidate_gradient<TERMS>(dc, dz, q, first, rows, M, C, stride);
        })
