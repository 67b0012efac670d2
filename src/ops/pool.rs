//! pool: the rows of each text to one vector.

use crate::device::Device;
use crate::device::cpu::Real;
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::pool::{self as kernels, PoolBwd, PoolFwd};
use crate::tensor::{Tensor, dims, int, refuse, whole_vectors, with_real};
use rayon::prelude::*;

/// How the rows of a span become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The average of the rows.
    Mean,
    /// The average with weights 1, 2, …, n: later rows have seen more under a causal mask.
    WeightedMean,
    /// The last row (the EOS token's, where the span ends with it).
    Last,
    /// The first row (the BOS token's, where the span begins with it).
    First,
}

impl Pooling {
    /// The number that kernels know it by.
    fn number(self) -> i32 {
        match self {
            Pooling::Mean => kernels::MEAN,
            Pooling::WeightedMean => kernels::WEIGHTED_MEAN,
            Pooling::Last => kernels::LAST,
            Pooling::First => kernels::FIRST,
        }
    }

    /// Weights of the first row and the step to the next, and the rows that take part, for a span of `n`.
    fn weights(self, n: usize) -> (f64, f64, std::ops::Range<usize>) {
        let count = n as f64;
        match self {
            Pooling::Mean => (1.0 / count, 0.0, 0..n),
            Pooling::WeightedMean => {
                let unit = 2.0 / (count * (count + 1.0));
                (unit, unit, 0..n)
            }
            Pooling::Last => (1.0, 0.0, n - 1..n),
            Pooling::First => (1.0, 0.0, 0..1),
        }
    }
}

/// `y[b] = sum_k weight_k x[spans[b].start + k]`, summed in the statistic type.
///
/// | operand | shape  | dtype      | role                                             |
/// |---------|--------|------------|--------------------------------------------------|
/// | `y`     | [B, C] | statistic  | overwritten                                      |
/// | `x`     | [N, C] | activation | read                                             |
/// | `spans` | [B, 2] | i32        | read: first row and one past the last, not empty |
///
/// Errors if a shape does not fit, or a span is empty or leaves `x`; on a GPU nothing looks at the spans before the kernel:
/// who makes them answers for them.
/// Source: LLM2Vec's `get_pooling`; weighted mean from Muennighoff 2022, arXiv:2202.08904.
pub fn pool_fwd(device: &Device, y: &mut Tensor, x: &Tensor, spans: &Tensor, pooling: Pooling) -> Result<()> {
    let operands = [("x", x, "N C"), ("spans", spans, "B 2"), ("y", &*y, "B C")];
    let [n, b, c] = dims("pool_fwd", ["N", "B", "C"], &operands)?;
    match device {
        Device::Cpu(real) => {
            let spans = within("pool_fwd", spans, n)?;
            with_real!(*real, R => cpu_fwd::<R>(y.host_mut()?, x.host()?, spans, c, pooling))
        }
        Device::Gpu(gpu) => {
            whole_vectors("pool_fwd", "C", c, 8)?;
            let slabs = c.div_ceil(kernels::COLUMNS as usize);
            let launch = Launch::plane([b, slabs], [32 * kernels::WARPS as usize, 1]);
            let arguments = PoolFwd { y, x, spans, c: int("pool_fwd", c)?, pooling: pooling.number() };
            // SAFETY: `dims` holds all arrays to c, a multiple of 8, and to as many spans as there are blocks along
            // x; that the spans lie within x the caller answers for.
            unsafe { kernels::pool_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

/// The spans, if none is empty or leaves the `n` rows.
fn within<'a>(op: &'static str, spans: &'a Tensor, n: usize) -> Result<&'a [[i32; 2]]> {
    let spans = spans.host::<i32>()?.as_chunks::<2>().0;
    match spans.iter().find(|[a, b]| *a < 0 || a >= b || *b as usize > n) {
        Some([a, b]) => refuse(op, format!("span {a}..{b} is empty or leaves the {n} rows of x")),
        None => Ok(spans),
    }
}

fn cpu_fwd<R: Real>(y: &mut [R], x: &[R], spans: &[[i32; 2]], c: usize, pooling: Pooling) {
    y.par_chunks_mut(c).zip(spans).for_each(|(y, &[start, end])| {
        let (first, step, rows) = pooling.weights((end - start) as usize);
        y.fill(R::ZERO);
        for k in rows {
            let weight = R::of(first + step * k as f64);
            let row = &x[(start as usize + k) * c..][..c];
            y.iter_mut().zip(row).for_each(|(y, &x)| *y += weight * x);
        }
    });
}

/// `dx[spans[b].start + k] = weight_k dy[b]`, and 0 in rows that no span holds; where spans overlap, the sum.
///
/// | operand | shape  | dtype      | role                    |
/// |---------|--------|------------|-------------------------|
/// | `dx`    | [N, C] | activation | overwritten             |
/// | `dy`    | [B, C] | statistic  | read                    |
/// | `spans` | [B, 2] | i32        | read, as in the forward |
pub fn pool_bwd(
    device: &Device,
    dx: &mut Tensor,
    dy: &Tensor,
    spans: &Tensor,
    pooling: Pooling,
) -> Result<()> {
    let operands = [("dx", &*dx, "N C"), ("spans", spans, "B 2"), ("dy", dy, "B C")];
    let [n, b, c] = dims("pool_bwd", ["N", "B", "C"], &operands)?;
    match device {
        Device::Cpu(real) => {
            let spans = within("pool_bwd", spans, n)?;
            with_real!(*real, R => cpu_bwd::<R>(dx.host_mut()?, dy.host()?, spans, c, pooling))
        }
        Device::Gpu(gpu) => {
            whole_vectors("pool_bwd", "C", c, 8)?;
            let (slabs, rows) =
                (c.div_ceil(kernels::COLUMNS as usize), (kernels::ROWS * kernels::WARPS) as usize);
            let launch = Launch::plane([n.div_ceil(rows), slabs], [32 * kernels::WARPS as usize, 1]);
            let int = |n| int("pool_bwd", n);
            let [n, b, c, pooling] = [int(n)?, int(b)?, int(c)?, pooling.number()];
            let arguments = PoolBwd { dx, dy, spans, n, b, c, pooling };
            // SAFETY: `dims` holds all arrays to n, b and c, a multiple of 8; only rows below n are written,
            // whatever the spans are.
            unsafe { kernels::pool_bwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_bwd<R: Real>(dx: &mut [R], dy: &[R], spans: &[[i32; 2]], c: usize, pooling: Pooling) {
    dx.fill(R::ZERO);
    for (dy, &[start, end]) in dy.chunks(c).zip(spans) {
        let (first, step, rows) = pooling.weights((end - start) as usize);
        for k in rows {
            let weight = R::of(first + step * k as f64);
            let row = &mut dx[(start as usize + k) * c..][..c];
            row.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += weight * dy);
        }
    }
}
