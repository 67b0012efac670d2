// What attention's kernels on Hopper share: how sequences are cut into slices, dropout as bits of a wgmma fragment, the running
// softmax of a warpgroup's 64 rows.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

// The same in every lane of a warp, which the compiler is to know.
__device__ __forceinline__ int same(int x) { return __shfl_sync(ALL, x, 0); }

// x, of which nothing else is known: what follows from it is computed anew and takes no registers from one turn of a loop to the next.
__device__ __forceinline__ int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

template <int N>
struct Number {
    static constexpr int value = N;
};

// Calls f with the number of columns that a product of `count` has: by eights up to 64, else MOST.
template <int MOST, typename F>
__device__ __forceinline__ void by_eights(int count, F f) {
    switch (ceil_div(count, 8)) {
        case 1:
        case 2: f(Number<16>()); break;
        case 3: f(Number<24>()); break;
        case 4: f(Number<32>()); break;
        case 5: f(Number<40>()); break;
        case 6: f(Number<48>()); break;
        case 7: f(Number<56>()); break;
        case 8:
            if constexpr (MOST != 64) {
                f(Number<64>());
                break;
            }
        default: f(Number<MOST>());
    }
}

// UNIT rows of a head's columns to panels of 64, so many bytes apart.
template <int D>
__device__ __forceinline__ void load_unit(unsigned to, int panel, const CUtensorMap& map, int head, int row, unsigned full) {
    for (int p = 0; p < D / 64; p++) cp_async_bulk_tensor_load(to + p * panel, map, head * D + 64 * p, row, full);
}

// Rows of one sequence: from `row` on, a whole slice or what is left to its end.
struct Slice {
    int row, start, end;
};

// The slices of ROWS rows of all sequences of more than ABOVE rows, counted up to each of the chunks of sequences that fall to the
// block's THREADS.
template <int ROWS, int THREADS, int ABOVE = 0>
struct Slices {
    int before[THREADS + 1], warps[THREADS / 32];

    static __device__ __forceinline__ int of(int start, int end) {
        return end - start > ABOVE ? ceil_div(end - start, ROWS) : 0;
    }

    // By all threads, before a barrier that tells of it.
    __device__ inline void count(const int* __restrict__ starts, int B) {
        const int chunk = ceil_div(B, THREADS), from = threadIdx.x * chunk, lane = threadIdx.x % 32;
        int sum = 0;
        for (int t = from, start = from < B ? starts[from] : 0; t < min(from + chunk, B); t++) {
            const int end = starts[t + 1];
            sum += of(start, end);
            start = end;
        }
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
            const int other = __shfl_up_sync(ALL, sum, apart);
            sum += lane >= apart ? other : 0;
        }
        if (lane == 31) warps[threadIdx.x / 32] = sum;
        __syncthreads();
        for (int w = 0; w < int(threadIdx.x) / 32; w++) sum += warps[w];
        before[threadIdx.x + 1] = sum;
        if (threadIdx.x == 0) before[0] = 0;
    }
    // By one whole warp.
    __device__ inline Slice find(const int* __restrict__ starts, int B, int slice) const {
        const int size = ceil_div(B, THREADS), lane = threadIdx.x % 32;
        int chunk = 0;
#pragma unroll
        for (int i = 0; i < THREADS; i += 32) chunk += before[1 + i + lane] <= slice;
        chunk = __reduce_add_sync(ALL, chunk);
        int left = slice - before[chunk];
        for (int base = chunk * size;; base += 32) {
            const int t = base + lane;
            int start = 0, end = 0;
            if (t < min((chunk + 1) * size, B)) start = starts[t], end = starts[t + 1];
            int sum = of(start, end);
            const int own = sum;
#pragma unroll
            for (int apart = 1; apart < 32; apart *= 2) {
                const int other = __shfl_up_sync(ALL, sum, apart);
                sum += lane >= apart ? other : 0;
            }
            const unsigned behind = __ballot_sync(ALL, sum > left);
            if (behind) {
                const int row = start + (left - sum + own) * ROWS, k = __ffs(behind) - 1;
                return {__shfl_sync(ALL, row, k), __shfl_sync(ALL, start, k), __shfl_sync(ALL, end, k)};
            }
            left -= __shfl_sync(ALL, sum, 31);
        }
    }
};

// The bytes of low and high, or their signs, that `selector` names.
__device__ __forceinline__ unsigned prmt(unsigned low, unsigned high, unsigned selector) {
    unsigned y;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(low), "r"(high), "r"(selector));
    return y;
}
__device__ __forceinline__ float masked(float x, unsigned mask) { return __uint_as_float(__float_as_uint(x) & mask); }

// Which of a thread's probabilities stay: of a tile's row lane / 4 and of that eight below it. Bit 7 - (4 half + i) of byte s is
// column 8 (4 i + s) + 2 (lane % 4), in `even`, and the next, in `odd`.
struct Kept {
    unsigned even, odd;

    // Columns from 8 group on. A lane draws every fourth eight of both rows, a word of which has two columns for each lane of
    // the quad; two shuffles hand them round.
    template <int COLUMNS>
    static __device__ __forceinline__ Kept draw(const Draw& dropout, int row, int plane, int group) {
        const int t = threadIdx.x % 4;
        unsigned words[4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < (COLUMNS + 31) / 32; i++) {
                const uint4 pair = dropout.pairs(row + 8 * half, plane, group + 4 * i + t);
                const unsigned all[4] = {pair.x, pair.y, pair.z, pair.w};
#pragma unroll
                for (int k = 0; k < 4; k++) words[k] |= (all[k] & 0x80008000u) >> (4 * half + i);
            }
        }
        const unsigned low = words[0] | words[1] >> 8, high = words[2] | words[3] >> 8;
        const unsigned own = t & 2 ? high : low, far = __shfl_xor_sync(ALL, t & 2 ? low : high, 2);
        const unsigned mine = __byte_perm(own, far, t & 1 ? 0x2604 : 0x3715);
        const unsigned next = __shfl_xor_sync(ALL, __byte_perm(own, far, t & 1 ? 0x3715 : 0x2604), 1);
        // From bytes of the lanes t ^ 2, t, t ^ 3, t ^ 1 to those of 0, 1, 2, 3.
        const unsigned pairs = t & 2 ? 0x5140 : 0x4051, order = t & 1 ? (pairs & 0xf0f) << 4 | (pairs >> 4 & 0xf0f) : pairs;
        return {__byte_perm(mine, next, order), __byte_perm(mine, next, order + 0x2222)};
    }
    // Clears what does not stay of a packed A operand.
    template <int COUNT>
    __device__ __forceinline__ void apply(unsigned (&p)[COUNT]) const {
#pragma unroll
        for (int j = 0; j < COUNT / 2; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int by = 4 * half + j / 4;
                p[2 * j + half] &= prmt(even << by, odd << by, (8 | j % 4) * 0x0011 + (12 | j % 4) * 0x1100);
            }
        }
    }
    // All bits, or none, of column 8 j + 2 (lane % 4) + odd.
    __device__ __forceinline__ unsigned all(int j, int half, int odd_column) const {
        return prmt((odd_column ? odd : even) << (4 * half + j / 4), 0, (8 | j % 4) * 0x1111);
    }
};

// The same of transposed scores: rows are 16 keys of a warp, two eights of their text, columns 64 queries. Bit j of byte 2 half + i
// is key lane / 4 of an eight and query 8 j + 2 (lane % 4) + i.
struct KeptOfKeys {
    unsigned bits;

    // A lane draws four of the 128 calls: two queries that lanes of its place in a quad have, by both eights of keys.
    template <int COLUMNS>
    static __device__ __forceinline__ KeptOfKeys draw(const Draw& dropout, int query, int plane, int group) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        unsigned own = 0, bits = 0;
        // One after the other: there are few registers beside the sums.
#pragma unroll 1
        for (int i = 0; i < 4; i++) own |= dropout.kept(query + 8 * g + 2 * t + i % 2, plane, group + i / 2) << (8 * i);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) bits |= (__shfl_sync(ALL, own, 4 * j + t) >> g & 0x01010101u) << j;
        return {bits};
    }
    // All bits, or none, of the key in row `half` of the thread and the query; of two queries, of 16 bits each.
    __device__ __forceinline__ unsigned all(int j, int half, int odd) const {
        return prmt(bits << (7 - j), 0, (8 | 2 * half | odd) * 0x1111);
    }
    __device__ __forceinline__ unsigned both(int j, int half) const {
        return prmt(bits << (7 - j), 0, half ? 0xbbaa : 0x9988);
    }
};

// What a warpgroup's rows have come to. A thread has two, eight apart: their sums are of its own columns alone.
template <int D>
struct Running {
    float out[D / 2], most[2], sum[2];
};

// Hides the columns that a row does not see; `column` is the thread's first.
template <int COUNT>
__device__ __forceinline__ void hide(float (&s)[COUNT], int column, const Range (&sees)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const unsigned ahead = column - sees[half].lo, seen = sees[half].hi - sees[half].lo;
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (ahead + 8 * j + i >= seen) s[4 * j + 2 * half + i] = -INFINITY;
        }
    }
}

// Scores to probabilities in place, and by what the sums so far are to be multiplied. A row's base stays as it is while no
// probability of the warp's grows beyond 2^PATIENCE; rows with no `counts` have no say.
template <int D, int COUNT>
__device__ __forceinline__ void softmax(float (&s)[COUNT], Running<D>& state, float (&shrink)[2], const bool (&counts)[2]) {
    constexpr float PATIENCE = 8;
    const float scale = LOG2E / sqrtf(float(D));
    float most[2];
    bool grows = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best[2] = {state.most[half], s[2 * half + 1]};
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) best[i] = fmaxf(best[i], s[4 * j + 2 * half + i]);
        }
        most[half] = fmaxf(best[0], best[1]);
        most[half] = fmaxf(most[half], __shfl_xor_sync(ALL, most[half], 1));
        most[half] = fmaxf(most[half], __shfl_xor_sync(ALL, most[half], 2));
        grows |= counts[half] && (most[half] - state.most[half]) * scale > PATIENCE;
    }
    const bool moves = __any_sync(ALL, grows);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (!moves) most[half] = state.most[half];
        // A row that has seen no key yet keeps zeros.
        const float base = most[half] == -INFINITY ? 0.0f : most[half] * scale;
        shrink[half] = exp2_fast(state.most[half] * scale - base);
        state.most[half] = most[half];
        float sum[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& p = s[4 * j + 2 * half + i];
                p = exp2_fast(p * scale - base);
                sum[i] += p;
            }
        }
        state.sum[half] = state.sum[half] * shrink[half] + (sum[0] + sum[1]);
    }
}

template <int D>
__device__ __forceinline__ void rescale(Running<D>& state, const float (&shrink)[2]) {
    if (!__any_sync(ALL, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < D / 2; i++) state.out[i] *= shrink[i / 2 % 2];
}

// Probabilities as an A operand, whose last k-step may be half zeros.
template <int COUNT, int SCORES>
__device__ __forceinline__ void pack(unsigned (&p)[COUNT], const float (&s)[SCORES]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) p[i] = 2 * i < SCORES ? narrow(s[2 * i % SCORES], s[2 * i % SCORES + 1]) : 0;
}

// Keeps ptxas from moving what x depends on behind the next wait: a store to shared memory passes none.
__device__ __forceinline__ void settle(unsigned to, float x) { st_shared(to, x); }

// Sixteen rows of a warp, rounded, to panels of 64 columns, so many bytes apart: row lane / 4 times `low`, that eight below times
// `high`.
template <int COUNT>
__device__ __forceinline__ void put_rows(unsigned to, int panel, const float (&c)[COUNT], float low, float high) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < COUNT / 8; j++) {
        const float* x = c + 8 * j;
        stmatrix_x4(to + j / 4 * panel + lane % 16 * 128 + (((2 * j % 8 + lane / 16) ^ lane % 8) << 4),
                    narrow(x[0] * low, x[1] * low), narrow(x[2] * high, x[3] * high), narrow(x[4] * low, x[5] * low),
                    narrow(x[6] * high, x[7] * high));
    }
}

// Those rows to rows `row` .. `end` of a matrix whose rows lie `stride` apart, from column x on: by the map, whose boxes they are,
// or, where another sequence's rows follow that a box would overwrite, by vectors.
template <int ROWS, int PANELS>
__device__ __forceinline__ void send_rows(const CUtensorMap& map, bf16* to, int stride, int x, int row, int end, unsigned from,
                                          int panel) {
    constexpr int VECTORS = 8 * PANELS;
    const int lane = threadIdx.x % 32;
    fence_proxy_async();
    __syncwarp();
    if (row + ROWS <= end) {
        if (lane == 0) {
            for (int p = 0; p < PANELS; p++) cp_async_bulk_tensor_store(map, x + 64 * p, row, from + p * panel);
            cp_async_bulk_commit();
        }
    } else {
        for (int i = lane; i < ROWS * VECTORS; i += 32) {
            const int r = i / VECTORS, c = i % VECTORS;
            if (row + r < end)
                st_global(to + (size_t(row + r) * stride + x + c * BF16S),
                          ld_shared(from + c / 8 * panel + r * 128 + ((c % 8 ^ r % 8) << 4)));
        }
    }
    __syncwarp();
}

// s = queries keysᵀ of 64 rows and COLUMNS keys; one group. Panels of 64 columns are so many bytes apart.
template <int D, int COLUMNS>
__device__ __forceinline__ void multiply_keys(float (&s)[COLUMNS / 2], bytes64 queries, int queries_panel, bytes64 keys,
                                              int keys_panel) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        const bytes64 a = queries + (k % 4 * 32 + k / 4 * queries_panel >> 4);
        const bytes64 b = keys + (k % 4 * 32 + k / 4 * keys_panel >> 4);
        if constexpr (COLUMNS == 16) wgmma_m64n16k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 24) wgmma_m64n24k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 32) wgmma_m64n32k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 40) wgmma_m64n40k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 48) wgmma_m64n48k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 56) wgmma_m64n56k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 64) wgmma_m64n64k16<false>(s, a, b, k > 0);
        else if constexpr (COLUMNS == 96) wgmma_m64n96k16<false>(s, a, b, k > 0);
        else wgmma_m64n128k16<false>(s, a, b, k > 0);
    }
    wgmma_commit();
}

// out = p values + (keep ? out : 0); one group.
template <int D, int COUNT>
__device__ __forceinline__ void multiply_values(float (&out)[D / 2], const unsigned (&p)[COUNT], bytes64 values, bool keep) {
#pragma unroll
    for (int k = 0; k < COUNT / 4; k++) {
        const bytes64 b = values + (k * 16 * 128 >> 4);
        if constexpr (D == 64) wgmma_m64n64k16<true>(out, p + 4 * k, b, k > 0 || keep);
        else wgmma_m64n128k16<true>(out, p + 4 * k, b, k > 0 || keep);
    }
    wgmma_commit();
}
