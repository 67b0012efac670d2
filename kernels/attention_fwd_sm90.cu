// attention_fwd_sm90: attention_fwd.cu's function on Hopper, by wgmma and TMA.
//
//   lse[i,h] = log sum_j exp(q[i,h] · k[j,g] / sqrt(D)),  out[i,h] = sum_j drop(exp(q[i,h] · k[j,g] / sqrt(D) - lse[i,h])) v[j,g]
//   over the keys j of i's sequence with i - left <= j <= i + right,  g = h G / H
//
// Shapes    qkv [N, (H + 2 G) D] bf16: query heads, key heads, value heads; starts [B + 1] i32, rising from 0 to N; out [N, H D]
//           bf16, lse [N, H] f32, may be null. Maps: boxes of 64 columns by LOADED rows of qkv, by STORED of out, under the
//           128-byte swizzle. heads divides H.
// Plan      A sequence is cut into slices of ROWS = 128 rows; an item is a slice and `heads` query heads, one after the other.
//           Blocks are persistent and take items in turn, the last first. Warpgroup 2 is the producer: its first warp finds an
//           item's slice, posts a job to each consumer (64 rows), and loads queries and tiles of KEYS = 128 keys and
//           values into a ring of 256 / D stages. Warpgroups 0 and 1 are the consumers: the halves of a slice, or, of one of up
//           to 64 rows, two heads, so that short texts leave neither idle, or, of one of up to LOADED rows, two heads each, where
//           such pairs share keys: their rows are halves of the 64. Both go through the same tiles, or, where their heads
//           have keys of their own, each through its own and lets the other's go. Keys that fit one tile stay for all heads of
//           the item that share them: each of q, k, v is then read once.
//           Scores come by wgmma from shared memory; exponentials become the A operand of the second product in registers. The
//           softmax of a tile runs under the second product of the one before, and under the products of the other consumer, as
//           the two multiply in turn. A consumer skips tiles that none of its rows sees, and compares columns only where some row
//           does not see all of a tile. Of its last tile it multiplies what is seen: up to 64 keys by eights (by sixteens in the
//           second product), 96, or all. Tiles lie on the grid of eights of their text, so a Philox call is eight columns: each
//           lane of a quad draws eights of its two rows while scores are multiplied, and two shuffles hand the bits round.
//           Out goes by stmatrix and TMA, 16 rows at a time; rows at a text's end, behind which another's follow, by vectors.
// Cost      flops: 128 D (u + w) for each job, a half of a slice and head, or a pair: u and w are the keys from its first tile to
//           the last that it sees, rounded up to 8 and to 16 as above. Texts of 20 to 60 tokens take 1.14 times what as many in
//           texts of 64 do, 1.02 with pairs. Bytes, short of rows past N: 128 D a job; 4 D a key of a slice,
//           their number rounded up to 32, and head (heads that share a single tile count once); 2 D + 4 a row and head of out
//           and lse; 4 B + 4 min(B, THREADS) a block and 8 an item of starts, more where B > THREADS.
// Numerics  Scores, maxima and sums in f32, exponentials base 2 by ex2.approx; what a row's sums are relative to moves only when
//           a probability of its warp's rows would pass 2^8. Probabilities are rounded to bf16 for the second product, not for
//           their sum. One rounding at the end. Bits depend neither on the grid nor on what else is in the pack.
// Hazards   Waits end in a fault after seconds (hopper.cuh). Every warp reads a job before it arrives at `taken`; a tile is let go
//           by every warp behind its wait for wgmma, so that none is a lap of the ring behind the others. `settle` keeps
//           exponentials before the wait behind which ptxas would move them. Rows of other texts in a box are hidden, or
//           multiplied by zeros.
// Budget    56 registers a thread for the producer, 224 for a consumer; one block a multiprocessor: 512 D bytes of queries and
//           results, 256 / D stages of 512 D bytes, 3 KB of jobs, barriers and counts.
// Limits    D of 64 and 128, qkv and out at 16-byte boundaries; N below 2^30. A number that is not finite spreads to the rows that
//           meet it in a box.
// Source    as attention_fwd.cu; warp specialisation, turns and softmax under products: Shah et al. 2024, arXiv:2407.08608.
#include "attention_sm90.cuh"

EXPORT constexpr int ROWS = 128;
EXPORT constexpr int KEYS = 128;
EXPORT constexpr int LOADED = 32;
EXPORT constexpr int STORED = 16;
EXPORT constexpr int THREADS = 384;
EXPORT constexpr int SHARED_64 = 164864;
EXPORT constexpr int SHARED_128 = 197632;

// Rows of a warpgroup, of a slice ROWS.
constexpr int UNIT = 64;
// Keys of a text's last tile up to which only what is seen is multiplied: by eights up to half a tile, which short texts have.
constexpr int NARROW = 96;
constexpr int CONSUMERS = 2;

// Where things lie in shared memory: matrices as panels of 64 columns.
template <int D>
struct Places {
    static constexpr int PANELS = D / 64, STAGES = 256 / D;
    static constexpr int UNIT_PANEL = UNIT * 128, UNIT_BYTES = PANELS * UNIT_PANEL;
    static constexpr int TILE_PANEL = KEYS * 128, TILE_BYTES = PANELS * TILE_PANEL;
    static constexpr int BARRIERS = 2 * CONSUMERS + 4 * STAGES;
    static constexpr int BYTES = 1024 + 2 * CONSUMERS * UNIT_BYTES + 2 * STAGES * TILE_BYTES;
    unsigned first, barriers;

    __device__ __forceinline__ unsigned queries(int w) const { return first + w * UNIT_BYTES; }
    __device__ __forceinline__ unsigned result(int w) const { return queries(CONSUMERS + w); }
    __device__ __forceinline__ unsigned keys(int stage) const { return queries(2 * CONSUMERS) + stage * TILE_BYTES; }
    __device__ __forceinline__ unsigned values(int stage) const { return keys(STAGES + stage); }
    __device__ __forceinline__ unsigned posted(int w) const { return barriers + 8 * w; }
    __device__ __forceinline__ unsigned taken(int w) const { return posted(CONSUMERS + w); }
    __device__ __forceinline__ unsigned keys_full(int n) const { return posted(2 * CONSUMERS + n % STAGES); }
    __device__ __forceinline__ unsigned keys_empty(int n) const { return keys_full(n) + 8 * STAGES; }
    __device__ __forceinline__ unsigned values_full(int n) const { return keys_full(n) + 16 * STAGES; }
    __device__ __forceinline__ unsigned values_empty(int n) const { return keys_full(n) + 24 * STAGES; }
    static __device__ __forceinline__ int lap(int n) { return n / STAGES & 1; }
};

static_assert(Places<64>::BYTES == SHARED_64 && Places<128>::BYTES == SHARED_128, "the host launches by them");

// ---- What there is to do ----

// What a warpgroup has to do next: UNIT rows of one head against some of the block's tiles of keys.
struct alignas(16) Job {
    // Of `head`: nothing more comes; nothing but to let tiles go.
    static constexpr int END = -1, NONE = -2;
    // Of `flags`: as many tiles of the other warpgroup come before; behind; the tiles are kept for the next job; the two
    // warpgroups go through the same tiles in turn; half of the rows are those of the head behind.
    static constexpr int BEFORE = 1, BEHIND = 2, KEPT = 4, TURNS = 8, PAIR = 16;
    int row, start, end, head, key, tiles, flags, unused;

    __device__ __forceinline__ Job here() const {
        return {same(row), same(start), same(end), same(head), same(key), same(tiles), same(flags)};
    }
};

// ---- The producer ----

template <int D>
struct Producer {
    using P = Places<D>;
    const P& at;
    const CUtensorMap& qkv;
    Job* jobs;
    int H, G, left, right;
    int tile = 0, round = 0;

    // `boxes` boxes of a head's rows from `row` on, into panels of `panel` bytes.
    __device__ __forceinline__ void load(unsigned to, int panel, int head, int row, int boxes, unsigned full) const {
#pragma unroll 1
        for (int b = 0; b < boxes; b++)
            for (int p = 0; p < P::PANELS; p++)
                cp_async_bulk_tensor_load(to + p * panel + b * LOADED * 128, qkv, head * D + 64 * p, row + b * LOADED, full);
    }
    // Tells warpgroup w what it has to do, for which it has `rows` or not.
    __device__ __forceinline__ void post(int w, const Job& job, bool rows) const {
        mbarrier_wait(at.taken(w), (round & 1) ^ 1);
        jobs[w] = job;
        if (rows) {
            mbarrier_arrive_expect_tx(at.posted(w), P::UNIT_BYTES);
            for (int b = 0; b < UNIT / LOADED; b++) {
                const bool pair = job.flags & Job::PAIR;
                load(at.queries(w) + b * LOADED * 128, P::UNIT_PANEL, job.head + (pair ? b : 0),
                     job.row + (pair ? 0 : b * LOADED), 1, at.posted(w));
            }
        } else {
            mbarrier_arrive(at.posted(w));
        }
    }
    // Keys, or values, of a tile; no more boxes than are read.
    __device__ __forceinline__ void load_tile(int n, bool is_keys, int g, int key, int end) const {
        const int boxes = ceil_div(min(end - key, KEYS), LOADED);
        const unsigned full = is_keys ? at.keys_full(n) : at.values_full(n);
        mbarrier_wait(is_keys ? at.keys_empty(n) : at.values_empty(n), P::lap(n) ^ 1);
        mbarrier_arrive_expect_tx(full, boxes * P::PANELS * LOADED * 128);
        const unsigned to = is_keys ? at.keys(n % P::STAGES) : at.values(n % P::STAGES);
        load(to, P::TILE_PANEL, H + (is_keys ? 0 : G) + g, key, boxes, full);
    }
    // Some heads of a slice. Where it is wide both warpgroups have rows of a head, else all rows of a head each, or, of up to
    // half a warpgroup's rows, those of two heads that share keys.
    __device__ __forceinline__ void work(const Slice& slice, int head, int heads) {
        const int end = min(slice.row + ROWS, slice.end), group = H / G;
        const bool wide = end - slice.row > UNIT;
        const bool pair = end - slice.row <= LOADED && group % 2 == 0 && heads % 2 == 0;
        const int apart = pair ? 2 : 1, step = wide ? 1 : 2 * apart;
        const int seen = max(slice.start, slice.row - left), until = min(slice.end, end + right);
        const int key = slice.start + ((seen - slice.start) & ~(BF16S - 1)), tiles = ceil_div(until - key, KEYS);
        bool fresh = true;
        for (int h = head; h < head + heads; h += step) {
            const bool both = wide || h + apart < head + heads;
            const int g0 = h / group, g1 = wide || !both ? g0 : (h + apart) / group;
            const bool shared = g0 == g1, more = h + step < head + heads;
            const bool keeps = tiles == 1 && shared && more && min(h + 2 * step, head + heads) - 1 < (g0 + 1) * group;
            const int turns = shared && both && tiles > 1 ? Job::TURNS : 0;
            const int flags = (keeps ? Job::KEPT : 0) | turns | (pair ? Job::PAIR : 0);
            const int before = both && shared ? 0 : Job::BEFORE;
            const Job first = {slice.row, slice.start, slice.end, h, key, tiles, flags | (shared ? 0 : Job::BEHIND)};
            const int row = slice.row + (wide ? UNIT : 0), other = both ? (wide ? h : h + apart) : Job::NONE;
            const Job second = {row, slice.start, slice.end, other, key, tiles, flags | before};
            const auto post_second = [&] { post(1, second, both); };
            const int count = !fresh ? 0 : shared ? tiles : 2 * tiles;
            post(0, first, true);
            if (count == 0) post_second();
            // The keys of a tile before the values of the one before it.
#pragma unroll 1
            for (int i = 0; i < 2 * count; i++) {
                const bool ends = i == 2 * count - 1, is_keys = i == 0 || (i % 2 == 1 && !ends);
                const int n = is_keys ? (i + 1) / 2 : ends ? count - 1 : i / 2 - 1, own = n < tiles ? n : n - tiles;
                load_tile(tile + n, is_keys, n < tiles ? g0 : g1, key + own * KEYS, until);
                if (i == 0) post_second();
            }
            tile += count, round++;
            fresh = !keeps;
        }
    }
    __device__ __forceinline__ void finish() {
        for (int w = 0; w < CONSUMERS; w++) post(w, {0, 0, 0, Job::END}, false);
    }
};

// ---- The consumers ----

template <int D>
struct Consumer {
    using P = Places<D>;
    const P& at;
    const CUtensorMap& map;
    bf16* out;
    float* lse;
    const Draw& dropout;
    int H, left, right, w;
    unsigned settled;
    int tile = 0, round = 0;
    // Of the job at hand.
    Job job;
    Range sees[2], common;
    bool counts[2];
    int row;

    __device__ __forceinline__ void release(unsigned barrier) const {
        if (threadIdx.x % 32 == 0 && !(job.flags & Job::KEPT)) mbarrier_arrive(barrier);
    }
    // The two warpgroups multiply in turn, so that one's softmax runs under the other's products.
    __device__ __forceinline__ void turn() const {
        if (job.flags & Job::TURNS) barrier_sync(1 + w, 128 * CONSUMERS);
    }
    __device__ __forceinline__ void pass() const {
        if (job.flags & Job::TURNS) barrier_arrive(1 + (w ^ 1), 128 * CONSUMERS);
    }
    // Lets a tile go that is for the other, once it is there: a barrier's phases are told apart by their parity alone.
    __device__ __forceinline__ void skip() {
        const int n = tile++;
        mbarrier_wait(at.keys_full(n), P::lap(n));
        mbarrier_wait(at.values_full(n), P::lap(n));
        release(at.keys_empty(n)), release(at.values_empty(n));
    }
    __device__ __forceinline__ void skip_all() {
        for (int i = 0; i < job.tiles; i++) skip();
    }
    __device__ __forceinline__ bytes64 queries() const { return wgmma_descriptor(at.queries(w)); }
    __device__ __forceinline__ bytes64 keys() const { return wgmma_descriptor(at.keys(tile % P::STAGES)); }
    __device__ __forceinline__ bytes64 values(int n) const {
        return wgmma_descriptor(at.values(n % P::STAGES), P::TILE_PANEL);
    }
    // The queries are in no product any more, and the warp has read the job: the next may take their place.
    __device__ __forceinline__ void take() {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(at.taken(w));
    }
    template <int COLUMNS>
    __device__ __forceinline__ Kept drawn(int key) const {
        Kept kept = {ALL, ALL};
        if (dropout.least) kept = Kept::draw<COLUMNS>(dropout, row, job.head, (key - job.start) / BF16S);
        return kept;
    }
    template <int COLUMNS>
    __device__ __forceinline__ void masked(float (&s)[COLUMNS / 2], int key) const {
        if (!common.holds(key, COLUMNS)) hide(s, key + threadIdx.x % 4 * 2, sees);
    }
    // The last tile, of which only COLUMNS keys are seen, all of its work. What other products there are is over before it.
    template <int COLUMNS>
    __device__ __forceinline__ void narrow_tile(Running<D>& state, int key, bool keep) {
        float s[COLUMNS / 2], shrink[2];
        unsigned p[(COLUMNS + 15) / 16 * 4];
        wgmma_pin(s);
        wgmma_fence();
        multiply_keys<D, COLUMNS>(s, queries(), P::UNIT_PANEL, keys(), P::TILE_PANEL);
        const Kept kept = drawn<COLUMNS>(key);
        settle(settled, __uint_as_float(kept.even ^ kept.odd));
        wgmma_wait<0>();
        wgmma_pin(s);
        release(at.keys_empty(tile));
        take();
        masked<COLUMNS>(s, key);
        softmax(s, state, shrink, counts);
        if (keep) rescale(state, shrink);
        pack(p, s);
        if (dropout.least) kept.apply(p);
        mbarrier_wait(at.values_full(tile), P::lap(tile));
        wgmma_pin(state.out);
        wgmma_pin(p);
        wgmma_fence();
        multiply_values<D>(state.out, p, values(tile), keep);
        wgmma_wait<0>();
        wgmma_pin(state.out);
        wgmma_pin(p);
    }
    // `full` whole tiles from `key` on, and then, where it is more than 0, a narrow one of `tail` keys.
    __device__ __forceinline__ void go(Running<D>& state, int key, int full, int tail) {
        float s[KEYS / 2], shrink[2];
        unsigned p[KEYS / 4];
        if (full > 0) {
            // The first tile's probabilities: there is nothing else to multiply meanwhile.
            mbarrier_wait(at.keys_full(tile), P::lap(tile));
            wgmma_pin(s);
            wgmma_fence();
            multiply_keys<D, KEYS>(s, queries(), P::UNIT_PANEL, keys(), P::TILE_PANEL);
            Kept kept = drawn<KEYS>(key);
            settle(settled, __uint_as_float(kept.even ^ kept.odd));
            wgmma_wait<0>();
            wgmma_pin(s);
            release(at.keys_empty(tile));
            masked<KEYS>(s, key);
            softmax(s, state, shrink, counts);
            pack(p, s);
            if (dropout.least) kept.apply(p);

            // Each next tile's, while those of the one before are multiplied by its values.
#pragma unroll 1
            for (int i = 1; i < full; i++) {
                key += KEYS, tile++;
                mbarrier_wait(at.keys_full(tile), P::lap(tile));
                turn();
                wgmma_pin(s);
                wgmma_pin(state.out);
                wgmma_pin(p);
                wgmma_fence();
                multiply_keys<D, KEYS>(s, queries(), P::UNIT_PANEL, keys(), P::TILE_PANEL);
                mbarrier_wait(at.values_full(tile - 1), P::lap(tile - 1));
                wgmma_fence();
                multiply_values<D>(state.out, p, values(tile - 1), i > 1);
                pass();
                kept = drawn<KEYS>(key);
                settle(settled, __uint_as_float(kept.even ^ kept.odd));
                wgmma_wait<1>();
                wgmma_pin(s);
                release(at.keys_empty(tile));
                masked<KEYS>(s, key);
                softmax(s, state, shrink, counts);
                settle(settled, state.sum[0] + state.sum[1]);
                wgmma_wait<0>();
                wgmma_pin(state.out);
                wgmma_pin(p);
                release(at.values_empty(tile - 1));
                rescale(state, shrink);
                pack(p, s);
                if (dropout.least) kept.apply(p);
            }

            // The last whole tile's values.
            if (tail == 0) take();
            mbarrier_wait(at.values_full(tile), P::lap(tile));
            wgmma_pin(state.out);
            wgmma_pin(p);
            wgmma_fence();
            multiply_values<D>(state.out, p, values(tile), full > 1);
            wgmma_wait<0>();
            wgmma_pin(state.out);
            wgmma_pin(p);
            release(at.values_empty(tile));
            key += KEYS, tile++;
        }
        if (tail == 0) return;

        // What is left.
        mbarrier_wait(at.keys_full(tile), P::lap(tile));
        if (full > 0) turn(), pass();
        const bool keep = full > 0;
        by_eights<NARROW>(tail, [&](auto keys) { narrow_tile<keys.value>(state, key, keep); });
        release(at.values_empty(tile));
        tile++;
    }
    // This warp's rows to out and lse.
    __device__ __forceinline__ void store(Running<D>& state) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, first = row - lane / 4;
        float scale[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = state.sum[half];
            sum += __shfl_xor_sync(ALL, sum, 1);
            sum += __shfl_xor_sync(ALL, sum, 2);
            scale[half] = dropout.scale / sum;
            const int to = row + 8 * half;
            if (lse && lane % 4 == 0 && to < job.end)
                lse[size_t(to) * H + job.head] = state.most[half] / sqrtf(float(D)) + logf(sum);
        }
        // The store before has read its rows.
        if (lane == 0) cp_async_bulk_wait_read();
        __syncwarp();
        const unsigned from = at.result(w) + warp * 16 * 128;
        put_rows(from, P::UNIT_PANEL, state.out, scale[0], scale[1]);
        send_rows<STORED, P::PANELS>(map, out, H * D, job.head * D, first, job.end, from, P::UNIT_PANEL);
    }
    // Jobs, one after the other.
    __device__ __forceinline__ void run(const Job& posted) {
        if (w == 1) barrier_arrive(1, 128 * CONSUMERS);
        for (;; round++) {
            mbarrier_wait(at.posted(w), round & 1);
            job = posted.here();
            if (job.head == Job::END) break;
            if (job.flags & Job::BEFORE) skip_all();
            if (job.head == Job::NONE) {
                take();
                continue;
            }
            const int last = min(job.row + UNIT, job.end) - 1;
            const int warp = threadIdx.x % 128 / 32, pair = job.flags & Job::PAIR ? 1 : 0;
            row = job.row + (pair ? warp % 2 : warp) * 16 + threadIdx.x % 32 / 4;
            job.head += pair * (warp / 2);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = min(row + 8 * half, last);
                counts[half] = row + 8 * half <= last;
                sees[half] = {max(job.start, r - left), min(job.end, r + right + 1)};
            }
            common = {max(job.start, last - left), min(job.end, job.row + right + 1)};
            // A half's first key lies less than a tile behind the slice's: both begin with the first tile.
            const int seen = min(job.end, last + right + 1) - job.key, tiles = ceil_div(seen, KEYS);
            const int width = seen - (tiles - 1) * KEYS, tail = width > NARROW ? 0 : width;
            Running<D> state;
#pragma unroll
            for (int half = 0; half < 2; half++) state.most[half] = -INFINITY, state.sum[half] = 0;
            go(state, job.key, tiles - (tail > 0), tail);
            for (int i = tiles; i < job.tiles; i++) skip(), turn(), pass();
            if (job.flags & Job::KEPT) tile -= job.tiles;
            if (job.flags & Job::BEHIND) skip_all();
            store(state);
        }
        if (w == 0) barrier_sync(1, 128 * CONSUMERS);
        if (threadIdx.x % 32 == 0) cp_async_bulk_wait_read();
    }
};

template <int D>
__device__ __forceinline__ void forward(const CUtensorMap& map, bf16* out, float* lse, const CUtensorMap& qkv,
                                        const int* starts, int B, int H, int G, int heads, const Reach& reach,
                                        const Draw& dropout) {
    using P = Places<D>;
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ Slices<ROWS, THREADS> slices;
    __shared__ Job jobs[CONSUMERS];
    __shared__ alignas(8) unsigned long long barriers[P::BARRIERS];
    __shared__ float settled[128 * CONSUMERS];
    const P at = {(shared_address(memory) + 1023) & ~1023u, shared_address(barriers)};
    if (threadIdx.x == 0) {
        for (int w = 0; w < CONSUMERS; w++) mbarrier_init(at.posted(w), 1), mbarrier_init(at.taken(w), 4);
        for (int i = 0; i < P::STAGES; i++) {
            mbarrier_init(at.keys_full(i), 1), mbarrier_init(at.keys_empty(i), 4 * CONSUMERS);
            mbarrier_init(at.values_full(i), 1), mbarrier_init(at.values_empty(i), 4 * CONSUMERS);
        }
        fence_mbarrier_init();
    }
    slices.count(starts, B);
    __syncthreads();
    const int warpgroup = same(threadIdx.x / 128);
    if (warpgroup == CONSUMERS) {
        setmaxnreg_dec<56>();
        if (threadIdx.x / 32 == 4 * CONSUMERS) {
            Producer<D> producer = {at, qkv, jobs, H, G, reach.left, reach.right};
            const int units = H / heads, items = slices.before[THREADS] * units;
            // Under a causal mask the last rows see most: they begin first.
            for (int item = items - 1 - int(blockIdx.x); item >= 0; item -= gridDim.x) {
                const Slice slice = slices.find(starts, B, item / units);
                if (threadIdx.x % 32 == 0) producer.work(slice, item % units * heads, heads);
                __syncwarp();
            }
            if (threadIdx.x % 32 == 0) producer.finish();
            __syncwarp();
        }
    } else {
        setmaxnreg_inc<224>();
        Consumer<D> consumer = {at, map, out, lse, dropout, H, reach.left, reach.right, warpgroup,
                                shared_address(settled + threadIdx.x)};
        consumer.run(jobs[warpgroup]);
    }
}

KERNELS(attention_fwd_sm90, _d, D, (64, 128), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap stored, bf16* __restrict__ out, float* __restrict__ lse_or_null,
         const __grid_constant__ CUtensorMap qkv, const int* __restrict__ starts, int B, int H, int G, int heads,
         const Reach reach, const Draw dropout) {
            forward<D>(stored, out, lse_or_null, qkv, starts, B, H, G, heads, reach, dropout);
        })
