// O = softmax(scale Q K^T) V in bf16 with f32 sums, one head a block in y: TMA, mbarriers and wgmma, P from registers. All are
// T x (heads 128) and row-major; T is a multiple of 128. Two warpgroups have 64 queries each, and one thread beside them fills a
// ring of two tiles of 128 keys and values.
#include "../../../../../kernels/hopper.cuh"

namespace {

struct Config {
    enum { Rows = 128, Keys = 128, Slots = 2, Threads = 2 * 128 + 32 };
    // Bytes: a box is 64 rows of 128, a query tile two side by side, and a tile of keys two below one another twice.
    enum { Box = 64 * 128, Q = 2 * Box, Panel = 2 * Box, Tile = 2 * Panel, Shared = 2 * Q + 2 * Slots * Tile };
};

// d = a b + (keep ? d : 0) on 64 x 128 x 16; a is a fragment as mma.sync has it, b is N-major.
__device__ inline void wgmma_registers(float (&d)[64], const unsigned* a, bytes64 b, int keep) {
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.s32 keep, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, keep, 1, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
          "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep)
        : "memory");
}

__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

struct Ring {
    unsigned tiles, barriers;
    __device__ unsigned k(int slot) const { return tiles + slot * Config::Tile; }
    __device__ unsigned v(int slot) const { return tiles + (Config::Slots + slot) * Config::Tile; }
    __device__ unsigned k_full(int slot) const { return barriers + 8 * slot; }
    __device__ unsigned v_full(int slot) const { return barriers + 8 * (Config::Slots + slot); }
    __device__ unsigned empty(int slot) const { return barriers + 8 * (2 * Config::Slots + slot); }
    __device__ unsigned q_full() const { return barriers + 8 * 3 * Config::Slots; }
};

__device__ void load(unsigned to, const CUtensorMap& map, int x, int y, int rows, unsigned full, bytes64 policy) {
    mbarrier_arrive_expect_tx(full, 2 * rows * 128);
    for (int side = 0; side < 2; ++side)
        for (int row = 0; row < rows; row += 64, to += Config::Box)
            cp_async_bulk_tensor_load(to, map, x + 64 * side, y + row, full, policy);
}

// Scores to probabilities of the row's maximum so far; `shrink`: the factor for what was summed under the maximum before.
__device__ void softmax(float (&s)[64], float (&most)[2], float (&sum)[2], float (&shrink)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float x = most[r];
        for (int i = 2 * r; i < 64; i += 4) x = fmaxf(x, fmaxf(s[i], s[i + 1]));
        x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
        x = fmaxf(x, __shfl_xor_sync(ALL, x, 2));
        shrink[r] = exp2_approx((most[r] - x) * scale);
        most[r] = x;
        float t = 0;
        for (int i = 2 * r; i < 64; i += 4) {
            s[i] = exp2_approx(s[i] * scale - x * scale);
            s[i + 1] = exp2_approx(s[i + 1] * scale - x * scale);
            t += s[i] + s[i + 1];
        }
        sum[r] = sum[r] * shrink[r] + t;
    }
}

__device__ void multiply(const Ring& ring, unsigned q, const CUtensorMap& o, int row, int column, int steps, float scale) {
    const int thread = threadIdx.x % 128, lane = thread % 32, mine = threadIdx.x / 128;
    float sums[64] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, shrink[2];
    mbarrier_wait(ring.q_full(), 0);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int slot = step % Config::Slots, lap = step / Config::Slots & 1;
        float s[64];
        mbarrier_wait(ring.k_full(slot), lap);
        wgmma_pin(s);
        wgmma_fence();
        for (int k = 0; k < 8; ++k)
            wgmma_m64n128k16<false>(s, wgmma_descriptor(q + k / 4 * Config::Box) + k % 4 * (32 >> 4),
                                    wgmma_descriptor(ring.k(slot) + k / 4 * Config::Panel) + k % 4 * (32 >> 4), k > 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_pin(s);
        softmax(s, most, sum, shrink, scale);
        unsigned p[32];
        for (int i = 0; i < 32; ++i) p[i] = narrow(s[2 * i], s[2 * i + 1]);
        for (int i = 0; i < 64; ++i) sums[i] *= shrink[i / 2 % 2];
        mbarrier_wait(ring.v_full(slot), lap);
        for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(p[i])::"memory");
        wgmma_pin(sums);
        wgmma_fence();
        for (int k = 0; k < 8; ++k)
            wgmma_registers(sums, p + 4 * k, wgmma_descriptor(ring.v(slot), Config::Panel) + k * (2048 >> 4), 1);
        wgmma_commit();
        wgmma_wait<0>();
        for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(p[i])::"memory");
        wgmma_pin(sums);
        if (thread == 0) mbarrier_arrive(ring.empty(slot), 0);
    }
    for (int r = 0; r < 2; ++r) {
        sum[r] += __shfl_xor_sync(ALL, sum[r], 1);
        sum[r] += __shfl_xor_sync(ALL, sum[r], 2);
        sum[r] = 1 / sum[r];
    }
    // Over this warpgroup's queries, under the swizzle that the map undoes.
    const int r = thread / 32 * 16 + lane % 16;
    for (int pair = 0; pair < 8; ++pair) {
        const int chunk = pair % 4 * 2 + lane / 16;
        const float* x = sums + 8 * pair;
        stmatrix_x4(q + pair / 4 * Config::Box + r * 128 + ((chunk ^ r % 8) << 4), narrow(x[0] * sum[0], x[1] * sum[0]),
                    narrow(x[2] * sum[1], x[3] * sum[1]), narrow(x[4] * sum[0], x[5] * sum[0]),
                    narrow(x[6] * sum[1], x[7] * sum[1]));
    }
    fence_proxy_async();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + mine) : "memory");
    if (thread == 0) {
        for (int side = 0; side < 2; ++side)
            cp_async_bulk_tensor_store(o, column + 64 * side, row + 64 * mine, q + side * Config::Box);
        cp_async_bulk_commit();
        cp_async_bulk_wait_read();
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(Config::Threads, 1)
    attention(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
              const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap o, int T) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ alignas(8) bytes64 barriers[3 * Config::Slots + 1];
    const unsigned start = unsigned(__cvta_generic_to_shared(memory));
    const Ring ring{start + 2 * Config::Q, unsigned(__cvta_generic_to_shared(barriers))};
    const int row = blockIdx.x * Config::Rows, column = blockIdx.y * 128, steps = T / Config::Keys;
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < Config::Slots; ++slot) {
            mbarrier_init(ring.k_full(slot), 1);
            mbarrier_init(ring.v_full(slot), 1);
            mbarrier_init(ring.empty(slot), 2);
        }
        mbarrier_init(ring.q_full(), 2);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < 256) {
        // 1 / sqrt(128), and the base 2.
        const float scale = 0.08838834764831845f * 1.4426950408889634f;
        multiply(ring, start + threadIdx.x / 128 * Config::Q, o, row, column, steps, scale);
    } else if (threadIdx.x == 256) {
        const auto once = createpolicy_evict_first();
        for (int mine = 0; mine < 2; ++mine)
            load(start + mine * Config::Q, q, column, row + 64 * mine, 64, ring.q_full(), once);
        for (int step = 0; step < steps; ++step) {
            const int slot = step % Config::Slots;
            mbarrier_wait(ring.empty(slot), step / Config::Slots & 1 ^ 1);
            load(ring.k(slot), k, column, step * Config::Keys, Config::Keys, ring.k_full(slot), once);
            load(ring.v(slot), v, column, step * Config::Keys, Config::Keys, ring.v_full(slot), once);
        }
    }
}
