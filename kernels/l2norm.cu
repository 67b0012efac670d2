// l2norm: every row, or its first C columns, scaled to unit length.
//
//   forward   norm[b] = max(|x[b]|, eps),  y[b] = x[b] / norm[b]
//   backward  dx = (dy - y (y . dy)) / norm, or added to dx; a row that the forward held at eps is only divided by it
//
// Shapes    x, dx [B, K] f32, of which the first C columns take part, y, dy [B, C] f32, norm [B] f32.
// Plan      A block of THREADS a row, 16 bytes a thread; the second pass over the row finds it in the cache. Grid B.
// Cost      forward 3 B C flops, bytes 8 B C + 4 B; backward 5 B C flops, bytes 12 B C + 4 B, adding B C and 4 B C more.
// Numerics  f32 sums: in a thread by column, then lanes, then warps; IEEE root and division.
// Limits    C and K multiples of 4; rows at 16-byte boundaries.
// Source    torch.nn.functional.normalize (eps 1e-12).
#include "common.cuh"

EXPORT constexpr int THREADS = 256;

__device__ inline float dot(const float4& a, const float4& b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

KERNEL void __launch_bounds__(THREADS)
l2norm_fwd(float* __restrict__ y, float* __restrict__ norm, const float* __restrict__ x, int C, int K, float eps) {
    __shared__ float scratch[32];
    const size_t row = size_t(blockIdx.x) * C, wide = size_t(blockIdx.x) * K;
    float sum = 0;
#pragma unroll 4
    for (int v = threadIdx.x; v < C / FLOATS; v += THREADS) {
        const float4 a = load(x + wide, v);
        sum += dot(a, a);
    }
    const float length = sqrtf(block_sum(sum, scratch));
    const float by = length < eps ? eps : length;  // NaN stays
    if (threadIdx.x == 0) norm[blockIdx.x] = by;
#pragma unroll 1
    for (int v = threadIdx.x; v < C / FLOATS; v += THREADS) {
        const float4 a = load(x + wide, v);
        store(y + row, v, make_float4(a.x / by, a.y / by, a.z / by, a.w / by));
    }
}

KERNEL void __launch_bounds__(THREADS)
l2norm_bwd(float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ y,
           const float* __restrict__ norm, int C, int K, int add, float eps) {
    __shared__ float scratch[32];
    const size_t row = size_t(blockIdx.x) * C, wide = size_t(blockIdx.x) * K;
    float sum = 0;
#pragma unroll 4
    for (int v = threadIdx.x; v < C / FLOATS; v += THREADS) sum += dot(load(y + row, v), load(dy + row, v));
    const float by = norm[blockIdx.x], dots = block_sum(sum, scratch), along = by > eps ? dots : 0.0f;
#pragma unroll 1
    for (int v = threadIdx.x; v < C / FLOATS; v += THREADS) {
        const float4 d = load(dy + row, v), u = load(y + row, v);
        float4 a = make_float4((d.x - u.x * along) / by, (d.y - u.y * along) / by, (d.z - u.z * along) / by,
                               (d.w - u.w * along) / by);
        if (add) {
            const float4 b = load(dx + wide, v);
            a = make_float4(b.x + a.x, b.y + a.y, b.z + a.z, b.w + a.w);
        }
        store(dx + wide, v, a);
    }
}
