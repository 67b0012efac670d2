// attention_bwd_queries_sm90: attention_bwd.cu's function on Hopper, by wgmma and TMA: dq of long texts, and delta of their rows.
//
//   p[i,j] = exp(q[i,h] · k[j,g] / sqrt(D) - lse[i,h]),  delta[i,h] = dout[i,h] · out[i,h],  with the forward's mask
//   ds[i,j] = p[i,j] (drop(dout[i,h] · v[j,g]) - delta[i,h]),  dq[i,h] = sum_j ds[i,j] k[j,g] / sqrt(D)
//   for the rows i of texts of more than ROWS rows; of others attention_bwd_keys_sm90 finds dq and delta itself
//
// Shapes    dqkv, qkv [N, (H + 2 G) D] bf16, dout, out [N, H D] bf16, lse [N, H] f32, starts [B + 1] i32 as in the forward; rows
//           [H, P, 2] f32 is workspace, P being N rounded up to even: lse in units of log 2, and delta, of long texts alone.
//           Maps: boxes of 64 columns by UNIT rows of qkv, dout and out, by STORED of dqkv, under the 128-byte swizzle.
// Plan      An item is a slice of ROWS = 128 rows of a long text and a query head. Blocks are persistent and take items in turn,
//           the last first. The first warp of warpgroup 2 is the producer: q, dout and out of an item, and tiles of UNIT = 64
//           keys and values through a ring of 384 / D stages. Warpgroups 0 and 1 own a half of the slice each, and let tiles go
//           that none of their rows sees. S and dout vᵀ of a tile are multiplied together; exponentials run under the second, and
//           ds, which stays in registers as the A operand, is multiplied by the keys under what is first of the next tile. A
//           job's q and dout are sent for before the one before it is stored; dq goes out from where out was, by TMA, 16 rows at
//           a time, at a text's end by vectors.
// Cost      flops: 24576 D a tile, half of a slice and head, of the tiles from the first to the last that the half sees. Bytes,
//           short of rows past N: 384 D + 1024 a half and head, 256 D a tile of a slice and head, 2 D + 8 a row and head; 4 B + 4
//           min(B, THREADS) a block and 8 an item of starts, more where B > THREADS.
// Numerics  As in attention_bwd.cu: scores, p and ds in f32, exponentials base 2 by ex2.approx; ds is rounded to bf16 for its
//           product, dq once at the end. Bits depend neither on the grid nor on what else is in the pack.
// Hazards   As in attention_fwd_sm90.cu. `out` has a turn of its own at the barrier of a job's rows, since dq leaves from its
//           place.
// Budget    56 registers a thread for the producer, 224 for a consumer; one block a multiprocessor: 768 D bytes of q, dout and
//           out, 384 / D stages of 256 D bytes.
// Limits    D of 64 and 128, qkv, dqkv, dout and out at 16-byte boundaries; N below 2^30. A number that is not finite spreads to
//           the rows that meet it in a box.
// Source    Dao 2023, arXiv:2307.08691, section 3.1; warp specialisation: Shah et al. 2024, arXiv:2407.08608.
#include "attention_sm90.cuh"

EXPORT constexpr int ROWS = 128;
EXPORT constexpr int UNIT = 64;
EXPORT constexpr int STORED = 16;
EXPORT constexpr int THREADS = 384;
EXPORT constexpr int SHARED_64 = 148480;
EXPORT constexpr int SHARED_128 = 197632;

constexpr int CONSUMERS = 2;
// A panel of 64 columns of UNIT rows.
constexpr int PANEL = UNIT * 128;

// `head` of what comes next: nothing more, nothing but to let tiles go.
constexpr int END = -1, NONE = -2;

template <int D>
struct Places {
    static constexpr int PANELS = D / 64, STAGES = 384 / D, UNIT_BYTES = PANELS * PANEL;
    static constexpr int BARRIERS = 3 * CONSUMERS + 2 * STAGES;
    static constexpr int BYTES = 1024 + (3 * CONSUMERS + 2 * STAGES) * UNIT_BYTES;
    unsigned first, barriers;

    __device__ __forceinline__ unsigned queries(int w) const { return first + w * UNIT_BYTES; }
    __device__ __forceinline__ unsigned douts(int w) const { return queries(CONSUMERS + w); }
    // Of the forward's out; then of dq.
    __device__ __forceinline__ unsigned outs(int w) const { return queries(2 * CONSUMERS + w); }
    __device__ __forceinline__ unsigned keys(int n) const { return queries(3 * CONSUMERS + n % STAGES); }
    __device__ __forceinline__ unsigned values(int n) const { return keys(n % STAGES) + STAGES * UNIT_BYTES; }
    __device__ __forceinline__ unsigned posted(int w) const { return barriers + 8 * w; }
    __device__ __forceinline__ unsigned taken(int w) const { return posted(CONSUMERS + w); }
    __device__ __forceinline__ unsigned stored(int w) const { return posted(2 * CONSUMERS + w); }
    __device__ __forceinline__ unsigned full(int n) const { return posted(3 * CONSUMERS + n % STAGES); }
    __device__ __forceinline__ unsigned empty(int n) const { return full(n) + 8 * STAGES; }
    static __device__ __forceinline__ int lap(int n) { return n / STAGES & 1; }
};
static_assert(Places<64>::BYTES == SHARED_64 && Places<128>::BYTES == SHARED_128, "the host launches by them");

// UNIT rows of one head against `tiles` tiles of UNIT keys from `key` on.
struct alignas(16) Job {
    int row, start, end, head, key, tiles;

    __device__ __forceinline__ Job here() const {
        return {same(row), same(start), same(end), same(head), same(key), same(tiles)};
    }
};

template <int D>
struct Producer {
    using P = Places<D>;
    const P& at;
    const CUtensorMap &qkv, &dout, &out;
    Job* jobs;
    int H, G, left, right;
    int tile = 0, round = 0;

    // `out` comes later: dq of the job before may still be on its way from its place.
    __device__ __forceinline__ void post(int w, const Job& job) const {
        mbarrier_wait(at.taken(w), (round & 1) ^ 1);
        jobs[w] = job;
        if (job.head >= 0) {
            mbarrier_arrive_expect_tx(at.posted(w), 2 * P::UNIT_BYTES);
            load_unit<D>(at.queries(w), PANEL, qkv, job.head, job.row, at.posted(w));
            load_unit<D>(at.douts(w), PANEL, dout, job.head, job.row, at.posted(w));
        } else {
            mbarrier_arrive(at.posted(w));
        }
    }
    __device__ __forceinline__ void post_out(int w, int head, int row) const {
        mbarrier_wait(at.stored(w), (round & 1) ^ 1);
        if (head >= 0) {
            mbarrier_arrive_expect_tx(at.posted(w), P::UNIT_BYTES);
            load_unit<D>(at.outs(w), PANEL, out, head, row, at.posted(w));
        } else {
            mbarrier_arrive(at.posted(w));
        }
    }
    __device__ __forceinline__ void work(const Slice& slice, int head) {
        const int end = min(slice.row + ROWS, slice.end), other = slice.row + UNIT < end ? head : NONE;
        const int seen = max(slice.start, slice.row - left), until = min(slice.end, end + right), g = H + head / (H / G);
        const int key = slice.start + ((seen - slice.start) & ~(BF16S - 1)), tiles = ceil_div(until - key, UNIT);
        post(0, {slice.row, slice.start, slice.end, head, key, tiles});
        post(1, {slice.row + UNIT, slice.start, slice.end, other, key, tiles});
#pragma unroll 1
        for (int i = 0; i < tiles; i++, tile++) {
            mbarrier_wait(at.empty(tile), P::lap(tile) ^ 1);
            mbarrier_arrive_expect_tx(at.full(tile), 2 * P::UNIT_BYTES);
            load_unit<D>(at.keys(tile), PANEL, qkv, g, key + i * UNIT, at.full(tile));
            load_unit<D>(at.values(tile), PANEL, qkv, g + G, key + i * UNIT, at.full(tile));
            if (i == 0) post_out(0, head, slice.row), post_out(1, other, slice.row + UNIT);
        }
        round++;
    }
    __device__ __forceinline__ void finish() const {
        for (int w = 0; w < CONSUMERS; w++) post(w, {0, 0, 0, END}), mbarrier_arrive(at.posted(w));
    }
};

template <int D>
struct Consumer {
    using P = Places<D>;
    const P& at;
    const CUtensorMap& map;
    bf16* dqkv;
    float* rows;
    const float* lse;
    const Draw& dropout;
    int N, H, G, left, right, w;
    unsigned settled;
    int tile = 0;
    Job job;
    int row, last;
    Range sees[2], common;

    __device__ __forceinline__ void arrive(unsigned barrier) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
    }
    // Lets a tile go that none of these rows sees, once it is there: a barrier's phases are told apart by their parity alone.
    __device__ __forceinline__ void skip() {
        mbarrier_wait(at.full(tile), P::lap(tile));
        arrive(at.empty(tile));
        tile++;
    }
    // dout · out of the thread's two rows. Neighbours in a column start with different halves of a panel's rows.
    __device__ __forceinline__ void deltas(float (&delta)[2]) const {
        const int r = row - job.row, t = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = 0;
#pragma unroll
            for (int k = 0; k < D / 32; k++) {
                const int chunk = 4 * ((k + r) % 2) + t;
                const unsigned from = k / 2 * PANEL + (r + 8 * half) * 128 + ((chunk ^ r % 8) << 4);
                float a[BF16S], b[BF16S];
                widen(a, ld_shared(at.douts(w) + from));
                widen(b, ld_shared(at.outs(w) + from));
#pragma unroll
                for (int j = 0; j < BF16S; j++) sum += a[j] * b[j];
            }
            sum += __shfl_xor_sync(ALL, sum, 1);
            delta[half] = sum + __shfl_xor_sync(ALL, sum, 2);
        }
    }
    // All tiles of a job that its rows see.
    __device__ __forceinline__ void go(float (&dq)[D / 2], int from, int to, const float (&of)[2], const float (&delta)[2]) {
        float s[UNIT / 2], dp[UNIT / 2];
        unsigned ds[UNIT / 4];
        const float by = LOG2E / sqrtf(float(D));
#pragma unroll 1
        for (int i = from; i < to; i++, tile++) {
            const int key = job.key + i * UNIT;
            mbarrier_wait(at.full(tile), P::lap(tile));
            wgmma_pin(s);
            wgmma_pin(dp);
            wgmma_pin(dq);
            wgmma_pin(ds);
            wgmma_fence();
            multiply_keys<D, UNIT>(s, wgmma_descriptor(at.queries(w)), PANEL, wgmma_descriptor(at.keys(tile)), PANEL);
            multiply_keys<D, UNIT>(dp, wgmma_descriptor(at.douts(w)), PANEL, wgmma_descriptor(at.values(tile)), PANEL);
            Kept kept = {ALL, ALL};
            if (dropout.least) kept = Kept::draw<UNIT>(dropout, row, job.head, (key - job.start) / BF16S);
            settle(settled, __uint_as_float(kept.even ^ kept.odd));
            wgmma_wait<1>();
            wgmma_pin(s);
            wgmma_pin(dq);
            wgmma_pin(ds);
            if (i > from) arrive(at.empty(tile - 1));
            if (!common.holds(key, UNIT)) hide(s, key + threadIdx.x % 4 * 2, sees);
            unsigned all = 0;
#pragma unroll
            for (int j = 0; j < UNIT / 2; j++) {
                s[j] = exp2_fast(s[j] * by - of[j / 2 % 2]);
                all ^= __float_as_uint(s[j]);
            }
            settle(settled, __uint_as_float(all));
            wgmma_wait<0>();
            wgmma_pin(dp);
#pragma unroll
            for (int j = 0; j < UNIT / 2; j++) {
                const float d = dropout.least ? masked(dp[j], kept.all(j / 4, j / 2 % 2, j % 2)) * dropout.scale : dp[j];
                s[j] *= d - delta[j / 2 % 2];
            }
            pack(ds, s);
            wgmma_pin(dq);
            wgmma_pin(ds);
            wgmma_fence();
            multiply_values<D>(dq, ds, wgmma_descriptor(at.keys(tile), PANEL), i > from);
        }
        arrive(at.taken(w));
        wgmma_wait<0>();
        wgmma_pin(dq);
        wgmma_pin(ds);
        arrive(at.empty(tile - 1));
    }
    __device__ __forceinline__ void work() {
        const int lane = threadIdx.x % 32, pairs = (N + 1) / 2 * 2;
        float of[2], delta[2], dq[D / 2];
        last = min(job.row + UNIT, job.end) - 1;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = min(row + 8 * half, last);
            sees[half] = {max(job.start, r - left), min(job.end, r + right + 1)};
            of[half] = lse[size_t(r) * H + job.head] * LOG2E;
        }
        common = {max(job.start, last - left), min(job.end, job.row + right + 1)};
        deltas(delta);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (lane % 4 == 0 && row + 8 * half <= last)
                reinterpret_cast<float2*>(rows)[size_t(job.head) * pairs + row + 8 * half] = make_float2(of[half], delta[half]);
        }
        const int from = (max(job.start, job.row - left) - job.key) / UNIT;
        const int to = ceil_div(min(job.end, last + right + 1) - job.key, UNIT);
        for (int i = 0; i < from; i++) skip();
        go(dq, from, to, of, delta);
        for (int i = to; i < job.tiles; i++) skip();
        // Each warp has read its own rows of out alone, which make room for those of dq.
        const int warp = threadIdx.x % 128 / 32;
        const unsigned staged = at.outs(w) + warp * STORED * 128;
        const float scale = 1.0f / sqrtf(float(D));
        put_rows(staged, PANEL, dq, scale, scale);
        send_rows<STORED, P::PANELS>(map, dqkv, (H + 2 * G) * D, job.head * D, row - lane / 4, job.end, staged, PANEL);
        if (lane == 0) cp_async_bulk_wait_read();
    }
    __device__ __forceinline__ void run(const Job& posted) {
        for (int round = 0;; round++) {
            mbarrier_wait(at.posted(w), round & 1);
            job = posted.here();
            if (job.head == END) break;
            row = job.row + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
            if (job.head == NONE) {
                arrive(at.taken(w));
                for (int i = 0; i < job.tiles; i++) skip();
            } else {
                work();
            }
            arrive(at.stored(w));
        }
    }
};

template <int D>
__device__ __forceinline__ void queries(const CUtensorMap& map, bf16* dqkv, float* rows, const CUtensorMap& dout,
                                        const CUtensorMap& out, const float* lse, const CUtensorMap& qkv, const int* starts,
                                        int N, int B, int H, int G, const Reach& reach, const Draw& dropout) {
    using P = Places<D>;
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ Slices<ROWS, THREADS, ROWS> slices;
    __shared__ Job jobs[CONSUMERS];
    __shared__ alignas(8) unsigned long long barriers[P::BARRIERS];
    __shared__ float settled[128 * CONSUMERS];
    const P at = {(shared_address(memory) + 1023) & ~1023u, shared_address(barriers)};
    if (threadIdx.x == 0) {
        for (int w = 0; w < CONSUMERS; w++)
            mbarrier_init(at.posted(w), 2), mbarrier_init(at.taken(w), 4), mbarrier_init(at.stored(w), 4);
        for (int i = 0; i < P::STAGES; i++) mbarrier_init(at.full(i), 1), mbarrier_init(at.empty(i), 4 * CONSUMERS);
        fence_mbarrier_init();
    }
    slices.count(starts, B);
    __syncthreads();
    const int warpgroup = same(threadIdx.x / 128);
    if (warpgroup == CONSUMERS) {
        setmaxnreg_dec<56>();
        if (threadIdx.x / 32 == 4 * CONSUMERS) {
            Producer<D> producer = {at, qkv, dout, out, jobs, H, G, reach.left, reach.right};
            const int items = slices.before[THREADS] * H;
            // Under a causal mask the last rows see most: they begin first.
            for (int item = items - 1 - int(blockIdx.x); item >= 0; item -= gridDim.x) {
                const Slice slice = slices.find(starts, B, item / H);
                if (threadIdx.x % 32 == 0) producer.work(slice, item % H);
                __syncwarp();
            }
            if (threadIdx.x % 32 == 0) producer.finish();
            __syncwarp();
        }
    } else {
        setmaxnreg_inc<224>();
        Consumer<D> consumer = {at, map, dqkv, rows, lse, dropout, N, H, G, reach.left, reach.right, warpgroup,
                                     shared_address(settled + threadIdx.x)};
        consumer.run(jobs[warpgroup]);
    }
}
KERNELS(attention_bwd_queries_sm90, _d, D, (64, 128), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap stored, bf16* __restrict__ dqkv, float* __restrict__ rows,
         const __grid_constant__ CUtensorMap dout, const __grid_constant__ CUtensorMap out, const float* __restrict__ lse,
         const __grid_constant__ CUtensorMap qkv, const int* __restrict__ starts, const Extent extent, const Reach reach,
         const Draw dropout) {
            queries<D>(stored, dqkv, rows, dout, out, lse, qkv, starts, extent.N, extent.B, extent.H, extent.G, reach, dropout);
        })
