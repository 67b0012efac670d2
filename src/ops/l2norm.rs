//! l2norm: every row scaled to unit length.

use crate::device::Device;
use crate::device::cpu::{Real, dot};
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::l2norm::{self as kernels, L2normBwd, L2normFwd};
use crate::tensor::{Tensor, dims, int, whole_vectors, with_real};
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
    let [b, c] =
        dims("l2norm_fwd", ["B", "C"], &[("x", x, "B C"), ("y", &*y, "B C"), ("norm", &*norm, "B")])?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_fwd::<R>(y.host_mut()?, norm.host_mut()?, x.host()?, c, eps)
        }),
        Device::Gpu(gpu) => {
            whole_vectors("l2norm_fwd", "C", c, 4)?;
            let launch = Launch::line(b, kernels::THREADS as usize);
            let arguments = L2normFwd { y, norm, x, c: int("l2norm_fwd", c)?, eps: eps as f32 };
            // SAFETY: `dims` holds all arrays to c, a multiple of 4, and to as many rows as there are blocks.
            unsafe { kernels::l2norm_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_fwd<R: Real>(y: &mut [R], norm: &mut [R], x: &[R], c: usize, eps: f64) {
    y.par_chunks_mut(c).zip(norm).zip(x.par_chunks(c)).with_min_len(64).for_each(|((y, norm), x)| {
        *norm = dot(x, x).sqrt().max(R::of(eps));
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x / *norm);
    });
}

/// `dx = (dy - y (y · dy)) / norm`; a row that the forward held at `eps` is only divided by it.
///
/// | operand | shape  | dtype     | role                   |
/// |---------|--------|-----------|------------------------|
/// | `dx`    | [B, C] | statistic | overwritten            |
/// | `dy`    | [B, C] | statistic | read                   |
/// | `y`     | [B, C] | statistic | read, from the forward |
/// | `norm`  | [B]    | statistic | read, from the forward |
///
/// `eps` as in the forward.
pub fn l2norm_bwd(
    device: &Device,
    dx: &mut Tensor,
    dy: &Tensor,
    y: &Tensor,
    norm: &Tensor,
    eps: f64,
) -> Result<()> {
    let operands = [("y", y, "B C"), ("norm", norm, "B"), ("dy", dy, "B C"), ("dx", &*dx, "B C")];
    let [b, c] = dims("l2norm_bwd", ["B", "C"], &operands)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_bwd::<R>(dx.host_mut()?, dy.host()?, y.host()?, norm.host()?, c, eps)
        }),
        Device::Gpu(gpu) => {
            whole_vectors("l2norm_bwd", "C", c, 4)?;
            let launch = Launch::line(b, kernels::THREADS as usize);
            let arguments = L2normBwd { dx, dy, y, norm, c: int("l2norm_bwd", c)?, eps: eps as f32 };
            // SAFETY: `dims` holds all arrays to c, a multiple of 4, and to as many rows as there are blocks.
            unsafe { kernels::l2norm_bwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_bwd<R: Real>(dx: &mut [R], dy: &[R], y: &[R], norm: &[R], c: usize, eps: f64) {
    let rows = dx.par_chunks_mut(c).zip(dy.par_chunks(c)).zip(y.par_chunks(c)).zip(norm);
    rows.with_min_len(64).for_each(|(((dx, dy), y), &norm)| {
        let along = if norm > R::of(eps) { dot(y, dy) } else { R::ZERO };
        for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
            *dx = (dy - y * along) / norm;
        }
    });
}
