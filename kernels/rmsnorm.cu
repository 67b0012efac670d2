// rmsnorm: every row scaled to unit root-mean-square, then by a learned weight.
//
//   forward   rstd[n] = 1 / sqrt(mean_c(x[n,c]^2) + eps),  y[n,c] = x[n,c] rstd[n] w[c]
//   backward  dx = skip + rstd (dy w - n mean_c(dy w n)),  n = x rstd;  the weight is frozen
//
// Shapes    x, y, dx, dy, skip [N, C] bf16, w [C] bf16, rstd [N] f32; skip may be null.
// Plan      A block owns whole rows: blockDim.x = 32 ceil(C / (32 * 8 * VECTORS)) threads hold one row in registers, w is
//           read once a block, and the next row is on its way while this one is reduced: one barrier a row. The grid is
//           whatever fills the GPU, at most N.
// Cost      forward 4 N C flops, bytes 4 N C + 4 N + 2 C; backward 7 N C flops, bytes 6 N C (8 with skip) + 4 N + 2 C.
// Numerics  f32 sums: in a thread by column, then a butterfly over lanes, then over warps; IEEE division and root. One
//           rounding to bf16, at the end. Bits depend on C alone, not on the grid.
// Limits    C a multiple of 8, at most MAX_THREADS * 8 * VECTORS = 8192; rows at 16-byte boundaries.
// Source    Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; backward by the chain rule.
#include "common.cuh"

EXPORT constexpr int VECTORS = 2;
EXPORT constexpr int MAX_THREADS = 512;

// This thread's vectors of a row; zeros past its end.
struct Row {
    uint4 v[VECTORS];

    __device__ inline void load(const bf16* from, int C) {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = threadIdx.x + i * blockDim.x;
            v[i] = at < C / BF16S ? ::load(from, at) : make_uint4(0, 0, 0, 0);
        }
    }
};

KERNEL void __launch_bounds__(MAX_THREADS, 1)
rmsnorm_fwd(bf16* __restrict__ y, float* __restrict__ rstd, const bf16* __restrict__ x, const bf16* __restrict__ w,
            int N, int C, float eps) {
    __shared__ float scratch[2][32];
    Row weight, row, next;
    weight.load(w, C);
    next.load(x + size_t(blockIdx.x) * C, C);
    for (int n = blockIdx.x, turn = 0; n < N; n += gridDim.x, turn ^= 1) {
        row = next;
        if (n + gridDim.x < N) next.load(x + size_t(n + gridDim.x) * C, C);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float v[BF16S];
            widen(v, row.v[i]);
#pragma unroll
            for (int j = 0; j < BF16S; j++) sum += v[j] * v[j];
        }
        const float scale = 1.0f / sqrtf(block_sum(sum, scratch[turn]) / C + eps);
        if (threadIdx.x == 0) rstd[n] = scale;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = threadIdx.x + i * blockDim.x;
            float v[BF16S], by[BF16S];
            widen(v, row.v[i]);
            widen(by, weight.v[i]);
#pragma unroll
            for (int j = 0; j < BF16S; j++) v[j] = v[j] * scale * by[j];
            if (at < C / BF16S) store(y + size_t(n) * C, at, narrow(v));
        }
    }
}

KERNEL void __launch_bounds__(MAX_THREADS, 1)
rmsnorm_bwd(bf16* __restrict__ dx, const bf16* __restrict__ dy, const bf16* __restrict__ skip_or_null,
            const bf16* __restrict__ x, const bf16* __restrict__ w, const float* __restrict__ rstd, int N, int C) {
    __shared__ float scratch[2][32];
    Row weight, row, grad, next_row, next_grad;
    weight.load(w, C);
    next_row.load(x + size_t(blockIdx.x) * C, C);
    next_grad.load(dy + size_t(blockIdx.x) * C, C);
    for (int n = blockIdx.x, turn = 0; n < N; n += gridDim.x, turn ^= 1) {
        row = next_row, grad = next_grad;
        if (n + gridDim.x < N) {
            next_row.load(x + size_t(n + gridDim.x) * C, C);
            next_grad.load(dy + size_t(n + gridDim.x) * C, C);
        }
        float sum = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float v[BF16S], by[BF16S], d[BF16S];
            widen(v, row.v[i]);
            widen(by, weight.v[i]);
            widen(d, grad.v[i]);
#pragma unroll
            for (int j = 0; j < BF16S; j++) sum += d[j] * by[j] * v[j];
        }
        const float scale = rstd[n];
        const float back = block_sum(sum, scratch[turn]) * scale * scale / C;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = threadIdx.x + i * blockDim.x;
            if (at >= C / BF16S) continue;
            float v[BF16S], by[BF16S], d[BF16S], past[BF16S] = {};
            widen(v, row.v[i]);
            widen(by, weight.v[i]);
            widen(d, grad.v[i]);
            if (skip_or_null) widen(past, load(skip_or_null + size_t(n) * C, at));
#pragma unroll
            for (int j = 0; j < BF16S; j++) d[j] = (d[j] * by[j] - v[j] * back) * scale + past[j];
            store(dx + size_t(n) * C, at, narrow(d));
        }
    }
}
