// The asynchronous instructions of sm_90, spelled once; all but the loop around try_wait is one instruction each.
#pragma once
#include <cstdint>

struct alignas(64) Map { char opaque[128]; };

#define ASYNC __device__ __forceinline__

ASYNC uint32_t sh(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
ASYNC void bar_init(uint64_t* b, int n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sh(b)), "r"(n) : "memory"); }
ASYNC void bar_inval(uint64_t* b) { asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(sh(b)) : "memory"); }
ASYNC void bar_arrive(uint64_t* b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sh(b)) : "memory"); }
ASYNC void bar_expect(uint64_t* b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sh(b)), "r"(bytes) : "memory");
}
ASYNC uint32_t at_rank(uint32_t address, int rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
ASYNC void bar_arrive_at(uint64_t* b, int rank) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(at_rank(sh(b), rank)) : "memory");
}
ASYNC bool bar_try(uint64_t* b, int parity) {
    int done;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.s32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(sh(b)), "r"(parity) : "memory");
    return done;
}
ASYNC void bar_wait(uint64_t* b, int parity) { while (!bar_try(b, parity)) {} }
ASYNC void init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
ASYNC void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
ASYNC void bulk_load(void* to, const void* from, int bytes, uint64_t* b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(sh(to)), "l"(from), "r"(bytes), "r"(sh(b)) : "memory");
}
ASYNC void bulk_load_to(void* to, const void* from, int bytes, uint64_t* b, uint16_t ranks) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 ::"r"(sh(to)), "l"(from), "r"(bytes), "r"(sh(b)), "h"(ranks) : "memory");
}
ASYNC void bulk_send(uint32_t to, const void* from, int bytes, uint32_t b) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "r"(sh(from)), "r"(bytes), "r"(b) : "memory");
}
ASYNC void bulk_store(void* to, const void* from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(sh(from)), "r"(bytes) : "memory");
}
ASYNC void bulk_add(float* to, const void* from, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
                 ::"l"(to), "r"(sh(from)), "r"(bytes) : "memory");
}
ASYNC void box_load(void* to, const Map* map, int x, int y, uint64_t* b) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(sh(to)), "l"(map), "r"(x), "r"(y), "r"(sh(b)) : "memory");
}
ASYNC void box_load_to(void* to, const Map* map, int x, int y, uint64_t* b, uint16_t ranks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(sh(to)), "l"(map), "r"(x), "r"(y), "r"(sh(b)), "h"(ranks) : "memory");
}
ASYNC void box_store(const Map* map, const void* from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"(map), "r"(sh(from)), "r"(x), "r"(y) : "memory");
}
ASYNC void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
ASYNC void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
ASYNC void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
ASYNC void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
ASYNC void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
ASYNC int cluster_rank() { int r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
ASYNC int cluster_blocks() { int n; asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n)); return n; }
ASYNC int peer_int(const int* p, int rank) {
    int v;
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(v) : "r"(at_rank(sh(p), rank)) : "memory");
    return v;
}
