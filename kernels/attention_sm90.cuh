// What attention's kernels on Hopper share: how sequences are cut into slices, dropout as bits of a wgmma fragment, the running
// softmax of a warpgroup's 64 rows.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

// Rows of one sequence: from `row` on, a whole slice or what is left to its end.
struct Slice {
    int row, start, end;
};

// The slices of ROWS rows of all sequences, counted up to each of the chunks of sequences that fall to the block's THREADS.
template <int ROWS, int THREADS>
struct Slices {
    int before[THREADS + 1], warps[THREADS / 32];

    // By all threads, before a barrier that tells of it.
    __device__ inline void count(const int* __restrict__ starts, int B) {
        const int chunk = ceil_div(B, THREADS), from = threadIdx.x * chunk, lane = threadIdx.x % 32;
        int sum = 0;
        for (int t = from, start = from < B ? starts[from] : 0; t < min(from + chunk, B); t++) {
            const int end = starts[t + 1];
            sum += ceil_div(end - start, ROWS);
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
            int sum = ceil_div(end - start, ROWS);
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
                unsigned mask;
                asm("prmt.b32 %0, %1, %2, %3;"
                    : "=r"(mask)
                    : "r"(even << by), "r"(odd << by), "r"((8 | j % 4) * 0x0011 + (12 | j % 4) * 0x1100));
                p[2 * j + half] &= mask;
            }
        }
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
__device__ __forceinline__ void settle(unsigned to, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
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
