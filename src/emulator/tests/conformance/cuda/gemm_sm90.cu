// D = A B in bf16 with f32 sums by TMA, mbarriers and wgmma. A is M x K and row-major; B is K-major (N x K) or N-major
// (K x N). Clusters of two blocks lie one above the other in M: each block loads its own 128 rows of A, and one half of
// the 128 columns of B for both. Of three warpgroups the first fills a ring of two stages, the others multiply 64 rows each.
#include "../../../../../kernels/hopper.cuh"

namespace {

struct Config {
    enum { Rows = 128, Columns = 128, Depth = 64, Slots = 2, Peers = 2, Producer = 40, Consumer = 232 };
    // Bytes: a half is 64 rows of 128, one box.
    enum { Half = 64 * 128, OneA = 2 * Half, OneB = 2 * Half, Slot = OneA + OneB, Out = 4 * Half };
};

struct Ring {
    unsigned base, full, empty;
    __device__ unsigned a(int slot) const { return base + slot * Config::Slot; }
    __device__ unsigned b(int slot) const { return a(slot) + Config::OneA; }
    __device__ unsigned is_full(int slot) const { return full + 8 * slot; }
    __device__ unsigned is_empty(int slot) const { return empty + 8 * slot; }
};

// Which slot, and the parity of its current lap.
struct Cursor {
    int slot = 0, lap = 0;
    __device__ void advance() {
        if (++slot == Config::Slots) slot = 0, lap ^= 1;
    }
};

template <bool NMajor>
__device__ void produce(const Ring& ring, const CUtensorMap& a, const CUtensorMap& b, int row, int column, int steps,
                        unsigned rank) {
    const auto once = createpolicy_evict_first();
    Cursor at;
    for (int step = 0; step < steps; ++step, at.advance()) {
        mbarrier_wait(ring.is_empty(at.slot), at.lap ^ 1);
        mbarrier_arrive_expect_tx(ring.is_full(at.slot), Config::Slot);
        const int k = step * Config::Depth, n = column + rank * 64;
        for (int half = 0; half < 2; ++half)
            cp_async_bulk_tensor_load(ring.a(at.slot) + half * Config::Half, a, k, row + half * 64,
                                      ring.is_full(at.slot), once);
        cp_async_bulk_tensor_multicast(ring.b(at.slot) + rank * Config::Half, b, NMajor ? n : k, NMajor ? k : n,
                                       ring.is_full(at.slot), (1 << Config::Peers) - 1);
    }
}

template <bool NMajor>
__device__ void consume(const Ring& ring, unsigned out, const CUtensorMap& d, int row, int column, int steps) {
    const int thread = threadIdx.x % 128, lane = thread % 32, mine = threadIdx.x / 128 - 1;
    float sums[64] = {};
    const auto release = [&](int slot) {
        if (thread < Config::Peers) mbarrier_arrive(ring.is_empty(slot), thread);
    };
    Cursor at;
    for (int step = 0; step < steps; ++step, at.advance()) {
        mbarrier_wait(ring.is_full(at.slot), at.lap);
        const auto left = wgmma_descriptor(ring.a(at.slot) + mine * Config::Half);
        const auto right = wgmma_descriptor(ring.b(at.slot), NMajor ? int(Config::Half) : 16);
        wgmma_pin(sums);
        wgmma_fence();
        for (int k = 0; k < Config::Depth / 16; ++k)
            wgmma_m64n128k16<NMajor>(sums, left + k * (32 >> 4), right + k * ((NMajor ? 2048 : 32) >> 4), step + k > 0);
        wgmma_commit();
        wgmma_wait<1>();
        // The step before is done: both blocks may fill its slot again.
        if (step > 0) release(at.slot ^ 1);
    }
    wgmma_wait<0>();
    wgmma_pin(sums);
    // 64 x 64 bf16 a box, under the swizzle that the map undoes.
    const unsigned panel = out + mine * 2 * Config::Half;
    const int r = thread / 32 * 16 + lane % 16;
    for (int pair = 0; pair < 8; ++pair) {
        const int chunk = pair % 4 * 2 + lane / 16;
        const float* s = sums + 8 * pair;
        stmatrix_x4(panel + pair / 4 * Config::Half + r * 128 + ((chunk ^ r % 8) << 4), narrow(s[0], s[1]),
                    narrow(s[2], s[3]), narrow(s[4], s[5]), narrow(s[6], s[7]));
    }
    fence_proxy_async();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + mine) : "memory");
    if (thread == 0) {
        for (int half = 0; half < 2; ++half)
            cp_async_bulk_tensor_store(d, column + half * 64, row + mine * 64, panel + half * Config::Half);
        cp_async_bulk_commit();
        cp_async_bulk_wait_read();
    }
}

template <bool NMajor>
__device__ void run(const CUtensorMap& a, const CUtensorMap& b, const CUtensorMap& d, int K) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ alignas(8) bytes64 barriers[2 * Config::Slots];
    const unsigned start = unsigned(__cvta_generic_to_shared(memory));
    const unsigned first = unsigned(__cvta_generic_to_shared(barriers));
    const Ring ring{start, first, first + 8 * Config::Slots};
    const unsigned rank = cluster_ctarank();
    const int row = blockIdx.x * Config::Rows, column = blockIdx.y * Config::Columns, steps = K / Config::Depth;
    if (threadIdx.x == 0) {
        prefetch_tensormap(a);
        prefetch_tensormap(b);
        for (int slot = 0; slot < Config::Slots; ++slot) {
            mbarrier_init(ring.is_full(slot), 1);
            // Both warpgroups of both blocks.
            mbarrier_init(ring.is_empty(slot), 2 * Config::Peers);
        }
        fence_mbarrier_init();
    }
    barrier_cluster();
    if (threadIdx.x < 128) {
        setmaxnreg_dec<Config::Producer>();
        if (threadIdx.x < 32 && elect_sync()) produce<NMajor>(ring, a, b, row, column, steps, rank);
        __syncwarp();
    } else {
        setmaxnreg_inc<Config::Consumer>();
        consume<NMajor>(ring, start + Config::Slots * Config::Slot, d, row, column, steps);
        __syncwarp();
    }
    // The peer may still fill this block's memory and arrive at its barriers.
    barrier_cluster();
}

}  // namespace

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gemm_k_major(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, const __grid_constant__ CUtensorMap d, int K) {
    run<false>(a, b, d, K);
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gemm_n_major(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, const __grid_constant__ CUtensorMap d, int K) {
    run<true>(a, b, d, K);
}
