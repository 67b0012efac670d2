// attention_bwd: the gradients of attention's queries, keys and values, from the log of each softmax's denominator.
//
//   p[i,j] = exp(q[i,h] · k[j,g] / sqrt(D) - lse[i,h]),  delta[i,h] = dout[i,h] · out[i,h],  with the forward's mask
//   ds[i,j] = p[i,j] (drop(dout[i,h] · v[j,g]) - delta[i,h])
//   dq[i,h] = sum_j ds[i,j] k[j,g] / sqrt(D),  dk[j,g] = sum_hi ds[i,j] q[i,h] / sqrt(D),  dv[j,g] = sum_hi drop(p[i,j]) dout[i,h]
//
// Shapes    dqkv, qkv [N, (H + 2 G) D] bf16, dout, out [N, H D] bf16, lse [N, H] f32, starts [B + 1] i32 as in the forward;
//           rows [H, P, 2] f32 is workspace, P being N rounded up to even: lse in units of log 2, and delta.
// Plan      Two kernels that cut the pack into token tiles, like the forward; each owns what it writes, so sums have one
//           order and nothing is added in memory.
//           attention_bwd_queries: a block owns OWNED = 64 rows of a query head, 16 a warp, whose q and dout stay in registers
//           as A operands; keys and values come 32 at a time. It writes dq, and `rows` for the other. Grid ceil(N / OWNED) H.
//           attention_bwd_keys: a block owns 64 rows of a key head, 16 a warp, and is given all queries that see them, head by
//           head, 32 at a time. It computes transposed scores, k qᵀ, whose accumulators are the A operands of dv and dk.
//           Seen from a key, the mask is that of the forward with `left` and `right` exchanged. Grid ceil(N / OWNED) G.
//           Each computes scores and dout vᵀ anew, 7 products a pair in place of 5: the price of a fixed order without an
//           array of f32 dq that blocks add to in turn, which at the lengths of sentences costs more than the products.
//           Blocks of 128 threads; shared memory 2 (2 OWNED + 4 STREAMED) (D + 8) bytes, and 512: 68 KiB at D = 128.
//           Registers leave room for two blocks a multiprocessor, for three at D <= 32 (queries: 64).
// Cost      tensor flops: 32 16 D 3 (queries), 32 16 D 4 (keys) for each warp and 16 columns of which one of its 16 rows sees
//           one: 14 D a pair where all are seen. Bytes a query head: 2 D (3 N + N' + 2 keys) + 8 N' + 8 P for the queries, N'
//           being N rounded up to 64 and keys the sum of those that each block goes through, 4 D queries + 8 queries for the
//           keys; a key head 8 D N; and for each warp what finds its sequences, as in the forward.
// Numerics  As in the forward; p, drop(p) and ds are rounded to bf16 for the products that they enter, scales are applied in
//           f32 to sums. Bits do not depend on the grid.
// Limits    D of 16, 32, 64, 80, 96, 128; N below 2^30. A number that is not finite spreads to the rows of its tile.
// Source    Dao 2023, arXiv:2307.08691, section 3.1.
#include "attention.cuh"

EXPORT constexpr int OWNED = 64;
EXPORT constexpr int STREAMED = 32;
EXPORT constexpr int THREADS = 128;

// The four tiles of either kernel: two that a block owns, two that stream through two stages.
template <int D>
struct Tiles {
    bf16* memory;

    __device__ inline Tile<D> owned(int which) const { return at(which * OWNED); }
    __device__ inline Tile<D> stage(int which, int stage) const { return at(2 * OWNED + (2 * which + stage) * STREAMED); }
    // Behind them.
    __device__ inline float* rest() const { return reinterpret_cast<float*>(at(2 * OWNED + 4 * STREAMED).data); }

private:
    __device__ inline Tile<D> at(int row) const { return {memory + row * Tile<D>::STRIDE}; }
};

// c += a bᵀ over D, of 16 rows and 32 columns: a in registers, or read from a tile each time where D leaves no room for it.
template <int D, bool HELD>
struct Owned {
    unsigned a[HELD ? D / 16 : 1][4];
    Tile<D> tile;
    int row;

    __device__ inline Owned(const Tile<D>& tile, int row) : tile(tile), row(row) {
        if constexpr (HELD) {
#pragma unroll
            for (int k = 0; k < D / 16; k++) load_a(a[k], tile, row, 16 * k);
        }
    }
    __device__ inline void times(float (&c)[STREAMED / 8][4], const Tile<D>& by, const bool (&live)[2]) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            if (!HELD) load_a(a[0], tile, row, 16 * k);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (!live[half]) continue;
                unsigned b[4];
                load_b(b, by, 16 * half, 16 * k);
                mma_m16n8k16(c[2 * half], a[HELD ? k : 0], b[0], b[1]);
                mma_m16n8k16(c[2 * half + 1], a[HELD ? k : 0], b[2], b[3]);
            }
        }
    }
};

// sum += p by, of 16 rows and D columns, p being rounded to bf16 on its way.
template <int D>
__device__ __forceinline__ void add_product(float (&sum)[D / 8][4], const float (&p)[STREAMED / 8][4], const Tile<D>& by,
                                            const bool (&live)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (!live[half]) continue;
        unsigned a[4], b[4];
        as_a(a, p[2 * half], p[2 * half + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            load_b_trans(b, by, 16 * half, 16 * n);
            mma_m16n8k16(sum[2 * n], a, b[0], b[1]);
            mma_m16n8k16(sum[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// What a warp knows of its 16 rows: lanes i and i + 16 that of row i; `all` what any of them sees, `common` what every one does.
struct Rows {
    int first, row;
    Window window;
    Range sees, all, common;

    __device__ inline Rows(const int* starts, int N, int B, int first, int left, int right)
        : first(first), row(min(first + int(threadIdx.x) % 16, N - 1)), window(starts, B, min(first, N - 1)),
          sees(Range::of_row(window, row, left, right)) {
        const Range head = sees.of(0), tail = sees.of(15);
        all = {first < N ? head.lo : 0, first < N ? tail.hi : 0};
        common = {tail.lo, head.hi};
    }
};

// One stage of keys for a warp's 16 queries. EDGE: some of them do not see all of it.
template <bool EDGE, int D>
__device__ __forceinline__ void query_step(float (&dq)[D / 8][4], Owned<D, true>& q, Owned<D, true>& dout, const Tile<D>& keys,
                                           const Tile<D>& values, const Rows& rows, float lse, float delta,
                                           const Draw& dropout, int start, int h, int key) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool live[2] = {!EDGE || rows.all.touches(key, 16), !EDGE || rows.all.touches(key + 16, 16)};
    unsigned bits = 0xffff;
    if (dropout.least) bits = kept<16>(dropout, rows.row, h, key + lane / 16 * 16 - start);
    float s[STREAMED / 8][4] = {}, dp[STREAMED / 8][4] = {};
    q.times(s, keys, live);
    dout.times(dp, values, live);
    const float scale = LOG2E / sqrtf(float(D));
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = 8 * half + g;
        const Range range = EDGE ? rows.sees.of(row) : rows.all;
        const float of = __shfl_sync(ALL, lse, row), less = __shfl_sync(ALL, delta, row);
        const unsigned mine = (__shfl_sync(ALL, bits, row) | __shfl_sync(ALL, bits, row + 16) << 16) >> (2 * t);
#pragma unroll
        for (int n = 0; n < STREAMED / 8; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                const float p = exp2_fast(s[n][i] * scale - of);
                const float d = mine >> (8 * n + i % 2) & 1 ? dp[n][i] * dropout.scale : 0.0f;
                const bool seen = !EDGE || range.holds(key + 8 * n + 2 * t + i % 2, 1);
                dp[n][i] = seen ? p * (d - less) : 0.0f;
            }
        }
    }
    add_product(dq, dp, keys, live);
}

template <int D>
__device__ __forceinline__ void queries(bf16* dqkv, float* rows_out, const bf16* dout, const bf16* out, const float* lse,
                                        const bf16* qkv, const int* starts, int N, int B, int H, int G, int left, int right,
                                        const Draw& dropout) {
    extern __shared__ uint4 memory[];
    __shared__ int bounds[2];
    const Tiles<D> tiles = {reinterpret_cast<bf16*>(memory)};
    const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16;
    // Under a causal mask the last rows see most: they begin first.
    const int block = gridDim.x - 1 - blockIdx.x, h = block % H, row0 = block / H * OWNED;
    const int stride = (H + 2 * G) * D, width = H * D;
    const bf16 *q = qkv + size_t(h) * D, *k = qkv + size_t(H + h / (H / G)) * D, *v = k + size_t(G) * D;
    load_rows<OWNED, THREADS>(tiles.owned(0), q, stride, row0, N);
    load_rows<OWNED, THREADS>(tiles.owned(1), dout + size_t(h) * D, width, row0, N);
    cp_async_commit();
    const Rows rows(starts, N, B, row0 + own, left, right);
    if (threadIdx.x == 0) bounds[0] = rows.sees.lo;
    if (threadIdx.x == THREADS - 1) bounds[1] = rows.sees.hi;
    const int start = rows.window.start_of(rows.row);
    __syncthreads();
    const int end = bounds[1];
    load_rows<STREAMED, THREADS>(tiles.stage(0, 0), k, stride, bounds[0], end);
    load_rows<STREAMED, THREADS>(tiles.stage(1, 0), v, stride, bounds[0], end);
    cp_async_commit();

    // Lanes i and i + 16 take turns along row i.
    cp_async_wait<1>();
    __syncthreads();
    Owned<D, true> held_q(tiles.owned(0), own), held_dout(tiles.owned(1), own);
    float delta = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        float a[BF16S], b[BF16S];
        const int at = 16 * i + lane / 16 * BF16S;
        widen(a, load(tiles.owned(1).at(own + lane % 16, at), 0));
        widen(b, load(out + size_t(rows.row) * width + size_t(h) * D + at, 0));
#pragma unroll
        for (int j = 0; j < BF16S; j++) delta += a[j] * b[j];
    }
    delta += __shfl_xor_sync(ALL, delta, 16);
    const float of = lse[size_t(rows.row) * H + h] * LOG2E;
    const int pairs = (N + 1) / 2 * 2;
    if (lane < 16 && rows.first + lane < pairs) {
        reinterpret_cast<float2*>(rows_out)[size_t(h) * pairs + rows.first + lane] = make_float2(of, delta);
    }

    float dq[D / 8][4] = {};
    for (int key = bounds[0], stage = 0; key < end; key += STREAMED, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + STREAMED < end) {
            load_rows<STREAMED, THREADS>(tiles.stage(0, stage ^ 1), k, stride, key + STREAMED, end);
            load_rows<STREAMED, THREADS>(tiles.stage(1, stage ^ 1), v, stride, key + STREAMED, end);
            cp_async_commit();
        }
        if (!rows.all.touches(key, STREAMED)) continue;
        const Tile<D> keys = tiles.stage(0, stage), values = tiles.stage(1, stage);
        if (rows.common.holds(key, STREAMED)) {
            query_step<false>(dq, held_q, held_dout, keys, values, rows, of, delta, dropout, start, h, key);
        } else {
            query_step<true>(dq, held_q, held_dout, keys, values, rows, of, delta, dropout, start, h, key);
        }
    }
    if (rows.first >= N) return;
    // Nobody has looked at this warp's rows of q since the loop's first barrier.
    const float scale = 1.0f / sqrtf(float(D));
    put<D>(tiles.owned(0), own, dq, scale, scale);
    __syncwarp();
    store_rows<16>(dqkv + size_t(h) * D, stride, rows.first, N, tiles.owned(0), own);
}

// One stage of queries for a warp's 16 keys; `stats` holds each query's lse and delta. EDGE: some key is not seen by all.
template <bool EDGE, int D, bool HELD>
__device__ __forceinline__ void key_step(float (&dk)[D / 8][4], float (&dv)[D / 8][4], Owned<D, HELD>& k, Owned<D, HELD>& v,
                                         const Tile<D>& queries, const Tile<D>& douts, const float* stats, const Rows& rows,
                                         const Draw& dropout, int h, int query) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool live[2] = {!EDGE || rows.all.touches(query, 16), !EDGE || rows.all.touches(query + 16, 16)};
    // A lane draws one query's bits for the 16 keys.
    unsigned bits = 0xffff;
    if (dropout.least) {
        const int at = query + lane;
        bits = kept<16>(dropout, at, h, rows.first - rows.window.start_of(at));
    }
    float s[STREAMED / 8][4] = {}, dp[STREAMED / 8][4] = {};
    k.times(s, queries, live);
    v.times(dp, douts, live);
    const float scale = LOG2E / sqrtf(float(D));
    const Range range[2] = {EDGE ? rows.sees.of(g) : rows.all, EDGE ? rows.sees.of(8 + g) : rows.all};
#pragma unroll
    for (int n = 0; n < STREAMED / 8; n++) {
        if (EDGE && !live[n / 2]) continue;
        const float4 both = load(stats + 2 * (8 * n + 2 * t), 0);
        const float of[2] = {both.x, both.z}, less[2] = {both.y, both.w};
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const unsigned mine = __shfl_sync(ALL, bits, 8 * n + 2 * t + e) >> g;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float &p = s[n][2 * half + e], &d = dp[n][2 * half + e];
                const bool keep = mine >> (8 * half) & 1, seen = !EDGE || range[half].holds(query + 8 * n + 2 * t + e, 1);
                p = seen ? exp2_fast(p * scale - of[e]) : 0.0f;
                d = seen ? p * ((keep ? d * dropout.scale : 0.0f) - less[e]) : 0.0f;
                p = keep ? p : 0.0f;
            }
        }
    }
    add_product(dv, s, douts, live);
    add_product(dk, dp, queries, live);
}

template <int D>
__device__ __forceinline__ void keys(bf16* dqkv, const bf16* dout, const float* rows_in, const bf16* qkv, const int* starts, int N,
                                     int B, int H, int G, int left, int right, const Draw& dropout) {
    // dk, dv, k and v take D / 16 (8 + 8 + 4 + 4) registers.
    constexpr bool HELD = D <= 80;
    extern __shared__ uint4 memory[];
    __shared__ int bounds[2];
    const Tiles<D> tiles = {reinterpret_cast<bf16*>(memory)};
    const int own = threadIdx.x / 32 * 16, share = H / G, pairs = (N + 1) / 2 * 2;
    const int kv = blockIdx.x % G, row0 = blockIdx.x / G * OWNED;
    const int stride = (H + 2 * G) * D, width = H * D;
    const size_t k_at = size_t(H + kv) * D, v_at = k_at + size_t(G) * D;
    load_rows<OWNED, THREADS>(tiles.owned(0), qkv + k_at, stride, row0, N);
    load_rows<OWNED, THREADS>(tiles.owned(1), qkv + v_at, stride, row0, N);
    cp_async_commit();
    const Rows rows(starts, N, B, row0 + own, right, left);
    if (threadIdx.x == 0) bounds[0] = rows.sees.lo;
    if (threadIdx.x == THREADS - 1) bounds[1] = rows.sees.hi;
    __syncthreads();

    // Pairs of `rows` are copied whole.
    const int from = bounds[0] & ~1, end = bounds[1];
    const auto fetch = [&](int h, int query, int stage) {
        load_rows<STREAMED, THREADS>(tiles.stage(0, stage), qkv + size_t(h) * D, stride, query, end);
        load_rows<STREAMED, THREADS>(tiles.stage(1, stage), dout + size_t(h) * D, width, query, end);
        const int at = query + 2 * threadIdx.x;
        if (threadIdx.x < STREAMED / 2) {
            cp_async(tiles.rest() + 2 * STREAMED * stage + 4 * threadIdx.x, rows_in + 2 * (size_t(h) * pairs + at), at < end);
        }
        cp_async_commit();
    };
    fetch(kv * share, from, 0);
    if (HELD) {
        cp_async_wait<1>();
        __syncthreads();
    }
    Owned<D, HELD> held_k(tiles.owned(0), own), held_v(tiles.owned(1), own);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    int stage = 0;
    for (int h = kv * share; h < (kv + 1) * share; h++) {
        for (int query = from; query < end; query += STREAMED, stage ^= 1) {
            cp_async_wait<0>();
            __syncthreads();
            if (query + STREAMED < end) {
                fetch(h, query + STREAMED, stage ^ 1);
            } else if (h + 1 < (kv + 1) * share) {
                fetch(h + 1, from, stage ^ 1);
            }
            if (!rows.all.touches(query, STREAMED)) continue;
            const Tile<D> q = tiles.stage(0, stage), d = tiles.stage(1, stage);
            const float* stats = tiles.rest() + 2 * STREAMED * stage;
            if (rows.common.holds(query, STREAMED)) {
                key_step<false>(dk, dv, held_k, held_v, q, d, stats, rows, dropout, h, query);
            } else {
                key_step<true>(dk, dv, held_k, held_v, q, d, stats, rows, dropout, h, query);
            }
        }
    }
    if (rows.first >= N) return;
    const float scale = 1.0f / sqrtf(float(D));
    if (!HELD) __syncwarp();
    put<D>(tiles.owned(0), own, dk, scale, scale);
    put<D>(tiles.owned(1), own, dv, dropout.scale, dropout.scale);
    __syncwarp();
    store_rows<16>(dqkv + k_at, stride, rows.first, N, tiles.owned(0), own);
    store_rows<16>(dqkv + v_at, stride, rows.first, N, tiles.owned(1), own);
}

KERNELS(attention_bwd_queries, _d, D, (16, 32, 64, 80, 96, 128), __launch_bounds__(THREADS, D <= 64 ? 3 : 2),
        (bf16* __restrict__ dqkv, float* __restrict__ rows, const bf16* __restrict__ dout, const bf16* __restrict__ out,
         const float* __restrict__ lse, const bf16* __restrict__ qkv, const int* __restrict__ starts, int N, int B, int H,
         int G, const Reach reach, const Draw dropout) {
            queries<D>(dqkv, rows, dout, out, lse, qkv, starts, N, B, H, G, reach.left, reach.right, dropout);
        })

KERNELS(attention_bwd_keys, _d, D, (16, 32, 64, 80, 96, 128), __launch_bounds__(THREADS, D <= 32 ? 3 : 2),
        (bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const float* __restrict__ rows, const bf16* __restrict__ qkv,
         const int* __restrict__ starts, int N, int B, int H, int G, const Reach reach, const Draw dropout) {
            keys<D>(dqkv, dout, rows, qkv, starts, N, B, H, G, reach.left, reach.right, dropout);
        })
