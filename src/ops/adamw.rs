//! adamw: one step of AdamW on f32 masters, and the norm that clips its gradient.

use crate::device::DType;
use crate::device::Device;
use crate::device::cpu::{Real, simd};
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::Step;
use crate::kernels::adamw::{self as kernels, AdamwNorm, AdamwSquare, AdamwStep};
use crate::tensor::{Tensor, dims, int, refuse, with_real, workspace_bytes};
use rayon::prelude::*;

/// What one step of AdamW goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the second mean, after the bias correction.
    pub eps: f64,
    /// Decoupled weight decay: the parameter loses `rate * decay` of itself.
    pub decay: f64,
    /// 1 for the first step.
    pub step: u64,
}

impl AdamW {
    /// What the update multiplies, adds and divides by, in f64: keep, rate, new1, old2, new2, root2, eps.
    fn factors(&self) -> [f64; 7] {
        let bias = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let (keep, rate) = (1.0 - self.rate * self.decay, self.rate / bias(self.beta1));
        let root2 = bias(self.beta2).sqrt();
        [keep, rate, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, root2, self.eps]
    }
}

/// Global norm and bound: the gradient is multiplied by `min(1, most / (norm + 1e-6))`.
#[derive(Clone, Copy)]
pub struct Clip<'a> {
    /// `[1]`, from [`adamw_norm`].
    pub norm: &'a Tensor,
    /// The largest norm that is left alone.
    pub most: f64,
}

/// `norm = sqrt(sum g²)` over all elements of all gradients, summed in f64 in a fixed order.
///
/// | operand | shape | dtype     | role        |
/// |---------|-------|-----------|-------------|
/// | `norm`  | [1]   | statistic | overwritten |
/// | `grads` | any   | statistic | read        |
///
/// A NaN or infinite element makes the norm so.
/// Source: `torch.nn.utils.clip_grad_norm_`, which rounds between tensors.
pub fn adamw_norm<'a>(
    device: &Device,
    norm: &mut Tensor,
    grads: impl IntoIterator<Item = &'a Tensor>,
) -> Result<()> {
    dims("adamw_norm", [], &[("norm", norm, "1")])?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let mut sum = 0.0;
            for g in grads {
                sum += cpu_square_sum::<R>(g.host()?);
            }
            norm.host_mut::<R>()?[0] = R::of(sum.sqrt());
        }),
        Device::Gpu(gpu) => gpu_norm(gpu, norm, grads.into_iter().collect())?,
    }
    Ok(())
}

fn gpu_norm(gpu: &Gpu, norm: &mut Tensor, grads: Vec<&Tensor>) -> Result<()> {
    let int = |n| int("adamw_norm", n);
    let chunks = |g: &Tensor| chunks(g.numel());
    let all = grads.iter().map(|g| chunks(g)).sum();
    let [mut parts] = Tensor::workspace(gpu, [(DType::F64, &[all][..])])?;
    let mut first = 0;
    for g in grads.into_iter().filter(|g| g.numel() > 0) {
        let launch = Launch::line(chunks(g), kernels::THREADS as usize);
        let arguments = AdamwSquare { parts: &mut parts, g, first: int(first)?, k: int(g.numel())? };
        // SAFETY: g has k elements and as many blocks as chunks; parts has room for the chunks of all gradients, of
        // which these begin at `first`.
        unsafe { kernels::adamw_square(gpu, launch, arguments) }?;
        first += chunks(g);
    }
    let launch = Launch::line(1, kernels::NORM_THREADS as usize);
    let arguments = AdamwNorm { norm, parts: &parts, m: int(all)? };
    // SAFETY: `dims` holds norm to one element; parts has m, all of which the launches above have written.
    unsafe { kernels::adamw_norm(gpu, launch, arguments) }
}

/// Sums that a gradient of so many elements leaves.
fn chunks(elements: usize) -> usize {
    elements.div_ceil(kernels::CHUNK as usize)
}

/// Bytes of workspace that [`adamw_norm`] takes on a GPU for gradients of so many elements each.
pub fn adamw_workspace(elements: impl IntoIterator<Item = usize>) -> usize {
    workspace_bytes(&[(DType::F64, &[elements.into_iter().map(chunks).sum()])])
}

/// Elements whose sum one task takes: a fixed division, so that the sum does not depend on the threads.
const CHUNK: usize = 1 << 14;

fn cpu_square_sum<R: Real>(g: &[R]) -> f64 {
    let parts: Vec<f64> = g
        .par_chunks(CHUNK)
        .map(|g| {
            simd(
                #[inline(always)]
                || {
                    let (head, tail) = g.as_chunks::<16>();
                    let mut sums = [0.0; 16];
                    for g in head {
                        for l in 0..16 {
                            sums[l] += g[l].f64() * g[l].f64();
                        }
                    }
                    let tail = tail.iter().fold(0.0, |s, g| s + g.f64() * g.f64());
                    sums.iter().fold(tail, |s, x| s + x)
                },
            )
        })
        .collect();
    parts.iter().sum()
}

/// `g' = g clip`, `p -= rate decay p`, `m += (1 - β1)(g' - m)`, `v = β2 v + (1 - β2) g'²`,
/// `p -= rate / (1 - β1^t) m / (sqrt(v / (1 - β2^t)) + eps)`.
///
/// | operand  | shape | dtype     | role                                          |
/// |----------|-------|-----------|-----------------------------------------------|
/// | `p`      | [K]   | statistic | updated: the master weights                   |
/// | `m`, `v` | [K]   | statistic | updated: means of the gradient and its square |
/// | `g`      | [K]   | statistic | read                                          |
///
/// `[K]` is any one shape. Errors if the shapes differ or the step is 0. Source: Loshchilov & Hutter 2019,
/// arXiv:1711.05101, algorithm 2, in the order of operations of `torch.optim.AdamW`.
pub fn adamw_step(
    device: &Device,
    p: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    g: &Tensor,
    clip: Option<Clip>,
    by: AdamW,
) -> Result<()> {
    for (name, t) in [("m", &*m), ("v", &*v), ("g", g)] {
        if t.shape() != p.shape() {
            return refuse("adamw_step", format!("{name} is {:?}, expected {:?} as p", t.shape(), p.shape()));
        }
    }
    if let Some(clip) = &clip {
        dims("adamw_step", [], &[("norm", clip.norm, "1")])?;
    }
    if by.step == 0 {
        return refuse("adamw_step", "step 0, expected 1 for the first".into());
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let factor = match clip {
                Some(clip) => clip.most / (clip.norm.host::<R>()?[0].f64() + 1e-6),
                None => 1.0,
            };
            let factor = if factor > 1.0 { 1.0 } else { factor }; // NaN stays
            cpu_step::<R>(p.host_mut()?, m.host_mut()?, v.host_mut()?, g.host()?, factor, by)
        }),
        Device::Gpu(gpu) => {
            let (k, threads) = (p.numel(), kernels::THREADS as usize);
            let launch = Launch::line(k.div_ceil(4).div_ceil(threads), threads);
            let (norm, most) = (clip.map(|c| c.norm), clip.map_or(0.0, |c| c.most as f32));
            let [keep, rate, new1, old2, new2, root2, eps] = by.factors().map(|x| x as f32);
            let k = int("adamw_step", k)?;
            let step = Step { most, keep, rate, new1, old2, new2, root2, eps };
            let arguments = AdamwStep { p, m, v, g, norm, k, step };
            // SAFETY: m, v and g have the shape of p, of k elements, and norm has one: compared above. A thread has
            // four.
            unsafe { kernels::adamw_step(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_step<R: Real>(p: &mut [R], m: &mut [R], v: &mut [R], g: &[R], factor: f64, by: AdamW) {
    let [keep, rate, new1, old2, new2, root2, eps] = by.factors().map(R::of);
    let factor = R::of(factor);
    let chunks = p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.zip(g.par_chunks(CHUNK)).for_each(|(((p, m), v), g)| {
        simd(
            #[inline(always)]
            || {
                for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * factor;
                    *m += new1 * (g - *m);
                    *v = old2 * *v + new2 * g * g;
                    *p = *p * keep - rate * *m / (v.sqrt() / root2 + eps);
                }
            },
        );
    });
}
