// swiglu: the gated activation of Llama's feed-forward block.
//
//   forward   a = silu(gate) up,  silu(g) = g s(g),  s(g) = 1 / (1 + e^-g)
//   backward  dgate = da up s (1 + gate (1 - s)),  dup = da gate s
//
// Shapes    gate_up, dgate_up [N, 2F] bf16 (gate, then up), a, da [N, F] bf16.
// Plan      A thread computes 8 neighbouring columns: 16-byte loads of gate and up, 16-byte stores. blockDim.x = THREADS,
//           grid ceil(N F / 8 / THREADS): blocks do not stop at the ends of rows, so no F leaves lanes idle.
// Cost      forward 5 N F flops, bytes 6 N F; backward 12 N F flops, bytes 10 N F.
// Numerics  f32; e^x and the quotient by the fast instructions (2 units in the last place of f32), one rounding to bf16.
// Limits    F a multiple of 8, N F below 2^34; rows at 16-byte boundaries.
// Source    Shazeer 2020, arXiv:2002.05202, eq. 6.
#include "common.cuh"

EXPORT constexpr int THREADS = 256;

// The vector of this thread in a, and that of its gate in gate_up; up follows F columns later.
struct Place {
    unsigned a, row;

    __device__ inline explicit Place(int F) : a(blockIdx.x * THREADS + threadIdx.x), row(a / (F / BF16S)) {}
    __device__ inline bool inside(int N) const { return row < unsigned(N); }
    __device__ inline size_t gate(int F) const { return a + size_t(row) * (F / BF16S); }
};

KERNEL void __launch_bounds__(THREADS)
swiglu_fwd(bf16* __restrict__ a, const bf16* __restrict__ gate_up, int N, int F) {
    const Place at(F);
    if (!at.inside(N)) return;
    float g[BF16S], u[BF16S];
    widen(g, load(gate_up, at.gate(F)));
    widen(u, load(gate_up + F, at.gate(F)));
#pragma unroll
    for (int i = 0; i < BF16S; i++) g[i] = silu(g[i]) * u[i];
    store(a, at.a, narrow(g));
}

KERNEL void __launch_bounds__(THREADS)
swiglu_bwd(bf16* __restrict__ dgate_up, const bf16* __restrict__ da, const bf16* __restrict__ gate_up, int N, int F) {
    const Place at(F);
    if (!at.inside(N)) return;
    float g[BF16S], u[BF16S], d[BF16S];
    widen(g, load(gate_up, at.gate(F)));
    widen(u, load(gate_up + F, at.gate(F)));
    widen(d, load(da, at.a));
#pragma unroll
    for (int i = 0; i < BF16S; i++) {
        const float s = sigmoid(g[i]), dg = d[i] * u[i] * s * (1.0f + g[i] * (1.0f - s));
        u[i] = d[i] * g[i] * s;
        g[i] = dg;
    }
    store(dgate_up, at.gate(F), narrow(g));
    store(dgate_up + F, at.gate(F), narrow(u));
}
