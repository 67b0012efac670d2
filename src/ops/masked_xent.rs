//! masked_xent: cross-entropy of the language-model head at the rows that have a label, a tile of the vocabulary at a time.

use crate::device::Device;
use crate::device::cpu::{Matrix, Real, exp_or_zero, matmul, simd};
use crate::error::Result;
use crate::tensor::{Element, Tensor, dims, refuse, with_real};
use rayon::prelude::*;

mod gpu;
#[cfg(test)]
mod tests;

/// `loss[p] = lse[p] - z[p, labels[p]]`, with `z = x[rows] wᵀ` and `lse` the log of its rows' sum of exponentials.
///
/// | operand  | shape  | dtype                                   | role                                             |
/// |----------|--------|-----------------------------------------|--------------------------------------------------|
/// | `total`  | `[2]`  | statistic                               | overwritten: mean loss, rows whose largest logit is the label's |
/// | `loss`   | `[P]`  | statistic                               | overwritten, nats                                |
/// | `lse`    | `[P]`  | statistic                               | overwritten                                      |
/// | `x`      | [N, C] | activation                              | read at `rows`                                   |
/// | `w`      | [V, C] | activation, bf16, or packed bf16 panels | read                                             |
/// | `rows`   | `[P]`  | i32, in [0, N)                          | read                                             |
/// | `labels` | `[P]`  | i32, in [0, V)                          | read                                             |
///
/// Errors if a shape does not fit, an index is out of range, or there is no row: its mean loss would be NaN. On a GPU, C
/// must be a multiple of 8, and nothing looks at the indices before the kernel: who makes them answers for them.
#[allow(clippy::too_many_arguments)]
pub fn masked_xent_fwd(
    device: &Device,
    total: &mut Tensor,
    loss: &mut Tensor,
    lse: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    rows: &Tensor,
    labels: &Tensor,
) -> Result<()> {
    let operands = [("total", &*total, "2"), ("loss", &*loss, "P"), ("lse", &*lse, "P")];
    let sizes = contract("masked_xent_fwd", &operands, x, w, rows, labels)?;
    run(device, "masked_xent_fwd", [total, loss, lse], None, [x, w, rows, labels], sizes)
}

/// What a step wants of the gradient.
pub struct Gradient<'a> {
    /// [N, C], overwritten; 0 outside `rows`.
    pub dx: &'a mut Tensor,
    /// [V, C], added to; `None` = frozen.
    pub dw: Option<&'a mut Tensor>,
    /// The gradient of the mean loss.
    pub dmean: f64,
}

/// [`masked_xent_fwd`] and its gradient at once, so that a GPU computes the logits once:
/// `dz = dmean / P (e^(z - lse) - onehot(labels))`, `dx[rows] = dz w`, `dw += dzᵀ x[rows]`.
///
/// | operand | shape  | dtype      | role                              |
/// |---------|--------|------------|-----------------------------------|
/// | `dx`    | [N, C] | activation | overwritten; 0 outside `rows`     |
/// | `dw`    | [V, C] | statistic  | added to; `None` = frozen         |
/// | others  |        |            | as in the forward                 |
///
/// Errors as the forward's. On a GPU, no row may be picked twice.
#[allow(clippy::too_many_arguments)]
pub fn masked_xent_step(
    device: &Device,
    total: &mut Tensor,
    loss: &mut Tensor,
    lse: &mut Tensor,
    gradient: Gradient,
    x: &Tensor,
    w: &Tensor,
    rows: &Tensor,
    labels: &Tensor,
) -> Result<()> {
    let mut operands = vec![("total", &*total, "2"), ("loss", &*loss, "P"), ("lse", &*lse, "P")];
    operands.push(("dx", &*gradient.dx, "N C"));
    operands.extend(gradient.dw.as_deref().map(|dw| ("dw", dw, "V C")));
    let sizes = contract("masked_xent_step", &operands, x, w, rows, labels)?;
    run(device, "masked_xent_step", [total, loss, lse], Some(gradient), [x, w, rows, labels], sizes)
}

fn run(
    device: &Device,
    op: &'static str,
    [total, loss, lse]: [&mut Tensor; 3],
    gradient: Option<Gradient>,
    [x, w, rows, labels]: [&Tensor; 4],
    sizes @ [_, c, v, p]: [usize; 4],
) -> Result<()> {
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let picks = picks(op, rows, labels, sizes)?;
            let (total, loss, lse) = (total.host_mut::<R>()?, loss.host_mut::<R>()?, lse.host_mut::<R>()?);
            let x = x.host()?;
            cpu_fwd::<R>(total, loss, lse, x, w, &picks, c)?;
            let Some(Gradient { dx, dw, dmean }) = gradient else { return Ok(()) };
            let dw = dw.map(Tensor::host_mut::<R>).transpose()?;
            cpu_bwd::<R>(dx.host_mut()?, dw, x, w, &picks, lse, c, R::of(dmean / p as f64))
        }),
        Device::Gpu(gpu) => {
            gpu::run(gpu, [total, loss, lse], gradient, [x, w, rows, labels], sizes, gpu::wave(p, v))
        }
    }
}

/// A row of x and its label.
type Pick = (usize, usize);

fn contract(
    op: &'static str,
    operands: &[(&str, &Tensor, &str)],
    x: &Tensor,
    w: &Tensor,
    rows: &Tensor,
    labels: &Tensor,
) -> Result<[usize; 4]> {
    let inputs = [("x", x, "N C"), ("w", w, "V C"), ("rows", rows, "P"), ("labels", labels, "P")];
    let sizes = dims(op, ["N", "C", "V", "P"], &[&inputs, operands].concat())?;
    match sizes[3] {
        0 => refuse(op, "no row has a label, so there is no mean loss".into()),
        _ => Ok(sizes),
    }
}

fn picks(op: &'static str, rows: &Tensor, labels: &Tensor, [n, _, v, _]: [usize; 4]) -> Result<Vec<Pick>> {
    let picks = rows.host::<i32>()?.iter().zip(labels.host::<i32>()?);
    let inside = |at: i32, end: usize| usize::try_from(at).is_ok_and(|at| at < end);
    if let Some((row, label)) = picks.clone().find(|&(&r, &l)| !inside(r, n) || !inside(l, v)) {
        return refuse(op, format!("row {row} with label {label}, expected below {n} and {v}"));
    }
    Ok(picks.map(|(&r, &l)| (r as usize, l as usize)).collect())
}

/// Rows of the vocabulary at a time: [P, TILE] logits are all that is ever held.
const TILE: usize = 1024;

/// The picked rows of `x`, one below the other.
fn gather<R: Real>(x: &[R], picks: &[Pick], c: usize) -> Vec<R> {
    picks.iter().flat_map(|&(row, _)| &x[row * c..][..c]).copied().collect()
}

/// Calls `use_tile(first, rows, w, logits)` for every tile of the vocabulary.
fn tiles<R: Real + Element>(
    x: &[R],
    w: &Tensor,
    [p, c]: [usize; 2],
    mut use_tile: impl FnMut(usize, usize, &[R], &mut [R]),
) -> Result<()> {
    let v = w.shape()[0];
    let (mut room, mut logits) = (Vec::new(), vec![R::ZERO; p * TILE.min(v)]);
    for first in (0..v).step_by(TILE) {
        let rows = TILE.min(v - first);
        let w = w.weight_rows(first, rows, &mut room)?;
        let logits = &mut logits[..p * rows];
        matmul(logits, rows, false, 1.0, Matrix::rows(x, p, c, c), Matrix::rows(w, rows, c, c).t(), true);
        use_tile(first, rows, w, logits);
    }
    Ok(())
}

/// What is known of one row's logits so far.
#[derive(Clone, Copy)]
struct Seen<R> {
    most: R,
    best: usize,
    /// Sum of `e^(z - most)`.
    sum: R,
    label: R,
}

fn cpu_fwd<R: Real + Element>(
    total: &mut [R],
    loss: &mut [R],
    lse: &mut [R],
    x: &[R],
    w: &Tensor,
    picks: &[Pick],
    c: usize,
) -> Result<()> {
    let x = gather(x, picks, c);
    let none = Seen { most: R::of(f64::NEG_INFINITY), best: 0, sum: R::ZERO, label: R::ZERO };
    let mut seen = vec![none; picks.len()];
    tiles(&x, w, [picks.len(), c], |first, rows, _, logits| {
        let list = seen.par_iter_mut().zip(logits.par_chunks(rows)).zip(picks);
        list.with_min_len(8).for_each(|((seen, logits), &(_, label))| {
            seen.take(first, logits);
            if (first..first + rows).contains(&label) {
                seen.label = logits[label - first];
            }
        });
    })?;
    for ((loss, lse), s) in loss.iter_mut().zip(lse.iter_mut()).zip(&seen) {
        *lse = s.most + s.sum.ln();
        *loss = *lse - s.label;
    }
    let right = seen.iter().zip(picks).filter(|(s, p)| s.best == p.1).count();
    let mean = loss.iter().map(|l| l.f64()).sum::<f64>() / picks.len() as f64;
    total.copy_from_slice(&[R::of(mean), R::of(right as f64)]);
    Ok(())
}

impl<R: Real> Seen<R> {
    fn take(&mut self, first: usize, logits: &[R]) {
        simd(
            #[inline(always)]
            || {
                let most = logits.iter().fold(logits[0], |a, &b| a.max(b));
                if most > self.most {
                    self.sum = self.sum * (self.most - most).exp();
                    self.most = most;
                    self.best = first + logits.iter().position(|&z| z == most).unwrap_or(0);
                }
                let (head, tail) = logits.as_chunks::<16>();
                let mut sums = [R::ZERO; 16];
                for z in head {
                    for l in 0..16 {
                        sums[l] += (z[l] - self.most).exp();
                    }
                }
                let tail = tail.iter().fold(R::ZERO, |s, &z| s + (z - self.most).exp());
                self.sum += sums.iter().fold(tail, |s, &x| s + x);
            },
        );
    }
}

#[allow(clippy::too_many_arguments)]
fn cpu_bwd<R: Real + Element>(
    dx: &mut [R],
    mut dw: Option<&mut [R]>,
    x: &[R],
    w: &Tensor,
    picks: &[Pick],
    lse: &[R],
    c: usize,
    scale: R,
) -> Result<()> {
    let (x, p) = (gather(x, picks, c), picks.len());
    let mut picked = vec![R::ZERO; p * c];
    tiles(&x, w, [p, c], |first, rows, w, dz| {
        let list = dz.par_chunks_mut(rows).zip(lse).zip(picks);
        list.with_min_len(8).for_each(|((dz, &lse), &(_, label))| {
            simd(
                #[inline(always)]
                || dz.iter_mut().for_each(|z| *z = exp_or_zero(*z - lse) * scale),
            );
            if (first..first + rows).contains(&label) {
                dz[label - first] += -scale;
            }
        });
        let dz = Matrix::rows(dz, p, rows, rows);
        matmul(&mut picked, c, first > 0, 1.0, dz, Matrix::rows(w, rows, c, c), true);
        if let Some(dw) = &mut dw {
            matmul(&mut dw[first * c..], c, true, 1.0, dz.t(), Matrix::rows(&x, p, c, c), true);
        }
    })?;
    dx.fill(R::ZERO);
    for (picked, &(row, _)) in picked.chunks(c).zip(picks) {
        dx[row * c..][..c].iter_mut().zip(picked).for_each(|(dx, &d)| *dx += d);
    }
    Ok(())
}

/// Bytes of workspace that forward and step of at most so many rows take on this device.
pub fn masked_xent_workspace(on: &Device, p: usize, v: usize, c: usize) -> usize {
    gpu::workspace(matches!(on, Device::Gpu(gpu) if gpu.hopper("masked_xent")), p, v, c)
}
