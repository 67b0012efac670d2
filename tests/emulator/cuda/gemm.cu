// D = A B^T, 64 x 64 tiles, by cp.async (two stages), ldmatrix and mma.sync m16n8k16 in bf16 with f32 sums.
#include <cstdint>
#include <cuda_bf16.h>

constexpr int TILE = 64, K_STEP = 32, PITCH = K_STEP + 8;

__device__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ void copy_async16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ void load_matrix_x4(uint32_t (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}

__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <bool WAIT>
__device__ void product(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    __shared__ __align__(16) __nv_bfloat16 as[2][TILE][PITCH], bs[2][TILE][PITCH];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;  // 4 warps, 16 rows of A each
    int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
    auto fetch = [&](int stage, int k0) {
        for (int i = threadIdx.x; i < TILE * K_STEP / 8; i += blockDim.x) {
            int r = i / (K_STEP / 8), c = i % (K_STEP / 8) * 8;
            copy_async16(&as[stage][r][c], a + (long)(row0 + r) * k + k0 + c);
            copy_async16(&bs[stage][r][c], b + (long)(col0 + r) * k + k0 + c);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float sums[TILE / 8][4] = {};
    fetch(0, 0);
    for (int k0 = 0, stage = 0; k0 < k; k0 += K_STEP, stage ^= 1) {
        if (k0 + K_STEP < k) {
            fetch(stage ^ 1, k0 + K_STEP);
            if (WAIT) asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            if (WAIT) asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        for (int kk = 0; kk < K_STEP; kk += 16) {
            uint32_t fa[4];
            load_matrix_x4(fa, &as[stage][warp * 16 + lane % 16][kk + lane / 16 * 8]);  // BUG(no_wait)
            for (int j = 0; j < TILE; j += 16) {
                uint32_t fb[4];
                load_matrix_x4(fb, &bs[stage][j + lane % 8 + lane / 16 * 8][kk + lane / 8 % 2 * 8]);
                mma(sums[j / 8], fa, fb[0], fb[1]);
                mma(sums[j / 8 + 1], fa, fb[2], fb[3]);
            }
        }
        __syncthreads();
    }
    int r = row0 + warp * 16 + lane / 4, c = col0 + lane % 4 * 2;
    for (int j = 0; j < TILE / 8; j++) {
        *(float2*)(d + (long)r * n + c + j * 8) = make_float2(sums[j][0], sums[j][1]);
        *(float2*)(d + (long)(r + 8) * n + c + j * 8) = make_float2(sums[j][2], sums[j][3]);
    }
}

extern "C" __global__ void gemm(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    product<true>(d, a, b, n, k);
}
extern "C" __global__ void gemm_no_wait(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    product<false>(d, a, b, n, k);
}
