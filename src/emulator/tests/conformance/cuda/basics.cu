// Elementwise work, a reduction with shuffles, a histogram with atomics, a scan, a transpose: the textbook's styles.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void vector_add(float* c, const float* a, const float* b, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) c[i] = a[i] + b[i];
}

extern "C" __global__ void vector_add4(float4* c, const float4* a, const float4* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 x = a[i], y = b[i];
    c[i] = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

__inline__ __device__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffff, v, offset);
    return v;
}

extern "C" __global__ void block_sum(float* out, const float* in, int n) {
    __shared__ float partial[32];
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) v += in[i];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
    if (threadIdx.x < 32) v = warp_sum(v);
    if (threadIdx.x == 0) out[blockIdx.x] = v;
}

extern "C" __global__ void histogram(unsigned* counts, const unsigned char* data, int n) {
    __shared__ unsigned local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) atomicAdd(&local[data[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&counts[i], local[i]);
}

// Inclusive scan of one block, Hillis and Steele, two buffers.
extern "C" __global__ void block_scan(int* out, const int* in, int n) {
    extern __shared__ int buffers[];
    int* from = buffers;
    int* to = buffers + blockDim.x;
    int t = threadIdx.x;
    from[t] = t < n ? in[t] : 0;
    __syncthreads();
    for (int step = 1; step < blockDim.x; step *= 2) {
        to[t] = t >= step ? from[t] + from[t - step] : from[t];
        __syncthreads();
        int* swap = from; from = to; to = swap;
    }
    if (t < n) out[t] = from[t];
}

template <int PAD>
__device__ void transpose(float* out, const float* in, int width, int height) {
    __shared__ float tile[32][32 + PAD];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}
extern "C" __global__ void transpose_conflicts(float* out, const float* in, int w, int h) { transpose<0>(out, in, w, h); }
extern "C" __global__ void transpose_padded(float* out, const float* in, int w, int h) { transpose<1>(out, in, w, h); }

// The last block to finish adds up what all have left: fences and an atomic counter order it, no barrier does.
extern "C" __global__ void grid_sum(float* total, float* partial, unsigned* done, const float* in, int n) {
    __shared__ bool last;
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) v += in[i];
    v = warp_sum(v);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = v;
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    __threadfence();
    float sum = 0;
    for (int b = 0; b < gridDim.x; b++) sum += partial[b];
    *total = sum;
}

// Warp votes, matches, and a collatz loop in which every lane leaves at its own time.
extern "C" __global__ void diverge(int* steps, unsigned* votes, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned long long v = i + 1;
    int count = 0;
    while (v != 1) {
        v = v % 2 ? 3 * v + 1 : v / 2;
        count++;
    }
    unsigned even = __ballot_sync(0xffffffff, count % 2 == 0);
    unsigned same = __match_any_sync(0xffffffff, count);
    unsigned most = __reduce_max_sync(0xffffffff, (unsigned)count);
    steps[i] = count;
    votes[3 * i] = even;
    votes[3 * i + 1] = same;
    votes[3 * i + 2] = most;
}

__device__ __noinline__ float polynomial(float x, const float* c, int n) {
    float y = 0;
    for (int i = n - 1; i >= 0; i--) y = fmaf(y, x, c[i]);
    return y;
}

// A call, a local array with a run-time index, 64-bit integers, and the float functions.
extern "C" __global__ void scalar_zoo(float* f, long long* q, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float c[8];
    for (int k = 0; k < 8; k++) c[k] = x[(i + k * 3) % n];
    float v = x[i];
    f[8 * i] = polynomial(v, c, 3 + i % 5);
    f[8 * i + 1] = expf(v);
    f[8 * i + 2] = logf(fabsf(v) + 0.5f);
    f[8 * i + 3] = rsqrtf(v * v + 1.0f);
    f[8 * i + 4] = sinf(v) + cosf(v);
    f[8 * i + 5] = tanhf(v);
    f[8 * i + 6] = v / (1.0f + v * v);
    f[8 * i + 7] = __bfloat162float(__float2bfloat16(v)) + __half2float(__float2half(v));
    unsigned u = __float_as_uint(v);
    long long s = (long long)(int)u * 1000003;
    s ^= (long long)__popc(u) << 40;
    s += (long long)__clz(u) * 7 + __brev(u) % 1000 + __ffs(u);
    s -= __byte_perm(u, i, 0x4321) / (i + 1);
    s += __funnelshift_l(u, i, i % 40);
    q[i] = s / (i + 3) + s % 17 + __mulhi((int)u, 77777);
}
