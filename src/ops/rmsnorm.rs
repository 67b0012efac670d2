//! rmsnorm: every row scaled to unit root-mean-square, then by a learned weight.

use crate::device::Device;
use crate::device::cpu::{Real, dot, simd};
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::rmsnorm::{self as kernels, RmsnormBwd, RmsnormFwd};
use crate::tensor::{Tensor, dims, int, limited, whole_vectors, with_real};
use rayon::prelude::*;

/// `rstd[n] = 1 / sqrt(mean_c(x[n,c]²) + eps)`, `y[n,c] = x[n,c] rstd[n] w[c]`.
///
/// | operand | shape  | dtype      | role        |
/// |---------|--------|------------|-------------|
/// | `y`     | [N, C] | activation | overwritten |
/// | `rstd`  | `[N]`  | statistic  | overwritten |
/// | `x`     | [N, C] | activation | read        |
/// | `w`     | `[C]`  | activation | read        |
///
/// `eps` has the unit of x². Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
pub fn rmsnorm_fwd(
    device: &Device,
    y: &mut Tensor,
    rstd: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    eps: f64,
) -> Result<()> {
    let operands = [("x", x, "N C"), ("w", w, "C"), ("y", &*y, "N C"), ("rstd", &*rstd, "N")];
    let [n, c] = dims("rmsnorm_fwd", ["N", "C"], &operands)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_fwd::<R>(y.host_mut()?, rstd.host_mut()?, x.host()?, w.host()?, c, eps)
        }),
        Device::Gpu(gpu) => {
            let (launch, [n, c]) = spread("rmsnorm_fwd", gpu, n, c)?;
            let arguments = RmsnormFwd { y, rstd, x, w, n, c, eps: eps as f32 };
            // SAFETY: `dims` holds all arrays to n and c, and `spread` gives a block the threads that hold c.
            unsafe { kernels::rmsnorm_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

/// The most columns that a GPU takes.
pub const WIDEST: usize = (kernels::MAX_THREADS * 8 * kernels::VECTORS) as usize;

/// As few threads as hold a row, as many blocks as fill the GPU; and the sizes as kernels take them.
fn spread(op: &'static str, gpu: &Gpu, n: usize, c: usize) -> Result<(Launch, [i32; 2])> {
    whole_vectors(op, "C", c, 8)?;
    let threads = c.div_ceil(32 * 8 * kernels::VECTORS as usize) * 32;
    if c > WIDEST {
        return limited(op, format!("C = {c}"), format!("at most {WIDEST}"));
    }
    // Twice what can be resident at 64 registers: the last blocks to start find short queues.
    let blocks = gpu.processors() * 2 * (1024 / threads).max(1);
    Ok((Launch::line(n.min(blocks), threads), [int(op, n)?, int(op, c)?]))
}

fn cpu_fwd<R: Real>(y: &mut [R], rstd: &mut [R], x: &[R], w: &[R], c: usize, eps: f64) {
    y.par_chunks_mut(c).zip(rstd).zip(x.par_chunks(c)).with_min_len(16).for_each(|((y, rstd), x)| {
        simd(
            #[inline(always)]
            || {
                let mean_square = dot(x, x) / R::of(c as f64);
                *rstd = R::ONE / (mean_square + R::of(eps)).sqrt();
                for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * *rstd * w;
                }
            },
        );
    });
}

/// `dx = skip + rstd (dy w - n mean_c(dy w n))` with `n = x rstd`; the weight is frozen.
///
/// | operand    | shape  | dtype      | role                                                               |
/// |------------|--------|------------|--------------------------------------------------------------------|
/// | `dx`       | [N, C] | activation | overwritten                                                        |
/// | `dy`       | [N, C] | activation | read                                                               |
/// | `skip`     | [N, C] | activation | read: what reaches x past the norm, by the residual connection     |
/// | `x`, `w`   |        |            | read, as in the forward                                            |
/// | `rstd`     | `[N]`  | statistic  | read, from the forward                                             |
pub fn rmsnorm_bwd(
    device: &Device,
    dx: &mut Tensor,
    dy: &Tensor,
    skip: Option<&Tensor>,
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
) -> Result<()> {
    let mut operands =
        vec![("x", x, "N C"), ("w", w, "C"), ("rstd", rstd, "N"), ("dy", dy, "N C"), ("dx", &*dx, "N C")];
    operands.extend(skip.map(|s| ("skip", s, "N C")));
    let [n, c] = dims("rmsnorm_bwd", ["N", "C"], &operands)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let skip = skip.map(Tensor::host::<R>).transpose()?;
            cpu_bwd::<R>(dx.host_mut()?, dy.host()?, skip, x.host()?, w.host()?, rstd.host()?, c)
        }),
        Device::Gpu(gpu) => {
            let (launch, [n, c]) = spread("rmsnorm_bwd", gpu, n, c)?;
            let arguments = RmsnormBwd { dx, dy, skip, x, w, rstd, n, c };
            // SAFETY: `dims` holds all arrays to n and c, and `spread` gives a block the threads that hold c.
            unsafe { kernels::rmsnorm_bwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_bwd<R: Real>(dx: &mut [R], dy: &[R], skip: Option<&[R]>, x: &[R], w: &[R], rstd: &[R], c: usize) {
    let rows = dx.par_chunks_mut(c).zip(dy.par_chunks(c)).zip(x.par_chunks(c)).zip(rstd).enumerate();
    rows.with_min_len(16).for_each(|(n, (((dx, dy), x), &rstd))| {
        simd(
            #[inline(always)]
            || {
                for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
                    *dx = dy * w;
                }
                let back = dot(dx, x) * rstd * rstd / R::of(c as f64);
                for (dx, &x) in dx.iter_mut().zip(x) {
                    *dx = (*dx - x * back) * rstd;
                }
                if let Some(skip) = skip {
                    dx.iter_mut().zip(&skip[n * c..]).for_each(|(dx, &s)| *dx += s);
                }
            },
        );
    });
}
