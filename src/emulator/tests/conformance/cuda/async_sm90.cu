// Clusters, mbarriers and bulk copies as other programs use them: the guide's histogram, pipelines, exchanges.
#include "async.cuh"
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

// The programming guide's histogram whose bins are spread over the blocks of a cluster.
extern "C" __global__ void cluster_histogram(int* bins, int nbins, int per_block, const int* input, int size) {
    extern __shared__ int smem[];
    int tid = cg::this_grid().thread_rank();
    cg::cluster_group cluster = cg::this_cluster();
    int csize = cluster.dim_blocks().x;
    for (int i = threadIdx.x; i < per_block; i += blockDim.x) smem[i] = 0;
    cluster.sync();
    for (int i = tid; i < size; i += blockDim.x * gridDim.x) {
        int bin = min(max(input[i], 0), nbins - 1);
        int* there = cluster.map_shared_rank(smem, bin / per_block);
        atomicAdd(there + bin % per_block, 1);
    }
    cluster.sync();
    int* out = bins + cluster.block_rank() * per_block;
    for (int i = threadIdx.x; i < per_block; i += blockDim.x) atomicAdd(&out[i], smem[i]);
    if (csize == 0) bins[0] = 0;
}

// Each block sums its part, reads the others' sums by mapa, and checks where it is. Compiled for clusters of 4.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_sum(int* out, int* where, const int* in) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, in[blockIdx.x * blockDim.x + threadIdx.x]);
    cluster_arrive();
    int rank = cluster_rank(), n = cluster_blocks();
    cluster_wait();
    int total = 0;
    for (int r = 0; r < n; r++) total += peer_int(&sum, (rank + r) % n) * (r + 1);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = total;
        int back, explicitly, id, ids;
        asm("getctarank.shared::cluster.u32 %0, %1;" : "=r"(back) : "r"(at_rank(sh(&sum), n - 1 - rank)));
        asm("{ .reg .pred p; mov.pred p, %%is_explicit_cluster; selp.s32 %0, 1, 0, p; }" : "=r"(explicitly));
        asm("mov.u32 %0, %%clusterid.x;" : "=r"(id));
        asm("mov.u32 %0, %%nclusterid.x;" : "=r"(ids));
        where[blockIdx.x] = rank + 10 * n + 100 * back + 1000 * explicitly + 10000 * id + 100000 * ids;
    }
    cluster_arrive();
    cluster_wait();
}

// Tiles of 32 x 32 floats come by TMA through two buffers (full and empty barriers), are transposed out of the 128-byte
// swizzle by four warps, and leave by TMA.
extern "C" __global__ void tma_transpose(const __grid_constant__ Map from, const __grid_constant__ Map to, int tiles_x, int tiles_y) {
    __shared__ alignas(1024) float in[2][32][32];
    __shared__ alignas(128) float out[32][32];
    __shared__ uint64_t full[2], empty[2];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tiles = tiles_x * tiles_y;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) { bar_init(&full[s], 1); bar_init(&empty[s], 4); }
        init_fence();
    }
    __syncthreads();
    if (warp == 4) {
        if (lane != 0) return;
        asm volatile("prefetch.tensormap [%0];" ::"l"(&from));
        for (int t = blockIdx.x, i = 0; t < tiles; t += gridDim.x, i++) {
            int s = i % 2;
            bar_wait(&empty[s], (i / 2 + 1) % 2);
            bar_expect(&full[s], sizeof in[s]);
            box_load(in[s], &from, t % tiles_x * 32, t / tiles_x * 32, &full[s]);
        }
        return;
    }
    for (int t = blockIdx.x, i = 0; t < tiles; t += gridDim.x, i++) {
        int s = i % 2;
        bar_wait(&full[s], i / 2 % 2);
        float v[8];
        for (int k = 0; k < 8; k++) {
            int row = lane, column = warp * 8 + k;
            v[k] = in[s][row][(column / 4 ^ row % 8) * 4 + column % 4];
        }
        __syncwarp();
        if (lane == 0) bar_arrive(&empty[s]);
        if (threadIdx.x == 0) bulk_wait_read();
        asm volatile("bar.sync 1, 128;" ::: "memory");
        for (int k = 0; k < 8; k++) out[warp * 8 + k][lane] = v[k];
        proxy_fence();
        asm volatile("bar.sync 1, 128;" ::: "memory");
        if (threadIdx.x == 0) {
            box_store(&to, out, t / tiles_x * 32, t % tiles_x * 32);
            bulk_commit();
        }
    }
    if (threadIdx.x == 0) bulk_wait();
}

// A cluster's blocks load a slice each and multicast it to all; the buffer is refilled when all blocks have said so.
extern "C" __global__ void multicast_sum(float* out, const float* in, int rounds) {
    __shared__ alignas(128) float buffer[4][64];
    __shared__ uint64_t full, empty;
    int rank = cluster_rank(), n = cluster_blocks();
    if (threadIdx.x == 0) { bar_init(&full, 1); bar_init(&empty, n); init_fence(); }
    cluster_arrive();
    cluster_wait();
    float sum = 0;
    for (int i = 0; i < rounds; i++) {
        if (threadIdx.x == 0) {
            bar_expect(&full, n * 256);
            bar_wait(&empty, (i + 1) % 2);
            bulk_load_to(buffer[rank], in + (i * n + rank) * 64, 256, &full, (1 << n) - 1);
        }
        bar_wait(&full, i % 2);
        for (int r = 0; r < n; r++) sum += buffer[r][threadIdx.x] * (r + 1);
        __syncthreads();
        if (threadIdx.x < n) bar_arrive_at(&empty, threadIdx.x);
    }
    out[blockIdx.x * 64 + threadIdx.x] = sum;
    cluster_arrive();
    cluster_wait();
}

// A ring: each block sends its row to the next by a bulk copy, a word by st.async, and adds to a counter by red.async.
extern "C" __global__ void ring(int* out, const int* in) {
    __shared__ alignas(16) int mine[64], theirs[64];
    __shared__ alignas(16) int word[4], counter;
    __shared__ uint64_t arrived;
    int rank = cluster_rank(), n = cluster_blocks(), next = (rank + 1) % n, t = threadIdx.x;
    if (t == 0) { bar_init(&arrived, 1); counter = 5; }
    mine[t] = in[blockIdx.x * 64 + t];
    proxy_fence();
    cluster_arrive();
    cluster_wait();
    if (t == 0) {
        bar_expect(&arrived, 256 + 16 + 4);
        uint32_t bar = at_rank(sh(&arrived), next);
        bulk_send(at_rank(sh(theirs), next), mine, 256, bar);
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];"
                     ::"r"(at_rank(sh(word), next)), "r"(rank), "r"(n), "r"(7), "r"(8), "r"(bar) : "memory");
        asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%0], %1, [%2];"
                     ::"r"(at_rank(sh(&counter), next)), "r"(rank + 1), "r"(bar) : "memory");
    }
    bar_wait(&arrived, 0);
    out[blockIdx.x * 64 + t] = theirs[t] + 1000 * word[t % 4] + 100000 * counter;
    cluster_arrive();
    cluster_wait();
}

// In by bulk, doubled, out by bulk, and added to a sum over all blocks.
extern "C" __global__ void bulk_double(float* out, float* sums, const float* in) {
    __shared__ alignas(128) float x[256];
    __shared__ uint64_t bar;
    int t = threadIdx.x;
    if (t == 0) {
        bar_init(&bar, 1);
        init_fence();
        bar_expect(&bar, sizeof x);
        bulk_load(x, in + blockIdx.x * 256, sizeof x, &bar);
    }
    __syncthreads();
    bar_wait(&bar, 0);
    x[t] *= 2;
    proxy_fence();
    __syncthreads();
    if (t == 0) {
        bulk_store(out + blockIdx.x * 256, x, sizeof x);
        bulk_add(sums, x, sizeof x);
        bulk_commit();
        bulk_wait_read();
        bar_inval(&bar);
    }
}

// cp.async that an mbarrier awaits: every thread's copies and its arrival.
extern "C" __global__ void copies_tracked(int* out, const int* in, int rounds) {
    __shared__ alignas(16) int x[2][64];
    __shared__ uint64_t full[2];
    int t = threadIdx.x;
    if (t == 0) { bar_init(&full[0], 16); bar_init(&full[1], 64); }
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < rounds; i++) {
        if (t < 16) {
            asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(sh(&x[i % 2][t * 4])), "l"(in + i * 64 + t * 4) : "memory");
            if (i % 2 == 0) asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(sh(&full[0])) : "memory");
            else asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(sh(&full[1])) : "memory");
        }
        if (i % 2 == 1) bar_arrive(&full[1]);
        bar_wait(&full[i % 2], i / 2 % 2);
        sum += x[i % 2][63 - t];
        __syncthreads();
    }
    out[t] = sum;
}

// Boxes of 1 to 5 dimensions: raw bytes of shared memory come out, or go in.
extern __shared__ __align__(1024) char raw[];
#define BOX(N, COORDS, ...)                                                                                              \
    extern "C" __global__ void box_in_##N(char* out, const __grid_constant__ Map map, int bytes, int a, int b, int c, int d, int e) { \
        __shared__ uint64_t bar;                                                                                         \
        if (threadIdx.x == 0) {                                                                                          \
            bar_init(&bar, 1); init_fence(); bar_expect(&bar, bytes);                                                    \
            asm volatile("cp.async.bulk.tensor." #N "d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, " COORDS "], [%2];" \
                         ::"r"(sh(raw)), "l"(&map), "r"(sh(&bar)), __VA_ARGS__ : "memory");                               \
        }                                                                                                                \
        __syncthreads(); bar_wait(&bar, 0);                                                                              \
        for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = raw[i];                                           \
    }                                                                                                                    \
    template <bool ADD> __device__ void box_out_##N(const Map* map, const char* in, int bytes, int a, int b, int c, int d, int e) { \
        for (int i = threadIdx.x; i < bytes; i += blockDim.x) raw[i] = in[i];                                            \
        proxy_fence(); __syncthreads();                                                                                  \
        if (threadIdx.x == 0) {                                                                                          \
            if (ADD) asm volatile("cp.reduce.async.bulk.tensor." #N "d.global.shared::cta.add.tile.bulk_group [%1, " COORDS "], [%0];" \
                         ::"r"(sh(raw)), "l"(map), "r"(0), __VA_ARGS__ : "memory");                                       \
            else asm volatile("cp.async.bulk.tensor." #N "d.global.shared::cta.bulk_group [%1, " COORDS "], [%0];"        \
                         ::"r"(sh(raw)), "l"(map), "r"(0), __VA_ARGS__ : "memory");                                       \
            bulk_commit(); bulk_wait_read();                                                                             \
        }                                                                                                                \
    }                                                                                                                    \
    extern "C" __global__ void box_put_##N(const __grid_constant__ Map map, const char* in, int bytes, int a, int b, int c, int d, int e) { \
        box_out_##N<false>(&map, in, bytes, a, b, c, d, e);                                                              \
    }                                                                                                                    \
    extern "C" __global__ void box_add_##N(const __grid_constant__ Map map, const char* in, int bytes, int a, int b, int c, int d, int e) { \
        box_out_##N<true>(&map, in, bytes, a, b, c, d, e);                                                               \
    }
BOX(1, "{%3}", "r"(a))
BOX(2, "{%3, %4}", "r"(a), "r"(b))
BOX(3, "{%3, %4, %5}", "r"(a), "r"(b), "r"(c))
BOX(4, "{%3, %4, %5, %6}", "r"(a), "r"(b), "r"(c), "r"(d))
BOX(5, "{%3, %4, %5, %6, %7}", "r"(a), "r"(b), "r"(c), "r"(d), "r"(e))
