// masked_xent_sm90: loss and gradient of the rows that have a label in one pass on Hopper, so that logits are computed once.
//
//   z[p,v] = x[rows[p]] . w[v];  of a row and a tile of TILE columns: most = max z, sum = sum e^(z - most), q = e^(z - most)
//   lse, loss, total as in masked_xent.cu, from the tiles' (most, sum, best)
//   dz[p,v] = q e^(most - lse[p]) dmean / P - [v = labels[p]] dmean / P,  dx[rows[p]] = dz w, else 0
//
// Shapes    x, dx [N, C], w [V, C], picked, sent [W, C], q and dz (one array) [W, stride] bf16, rows, labels, first_best [P] i32;
//           most, sum [tiles, W], label, top, mass [P] f32, best [tiles, W] i32; stride is V rounded up to 8. Maps as in
//           lora_linear_sm90.cu: 128 rows of picked and dz; TILE / CLUSTER rows of w forward, 64 / CLUSTER backward; 64 rows of q, sent.
// Plan      By waves of W rows, so that q is bounded: masked_xent_pick_sm90 packs them (TMA gathers none);
//           masked_xent_logits_sm90, tile_sm90.cuh with sums that end in (most, sum, best) of a row and, where a gradient is wanted,
//           in q; masked_xent_merge_sm90 folds the tiles, a warp a row; masked_xent_scale_sm90 makes dz of q in place;
//           masked_xent_dx_sm90, the same product with w as it lies; masked_xent_send_sm90 puts rows where they belong.
//           Blocks of the products are persistent, one a multiprocessor.
// Cost      W' is W rounded up to 128 CLUSTER, V' V and C' C to the tile. Flops: logits 2 W' V' up64(C), dx 2 W' C' up64(V). Bytes:
//           logits 2 C (W V' / TILE + V W' / (128 CLUSTER)) + 28 W V' / TILE + 4 W, 2 W stride more where q is kept; dx
//           2 V (W C' / TILE + C W' / (128 CLUSTER)) + 2 W C, V in rows of dz being stride; merge 20 W V' / TILE + 12 W; scale
//           5 W stride + 12 W; pick and send 4.5 W C each.
// Numerics  Logits and sums f32; q is rounded to bf16, relative to its tile's largest, dz from it once more, dx once. The mean in f64,
//           by masked_xent_total. Fixed order everywhere.
// Sectors   masked_xent_merge_sm90 reads a row's tiles, P apart, by single words.
// Limits    C a multiple of 8; rows at 16-byte boundaries. P, V any. A row that comes twice gets one of its gradients.
// Source    as masked_xent.cu; chunks of rows with loss and gradient together: Hsu et al. 2024, arXiv:2410.10989.
#include "lse.cuh"
#include "tile_sm90.cuh"

EXPORT constexpr int THREADS = 384;
EXPORT constexpr int ROWS = 128;
EXPORT constexpr int DEPTH = 64;
EXPORT constexpr int PANEL = 64;
EXPORT constexpr int TILE = 256;
EXPORT constexpr int CLUSTER = 2;
EXPORT constexpr int SHARED = 230528;
EXPORT constexpr int ROW_THREADS = 256;

using Logits = HopperTile<TILE, CLUSTER>;
using Across = HopperTile<TILE, CLUSTER, B_ACROSS>;
static_assert(Logits::SHARED == SHARED && Across::SHARED == SHARED && Logits::THREADS == THREADS && Logits::ROWS == ROWS &&
                  Logits::DEPTH == DEPTH && PANEL == DEPTH,
              "the host launches by them");

// picked[p] = x[rows[first + p]]; a thread has eight columns.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_pick_sm90(bf16* __restrict__ picked, const bf16* __restrict__ x, const int* __restrict__ rows, int first,
                      int count, int C) {
    const int width = C / BF16S;
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x;
    const int p = int(at / width), v = int(at % width);
    if (p < count) store(picked, at, load(x + size_t(rows[first + p]) * C, v));
}

struct LogitsOp : HopperOp<Logits> {
    float *most, *sum_, *label;
    int* best;
    const int* labels;
    int first, keeps;

    __device__ __forceinline__ bool stores() const { return keeps; }
    // Of the consumer's rows, of which a quad of lanes has two, eight apart.
    __device__ __forceinline__ void finish(float (&d)[TILE / 2], int consumer, int row, int column) const {
        const int lane = threadIdx.x % 32, t = lane % 4;
        row += 64 * consumer + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row + 8 * half, ahead = extent.columns - column - 2 * t;
            const int label_at = (r < extent.rows ? labels[first + r] : -1) - column - 2 * t;
            float top = LOWEST;
            int where = 0;
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                const int apart = i / 2 * 8 + i % 2;
                const float z = d[i / 2 * 4 + 2 * half + i % 2];
                if (apart == label_at) label[first + r] = z;
                if (apart < ahead && z > top) top = z, where = apart;
            }
            where += column + 2 * t;
#pragma unroll
            for (int apart = 1; apart < 4; apart *= 2) {
                const float other = __shfl_xor_sync(ALL, top, apart);
                const int other_where = __shfl_xor_sync(ALL, where, apart);
                if (other > top || (other == top && other_where < where)) top = other, where = other_where;
            }
            float total = 0;
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                float& z = d[i / 2 * 4 + 2 * half + i % 2];
                z = i / 2 * 8 + i % 2 < ahead ? expf(z - top) : 0.0f;
                total += z;
            }
            total += __shfl_xor_sync(ALL, total, 1);
            total += __shfl_xor_sync(ALL, total, 2);
            if (t == 0 && r < extent.rows) {
                const size_t to = size_t(column / TILE) * extent.rows + r;
                most[to] = top, sum_[to] = total, best[to] = where;
            }
        }
    }
};

// Tiles of `count` rows from `first` on; q is kept if `keeps`.
KERNEL void __launch_bounds__(THREADS, 1)
masked_xent_logits_sm90(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap picked,
                        const __grid_constant__ CUtensorMap w, float* __restrict__ most, float* __restrict__ sum,
                        int* __restrict__ best, float* __restrict__ label, const int* __restrict__ labels, int first, int count,
                        int V, int C, int keeps) {
    hopper_product<Logits>(LogitsOp{{{count, V}, C, q, picked, w}, most, sum, label, best, labels, first, keeps});
}

// Folds each row's tiles to (top, mass, first_best), and makes of each `most` what its q weighs, e^(most - lse). A warp has a row;
// lanes take tiles in turn and merge in a tree.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_merge_sm90(float* __restrict__ most, float* __restrict__ top, float* __restrict__ mass, int* __restrict__ first_best,
                       const float* __restrict__ sum, const int* __restrict__ best, int first, int count, int tiles) {
    const int row = blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= count) return;
    Seen all = Seen::none();
    for (int tile = lane; tile < tiles; tile += 32) {
        const size_t at = size_t(tile) * count + row;
        all.merge(Seen{Lse{most[at], sum[at]}, best[at]});
    }
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) all.merge_across(apart);
    const float lse = all.lse.most + logf(all.lse.sum);
    for (int tile = lane; tile < tiles; tile += 32) {
        float& at = most[size_t(tile) * count + row];
        at = expf(at - lse);
    }
    if (lane == 0) top[first + row] = all.lse.most, mass[first + row] = all.lse.sum, first_best[first + row] = all.best;
}

// dz of q in place, eight columns a thread; columns from V on stay 0. At the label, where q and 1 all but cancel, it is made of the
// logit.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_scale_sm90(bf16* __restrict__ dz, const float* __restrict__ most, const float* __restrict__ top,
                       const float* __restrict__ mass, const float* __restrict__ label, const int* __restrict__ labels,
                       int first, int count, int stride, float scale) {
    const int width = stride / BF16S;
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x;
    const int row = int(at / width), column = int(at % width) * BF16S;
    if (row >= count) return;
    const int label_at = labels[first + row] - column;
    const float by = most[size_t(column / TILE) * count + row] * scale;
    float d[BF16S];
    widen(d, load(dz, at));
#pragma unroll
    for (int i = 0; i < BF16S; i++) d[i] *= by;
    if (label_at >= 0 && label_at < BF16S) {
        const int p = first + row;
        const float less = expm1f(label[p] - top[p] - logf(mass[p])) * scale;
#pragma unroll
        for (int i = 0; i < BF16S; i++) d[i] = i == label_at ? less : d[i];
    }
    store(dz, at, narrow(d));
}

// sent = dz w, of `count` rows.
KERNEL void __launch_bounds__(THREADS, 1)
masked_xent_dx_sm90(const __grid_constant__ CUtensorMap sent, const __grid_constant__ CUtensorMap dz,
                    const __grid_constant__ CUtensorMap w, int count, int V, int C) {
    hopper_product<Across>(HopperOp<Across>{{count, C}, V, sent, dz, w});
}

// dx[rows[first + p]] = sent[p]; a thread has eight columns.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_send_sm90(bf16* __restrict__ dx, const bf16* __restrict__ sent, const int* __restrict__ rows, int first, int count,
                      int C) {
    const int width = C / BF16S;
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x;
    const int p = int(at / width), v = int(at % width);
    if (p < count) store(dx + size_t(rows[first + p]) * C, v, load(sent, at));
}
