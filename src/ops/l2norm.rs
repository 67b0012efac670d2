//! l2norm: every row, or its first columns, scaled to unit length.

use crate::device::Device;
use crate::device::cpu::{Real, dot};
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::l2norm::{self as kernels, L2normBwd, L2normFwd};
use crate::tensor::{Tensor, dims, int, refuse, whole_vectors, with_real};
use rayon::prelude::*;

/// `norm[b] = max(|x[b]|, eps)`, `y[b] = x[b] / norm[b]`, over the first C columns of x.
///
/// | operand | shape  | dtype     | role                  |
/// |---------|--------|-----------|-----------------------|
/// | `y`     | [B, C] | statistic | overwritten           |
/// | `norm`  | `[B]`  | statistic | overwritten           |
/// | `x`     | [B, K] | statistic | read, K is at least C |
///
/// `eps` has the unit of x. Errors if a shape does not fit. Source: `torch.nn.functional.normalize` (eps 1e-12).
pub fn l2norm_fwd(device: &Device, y: &mut Tensor, norm: &mut Tensor, x: &Tensor, eps: f64) -> Result<()> {
    let operands = [("y", &*y, "B C"), ("norm", &*norm, "B"), ("x", x, "B K")];
    let [b, c, k] = dims("l2norm_fwd", ["B", "C", "K"], &operands)?;
    at_least("l2norm_fwd", k, c)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_fwd::<R>(y.host_mut()?, norm.host_mut()?, x.host()?, [c, k], eps)
        }),
        Device::Gpu(gpu) => {
            whole("l2norm_fwd", c, k)?;
            let launch = Launch::line(b, kernels::THREADS as usize);
            let [c, k] = [int("l2norm_fwd", c)?, int("l2norm_fwd", k)?];
            let arguments = L2normFwd { y, norm, x, c, k, eps: eps as f32 };
            // SAFETY: `dims` holds all arrays to c or k >= c, multiples of 4, and to as many rows as there are blocks.
            unsafe { kernels::l2norm_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_fwd<R: Real>(y: &mut [R], norm: &mut [R], x: &[R], [c, k]: [usize; 2], eps: f64) {
    y.par_chunks_mut(c).zip(norm).zip(x.par_chunks(k)).with_min_len(64).for_each(|((y, norm), x)| {
        let x = &x[..c];
        *norm = dot(x, x).sqrt().max(R::of(eps));
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x / *norm);
    });
}

/// `dx = (dy - y (y · dy)) / norm`, or that added to it, in the first C columns; a row that the forward held at `eps` is only
/// divided by it.
///
/// | operand | shape  | dtype     | role                                          |
/// |---------|--------|-----------|-----------------------------------------------|
/// | `dx`    | [B, K] | statistic | overwritten or, by `add`, added to; K >= C    |
/// | `dy`    | [B, C] | statistic | read                                          |
/// | `y`     | [B, C] | statistic | read, from the forward                        |
/// | `norm`  | `[B]`  | statistic | read, from the forward                        |
///
/// `eps` as in the forward. Columns of `dx` from C on stay as they are.
pub fn l2norm_bwd(
    device: &Device,
    dx: &mut Tensor,
    dy: &Tensor,
    y: &Tensor,
    norm: &Tensor,
    eps: f64,
    add: bool,
) -> Result<()> {
    let operands = [("y", y, "B C"), ("norm", norm, "B"), ("dy", dy, "B C"), ("dx", &*dx, "B K")];
    let [b, c, k] = dims("l2norm_bwd", ["B", "C", "K"], &operands)?;
    at_least("l2norm_bwd", k, c)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_bwd::<R>(dx.host_mut()?, dy.host()?, y.host()?, norm.host()?, [c, k], eps, add)
        }),
        Device::Gpu(gpu) => {
            whole("l2norm_bwd", c, k)?;
            let launch = Launch::line(b, kernels::THREADS as usize);
            let [c, k] = [int("l2norm_bwd", c)?, int("l2norm_bwd", k)?];
            let arguments = L2normBwd { dx, dy, y, norm, c, k, add: add.into(), eps: eps as f32 };
            // SAFETY: `dims` holds all arrays to c or k >= c, multiples of 4, and to as many rows as there are blocks.
            unsafe { kernels::l2norm_bwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_bwd<R: Real>(dx: &mut [R], dy: &[R], y: &[R], norm: &[R], [c, k]: [usize; 2], eps: f64, add: bool) {
    let rows = dx.par_chunks_mut(k).zip(dy.par_chunks(c)).zip(y.par_chunks(c)).zip(norm);
    rows.with_min_len(64).for_each(|(((dx, dy), y), &norm)| {
        let along = if norm > R::of(eps) { dot(y, dy) } else { R::ZERO };
        for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
            let before = if add { *dx } else { R::ZERO };
            *dx = before + (dy - y * along) / norm;
        }
    });
}

/// Refuses rows that end before the columns that take part.
fn at_least(op: &'static str, k: usize, c: usize) -> Result<()> {
    if k < c { refuse(op, format!("rows of {k} numbers have no first {c}")) } else { Ok(()) }
}

fn whole(op: &'static str, c: usize, k: usize) -> Result<()> {
    whole_vectors(op, "C", c, 4)?;
    whole_vectors(op, "K", k, 4)
}
