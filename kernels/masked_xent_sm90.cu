// masked_xent_sm90: the two large products of masked_xent on Hopper; all that stands around them is masked_xent.cu's.
//
//   z[p,v] = picked[p] . w[v];  of a row and a tile of TILE columns: most = max z, sum = sum e^(z - most), q = e^(z - most)
//   sent   = dz w
//
// Shapes    as in masked_xent.cu, a span of columns being a tile. Maps as in lora_linear_sm90.cu: 128 rows of picked and dz;
//           TILE / CLUSTER rows of w forward, 64 / CLUSTER backward; 64 rows of q, sent.
// Plan      masked_xent_logits_sm90: tile_sm90.cuh with sums that end in (most, sum, best) of a row and, where a gradient is wanted,
//           in q; masked_xent_dx_sm90: the same product with w as it lies. Blocks are persistent, one a multiprocessor.
// Cost      W' is W rounded up to 128 CLUSTER, V' V and C' C to the tile. Flops: logits 2 W' V' up64(C), dx 2 W' C' up64(V). Bytes:
//           logits 2 C (W V' / TILE + V W' / (128 CLUSTER)) + 28 W V' / TILE + 4 W, 2 W stride more where q is kept; dx
//           2 V (W C' / TILE + C W' / (128 CLUSTER)) + 2 W C, V in rows of dz being stride.
// Numerics  as in masked_xent.cu, q being relative to its tile's largest.
// Limits    as in masked_xent.cu.
// Source    as masked_xent.cu.
#include "masked_xent.cuh"
#include "tile_sm90.cuh"

EXPORT constexpr int THREADS = 384;
EXPORT constexpr int ROWS = 128;
EXPORT constexpr int DEPTH = 64;
EXPORT constexpr int PANEL = 64;
EXPORT constexpr int TILE = 256;
EXPORT constexpr int CLUSTER = 2;
EXPORT constexpr int SHARED = 230528;

using Logits = HopperTile<TILE, CLUSTER>;
using Across = HopperTile<TILE, CLUSTER, B_ACROSS>;
static_assert(Logits::SHARED == SHARED && Across::SHARED == SHARED && Logits::THREADS == THREADS && Logits::ROWS == ROWS &&
                  Logits::DEPTH == DEPTH && PANEL == DEPTH,
              "the host launches by them");

struct LogitsOp : HopperOp<Logits> {
    Spans spans;
    int keeps;

    __device__ __forceinline__ bool stores() const { return keeps; }
    // Of the consumer's rows, of which a quad of lanes has two, eight apart.
    __device__ __forceinline__ void finish(float (&d)[TILE / 2], int consumer, int row, int column) const {
        row += 64 * consumer + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
        for (int half = 0; half < 2; half++) spans.fold<TILE / 8>(d, half, row + 8 * half, column, column / TILE);
    }
};

// Tiles of `count` rows from `first` on; q is kept if `keeps`.
KERNEL void __launch_bounds__(THREADS, 1)
masked_xent_logits_sm90(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap picked,
                        const __grid_constant__ CUtensorMap w, float* __restrict__ most, float* __restrict__ sum,
                        int* __restrict__ best, float* __restrict__ label, const int* __restrict__ labels, int first, int count,
                        int V, int C, int keeps) {
    const Spans spans{most, sum, label, best, labels, first, count, V};
    hopper_product<Logits>(LogitsOp{{{count, V}, C, q, picked, w}, spans, keeps});
}

// sent = dz w, of `count` rows.
KERNEL void __launch_bounds__(THREADS, 1)
masked_xent_dx_sm90(const __grid_constant__ CUtensorMap sent, const __grid_constant__ CUtensorMap dz,
                    const __grid_constant__ CUtensorMap w, int count, int V, int C) {
    hopper_product<Across>(HopperOp<Across>{{count, C}, V, sent, dz, w});
}
