//! masked_xent: cross-entropy of the language-model head at the rows that have a label, a tile of the vocabulary at a time.

use crate::device::cpu::{Matrix, Real, exp_or_zero, matmul, simd};
use crate::device::gpu::{Gpu, Launch};
use crate::device::{DType, Device};
use crate::error::Result;
use crate::kernels::masked_xent::{
    self as kernels, MaskedXentBwd, MaskedXentDw, MaskedXentDx, MaskedXentFwd, MaskedXentTotal,
    MaskedXentZero,
};
use crate::ops::{most_shares, shares};
use crate::tensor::{Element, Tensor, dims, int, refuse, whole_vectors, with_real, workspace_bytes};
use rayon::prelude::*;

mod hopper;
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
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let picks = picks("masked_xent_fwd", rows, labels, sizes)?;
            let (total, loss, lse) = (total.host_mut::<R>()?, loss.host_mut::<R>()?, lse.host_mut::<R>()?);
            cpu_fwd::<R>(total, loss, lse, x.host()?, w, &picks, sizes[1])
        }),
        Device::Gpu(gpu) if gpu.hopper("masked_xent") => {
            hopper::run(gpu, [total, loss, lse], None, [x, w, rows, labels], sizes)
        }
        Device::Gpu(gpu) => {
            let shares = shares(sizes[3], sizes[2], ACROSS);
            gpu_fwd(gpu, [total, loss, lse], [x, w, rows, labels], sizes, shares)
        }
    }
}

/// What a step wants of the gradient; operands as in [`masked_xent_bwd`].
pub struct Gradient<'a> {
    /// [N, C], overwritten.
    pub dx: &'a mut Tensor,
    /// [V, C], added to; `None` = frozen.
    pub dw: Option<&'a mut Tensor>,
    /// The gradient of the mean loss.
    pub dmean: f64,
}

/// [`masked_xent_fwd`] and [`masked_xent_bwd`] at once: where the device can, logits are computed once for both.
///
/// Operands and errors as theirs.
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
    if let Device::Gpu(gpu) = device
        && gpu.hopper("masked_xent")
    {
        let mut operands = vec![("total", &*total, "2"), ("loss", &*loss, "P"), ("lse", &*lse, "P")];
        operands.push(("dx", &*gradient.dx, "N C"));
        operands.extend(gradient.dw.as_deref().map(|dw| ("dw", dw, "V C")));
        let sizes = contract("masked_xent_step", &operands, x, w, rows, labels)?;
        return hopper::run(gpu, [total, loss, lse], Some(gradient), [x, w, rows, labels], sizes);
    }
    let Gradient { dx, dw, dmean } = gradient;
    masked_xent_fwd(device, total, loss, lse, x, w, rows, labels)?;
    masked_xent_bwd(device, dx, dw, x, w, rows, labels, lse, dmean)
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

const ACROSS: usize = kernels::TILE as usize;

/// A block for each of these tiles.
fn grid(across: usize, down: usize) -> Launch {
    let launch = Launch::plane([across, down], [kernels::THREADS as usize, 1]);
    Launch { shared: kernels::SHARED as u32, ..launch }
}

fn gpu_fwd(
    gpu: &Gpu,
    [total, loss, lse]: [&mut Tensor; 3],
    [x, w, rows, labels]: [&Tensor; 4],
    [_, c, v, p]: [usize; 4],
    [tiles, splits]: [usize; 2],
) -> Result<()> {
    whole_vectors("masked_xent_fwd", "C", c, 8)?;
    let parts = [splits, p];
    let [mut most, mut sum, mut label, mut best] = Tensor::workspace(
        gpu,
        [(DType::F32, &parts[..]), (DType::F32, &parts), (DType::F32, &[p]), (DType::I32, &parts)],
    )?;
    let launch = grid(p.div_ceil(ACROSS), splits);
    let int = |n| int("masked_xent_fwd", n);
    let [p, v, c, tiles, splits] = [int(p)?, int(v)?, int(c)?, int(tiles)?, int(splits)?];
    let arguments = MaskedXentFwd {
        most: &mut most,
        sum: &mut sum,
        best: &mut best,
        label: &mut label,
        x,
        w,
        rows,
        labels,
        p,
        v,
        c,
        tiles,
    };
    // SAFETY: `contract` holds x, w, rows and labels to p, v and c, a multiple of 8; the workspace is of p rows and,
    // but for `label`, as many parts as there are blocks along y. That rows lie within x the caller answers for.
    unsafe { kernels::masked_xent_fwd(gpu, launch, arguments) }?;
    let launch = Launch::line(1, kernels::TOTAL_THREADS as usize);
    let (most, sum, best, label) = (&most, &sum, &best, &label);
    let arguments = MaskedXentTotal { total, loss, lse, most, sum, best, label, labels, p, splits };
    // SAFETY: `contract` holds loss, lse and labels to p and total to 2; the parts are those that the launch above
    // has written.
    unsafe { kernels::masked_xent_total(gpu, launch, arguments) }
}

/// `dz = dmean / P (e^(z - lse) - onehot(labels))`, `dx[rows] = dz w`, `dw += dzᵀ x[rows]`; the logits are computed anew.
///
/// | operand  | shape  | dtype                   | role                                              |
/// |----------|--------|-------------------------|---------------------------------------------------|
/// | `dx`     | [N, C] | activation              | overwritten; 0 outside `rows`                     |
/// | `dw`     | [V, C] | statistic               | added to; `None` = frozen                         |
/// | `x`, `w`, `rows`, `labels` | | as in the forward | read                                             |
/// | `lse`    | `[P]`  | statistic               | read, from the forward                            |
///
/// `dmean` is the gradient of the mean loss. On a GPU, no row may be picked twice.
#[allow(clippy::too_many_arguments)]
pub fn masked_xent_bwd(
    device: &Device,
    dx: &mut Tensor,
    dw: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    rows: &Tensor,
    labels: &Tensor,
    lse: &Tensor,
    dmean: f64,
) -> Result<()> {
    let mut operands = vec![("dx", &*dx, "N C"), ("lse", lse, "P")];
    operands.extend(dw.as_deref().map(|dw| ("dw", dw, "V C")));
    let sizes = contract("masked_xent_bwd", &operands, x, w, rows, labels)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let picks = picks("masked_xent_bwd", rows, labels, sizes)?;
            let dw = dw.map(Tensor::host_mut::<R>).transpose()?;
            let scale = R::of(dmean / picks.len() as f64);
            cpu_bwd::<R>(dx.host_mut()?, dw, x.host()?, w, &picks, lse.host()?, sizes[1], scale)
        }),
        Device::Gpu(gpu) => {
            let wave = wave(sizes[3], sizes[2]);
            gpu_bwd(gpu, dx, dw, [x, w, rows, labels, lse], dmean, sizes, wave)
        }
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

/// Bytes that dz may take.
const WAVE: usize = 128 << 20;

/// Rows whose dz is held at a time.
fn wave(p: usize, v: usize) -> usize {
    let rows = WAVE / 2 / v.next_multiple_of(8) / ACROSS * ACROSS;
    rows.max(ACROSS).min(p)
}

fn gpu_bwd(
    gpu: &Gpu,
    dx: &mut Tensor,
    mut dw: Option<&mut Tensor>,
    [x, w, rows, labels, lse]: [&Tensor; 5],
    dmean: f64,
    [n, c, v, p]: [usize; 4],
    wave: usize,
) -> Result<()> {
    whole_vectors("masked_xent_bwd", "C", c, 8)?;
    let stride = v.next_multiple_of(8);
    let [mut dz] = Tensor::workspace(gpu, [(DType::Bf16, &[wave, stride])])?;
    let (scale, [slabs, columns]) = ((dmean / p as f64) as f32, [c, v].map(|n| n.div_ceil(ACROSS)));
    let int = |n| int("masked_xent_bwd", n);
    let [n, c, v, stride] = [int(n)?, int(c)?, int(v)?, int(stride)?];
    let threads = kernels::THREADS as usize;
    let blocks = (dx.numel() / 8).div_ceil(threads).min(16 * gpu.processors());
    let (launch, arguments) = (Launch::line(blocks, threads), MaskedXentZero { dx: &mut *dx, n, c });
    // SAFETY: `contract` holds dx to n and c, a multiple of 8.
    unsafe { kernels::masked_xent_zero(gpu, launch, arguments) }?;
    for from in (0..p).step_by(wave) {
        let count = wave.min(p - from);
        let down = count.div_ceil(ACROSS);
        let ([first, count], dz) = ([int(from)?, int(count)?], &mut dz);
        let arguments =
            MaskedXentBwd { dz: &mut *dz, x, w, rows, labels, lse, first, count, v, c, stride, scale };
        let launch = grid(down, columns);
        // SAFETY: `contract` holds the arrays to p, v and c, a multiple of 8; dz has room for the rows of a wave,
        // which all lie below p. That rows lie within x the caller answers for.
        unsafe { kernels::masked_xent_bwd(gpu, launch, arguments) }?;
        let arguments = MaskedXentDx { dx: &mut *dx, dz, w, rows, first, count, v, c, stride };
        let launch = grid(down, slabs);
        // SAFETY: dx is like x, no row of which is picked twice; dz is what the launch above has written of these
        // rows.
        unsafe { kernels::masked_xent_dx(gpu, launch, arguments) }?;
        if let Some(dw) = dw.as_deref_mut() {
            let arguments = MaskedXentDw { dw, dz, x, rows, first, count, v, c, stride };
            let launch = grid(columns, slabs);
            // SAFETY: dw is like w; dz is what the launch before has written of these rows.
            unsafe { kernels::masked_xent_dw(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

/// Bytes of workspace that forward, backward and step of at most so many rows take on this device.
pub fn masked_xent_workspace(on: &Device, p: usize, v: usize, c: usize) -> usize {
    match on {
        Device::Gpu(gpu) if gpu.hopper("masked_xent") => {
            hopper::workspace(p, v, c).max(portable_workspace(p, v))
        }
        _ => portable_workspace(p, v),
    }
}

fn portable_workspace(p: usize, v: usize) -> usize {
    let parts = most_shares(p, v, ACROSS);
    let dz = wave(p, v) * v.next_multiple_of(8);
    fwd_bytes(parts, p).max(workspace_bytes(&[(DType::Bf16, &[dz])]))
}

fn fwd_bytes(parts: usize, p: usize) -> usize {
    let [part, best] = [(DType::F32, &[parts][..]), (DType::I32, &[parts][..])];
    workspace_bytes(&[part, part, (DType::F32, &[p]), best])
}
