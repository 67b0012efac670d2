// lora_linear_sm90: the large products of lora_linear on Hopper, for sizes that lora_linear_fwd.cu and lora_linear_bwd.cu
// take too; what is skinny (xa, dxa, da, db) is computed there.
//
//   stacked[m, s Q + r]  = scale_s b[m,r]                    where m is a column of segment s, elsewhere 0
//   padded[s P + r, k]   = a[s R + r, k]                     0 for r from R to P
//   whole[n, s Q + r]    = xa[n, s R + r], or dxa            0 for r from R to Q
//   y[n,m]               = residual[n,m] + bias[m] + sum_k x[n,k] w[m,k] + sum_j xa[n,j] stacked[m,j]
//   act[n,f]             = silu(y[n,f]) y[n, F + f]          of the same y, M = 2 F, without bias and residual
//   qkv[n,m]             = y[n,m], its heads before column `rotated` turned as in rope.cu
//   dx[n,k]              = sum_m dy[n,m] w[m,k] + sum_s mask_s[n,k] sum_r dxa[n, s Q + r] padded[s P + r, k]
//   P and Q being R rounded up to 16 and 8; where Q is not R, xa and dxa are their copies in `whole`
//
// Shapes    x, dx [N, K], w [M, K], bias [M], residual, y, dy [N, M], act [N, F], xa, dxa [N, S R], whole [N, S Q], stacked
//           [M, S Q], padded [S P, K] bf16; a [S R, K], b [M, R] f32. Maps: boxes of 64 columns by 128 rows of x, xa, dy, dxa;
//           by COLUMNS / CLUSTER rows of w and stacked in the forward; by 64 / CLUSTER rows of w and padded in the backward; by
//           64 rows of y, residual, act, qkv, dx; all under the 128-byte swizzle.
// Plan      tile_sm90.cuh: tiles of 128 rows by 256 columns, two blocks one below the other sharing w's tile, for what fills the
//           GPU; by 128 columns, no cluster, for what does not. For act, 128 columns of gate and 128 of up, each loaded by one
//           block of the cluster, are a tile, whose sums do not leave registers before they are one. For qkv heads are whole in
//           a wide tile, and both numbers of a pair with one thread. The low-rank terms are the first stages of the same sums:
//           forward, 64 ranks a stage, only those of the tile's segments and only the k-steps that have ranks, so that a tile
//           over two segments is nothing special. Backward, a stage for each 64 ranks of a segment, by mma.sync from where it
//           lies: its sums are masked a few at a time, which wgmma's, all under way at once, cannot be.
//           What is skinny (xa, dxa with db, da) has no form of its own here: it reads x or dy once, as those kernels do, and
//           wgmma and TMA would move the same bytes. Nor is xa part of what makes x: rmsnorm's blocks of 16 rows would each read
//           all of a, 2 S R numbers for a row's 32, which is three times what they save at S R = 48. Factors are rounded anew
//           before each product, 1 MB for qkv of a 7B layer at rank 16, whose weights are 436 MB.
// Cost      N' is N rounded up to 128 CLUSTER, M' and K' M and K to COLUMNS. Forward: flops 2 N' M' up64(K), and 32 N' for every
//           k-step of ranks and column of its tiles; bytes 2 K (N M' / COLUMNS + M N' / (128 CLUSTER)) + 2 N M, with a residual 2
//           N M more, with a bias M N'; act is such a forward of M' = 2 up128(F), of F + up128(F) rows of w for M, and writes 2 N
//           F; qkv is one with 4 D N' + 16 N more for every 256 columns of heads to turn, in place of rope.cu's 4 N (H + G) D;
//           with ranks 2 S Q (N M' / COLUMNS + M N' / (128 CLUSTER)) where all tiles have some. dx: flops 2 N' (K' up64(M) +
//           up64(K) A P), A the adapted segments; bytes 2 (M + U) (N K' / COLUMNS + K N' / (128 CLUSTER)) + 2 N K, U the rows
//           of padded that their stages load: 64, or what is left of S P. stacked 4 M R + 2 M S Q, padded 4 S R K + 2 S P K,
//           whole 2 N S (R + Q) bytes.
// Numerics  bf16 products, f32 sums: ranks first, then the depth in its order, bias, residual; one rounding. b's scale is within
//           its rounding to bf16. Tiles of either width give the same bits; act and qkv have those of y and then swiglu.cu or rope.cu.
// Sectors   more than bytes / 32 where lora_linear_stack_sm90 reads b by single floats, at columns of other segments nothing,
//           lora_linear_pad_sm90 reads rows of a by two vectors a lane, and lora_linear_whole_sm90, for ranks that are no
//           multiple of 8 alone, reads them one by one: all are a thousandth of a product's bytes.
// Limits    K, M and the ends of segments multiples of 8, S at most 3; all arrays at 16-byte boundaries.
// Source    as lora_linear_fwd.cu; warp specialisation and multicast as in CUTLASS 3 (sm90 cooperative kernels).
#include "lora_linear.cuh"
#include "tile_sm90.cuh"

EXPORT constexpr int THREADS = 384;
EXPORT constexpr int ROWS = 128;
EXPORT constexpr int DEPTH = 64;
EXPORT constexpr int PANEL = 64;
EXPORT constexpr int FACTOR_THREADS = 256;

EXPORT constexpr int WIDE = 256;
EXPORT constexpr int WIDE_CLUSTER = 2;
EXPORT constexpr int WIDE_SHARED = 230528;
EXPORT constexpr int NARROW_SHARED = 230560;

template <int COLUMNS, bool ACROSS>
using Tile90 = HopperTile<COLUMNS, COLUMNS == WIDE ? WIDE_CLUSTER : 1, ACROSS ? B_ACROSS : PLAIN>;
static_assert(Tile90<WIDE, false>::SHARED == WIDE_SHARED && Tile90<128, false>::SHARED == NARROW_SHARED &&
                  Tile90<WIDE, false>::THREADS == THREADS && Tile90<WIDE, false>::ROWS == ROWS &&
                  Tile90<WIDE, false>::DEPTH == DEPTH && PANEL == DEPTH,
              "the host launches by them");

// A thread has eight columns of stacked.
KERNEL void __launch_bounds__(FACTOR_THREADS)
lora_linear_stack_sm90(bf16* __restrict__ stacked, const float* __restrict__ b, int M, int R, const Segments segments) {
    const int each = ceil_div(R, BF16S), width = segments.count * each, at = blockIdx.x * FACTOR_THREADS + threadIdx.x;
    const int m = at / width, first = at % width * BF16S;
    if (m >= M) return;
    const int s = (m >= segments.end0) + (m >= segments.end1);
    float values[BF16S];
#pragma unroll
    for (int i = 0; i < BF16S; i++) {
        const int r = first + i - s * each * BF16S;
        values[i] = r >= 0 && r < R ? b[size_t(m) * R + r] * segments.scale(s) : 0;
    }
    store(stacked, at, narrow(values));
}

// A thread has eight columns of whole.
KERNEL void __launch_bounds__(FACTOR_THREADS)
lora_linear_whole_sm90(bf16* __restrict__ whole, const bf16* __restrict__ ranks, int N, int R, int count) {
    const int each = ceil_div(R, BF16S), width = count * each, at = blockIdx.x * FACTOR_THREADS + threadIdx.x;
    const int n = at / width, s = at % width / each, first = at % each * BF16S;
    if (n >= N) return;
    const bf16* row = ranks + (size_t(n) * count + s) * R;
    unsigned v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = rank_pair<false>(row, first + 2 * i, R);
    store(whole, at, make_uint4(v[0], v[1], v[2], v[3]));
}

// A thread has eight columns of padded.
KERNEL void __launch_bounds__(FACTOR_THREADS)
lora_linear_pad_sm90(bf16* __restrict__ padded, const float* __restrict__ a, int K, int R, int count) {
    const int P = ceil_div(R, RANKS) * RANKS, width = K / BF16S, at = blockIdx.x * FACTOR_THREADS + threadIdx.x;
    const int row = at / width, chunk = at % width, r = row % P;
    if (row >= count * P) return;
    uint4 values = make_uint4(0, 0, 0, 0);
    if (r < R) {
        const float* from = a + size_t(row / P * R + r) * K + chunk * BF16S;
        const float4 low = load(from, 0), high = load(from, 1);
        values = make_uint4(narrow(low.x, low.y), narrow(low.z, low.w), narrow(high.x, high.y), narrow(high.z, high.w));
    }
    store(padded, at, values);
}

template <class T>
struct Forward : HopperOp<T> {
    const CUtensorMap &xa, &stacked, &added;
    const bf16* bias;
    bool adds_residual;
    int Q;
    const Segments& of;

    __device__ __forceinline__ const CUtensorMap& low_a() const { return xa; }
    __device__ __forceinline__ const CUtensorMap& low_b() const { return stacked; }
    __device__ __forceinline__ const CUtensorMap& residual() const { return added; }
    __device__ __forceinline__ bool adds() const { return adds_residual; }

    __device__ __forceinline__ bool has(int s, int column) const {
        return of.end(s) > column && of.start(s) < column + T::OUT;
    }
    // Calls f(first k-step, one past the last) for every 64 ranks that hold some of a segment that the tile has columns of.
    template <class F>
    __device__ __forceinline__ void steps(int column, F f) const {
        int from = of.count * Q, to = 0;
        for (int s = 0; s < of.count; s++)
            if (of.scale(s) != 0 && (has(s, column) || (T::GATED && has(s, this->extent.columns + column))))
                from = min(from, s * Q), to = (s + 1) * Q;
        for (int at = from / T::DEPTH * T::DEPTH; at < to; at += T::DEPTH)
            f(at, max(from - at, 0) / RANKS, ceil_div(min(to - at, T::DEPTH), RANKS));
    }
    template <class F>
    __device__ __forceinline__ void ranks(int column, F load) const {
        steps(column, [&](int at, int, int) { load(at, at); });
    }
    __device__ __forceinline__ void sum(typename T::Sums& d, Consumer<T>& consumer, int, int column) const {
        bool keep = false;
        steps(column, [&](int, int from, int to) {
            add_steps(d, consumer, from, to, keep);
            keep = true;
        });
        add_stages(d, consumer, ceil_div(this->depth, T::DEPTH), keep);
    }
    // v: columns `at`, at + 1 of two rows, then at + 8, at + 9.
    __device__ __forceinline__ void add(float* v, int at) const {
        if (!bias) return;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (at + 8 * i >= this->extent.columns) break;
            const unsigned pair = *reinterpret_cast<const unsigned*>(bias + at + 8 * i);
            const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
            v[4 * i] += low, v[4 * i + 1] += high, v[4 * i + 2] += low, v[4 * i + 3] += high;
        }
    }
};

KERNELS(lora_linear_fwd_sm90, _, COLUMNS, (256, 128), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap y, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
         const __grid_constant__ CUtensorMap residual, const __grid_constant__ CUtensorMap xa,
         const __grid_constant__ CUtensorMap stacked, const bf16* __restrict__ bias_or_null, int adds_residual, int N, int K,
         int M, int Q, const Segments segments) {
            using T = Tile90<COLUMNS, false>;
            hopper_product<T>(Forward<T>{{{N, M}, K, y, x, w}, xa, stacked, residual, bias_or_null, adds_residual != 0, Q, segments});
        })

// Gate and up of the same columns are 64 sums of a thread apart.
template <class T>
struct Gated : Forward<T> {
    __device__ __forceinline__ static void add(float* v, int) {
        constexpr int APART = T::OUT / 2;
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const unsigned gate = narrow(v[i], v[i + 1]), up = narrow(v[APART + i], v[APART + i + 1]);
            v[i] = silu(__uint_as_float(gate << 16)) * __uint_as_float(up << 16);
            v[i + 1] = silu(__uint_as_float(gate & 0xffff0000u)) * __uint_as_float(up & 0xffff0000u);
        }
    }
};

KERNEL void __launch_bounds__(THREADS, 1)
lora_linear_swiglu_sm90(const __grid_constant__ CUtensorMap act, const __grid_constant__ CUtensorMap x,
                        const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap xa,
                        const __grid_constant__ CUtensorMap stacked, int N, int K, int F, int Q, const Segments segments) {
    using T = HopperTile<WIDE, WIDE_CLUSTER, HALVES>;
    static_assert(T::SHARED == WIDE_SHARED, "the host launches by it");
    hopper_product<T>(Gated<T>{{{{N, F}, K, act, x, w}, xa, stacked, act, nullptr, false, Q, segments}});
}

// In registers a head's pairs are D / 16 eights of columns apart.
template <class T, int D>
struct Rotary : Forward<T> {
    const float *cos, *sin;
    const int* positions;
    const RotarySizes& sizes;

    // The bias is in before heads are turned.
    __device__ __forceinline__ static void add(float*, int) {}
    __device__ __forceinline__ static void turn(float* a, float* b, float2 cos, float2 sin) {
        const unsigned x = narrow(a[0], a[1]), y = narrow(b[0], b[1]);
        const float2 low = turned(__uint_as_float(x << 16), __uint_as_float(y << 16), cos.x, sin.x);
        const float2 high = turned(__uint_as_float(x & 0xffff0000u), __uint_as_float(y & 0xffff0000u), cos.y, sin.y);
        a[0] = low.x, a[1] = high.x, b[0] = low.y, b[1] = high.y;
    }
    __device__ __forceinline__ void finish(typename T::Sums& d, int consumer, int row, int column) const {
        const int lane = threadIdx.x % 32, t = lane % 4;
        row += 64 * consumer + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
        for (int e = 0; e < T::COLUMNS / 8; e += 2) Forward<T>::add(d + 4 * e, column + 8 * e + 2 * t);
        if (column >= sizes.rotated) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row + 8 * half, at = r < sizes.N ? positions[r] : 0;
            const bool inside = unsigned(at) < unsigned(sizes.positions);
            const size_t angle = size_t(inside ? at : 0) * (D / 2) + 2 * t;
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                float2 c = *reinterpret_cast<const float2*>(cos + angle + 8 * i);
                const float2 s = *reinterpret_cast<const float2*>(sin + angle + 8 * i);
                if (!inside) c.x = c.y = __int_as_float(0x7fc00000);
#pragma unroll
                for (int head = 0; head < T::COLUMNS; head += D) {
                    if (column + head >= sizes.rotated) break;
                    float* a = d + head / 2 + 4 * i + 2 * half;
                    turn(a, a + D / 4, c, s);
                }
            }
        }
    }
};

KERNELS(lora_linear_rope_sm90, _d, D, (128, 64), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap qkv, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
         const __grid_constant__ CUtensorMap xa, const __grid_constant__ CUtensorMap stacked, const bf16* __restrict__ bias_or_null,
         const float* __restrict__ cos, const float* __restrict__ sin, const int* __restrict__ positions,
         const RotarySizes sizes, const Segments segments) {
            using T = Tile90<WIDE, false>;
            hopper_product<T>(Rotary<T, D>{
                {{{sizes.N, sizes.M}, sizes.K, qkv, x, w}, xa, stacked, qkv, bias_or_null, false, sizes.Q, segments},
                cos, sin, positions, sizes});
        })

// Bits 8j + i of a row's 64 columns from `column` on: the column stays. A quad has two rows, eight apart, and each of its lanes
// draws two eights of either; what all lanes need goes round as bytes.
__device__ __forceinline__ uint2 kept_of_row(const Draw& dropout, int row, int plane, int column) {
    // The block's number is hidden: what is drawn from it would be kept over the loop of segments.
    const int t = threadIdx.x % 4, block = round_key(column / BF16S + t);
    uint2 bits = make_uint2(dropout.kept(row, plane, block) << 8 * t, dropout.kept(row, plane, block + 4) << 8 * t);
#pragma unroll
    for (int apart = 1; apart < 4; apart *= 2)
        bits.x |= __shfl_xor_sync(ALL, bits.x, apart), bits.y |= __shfl_xor_sync(ALL, bits.y, apart);
    return bits;
}

template <class T>
struct Backward : HopperOp<T> {
    const CUtensorMap &dxa, &padded;
    int Q;
    const Segments& of;
    const Draw& dropout;

    __device__ __forceinline__ const CUtensorMap& low_a() const { return dxa; }
    __device__ __forceinline__ const CUtensorMap& low_b() const { return padded; }

    template <class F>
    __device__ __forceinline__ void ranks(int, F load) const {
        for (int s = 0; s < of.count; s++)
            for (int r = 0; r < Q && of.scale(s) != 0; r += T::DEPTH) load(s * Q + r, s * ceil_div(Q, RANKS) * RANKS + r);
    }
    // Adds masked products of so many ranks of a segment from the current stage: by mma.sync, whose sums come 16 rows by 8
    // columns at a time, so that wgmma's are not touched between its instructions.
    __device__ __forceinline__ void add_masked(typename T::Sums& d, Consumer<T>& consumer, int s, int ranks, int row,
                                               int column) const {
        const int lane = threadIdx.x % 32, t = lane % 4, first = 64 * consumer.index + threadIdx.x % 128 / 32 * 16;
        const unsigned stage = consumer.stage(), a_row = first + lane % 16, b_row = lane % 16;
        const auto chunk = [&](unsigned tile, unsigned row, int at) { return tile + row * 128 + ((at ^ row % 8) << 4); };
        consumer.wait();
#pragma unroll
        for (int p = 0; p < T::PANELS; p++) {
            if (column + 64 * p >= this->extent.columns) break;
            uint2 upper = make_uint2(ALL, ALL), lower = upper;
            if (dropout.least) {
                upper = kept_of_row(dropout, row + first + lane / 4, s, column + 64 * p);
                lower = kept_of_row(dropout, row + first + lane / 4 + 8, s, column + 64 * p);
            }
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float sums[2][4] = {};
#pragma unroll 1
                for (int k = 0; k < ranks; k += RANKS) {
                    unsigned a[4], b[4];
                    ldmatrix_x4(a, chunk(stage, a_row, k / BF16S + lane / 16));
                    ldmatrix_x4_trans(b, chunk(stage + T::A + p * T::PANEL, k + b_row, j + lane / 16));
                    mma_m16n8k16(sums[0], a, b[0], b[1]);
                    mma_m16n8k16(sums[1], a, b[2], b[3]);
                }
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const uint2 bits = i % 4 < 2 ? upper : lower;
                    const unsigned word = (j < 4 ? bits.x : bits.y) >> 2 * t;
                    const int at = 8 * (j % 4 + i / 4) + i % 2;
                    if (word >> at & 1) d[32 * p + 4 * j + i] += sums[i / 4][i % 4] * dropout.scale;
                }
            }
        }
        consumer.leave();
    }
    __device__ __forceinline__ void sum(typename T::Sums& d, Consumer<T>& consumer, int row, int column) const {
#pragma unroll
        for (int i = 0; i < T::COLUMNS / 2; i++) d[i] = 0;
        for (int s = 0; s < of.count; s++)
            for (int r = 0; r < Q && of.scale(s) != 0; r += T::DEPTH)
                add_masked(d, consumer, s, min(Q - r, T::DEPTH), row, column);
        add_stages(d, consumer, ceil_div(this->depth, T::DEPTH), true);
    }
};

KERNELS(lora_linear_dx_sm90, _, COLUMNS, (256, 128), __launch_bounds__(THREADS, 1),
        (const __grid_constant__ CUtensorMap dx, const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap w,
         const __grid_constant__ CUtensorMap dxa, const __grid_constant__ CUtensorMap padded, int N, int K, int M, int Q,
         const Segments segments, const Draw dropout) {
            using T = Tile90<COLUMNS, true>;
            hopper_product<T>(Backward<T>{{{N, K}, M, dx, dy, w}, dxa, padded, Q, segments, dropout});
        })
