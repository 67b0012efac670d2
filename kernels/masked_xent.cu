// masked_xent: cross-entropy of the language-model head at the rows that have a label, and its gradient in the same pass, so that
// logits are computed once.
//
//   z[p,v] = x[rows[p]] . w[v];  of a row and a span of columns: most = max z, sum = sum e^(z - most), q = e^(z - most)
//   lse[p] = log sum_v e^z[p,v],  loss[p] = lse[p] - z[p,labels[p]], both from the spans
//   total  = mean loss; rows whose largest logit, the first of equals, is the label's
//   dz[p,v] = q e^(most - lse[p]) dmean / P - [v = labels[p]] dmean / P
//   dx[rows[p]] = dz w, else 0,  dw += dz^T x[rows]
//
// Shapes    x, dx [N, C], w [V, C], picked, sent [W, C], q and dz (one array) [W, stride] bf16, dw [V, C] f32; rows (each at most
//           once), labels, first_best [P] i32; loss, lse, top, mass, label [P], total [2] f32; most, sum [spans, W] f32, best
//           [spans, W] i32. stride is V rounded up to 8.
// Plan      By waves of W rows, so that q is bounded: masked_xent_pick packs them; masked_xent_logits, product.cuh with sums that
//           end in (most, sum, best) of a row's SPAN columns, a warp's share, and where a gradient is wanted in q; masked_xent_merge
//           folds the spans, a warp a row; masked_xent_scale makes dz of q in place; masked_xent_dx multiplies it by w as it lies,
//           masked_xent_send puts the rows where they belong, and masked_xent_dw takes both operands across. masked_xent_total, one
//           block, ends the forward; masked_xent_zero goes before dx. Two blocks of a product a multiprocessor. On Hopper
//           the first two products are those of masked_xent_sm90.cu, the others these.
// Cost      p, w, v, c are P, W, V, C in tiles of 128. Flops of a wave: logits 2 (128 w) (128 v) up32(C), dx 2 (128 w) (128 c)
//           up32(stride), dw 2 (128 v) (128 c) up32(W). Bytes of a wave: logits 2 C (W v + V w) + 28 W V / SPAN + 4 W, 2 W
//           stride more where q is kept; dx 2 stride W c + 2 V C w + 2 W C; dw 2 W (stride c + C v) + 8 V C; merge
//           20 W V / SPAN + 12 W; scale 5 W stride + 12 W; pick and send 4.5 W C each; zero 2 N C, total 28 P + 8. Most of the
//           products' come from L2. No bank conflicts.
// Numerics  Logits, sums and statistics f32, exp and log CUDA's (2 ulp); q is rounded to bf16, relative to its span's largest, dz
//           from it once more, dx once; at the label, where q and 1 all but cancel, dz is made of the logit. The mean in f64. Fixed
//           order everywhere. dw is added a wave at a time.
// Sectors   masked_xent_merge reads a row's spans, W apart, by single words.
// Limits    C a multiple of 8; rows at 16-byte boundaries. P, V any. A row that comes twice gets one of its gradients.
// Source    Wijmans et al. 2024, arXiv:2411.09009 (all logits never held); chunks of rows with loss and gradient together: Hsu et al.
//           2024, arXiv:2410.10989.
#include "masked_xent.cuh"
#include "product.cuh"

EXPORT constexpr int TILE = 128;
EXPORT constexpr int SPAN = 64;
EXPORT constexpr int THREADS = 128;
EXPORT constexpr int ROW_THREADS = 256;
EXPORT constexpr int TOTAL_THREADS = 1024;

using Logits = Product<Copies<4, false, true>, Copies<4, false, false>>;
using ByHead = Product<Copies<4, false, true>, Copies<4, true, false>>;
using ByRows = Product<Copies<4, true, true>, Copies<4, true, false>>;
static_assert(Logits::TILE == TILE && Logits::PART == SPAN && Logits::THREADS == THREADS, "the host launches by them");

// dx = 0
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_zero(bf16* __restrict__ dx, int N, int C) {
    const size_t vectors = size_t(N) * C / BF16S;
    for (size_t v = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x; v < vectors; v += size_t(gridDim.x) * ROW_THREADS)
        store(dx, v, make_uint4(0, 0, 0, 0));
}

// picked[p] = x[rows[first + p]]; a thread has eight columns.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_pick(bf16* __restrict__ picked, const bf16* __restrict__ x, const int* __restrict__ rows, int first, int count,
                 int C) {
    const int width = C / BF16S;
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x;
    const int p = int(at / width), v = int(at % width);
    if (p < count) store(picked, at, load(x + size_t(rows[first + p]) * C, v));
}

// Spans of `count` rows from `first` on; q is kept if `keeps`.
KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_logits(bf16* __restrict__ q, float* __restrict__ most, float* __restrict__ sum, int* __restrict__ best,
                   float* __restrict__ label, const bf16* __restrict__ picked, const bf16* __restrict__ w,
                   const int* __restrict__ labels, int first, int count, int V, int C, int keeps) {
    __shared__ __align__(128) bf16 ring[Logits::RING / sizeof(bf16)];
    const int2 tile = tile_of_block(ceil_div(count, TILE), ceil_div(V, TILE));
    const int row = tile.x * TILE, column = tile.y * TILE;
    Logits z;
    z.begin(ring, {picked, count, C, C}, {w, V, C, C}, row, column);
    z.finish();
    const Spans spans{most, sum, label, best, labels, first, count, V};
    const int at = column + z.warp_column;
#pragma unroll
    for (int i = 0; i < Logits::BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (at < V) spans.fold<Logits::EIGHTS>(z.d[i][0], half, row + z.row(i, half), at, at / SPAN);
    if (keeps) z.end(ring, q, nullptr, nullptr, count, (V + BF16S - 1) / BF16S * BF16S, row, column);
}

// Folds each row's spans to (top, mass, first_best), and makes of each `most` what its q weighs, e^(most - lse). A warp has a row;
// lanes take spans in turn and merge in a tree.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_merge(float* __restrict__ most, float* __restrict__ top, float* __restrict__ mass, int* __restrict__ first_best,
                  const float* __restrict__ sum, const int* __restrict__ best, int first, int count, int spans) {
    const int row = blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= count) return;
    Seen all = Seen::none();
    for (int span = lane; span < spans; span += 32) {
        const size_t at = size_t(span) * count + row;
        all.merge(Seen{Lse{most[at], sum[at]}, best[at]});
    }
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) all.merge_across(apart);
    const float lse = all.lse.most + logf(all.lse.sum);
    for (int span = lane; span < spans; span += 32) {
        float& at = most[size_t(span) * count + row];
        at = expf(at - lse);
    }
    if (lane == 0) top[first + row] = all.lse.most, mass[first + row] = all.lse.sum, first_best[first + row] = all.best;
}

KERNEL void __launch_bounds__(TOTAL_THREADS)
masked_xent_total(float* __restrict__ total, float* __restrict__ loss, float* __restrict__ lse, const float* __restrict__ top,
                  const float* __restrict__ mass, const int* __restrict__ first_best, const float* __restrict__ label,
                  const int* __restrict__ labels, int P) {
    __shared__ double losses[32];
    __shared__ int rights[32];
    double mean = 0;
    int right = 0;
    for (int p = threadIdx.x; p < P; p += TOTAL_THREADS) {
        // Of a small loss, lse minus logit would leave little.
        const float off = top[p] - label[p] + logf(mass[p]);
        lse[p] = top[p] + logf(mass[p]);
        loss[p] = off;
        mean += off;
        right += first_best[p] == labels[p];
    }
    mean = block_sum(mean, losses);
    right = block_sum(right, rights);
    if (threadIdx.x == 0) total[0] = float(mean / P), total[1] = float(right);
}

// dz of q in place, eight columns a thread; columns from V on stay 0. `span` columns have one weight.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_scale(bf16* __restrict__ dz, const float* __restrict__ weights, const float* __restrict__ top,
                  const float* __restrict__ mass, const float* __restrict__ label, const int* __restrict__ labels, int first,
                  int count, int stride, int span, float scale) {
    const int width = stride / BF16S;
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x;
    const int row = int(at / width), column = int(at % width) * BF16S;
    if (row >= count) return;
    const int label_at = labels[first + row] - column;
    const float by = weights[size_t(column / span) * count + row] * scale;
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
KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_dx(bf16* __restrict__ sent, const bf16* __restrict__ dz, const bf16* __restrict__ w, int count, int V, int C,
               int stride) {
    __shared__ __align__(128) bf16 ring[ByHead::RING / sizeof(bf16)];
    const int2 tile = tile_of_block(ceil_div(count, TILE), ceil_div(C, TILE));
    ByHead dx;
    dx.begin(ring, {dz, count, stride, stride}, {w, C, V, C}, tile.x * TILE, tile.y * TILE);
    dx.finish();
    dx.end(ring, sent, nullptr, nullptr, count, C, tile.x * TILE, tile.y * TILE);
}

// dx[rows[first + p]] = sent[p]; a thread has eight columns.
KERNEL void __launch_bounds__(ROW_THREADS)
masked_xent_send(bf16* __restrict__ dx, const bf16* __restrict__ sent, const int* __restrict__ rows, int first, int count,
                 int C) {
    const int width = C / BF16S;
    const size_t at = size_t(blockIdx.x) * ROW_THREADS + threadIdx.x;
    const int p = int(at / width), v = int(at % width);
    if (p < count) store(dx + size_t(rows[first + p]) * C, v, load(sent, at));
}

// What `count` rows add to dw.
KERNEL void __launch_bounds__(THREADS, 2)
masked_xent_dw(float* __restrict__ dw, const bf16* __restrict__ dz, const bf16* __restrict__ picked, int count, int V, int C,
               int stride) {
    __shared__ __align__(128) bf16 ring[ByRows::RING / sizeof(bf16)];
    const int2 tile = tile_of_block(ceil_div(V, TILE), ceil_div(C, TILE));
    ByRows sums;
    sums.begin(ring, {dz, V, count, stride}, {picked, C, count, C}, tile.x * TILE, tile.y * TILE);
    sums.finish();
    sums.each_pair([&](int r, int c, float low, float high) {
        const int v = tile.x * TILE + r, column = tile.y * TILE + c;
        if (v >= V || column >= C) return;
        float2& to = *reinterpret_cast<float2*>(dw + size_t(v) * C + column);
        to = make_float2(to.x + low, to.y + high);
    });
}
