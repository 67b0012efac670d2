// The matrix product of lora_linear, d[n,m] += sum_k a[n,k] b[k,m], one tile of d a block: bf16 operands through a ring of
// shared-memory stages by cp.async, f32 sums in registers. Four warps, two by two, each own a quarter of the tile.
//
// Per 16 of the depth a warp of the large tile reads 4 + 4 ldmatrix.x4 for 32 mma. On an sm_80 the block's four take 128 cycles
// of shared memory for that, the stages' writes 64, and the tensor cores 256, which are thus what two blocks share.
// Fragments are read one k-step ahead, across the barrier; a ragged depth is taken first, so that the loop asks nothing.
#pragma once
#include "mma.cuh"

// BLOCKS: rows of a warp's part in 16s; ACROSS: b lies as it is, [depth, columns], else transposed, [columns, depth].
template <int BLOCKS, bool ACROSS>
struct Product {
    static constexpr int THREADS = 128, EIGHTS = 2 * BLOCKS;
    static constexpr int PART = 16 * BLOCKS, TILE = 2 * PART, DEPTH = 32;
    static constexpr int OPERAND = TILE * DEPTH * int(sizeof(bf16)), STAGE = 2 * OPERAND;
    static constexpr int STAGES = 12 / BLOCKS, RING = STAGES * STAGE;
    // Chunks of a row of b's stage, rows that the block copies at a time; it does so BLOCKS times.
    static constexpr int B_CHUNKS = ACROSS ? TILE / BF16S : DEPTH / BF16S;
    static constexpr int A_STRIDE = THREADS / (DEPTH / BF16S), B_STRIDE = THREADS / B_CHUNKS;

    // Sums of the warp's part: d[i][j] is the C fragment of rows 16 i, columns 8 j.
    float d[BLOCKS][EIGHTS][4];
    int warp_row, warp_column;

    // Copies: where this thread's first chunks come from and go to, the rows from there to the last one.
    const bf16 *from_a, *from_b;
    size_t turn_a, turn_b, step_b;
    unsigned to_a, to_b;
    int rows_a, rows_b, chunk_a, row_b;
    // Reads: this lane's rows of the first fragment.
    unsigned at_a, at_b;
    int steps, first;

    // Sums of nothing.
    __device__ __forceinline__ Product() {
        warp_row = threadIdx.x / 64 * PART, warp_column = threadIdx.x / 32 % 2 * PART;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < EIGHTS; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) d[i][j][c] = 0;
    }

    // Starts the first copies. a [rows, depth], b's other side is `columns` long; the tile begins at `row`, `column`.
    __device__ __forceinline__ void begin(void* ring, const bf16* a, const bf16* b, int rows, int columns, int depth,
                                          int row, int column) {
        const int thread = threadIdx.x, lane = thread % 32;
        steps = ceil_div(depth, DEPTH), first = depth - (steps - 1) * DEPTH;
        const unsigned ring_address = shared_address(ring);
        const int row_a = thread / 4;
        chunk_a = thread % 4;
        rows_a = rows - row - row_a;
        from_a = a + size_t(row + row_a) * depth + chunk_a * BF16S;
        turn_a = size_t(A_STRIDE) * depth;
        to_a = ring_address + swizzled<DEPTH / BF16S>(row_a, chunk_a);
        const int chunk_b = thread % B_CHUNKS;
        row_b = thread / B_CHUNKS;
        to_b = ring_address + OPERAND + swizzled<B_CHUNKS>(row_b, chunk_b);
        if (ACROSS) {
            // Rows count along the depth; no row is there where the columns end.
            rows_b = column + chunk_b * BF16S < columns ? DEPTH : 0;
            from_b = b + size_t(row_b) * columns + column + chunk_b * BF16S;
            turn_b = size_t(B_STRIDE) * columns, step_b = size_t(columns);
            at_b = ring_address + OPERAND + swizzled<B_CHUNKS>(lane % 16, warp_column / BF16S + lane / 16);
        } else {
            rows_b = columns - column - row_b;
            from_b = b + size_t(column + row_b) * depth + chunk_b * BF16S;
            turn_b = size_t(B_STRIDE) * depth, step_b = 1;
            at_b = ring_address + OPERAND + swizzled<B_CHUNKS>(warp_column + lane % 8 + lane / 16 * 8, lane / 8 % 2);
        }
        at_a = ring_address + swizzled<DEPTH / BF16S>(warp_row + lane % 16, lane / 16);

        fetch(0, first);
#pragma unroll
        for (int s = 1; s < STAGES - 1; s++) {
            if (s < steps) fetch(s * STAGE, DEPTH);
            else cp_async_commit();
        }
    }

    // Copies the next `deep` of the depth to a stage, zeros where there is no more.
    __device__ __forceinline__ void fetch(unsigned stage, int deep) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
            cp_async(to_a + stage + i * A_STRIDE * DEPTH * int(sizeof(bf16)), from_a + i * turn_a,
                     i * A_STRIDE < rows_a && chunk_a * BF16S < deep);
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            const bool there = ACROSS ? row_b + i * B_STRIDE < min(deep, rows_b)
                                      : i * B_STRIDE < rows_b && chunk_a * BF16S < deep;
            cp_async(to_b + stage + i * B_STRIDE * B_CHUNKS * 16, from_b + i * turn_b, there);
        }
        cp_async_commit();
        from_a += deep;
        from_b += deep * step_b;
    }

    // The fragments of one k-step of a stage.
    struct Fragments {
        unsigned a[BLOCKS][4], b[BLOCKS][4];
    };
    template <int K_STEP>
    __device__ __forceinline__ void read(Fragments& f, unsigned stage) const {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
            ldmatrix_x4(f.a[i], (at_a ^ (K_STEP * 32)) + stage + i * 16 * DEPTH * int(sizeof(bf16)));
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
            if (ACROSS) ldmatrix_x4_trans(f.b[j], (at_b ^ (j * 32)) + stage + K_STEP * 16 * B_CHUNKS * 16);
            else ldmatrix_x4(f.b[j], (at_b ^ (K_STEP * 32)) + stage + j * 16 * DEPTH * int(sizeof(bf16)));
    }
    __device__ __forceinline__ void multiply(const Fragments& f) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < EIGHTS; j++) mma_m16n8k16(d[i][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
    }

    // Adds the whole product to d. The ring is free for other use after it: its last barrier is behind all reads.
    __device__ __forceinline__ void finish() {
        Fragments even, odd;
        unsigned reading = 0, filling = (STAGES - 1) * STAGE;
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        read<0>(even, 0);
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            read<1>(odd, reading);
            // The stage that all warps left before the last barrier.
            if (step + STAGES - 1 < steps) fetch(filling, DEPTH);
            else cp_async_commit();
            multiply(even);
            filling = reading;
            reading = reading + STAGE == RING ? 0 : reading + STAGE;
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            // After the last step this stage holds nothing new, and nothing is made of it.
            if (step + 1 < steps) read<0>(even, reading);
            multiply(odd);
        }
    }

    // Visits the part's elements in pairs: f(row, column, low, high), from the tile's first row and column.
    template <typename F>
    __device__ __forceinline__ void each_pair(F f) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < EIGHTS; j++) {
                f(16 * i + g, 8 * j + 2 * t, d[i][j][0], d[i][j][1]);
                f(16 * i + g + 8, 8 * j + 2 * t, d[i][j][2], d[i][j][3]);
            }
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
            unsigned* at = reinterpret_cast<unsigned*>(part + r * STRIDE + c);
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
