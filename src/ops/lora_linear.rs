//! lora_linear: y = residual + x Wᵀ + bias + s (x Aᵀ) Bᵀ, the only matrix product of the graph.

use crate::device::cpu::{Matrix, Real, matmul};
use crate::device::{DType, Device};
use crate::error::Result;
use crate::tensor::{Tensor, dims, refuse, with_real};
use half::bf16;
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

/// `y = residual + x wᵀ + bias + lora`.
///
/// | operand    | shape    | dtype                                    | role                         |
/// |------------|----------|------------------------------------------|------------------------------|
/// | `y`        | [N, M]   | activation                               | overwritten                  |
/// | `xa`       | [N, S R] | activation                               | overwritten with x Aᵀ; needed with `lora` |
/// | `x`        | [N, K]   | activation                               | read                         |
/// | `w`        | [M, K]   | activation, bf16, or packed bf16 panels  | read                         |
/// | `bias`     | [M]      | activation                               | read                         |
/// | `residual` | [N, M]   | activation                               | read                         |
///
/// With packed panels `x` is rounded to bf16 as well; sums are always f32 or better. Errors if a shape does not
/// fit. Source: Hu et al. 2021, arXiv:2106.09685, eq. 3.
#[allow(clippy::too_many_arguments)]
pub fn lora_linear_fwd(
    device: &Device,
    y: &mut Tensor,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    lora: Option<Lora>,
    residual: Option<&Tensor>,
) -> Result<()> {
    let mut operands = vec![("x", x, "N K"), ("w", w, "M K"), ("y", &*y, "N M")];
    operands.extend(bias.map(|b| ("bias", b, "M")));
    operands.extend(residual.map(|r| ("residual", r, "N M")));
    if let Some(l) = &lora {
        operands.extend([("lora a", l.a, "A K"), ("lora b", l.b, "M R")]);
        operands.extend(xa.as_deref().map(|xa| ("xa", xa, "N A")));
    }
    let [n, k, m, stacked, rank] = dims("lora_linear_fwd", ["N", "K", "M", "A", "R"], &operands)?;
    if let Some(l) = &lora {
        let segments = l.rows.len();
        if xa.is_none() {
            return refuse("lora_linear_fwd", "lora needs room for x Aᵀ in xa".into());
        }
        if stacked != segments * rank || l.rows.iter().sum::<usize>() != m || l.scales.len() != segments {
            let what =
                format!("lora a has {stacked} rows for {segments} segments of rank {rank} over M = {m}");
            return refuse("lora_linear_fwd", what);
        }
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let out = y.host_mut::<R>()?;
            let add = begin::<R>(out, m, bias, residual)?;
            product::<R>(out, x, w, [n, k, m], add)?;
            if let (Some(lora), Some(xa)) = (lora, xa) {
                low_rank::<R>(out, xa.host_mut()?, x.host()?, lora, [n, k, m, rank])?;
            }
        }),
    }
    Ok(())
}

/// Puts residual and bias into `y`; says whether the product is to be added.
fn begin<R: Real + crate::tensor::Element>(
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

/// Rows of a bf16 weight that are widened at a time.
const TILE: usize = 512;

fn product<R: Real + crate::tensor::Element>(
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
    let x = Matrix::rows(x.host::<R>()?, n, k, k);
    if w.dtype() != DType::Bf16 {
        matmul(y, m, add, 1.0, x, Matrix::rows(w.host()?, m, k, k).t(), true);
        return Ok(());
    }
    let w = w.host::<bf16>()?;
    let mut wide = vec![R::ZERO; TILE.min(m) * k];
    for first in (0..m).step_by(TILE) {
        let rows = TILE.min(m - first);
        let tile = &w[first * k..][..rows * k];
        wide.par_chunks_mut(k).zip(tile.par_chunks(k)).for_each(|(wide, w)| {
            wide.iter_mut().zip(w).for_each(|(y, x)| *y = R::of(x.to_f64()));
        });
        matmul(&mut y[first..], m, add, 1.0, x, Matrix::rows(&wide, rows, k, k).t(), true);
    }
    Ok(())
}

fn low_rank<R: Real + crate::tensor::Element>(
    y: &mut [R],
    xa: &mut [R],
    x: &[R],
    lora: Lora,
    [n, k, m, rank]: [usize; 4],
) -> Result<()> {
    let (a, b) = (lora.a.host::<R>()?, lora.b.host::<R>()?);
    let stacked = lora.rows.len() * rank;
    matmul(xa, stacked, false, 1.0, Matrix::rows(x, n, k, k), Matrix::rows(a, stacked, k, k).t(), true);
    let mut first = 0;
    for (s, (&rows, &scale)) in lora.rows.iter().zip(lora.scales).enumerate() {
        let b = Matrix::rows(&b[first * rank..], rows, rank, rank);
        let xa = Matrix::rows(&xa[s * rank..], n, rank, stacked);
        if scale != 0.0 {
            matmul(&mut y[first..], m, true, scale, xa, b.t(), true);
        }
        first += rows;
    }
    Ok(())
}
