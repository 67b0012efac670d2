// What every kernel uses: bf16, 16-byte vectors, sums in a fixed order.
#pragma once

// An entry point. build.rs reads its signature and writes the launcher and the struct of its arguments, whose fields have
// the names of the parameters in lower case: const T* becomes &Tensor, T* becomes &mut Tensor, a name that ends in _or_null
// an Option; scalars stay scalars.
#define KERNEL extern "C" __global__
// Two or six entry points that differ in one constant, from one declaration:
//   KERNELS(noun_fwd, _d, D, (16, 32), __launch_bounds__(32, D > 16 ? 1 : 2), (float* x, int N) { noun<D>(x, N); })
// declares noun_fwd_d16 and noun_fwd_d32. They have one launcher, noun_fwd, whose argument `d` says which.
#define KERNELS(name, infix, CONSTANT, values, bounds, ...) \
    KERNELS_CALL(KERNELS_COUNT values, name, infix, CONSTANT, KERNELS_LIST values, bounds, __VA_ARGS__)
#define KERNELS_CALL(each, ...) each(__VA_ARGS__)
#define KERNELS_LIST(...) __VA_ARGS__
#define KERNELS_COUNT(...) KERNELS_NTH(__VA_ARGS__, KERNELS_6, , , , KERNELS_2, , )
#define KERNELS_NTH(a, b, c, d, e, f, nth, ...) nth
#define KERNELS_2(n, i, C, a, b, ...) KERNELS_1(n, i, C, a, __VA_ARGS__) KERNELS_1(n, i, C, b, __VA_ARGS__)
#define KERNELS_6(n, i, C, a, b, c, d, e, f, ...) \
    KERNELS_2(n, i, C, a, b, __VA_ARGS__) KERNELS_2(n, i, C, c, d, __VA_ARGS__) KERNELS_2(n, i, C, e, f, __VA_ARGS__)
// Each in a namespace of its own, where the constant has its value; extern "C" keeps that out of the kernel's name.
#define KERNELS_1(name, infix, CONSTANT, value, bounds, ...) \
    namespace name##infix##value##_alone {                   \
    constexpr int CONSTANT = value;                          \
    KERNEL void bounds name##infix##value __VA_ARGS__        \
    }
// Numbers that kernels take by value as one parameter: PARAMS struct Name { fields; functions }; build.rs writes its twin of
// the same name. Fields are numbers, and lie without gaps.
#define PARAMS
// A constant that the host needs: EXPORT constexpr int NAME = expression;
#define EXPORT

// The upper half of a float. Arithmetic is done in f32, so this is all of the type that we use.
struct bf16 {
    unsigned short bits;
};

// Elements of a 16-byte vector.
constexpr int BF16S = 8;
constexpr int FLOATS = 4;
constexpr unsigned ALL = 0xffffffffu;

__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ inline float widen(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ inline void widen(float (&to)[BF16S], const uint4& from) {
    const unsigned pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(pairs[i] << 16);
        to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

// Two floats to the nearest bf16, ties to even.
__device__ inline unsigned narrow(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ inline uint4 narrow(const float (&from)[BF16S]) {
    return make_uint4(narrow(from[0], from[1]), narrow(from[2], from[3]), narrow(from[4], from[5]),
                      narrow(from[6], from[7]));
}

// By the fast instructions: 2 units in the last place each.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline float silu(float x) { return x * sigmoid(x); }

// A pair turned by the angle whose cosine and sine these are, in the same bits wherever it is done: rope.
__device__ inline float2 turned(float a, float b, float cos, float sin) {
    return make_float2(__fmaf_rn(a, cos, -__fmul_rn(b, sin)), __fmaf_rn(b, cos, __fmul_rn(a, sin)));
}

// Vector v of an array that starts at a 16-byte boundary.
__device__ inline uint4 load(const bf16* from, size_t v) { return reinterpret_cast<const uint4*>(from)[v]; }
__device__ inline float4 load(const float* from, size_t v) { return reinterpret_cast<const float4*>(from)[v]; }
__device__ inline void store(bf16* to, size_t v, const uint4& x) { reinterpret_cast<uint4*>(to)[v] = x; }
__device__ inline void store(float* to, size_t v, const float4& x) { reinterpret_cast<float4*>(to)[v] = x; }
// The same to global memory in one instruction, come what may: a vector that is only copied from shared memory becomes four
// loads and four stores, each of which asks for all of its sectors.
__device__ inline void st_global(bf16* to, const uint4& x) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(x.x), "r"(x.y), "r"(x.z),
                 "r"(x.w)
                 : "memory");
}

// The sum over a warp, in every lane. Floating-point addition commutes, so all lanes have the same bits.
template <typename T>
__device__ inline T warp_sum(T x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL, x, apart);
    return x;
}

// The sum over a one-dimensional block of whole warps, in every thread, at the cost of one barrier. `scratch` holds one
// value a warp; two calls in a row take two scratches in turn, which a third may then use again.
template <typename T>
__device__ inline T block_sum(T x, T* scratch) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (lane == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : T(0));
}
