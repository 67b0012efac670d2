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
//           Products are product.cuh's, tiles of 64 x 64, with a loader of their own, which splits f32 on the way from registers to a
//           stage; a ring has two. With a margin contrastive_limit first takes the diagonal tiles
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
#include "product.cuh"

EXPORT constexpr int TILE = 64;
EXPORT constexpr int THREADS = 128;
EXPORT constexpr int TOTAL_THREADS = 1024;

// A vector to shared memory in one store, which nvcc else takes apart.
__device__ inline void st_shared(unsigned to, const uint4& x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

// f32 that go as COUNT bf16, x = terms 0 + 1 + 2, or rounded to term 0: by way of registers. The sums of a stage are taken in fresh
// accumulators.
template <bool ACROSS, bool LEFT, int COUNT>
struct Split : Side<float, TILE / 32, ACROSS, LEFT> {
    static constexpr int TERMS = COUNT, STAGES = 2;
    static constexpr bool FRESH = true;
    float4 next[TILE / 32][2];

    __device__ __forceinline__ void fetch(unsigned, int deep) {
#pragma unroll
        for (int i = 0; i < this->BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                next[i][j] = this->there(i, deep) ? load(this->from + i * this->turn, j) : make_float4(0, 0, 0, 0);
        this->pass(deep);
    }
    __device__ __forceinline__ void land(unsigned stage) const {
#pragma unroll
        for (int i = 0; i < this->BLOCKS; i++) {
            float rest[BF16S] = {next[i][0].x, next[i][0].y, next[i][0].z, next[i][0].w,
                                 next[i][1].x, next[i][1].y, next[i][1].z, next[i][1].w};
#pragma unroll
            for (int term = 0; term < TERMS; term++) {
                const uint4 rounded = narrow(rest);
                float taken[BF16S];
                widen(taken, rounded);
#pragma unroll
                for (int k = 0; k < BF16S; k++) rest[k] -= taken[k];
                st_shared(this->place(stage + term * this->BYTES, i), rounded);
            }
        }
    }
    __device__ static __forceinline__ void commit() {}
    template <int PENDING>
    __device__ static __forceinline__ void wait() {}
};

__device__ inline void store_pair(float* to, float low, float high) { *reinterpret_cast<float2*>(to) = make_float2(low, high); }

// Scores q c^T, and their gradient by c and by q.
template <int TERMS>
using Cosines = Product<Split<false, true, TERMS>, Split<false, false, TERMS>>;
template <int TERMS>
using ByCandidates = Product<Split<false, true, TERMS>, Split<true, false, TERMS>>;
template <int TERMS>
using ByQueries = Product<Split<true, true, TERMS>, Split<true, false, TERMS>>;
static_assert(Cosines<3>::TILE == TILE && Cosines<3>::THREADS == THREADS, "the host launches by them");

// The cosines of the tile whose first query is p and first candidate m.
template <int TERMS>
__device__ __forceinline__ void take_cosines(Cosines<TERMS>& x, void* ring, const float* q, const float* c, int P, int M, int C,
                                             int p, int m) {
    x.begin(ring, {q, P, C, C}, {c, M, C, C}, p, m);
    x.finish();
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
    __shared__ __align__(128) unsigned char ring[Cosines<TERMS>::RING];
    const int first = blockIdx.x * TILE;
    Cosines<TERMS> x;
    take_cosines(x, ring, q, candidates, P, P, C, first, first);
    x.each_pair([&](int row, int column, float low, float high) {
        if (row / 2 == column / 2 && first + row < P) limit[first + row] = (row == column ? low : high) + margin;
    });
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
    __shared__ __align__(128) unsigned char ring[Cosines<TERMS>::RING];
    // Of each row, by half of its columns, when the ring has been read.
    float(&halves)[2][3][TILE] = *reinterpret_cast<float(*)[2][3][TILE]>(ring);
    static_assert(sizeof halves <= sizeof ring, "of six floats a row");
    Rule rule{ids, limit};
    const int p0 = blockIdx.x * TILE;
    const int begin = blockIdx.y * tiles * TILE, end = min(begin + tiles * TILE, M);
    Lse seen[2][2] = {{Lse::none(), Lse::none()}, {Lse::none(), Lse::none()}};
    float above[2][2] = {{LOWEST, LOWEST}, {LOWEST, LOWEST}};
    for (int m0 = begin; m0 < end; m0 += TILE) {
        Cosines<TERMS> x;
        take_cosines(x, ring, q, candidates, P, M, C, p0, m0);
        rule.columns(m0 + x.column(0), M);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int p = p0 + x.row(i, h), ahead = M - rule.m;
                if (p >= P) continue;
                rule.row(p);
                float top = LOWEST;
                unsigned counts = 0;
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    const float cosine = x.d[i][k / 2][2 * h + k % 2];
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
                    if (counts >> k & 1) seen[i][h].add(x.d[i][k / 2][2 * h + k % 2] * scale);
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
            const int row = Cosines<TERMS>().row(i, h);
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
    __shared__ __align__(128) unsigned char ring[Cosines<TERMS>::RING];
    Rule rule{ids, limit};
    const int end = first + rows, p0 = first + blockIdx.x * TILE, m0 = blockIdx.y * TILE;
    Cosines<TERMS> x;
    take_cosines(x, ring, q, candidates, end, M, C, p0, m0);
    rule.columns(m0 + x.column(0), M);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int p = p0 + x.row(i, h), ahead = M - rule.m;
            if (p >= end) continue;
            rule.row(p);
            const float of = lse[p];
            float* to = dz + size_t(p - first) * stride + rule.m;
#pragma unroll
            for (int k = 0; k < 8; k += 2) {
                float pair[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float cosine = x.d[i][k / 2][2 * h + e];
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

// dq of `rows` queries from `first` on.
template <int TERMS>
__device__ inline void query_gradient(float* dq, const float* dz, const float* candidates, int first, int rows, int M,
                                      int C, int stride) {
    __shared__ __align__(128) unsigned char ring[ByCandidates<TERMS>::RING];
    const int n = blockIdx.x * TILE, m = blockIdx.y * TILE;
    ByCandidates<TERMS> sum;
    sum.begin(ring, {dz, rows, stride, stride}, {candidates, C, M, C}, m, n);
    sum.finish();
    sum.each_pair([&](int r, int c, float low, float high) {
        if (m + r < rows && n + c < C) store_pair(dq + size_t(first + m + r) * C + n + c, low, high);
    });
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
    __shared__ __align__(128) unsigned char ring[ByQueries<TERMS>::RING];
    const int n = blockIdx.x * TILE, m = blockIdx.y * TILE;
    ByQueries<TERMS> sum;
    if (first > 0)
        sum.each_pair([&](int r, int c, float& low, float& high) {
            if (m + r >= M || n + c >= C) return;
            const float2 from = *reinterpret_cast<const float2*>(dc + size_t(m + r) * C + n + c);
            low = from.x, high = from.y;
        });
    sum.begin(ring, {dz, M, rows, stride}, {q + size_t(first) * C, C, rows, C}, m, n);
    sum.finish();
    sum.each_pair([&](int r, int c, float low, float high) {
        if (m + r < M && n + c < C) store_pair(dc + size_t(m + r) * C + n + c, low, high);
    });
}
KERNELS(contrastive_dc, _, TERMS, (3, 1), __launch_bounds__(THREADS),
        (float* __restrict__ dc, const float* __restrict__ dz, const float* __restrict__ q, int first, int rows, int M,
         int C, int stride) {
            candidate_gradient<TERMS>(dc, dz, q, first, rows, M, C, stride);
        })
