//! lora_linear: y = residual + x Wᵀ + bias + s (drop(x) Aᵀ) Bᵀ, the only matrix product of the graph.

mod gpu;
mod hopper;
mod plan;

use crate::device::cpu::{Matrix, Real, matmul, token_matmul};
use crate::device::{DType, Device};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::dropout::Dropout;
use crate::tensor::{Element, Tensor, dims, refuse, with_real};
pub use plan::{Sizes, lora_linear_workspace};
use rayon::prelude::*;

/// Low-rank deltas of a (merged) projection: segment i adds `scales[i] (x A_iᵀ) B_iᵀ` to its own rows of W.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// `[S R, K]`: the A of every segment, one below the other.
    pub a: &'a Tensor,
    /// `[M, R]`: the B of every segment, one below the other.
    pub b: &'a Tensor,
    /// Rows of W in each segment, adding up to M.
    pub rows: &'a [usize],
    /// alpha / r of each segment; 0 where a segment has no adapter.
    pub scales: &'a [f64],
}

impl Lora<'_> {
    /// Refuses segments that do not add up.
    fn check(&self, op: &'static str, stacked: usize, rank: usize, m: usize) -> Result<()> {
        let segments = self.rows.len();
        if stacked != segments * rank || self.rows.iter().sum::<usize>() != m || self.scales.len() != segments
        {
            let what =
                format!("lora a has {stacked} rows for {segments} segments of rank {rank} over M = {m}");
            return refuse(op, what);
        }
        Ok(())
    }

    /// Every segment: its index, its first row of W and its number of rows, its scale.
    fn segments(&self) -> impl Iterator<Item = (usize, usize, usize, f64)> {
        let parts = self.rows.iter().zip(self.scales).enumerate();
        parts.scan(0, |first, (s, (&rows, &scale))| {
            *first += rows;
            Some((s, *first - rows, rows, scale))
        })
    }
}

/// `y = residual + x wᵀ + bias + lora`, the x of segment i of `lora` dropped by plane i of the mask.
///
/// | operand    | shape    | dtype                                    | role                         |
/// |------------|----------|------------------------------------------|------------------------------|
/// | `y`        | [N, M]   | activation                               | overwritten; `None` where only xa is wanted |
/// | `xa`       | [N, S R] | activation                               | overwritten with drop(x) Aᵀ; needed with `lora` |
/// | `x`        | [N, K]   | activation                               | read                         |
/// | `w`        | [M, K]   | activation, bf16, or panels of f32 or bf16 | read                       |
/// | `bias`     | `[M]`    | activation                               | read                         |
/// | `residual` | [N, M]   | activation                               | read                         |
///
/// With panels of bf16 `x` is rounded to bf16 as well, and so is `dy` backward; sums are always f32 or better. A GPU takes f32 A and B, K, M and
/// rows of segments that are multiples of 8, and up to three segments. Errors if a shape does not fit.
/// Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; dropout of its input as in PEFT.
#[allow(clippy::too_many_arguments)]
pub fn lora_linear_fwd(
    device: &Device,
    y: Option<&mut Tensor>,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    lora: Option<Lora>,
    residual: Option<&Tensor>,
    dropout: Option<Dropout>,
) -> Result<()> {
    let mut operands = vec![("x", x, "N K"), ("w", w, "M K")];
    operands.extend(y.as_deref().map(|y| ("y", y, "N M")));
    operands.extend(bias.map(|b| ("bias", b, "M")));
    operands.extend(residual.map(|r| ("residual", r, "N M")));
    if let Some(l) = &lora {
        operands.extend([("lora a", l.a, "A K"), ("lora b", l.b, "M R")]);
        operands.extend(xa.as_deref().map(|xa| ("xa", xa, "N A")));
    }
    let [n, k, m, stacked, rank] = dims("lora_linear_fwd", ["N", "K", "M", "A", "R"], &operands)?;
    Dropout::check(dropout, "lora_linear_fwd")?;
    if let Some(l) = &lora {
        if xa.is_none() {
            return refuse("lora_linear_fwd", "lora needs room for drop(x) Aᵀ in xa".into());
        }
        l.check("lora_linear_fwd", stacked, rank, m)?;
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let mut out = y.map(Tensor::host_mut::<R>).transpose()?;
            if let Some(out) = &mut out {
                let add = begin::<R>(out, m, bias, residual)?;
                product::<R>(out, x, w, [n, k, m], add)?;
            }
            if let (Some(lora), Some(xa)) = (lora, xa) {
                low_rank::<R>(out, xa.host_mut()?, x.host()?, lora, dropout, [n, k, m, rank])?;
            }
        }),
        Device::Gpu(gpu) => {
            let sizes = Sizes::new([n, k, m, rank], lora.as_ref());
            gpu::forward(gpu, y, xa, x, w, bias, lora, residual, dropout, &sizes)?;
        }
    }
    Ok(())
}

/// The sizes, if segments, room and dropout are as the ops want them.
fn checked(
    op: &'static str,
    [n, k, m, stacked, rank]: [usize; 5],
    lora: Option<Lora>,
    has_xa: bool,
    dropout: Option<Dropout>,
) -> Result<Sizes> {
    if let Some(l) = &lora {
        if !has_xa {
            return refuse(op, "lora needs room for drop(x) Aᵀ in xa".into());
        }
        l.check(op, stacked, rank, m)?;
    }
    Dropout::check(dropout, op)?;
    Ok(Sizes::new([n, k, m, rank], lora.as_ref()))
}

/// `act = silu(y[:, ..F]) y[:, F..]` of the `y`, M = 2 F, that [`lora_linear_fwd`] gives without bias and residual: with the bits of
/// that op and of swiglu's, but `y` does not reach memory. Only Hopper's kernels do this: false, and nothing done, where they do
/// not run or do not take the sizes.
///
/// | operand | shape    | dtype      | role                                                |
/// |---------|----------|------------|-----------------------------------------------------|
/// | `act`   | [N, F]   | activation | overwritten                                         |
/// | `xa`    | [N, S R] | activation | overwritten with drop(x) Aᵀ; needed with `lora`     |
/// | `x`     | [N, K]   | activation | read                                                |
/// | `w`     | [2F, K]  | bf16       | read                                                |
///
/// Errors as the two ops. Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
pub fn lora_linear_swiglu_fwd(
    device: &Device,
    act: &mut Tensor,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    lora: Option<Lora>,
    dropout: Option<Dropout>,
) -> Result<bool> {
    const OP: &str = "lora_linear_swiglu_fwd";
    let mut operands = vec![("act", &*act, "N F"), ("x", x, "N K"), ("w", w, "M K")];
    if let Some(l) = &lora {
        operands.extend([("lora a", l.a, "A K"), ("lora b", l.b, "M R")]);
        operands.extend(xa.as_deref().map(|xa| ("xa", xa, "N A")));
    }
    let [n, k, m, stacked, rank, f] = dims(OP, ["N", "K", "M", "A", "R", "F"], &operands)?;
    if m != 2 * f {
        return refuse(OP, format!("w has {m} rows, expected 2F = {}", 2 * f));
    }
    let sizes = checked(OP, [n, k, m, stacked, rank], lora, xa.is_some(), dropout)?;
    match device {
        Device::Cpu(_) => Ok(false),
        Device::Gpu(gpu) => gpu::swiglu(gpu, act, xa, x, w, lora, dropout, &sizes),
    }
}

/// By what angles the query and key heads of which row are turned, as in [`crate::ops::rope::rope_fwd`].
#[derive(Clone, Copy)]
pub struct Rotary<'a> {
    /// [P, D/2]: cosine of position * freq.
    pub cos: &'a Tensor,
    /// [P, D/2]: its sine.
    pub sin: &'a Tensor,
    /// `[N]`, in [0, P).
    pub positions: &'a Tensor,
    /// Of the columns of qkv.
    pub heads: Heads,
}

/// The `qkv` that [`lora_linear_fwd`] gives without residual, its queries and keys turned as by rope's op: with
/// the bits of one after the other, but they pass memory once. Only Hopper's kernels do this, for heads of 64 and 128, where the
/// product fills the GPU: false, and nothing done, elsewhere.
///
/// | operand | shape           | dtype      | role                                            |
/// |---------|-----------------|------------|-------------------------------------------------|
/// | `qkv`   | [N, (H + 2G) D] | activation | overwritten                                     |
/// | `xa`    | [N, S R]        | activation | overwritten with drop(x) Aᵀ; needed with `lora` |
/// | `x`     | [N, K]          | activation | read                                            |
/// | `w`     | [M, K]          | bf16       | read; M = (H + 2G) D                            |
/// | `bias`  | `[M]`           | activation | read                                            |
///
/// Errors as the two ops. Source: Su et al. 2021, arXiv:2104.09864.
#[allow(clippy::too_many_arguments)]
pub fn lora_linear_rope_fwd(
    device: &Device,
    qkv: &mut Tensor,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    lora: Option<Lora>,
    dropout: Option<Dropout>,
    rotary: Rotary,
) -> Result<bool> {
    const OP: &str = "lora_linear_rope_fwd";
    let Rotary { cos, sin, positions, heads } = rotary;
    let mut operands = vec![("qkv", &*qkv, "N M"), ("x", x, "N K"), ("w", w, "M K")];
    operands.extend([("cos", cos, "P E"), ("sin", sin, "P E"), ("positions", positions, "N")]);
    operands.extend(bias.map(|bias| ("bias", bias, "M")));
    if let Some(l) = &lora {
        operands.extend([("lora a", l.a, "A K"), ("lora b", l.b, "M R")]);
        operands.extend(xa.as_deref().map(|xa| ("xa", xa, "N A")));
    }
    let [n, k, m, stacked, rank, half, _] = dims(OP, ["N", "K", "M", "A", "R", "E", "P"], &operands)?;
    heads.check(OP, m)?;
    if half * 2 != heads.width {
        return refuse(OP, format!("cos has {half} columns, expected D/2 = {}", heads.width / 2));
    }
    let sizes = checked(OP, [n, k, m, stacked, rank], lora, xa.is_some(), dropout)?;
    match device {
        Device::Cpu(_) => Ok(false),
        Device::Gpu(gpu) => gpu::rope(gpu, qkv, xa, x, w, bias, lora, dropout, rotary, &sizes),
    }
}

/// Puts residual and bias into `y`; says whether the product is to be added.
fn begin<R: Real + Element>(
    y: &mut [R],
    m: usize,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<bool> {
    let bias = bias.map(|b| b.host::<R>()).transpose()?;
    let residual = residual.map(|r| r.host::<R>()).transpose()?;
    if bias.is_none() && residual.is_none() {
        return Ok(false);
    }
    y.par_chunks_mut(m).enumerate().with_min_len(16).for_each(|(i, y)| {
        match residual {
            Some(r) => y.copy_from_slice(&r[i * m..][..m]),
            None => y.fill(R::ZERO),
        }
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
        }
    });
    Ok(true)
}

/// Rows of a bf16 weight that are widened at a time, and of x that are dropped.
const TILE: usize = 512;

/// Rows of `w` to take at a time: all, or as many as are worth widening.
fn tile(w: &Tensor, m: usize) -> usize {
    if w.dtype() == DType::Bf16 { TILE.min(m) } else { m }
}

fn product<R: Real + Element>(
    y: &mut [R],
    x: &Tensor,
    w: &Tensor,
    [n, k, m]: [usize; 3],
    add: bool,
) -> Result<()> {
    if let Some(panels) = w.as_panels() {
        let x = x.host::<f32>()?; // refuses f64 before y is cast
        panels.matmul(bytemuck::cast_slice_mut(y), x, n, add);
        return Ok(());
    }
    let (x, mut room) = (Matrix::rows(x.host::<R>()?, n, k, k), Vec::new());
    for first in (0..m).step_by(tile(w, m)) {
        let rows = tile(w, m).min(m - first);
        let w = Matrix::rows(w.weight_rows(first, rows, &mut room)?, rows, k, k);
        token_matmul(&mut y[first..], m, add, 1.0, x, w.t(), true);
    }
    Ok(())
}

/// `xa = drop(x) Aᵀ`, and `y += s xa Bᵀ` where there is a `y`.
fn low_rank<R: Real + Element>(
    y: Option<&mut [R]>,
    xa: &mut [R],
    x: &[R],
    lora: Lora,
    dropout: Option<Dropout>,
    [n, k, m, rank]: [usize; 4],
) -> Result<()> {
    let (a, b) = (lora.a.host::<R>()?, lora.b.host::<R>()?);
    let stacked = lora.rows.len() * rank;
    match dropout {
        None => {
            let a = Matrix::rows(a, stacked, k, k);
            token_matmul(xa, stacked, false, 1.0, Matrix::rows(x, n, k, k), a.t(), true);
        }
        Some(dropout) => dropped(x, k, lora, dropout, |first, s, _, x| {
            let a = Matrix::rows(&a[s * rank * k..], rank, k, k);
            let xa = &mut xa[first * stacked + s * rank..];
            token_matmul(xa, stacked, false, 1.0, Matrix::rows(x, x.len() / k, k, k), a.t(), true);
        }),
    }
    let Some(y) = y else { return Ok(()) };
    for (s, first, rows, scale) in lora.segments().filter(|s| s.3 != 0.0) {
        let b = Matrix::rows(&b[first * rank..], rows, rank, rank);
        let xa = Matrix::rows(&xa[s * rank..], n, rank, stacked);
        token_matmul(&mut y[first..], m, true, scale, xa, b.t(), true);
    }
    Ok(())
}

/// Calls `use_tile(first row, segment, mask, drop(x))` for every segment of every [`TILE`] rows of x.
fn dropped<R: Real>(
    x: &[R],
    k: usize,
    lora: Lora,
    dropout: Dropout,
    mut use_tile: impl FnMut(usize, usize, &[R], &[R]),
) {
    let (key, room) = (dropout.key(), x.len().min(TILE * k));
    let (mut mask, mut tile) = (vec![R::ZERO; room], vec![R::ZERO; room]);
    for (i, x) in x.chunks(TILE * k).enumerate() {
        let (mask, tile) = (&mut mask[..x.len()], &mut tile[..x.len()]);
        for (s, _, _, scale) in lora.segments() {
            let rows = mask.par_chunks_mut(k).zip(tile.par_chunks_mut(k)).zip(x.par_chunks(k)).enumerate();
            rows.with_min_len(16).for_each(|(r, ((mask, tile), x))| {
                mask.fill(R::ONE);
                if scale != 0.0 {
                    dropout.apply(key, i * TILE + r, s, 0, mask);
                }
                tile.iter_mut().zip(&*mask).zip(x).for_each(|((tile, &m), &x)| *tile = m * x);
            });
            use_tile(i * TILE, s, mask, tile);
        }
    }
}

/// Gradients of [`Lora::a`] and [`Lora::b`], of the same shapes.
pub struct LoraGrads<'a> {
    /// `[S R, K]`.
    pub a: &'a mut Tensor,
    /// `[M, R]`.
    pub b: &'a mut Tensor,
}

/// `dx = dy w + drop'(dxa A)`, `dxa = s dy B`, `dA += dxaᵀ drop(x)`, `dB += s dyᵀ xa`; w and bias are frozen, and the
/// gradient of the residual is dy itself.
///
/// | operand       | shape    | dtype      | role                                                            |
/// |---------------|----------|------------|-----------------------------------------------------------------|
/// | `dx`          | [N, K]   | activation | overwritten; `None` where nothing below learns                  |
/// | `grads`       |          | statistic  | added to; `None` = frozen                                       |
/// | `dxa`         | [N, S R] | activation | overwritten; needed with `lora`                                 |
/// | `dy`          | [N, M]   | activation | read                                                            |
/// | `x`, `w`      |          |            | read, as in the forward                                         |
/// | `xa`          | [N, S R] | activation | read, from the forward; needed with `grads`                     |
#[allow(clippy::too_many_arguments)]
pub fn lora_linear_bwd(
    device: &Device,
    dx: Option<&mut Tensor>,
    grads: Option<LoraGrads>,
    dxa: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    xa: Option<&Tensor>,
    w: &Tensor,
    lora: Option<Lora>,
    dropout: Option<Dropout>,
) -> Result<()> {
    const OP: &str = "lora_linear_bwd";
    let mut operands = vec![("x", x, "N K"), ("w", w, "M K"), ("dy", dy, "N M")];
    operands.extend(dx.as_deref().map(|dx| ("dx", dx, "N K")));
    if let Some(l) = &lora {
        operands.extend([("lora a", l.a, "A K"), ("lora b", l.b, "M R")]);
        operands.extend(xa.map(|xa| ("xa", xa, "N A")));
        operands.extend(dxa.as_deref().map(|dxa| ("dxa", dxa, "N A")));
    }
    if let Some(g) = &grads {
        operands.extend([("da", &*g.a, "A K"), ("db", &*g.b, "M R")]);
    }
    let [n, k, m, stacked, rank] = dims(OP, ["N", "K", "M", "A", "R"], &operands)?;
    Dropout::check(dropout, OP)?;
    if let Some(l) = &lora {
        l.check(OP, stacked, rank, m)?;
    }
    if lora.is_some() != dxa.is_some() || grads.is_some() && (lora.is_none() || xa.is_none()) {
        return refuse(OP, "lora and dxa go together, and grads need both and xa".into());
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let (x, dy) = (x.host::<R>()?, dy.host::<R>()?);
            let mut dx = dx.map(Tensor::host_mut::<R>).transpose()?;
            if let Some(dx) = &mut dx {
                product_bwd(dx, dy, w, [n, k, m])?;
            }
            if let (Some(lora), Some(dxa)) = (lora, dxa) {
                let dxa = dxa.host_mut::<R>()?;
                expand_bwd(dxa, dy, lora, [n, m, rank])?;
                let mut da = None;
                if let (Some(g), Some(xa)) = (grads, xa) {
                    gradient_b(g.b.host_mut::<R>()?, dy, xa.host()?, lora, [n, m, rank]);
                    da = Some(g.a.host_mut::<R>()?);
                }
                reduce_bwd(dx, da, dxa, x, lora, dropout, [n, k, rank])?;
            }
        }),
        Device::Gpu(gpu) => {
            let sizes = Sizes::new([n, k, m, rank], lora.as_ref());
            gpu::Backward { dx, grads, dxa, dy, x, xa, w, lora, dropout }.run(gpu, &sizes)?;
        }
    }
    Ok(())
}

/// `dx = dy w`.
fn product_bwd<R: Real + Element>(dx: &mut [R], dy: &[R], w: &Tensor, [n, k, m]: [usize; 3]) -> Result<()> {
    if let Some(panels) = w.as_panels() {
        if <R as Real>::DTYPE != DType::F32 {
            return refuse("lora_linear_bwd", "packed weights are multiplied in f32".into());
        }
        panels.matmul_back(bytemuck::cast_slice_mut(dx), bytemuck::cast_slice(dy), n);
        return Ok(());
    }
    let mut room = Vec::new();
    for first in (0..m).step_by(tile(w, m)) {
        let rows = tile(w, m).min(m - first);
        let w = Matrix::rows(w.weight_rows(first, rows, &mut room)?, rows, k, k);
        matmul(dx, k, first > 0, 1.0, Matrix::rows(&dy[first..], n, rows, m), w, true);
    }
    Ok(())
}

/// `dxa = s dy B`, segment by segment; 0 where a segment has no adapter.
fn expand_bwd<R: Real + Element>(
    dxa: &mut [R],
    dy: &[R],
    lora: Lora,
    [n, m, rank]: [usize; 3],
) -> Result<()> {
    let (b, stacked) = (lora.b.host::<R>()?, lora.rows.len() * rank);
    for (s, first, rows, scale) in lora.segments() {
        let (dy, b) =
            (Matrix::rows(&dy[first..], n, rows, m), Matrix::rows(&b[first * rank..], rows, rank, rank));
        matmul(&mut dxa[s * rank..], stacked, false, scale, dy, b, true);
    }
    Ok(())
}

/// `dB += s dyᵀ xa`.
fn gradient_b<R: Real>(db: &mut [R], dy: &[R], xa: &[R], lora: Lora, [n, m, rank]: [usize; 3]) {
    let stacked = lora.rows.len() * rank;
    for (s, first, rows, scale) in lora.segments().filter(|s| s.3 != 0.0) {
        let (dy, xa) =
            (Matrix::rows(&dy[first..], n, rows, m), Matrix::rows(&xa[s * rank..], n, rank, stacked));
        matmul(&mut db[first * rank..], rank, true, scale, dy.t(), xa, true);
    }
}

/// `dx += drop'(dxa A)` and `dA += dxaᵀ drop(x)`.
fn reduce_bwd<R: Real + Element>(
    mut dx: Option<&mut [R]>,
    mut da: Option<&mut [R]>,
    dxa: &[R],
    x: &[R],
    lora: Lora,
    dropout: Option<Dropout>,
    [n, k, rank]: [usize; 3],
) -> Result<()> {
    let (a, stacked) = (lora.a.host::<R>()?, lora.rows.len() * rank);
    let Some(dropout) = dropout else {
        let dxa = Matrix::rows(dxa, n, stacked, stacked);
        if let Some(dx) = dx {
            matmul(dx, k, true, 1.0, dxa, Matrix::rows(a, stacked, k, k), true);
        }
        if let Some(da) = da {
            matmul(da, k, true, 1.0, dxa.t(), Matrix::rows(x, n, k, k), true);
        }
        return Ok(());
    };
    let mut back = Vec::new();
    dropped(x, k, lora, dropout, |first, s, mask, x| {
        let rows = x.len() / k;
        let dxa = Matrix::rows(&dxa[first * stacked + s * rank..], rows, rank, stacked);
        if let Some(da) = &mut da {
            matmul(&mut da[s * rank * k..], k, true, 1.0, dxa.t(), Matrix::rows(x, rows, k, k), true);
        }
        if let Some(dx) = &mut dx {
            back.resize(x.len(), R::ZERO);
            matmul(&mut back, k, false, 1.0, dxa, Matrix::rows(&a[s * rank * k..], rank, k, k), true);
            let dx = dx[first * k..].par_chunks_mut(k).zip(back.par_chunks(k)).zip(mask.par_chunks(k));
            dx.with_min_len(16).for_each(|((dx, back), mask)| {
                dx.iter_mut().zip(back).zip(mask).for_each(|((dx, &b), &m)| *dx += b * m);
            });
        }
    });
    Ok(())
}
