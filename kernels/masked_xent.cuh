// What the products of masked_xent and masked_xent_sm90 make of their sums: the logits of a row, a span of columns at a time.
#pragma once
#include "lse.cuh"

// Where it goes: most, sum, best [spans, rows]; label by the picked row. The product's rows begin at `first` of all.
struct Spans {
    float *most, *sum, *label;
    int* best;
    const int* labels;
    int first, rows, V;

    // Of a row of the product and its EIGHTS x 8 columns from `column` on, the span-th of the row: a quad of lanes has two of every
    // eight, in the C fragments z, halves 0 or 1 of them. z becomes e^(z - most), 0 past V.
    template <int EIGHTS>
    __device__ __forceinline__ void fold(float* z, int half, int row, int column, int span) const {
        const int t = threadIdx.x % 4, ahead = V - column - 2 * t;
        const int label_at = (row < rows ? labels[first + row] : -1) - column - 2 * t;
        float top = LOWEST, total = 0;
        int where = 0;
#pragma unroll
        for (int i = 0; i < 2 * EIGHTS; i++) {
            const int apart = i / 2 * 8 + i % 2;
            const float logit = z[i / 2 * 4 + 2 * half + i % 2];
            if (apart == label_at) label[first + row] = logit;
            if (apart < ahead && logit > top) top = logit, where = apart;
        }
        where += column + 2 * t;
#pragma unroll
        for (int apart = 1; apart < 4; apart *= 2) {
            const float other = __shfl_xor_sync(ALL, top, apart);
            const int other_where = __shfl_xor_sync(ALL, where, apart);
            if (other > top || (other == top && other_where < where)) top = other, where = other_where;
        }
#pragma unroll
        for (int i = 0; i < 2 * EIGHTS; i++) {
            float& logit = z[i / 2 * 4 + 2 * half + i % 2];
            logit = i / 2 * 8 + i % 2 < ahead ? expf(logit - top) : 0.0f;
            total += logit;
        }
        total += __shfl_xor_sync(ALL, total, 1);
        total += __shfl_xor_sync(ALL, total, 2);
        if (t != 0 || row >= rows) return;
        const size_t to = size_t(span) * rows + row;
        most[to] = top, sum[to] = total, best[to] = where;
    }
};
