// Tensor-core instructions of every GPU from sm_80 on: one inline function each, named like it. Fragments are those of the
// PTX ISA, "Matrix Fragments for mma.m16n8k16", with g = lane / 4 and t = lane % 4:
//
//   A (16 x 16)   a[0] row g, a[1] row g + 8, columns 2t, 2t+1;   a[2], a[3] the same with columns + 8
//   B (16 x 8)    b[0] rows 2t, 2t+1, b[1] rows + 8;              column g
//   C, D (16 x 8) c[0], c[1] row g, columns 2t, 2t+1;             c[2], c[3] row g + 8
//
// So two neighbouring C tiles, rounded to bf16, are the A fragment of the next product.
#pragma once
#include "common.cuh"

// A tile of shared memory whose rows are COLUMNS bf16 wide. Rows lie an odd number of 16-byte chunks apart, so eight rows
// of one ldmatrix, and the eight chunks of a row, touch all banks once.
template <int COLUMNS>
struct Tile {
    static_assert(COLUMNS % 16 == 0, "rows are whole k-steps");
    static constexpr int STRIDE = COLUMNS + BF16S;
    bf16* data;

    __device__ inline bf16* at(int row, int column) const { return data + row * STRIDE + column; }
};

__device__ inline unsigned shared_address(const void* at) { return unsigned(__cvta_generic_to_shared(at)); }

// Byte offset of a 16-byte chunk in a tile whose rows are CHUNKS (a power of two, at least 2) chunks wide and lie end to
// end: the chunks of a row are exchanged so that eight rows of one ldmatrix touch all banks once, with no room between.
template <int CHUNKS>
__device__ inline unsigned swizzled(int row, int chunk) {
    constexpr int ALIKE = CHUNKS < 8 ? 8 / CHUNKS : 1, OTHERS = CHUNKS < 8 ? CHUNKS : 8;
    return (row * CHUNKS + (chunk ^ (row / ALIKE % OTHERS))) * 16;
}

// Four 8x8 matrices; lanes 8i .. 8i + 8 name the rows of matrix i, by their addresses in shared memory.
__device__ inline void ldmatrix_x4(unsigned (&r)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
__device__ inline void ldmatrix_x4(unsigned (&r)[4], const bf16* row) { ldmatrix_x4(r, shared_address(row)); }

// The same, each matrix transposed.
__device__ inline void ldmatrix_x4_trans(unsigned (&r)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
__device__ inline void ldmatrix_x4_trans(unsigned (&r)[4], const bf16* row) {
    ldmatrix_x4_trans(r, shared_address(row));
}

// d += a b
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Sixteen bytes from global to shared memory, past the registers; zeros, with nothing read, unless `there`.
__device__ inline void cp_async(unsigned to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void cp_async(void* to, const void* from, bool there) { cp_async(shared_address(to), from, there); }
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most PENDING of this thread's newest groups are under way.
template <int PENDING>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// The A fragment of the 16 x 16 block at `row`, `column` of a row-major tile.
template <int COLUMNS>
__device__ inline void load_a(unsigned (&a)[4], const Tile<COLUMNS>& tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile.at(row + lane % 16, column + lane / 16 * 8));
}
// B fragments of 16 (k) x 16 (n), from a tile that holds B transposed: B[k][n] = tile[row + n][column + k].
// b[0], b[1] are those of columns 0 .. 8, b[2], b[3] those of columns 8 .. 16.
template <int COLUMNS>
__device__ inline void load_b(unsigned (&b)[4], const Tile<COLUMNS>& tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(b, tile.at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
}
// The same from a tile that holds B as it is: B[k][n] = tile[row + k][column + n].
template <int COLUMNS>
__device__ inline void load_b_trans(unsigned (&b)[4], const Tile<COLUMNS>& tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(b, tile.at(row + lane % 16, column + lane / 16 * 8));
}
