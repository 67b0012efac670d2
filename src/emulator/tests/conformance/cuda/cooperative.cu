// Programs as the programming guide teaches them: cooperative groups, barriers and pipelines of the standard library.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cuda/barrier>
#include <cuda_pipeline.h>

namespace cg = cooperative_groups;
// A barrier in shared memory is begun by init(), as the guide has it.
#pragma nv_diag_suppress static_var_with_dynamic_init

// Every block copies its rows to shared memory together, then tiles of 16 threads each sum one of them.
extern "C" __global__ void sums_of_rows(float* sums, const float* in, int columns) {
    extern __shared__ float rows[];
    const auto block = cg::this_thread_block();
    const auto tile = cg::tiled_partition<16>(block);
    const int count = tile.meta_group_size(), first = blockIdx.x * count;
    cg::memcpy_async(block, rows, in + first * columns, sizeof(float) * count * columns);
    cg::wait(block);
    const float* row = rows + tile.meta_group_rank() * columns;
    float sum = 0;
    for (int i = tile.thread_rank(); i < columns; i += tile.size()) sum += row[i];
    sum = cg::reduce(tile, sum, cg::plus<float>());
    if (tile.thread_rank() == 0) sums[first + tile.meta_group_rank()] = sum;
}

// Keeps what is positive, in any order: the threads that are there take places with one atomic.
extern "C" __global__ void positives(int* kept, int* count, const int* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || in[i] <= 0) return;
    const auto here = cg::coalesced_threads();
    int place = 0;
    if (here.thread_rank() == 0) place = atomicAdd(count, int(here.size()));
    kept[here.shfl(place, 0) + here.thread_rank()] = in[i];
}

// Halves of a block hand values back and forth through a barrier object, arriving and waiting apart.
extern "C" __global__ void hand_over(int* out, int rounds) {
    __shared__ int value[2];
    __shared__ cuda::barrier<cuda::thread_scope_block> ready[2];
    if (threadIdx.x == 0) {
        init(&ready[0], blockDim.x);
        init(&ready[1], blockDim.x);
        value[1] = 1;
    }
    __syncthreads();
    for (int i = 0; i < rounds; i++) {
        // Half i % 2 writes what the other one has left, times three.
        const int writer = i % 2, half = threadIdx.x >= blockDim.x / 2;
        if (half == writer && threadIdx.x % (blockDim.x / 2) == 0) value[writer] = 3 * value[writer ^ 1] + i;
        ready[writer].arrive_and_wait();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = value[(rounds - 1) % 2];
}

// A pipeline of two stages through the primitives: each thread copies its own 16 bytes and scales them when they are there.
extern "C" __global__ void scaled(float4* out, const float4* in, int n, float by) {
    __shared__ float4 stage[2][128];
    const int step = gridDim.x * blockDim.x;
    int i = blockIdx.x * blockDim.x + threadIdx.x, turn = 0;
    if (i < n) __pipeline_memcpy_async(&stage[0][threadIdx.x], in + i, sizeof(float4));
    __pipeline_commit();
    for (; i < n; i += step, turn ^= 1) {
        if (i + step < n) __pipeline_memcpy_async(&stage[turn ^ 1][threadIdx.x], in + i + step, sizeof(float4));
        __pipeline_commit();
        __pipeline_wait_prior(1);
        const float4 v = stage[turn][threadIdx.x];
        out[i] = make_float4(v.x * by, v.y * by, v.z * by, v.w * by);
    }
}
