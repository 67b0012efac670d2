// One planted bug per kernel, on the line that says so; NAME_right is the same kernel without it.

#define BOTH(NAME, PARAMS, ...)                                       \
    extern "C" __global__ void NAME PARAMS { NAME##_body<true>(__VA_ARGS__); } \
    extern "C" __global__ void NAME##_right PARAMS { NAME##_body<false>(__VA_ARGS__); }
#define BODY template <bool BUG> __device__ __forceinline__ void

BODY out_of_bounds_body(float* out, const float* in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (BUG ? i <= n : i < n) out[i] = 2.0f;  // BUG(out_of_bounds): <= for <
}
BOTH(out_of_bounds, (float* out, const float* in, int n), out, in, n)

BODY before_the_start_body(float* out, const float* in) {
    int i = threadIdx.x;
    out[i] = in[i - BUG];  // BUG(before_the_start)
}
BOTH(before_the_start, (float* out, const float* in), out, in)

BODY shared_out_of_bounds_body(float* out) {
    __shared__ float s[64];
    int i = threadIdx.x;
    volatile float* v = s;
    v[i + BUG] = i;  // BUG(shared_out_of_bounds)
    __syncthreads();
    out[i] = v[63 - i + BUG];
}
BOTH(shared_out_of_bounds, (float* out), out)

BODY misaligned_body(float* out, const char* in) {
    out[threadIdx.x] = *(const float*)(in + threadIdx.x * 4 + 2 * BUG);  // BUG(misaligned)
}
BOTH(misaligned, (float* out, const char* in), out, in)

BODY shared_race_body(float* out, const float* in) {
    __shared__ float s[128];
    int i = threadIdx.x;
    s[i] = 0;
    __syncthreads();
    s[i] = in[i];
    if (!BUG) __syncthreads();
    out[i] = s[127 - i];  // BUG(shared_race): no __syncthreads before
}
BOTH(shared_race, (float* out, const float* in), out, in)

BODY shared_race_behind_body(float* out, const float* in, int n) {
    __shared__ float s[128];
    int i = threadIdx.x;
    float v = 0;
    for (int k = 0; k < n; k++) {
        s[i] = in[k * 128 + i];  // BUG(shared_race_behind): the last round's reads are not over
        __syncthreads();
        v += s[127 - i];
        if (!BUG) __syncthreads();
    }
    out[i] = v;
}
BOTH(shared_race_behind, (float* out, const float* in, int n), out, in, n)

BODY warp_race_body(int* out) {
    __shared__ int s[32];
    int i = threadIdx.x;
    s[i] = i;
    if (!BUG) __syncwarp();
    out[i] = s[i ^ 1];  // BUG(warp_race): no __syncwarp before
}
BOTH(warp_race, (int* out), out)

BODY global_race_body(int* out) {
    if (threadIdx.x == 0 && (BUG || blockIdx.x == 3)) *out = blockIdx.x;  // BUG(global_race): blocks are not ordered
}
BOTH(global_race, (int* out), out)

BODY lost_update_body(int* counter) {
    if (!BUG) atomicAdd(counter, 1);
    if (BUG) *counter = *counter + 1;  // BUG(lost_update)
}
BOTH(lost_update, (int* counter), counter)

BODY uninitialised_shared_body(float* out, const float* in) {
    __shared__ float s[128];
    int i = threadIdx.x;
    if (i < 100 || !BUG) s[i] = in[i];
    __syncthreads();
    out[i] = s[i];  // BUG(uninitialised_shared)
}
BOTH(uninitialised_shared, (float* out, const float* in), out, in)

BODY uninitialised_global_body(float* out, volatile float* scratch) {
    if (!BUG) scratch[threadIdx.x] = 3;
    out[threadIdx.x] = scratch[threadIdx.x];  // BUG(uninitialised_global)
}
BOTH(uninitialised_global, (float* out, float* scratch), out, scratch)

BODY uninitialised_local_body(int* out, int k) {
    int a[8];
    for (int i = 0; i < 8; i++) if (!BUG || i != 5) a[i] = i * threadIdx.x;
    out[threadIdx.x] = a[k];  // BUG(uninitialised_local): 5 is nobody's
}
BOTH(uninitialised_local, (int* out, int k), out, k)

__device__ __forceinline__ int undefined() {
    int v;
    asm volatile("{ .reg .b32 nothing; mov.b32 %0, nothing; }" : "=r"(v));
    return v;
}

BODY undefined_stored_body(int* out) {
    int v = threadIdx.x + (BUG ? undefined() : 4);
    out[threadIdx.x] = v;  // BUG(undefined_stored)
}
BOTH(undefined_stored, (int* out), out)

BODY undefined_branch_body(int* out) {
    int n = BUG ? undefined() : threadIdx.x;
    out[threadIdx.x] = 1;
    if (n > 9) atomicAdd(out + threadIdx.x, 2);  // BUG(undefined_branch)
}
BOTH(undefined_branch, (int* out), out)

// Whether the host has freed the other array is all that makes these wrong.
extern "C" __global__ void freed_read(float* out, const float* gone) {
    out[threadIdx.x] = gone[threadIdx.x];  // BUG(freed_read)
}

extern "C" __global__ void freed_written(float* out, float* gone) {
    out[threadIdx.x] = 1;
    gone[threadIdx.x] = 2;  // BUG(freed_written)
}

BODY divergent_barrier_body(float* out) {
    if (!BUG || threadIdx.x % 2 == 0) {
        out[threadIdx.x] = 1.0f;
        __syncthreads();  // BUG(divergent_barrier)
        out[threadIdx.x] += 1.0f;
    }
}
BOTH(divergent_barrier, (float* out), out)

BODY early_exit_body(float* out, int n) {
    if (BUG && threadIdx.x >= n) return;
    out[threadIdx.x] = 1.0f;
    __syncthreads();  // BUG(early_exit)
    out[threadIdx.x] += 1.0f;
}
BOTH(early_exit, (float* out, int n), out, n)

BODY waits_for_nobody_body(volatile int* flag, float* out) {
    if (!BUG && threadIdx.x == 32) *flag = 1;
    while (*flag == 0) {}  // BUG(waits_for_nobody)
    out[threadIdx.x] = 1.0f;
}
BOTH(waits_for_nobody, (volatile int* flag, float* out), flag, out)

BODY named_barrier_deadlock_body(float* out) {
    if (!BUG || threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");  // BUG(named_barrier_deadlock)
    out[threadIdx.x] = 1.0f;
}
BOTH(named_barrier_deadlock, (float* out), out)

BODY missing_lane_body(int* out) {
    int v = threadIdx.x;
    if (!BUG || threadIdx.x < 16) v = __shfl_xor_sync(0xffffffff, v, 1);  // BUG(missing_lane)
    __syncthreads();
    out[threadIdx.x] = v;
}
BOTH(missing_lane, (int* out), out)
