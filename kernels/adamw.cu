// adamw: one step of AdamW on f32 masters, and the norm that clips its gradient.
//
//   norm  = sqrt(sum g^2) over all elements of all gradients
//   g'    = g min(1, most / (norm + 1e-6)), or g where norm is null
//   m    += (1 - b1)(g' - m),  v = b2 v + (1 - b2) g'^2
//   p     = p keep - rate m / (sqrt(v) / root2 + eps)
//           keep = 1 - learning rate * decay, rate = learning rate / (1 - b1^t), root2 = sqrt(1 - b2^t), from the host in f64
//
// Shapes    p, m, v, g [K] f32; norm [1] f32; parts [M] f64: one element for each CHUNK of each gradient.
// Plan      adamw_square: a block of THREADS sums one CHUNK of one gradient into parts[first + blockIdx.x]; grid
//           ceil(K / CHUNK). adamw_norm: one block sums the parts. adamw_step: a thread updates 4 neighbours; grid
//           ceil(K / 4 / THREADS).
// Cost      norm 2 K flops, bytes 4 K + 16 M + 4; step 14 K flops, bytes 28 K.
// Numerics  Squares and sums in f64, in a fixed order: thread, lanes, warps, chunks. The step in f32 with IEEE root and
//           division. A NaN or infinite element makes the norm so, and a NaN norm makes the step so.
// Limits    Arrays at 16-byte boundaries; any K.
// Source    Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in the order of operations of torch.optim.AdamW.
#include "common.cuh"

EXPORT constexpr int THREADS = 256;
EXPORT constexpr int CHUNK = 16384;
EXPORT constexpr int NORM_THREADS = 1024;

KERNEL void __launch_bounds__(THREADS)
adamw_square(double* __restrict__ parts, const float* __restrict__ g, int first, int K) {
    __shared__ double scratch[32];
    const int begin = blockIdx.x * CHUNK, end = min(K - begin, CHUNK) + begin;
    double sum = 0;
#pragma unroll 4
    for (int k = begin + threadIdx.x * FLOATS; k + FLOATS <= end; k += THREADS * FLOATS) {
        const float4 a = load(g, k / FLOATS);
        sum += double(a.x) * a.x, sum += double(a.y) * a.y, sum += double(a.z) * a.z, sum += double(a.w) * a.w;
    }
    const int tail = end / FLOATS * FLOATS + threadIdx.x;
    if (tail < end) sum += double(g[tail]) * g[tail];
    const double all = block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[first + blockIdx.x] = all;
}

KERNEL void __launch_bounds__(NORM_THREADS)
adamw_norm(float* __restrict__ norm, const double* __restrict__ parts, int M) {
    __shared__ double scratch[32];
    double sum = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < M; i += NORM_THREADS) sum += parts[i];
    const double all = block_sum(sum, scratch);
    if (threadIdx.x == 0) norm[0] = float(sqrt(all));
}

// What the update multiplies by; `most` is the length that the gradient is clipped to.
PARAMS struct Step {
    float most, keep, rate, new1, old2, new2, root2, eps;

    __device__ inline void update(float& p, float& m, float& v, float g) const {
        m += new1 * (g - m);
        v = old2 * v + new2 * g * g;
        p = p * keep - rate * m / (sqrtf(v) / root2 + eps);
    }
};

KERNEL void __launch_bounds__(THREADS)
adamw_step(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v, const float* __restrict__ g,
           const float* __restrict__ norm_or_null, int K, const Step step) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    const float factor = norm_or_null ? step.most / (norm_or_null[0] + 1e-6f) : 1.0f;
    const float clip = factor > 1.0f ? 1.0f : factor;  // NaN stays
    if (at < K / FLOATS) {
        float4 P = load(p, at), M = load(m, at), V = load(v, at);
        const float4 G = load(g, at);
        step.update(P.x, M.x, V.x, G.x * clip);
        step.update(P.y, M.y, V.y, G.y * clip);
        step.update(P.z, M.z, V.z, G.z * clip);
        step.update(P.w, M.w, V.w, G.w * clip);
        store(p, at, P), store(m, at, M), store(v, at, V);
    } else if (at == K / FLOATS) {
#pragma unroll 1
        for (int k = at * FLOATS; k < K; k++) step.update(p[k], m[k], v[k], g[k] * clip);
    }
}
