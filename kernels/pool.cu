// pool: the rows of each text to one vector.
//
//   forward   y[b] = sum_k weight_k x[spans[b].start + k]
//   backward  dx[n] = sum over the spans b that hold row n, in the order of b, of weight_(n - start) dy[b]; 0 where none does
//
//   MEAN weighs 1/n, WEIGHTED_MEAN 2 (k + 1) / (n (n + 1)), LAST and FIRST take one row.
//
// Shapes    x, dx [N, C] bf16; y, dy [B, C] f32; spans [B, 2] i32: first row and one past the last, not empty, inside N.
// Plan      A lane owns 8 columns (16 bytes of bf16), a warp COLUMNS of them. Forward: grid (B, ceil(C / COLUMNS)), the WARPS
//           warps of a block take every WARPS-th row and are summed through shared memory. Backward: a warp owns ROWS rows,
//           finds the spans that meet them 32 at a time by a ballot, and writes each row once; grid
//           (ceil(N / (ROWS * WARPS)), ceil(C / COLUMNS)): what is many goes along x, y ends at 65,535.
// Cost      2 flops an element of every span; forward bytes 2 a summed element + 4 B C + 8 B; backward 2 N C + 4 B C + 8 B.
// Numerics  f32, integer weights summed and scaled once (forward), one rounding to bf16 (backward). Fixed order: rows by
//           warp, then warps; spans by number.
// Limits    C a multiple of 8; rows at 16-byte boundaries.
// Source    LLM2Vec's `get_pooling`; weighted mean from Muennighoff 2022, arXiv:2202.08904.
#include "common.cuh"

EXPORT constexpr int MEAN = 0;
EXPORT constexpr int WEIGHTED_MEAN = 1;
EXPORT constexpr int LAST = 2;
EXPORT constexpr int FIRST = 3;
EXPORT constexpr int COLUMNS = 256;
EXPORT constexpr int WARPS = 8;
EXPORT constexpr int ROWS = 4;

// The rows of a span that take part, and what their weights (1, or k + 1) are multiplied by.
struct Span {
    int begin, end;
    float scale;

    __device__ inline Span(int2 rows, int pooling) : begin(rows.x), end(rows.y) {
        const float n = end - begin;
        scale = pooling == MEAN ? 1.0f / n : pooling == WEIGHTED_MEAN ? 2.0f / (n * (n + 1.0f)) : 1.0f;
        if (pooling == LAST) begin = end - 1;
        if (pooling == FIRST) end = begin + 1;
    }
    __device__ inline float weight(int row, int pooling) const {
        return pooling == WEIGHTED_MEAN ? float(row - begin + 1) : 1.0f;
    }
};

KERNEL void __launch_bounds__(32 * WARPS)
pool_fwd(float* __restrict__ y, const bf16* __restrict__ x, const int* __restrict__ spans, int C, int pooling) {
    // By halves of a lane's columns, so that neighbouring lanes lie 16 bytes apart: no bank conflicts.
    __shared__ float4 parts[WARPS][2][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, b = blockIdx.x;
    const int v = blockIdx.y * (COLUMNS / BF16S) + lane;
    const bool inside = v < C / BF16S;
    const Span span(reinterpret_cast<const int2*>(spans)[b], pooling);
    float sum[BF16S] = {};
    if (inside) {
#pragma unroll 4
        for (int row = span.begin + warp; row < span.end; row += WARPS) {
            float r[BF16S];
            widen(r, load(x + size_t(row) * C, v));
            const float weight = span.weight(row, pooling);
#pragma unroll
            for (int i = 0; i < BF16S; i++) sum[i] += weight * r[i];
        }
    }
    parts[warp][0][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    parts[warp][1][lane] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    __syncthreads();
    if (warp >= 2 || !inside) return;
    float4 all = parts[0][warp][lane];
#pragma unroll
    for (int w = 1; w < WARPS; w++) {
        const float4 part = parts[w][warp][lane];
        all = make_float4(all.x + part.x, all.y + part.y, all.z + part.z, all.w + part.w);
    }
    const float s = span.scale;
    store(y + size_t(b) * C, 2 * v + warp, make_float4(all.x * s, all.y * s, all.z * s, all.w * s));
}

KERNEL void __launch_bounds__(32 * WARPS)
pool_bwd(bf16* __restrict__ dx, const float* __restrict__ dy, const int* __restrict__ spans, int N, int B, int C, int pooling) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int v = blockIdx.y * (COLUMNS / BF16S) + lane;
    const int first = (blockIdx.x * WARPS + warp) * ROWS;
    const bool inside = v < C / BF16S;
    float sum[ROWS][BF16S] = {};
    for (int b0 = 0; b0 < B; b0 += 32) {
        Span mine(make_int2(0, 1), pooling);
        if (b0 + lane < B) mine = Span(reinterpret_cast<const int2*>(spans)[b0 + lane], pooling);
        else mine.begin = mine.end = -1;
        unsigned meets = __ballot_sync(ALL, mine.begin < first + ROWS && mine.end > first);
        for (; meets; meets &= meets - 1) {
            const int from = __ffs(meets) - 1;
            Span span = mine;
            span.begin = __shfl_sync(ALL, mine.begin, from);
            span.end = __shfl_sync(ALL, mine.end, from);
            span.scale = __shfl_sync(ALL, mine.scale, from);
            if (!inside) continue;
            const float* row = dy + size_t(b0 + from) * C;
            const float4 low = load(row, 2 * v), high = load(row, 2 * v + 1);
            const float d[BF16S] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (first + r < span.begin || first + r >= span.end) continue;
                const float weight = span.weight(first + r, pooling) * span.scale;
#pragma unroll
                for (int i = 0; i < BF16S; i++) sum[r][i] += weight * d[i];
            }
        }
    }
    if (!inside) return;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (first + r < N) store(dx + size_t(first + r) * C, v, narrow(sum[r]));
}
