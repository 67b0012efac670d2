// narrow: f32 numbers rounded to bf16.
//
//   y[k] = the bf16 nearest to x[k], ties to even
//
// Shapes    y [K] bf16, x [K] f32.
// Plan      A thread rounds 4 neighbours: a 16-byte load, an 8-byte store. Grid ceil(K / 4 / THREADS).
// Cost      0 flops; bytes 6 K.
// Numerics  One rounding. NaN stays NaN, what exceeds the largest bf16 becomes infinite.
// Limits    K a multiple of 8; arrays at 16-byte boundaries.
// Source    none needed.
#include "common.cuh"

EXPORT constexpr int THREADS = 256;

KERNEL void __launch_bounds__(THREADS) narrow_fwd(bf16* __restrict__ y, const float* __restrict__ x, int K) {
    const int v = blockIdx.x * THREADS + threadIdx.x;
    if (v >= K / FLOATS) return;
    const float4 a = load(x, v);
    reinterpret_cast<uint2*>(y)[v] = make_uint2(narrow(a.x, a.y), narrow(a.z, a.w));
}
