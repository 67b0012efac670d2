// What attention's kernels share: which columns a row sees, dropout as bits, rows on their way to shared memory.
#pragma once
#include "mma.cuh"
#include "philox.cuh"

// By the approximation of the special function unit: 2 units in the last place, exp2(-inf) = 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
constexpr float LOG2E = 1.4426950408889634f;

// Thirty-two rows of a pack from `first` on, as the sequences that they lie in.
struct Window {
    int first, start, end;  // `start` is that of first's sequence, `end` that of the sequence of row first + 31
    unsigned begins;        // bit k: a sequence begins at row first + k, k > 0

    // By one whole warp: 32 probes at a time, then the 32 starts behind.
    __device__ inline Window(const int* __restrict__ starts, int B, int row) : first(row) {
        const int lane = threadIdx.x % 32;
        int from = 0, count = B;
        while (count > 1) {
            const int step = ceil_div(count, 32), probe = lane * step;
            const int last = 31 - __clz(__ballot_sync(ALL, probe < count && starts[from + probe] <= first));
            from += last * step;
            count = min(step, count - last * step);
        }
        start = starts[from];
        const int next = starts[min(from + 1 + lane, B)];
        begins = __reduce_or_sync(ALL, next - first < 32 ? 1u << (next - first) : 0u);
        end = __shfl_sync(ALL, next, __popc(begins));
    }

    // Where the sequence of a row begins: of any row whose sequence touches the window.
    __device__ inline int start_of(int row) const {
        const int k = min(row - first, 31);
        const unsigned before = k > 0 ? begins & ((2u << k) - 1) : 0;
        return before ? first + 31 - __clz(before) : start;
    }
    // Where that of a row of the window ends.
    __device__ inline int end_of(int row) const {
        const unsigned after = begins & ~((2u << (row - first)) - 1);
        return after ? first + __ffs(after) - 1 : end;
    }
};

// Tokens and sequences of a pack, its query and key heads.
PARAMS struct Extent {
    int N, B, H, G;
};

// How many keys before and behind itself a query sees.
PARAMS struct Reach {
    int left, right;
};

// The columns lo .. hi that a row sees: at most `left` before and `right` behind it, in its own sequence. Both ends never
// fall from one row to the next, so rows i .. j see those from i's lo to j's hi, and all of them see from j's lo to i's hi.
struct alignas(8) Range {
    int lo, hi;

    static __device__ inline Range of_row(const Window& window, int row, int left, int right) {
        return {max(window.start_of(row), row - left), min(window.end_of(row), row + right + 1)};
    }
    // That of the row that another lane holds.
    __device__ inline Range of(int lane) const { return {__shfl_sync(ALL, lo, lane), __shfl_sync(ALL, hi, lane)}; }
    __device__ inline bool touches(int column, int columns) const { return column < hi && column + columns > lo; }
    __device__ inline bool holds(int column, int columns) const { return column >= lo && column + columns <= hi; }
};

// COUNT columns of a row of the mask from column `column` (of the sequence; negative ones are nobody's) on, bit by bit: one
// Philox call for eight columns, and one more for all lanes where any of them begins between two eights. A caller that
// leaves out the first columns or the last says so by `from` and `to`.
template <int COUNT>
__device__ inline unsigned kept(const Draw& dropout, int row, int plane, int column, int from = 0, int to = COUNT) {
    const int skew = column & 7, group = column >> 3;
    const int calls = to / 8 + (__any_sync(ALL, skew) ? 1 : 0);
    unsigned long long bits = 0;
#pragma unroll 1
    for (int i = from / 8; i < calls; i++) {
        bits |= static_cast<unsigned long long>(dropout.kept(row, plane, group + i)) << (8 * i);
    }
    return unsigned(bits >> skew);
}

// Calls f(row, column) for every vector of ROWS rows of D columns that falls to thread `thread` of THREADS. Neighbours lie in
// a row, by eights where it has so many; the rest of a row, 2 or 4 vectors, goes with that of other rows, as far apart as it
// takes for eight vectors of a tile to touch all banks once.
template <int ROWS, int THREADS, int D, typename F>
__device__ inline void each_vector(int thread, F f) {
    constexpr int WHOLE = D / 64 * 8, REST = D / BF16S - WHOLE;
    if constexpr (WHOLE > 0) {
#pragma unroll
        for (int i = 0; i < ROWS * WHOLE / THREADS; i++) {
            const int at = thread + i * THREADS;
            f(at / WHOLE, at % WHOLE * BF16S);
        }
    }
    if constexpr (REST > 0) {
        constexpr int COUNT = ROWS * REST;
#pragma unroll
        for (int i = 0; i < (COUNT + THREADS - 1) / THREADS; i++) {
            const int at = thread + i * THREADS, n = at / REST % 8;
            const int row = at / REST / 8 * 8 + n % (8 / REST) * REST + n / (8 / REST);
            if (COUNT % THREADS == 0 || at < COUNT) f(row, (WHOLE + at % REST) * BF16S);
        }
    }
}

// Rows `row` .. row + ROWS of a matrix whose rows lie `stride` apart, on their way to a tile; zeros from row `end` on.
template <int ROWS, int THREADS, int D>
__device__ inline void load_rows(const Tile<D>& to, const bf16* from, int stride, int row, int end) {
    from += size_t(row) * stride;
    each_vector<ROWS, THREADS, D>(threadIdx.x, [&](int r, int column) {
        cp_async(to.at(r, column), from + (r * stride + column), row + r < end);
    });
}

// One warp's ROWS rows of a tile, from `own` on, to rows `row` .. of a matrix, up to row `end`.
template <int ROWS, int D>
__device__ inline void store_rows(bf16* to, int stride, int row, int end, const Tile<D>& tile, int own) {
    to += size_t(row) * stride;
    each_vector<ROWS, 32, D>(threadIdx.x % 32, [&](int r, int column) {
        if (row + r < end) st_global(to + (r * stride + column), load(tile.at(own + r, column), 0));
    });
}

// Rows g (times low) and g + 8 (times high) of accumulators, rounded, to the 16 rows of a tile from `row` on.
template <int D>
__device__ inline void put(const Tile<D>& tile, int row, const float (&c)[D / 8][4], float low, float high) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        *reinterpret_cast<unsigned*>(tile.at(row + g, 8 * n + 2 * t)) = narrow(c[n][0] * low, c[n][1] * low);
        *reinterpret_cast<unsigned*>(tile.at(row + g + 8, 8 * n + 2 * t)) = narrow(c[n][2] * high, c[n][3] * high);
    }
}

// Accumulators of 16 columns, rounded: the A fragment of the next product.
__device__ inline void as_a(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = narrow(left[0], left[1]);
    a[1] = narrow(left[2], left[3]);
    a[2] = narrow(right[0], right[1]);
    a[3] = narrow(right[2], right[3]);
}
