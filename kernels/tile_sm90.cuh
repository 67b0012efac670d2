// The matrix product of Hopper (sm_90a): d[n,m] = sum_k a[n,k] b[k,m] in bf16 with f32 sums, by TMA, mbarriers and wgmma. What
// differs between ops is which stages there are, what happens to the sums of the first ones, and the epilogue's arithmetic.
//
// Roles     A block is 384 threads: warp 0 loads, warps 1 and 2 store, each for one of the two consumers; warpgroups 1 and 2
//           are those, 64 rows of the tile each. Blocks are persistent; cluster c takes tiles c, c + clusters, ... of an order
//           that walks GROUP rows of tiles column by column, so that those at work share what they read.
// Ring      STAGES of 64 of the depth: a [128 rows][64], and b [COLUMNS][64], or, ACROSS, b as it lies in memory, panels of
//           64 columns [64 deep][64]; under the 128-byte swizzle. CLUSTER blocks lie one below the other: each loads its own
//           a and a CLUSTER-th of b, which goes to all. Numbers of PLANES bf16, one below the other in memory, lie so in a
//           stage, too; where a lies DOWN, its rows along the depth, it has panels of 64 columns as b has. A GATED tile
//           has OUT = COLUMNS / 2 columns of each half of b's. A stage is full when all its bytes are there, zeros past the ends
//           of arrays included; empty when the consumers of all blocks that got a part of b from this one have let go of it.
// Epilogue  Panels of 64 x 64 through SLOTS in shared memory: `ready` means that a slot may be written, and holds the panel of
//           the residual where there is one; `staged` that it is written. Stores and those loads run under the next tile.
// Sums      A row's terms are added in the same order whatever the tile: first stage to last, k-step by k-step.
//
// Hazards   Waits end in a fault after seconds (hopper.cuh). The full barrier expects its bytes before the copies start. With
//           a cluster no block starts before all barriers are set up, or ends while another may arrive at its own. Written
//           panels are fenced by each writing thread before its warp arrives. The thread that stores also commits and waits
//           until its stores have read a slot, before that is filled again and before the block ends.
// Budget    168 registers a thread at the start, then 40 for the first warpgroup and 232 for each consumer; one block a
//           multiprocessor: STAGES x STAGE + 32 KB of panels + barriers, of 227 KB.
#pragma once
#include "hopper.cuh"
#include "mma.cuh"

// How operands lie: b's rows along the depth, a's too; b in two halves; and which tiles are wanted, those on the diagonal alone.
enum Form { PLAIN = 0, B_ACROSS = 1, A_DOWN = 2, HALVES = 4, ON_DIAGONAL = 8 };

template <int COLUMNS_, int CLUSTER_, int FORM = PLAIN, int PLANES_ = 1>
struct HopperTile {
    static constexpr int ROWS = 128, COLUMNS = COLUMNS_, CLUSTER = CLUSTER_, DEPTH = 64;
    static constexpr bool ACROSS = FORM & B_ACROSS, DOWN = FORM & A_DOWN, GATED = FORM & HALVES, DIAGONAL = FORM & ON_DIAGONAL;
    static constexpr int OUT = GATED ? COLUMNS / 2 : COLUMNS;
    static constexpr int CONSUMERS = 2, THREADS = 128 * (1 + CONSUMERS), GROUP = 16;
    // Bytes of a plane of either, and of a stage.
    static constexpr int PLANES = PLANES_, A = ROWS * DEPTH * 2, B = COLUMNS * DEPTH * 2, STAGE = PLANES * (A + B);
    static constexpr int PANEL = 64 * 64 * 2, PANELS = OUT / 64, SLOTS = 2, PANELS_BYTES = CONSUMERS * SLOTS * PANEL;
    // Of 227 KB: what is left beside panels, barriers and the way to a multiple of 1024.
    static constexpr int STAGES = ((227 << 10) - 1024 - 512 - PANELS_BYTES) / STAGE;
    static constexpr int BARRIERS = 2 * STAGES + 2 * CONSUMERS * SLOTS;
    static constexpr int SHARED = 1024 + STAGES * STAGE + PANELS_BYTES + 8 * BARRIERS;
    // Descriptors count in units of 16 bytes; a k-step of 16 is 32 bytes of a row, or 16 rows.
    static constexpr int K_STEP_A = (DOWN ? 16 * 128 : 32) >> 4, K_STEP_B = (ACROSS ? 16 * 128 : 32) >> 4;
    static_assert(STAGES >= 2 && SHARED <= 227 << 10, "shared memory of a multiprocessor");
    static_assert(!GATED || (CLUSTER == 2 && !ACROSS), "each block of a cluster loads one of the halves");

    // Sums of a consumer.
    using Sums = float[COLUMNS / 2];

    static __device__ __forceinline__ void multiply(Sums& d, bytes64 a, bytes64 b, int keep) {
        if constexpr (COLUMNS == 256) wgmma_m64n256k16<ACROSS, DOWN>(d, a, b, keep);
        else wgmma_m64n128k16<ACROSS, DOWN>(d, a, b, keep);
    }
};

// The output; columns of the diagonal begin at `columns`, and go on as rows do.
struct Extent {
    int rows, columns;
};

// This block's tiles, one after the other.
template <class T>
struct Walk {
    int down, across, start, index, step, row, column;

    __device__ __forceinline__ Walk(const Extent& of, int rank) {
        down = ceil_div(of.rows, T::ROWS * T::CLUSTER), across = T::DIAGONAL ? 1 : ceil_div(of.columns, T::OUT);
        start = T::DIAGONAL ? of.columns : 0;
        index = int(blockIdx.x) / T::CLUSTER - int(gridDim.x) / T::CLUSTER, step = gridDim.x / T::CLUSTER;
        row = rank * T::ROWS, column = 0;
    }
    // Moves on; false where there are no more.
    __device__ __forceinline__ bool next(int rank) {
        index += step;
        const int group = index / (T::GROUP * across), at = index - group * T::GROUP * across;
        const int height = min(T::GROUP, down - group * T::GROUP);
        if (index >= down * across) return false;
        row = ((group * T::GROUP + at % height) * T::CLUSTER + rank) * T::ROWS, column = at / height * T::OUT;
        if (T::DIAGONAL) column = start + row;
        return true;
    }
};

// A place in a ring of COUNT slots, and the parity of its lap.
template <int COUNT>
struct Cursor {
    int slot = 0, lap = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == COUNT) slot = 0, lap ^= 1;
    }
};

// Where things lie in shared memory.
template <class T>
struct Places {
    unsigned ring;
    __device__ __forceinline__ unsigned stage(int i) const { return ring + i * T::STAGE; }
    __device__ __forceinline__ unsigned panel(int consumer, int slot) const {
        return ring + T::STAGES * T::STAGE + (consumer * T::SLOTS + slot) * T::PANEL;
    }
    __device__ __forceinline__ unsigned full(int i) const { return panel(T::CONSUMERS, 0) + 8 * i; }
    __device__ __forceinline__ unsigned empty(int i) const { return full(T::STAGES + i); }
    __device__ __forceinline__ unsigned ready(int consumer, int slot) const {
        return full(2 * T::STAGES + consumer * T::SLOTS + slot);
    }
    __device__ __forceinline__ unsigned staged(int consumer, int slot) const {
        return ready(T::CONSUMERS + consumer, slot);
    }
};

// An operand in memory: the planes of its numbers are `pitch` rows apart.
struct Source {
    const CUtensorMap& map;
    int pitch = 0;
};

// Loads a tile's stage: a's box at `at_a` of the depth, b's at `at_b` of it and, of its rows, for the columns of the output of
// `width` from `column` on.
template <class T>
__device__ __forceinline__ void load_stage(const Places<T>& at, Cursor<T::STAGES>& cursor, const Source& a, const Source& b,
                                           int row, int column, int width, int at_a, int at_b, int rank) {
    const unsigned full = at.full(cursor.slot), to = at.stage(cursor.slot);
    mbarrier_wait(at.empty(cursor.slot), cursor.lap ^ 1);
    mbarrier_arrive_expect_tx(full, T::STAGE);
#pragma unroll 1
    for (int plane = 0; plane < T::PLANES; plane++)
#pragma unroll 1
        for (int p = 0; p < (T::DOWN ? T::ROWS / 64 : 1); p++) {
            const int x = T::DOWN ? row + 64 * p : at_a, y = (T::DOWN ? at_a : row) + plane * a.pitch;
            cp_async_bulk_tensor_load(to + plane * T::A + p * T::PANEL, a.map, x, y, full);
        }
    constexpr unsigned short ALL_BLOCKS = (1 << T::CLUSTER) - 1;
    // This block's part of b: columns, or rows of every panel.
    constexpr int PART = (T::ACROSS ? T::DEPTH : T::COLUMNS) / T::CLUSTER;
    const int first = rank * PART, beside = T::GATED ? rank * width : first;
#pragma unroll 1
    for (int plane = 0; plane < T::PLANES; plane++)
#pragma unroll 1
        for (int p = 0; p < (T::ACROSS ? T::COLUMNS / 64 : 1); p++) {
            const int x = T::ACROSS ? column + 64 * p : at_b, y = T::ACROSS ? at_b + first : column + beside;
            const unsigned there = to + T::PLANES * T::A + plane * T::B + p * T::PANEL + first * 128;
            const int below = y + plane * b.pitch;
            if (T::CLUSTER > 1) cp_async_bulk_tensor_multicast(there, b.map, x, below, full, ALL_BLOCKS);
            else cp_async_bulk_tensor_load(there, b.map, x, below, full);
        }
    cursor.advance();
}

// Fills the ring: `op.ranks` loads the stages of a tile that come before those of the depth.
template <class T, class Op>
__device__ __forceinline__ void load_tiles(const Places<T>& at, const Op& op, int rank) {
    Walk<T> walk(op.extent, rank);
    Cursor<T::STAGES> cursor;
    while (walk.next(rank)) {
        op.ranks(walk.column, [&](int at_a, int at_b) {
            load_stage<T>(at, cursor, {op.low_a()}, {op.low_b()}, walk.row, walk.column, op.extent.columns, at_a, at_b, rank);
        });
        for (int k = 0; k < op.depth; k += T::DEPTH)
            load_stage<T>(at, cursor, {op.a, op.pitch_a()}, {op.b, op.pitch_b()}, walk.row, walk.column, op.extent.columns, k, k,
                          rank);
    }
}

// Hands a consumer its slots, with the residual's panels in them where there is one, and stores what it has staged.
template <class T, class Op>
__device__ __forceinline__ void store_tiles(const Places<T>& at, const Op& op, int rank, int consumer) {
    Walk<T> ahead(op.extent, rank), walk(op.extent, rank);
    Cursor<T::SLOTS> filling, storing;
    int panel = T::PANELS;
    bool more = true;
    const auto fill = [&]() {
        if (panel == T::PANELS) panel = 0, more = more && ahead.next(rank);
        if (!more) return;
        const unsigned ready = at.ready(consumer, filling.slot);
        if (op.adds()) {
            mbarrier_arrive_expect_tx(ready, T::PANEL);
            cp_async_bulk_tensor_load(at.panel(consumer, filling.slot), op.residual(), ahead.column + 64 * panel,
                                      ahead.row + 64 * consumer, ready);
        } else {
            mbarrier_arrive(ready);
        }
        panel++, filling.advance();
    };
    for (int slot = 0; slot < T::SLOTS; slot++) fill();
    while (walk.next(rank))
        for (int p = 0; p < T::PANELS; p++, storing.advance()) {
            mbarrier_wait(at.staged(consumer, storing.slot), storing.lap);
            cp_async_bulk_tensor_store(op.y, walk.column + 64 * p, walk.row + 64 * consumer, at.panel(consumer, storing.slot));
            cp_async_bulk_commit();
            // The store before this one has read its slot; the tile's last is waited for at once, its slot is the next
            // tile's first.
            if (p > 0) {
                cp_async_bulk_wait_read<1>();
                fill();
            }
            if (p == T::PANELS - 1) {
                cp_async_bulk_wait_read<0>();
                fill();
            }
        }
}

// A consumer's view of the ring.
template <class T>
struct Consumer {
    const Places<T>& at;
    int index, thread;
    Cursor<T::STAGES> cursor;
    int held;  // the stage that wgmma under way still read, -1 for none

    __device__ __forceinline__ Consumer(const Places<T>& places)
        : at(places), index(threadIdx.x / 128 - 1), thread(threadIdx.x % 128), held(-1) {}

    // Descriptors of the current stage, once it is full.
    __device__ __forceinline__ void wait() const { mbarrier_wait(at.full(cursor.slot), cursor.lap); }
    __device__ __forceinline__ bytes64 a(int plane = 0) const {
        return wgmma_descriptor(at.stage(cursor.slot) + plane * T::A + index * 64 * 128);
    }
    __device__ __forceinline__ bytes64 b(int plane = 0) const {
        return wgmma_descriptor(at.stage(cursor.slot) + T::PLANES * T::A + plane * T::B, T::ACROSS ? T::PANEL : 16);
    }
    // Commits the products of the current stage, and gives back the one before, whose products are then over.
    __device__ __forceinline__ void advance() {
        wgmma_commit();
        wgmma_wait<1>();
        release();
        held = cursor.slot;
        cursor.advance();
    }
    // Waits for all products, and gives their stage back.
    __device__ __forceinline__ void drain() {
        wgmma_wait<0>();
        release();
        held = -1;
    }
    __device__ __forceinline__ unsigned stage() const { return at.stage(cursor.slot); }
    // Gives the current stage back once all warps of the consumer have read what they wanted of it.
    __device__ __forceinline__ void leave() {
        barrier_warpgroup(1 + index);
        pass();
    }
    // Gives the current stage back, whose products are over.
    __device__ __forceinline__ void pass() {
        held = cursor.slot;
        release();
        held = -1;
        cursor.advance();
    }
    __device__ __forceinline__ void release() const {
        if (held < 0 || thread >= T::CLUSTER) return;
        if (T::CLUSTER > 1) mbarrier_arrive(at.empty(held), thread);
        else mbarrier_arrive(at.empty(held));
    }
};

// Adds the products of k-steps `from` to `to` of the current stage; d starts from nothing unless `keep`.
template <class T>
__device__ __forceinline__ void add_steps(typename T::Sums& d, Consumer<T>& consumer, int from, int to, bool keep) {
    consumer.wait();
    const bytes64 a = consumer.a(), b = consumer.b();
    wgmma_pin(d);
#pragma unroll 1
    for (int k = from; k < to; k++) {
        wgmma_fence();
        T::multiply(d, a + k * T::K_STEP_A, b + k * T::K_STEP_B, keep || k > from);
    }
    consumer.advance();
}

// The products of the whole current stage; d starts from nothing unless `keep`.
template <class T>
__device__ __forceinline__ void add_stage(typename T::Sums& d, Consumer<T>& consumer, bool keep) {
    consumer.wait();
    const bytes64 a = consumer.a(), b = consumer.b();
    wgmma_pin(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < T::DEPTH / 16; k++) T::multiply(d, a + k * T::K_STEP_A, b + k * T::K_STEP_B, keep || k);
    consumer.advance();
}

// Adds `stages` whole stages to d, at least one, which starts from nothing unless `keep`. The first stands alone: sums that came
// from elsewhere must not meet those that wgmma still write at the head of a loop.
template <class T>
__device__ __forceinline__ void add_stages(typename T::Sums& d, Consumer<T>& consumer, int stages, bool keep) {
    add_stage(d, consumer, keep);
#pragma unroll 1
    for (int i = 1; i < stages; i++) add_stage(d, consumer, true);
    consumer.drain();
    wgmma_pin(d);
}

// Adds `stages` stages of numbers of three planes to d, smallest products first. A tensor core may cut what it adds to: HALF of
// a stage is summed by itself, and joins d by IEEE addition.
template <class T>
__device__ __forceinline__ void add_exactly(typename T::Sums& d, Consumer<T>& consumer, int stages) {
    static_assert(T::PLANES == 3, "x = planes 0 + 1 + 2, six of whose nine products are above 2^-26");
    constexpr int HALF = T::DEPTH / 2;
#pragma unroll 1
    for (int i = 0; i < stages; i++) {
        consumer.wait();
#pragma unroll 1
        for (int half = 0; half < T::DEPTH; half += HALF) {
            typename T::Sums part;
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < HALF / 16; k++) {
                const int a = (half / 16 + k) * T::K_STEP_A, b = (half / 16 + k) * T::K_STEP_B;
#pragma unroll
                for (int pair = 0; pair < 6; pair++) {
                    constexpr int LEFT[] = {1, 0, 2, 0, 1, 0}, RIGHT[] = {1, 2, 0, 1, 0, 0};
                    T::multiply(part, consumer.a(LEFT[pair]) + a, consumer.b(RIGHT[pair]) + b, k || pair);
                }
            }
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_pin(part);
#pragma unroll
            for (int e = 0; e < T::COLUMNS / 2; e++) d[e] += part[e];
        }
        consumer.pass();
    }
}

// Rounds d into the consumer's panels, plus the residual where the op adds one. Before it `op.add(v, column)` may change eight
// sums: columns `column` and the next of two rows, eight apart, then the same eight columns on.
template <class T, class Op>
__device__ __forceinline__ void stage_panels(typename T::Sums& d, const Places<T>& at, const Op& op, int consumer,
                                             Cursor<T::SLOTS>& cursor, int column) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int p = 0; p < T::PANELS; p++, cursor.advance()) {
        mbarrier_wait(at.ready(consumer, cursor.slot), cursor.lap);
        const unsigned panel = at.panel(consumer, cursor.slot) + row * 128;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const unsigned to = panel + (((2 * j + lane / 16) ^ (row % 8)) << 4);
            float* v = d + 32 * p + 8 * j;
            op.add(v, column + 64 * p + 16 * j + lane % 4 * 2);
            if (op.adds()) {
                unsigned w[4];
                ldmatrix_x4(w, to);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[2 * i] += __uint_as_float(w[i] << 16), v[2 * i + 1] += __uint_as_float(w[i] & 0xffff0000u);
            }
            stmatrix_x4(to, narrow(v[0], v[1]), narrow(v[2], v[3]), narrow(v[4], v[5]), narrow(v[6], v[7]));
        }
        fence_proxy_async();
        __syncwarp();
        if (lane == 0) mbarrier_arrive(at.staged(consumer, cursor.slot));
    }
}

// An op that stores a bf16 tile, as it is, and has no stages before those of the depth. Others shadow what is else with them.
template <class T>
struct HopperOp {
    Extent extent;
    int depth;
    const CUtensorMap &y, &a, &b;

    // Calls load(column of low_a, row along the depth of low_b) for each stage of a tile that comes first.
    template <class F>
    __device__ __forceinline__ void ranks(int, F) const {}
    // Takes every stage of a tile.
    __device__ __forceinline__ void sum(typename T::Sums& d, Consumer<T>& consumer, int, int) const {
        add_stages(d, consumer, ceil_div(depth, T::DEPTH), false);
    }
    // Rows between the planes of an operand.
    __device__ __forceinline__ static constexpr int pitch_a() { return 0; }
    __device__ __forceinline__ static constexpr int pitch_b() { return 0; }
    __device__ __forceinline__ static constexpr bool adds() { return false; }
    __device__ __forceinline__ static constexpr bool stores() { return true; }
    __device__ __forceinline__ static void add(float*, int) {}
    // What is done with the sums before they are staged.
    __device__ __forceinline__ static void finish(typename T::Sums&, int, int, int) {}
    __device__ __forceinline__ const CUtensorMap& low_a() const { return a; }
    __device__ __forceinline__ const CUtensorMap& low_b() const { return b; }
    __device__ __forceinline__ const CUtensorMap& residual() const { return y; }
};

// The whole of a block.
template <class T, class Op>
__device__ __forceinline__ void hopper_product(const Op& op) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Places<T> at = {(shared_address(memory) + 1023) & ~1023u};
    const int rank = T::CLUSTER > 1 ? cluster_ctarank() : 0, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < T::STAGES; i++)
            mbarrier_init(at.full(i), 1), mbarrier_init(at.empty(i), T::CONSUMERS * T::CLUSTER);
        for (int i = 0; i < T::CONSUMERS * T::SLOTS; i++)
            mbarrier_init(at.ready(0, i), 1), mbarrier_init(at.staged(0, i), 4);
        fence_mbarrier_init();
    }
    if (T::CLUSTER > 1) barrier_cluster();
    else __syncthreads();
    if (warp < 4) {
        setmaxnreg_dec<40>();
        if (warp == 0 && elect_sync()) load_tiles<T>(at, op, rank);
        if ((warp == 1 || warp == 2) && op.stores() && elect_sync()) store_tiles<T>(at, op, rank, warp - 1);
        __syncwarp();
    } else {
        setmaxnreg_inc<232>();
        Walk<T> walk(op.extent, rank);
        Consumer<T> consumer(at);
        Cursor<T::SLOTS> slots;
        typename T::Sums d;
        while (walk.next(rank)) {
            op.sum(d, consumer, walk.row, walk.column);
            op.finish(d, consumer.index, walk.row, walk.column);
            if (op.stores()) stage_panels<T>(d, at, op, consumer.index, slots, walk.column);
        }
    }
    if (T::CLUSTER > 1) barrier_cluster();
}
