// The logarithm of a sum of exponentials, a part at a time: what the losses keep of a row that they never hold.
#pragma once
#include "common.cuh"

// Finite, so that nothing seen yet merges with nothing seen yet to nothing: exp(LOWEST - LOWEST) * 0.
constexpr float LOWEST = -3.402823466e38f;

// sum = sum of e^(z - most) over what was seen.
struct Lse {
    float most, sum;

    __device__ static inline Lse none() { return {LOWEST, 0}; }
    // Before values of at most `to` are added.
    __device__ inline void raise(float to) {
        const float top = fmaxf(most, to);
        sum *= expf(most - top);
        most = top;
    }
    __device__ inline void add(float z) { sum += expf(z - most); }
    __device__ inline void merge(const Lse& other) {
        raise(other.most);
        sum += other.sum * expf(other.most - most);
    }
    // The same of this lane's and the lanes' that differ from it in bit `apart`.
    __device__ inline void merge_across(int apart) {
        Lse other;
        other.most = __shfl_xor_sync(ALL, most, apart);
        other.sum = __shfl_xor_sync(ALL, sum, apart);
        merge(other);
    }
};

// The larger; a NaN if one is.
__device__ inline float rival_of(float a, float b) { return a > b || a != a ? a : b; }

// What is known of a row: its logits' sum of exponentials, and the first of the largest.
struct Seen {
    Lse lse;
    int best;

    __device__ static inline Seen none() { return {Lse::none(), 0}; }
    __device__ inline void merge(const Seen& other) {
        const bool first = other.lse.most == lse.most && other.best < best;
        if (other.lse.most > lse.most || first) best = other.best;
        lse.merge(other.lse);
    }
    __device__ inline void merge_across(int apart) {
        Seen other;
        other.lse.most = __shfl_xor_sync(ALL, lse.most, apart);
        other.lse.sum = __shfl_xor_sync(ALL, lse.sum, apart);
        other.best = __shfl_xor_sync(ALL, best, apart);
        merge(other);
    }
};
