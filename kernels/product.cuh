// The matrix product of every op, but Hopper's of tile_sm90.cuh: d[n,m] += sum_k a[n,k] b[k,m], one tile of d a block. Operands lie
// in a ring of shared-memory stages, f32 sums in registers. Four warps, two by two, each own a quarter of the tile.
//
// What differs between ops is how operands come (Copies, or a loader of the op's own), and what becomes of the sums.
// Per 16 of the depth a warp of the large tile reads 4 + 4 ldmatrix.x4 for 32 mma. On an sm_80 the block's four take 128 cycles
// of shared memory for that, the stages' writes 64, and the tensor cores 256, which are thus what two blocks share.
// Fragments are read one k-step ahead, across the barrier. A ragged depth is taken first, so that the loop asks nothing; where
// both operands lie across, their rows are counted anyway, and it comes last.
#pragma once
#include "mma.cuh"

// An operand as it lies: `outer` along a side of d, `depth` along the sums, its rows `pitch` apart (a multiple of 8).
template <typename T>
struct Matrix {
    const T* data;
    int outer, depth, pitch;
};

// One operand of elements T: where its next part comes from, where it lies in a stage, as bf16, and its fragments. BLOCKS: a
// warp's part of this side of d in 16s. ACROSS: the matrix is [depth, outer], else [outer, depth]. LEFT: it is a.
template <typename T, int SIDE_BLOCKS, bool IS_ACROSS, bool LEFT>
struct Side {
    using Element = T;
    static constexpr bool ACROSS = IS_ACROSS;
    static constexpr int BLOCKS = SIDE_BLOCKS, THREADS = 128, TILE = 32 * BLOCKS, DEPTH = 32;
    static constexpr int BYTES = TILE * DEPTH * int(sizeof(bf16));
    // Chunks of a row of the stage, rows that the block brings at a time; it does so BLOCKS times.
    static constexpr int CHUNKS = (ACROSS ? TILE : DEPTH) / BF16S, STRIDE = THREADS / CHUNKS;

    // This thread's next first chunk: from where, to where in a stage; its rows from there to the last one.
    const T* from;
    size_t turn, step;
    unsigned to;
    int rows, chunk, row;
    // This lane's row of the first fragment.
    unsigned at;

    // The tile begins at `first` of the outer side, the warp's part at `part` of the tile.
    __device__ __forceinline__ void begin(unsigned room, const Matrix<T>& of, int first, int part) {
        chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
        const int across = ACROSS ? first + chunk * BF16S : chunk * BF16S, down = ACROSS ? row : first + row;
        from = of.data + size_t(down) * of.pitch + across;
        turn = size_t(STRIDE) * of.pitch, step = ACROSS ? of.pitch : 1;
        rows = ACROSS ? (across < of.outer ? of.depth : 0) : of.outer - down;
        to = room + swizzled<CHUNKS>(row, chunk);
        const int lane = threadIdx.x % 32;
        const int low = LEFT != ACROSS ? lane % 16 : lane % 8 + lane / 16 * 8;
        const int high = LEFT != ACROSS ? lane / 16 : lane / 8 % 2;
        at = room + (ACROSS ? swizzled<CHUNKS>(low, part / BF16S + high) : swizzled<CHUNKS>(part + low, high));
    }
    // The thread's i-th chunk of the next `deep` of the depth: whether there is one, and where it goes in a stage.
    __device__ __forceinline__ bool there(int i, int deep) const {
        return ACROSS ? row + i * STRIDE < min(deep, rows) : i * STRIDE < rows && chunk * BF16S < deep;
    }
    __device__ __forceinline__ unsigned place(unsigned stage, int i) const { return to + stage + i * STRIDE * CHUNKS * 16; }
    __device__ __forceinline__ void pass(int deep) {
        from += deep * step;
        if (ACROSS) rows -= deep;
    }

    // The fragments of one k-step.
    template <int K_STEP>
    __device__ __forceinline__ void read(unsigned (&f)[BLOCKS][4], unsigned stage) const {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
            if (ACROSS) ldmatrix_x4_trans(f[i], (at ^ (i * 32)) + stage + K_STEP * 16 * CHUNKS * 16);
            else ldmatrix_x4(f[i], (at ^ (K_STEP * 32)) + stage + i * 16 * DEPTH * int(sizeof(bf16)));
    }
};

// bf16, copied by cp.async.
template <int BLOCKS, bool ACROSS, bool LEFT>
struct Copies : Side<bf16, BLOCKS, ACROSS, LEFT> {
    static constexpr int TERMS = 1, STAGES = 12 / BLOCKS;
    static constexpr bool FRESH = false;

    // Begins to bring the next `deep` of the depth to a stage, zeros where there is no more.
    __device__ __forceinline__ void fetch(unsigned stage, int deep) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) cp_async(this->place(stage, i), this->from + i * this->turn, this->there(i, deep));
        this->pass(deep);
    }
    // Ends it, as far as that is this thread's to do.
    __device__ __forceinline__ void land(unsigned) {}
    __device__ static __forceinline__ void commit() { cp_async_commit(); }
    template <int PENDING>
    __device__ static __forceinline__ void wait() { cp_async_wait<PENDING>(); }
};

// Loaders have TERMS: as so many bf16 a number comes, smallest last; STAGES that a ring has; FRESH: whether the sums of a stage
// are taken in accumulators of their own and added to d by IEEE addition, where a tensor core may cut.
template <class A, class B>
struct Product {
    static_assert(A::BLOCKS == B::BLOCKS && A::TERMS == B::TERMS && A::STAGES == B::STAGES, "operands of one kind");
    static constexpr int THREADS = A::THREADS, BLOCKS = A::BLOCKS, EIGHTS = 2 * BLOCKS, TERMS = A::TERMS;
    static constexpr int PART = 16 * BLOCKS, TILE = A::TILE, DEPTH = A::DEPTH, STAGES = A::STAGES;
    static constexpr int OPERAND = TERMS * A::BYTES, STAGE = 2 * OPERAND, RING = STAGES * STAGE;

    // Sums of the warp's part: d[i][j] is the C fragment of rows 16 i, columns 8 j.
    float d[BLOCKS][EIGHTS][4];
    int warp_row, warp_column;
    A a;
    B b;
    int steps, first;

    // Sums of nothing.
    __device__ __forceinline__ Product() {
        warp_row = threadIdx.x / 64 * PART, warp_column = threadIdx.x / 32 % 2 * PART;
        clear(d);
    }
    __device__ static __forceinline__ void clear(float (&sums)[BLOCKS][EIGHTS][4]) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < EIGHTS; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) sums[i][j][c] = 0;
    }

    // In the tile: the row of d[i][.][2 half] and the column of d[.][j][0], of this lane.
    __device__ __forceinline__ int row(int i, int half) const { return warp_row + 16 * i + 8 * half + threadIdx.x % 32 / 4; }
    __device__ __forceinline__ int column(int j) const { return warp_column + 8 * j + threadIdx.x % 4 * 2; }

    // Starts the first copies. The depth is `left`'s, a multiple of 8 unless it lies across; right's may end before it. The tile
    // begins at `row`, `column`.
    __device__ __forceinline__ void begin(void* ring, const Matrix<typename A::Element>& left,
                                          const Matrix<typename B::Element>& right, int row, int column) {
        steps = ceil_div(left.depth, DEPTH), first = A::ACROSS ? DEPTH : left.depth - (steps - 1) * DEPTH;
        a.begin(shared_address(ring), left, row, warp_row);
        b.begin(shared_address(ring) + OPERAND, right, column, warp_column);
        fetch(0, first);
        land(0);
#pragma unroll
        for (int s = 1; s < STAGES - 1; s++) {
            if (s < steps) fetch(s * STAGE, DEPTH), land(s * STAGE);
            else A::commit();
        }
    }
    __device__ __forceinline__ void fetch(unsigned stage, int deep) {
        a.fetch(stage, deep);
        b.fetch(stage, deep);
        A::commit();
    }
    __device__ __forceinline__ void land(unsigned stage) {
        a.land(stage);
        b.land(stage);
    }

    // The fragments of one k-step of a stage.
    struct Fragments {
        unsigned a[TERMS][BLOCKS][4], b[TERMS][BLOCKS][4];
    };
    template <int K_STEP>
    __device__ __forceinline__ void read(Fragments& f, unsigned stage) const {
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
            a.template read<K_STEP>(f.a[term], stage + term * A::BYTES);
            b.template read<K_STEP>(f.b[term], stage + term * B::BYTES);
        }
    }
    // Of three terms six products, the smallest first; of one the last alone.
    __device__ static __forceinline__ void multiply(float (&sums)[BLOCKS][EIGHTS][4], const Fragments& f) {
#pragma unroll
        for (int pair = TERMS == 3 ? 0 : 5; pair < 6; pair++) {
            constexpr int LEFT[] = {1, 0, 2, 0, 1, 0}, RIGHT[] = {1, 2, 0, 1, 0, 0};
#pragma unroll
            for (int i = 0; i < BLOCKS; i++)
#pragma unroll
                for (int j = 0; j < EIGHTS; j++) {
                    const unsigned(&right)[4] = f.b[RIGHT[pair]][j / 2];
                    mma_m16n8k16(sums[i][j], f.a[LEFT[pair]][i], right[j % 2 * 2], right[j % 2 * 2 + 1]);
                }
        }
    }

    // Adds the whole product to d. The ring is free for other use after it: its last barrier is behind all reads.
    __device__ __forceinline__ void finish() {
        Fragments even, odd;
        unsigned reading = 0, filling = (STAGES - 1) * STAGE;
        A::template wait<STAGES - 2>();
        __syncthreads();
        read<0>(even, 0);
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            float part[BLOCKS][EIGHTS][4];
            if (A::FRESH) clear(part);
            read<1>(odd, reading);
            // The stage that all warps left before the last barrier.
            const bool more = step + STAGES - 1 < steps;
            if (more) fetch(filling, DEPTH);
            else A::commit();
            multiply(A::FRESH ? part : d, even);
            if (more) land(filling);
            filling = reading;
            reading = reading + STAGE == RING ? 0 : reading + STAGE;
            A::template wait<STAGES - 2>();
            __syncthreads();
            // After the last step this stage holds nothing new, and nothing is made of it.
            if (step + 1 < steps) read<0>(even, reading);
            multiply(A::FRESH ? part : d, odd);
            if constexpr (A::FRESH)
#pragma unroll
                for (int i = 0; i < BLOCKS; i++)
#pragma unroll
                    for (int j = 0; j < EIGHTS; j++)
#pragma unroll
                        for (int c = 0; c < 4; c++) d[i][j][c] += part[i][j][c];
        }
    }

    // Visits the sums in pairs: f(row, column, low, high), by their place in the tile.
    template <typename F>
    __device__ __forceinline__ void each_pair(F f) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < EIGHTS; j++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    f(row(i, half), column(j), d[i][j][2 * half], d[i][j][2 * half + 1]);
    }

    // Rounds d into `to` [rows, columns], the tile at `row`, `column`, plus bias and residual where there are any, by way
    // of shared memory, so that 16-byte accesses fill whole lines.
    __device__ __forceinline__ void end(bf16* ring, bf16* to, const bf16* bias, const bf16* residual, int rows,
                                        int columns, int row, int column) {
        // Rows an odd number of chunks apart: pairs and chunks alike touch all banks once.
        constexpr int STRIDE = PART + BF16S, AT_ONCE = 32 / EIGHTS;
        const int lane = threadIdx.x % 32, chunk = lane % EIGHTS;
        const int row_of_chunk = lane / 8 + (EIGHTS == 4 ? lane / 4 % 2 * 4 : 0);
        bf16* part = ring + threadIdx.x / 32 * PART * STRIDE;
        row += warp_row, column += warp_column;
        const size_t corner = size_t(row + row_of_chunk) * columns + column + chunk * BF16S;
        const int left = column + chunk * BF16S < columns ? rows - row - row_of_chunk : 0;
        if (residual) {
#pragma unroll
            for (int i = 0; i < PART / AT_ONCE; i++)
                cp_async(part + (row_of_chunk + i * AT_ONCE) * STRIDE + chunk * BF16S,
                         residual + corner + size_t(i * AT_ONCE) * columns, i * AT_ONCE < left);
            cp_async_commit();
            cp_async_wait<0>();
            __syncwarp();
        }
        const int t = threadIdx.x % 4;
#pragma unroll
        for (int j = 0; j < EIGHTS; j++) {
            const int at = column + 8 * j + 2 * t;
            if (bias && at < columns) {
                const unsigned pair = *reinterpret_cast<const unsigned*>(bias + at);
                const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
#pragma unroll
                for (int i = 0; i < BLOCKS; i++) d[i][j][0] += low, d[i][j][1] += high, d[i][j][2] += low, d[i][j][3] += high;
            }
        }
        each_pair([&](int r, int c, float low, float high) {
            unsigned* at = reinterpret_cast<unsigned*>(part + (r - warp_row) * STRIDE + c - warp_column);
            if (residual) low += __uint_as_float(*at << 16), high += __uint_as_float(*at & 0xffff0000u);
            *at = narrow(low, high);
        });
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PART / AT_ONCE; i++)
            if (i * AT_ONCE < left)
                st_global(to + corner + size_t(i * AT_ONCE) * columns,
                          load(part + (row_of_chunk + i * AT_ONCE) * STRIDE + chunk * BF16S, 0));
    }
};

// Row and column of this block's tile: GROUP rows of tiles are walked column by column, so that the blocks at work at a
// time share what they read.
__device__ inline int2 tile_of_block(int rows, int columns) {
    constexpr int GROUP = 16;
    const int group = blockIdx.x / (GROUP * columns), at = blockIdx.x - group * GROUP * columns;
    const int height = min(GROUP, rows - group * GROUP);
    return make_int2(group * GROUP + at % height, at / height);
}
