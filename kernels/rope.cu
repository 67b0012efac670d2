// rope: rotary position embedding of queries and keys, in place, half-split pairs.
//
//   forward   (a, b) = (v[i], v[i + D/2]) of every query and key head becomes (a cos - b sin, b cos + a sin), the angle being
//             that of positions[n] and i
//   backward  the same with -sin
//
// Shapes    qkv [N, (H + 2G) D] bf16, read and overwritten in its first (H + G) D columns; cos, sin [P, D/2] f32;
//           positions [N] i32 in [0, P).
// Plan      A block is a token: threadIdx.x owns 8 pairs of a head (two 16-byte vectors and, in registers, their angles),
//           threadIdx.y steps through the heads. blockDim = (D/16, rows of heads), at most MAX_THREADS; grid N.
// Cost      3 N (H + G) D flops, bytes 4 N (H + G) D + 4 N + the rows of the tables that occur, 4 D each.
// Numerics  f32, one rounding to bf16. A position outside the tables gives NaN.
// Limits    D a multiple of 16; rows at 16-byte boundaries.
// Source    Su et al. 2021, arXiv:2104.09864, in the half-split layout of Llama checkpoints in Transformers.
#include "common.cuh"

EXPORT constexpr int PAIRS_PER_THREAD = 8;
EXPORT constexpr int MAX_THREADS = 256;

template <bool FORWARD>
__device__ inline void rotate(bf16* qkv, const float* cos, const float* sin, const int* positions, int P, int H, int G, int D) {
    const int n = blockIdx.x, half = D / 2;
    const int at = positions[n];
    const bool inside = unsigned(at) < unsigned(P);
    float c[BF16S], s[BF16S];
#pragma unroll
    for (int i = 0; i < BF16S / FLOATS; i++) {
        const size_t angle = (size_t(inside ? at : 0) * half + threadIdx.x * PAIRS_PER_THREAD) / FLOATS + i;
        const float4 cv = load(cos, angle), sv = load(sin, angle);
        c[4 * i] = cv.x, c[4 * i + 1] = cv.y, c[4 * i + 2] = cv.z, c[4 * i + 3] = cv.w;
        s[4 * i] = sv.x, s[4 * i + 1] = sv.y, s[4 * i + 2] = sv.z, s[4 * i + 3] = sv.w;
    }
    if (!inside)
#pragma unroll
        for (int i = 0; i < BF16S; i++) c[i] = __int_as_float(0x7fc00000);
    bf16* row = qkv + size_t(n) * (H + 2 * G) * D;
#pragma unroll 2
    for (int h = threadIdx.y; h < H + G; h += blockDim.y) {
        bf16* first = row + h * D;
        float a[BF16S], b[BF16S];
        widen(a, load(first, threadIdx.x));
        widen(b, load(first + half, threadIdx.x));
#pragma unroll
        for (int i = 0; i < BF16S; i++) {
            const float2 pair = turned(a[i], b[i], c[i], FORWARD ? s[i] : -s[i]);
            a[i] = pair.x, b[i] = pair.y;
        }
        store(first, threadIdx.x, narrow(a));
        store(first + half, threadIdx.x, narrow(b));
    }
}

KERNEL void __launch_bounds__(MAX_THREADS)
rope_fwd(bf16* qkv, const float* __restrict__ cos, const float* __restrict__ sin, const int* __restrict__ positions,
         int P, int H, int G, int D) {
    rotate<true>(qkv, cos, sin, positions, P, H, G, D);
}

KERNEL void __launch_bounds__(MAX_THREADS)
rope_bwd(bf16* dqkv, const float* __restrict__ cos, const float* __restrict__ sin, const int* __restrict__ positions,
         int P, int H, int G, int D) {
    rotate<false>(dqkv, cos, sin, positions, P, H, G, D);
}
