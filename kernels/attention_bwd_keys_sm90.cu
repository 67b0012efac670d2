// attention_bwd_keys_sm90: attention_bwd.cu's function on Hopper, by wgmma and TMA: dk and dv, and dq of short texts.
//
//   dk[j,g] = sum_hi ds[i,j] q[i,h] / sqrt(D),  dv[j,g] = sum_hi drop(p[i,j]) dout[i,h],  p, ds as in attention_bwd_queries_sm90.cu
//   and, of texts of up to ROWS rows,  dq[i,h] = sum_j ds[i,j] k[j,g] / sqrt(D)
//
// Shapes    dqkv, dout, out, rows, lse, qkv, starts and maps as in attention_bwd_queries_sm90.cu, which comes first; `rows` is
//           read of longer texts alone. heads, 1 or 2, divides G.
// Plan      An item is a slice of ROWS = 128 keys of a text and `heads` key heads. Blocks are persistent and take items in turn.
//           A block keeps the item's keys and values and is given all queries that see them, head by head, UNIT = 64 at a time,
//           through a ring of 256 / D stages. Warpgroups 0 and 1 own 64 keys each: the halves of a slice, or, of one of up to 64
//           keys, those of two heads, whose queries then come by turns. In warpgroup 2 one warp loads keys, one queries, and two
//           find lse and delta of each query of a stage: of a short text delta = dout · out itself, which its stage has too.
//           Scores are computed transposed, k qᵀ and v doutᵀ together, exponentials under the second; pᵀ is the A operand of dv
//           in registers, dsᵀ that of dk in shared memory, where it also is the A operand of dq, read the other way: a text of
//           one slice takes 5 products and is read once, a longer one 4 here and 3 there. Of dq a warpgroup takes half of the
//           columns, or, where D is 64, every other tile; of a head of its own all. Of a tile products have what the text has,
//           queries by eights in scores and by sixteens in sums, keys of dq by sixteens; a warpgroup leaves out a tile that sees
//           none of its keys. Nothing is added in memory. Seen from a key, the mask is that of a query with left and right
//           exchanged. A Philox call is eight keys of a query; a lane draws four, and a shuffle for each eight queries hands the
//           quad's other lanes what they need as one word. dk and dv leave from where keys and values were, dq from a panel a
//           warpgroup, by TMA, 16 rows at a time, at a text's end by vectors.
// Cost      flops: 256 D (u + w) a tile and 64 keys of which any is seen, u and w being the text's queries of the tile rounded up
//           to 8 (at least 16) and to 16; of a short text 128 D a tile and key, seen halves' keys rounded up to 16. Texts of 20
//           to 60 tokens take 1.15 times what as many in texts of 64 do. Bytes, short of rows past N: 256 D a head's 64 keys,
//           4 D a key and head; of a short text 384 D a tile and 2 D + 4 a query, of a longer one 256 D a tile and 8 a query of
//           it; 4 B + 4 min(B, THREADS) a block and 16 an item of starts, more where B > THREADS.
// Numerics  As in attention_bwd.cu: p, drop(p) and ds are rounded to bf16 for the products that they enter, scales are applied in
//           f32 to sums. Bits depend neither on the grid nor on what else is in the pack.
// Hazards   As in attention_fwd_sm90.cu. dsᵀ begins as zeros: dq's A operand has rows behind a text's end, which go nowhere. It
//           has two places: who writes the next has met the other behind the product before.
//           Branches around products turn on what a stage says, which every lane has by a shuffle: ptxas is to know them uniform.
// Budget    40 registers a thread for the producers, 232 for a consumer, whose sums are D of them; one block a multiprocessor:
//           512 D bytes of keys and values, 256 / D stages of 384 D bytes, 32 KB of dsᵀ, 16 KB of dq.
// Limits    As in attention_bwd_queries_sm90.cu.
// Source    Dao 2023, arXiv:2307.08691, section 3.1; warp specialisation: Shah et al. 2024, arXiv:2407.08608.
#include "attention_sm90.cuh"

EXPORT constexpr int ROWS = 128;
EXPORT constexpr int UNIT = 64;
EXPORT constexpr int STORED = 16;
EXPORT constexpr int THREADS = 384;
EXPORT constexpr int SHARED_64 = 181248;
EXPORT constexpr int SHARED_128 = 214016;

constexpr int CONSUMERS = 2;
// A panel of 64 columns of UNIT rows, and of a slice's.
constexpr int PANEL = UNIT * 128;
constexpr int SLICE_PANEL = ROWS * 128;

// `head` of what comes next: nothing more.
constexpr int END = -1;

template <int D>
struct Places {
    static constexpr int PANELS = D / 64, STAGES = 256 / D, UNIT_BYTES = PANELS * PANEL, STATS = 8 * UNIT;
    static constexpr int BARRIERS = 2 + 3 * STAGES;
    static constexpr int BYTES = 1024 + 4 * UNIT_BYTES + 3 * STAGES * UNIT_BYTES + 2 * SLICE_PANEL + CONSUMERS * PANEL;
    unsigned first, barriers, statistics;

    // A slice's panels; a consumer's rows begin at w * PANEL. Then they have dk and dv.
    __device__ __forceinline__ unsigned keys() const { return first; }
    __device__ __forceinline__ unsigned values() const { return first + PANELS * SLICE_PANEL; }
    __device__ __forceinline__ unsigned queries(int n) const { return values() + PANELS * SLICE_PANEL + n % STAGES * UNIT_BYTES; }
    __device__ __forceinline__ unsigned douts(int n) const { return queries(0) + (STAGES + n % STAGES) * UNIT_BYTES; }
    __device__ __forceinline__ unsigned outs(int n) const { return queries(0) + (2 * STAGES + n % STAGES) * UNIT_BYTES; }
    // dsᵀ: a row a key of the slice, UNIT queries.
    __device__ __forceinline__ unsigned ds(int step) const { return queries(0) + 3 * STAGES * UNIT_BYTES + step % 2 * SLICE_PANEL; }
    __device__ __forceinline__ unsigned dq(int w) const { return ds(0) + 2 * SLICE_PANEL + w * PANEL; }
    // lse of UNIT queries in units of log 2, then their delta.
    __device__ __forceinline__ unsigned stats(int n) const { return statistics + n % STAGES * STATS; }
    __device__ __forceinline__ unsigned posted() const { return barriers; }
    __device__ __forceinline__ unsigned taken() const { return barriers + 8; }
    __device__ __forceinline__ unsigned full(int n) const { return barriers + 16 + n % STAGES * 8; }
    __device__ __forceinline__ unsigned known(int n) const { return full(n) + 8 * STAGES; }
    __device__ __forceinline__ unsigned empty(int n) const { return full(n) + 16 * STAGES; }
    static __device__ __forceinline__ int lap(int n) { return n / STAGES & 1; }
};
static_assert(Places<64>::BYTES == SHARED_64 && Places<128>::BYTES == SHARED_128, "the host launches by them");

// UNIT queries of a head, of a text that ends at `end`.
struct alignas(16) Stage {
    // Of `flags`: bit w says that warpgroup w's keys are seen by some of the queries; first and last of a job; the keys are the
    // whole text; they are of one head, half of a slice a warpgroup; whose turn it is.
    static constexpr int FIRST = 4, LAST = 8, WHOLE = 16, WIDE = 32, ODD = 64;
    int row, end, head, flags;

    __device__ __forceinline__ Stage here() const { return {same(row), same(end), same(head), same(flags)}; }
};

// The keys of a slice: of one head, UNIT a warpgroup (`wide`), or of one head each.
struct alignas(16) Job {
    int row, start, end, head, wide, unused[3];

    // The first key of warpgroup w, and the end of its keys.
    __device__ __forceinline__ int first(int w) const { return row + (wide ? w * UNIT : 0); }
    __device__ __forceinline__ int last(int w) const { return min(first(w) + UNIT, end) - 1; }
};

// Some key heads of a slice, one after the other (`wide`), or one a warpgroup. Two warps load what they take, each at its own pace.
struct Item {
    Slice slice;
    int head, heads;

    __device__ __forceinline__ int end() const { return min(slice.row + ROWS, slice.end); }
    __device__ __forceinline__ bool wide() const { return end() - slice.row > UNIT; }
    // How many at once.
    __device__ __forceinline__ int units() const { return wide() ? 1 : heads; }
    // By one whole warp, whose first lane does `work`.
    template <typename F>
    static __device__ __forceinline__ void each(const Slices<ROWS, THREADS>& slices, const int* starts, int B, int G, int heads,
                                                F work) {
        const int items = slices.before[THREADS] * (G / heads);
        for (int item = blockIdx.x; item < items; item += gridDim.x) {
            const Slice slice = slices.find(starts, B, item / (G / heads));
            if (threadIdx.x % 32 == 0) work(Item{slice, item % (G / heads) * heads, heads});
            __syncwarp();
        }
    }
};

// Keys, values, and what to do with them.
template <int D>
struct KeyProducer {
    using P = Places<D>;
    const P& at;
    const CUtensorMap& qkv;
    Job& job;
    int H, G;
    int round = 0;

    __device__ __forceinline__ void work(const Item& item) {
        const bool wide = item.wide();
        for (int g = item.head; g < item.head + item.heads; g += item.units()) {
            mbarrier_wait(at.taken(), (round++ & 1) ^ 1);
            job = {item.slice.row, item.slice.start, item.slice.end, g, wide};
            const int units = wide ? 2 : item.heads;
            mbarrier_arrive_expect_tx(at.posted(), 2 * units * P::UNIT_BYTES);
            for (int w = 0; w < units; w++) {
                const int row = job.first(w), head = H + g + (wide ? 0 : w);
                load_unit<D>(at.keys() + w * PANEL, SLICE_PANEL, qkv, head, row, at.posted());
                load_unit<D>(at.values() + w * PANEL, SLICE_PANEL, qkv, head + G, row, at.posted());
            }
        }
    }
};

// Tiles of the queries that see them, head by head; where warpgroups have a head each, by turns.
template <int D>
struct QueryProducer {
    using P = Places<D>;
    const P& at;
    const CUtensorMap &qkv, &dout, &out;
    Stage* tiles;
    int H, G, left, right;
    int tile = 0;

    __device__ __forceinline__ void load(const Stage& next) {
        const bool whole = next.flags & Stage::WHOLE;
        const unsigned full = at.full(tile);
        mbarrier_wait(at.empty(tile), P::lap(tile) ^ 1);
        tiles[tile % P::STAGES] = next;
        mbarrier_arrive_expect_tx(full, (whole ? 3 : 2) * P::UNIT_BYTES);
        load_unit<D>(at.queries(tile), PANEL, qkv, next.head, next.row, full);
        load_unit<D>(at.douts(tile), PANEL, dout, next.head, next.row, full);
        if (whole) load_unit<D>(at.outs(tile), PANEL, out, next.head, next.row, full);
        tile++;
    }
    __device__ __forceinline__ void work(const Item& item) {
        const Slice& slice = item.slice;
        const int group = H / G, middle = slice.row + UNIT, units = item.units();
        const int first = max(slice.start, slice.row - right), last = min(slice.end, item.end() + left);
        const bool whole = slice.end - slice.start <= ROWS, wide = item.wide();
        int flags = Stage::FIRST + (whole ? Stage::WHOLE : 0) + (wide ? Stage::WIDE : 0);
        for (int g = item.head; g < item.head + item.heads; g += units, flags |= Stage::FIRST) {
            int row = first, h = g * group, w = 0;
#pragma unroll 1
            for (int more = group * ceil_div(last - first, UNIT) * units - 1; more >= 0; more--) {
                // Which warpgroups' keys any of these queries sees.
                const bool low = row < min(slice.end, middle + left), high = row + UNIT > max(slice.start, middle - right);
                const int works = !wide ? 1 << w : low + 2 * high;
                load({row, slice.end, h + w * group, flags | works | (more == 0 ? Stage::LAST : 0) | more % 2 * Stage::ODD});
                flags &= ~Stage::FIRST;
                if (++w < units) continue;
                w = 0, row += UNIT;
                if (row >= last) row = first, h++;
            }
        }
    }
    __device__ __forceinline__ void finish() {
        mbarrier_wait(at.empty(tile), P::lap(tile) ^ 1);
        tiles[tile % P::STAGES] = {0, 0, END, 0};
        mbarrier_arrive(at.full(tile));
    }
};

// lse and delta of half of a tile's queries, one a lane: of the whole text's computed, else what the queries' kernel left.
template <int D>
__device__ __forceinline__ void statistics(const Places<D>& at, const Stage* tiles, const float* rows, const float* lse, int half,
                                           int N, int H) {
    using P = Places<D>;
    const int lane = threadIdx.x % 32, r = 32 * half + lane, pairs = (N + 1) / 2 * 2;
    for (int n = 0;; n++) {
        mbarrier_wait(at.full(n), P::lap(n));
        const Stage tile = tiles[n % P::STAGES].here();
        if (tile.head == END) break;
        const int row = tile.row + r;
        float of = 0, delta = 0;
        if (!(tile.flags & Stage::WHOLE)) {
            if (row < tile.end) {
                const float2 both = reinterpret_cast<const float2*>(rows)[size_t(tile.head) * pairs + row];
                of = both.x, delta = both.y;
            }
        } else {
            if (row < tile.end) of = lse[size_t(row) * H + tile.head] * LOG2E;
#pragma unroll 4
            for (int k = 0; k < D / BF16S; k++) {
                const unsigned from = k / 8 * PANEL + r * 128 + ((k % 8 ^ r % 8) << 4);
                float a[BF16S], b[BF16S];
                widen(a, ld_shared(at.douts(n) + from));
                widen(b, ld_shared(at.outs(n) + from));
#pragma unroll
                for (int j = 0; j < BF16S; j++) delta += a[j] * b[j];
            }
        }
        st_shared(at.stats(n) + 4 * r, of);
        st_shared(at.stats(n) + 4 * (UNIT + r), row < tile.end ? delta : 0.0f);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(at.known(n)), mbarrier_arrive(at.empty(n));
    }
}

template <int D>
struct Consumer {
    using P = Places<D>;
    P at;
    const CUtensorMap& map;
    bf16* dqkv;
    const Stage* tiles;
    const Job& job;
    const Draw& dropout;
    int H, G, left, right;
    unsigned settled;
    int n = 0, step = 0;
    bool begun = false;
    // Of the turn at hand.
    int thread, w;
    Stage tile;

    __device__ __forceinline__ void arrive(unsigned barrier) const {
        __syncwarp();
        if (thread % 32 == 0) mbarrier_arrive(barrier);
    }
    // Two neighbouring queries' lse, or delta.
    __device__ __forceinline__ float2 stat(int which, int j) const {
        float2 x;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(x.x), "=f"(x.y)
                     : "r"(at.stats(n) + 4 * (which * UNIT + 8 * j + 2 * (thread % 4)))
                     : "memory");
        return x;
    }
    // dq is of both warpgroups' keys.
    __device__ __forceinline__ bool together() const {
        return (tile.flags & (Stage::WIDE | Stage::WHOLE)) == (Stage::WIDE | Stage::WHOLE);
    }
    __device__ __forceinline__ void meet() const {
        if (together()) barrier_sync(1, 128 * CONSUMERS);
        else barrier_warpgroup(2 + w);
    }
    // Hides what keys do not see; seen from a key, the mask is that of a query with left and right exchanged.
    template <int COLUMNS>
    __device__ __forceinline__ void mask(float (&s)[COLUMNS / 2]) const {
        const int first = job.first(w), last = job.last(w);
        const Range common = {max(job.start, last - right), min(job.end, first + left + 1)};
        if (last - first == UNIT - 1 && common.holds(tile.row, COLUMNS)) return;
        Range sees[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int key = first + thread % 128 / 32 * 16 + thread % 32 / 4 + 8 * half;
            sees[half].lo = max(job.start, key - right);
            sees[half].hi = key <= last ? min(job.end, key + left + 1) : sees[half].lo;
        }
        hide(s, tile.row + thread % 4 * 2, sees);
    }
    // dk += dsᵀ q, of the warpgroup's keys and so many queries.
    template <int QUERIES>
    __device__ __forceinline__ void multiply_queries(float (&dk)[D / 2]) const {
        const bytes64 a = wgmma_descriptor(at.ds(step) + w * PANEL), b = wgmma_descriptor(at.queries(n), PANEL);
#pragma unroll
        for (int k = 0; k < QUERIES / 16; k++) {
            if constexpr (D == 64) wgmma_m64n64k16<true>(dk, a + (k * 32 >> 4), b + (k * 16 * 128 >> 4), k > 0 || begun);
            else wgmma_m64n128k16<true>(dk, a + (k * 32 >> 4), b + (k * 16 * 128 >> 4), k > 0 || begun);
        }
        wgmma_commit();
    }
    // Some columns of dq = ds k of the tile's queries, of KEYS keys from `from` on.
    template <int KEYS>
    __device__ __forceinline__ void multiply_ds(float (&dq)[32], int from, int panel) const {
        wgmma_pin(dq);
        wgmma_fence();
        const bytes64 a = wgmma_descriptor(at.ds(step) + from, SLICE_PANEL);
        const bytes64 b = wgmma_descriptor(at.keys() + from + panel * SLICE_PANEL, SLICE_PANEL);
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
            wgmma_m64n64k16<true, true>(dq, a + (k * 16 * 128 >> 4), b + (k * 16 * 128 >> 4), k > 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_pin(dq);
    }
    // What ds of all warps gives dq: of one head's keys each warpgroup takes its share of the columns, by turns where there are
    // only 64; of a head each all.
    __device__ __forceinline__ void queries() const {
        const int lane = thread % 32, first = tile.row + thread % 128 / 32 * 16;
        const unsigned staged = at.dq(w) + thread % 128 / 32 * STORED * 128;
        const float scale = 1.0f / sqrtf(float(D));
        const bool wide = tile.flags & Stage::WIDE;
        int keys = same(ceil_div(job.end - job.start, 16)), from = wide ? 0 : w * PANEL;
        if (wide && !(tile.flags & 2)) keys = UNIT / 16;
        if (wide && !(tile.flags & 1)) keys -= UNIT / 16, from = PANEL;
#pragma unroll 1
        for (int panel = 0; panel < P::PANELS; panel++) {
            if (wide && w != (P::PANELS == 1 ? tile.flags / Stage::ODD : panel)) continue;
            // The store before has read its rows.
            if (lane == 0) cp_async_bulk_wait_read();
            __syncwarp();
            float dq[32];
            switch (keys) {
                case 1: multiply_ds<16>(dq, from, panel); break;
                case 2: multiply_ds<32>(dq, from, panel); break;
                case 3: multiply_ds<48>(dq, from, panel); break;
                case 4: multiply_ds<64>(dq, from, panel); break;
                case 5: multiply_ds<80>(dq, from, panel); break;
                case 6: multiply_ds<96>(dq, from, panel); break;
                case 7: multiply_ds<112>(dq, from, panel); break;
                default: multiply_ds<ROWS>(dq, from, panel);
            }
            put_rows(staged, PANEL, dq, scale, scale);
            send_rows<STORED, 1>(map, dqkv, (H + 2 * G) * D, tile.head * D + 64 * panel, first, tile.end, staged, PANEL);
        }
    }
    // One tile of queries, of which the text has COLUMNS at most: by sixteens in what sums over them.
    template <int COLUMNS>
    __device__ __forceinline__ void work(float (&dk)[D / 2], float (&dv)[D / 2]) const {
        constexpr int SUMMED = (COLUMNS + 15) / 16 * 16;
        float s[COLUMNS / 2], dp[COLUMNS / 2];
        unsigned p[SUMMED / 4], ds[4];
        const int own = w * PANEL;
        const float by = LOG2E / sqrtf(float(D));
        wgmma_pin(s);
        wgmma_pin(dp);
        wgmma_fence();
        multiply_keys<D, COLUMNS>(s, wgmma_descriptor(at.keys() + own), SLICE_PANEL, wgmma_descriptor(at.queries(n)), PANEL);
        multiply_keys<D, COLUMNS>(dp, wgmma_descriptor(at.values() + own), SLICE_PANEL, wgmma_descriptor(at.douts(n)), PANEL);
        KeptOfKeys kept = {ALL};
        const int group = (job.first(w) - job.start) / BF16S + thread % 128 / 32 * 2;
        if (dropout.least) kept = KeptOfKeys::draw<COLUMNS>(dropout, tile.row, tile.head, group);
        settle(settled + 4 * thread, __uint_as_float(kept.bits));
        mbarrier_wait(at.known(n), P::lap(n));
        wgmma_wait<1>();
        wgmma_pin(s);
        mask<COLUMNS>(s);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            const float2 of = stat(0, j);
#pragma unroll
            for (int i = 0; i < 4; i++) s[4 * j + i] = exp2_fast(s[4 * j + i] * by - (i % 2 ? of.y : of.x));
        }
        unsigned all = 0;
#pragma unroll
        for (int j = 0; j < COLUMNS / 2; j++) all ^= __float_as_uint(s[j]);
        settle(settled + 4 * thread, __uint_as_float(all));
        wgmma_wait<0>();
        wgmma_pin(dp);
        const int lane = thread % 32, to = at.ds(step) + own + thread % 128 / 32 * 16 * 128 + lane % 16 * 128;
#pragma unroll
        for (int j = 0; j < SUMMED / 8; j++) {
            if (j == COLUMNS / 8) {
                p[2 * j] = p[2 * j + 1] = ds[2] = ds[3] = 0;
            } else {
                const float2 less = stat(1, j);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float *x = s + 4 * j + 2 * half, *y = dp + 4 * j + 2 * half;
                    float d[2] = {y[0], y[1]};
                    unsigned& both = p[2 * j + half];
                    both = narrow(x[0], x[1]);
                    if (dropout.least) {
                        both &= kept.both(j, half);
                        for (int i = 0; i < 2; i++) d[i] = masked(d[i], kept.all(j, half, i)) * dropout.scale;
                    }
                    ds[2 * (j % 2) + half] = narrow(x[0] * (d[0] - less.x), x[1] * (d[1] - less.y));
                }
            }
            if (j % 2) stmatrix_x4(to + (((j - 1 + lane / 16) ^ lane % 8) << 4), ds[0], ds[1], ds[2], ds[3]);
        }
        fence_proxy_async();
        meet();
        wgmma_pin(p);
        wgmma_pin(dv);
        wgmma_pin(dk);
        wgmma_fence();
        multiply_values<D>(dv, p, wgmma_descriptor(at.douts(n), PANEL), begun);
        multiply_queries<SUMMED>(dk);
        wgmma_wait<0>();
        wgmma_pin(p);
        wgmma_pin(dv);
        wgmma_pin(dk);
    }
    // dk and dv take the place of the keys and values, which nothing reads any more.
    __device__ __forceinline__ void store(const float (&dk)[D / 2], const float (&dv)[D / 2]) const {
        const int warp = thread % 128 / 32, first = job.first(w) + 16 * warp, head = H + job.head + (job.wide ? 0 : w);
        const unsigned to = at.keys() + w * PANEL + warp * STORED * 128, apart = at.values() - at.keys();
        const float scale = 1.0f / sqrtf(float(D));
        meet();
        put_rows(to, SLICE_PANEL, dk, scale, scale);
        put_rows(to + apart, SLICE_PANEL, dv, dropout.scale, dropout.scale);
        send_rows<STORED, P::PANELS>(map, dqkv, (H + 2 * G) * D, head * D, first, job.end, to, SLICE_PANEL);
        send_rows<STORED, P::PANELS>(map, dqkv, (H + 2 * G) * D, (head + G) * D, first, job.end, to + apart, SLICE_PANEL);
        if (thread % 32 == 0) cp_async_bulk_wait_read();
    }
    __device__ __forceinline__ void run() {
        float dk[D / 2], dv[D / 2];
        thread = anew(threadIdx.x), w = same(thread / 128);
        // Products of dq read whole rows of dsᵀ, of which a warp writes what a text has: what is behind it is to be something.
        const unsigned rows = w * PANEL + thread % 128 / 32 * 16 * 128 + thread % 32 * 4;
        for (int i = 0; i < 16 * 128; i += 32 * 4) st_shared(at.ds(0) + rows + i, 0), st_shared(at.ds(1) + rows + i, 0);
        __syncwarp();
        for (int round = 0;; n++) {
            thread = anew(threadIdx.x), w = same(thread / 128);
            mbarrier_wait(at.full(n), P::lap(n));
            tile = tiles[n % P::STAGES].here();
            if (tile.head == END) break;
            if (tile.flags & Stage::FIRST) mbarrier_wait(at.posted(), round++ & 1), step = 0, begun = false;
            const bool works = tile.flags >> w & 1;
            if (works) by_eights<UNIT>(tile.end - tile.row, [&](auto queries) { work<queries.value>(dk, dv); }), begun = true;
            else if (together()) meet();
            arrive(at.empty(n));
            if (works || together()) {
                if (tile.flags & Stage::WHOLE) queries();
                step++;
            }
            if (!(tile.flags & Stage::LAST)) continue;
            if (begun) store(dk, dv);
            arrive(at.taken());
        }
    }
};

template <int D>
__device__ __forceinline__ void keys(const CUtensorMap& map, bf16* dqkv, const CUtensorMap& dout, const CUtensorMap& out,
                                     const float* rows, const float* lse, const CUtensorMap& qkv, const int* starts, int N, int B,
                                     int H, int G, int heads, const Reach& reach, const Draw& dropout) {
    using P = Places<D>;
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ Slices<ROWS, THREADS> slices;
    __shared__ Job job;
    __shared__ Stage tiles[P::STAGES];
    __shared__ alignas(16) float stats[P::STAGES * 2 * UNIT];
    __shared__ alignas(8) unsigned long long barriers[P::BARRIERS];
    __shared__ float settled[128 * CONSUMERS];
    const P at = {(shared_address(memory) + 1023) & ~1023u, shared_address(barriers), shared_address(stats)};
    if (threadIdx.x == 0) {
        mbarrier_init(at.posted(), 1), mbarrier_init(at.taken(), 4 * CONSUMERS);
        for (int i = 0; i < P::STAGES; i++)
            mbarrier_init(at.full(i), 1), mbarrier_init(at.known(i), 2), mbarrier_init(at.empty(i), 4 * CONSUMERS + 2);
        fence_mbarrier_init();
    }
    slices.count(starts, B);
    __syncthreads();
    const int warpgroup = same(threadIdx.x / 128), warp = same(threadIdx.x / 32) - 4 * CONSUMERS;
    if (warpgroup == CONSUMERS) {
        setmaxnreg_dec<40>();
        if (warp == 0) {
            KeyProducer<D> producer = {at, qkv, job, H, G};
            Item::each(slices, starts, B, G, heads, [&](const Item& item) { producer.work(item); });
        } else if (warp == 1) {
            QueryProducer<D> producer = {at, qkv, dout, out, tiles, H, G, reach.left, reach.right};
            Item::each(slices, starts, B, G, heads, [&](const Item& item) { producer.work(item); });
            if (threadIdx.x % 32 == 0) producer.finish();
            __syncwarp();
        } else {
            statistics<D>(at, tiles, rows, lse, warp - 2, N, H);
        }
    } else {
        setmaxnreg_inc<232>();
        Consumer<D> consumer = {at, map, dqkv, tiles, job, dropout, H, G, reach.left, reach.right,
                                   shared_address(settled)};
        consumer.run();
    }
}

KERNELS(attention_bwd_keys_sm90, _d, D, (64, 128), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap stored, bf16* __restrict__ dqkv, const __grid_constant__ CUtensorMap dout,
         const __grid_constant__ CUtensorMap out, const float* __restrict__ rows, const float* __restrict__ lse,
         const __grid_constant__ CUtensorMap qkv, const int* __restrict__ starts, const Extent extent, int heads,
         const Reach reach, const Draw dropout) {
            keys<D>(stored, dqkv, dout, out, rows, lse, qkv, starts, extent.N, extent.B, extent.H, extent.G, heads, reach, dropout);
        })
