// attention_fwd: softmax(q kᵀ / sqrt(D)) v over packed sequences, under a mask, with dropout on the probabilities.
//
//   lse[i,h] = log sum_j exp(q[i,h] · k[j,g] / sqrt(D)),  out[i,h] = sum_j drop(exp(q[i,h] · k[j,g] / sqrt(D) - lse[i,h])) v[j,g]
//   over the keys j of i's sequence with i - left <= j <= i + right,  g = h G / H
//
// Shapes    qkv [N, (H + 2 G) D] bf16: query heads, key heads, value heads; starts [B + 1] i32, rising from 0 to N;
//           out [N, H D] bf16, lse [N, H] f32, may be null.
// Plan      Token tiles: a block owns ROWS = 128 rows of the pack, of one query head, wherever sequences begin in them, so
//           that short sequences fill it. Its four warps own 32 rows each. Keys from the first that the first row sees
//           to the last that the last row sees come by cp.async, KEYS = 32 at a time in two stages, one barrier a stage. A warp
//           leaves out stages, and in the others 16 keys at a time, that none of its rows sees; it compares columns with its
//           rows' ranges only where some row does not see all of a stage. Scores stay in registers, where they become
//           the A operand of the second product. One lane draws one row's bits of the dropout mask; shuffles hand them round.
//           Blocks of one tile are neighbours in the grid, so heads that share keys find them in L2. Grid ceil(N / ROWS) H,
//           blocks of THREADS = 128; shared memory 2 (ROWS + 4 KEYS) (D + 8) + 12 ROWS bytes: 70 KiB at D = 128, 38 at 64.
//           Registers leave room for two blocks a multiprocessor, for three at D <= 32.
// Cost      tensor flops: 2048 D for each warp and 16 keys of which one of its 32 rows sees one, 4 D a pair where all are seen;
//           bytes a block: 2 D (2 rows + 2 keys) + 4 rows, keys being those from the first to the last that it goes through,
//           and for each warp, to find its sequences, 256 and 4 for each start that it looks at, 32 of B, then 32 of B / 32 …
// Numerics  Scores, maxima and sums in f32, exponentials base 2 by ex2.approx; probabilities are rounded to bf16 for the
//           second product, not for their sum. One rounding at the end. Bits do not depend on the grid, but on where a row's
//           sequence lies in the pack.
// Limits    D of 16, 32, 64, 80, 96, 128; N below 2^30. A number that is not finite spreads to the rows of its tile.
// Source    Dao 2023, arXiv:2307.08691; packs as token tiles are our own.
#include "attention.cuh"

EXPORT constexpr int ROWS = 128;
EXPORT constexpr int KEYS = 32;
EXPORT constexpr int THREADS = 128;

// What a block knows of its rows: the keys that each sees, and where its sequence begins. In shared memory, since the
// accumulators of a wide head leave no registers.
struct Rows {
    Range sees[ROWS];
    int starts[ROWS];

    // What any of the 32 rows from `own` on sees, and what every one does.
    __device__ inline Range all(int own) const { return {sees[own].lo, sees[own + 31].hi}; }
    __device__ inline Range common(int own) const { return {sees[own + 31].lo, sees[own].hi}; }
};

// What a warp's 32 rows have come to. Thread (g, t) holds rows 16 m + 8 half + g at [m][half].
template <int D>
struct Running {
    float out[2][D / 8][4], most[2][2], sum[2][2];
};

// One stage of keys, from row `key` of the pack on, for the 32 rows from `own` on. EDGE: some do not see all of it.
template <bool EDGE, int D>
__device__ __forceinline__ void step(Running<D>& state, const Tile<D>& queries, const Tile<D>& keys, const Tile<D>& values,
                                     const Rows& rows, const Draw& dropout, int own, int row, int h, int key) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    bool live[2] = {true, true};
    if (EDGE) {
        const Range all = rows.all(own);
        live[0] = all.touches(key, 16), live[1] = all.touches(key + 16, 16);
    }
    float s[2][KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        unsigned a[2][4], b[4];
        load_a(a[0], queries, own, k);
        load_a(a[1], queries, own + 16, k);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            if (!live[c]) continue;
            load_b(b, keys, 16 * c, k);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_m16n8k16(s[m][2 * c], a[m], b[0], b[1]);
                mma_m16n8k16(s[m][2 * c + 1], a[m], b[2], b[3]);
            }
        }
    }

    unsigned bits = ALL;
    if (dropout.least) {
        bits = kept<KEYS>(dropout, row, h, key - rows.starts[own + lane], live[0] ? 0 : 16, live[1] ? 32 : 16);
    }

    const float scale = LOG2E / sqrtf(float(D));
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Range range = rows.sees[own + 16 * m + 8 * half + g];
            float best = state.most[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    if (EDGE && !range.holds(key + 8 * n + 2 * t + i % 2, 1)) s[m][n][i] = -INFINITY;
                    best = fmaxf(best, s[m][n][i]);
                }
            }
            best = fmaxf(best, __shfl_xor_sync(ALL, best, 1));
            best = fmaxf(best, __shfl_xor_sync(ALL, best, 2));
            // A row that has seen no key yet keeps zeros.
            const float base = EDGE && best == -INFINITY ? 0.0f : best * scale;
            const float shrink = exp2_fast(state.most[m][half] * scale - base);
            state.most[m][half] = best;
            const unsigned mine = __shfl_sync(ALL, bits, 16 * m + 8 * half + g) >> (2 * t);
            float sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    const float p = exp2_fast(s[m][n][i] * scale - base);
                    sum += p;
                    s[m][n][i] = mine >> (8 * n + i % 2) & 1 ? p : 0.0f;
                }
            }
            state.sum[m][half] = state.sum[m][half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                state.out[m][n][2 * half] *= shrink;
                state.out[m][n][2 * half + 1] *= shrink;
            }
        }
    }

#pragma unroll
    for (int c = 0; c < 2; c++) {
        if (!live[c]) continue;
        unsigned a[2][4], b[4];
        as_a(a[0], s[0][2 * c], s[0][2 * c + 1]);
        as_a(a[1], s[1][2 * c], s[1][2 * c + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            load_b_trans(b, values, 16 * c, 16 * n);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_m16n8k16(state.out[m][2 * n], a[m], b[0], b[1]);
                mma_m16n8k16(state.out[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

template <int D>
__device__ __forceinline__ void forward(bf16* out, float* lse, const bf16* qkv, const int* starts, int N, int B, int H, int G,
                                        int left, int right, const Draw& dropout) {
    extern __shared__ uint4 memory[];
    __shared__ Rows rows;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, own = threadIdx.x / 32 * 32;
    // Under a causal mask the last rows see most: they begin first.
    const int block = gridDim.x - 1 - blockIdx.x, h = block % H, row0 = block / H * ROWS, first = row0 + own;
    const int stride = (H + 2 * G) * D;
    const bf16 *q = qkv + size_t(h) * D, *k = qkv + size_t(H + h / (H / G)) * D, *v = k + size_t(G) * D;
    const Tile<D> queries = {reinterpret_cast<bf16*>(memory)};
    const auto keys = [&](int stage) { return Tile<D>{queries.at(ROWS + stage * KEYS, 0)}; };
    const auto values = [&](int stage) { return Tile<D>{queries.at(ROWS + (2 + stage) * KEYS, 0)}; };
    load_rows<ROWS, THREADS>(queries, q, stride, row0, N);

    // Rows past the pack's end stand for its last one: they are computed with its warp, and not stored.
    const int row = min(first + lane, N - 1);
    const Window window(starts, B, min(first, N - 1));
    rows.sees[threadIdx.x] = Range::of_row(window, row, left, right);
    rows.starts[threadIdx.x] = window.start_of(row);
    Running<D> state = {{}, {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, {}};
    __syncthreads();

    const int from = rows.sees[0].lo, end = rows.sees[ROWS - 1].hi;
    load_rows<KEYS, THREADS>(keys(0), k, stride, from, end);
    load_rows<KEYS, THREADS>(values(0), v, stride, from, end);
    cp_async_commit();
    for (int key = from, stage = 0; key < end; key += KEYS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + KEYS < end) {
            load_rows<KEYS, THREADS>(keys(stage ^ 1), k, stride, key + KEYS, end);
            load_rows<KEYS, THREADS>(values(stage ^ 1), v, stride, key + KEYS, end);
            cp_async_commit();
        }
        if (first >= N || !rows.all(own).touches(key, KEYS)) continue;
        if (rows.common(own).holds(key, KEYS)) {
            step<false>(state, queries, keys(stage), values(stage), rows, dropout, own, row, h, key);
        } else {
            step<true>(state, queries, keys(stage), values(stage), rows, dropout, own, row, h, key);
        }
    }
    if (first >= N) return;

    // This warp has read its rows of q for the last time.
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float scale[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = state.sum[m][half];
            sum += __shfl_xor_sync(ALL, sum, 1);
            sum += __shfl_xor_sync(ALL, sum, 2);
            scale[half] = dropout.scale / sum;
            const int at = first + 16 * m + 8 * half + g;
            if (lse && t == 0 && at < N) lse[size_t(at) * H + h] = state.most[m][half] / sqrtf(float(D)) + logf(sum);
        }
        put<D>(queries, own + 16 * m, state.out[m], scale[0], scale[1]);
    }
    __syncwarp();
    store_rows<32>(out + size_t(h) * D, H * D, first, N, queries, own);
}

KERNELS(attention_fwd, _d, D, (16, 32, 64, 80, 96, 128), __launch_bounds__(THREADS, D <= 32 ? 3 : 2),
        (bf16* __restrict__ out, float* __restrict__ lse_or_null, const bf16* __restrict__ qkv, const int* __restrict__ starts,
         int N, int B, int H, int G, const Reach reach, const Draw dropout) {
            forward<D>(out, lse_or_null, qkv, starts, N, B, H, G, reach.left, reach.right, dropout);
        })
