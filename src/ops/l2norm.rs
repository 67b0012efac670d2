//! l2norm: every row scaled to unit length.

use crate::device::Device;
use crate::device::cpu::{Real, dot};
use crate::error::Result;
use crate::tensor::{Tensor, dims, with_real};
use rayon::prelude::*;

/// `norm[b] = max(|x[b]|, eps)`, `y[b] = x[b] / norm[b]`.
///
/// | operand | shape  | dtype     | role        |
/// |---------|--------|-----------|-------------|
/// | `y`     | [B, C] | statistic | overwritten |
/// | `norm`  | [B]    | statistic | overwritten |
/// | `x`     | [B, C] | statistic | read        |
///
/// `eps` has the unit of x. Errors if a shape does not fit. Source: `torch.nn.functional.normalize` (eps 1e-12).
pub fn l2norm_fwd(device: &Device, y: &mut Tensor, norm: &mut Tensor, x: &Tensor, eps: f64) -> Result<()> {
    let [_, c] =
        dims("l2norm_fwd", ["B", "C"], &[("x", x, "B C"), ("y", &*y, "B C"), ("norm", &*norm, "B")])?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_fwd::<R>(y.host_mut()?, norm.host_mut()?, x.host()?, c, eps)
        }),
    }
    Ok(())
}

fn cpu_fwd<R: Real>(y: &mut [R], norm: &mut [R], x: &[R], c: usize, eps: f64) {
    y.par_chunks_mut(c).zip(norm).zip(x.par_chunks(c)).with_min_len(64).for_each(|((y, norm), x)| {
        *norm = dot(x, x).sqrt().max(R::of(eps));
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x / *norm);
    });
}
