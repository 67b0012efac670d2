// Hopper's instructions (sm_90a): one inline function each, named like it. Addresses of shared memory are bytes of the
// shared window, as `shared_address` gives them. Operands of wgmma lie in 128-byte rows under the 128-byte swizzle, in tiles
// that start at multiples of 1024 bytes; so does the tensor map write and read them.
#pragma once
#include "common.cuh"

using bytes64 = unsigned long long;

// What cuTensorMapEncodeTiled fills: a kernel takes it as `const __grid_constant__ CUtensorMap`.
struct alignas(64) CUtensorMap {
    unsigned char opaque[128];
};

// ---- Clusters ----

__device__ inline unsigned cluster_ctarank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of the cluster; what they did before is seen by all behind it.
__device__ inline void barrier_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- mbarrier ----
// Arrivals and waits take the scope of a block, the instruction's own: at the scope of a cluster ptxas makes fences of them
// that flush caches in every stage (MEMBAR.ALL.GPU, CCTL.IVALL). What they order here are bulk copies and wgmma, whose own
// completion they carry, between blocks too.

// `count` arrivals, and the bytes that they announce, end a phase.
__device__ inline void mbarrier_init(unsigned barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Behind the inits, before the barrier that tells the others of them.
__device__ inline void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// One arrival that announces `bytes` of copies.
__device__ inline void mbarrier_arrive_expect_tx(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// One arrival.
__device__ inline void mbarrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival at the barrier in the same place of another block of the cluster (or of this one).
__device__ inline void mbarrier_arrive(unsigned barrier, unsigned rank) {
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}
// Until the phase of this parity is over; the one before the first has parity 1. A wait that goes on for seconds is a fault
// of the program: it ends in a store to no address, which the host sees as an error, and not in a GPU that hangs. (`__trap()`
// would keep ptxas 13.0 at the launch bounds' registers behind setmaxnreg, so that sums spill.)
__device__ inline void mbarrier_wait(unsigned barrier, int parity) {
    constexpr unsigned PATIENCE = 1u << 23;
    for (unsigned turn = 0;; turn++) {
        int over;
        asm volatile(
            "{\n.reg .pred over;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
            "selp.s32 %0, 1, 0, over;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
        if (over) return;
        if (turn > PATIENCE) asm volatile("st.global.u32 [%0], %1;" ::"l"(16ull), "r"(barrier) : "memory");
    }
}

// ---- Bulk copies ----

// Ordinary writes to shared memory before it are seen by bulk copies and wgmma behind it.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void prefetch_tensormap(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The box at element (x, y) to shared memory; its bytes count at the barrier.
__device__ inline void cp_async_bulk_tensor_load(unsigned to, const CUtensorMap& map, int x, int y, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}
// For what is read once.
__device__ inline bytes64 createpolicy_evict_first() {
    bytes64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// The same, kept or let go by the L2 as `policy` says.
__device__ inline void cp_async_bulk_tensor_load(unsigned to, const CUtensorMap& map, int x, int y, unsigned barrier,
                                                 bytes64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
        : "memory");
}
// The same to the same place in all blocks of `mask`, and at each one's barrier.
__device__ inline void cp_async_bulk_tensor_multicast(unsigned to, const CUtensorMap& map, int x, int y,
                                                      unsigned barrier, unsigned short mask) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
        : "memory");
}
// The reverse, in this thread's bulk group.
__device__ inline void cp_async_bulk_tensor_store(const CUtensorMap& map, int x, int y, unsigned from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                 "r"(x), "r"(y), "r"(from)
                 : "memory");
}
__device__ inline void cp_async_bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the newest PENDING groups of this thread have read their shared memory: it may be written again, or go away
// with the block.
template <int PENDING = 0>
__device__ inline void cp_async_bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// ---- wgmma ----

// Descriptor of an operand under the 128-byte swizzle. K-major: rows of 64 bf16 along k, eight rows are 1024 bytes, and
// the next k-step of 16 is 32 bytes on. MN-major: rows of 64 bf16 along m or n, one for each k; the next 64 along m or n are
// `panel` bytes on, and the next k-step 2048.
__device__ inline bytes64 wgmma_descriptor(unsigned at, int panel = 16) {
    return bytes64((at & 0x3ffff) >> 4) | bytes64(panel >> 4) << 16 | bytes64(1024 >> 4) << 32 | bytes64(1) << 62;
}
// Behind every ordinary access to registers that the next wgmma hold.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most PENDING groups are under way.
template <int PENDING>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving accesses to an accumulator past this point.
template <int N>
__device__ inline void wgmma_pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// The same of an operand in registers.
template <int N>
__device__ inline void wgmma_pin(unsigned (&a)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(a[i])::"memory");
}
// d = a b + (keep ? d : 0) on 64 x N x 16. d[4j], d[4j + 1] are row 16 (warp % 4) + lane / 4, columns 8j + 2 (lane % 4) and
// one on; d[4j + 2], d[4j + 3] lie eight rows below. MN_MAJOR and A_MN_MAJOR: how b and a lie.
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_32(i) WGMMA_8(i), WGMMA_8(i + 8), WGMMA_8(i + 16), WGMMA_8(i + 24)
#define WGMMA_LIST_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_LIST_12 WGMMA_LIST_8 ", %8, %9, %10, %11"
#define WGMMA_LIST_16 WGMMA_LIST_12 ", %12, %13, %14, %15"
#define WGMMA_LIST_20 WGMMA_LIST_16 ", %16, %17, %18, %19"
#define WGMMA_LIST_24 WGMMA_LIST_20 ", %20, %21, %22, %23"
#define WGMMA_LIST_28 WGMMA_LIST_24 ", %24, %25, %26, %27"
#define WGMMA_LIST_32 WGMMA_LIST_28 ", %28, %29, %30, %31"
#define WGMMA_LIST_48                                                                              \
    WGMMA_LIST_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_LIST_64                                                                                            \
    WGMMA_LIST_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_LIST_128                                                                                          \
    WGMMA_LIST_64                                                                                               \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "    \
    "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
    "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "   \
    "%121, %122, %123, %124, %125, %126, %127"
// A, B, KEEP, MAJOR and A_MAJOR number the operands behind the sums.
#define WGMMA(N, COUNT, A, B, KEEP, MAJOR, A_MAJOR, ...)                                                           \
    template <bool MN_MAJOR, bool A_MN_MAJOR = false>                                                              \
    __device__ inline void wgmma_m64n##N##k16(float(&d)[COUNT], bytes64 a, bytes64 b, int keep) {                  \
        asm volatile("{\n.reg .pred keep;\nsetp.ne.s32 keep, %" #KEEP                                              \
                     ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_LIST_##COUNT "}, %" #A \
                     ", %" #B ", keep, 1, 1, %" #A_MAJOR ", %" #MAJOR ";\n}"                                       \
                     : __VA_ARGS__                                                                                 \
                     : "l"(a), "l"(b), "r"(keep), "n"(int(MN_MAJOR)), "n"(int(A_MN_MAJOR))                         \
                     : "memory");                                                                                  \
    }
WGMMA(16, 8, 8, 9, 10, 11, 12, WGMMA_8(0))
WGMMA(24, 12, 12, 13, 14, 15, 16, WGMMA_8(0), WGMMA_4(8))
WGMMA(32, 16, 16, 17, 18, 19, 20, WGMMA_8(0), WGMMA_8(8))
WGMMA(40, 20, 20, 21, 22, 23, 24, WGMMA_8(0), WGMMA_8(8), WGMMA_4(16))
WGMMA(48, 24, 24, 25, 26, 27, 28, WGMMA_8(0), WGMMA_8(8), WGMMA_8(16))
WGMMA(56, 28, 28, 29, 30, 31, 32, WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_4(24))
WGMMA(64, 32, 32, 33, 34, 35, 36, WGMMA_32(0))
WGMMA(96, 48, 48, 49, 50, 51, 52, WGMMA_32(0), WGMMA_8(32), WGMMA_8(40))
WGMMA(128, 64, 64, 65, 66, 67, 68, WGMMA_32(0), WGMMA_32(32))
WGMMA(256, 128, 128, 129, 130, 131, 132, WGMMA_32(0), WGMMA_32(32), WGMMA_32(64), WGMMA_32(96))
// The same with a in registers: a[0] is row 16 (warp % 4) + lane / 4, columns 2 (lane % 4) and one on; a[1] lies eight rows below,
// a[2] and a[3] eight columns on, as in mma.sync. They are read until the products are over.
#define WGMMA_A(N, COUNT, A0, A1, A2, A3, B, KEEP, MAJOR, ...)                                                    \
    template <bool MN_MAJOR>                                                                                       \
    __device__ inline void wgmma_m64n##N##k16(float(&d)[COUNT], const unsigned* a, bytes64 b, int keep) {         \
        asm volatile("{\n.reg .pred keep;\nsetp.ne.s32 keep, %" #KEEP                                              \
                     ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_LIST_##COUNT          \
                     "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", keep, 1, 1, %" #MAJOR ";\n}"            \
                     : __VA_ARGS__                                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(int(MN_MAJOR))           \
                     : "memory");                                                                                  \
    }
WGMMA_A(64, 32, 32, 33, 34, 35, 36, 37, 38, WGMMA_32(0))
WGMMA_A(128, 64, 64, 65, 66, 67, 68, 69, 70, WGMMA_32(0), WGMMA_32(32))
#undef WGMMA_A
#undef WGMMA
#undef WGMMA_LIST_128
#undef WGMMA_LIST_64
#undef WGMMA_LIST_48
#undef WGMMA_LIST_32
#undef WGMMA_LIST_28
#undef WGMMA_LIST_24
#undef WGMMA_LIST_20
#undef WGMMA_LIST_16
#undef WGMMA_LIST_12
#undef WGMMA_LIST_8
#undef WGMMA_32
#undef WGMMA_8
#undef WGMMA_4

// ---- Registers and matrices ----

// Once `threads` threads have come, of which those that only arrive go on at once; `name` is 1 to 15, 0 is __syncthreads'.
__device__ inline void barrier_sync(int name, int threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ inline void barrier_arrive(int name, int threads) {
    asm volatile("barrier.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
// The 128 threads of a warpgroup.
__device__ inline void barrier_warpgroup(int name) { asm volatile("barrier.sync %0, 128;" ::"r"(name) : "memory"); }

template <int REGISTERS>
__device__ inline void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ inline void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
// One lane of the warp, always the same.
__device__ inline bool elect_sync() {
    int elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.s32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected;
}
__device__ inline uint4 ld_shared(unsigned from) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}
__device__ inline void st_shared(unsigned to, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
// Four 8x8 matrices of 16-bit elements; lanes 8i .. 8i + 8 name the rows of matrix i.
__device__ inline void stmatrix_x4(unsigned to, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
