// Philox4x32-10 (Salmon et al., SC 2011) and the dropout masks made of it: the streams of src/rng.rs and
// src/ops/dropout.rs, word for word, so that a mask is computed anew wherever it is needed and never stored.
#pragma once

// The ten-round bijection of a 128-bit counter under a 64-bit key.
__device__ inline uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long a = 0xD2511F53ull * counter.x, b = 0xCD9E8D57ull * counter.z;
        counter = make_uint4(unsigned(b >> 32) ^ counter.y ^ key.x, unsigned(b),
                             unsigned(a >> 32) ^ counter.w ^ key.y, unsigned(a));
        key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
    }
    return counter;
}

// A dropout at one place of one step: the key is that of Dropout::key, a word below `least` drops its element, what
// stays is multiplied by `scale`. `first` counts the tokens of the step before this pack.
struct Dropout {
    uint2 key;
    unsigned least;
    float scale;
    unsigned long long first;

    // Bit i: column 4 group + i of a row of this pack stays.
    __device__ inline unsigned kept(int row, int plane, int group) const {
        const unsigned long long token = first + row;
        const uint4 w = philox(make_uint4(group, plane, unsigned(token), unsigned(token >> 32)), key);
        return (w.x >= least) | (w.y >= least) << 1 | (w.z >= least) << 2 | (w.w >= least) << 3;
    }

    // Multiplies columns 4 group .. 4 group + 4 of a row of this pack by the mask.
    __device__ inline void apply(float* x, int row, int plane, int group) const {
        const unsigned long long token = first + row;
        const uint4 w = philox(make_uint4(group, plane, unsigned(token), unsigned(token >> 32)), key);
        const unsigned words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = words[i] < least ? 0.0f : x[i] * scale;
    }
};
