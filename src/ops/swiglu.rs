//! swiglu: the gated activation of Llama's feed-forward block.

use crate::device::Device;
use crate::device::cpu::{Real, simd};
use crate::error::Result;
use crate::tensor::{Tensor, dims, refuse, with_real};
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
    let [_, f, gu] =
        dims("swiglu_fwd", ["N", "F", "2F"], &[("a", &*a, "N F"), ("gate_up", gate_up, "N 2F")])?;
    if gu != 2 * f {
        return refuse("swiglu_fwd", format!("gate_up has {gu} columns, expected 2F = {}", 2 * f));
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => cpu_fwd::<R>(a.host_mut()?, gate_up.host()?, f)),
    }
    Ok(())
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
