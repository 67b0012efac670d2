// One planted bug per kernel, on the line that says so.

extern "C" __global__ void out_of_bounds(float* out, const float* in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) out[i] = 2.0f;  // BUG(out_of_bounds): <= for <
}

extern "C" __global__ void before_the_start(float* out, const float* in) {
    int i = threadIdx.x;
    out[i] = in[i - 1];  // BUG(before_the_start)
}

extern "C" __global__ void shared_out_of_bounds(float* out) {
    __shared__ float s[64];
    int i = threadIdx.x;
    volatile float* v = s;
    v[i + 1] = i;  // BUG(shared_out_of_bounds)
    __syncthreads();
    out[i] = v[63 - i + 1];
}

extern "C" __global__ void misaligned(float* out, const char* in) {
    out[threadIdx.x] = *(const float*)(in + threadIdx.x * 4 + 2);  // BUG(misaligned)
}

extern "C" __global__ void shared_race(float* out, const float* in) {
    __shared__ float s[128];
    int i = threadIdx.x;
    s[i] = 0;
    __syncthreads();
    s[i] = in[i];
    out[i] = s[127 - i];  // BUG(shared_race): no __syncthreads before
}

extern "C" __global__ void shared_race_behind(float* out, const float* in, int n) {
    __shared__ float s[128];
    int i = threadIdx.x;
    float v = 0;
    for (int k = 0; k < n; k++) {
        s[i] = in[k * 128 + i];  // BUG(shared_race_behind): the last round's reads are not over
        __syncthreads();
        v += s[127 - i];
    }
    out[i] = v;
}

extern "C" __global__ void warp_race(int* out) {
    __shared__ int s[32];
    int i = threadIdx.x;
    s[i] = i;
    out[i] = s[i ^ 1];  // BUG(warp_race): no __syncwarp before
}

extern "C" __global__ void global_race(int* out) {
    if (threadIdx.x == 0) *out = blockIdx.x;  // BUG(global_race): blocks are not ordered
}

extern "C" __global__ void lost_update(int* counter) {
    *counter = *counter + 1;  // BUG(lost_update)
}

extern "C" __global__ void uninitialised_shared(float* out, const float* in) {
    __shared__ float s[128];
    int i = threadIdx.x;
    if (i < 100) s[i] = in[i];
    __syncthreads();
    out[i] = s[i];  // BUG(uninitialised_shared)
}

extern "C" __global__ void uninitialised_global(float* out, const float* scratch) {
    out[threadIdx.x] = scratch[threadIdx.x];  // BUG(uninitialised_global)
}

extern "C" __global__ void divergent_barrier(float* out) {
    if (threadIdx.x % 2 == 0) {
        out[threadIdx.x] = 1.0f;
        __syncthreads();  // BUG(divergent_barrier)
        out[threadIdx.x] += 1.0f;
    }
}

extern "C" __global__ void early_exit(float* out, int n) {
    if (threadIdx.x >= n) return;
    out[threadIdx.x] = 1.0f;
    __syncthreads();  // BUG(early_exit)
    out[threadIdx.x] += 1.0f;
}

extern "C" __global__ void waits_for_nobody(volatile int* flag, float* out) {
    while (*flag == 0) {}  // BUG(waits_for_nobody)
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void named_barrier_deadlock(float* out) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");  // BUG(named_barrier_deadlock)
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void missing_lane(int* out) {
    int v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffff, v, 1);  // BUG(missing_lane)
    __syncthreads();
    out[threadIdx.x] = v;
}
