// D = A B^T in bf16 with f32 sums: A is M x K, B is N x K, both row-major; K is a multiple of 64, M and N of 64.
// Tiles of 64 x 64, four warps of 32 x 32 each; K in steps of 64 through a ring of three stages that cp.async fills two
// steps ahead. A row of a stage is 128 bytes; its 16-byte chunks are permuted by the row, so that neither the copies
// nor ldmatrix meet in a bank.
#include <cstdint>
#include <cuda_bf16.h>

constexpr int TILE = 64, STEP = 64, STAGES = 3;

using Element = __nv_bfloat16;

struct Stage {
    Element a[TILE * STEP], b[TILE * STEP];
};

__device__ uint32_t place(const Element* tile, int row, int chunk) {
    return (uint32_t)__cvta_generic_to_shared(tile) + row * STEP * 2 + ((chunk ^ row % 8) * 16);
}

__device__ void copy_async16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ void load_matrix_x4(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <bool WAIT>
__device__ void product(float* d, const Element* a, const Element* b, int n, int k) {
    __shared__ alignas(128) Stage ring[STAGES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE, steps = k / STEP;
    // A group for every step, an empty one behind the last: so the wait always counts the same.
    auto fetch = [&](int step) {
        if (step < steps) {
            Stage& stage = ring[step % STAGES];
            for (int i = threadIdx.x; i < TILE * STEP / 8; i += 128) {
                const int r = i / 8, c = i % 8;
                copy_async16(place(stage.a, r, c), a + (long)(row0 + r) * k + step * STEP + c * 8);
                copy_async16(place(stage.b, r, c), b + (long)(column0 + r) * k + step * STEP + c * 8);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float sums[2][4][4] = {};
    for (int step = 0; step < STAGES - 1; step++) fetch(step);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        if (WAIT) asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // Behind it this step is there for all, and all are done with the step before, whose stage is filled next.
        __syncthreads();
        fetch(step + STAGES - 1);
        const Stage& stage = ring[step % STAGES];
        for (int kk = 0; kk < STEP / 8; kk += 2) {
            uint32_t fa[2][4], fb[2][4];
            for (int i = 0; i < 2; i++) {
                const int ra = warp / 2 * 32 + i * 16 + lane % 16, rb = warp % 2 * 32 + i * 16 + lane % 8 + lane / 16 * 8;
                load_matrix_x4(fa[i], place(stage.a, ra, kk + lane / 16));  // BUG(no_wait)
                load_matrix_x4(fb[i], place(stage.b, rb, kk + lane / 8 % 2));
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) mma(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
    const int r = row0 + warp / 2 * 32 + lane / 4, c = column0 + warp % 2 * 32 + lane % 4 * 2;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) {
            *(float2*)(d + (long)(r + i * 16) * n + c + j * 8) = make_float2(sums[i][j][0], sums[i][j][1]);
            *(float2*)(d + (long)(r + i * 16 + 8) * n + c + j * 8) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
}

extern "C" __global__ void __launch_bounds__(128) gemm(float* d, const Element* a, const Element* b, int n, int k) {
    product<true>(d, a, b, n, k);
}
extern "C" __global__ void __launch_bounds__(128) gemm_no_wait(float* d, const Element* a, const Element* b, int n, int k) {
    product<false>(d, a, b, n, k);
}
