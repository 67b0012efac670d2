//! swiglu: the gated activation of Llama's feed-forward block.

use crate::device::Device;
use crate::device::cpu::{Real, simd};
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::swiglu::{self as kernels, SwigluBwd, SwigluFwd};
use crate::tensor::{Tensor, dims, int, refuse, whole_vectors, with_real};
use rayon::prelude::*;

/// `a[n,f] = silu(gate_up[n,f]) * gate_up[n,F+f]`, with `silu(g) = g / (1 + e^-g)`.
///
/// | operand   | shape   | dtype      | role                       |
/// |-----------|---------|------------|----------------------------|
/// | `a`       | [N, F]  | activation | overwritten                |
/// | `gate_up` | [N, 2F] | activation | read: gate, then up        |
///
/// Errors if a shape does not fit. Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
pub fn swiglu_fwd(device: &Device, a: &mut Tensor, gate_up: &Tensor) -> Result<()> {
    let [n, f] = contract("swiglu_fwd", &[("a", a, "N F"), ("gate_up", gate_up, "N 2F")])?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => cpu_fwd::<R>(a.host_mut()?, gate_up.host()?, f)),
        Device::Gpu(gpu) => {
            let (launch, [n, f]) = spread("swiglu_fwd", n, f)?;
            let arguments = SwigluFwd { a, gate_up, n, f };
            // SAFETY: `contract` holds both arrays to n and f, a multiple of 8 by `spread`, of which every thread
            // has 8.
            unsafe { kernels::swiglu_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

/// N and F, where the second letter is twice the first.
fn contract(op: &'static str, operands: &[(&str, &Tensor, &str)]) -> Result<[usize; 2]> {
    let [n, f, gu] = dims(op, ["N", "F", "2F"], operands)?;
    if gu != 2 * f {
        return refuse(op, format!("gate_up has {gu} columns, expected 2F = {}", 2 * f));
    }
    Ok([n, f])
}

/// A thread for every 8 columns of every row; and the sizes as kernels take them.
fn spread(op: &'static str, n: usize, f: usize) -> Result<(Launch, [i32; 2])> {
    whole_vectors(op, "F", f, 8)?;
    let threads = kernels::THREADS as usize;
    let vectors = int(op, n * (f / 8))? as usize;
    Ok((Launch::line(vectors.div_ceil(threads), threads), [int(op, n)?, int(op, f)?]))
}

fn cpu_fwd<R: Real>(a: &mut [R], gate_up: &[R], f: usize) {
    a.par_chunks_mut(f).zip(gate_up.par_chunks(2 * f)).with_min_len(16).for_each(|(a, gu)| {
        let (gate, up) = gu.split_at(f);
        simd(
            #[inline(always)]
            || {
                for ((a, &g), &u) in a.iter_mut().zip(gate).zip(up) {
                    *a = g / (R::ONE + (-g).exp()) * u;
                }
            },
        );
    });
}

/// `dgate = da up σ(g) (1 + g (1 - σ(g)))`, `dup = da silu(g)`, with `σ(g) = 1 / (1 + e^-g)`.
///
/// | operand    | shape   | dtype      | role                                |
/// |------------|---------|------------|-------------------------------------|
/// | `dgate_up` | [N, 2F] | activation | overwritten: gate, then up          |
/// | `da`       | [N, F]  | activation | read                                |
/// | `gate_up`  | [N, 2F] | activation | read                                |
pub fn swiglu_bwd(device: &Device, dgate_up: &mut Tensor, da: &Tensor, gate_up: &Tensor) -> Result<()> {
    let operands = [("da", da, "N F"), ("gate_up", gate_up, "N 2F"), ("dgate_up", &*dgate_up, "N 2F")];
    let [n, f] = contract("swiglu_bwd", &operands)?;
    match device {
        Device::Cpu(real) => {
            with_real!(*real, R => cpu_bwd::<R>(dgate_up.host_mut()?, da.host()?, gate_up.host()?, f))
        }
        Device::Gpu(gpu) => {
            let (launch, [n, f]) = spread("swiglu_bwd", n, f)?;
            let arguments = SwigluBwd { dgate_up, da, gate_up, n, f };
            // SAFETY: `contract` holds all arrays to n and f, a multiple of 8 by `spread`, of which every thread has
            // 8.
            unsafe { kernels::swiglu_bwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_bwd<R: Real>(dgate_up: &mut [R], da: &[R], gate_up: &[R], f: usize) {
    let rows = dgate_up.par_chunks_mut(2 * f).zip(da.par_chunks(f)).zip(gate_up.par_chunks(2 * f));
    rows.with_min_len(16).for_each(|((dgu, da), gu)| {
        let ((dgate, dup), (gate, up)) = (dgu.split_at_mut(f), gu.split_at(f));
        simd(
            #[inline(always)]
            || {
                for ((((dg, du), &da), &g), &u) in dgate.iter_mut().zip(dup).zip(da).zip(gate).zip(up) {
                    let sigma = R::ONE / (R::ONE + (-g).exp());
                    *dg = da * u * sigma * (R::ONE + g * (R::ONE - sigma));
                    *du = da * g * sigma;
                }
            },
        );
    });
}
