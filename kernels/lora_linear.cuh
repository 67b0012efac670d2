// What the kernels of lora_linear share: segments of a merged projection, loads of low-rank factors, masks.
#pragma once
#include "product.cuh"
#include "philox.cuh"

// y = x w^T, or with w ACROSS, dx = dy w.
template <int BLOCKS, bool ACROSS>
using Linear = Product<Copies<BLOCKS, false, true>, Copies<BLOCKS, ACROSS, false>>;

// Ranks of one k-step or tile of the low-rank products; larger ranks take several, smaller ones are filled up with zeros.
constexpr int RANKS = 16;

// Which columns of y and which ranks belong together. There are at most three: no array, so that all stay in registers.
PARAMS struct Segments {
    int count, end0, end1, end2;
    float scale0, scale1, scale2;

    __device__ __forceinline__ int end(int s) const { return s == 0 ? end0 : s == 1 ? end1 : end2; }
    __device__ __forceinline__ int start(int s) const { return s == 0 ? 0 : s == 1 ? end0 : end1; }
    // 0 where a segment has no adapter.
    __device__ __forceinline__ float scale(int s) const { return s == 0 ? scale0 : s == 1 ? scale1 : scale2; }
};

// Of a product whose columns before `rotated` are heads to turn: its sizes, Q the ranks of a segment, and how many positions the
// tables of angles have.
PARAMS struct RotarySizes {
    int N, K, M, Q, positions, rotated;
};

// The ranks that one block of a skinny product takes: SLICES times 16, each of one segment. All indices are constants.
constexpr int SLICES_OF_BLOCK = 4;
struct Slices {
    int count, segment[SLICES_OF_BLOCK], rank[SLICES_OF_BLOCK];
    // Bit j: slice j's segment has an adapter.
    unsigned adapted;

    __device__ __forceinline__ Slices(const Segments& of, int first, int R) {
        const int each = ceil_div(R, RANKS);
        count = min(SLICES_OF_BLOCK, of.count * each - first), adapted = 0;
#pragma unroll
        for (int j = 0; j < SLICES_OF_BLOCK; j++) {
            segment[j] = (first + j) / each, rank[j] = (first + j - segment[j] * each) * RANKS;
            if (of.scale(segment[j]) != 0) adapted |= 1u << j;
        }
    }
    // A slice whose segment is not that of the slice before it.
    __device__ __forceinline__ bool fresh(int j) const { return j == 0 || rank[j] == 0; }
};

__device__ __forceinline__ bf16 narrow(float x) { return {static_cast<unsigned short>(narrow(x, 0.0f))}; }

// Elements r and r + 1 of a row of R as a pair of bf16; zeros past its end. Rows of an EVEN R are read two at a time.
template <bool EVEN>
__device__ __forceinline__ unsigned rank_pair(const bf16* row, int r, int R) {
    if (EVEN) return r < R ? *reinterpret_cast<const unsigned*>(row + r) : 0;
    return (r < R ? row[r].bits : 0) | (r + 1 < R ? row[r + 1].bits : 0) << 16;
}
// The same of floats, times s.
template <bool EVEN>
__device__ __forceinline__ unsigned rank_pair(const float* row, int r, int R, float s) {
    if (EVEN) {
        const float2 v = r < R ? *reinterpret_cast<const float2*>(row + r) : make_float2(0, 0);
        return narrow(v.x * s, v.y * s);
    }
    return narrow(r < R ? row[r] * s : 0, r + 1 < R ? row[r + 1] * s : 0);
}

// The A fragments of 16 BLOCKS rows of ranks, [rows, stacked]: this lane's row is n, its rank r; rows end at N.
template <bool EVEN, int BLOCKS>
__device__ __forceinline__ void load_ranks(unsigned (&a)[BLOCKS][4], const bf16* ranks, int n, int N, int stacked, int r,
                                           int R) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int at = n + 16 * i + c % 2 * 8;
            a[i][c] = at < N ? rank_pair<EVEN>(ranks + size_t(at) * stacked, r + c / 2 * 8, R) : 0;
        }
}

// Of 8 neighbouring columns, from 8 v on, the dropped ones zeroed. What is kept is scaled where it has been summed.
__device__ __forceinline__ uint4 dropped(const Draw& dropout, uint4 x, int row, int plane, int v) {
    const uint4 mask = dropout.mask(row, plane, v);
    return make_uint4(x.x & mask.x, x.y & mask.y, x.z & mask.z, x.w & mask.w);
}
