// D = A B^T on one warpgroup, 64 x 8 x 16 in bf16, with one planted bug each; VARIANT NONE has none.
#include <cstdint>
#include <cuda_bf16.h>

using Half = __nv_bfloat16;

enum Variant {
    NONE,
    READ_EARLY, WRITE_EARLY, NOT_COMMITTED, TOO_FEW_WAITED,
    A_WRITTEN, A_READ,
    NO_FENCE, NO_SECOND_FENCE, A_UNFENCED,
    MISALIGNED, OUTSIDE, UNWRITTEN,
    NO_PROXY_FENCE, PROXY_FENCE_TOO_EARLY,
    NO_BARRIER, REFILLED,
    WARP_MISSING, WARP_LEFT, LANES_MISSING, ELSEWHERE, TWO_DESCRIPTORS, TWO_SCALES,
};

#define ASM asm volatile
__device__ void arrive() { ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit() { ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ void wait() { ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

struct Acc { float x, y, z, w; };

__device__ void mma(Acc& d, uint64_t a, uint64_t b, int keep = 1) {
    ASM("{\n.reg .pred keep;\nsetp.ne.s32 keep, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, keep, 1, 1, 0, 0;\n}"
        : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w) : "l"(a), "l"(b), "r"(keep) : "memory");
}
__device__ void mma(Acc& d, uint32_t (&a)[4], uint64_t b) {
    ASM("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
        : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}
__device__ void touch(Acc& d) { ASM("" : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)::"memory"); }

// Core matrices of 8 x 8 lie one after the other: 128 bytes to the next eight along k, 256 to the next eight rows.
__device__ uint64_t describe(const void* tile) {
    uint64_t at = __cvta_generic_to_shared(tile);
    return (at & 0x3ffff) >> 4 | uint64_t(128 >> 4) << 16 | uint64_t(256 >> 4) << 32;
}
__device__ int core(int row, int k) { return row / 8 * 128 + k / 8 * 64 + row % 8 * 8 + k % 8; }

struct Tiles {
    alignas(128) Half a[64 * 16];
    alignas(128) Half b[8 * 16];
};

template <int V>
__device__ void fill(Tiles& s, const Half* a, const Half* b) {
    int t = threadIdx.x;
    if (V == PROXY_FENCE_TOO_EARLY) ASM("fence.proxy.async;" ::: "memory");
#pragma unroll 1
    for (int i = t; i < 64 * 16; i += 128) s.a[core(i / 16, i % 16)] = a[i];
#pragma unroll 1
    for (int i = t; i < 8 * 16; i += 128)
        if (V != UNWRITTEN || i != 77) s.b[core(i / 16, i % 16)] = b[i];
    if (V != NO_PROXY_FENCE && V != PROXY_FENCE_TOO_EARLY) ASM("fence.proxy.async;" ::: "memory");
}

__device__ void store(float* out, const Acc& d) {
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    *(float2*)(out + row * 8 + column) = make_float2(d.x, d.y);
    *(float2*)(out + (row + 8) * 8 + column) = make_float2(d.z, d.w);
}

// out = 2 A B^T, in two steps.
template <int V>
__device__ void twice(float* out, const Half* a, const Half* b) {
    __shared__ Tiles s;
    fill<V>(s, a, b);
    if (V != NO_BARRIER) __syncthreads();
    uint64_t da = describe(s.a), db = describe(s.b);
    if (V == MISALIGNED) db |= uint64_t(1) << 62, db += 8;
    if (V == OUTSIDE) da += 64;
    if (V == TWO_DESCRIPTORS && threadIdx.x >= 64) db += 8;
    Acc d = {};
    touch(d);
    if (V == WARP_LEFT && threadIdx.x >= 96) return;
    if (V == WARP_MISSING && threadIdx.x >= 96) {
        __syncthreads();
        return;
    }
    if (V == LANES_MISSING && threadIdx.x % 32 == 5) return;
    if (V != NO_FENCE) arrive();
    if (V == ELSEWHERE && threadIdx.x < 32) {
        mma(d, da, db);  // BUG(elsewhere)
    } else {
        int keep = V != TWO_SCALES || threadIdx.x < 32;
        mma(d, da, db, keep);  // BUG(no_fence) BUG(misaligned_descriptor) BUG(operand_outside) BUG(operand_unwritten) BUG(no_proxy_fence) BUG(proxy_fence_too_early) BUG(no_barrier) BUG(warp_missing) BUG(warp_left) BUG(lanes_missing) BUG(two_descriptors) BUG(two_scales)
    }
    if (V != NOT_COMMITTED) commit();
    if (V == READ_EARLY) out[threadIdx.x] = d.x;  // BUG(read_early)
    if (V == WRITE_EARLY) ASM("mov.f32 %0, 0f00000000;" : "+f"(d.x));  // BUG(write_early)
    if (V == REFILLED) s.b[threadIdx.x] = b[threadIdx.x];  // BUG(refilled)
    if (V == TOO_FEW_WAITED) wait<1>();
    else wait<0>();
    touch(d);  // Nothing for the hardware; it keeps the compiler's hands off.
    if (V == NO_SECOND_FENCE) ASM("add.f32 %0, %0, 0f00000000;" : "+f"(d.x));
    if (V == TOO_FEW_WAITED || V == NOT_COMMITTED) ASM("add.f32 %0, %0, 0f00000000;" : "+f"(d.x));  // BUG(too_few_waited) BUG(not_committed)
    if (V != NO_SECOND_FENCE) arrive();
    mma(d, da, db);  // BUG(no_second_fence)
    commit();
    wait<0>();
    touch(d);
    store(out, d);
}

// The same with A in registers, in one step.
template <int V>
__device__ void once(float* out, const Half* a, const Half* b) {
    __shared__ Tiles s;
    fill<V>(s, a, b);
    __syncthreads();
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    uint32_t fragment[4];
    for (int i = 0; i < 4; i++) fragment[i] = *(const uint32_t*)(a + (row + i % 2 * 8) * 16 + column + i / 2 * 8);
    for (int i = 0; i < 4; i++) ASM("add.bf16x2 %0, %0, %0;" : "+r"(fragment[i]));
    Acc d = {};
    touch(d);
    arrive();
    if (V == A_UNFENCED) ASM("add.u32 %0, %0, 0;" : "+r"(fragment[2]));
    mma(d, fragment, describe(s.b));  // BUG(a_unfenced)
    commit();
    if (V == A_WRITTEN) ASM("mov.u32 %0, 0;" : "+r"(fragment[1]));  // BUG(a_written)
    if (V == A_READ) ((uint32_t*)out)[threadIdx.x] = fragment[3];  // BUG(a_read)
    wait<0>();
    for (int i = 0; i < 4; i++) ASM("" : "+r"(fragment[i])::"memory");
    touch(d);
    store(out, d);
}

#define TWICE(name, variant) \
    extern "C" __global__ void __launch_bounds__(128) name(float* out, const Half* a, const Half* b) { twice<variant>(out, a, b); }
#define ONCE(name, variant) \
    extern "C" __global__ void __launch_bounds__(128) name(float* out, const Half* a, const Half* b) { once<variant>(out, a, b); }
TWICE(twice_right, NONE)
TWICE(read_early, READ_EARLY)
TWICE(write_early, WRITE_EARLY)
TWICE(not_committed, NOT_COMMITTED)
TWICE(too_few_waited, TOO_FEW_WAITED)
TWICE(no_fence, NO_FENCE)
TWICE(no_second_fence, NO_SECOND_FENCE)
TWICE(misaligned_descriptor, MISALIGNED)
TWICE(operand_outside, OUTSIDE)
TWICE(operand_unwritten, UNWRITTEN)
TWICE(no_proxy_fence, NO_PROXY_FENCE)
TWICE(proxy_fence_too_early, PROXY_FENCE_TOO_EARLY)
TWICE(no_barrier, NO_BARRIER)
TWICE(refilled, REFILLED)
TWICE(warp_missing, WARP_MISSING)
TWICE(warp_left, WARP_LEFT)
TWICE(lanes_missing, LANES_MISSING)
TWICE(elsewhere, ELSEWHERE)
TWICE(two_descriptors, TWO_DESCRIPTORS)
TWICE(two_scales, TWO_SCALES)
ONCE(once_right, NONE)
ONCE(a_unfenced, A_UNFENCED)
ONCE(a_written, A_WRITTEN)
ONCE(a_read, A_READ)

// Three warpgroups of 168 registers each: what one gives back two may take.
template <int GIVE, int TAKE, bool ALONE = false>
__device__ void registers(int* out) {
    int group = threadIdx.x / 128;
    if (group == 0) {
        if (!ALONE || threadIdx.x < 96) ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(GIVE));  // BUG(registers_of_three_warps)
    } else {
        ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(TAKE));  // BUG(registers_beyond_the_pool) BUG(registers_raised_to_less)
    }
    out[threadIdx.x] = group;
}
extern "C" __global__ void __launch_bounds__(384, 1) registers_right(int* out) { registers<40, 232>(out); }
extern "C" __global__ void __launch_bounds__(384, 1) registers_beyond_the_pool(int* out) { registers<40, 240>(out); }
extern "C" __global__ void __launch_bounds__(384, 1) registers_raised_to_less(int* out) { registers<40, 160>(out); }
extern "C" __global__ void __launch_bounds__(384, 1) registers_of_three_warps(int* out) { registers<40, 232, true>(out); }
extern "C" __global__ void registers_unbounded(int* out) {
    ASM("setmaxnreg.dec.sync.aligned.u32 40;");  // BUG(registers_unbounded)
    out[threadIdx.x] = 0;
}

// stmatrix of 1, 2 and 4 matrices, plain and transposed, read back as they lie; the elected lane's number behind them.
extern "C" __global__ void stored_matrices(uint16_t* out, const uint32_t* in) {
    __shared__ alignas(16) uint16_t tiles[6][4 * 64];
    int lane = threadIdx.x;
    uint32_t at[6], r[4];
    for (int i = 0; i < 6; i++) at[i] = (uint32_t)__cvta_generic_to_shared(&tiles[i][lane * 8]);
    for (int i = 0; i < 4; i++) r[i] = in[4 * lane + i];
#pragma unroll 1
    for (int i = lane; i < 6 * 256; i += 32) (&tiles[0][0])[i] = 0;
    __syncwarp();
    ASM("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(at[0]), "r"(r[0]) : "memory");
    ASM("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(at[1]), "r"(r[0]), "r"(r[1]) : "memory");
    ASM("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at[2]), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    ASM("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(at[3]), "r"(r[0]) : "memory");
    ASM("stmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 [%0], {%1, %2};" ::"r"(at[4]), "r"(r[0]), "r"(r[1]) : "memory");
    ASM("stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(at[5]), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 6 * 256; i += 32) out[i] = (&tiles[0][0])[i];
    uint32_t leader, mine;
    ASM("{\n.reg .pred p;\nelect.sync %0|p, 0xffffffff;\nselp.u32 %1, 1, 0, p;\n}" : "=r"(leader), "=r"(mine));
    if (mine) out[6 * 256] = lane == leader;
}

// The same matrices back again by ldmatrix: a round trip of every form.
extern "C" __global__ void there_and_back(uint32_t* out, const uint32_t* in) {
    __shared__ alignas(16) uint16_t tile[4 * 64];
    int lane = threadIdx.x;
    uint32_t at = (uint32_t)__cvta_generic_to_shared(&tile[lane * 8]), r[4], q[4];
    for (int i = 0; i < 4; i++) r[i] = in[4 * lane + i];
    ASM("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    __syncwarp();
    ASM("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(q[0]), "=r"(q[1]) : "r"(at) : "memory");
    ASM("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(q[2]) : "r"(at) : "memory");
    ASM("ldmatrix.sync.aligned.m8n8.x1.shared::cta.b16 {%0}, [%1];" : "=r"(q[3]) : "r"(at) : "memory");
    for (int i = 0; i < 4; i++) out[4 * lane + i] = q[i];
}
