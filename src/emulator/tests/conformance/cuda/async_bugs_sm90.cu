// One planted bug per kernel, on the line that says so; NAME_right is the same kernel without it.
#include "async.cuh"

#define BOTH(NAME, PARAMS, ...)                                       \
    extern "C" __global__ void NAME PARAMS { NAME##_body<true>(__VA_ARGS__); } \
    extern "C" __global__ void NAME##_right PARAMS { NAME##_body<false>(__VA_ARGS__); }
#define BODY template <bool BUG> ASYNC void

// The first lines of most kernels: a buffer, its mbarrier, a bulk load of 256 bytes.
#define LOADED                                  \
    __shared__ alignas(128) float x[64];        \
    __shared__ uint64_t bar;                    \
    int t = threadIdx.x;                        \
    if (t == 0) {                               \
        bar_init(&bar, 1);                      \
        init_fence();                           \
        bar_expect(&bar, 256);                  \
        bulk_load(x, in, 256, &bar);            \
    }                                           \
    __syncthreads();

BODY unfenced_store_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    int t = threadIdx.x;
    x[t] = in[t];
    if (!BUG) proxy_fence();
    __syncthreads();
    if (t == 0) {
        bulk_store(out, x, 256);  // BUG(unfenced_store): x was written by ordinary stores
        bulk_commit();
        bulk_wait_read();
    }
}
BOTH(unfenced_store, (float* out, const float* in), out, in)

BODY unfenced_box_body(const Map* map, const float* in) {
    __shared__ alignas(128) float x[8][8];
    int t = threadIdx.x;
    x[t / 8][t % 8] = in[t];
    if (!BUG) asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    if (t == 0) {
        box_store(map, x, 0, 0);  // BUG(unfenced_box)
        bulk_commit();
        bulk_wait_read();
    }
}
BOTH(unfenced_box, (const __grid_constant__ Map map, const float* in), &map, in)

BODY unfenced_global_body(float* scratch, float* out) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    scratch[t] = t;
    if (t == 0) { bar_init(&bar, 1); init_fence(); }
    if (!BUG) asm volatile("fence.proxy.async.global;" ::: "memory");
    __syncthreads();
    if (t == 0) {
        bar_expect(&bar, 256);
        bulk_load(x, scratch, 256, &bar);  // BUG(unfenced_global)
    }
    bar_wait(&bar, 0);
    out[t] = x[t];
}
BOTH(unfenced_global, (float* scratch, float* out), scratch, out)

BODY unfenced_init_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        if (!BUG) init_fence();
        bar_expect(&bar, 256);
        bulk_load(x, in, 256, &bar);  // BUG(unfenced_init)
    }
    __syncthreads();
    bar_wait(&bar, 0);
    out[t] = x[t];
}
BOTH(unfenced_init, (float* out, const float* in), out, in)

BODY unfenced_init_box_body(float* out, const Map* map) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 32) { bar_init(&bar, 1); if (!BUG) proxy_fence(); }
    __syncthreads();
    if (t == 0) {
        bar_expect(&bar, 256);
        box_load(x, map, 0, 0, &bar);  // BUG(unfenced_init_box)
    }
    bar_wait(&bar, 0);
    out[t] = x[t];
}
BOTH(unfenced_init_box, (float* out, const __grid_constant__ Map map), out, &map)

BODY read_in_flight_body(float* out, const float* in) {
    LOADED
    if (!BUG) bar_wait(&bar, 0);
    out[t] = x[t];  // BUG(read_in_flight): nobody has waited
    bar_wait(&bar, 0);
}
BOTH(read_in_flight, (float* out, const float* in), out, in)

BODY others_waited_body(float* out, const float* in) {
    LOADED
    if (!BUG || t < 32) bar_wait(&bar, 0);
    out[t] = x[t];  // BUG(others_waited): the second warp has not
    __syncthreads();
}
BOTH(others_waited, (float* out, const float* in), out, in)

BODY no_loop_body(float* out, const float* in) {
    LOADED
    bool done = bar_try(&bar, 0);
    if (!BUG) while (!done) done = bar_try(&bar, 0);
    out[t] = x[t];  // BUG(no_loop): try_wait may say no
    bar_wait(&bar, 0);
}
BOTH(no_loop, (float* out, const float* in), out, in)

BODY write_in_flight_body(float* out, const float* in) {
    LOADED
    if (!BUG) bar_wait(&bar, 0);
    x[t] = 1;  // BUG(write_in_flight)
    bar_wait(&bar, 0);
    out[t] = x[t];
}
BOTH(write_in_flight, (float* out, const float* in), out, in)

BODY refilled_early_body(float* out, const float* in) {
    LOADED
    bar_wait(&bar, 0);
    float v = x[63 - t];
    if (!BUG) __syncthreads();
    if (t == 0) {
        bar_expect(&bar, 256);
        bulk_load(x, in + 64, 256, &bar);  // BUG(refilled_early): others may still be reading
    }
    bar_wait(&bar, 1);
    out[t] = v + x[t];
}
BOTH(refilled_early, (float* out, const float* in), out, in)

BODY overwritten_source_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    int t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        x[t] = in[i * 64 + t];  // BUG(overwritten_source): the last round's store is still reading
        proxy_fence();
        __syncthreads();
        if (t == 0) {
            bulk_store(out + i * 64, x, 256);
            bulk_commit();
            if (!BUG || i == 1) bulk_wait_read();
        }
        __syncthreads();
    }
}
BOTH(overwritten_source, (float* out, const float* in), out, in)

BODY overwritten_box_body(const Map* map, const float* in) {
    __shared__ alignas(128) float x[8][8];
    int t = threadIdx.x;
    x[t / 8][t % 8] = in[t];
    proxy_fence();
    __syncthreads();
    if (t == 0) {
        box_store(map, x, 0, 0);
        bulk_commit();
        if (!BUG) bulk_wait_read();
        x[0][0] = 3;  // BUG(overwritten_box)
        bulk_wait_read();
    }
}
BOTH(overwritten_box, (const __grid_constant__ Map map, const float* in), &map, in)

BODY too_few_bytes_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, 256);
        bulk_load(x, in, BUG ? 128 : 256, &bar);
    }
    __syncthreads();
    while (!bar_try(&bar, 0)) {}  // BUG(too_few_bytes)
    out[t] = x[t % 32];
}
BOTH(too_few_bytes, (float* out, const float* in), out, in)

BODY too_many_bytes_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, BUG ? 192 : 256);
        bulk_load(x, in, 256, &bar);
    }
    __syncthreads();
    while (!bar_try(&bar, 0)) {}  // BUG(too_many_bytes)
    out[t] = x[t % 32];
}
BOTH(too_many_bytes, (float* out, const float* in), out, in)

BODY wrong_parity_body(float* out, const float* in) {
    LOADED
    bar_wait(&bar, 0);
    out[t] = x[t];
    if (BUG) while (!bar_try(&bar, 1)) {}  // BUG(wrong_parity): nobody completes a second phase
}
BOTH(wrong_parity, (float* out, const float* in), out, in)

BODY missing_arrival_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) bar_init(&bar, 64);
    __syncthreads();
    if (!BUG || t != 40) bar_arrive(&bar);
    while (!bar_try(&bar, 0)) {}  // BUG(missing_arrival)
    out[t] = t;
}
BOTH(missing_arrival, (int* out), out)

BODY many_arrivals_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) bar_init(&bar, BUG ? 16 : 32);
    __syncthreads();
    if (t == 0) asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(sh(&bar)) : "memory");
    __syncthreads();
    if (t < 32) bar_arrive(&bar);  // BUG(many_arrivals)
    if (t == 0) asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(sh(&bar)) : "memory");
    bar_wait(&bar, 0);
    out[t] = t;
}
BOTH(many_arrivals, (int* out), out)

BODY many_at_once_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) bar_init(&bar, 64);
    __syncthreads();
    if (t % 32 == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(sh(&bar)), "r"(BUG ? 65 : 32) : "memory");  // BUG(many_at_once)
    bar_wait(&bar, 0);
    out[t] = t;
}
BOTH(many_at_once, (int* out), out)

BODY never_begun_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0 && !BUG) bar_init(&bar, 64);
    __syncthreads();
    bar_arrive(&bar);  // BUG(never_begun)
    out[t] = t;
}
BOTH(never_begun, (int* out), out)

BODY ended_body(float* out, const float* in) {
    LOADED
    bar_wait(&bar, 0);
    out[t] = x[t];
    __syncthreads();
    if (t == 0) {
        if (BUG) bar_inval(&bar);
        bar_expect(&bar, 256);  // BUG(ended)
        bulk_load(x, in, 256, &bar);
        bar_wait(&bar, 1);
    }
}
BOTH(ended, (float* out, const float* in), out, in)

BODY begun_twice_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        if (!BUG) bar_inval(&bar);
        bar_init(&bar, 64);  // BUG(begun_twice)
    }
    __syncthreads();
    bar_arrive(&bar);
    bar_wait(&bar, 0);
    out[t] = t;
}
BOTH(begun_twice, (int* out), out)

BODY begun_again_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        if (t == 0) bar_init(&bar, 64);  // BUG(begun_again)
        __syncthreads();
        bar_arrive(&bar);
        bar_wait(&bar, 0);
        __syncthreads();
        if (t == 0 && !BUG) bar_inval(&bar);
    }
    out[t] = t;
}
BOTH(begun_again, (int* out), out)

BODY init_raced_body(int* out) {
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) bar_init(&bar, 64);
    if (!BUG) __syncthreads();
    if (BUG && t < 32) __nanosleep(t);
    bar_arrive(&bar);  // BUG(init_raced)
    bar_wait(&bar, 0);
    out[t] = t;
}
BOTH(init_raced, (int* out), out)

BODY peeked_body(long long* out) {
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) bar_init(&bar, 1);
    __syncthreads();
    long long v = threadIdx.x;
    if (BUG) v = *(volatile long long*)&bar;  // BUG(peeked)
    out[threadIdx.x] = v;
}
BOTH(peeked, (long long* out), out)

BODY crooked_barrier_body(int* out) {
    __shared__ alignas(8) char raw[16];
    uint64_t* bar = (uint64_t*)(raw + (BUG ? 4 : 8));
    if (threadIdx.x == 0) bar_init(bar, 1);  // BUG(crooked_barrier)
    out[threadIdx.x] = 1;
}
BOTH(crooked_barrier, (int* out), out)

BODY crooked_load_body(float* out, const float* in) {
    __shared__ alignas(128) float x[68];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, 256);
        bulk_load(x + (BUG ? 1 : 4), in, 256, &bar);  // BUG(crooked_load)
    }
    __syncthreads();
    bar_wait(&bar, 0);
    out[t] = x[4 + t];
}
BOTH(crooked_load, (float* out, const float* in), out, in)

BODY beyond_load_body(float* out, const float* in) {
    __shared__ alignas(128) float x[72];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, 256);
        bulk_load(x, in + (BUG ? 4 : 0), 256, &bar);  // BUG(beyond_load)
    }
    __syncthreads();
    bar_wait(&bar, 0);
    out[t] = x[t];
}
BOTH(beyond_load, (float* out, const float* in), out, in)

BODY left_loading_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, 256);
        bulk_load(x, in, 256, &bar);  // BUG(left_loading): and nobody waits
    }
    __syncthreads();
    if (!BUG) bar_wait(&bar, 0);
    out[t] = 1;
}
BOTH(left_loading, (float* out, const float* in), out, in)

BODY left_storing_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    int t = threadIdx.x;
    x[t] = in[t];
    proxy_fence();
    __syncthreads();
    if (t == 0) {
        bulk_store(out, x, 256);  // BUG(left_storing): the block leaves with its memory being read
        bulk_commit();
        if (!BUG) bulk_wait_read();
    }
}
BOTH(left_storing, (float* out, const float* in), out, in)

BODY left_early_body(int* out) {
    __shared__ int v;
    int rank = cluster_rank();
    if (threadIdx.x == 0) v = rank + 1;
    cluster_arrive();
    cluster_wait();
    out[blockIdx.x * 32 + threadIdx.x] = peer_int(&v, rank ^ 1);  // BUG(left_early): its block may be gone
    if (!BUG) { cluster_arrive(); cluster_wait(); }
}
BOTH(left_early, (int* out), out)

BODY added_late_body(int* out) {
    __shared__ int v;
    int rank = cluster_rank();
    if (threadIdx.x == 0) v = 0;
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x == 0) asm volatile("red.relaxed.cluster.shared::cluster.add.s32 [%0], 1;" ::"r"(at_rank(sh(&v), rank ^ 1)) : "memory");  // BUG(added_late)
    if (!BUG) { cluster_arrive(); cluster_wait(); }
    if (threadIdx.x == 0) out[blockIdx.x] = BUG ? 0 : v;
}
BOTH(added_late, (int* out), out)

BODY peers_raced_body(int* out) {
    __shared__ int v;
    int rank = cluster_rank();
    v = 0;
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x == 0) v = rank + 1;
    if (!BUG) { cluster_arrive(); cluster_wait(); }
    int w = threadIdx.x == 0 ? peer_int(&v, rank ^ 1) : 0;  // BUG(peers_raced)
    cluster_arrive();
    cluster_wait();
    out[blockIdx.x * 32 + threadIdx.x] = w;
}
BOTH(peers_raced, (int* out), out)

BODY peer_not_begun_body(int* out) {
    __shared__ int v;
    int rank = cluster_rank();
    if (threadIdx.x == 0 && !(BUG && rank == 1)) v = rank;
    cluster_arrive();
    cluster_wait();
    int w = peer_int(&v, rank ^ 1);  // BUG(peer_not_begun)
    cluster_arrive();
    cluster_wait();
    out[blockIdx.x * 32 + threadIdx.x] = w;
}
BOTH(peer_not_begun, (int* out), out)

BODY came_twice_body(int* out) {
    cluster_arrive();
    if (!BUG) cluster_wait();
    cluster_arrive();  // BUG(came_twice)
    cluster_wait();
    out[blockIdx.x * 32 + threadIdx.x] = 1;
}
BOTH(came_twice, (int* out), out)

BODY never_came_body(int* out) {
    if (!BUG) cluster_arrive();
    cluster_wait();  // BUG(never_came)
    out[blockIdx.x * 32 + threadIdx.x] = 1;
}
BOTH(never_came, (int* out), out)

BODY one_stays_away_body(int* out) {
    __shared__ uint64_t bar;
    int rank = cluster_rank();
    if (threadIdx.x == 0) bar_init(&bar, 1);
    __syncthreads();
    if (rank == 1 && BUG) while (!bar_try(&bar, 0)) {}
    cluster_arrive();
    cluster_wait();  // BUG(one_stays_away): rank 1 waits for an mbarrier that nobody comes to
    out[blockIdx.x * 32 + threadIdx.x] = 1;
}
BOTH(one_stays_away, (int* out), out)

BODY own_bytes_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64], y[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x, rank = cluster_rank();
    if (t == 0) { bar_init(&bar, 1); init_fence(); }
    x[t] = in[t];
    proxy_fence();
    cluster_arrive();
    cluster_wait();
    if (t == 0) {
        bar_expect(&bar, 256);
        bulk_send(at_rank(sh(y), rank ^ 1), x, 256, at_rank(sh(&bar), BUG ? rank : rank ^ 1));  // BUG(own_bytes)
    }
    bar_wait(&bar, 0);
    out[blockIdx.x * 64 + t] = y[t];
    cluster_arrive();
    cluster_wait();
}
BOTH(own_bytes, (float* out, const float* in), out, in)

BODY many_ranks_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x, rank = cluster_rank();
    if (t == 0) { bar_init(&bar, 1); init_fence(); bar_expect(&bar, 256); }
    cluster_arrive();
    cluster_wait();
    if (t == 0 && rank == 0) bulk_load_to(x, in, 256, &bar, BUG ? 7 : 3);  // BUG(many_ranks)
    bar_wait(&bar, 0);
    out[blockIdx.x * 64 + t] = x[t];
    cluster_arrive();
    cluster_wait();
}
BOTH(many_ranks, (float* out, const float* in), out, in)

template <bool BUG> __device__ __noinline__ void through(float* out, const Map* map) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, 256);
        box_load(x, map, 0, 0, &bar);  // BUG(map_on_the_stack)
    }
    __syncthreads();
    bar_wait(&bar, 0);
    out[t] = x[t];
}
extern "C" __global__ void map_on_the_stack(float* out, const Map map) { through<true>(out, &map); }
extern "C" __global__ void map_on_the_stack_right(float* out, const __grid_constant__ Map map) { through<false>(out, &map); }

// The map is an array that the host gives: a copy of the real one in global memory, or something else.
extern "C" __global__ void map_in_memory(float* out, const Map* map, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
        bar_expect(&bar, 256);
        box_load(x, map, 0, 0, &bar);  // BUG(map_in_memory)
    }
    __syncthreads();
    bar_wait(&bar, 0);
    out[t] = x[t];
}

BODY multicast_to_the_gone_body(float* out, const float* in) {
    __shared__ alignas(128) float x[64];
    __shared__ uint64_t bar;
    int t = threadIdx.x, rank = cluster_rank();
    if (t == 0) { bar_init(&bar, 1); init_fence(); bar_expect(&bar, 256); }
    cluster_arrive();
    cluster_wait();
    if (t == 0 && rank == 0) bulk_load_to(x, in, 256, &bar, 3);  // BUG(multicast_to_the_gone): rank 1 does not wait
    if (!BUG || rank == 0) bar_wait(&bar, 0);
    out[blockIdx.x * 64 + t] = 1;
    if (!BUG) { cluster_arrive(); cluster_wait(); }
}
BOTH(multicast_to_the_gone, (float* out, const float* in), out, in)
