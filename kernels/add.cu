// add: one sum of f32 numbers added to another, element by element: two partial gradients become one.
//
//   y[k] += x[k]
//
// Shapes    y, x [K] f32.
// Plan      A thread adds 4 neighbours; the one behind the last whole four adds what is left. Grid ceil((K + 4) / 4 / THREADS).
// Cost      K flops; bytes 12 K.
// Numerics  One rounding. a + b and b + a have the same bits.
// Limits    Arrays at 16-byte boundaries; any K.
// Source    none needed.
#include "common.cuh"

EXPORT constexpr int THREADS = 256;

KERNEL void __launch_bounds__(THREADS) add_fwd(float* __restrict__ y, const float* __restrict__ x, int K) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at < K / FLOATS) {
        float4 a = load(y, at);
        const float4 b = load(x, at);
        a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
        store(y, at, a);
    } else if (at == K / FLOATS) {
#pragma unroll 1
        for (int k = at * FLOATS; k < K; k++) y[k] += x[k];
    }
}
