//! contrastive: InfoNCE over in-batch and hard negatives, some rows of the score matrix at a time.

use crate::device::Device;
use crate::device::cpu::{Matrix, Real, exp_or_zero, matmul};
use crate::error::Result;
use crate::tensor::{Element, Tensor, dims, no_kernel, refuse, with_real};
use rayon::prelude::*;

/// How scores become a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InfoNce {
    /// Of the cosine, the inverse temperature.
    pub scale: f64,
    /// Candidates whose cosine exceeds the positive's by more than this count as false negatives, and not at all.
    pub margin: Option<f64>,
}

/// `loss[p] = lse[p] - s q[p]·c[p]`, `lse[p] = log sum_m e^(s q[p]·c[m])` over the candidates that are p's own
/// positive or no false negative of it. The positive of query p is candidate p.
///
/// | operand | shape  | dtype     | role                                                                       |
/// |---------|--------|-----------|----------------------------------------------------------------------------|
/// | `total` | [2]    | statistic | overwritten: mean loss, queries whose positive scores above every negative |
/// | `loss`  | [P]    | statistic | overwritten, nats                                                          |
/// | `lse`   | [P]    | statistic | overwritten                                                                |
/// | `q`     | [P, C] | statistic | read: unit vectors                                                         |
/// | `c`     | [M, C] | statistic | read: unit vectors, the P positives first                                  |
/// | `ids`   | [M]    | i32       | read: candidates of equal id are the same text, no negatives of each other |
///
/// Errors if a shape does not fit or M < P. Source: Oord et al. 2018, arXiv:1807.03748, eq. 4, as LLM2Vec's
/// `HardNegativeNLLLoss`; the margin from GISTEmbed, Solatorio 2024, arXiv:2402.16829.
#[allow(clippy::too_many_arguments)]
pub fn contrastive_fwd(
    device: &Device,
    total: &mut Tensor,
    loss: &mut Tensor,
    lse: &mut Tensor,
    q: &Tensor,
    c: &Tensor,
    ids: Option<&Tensor>,
    rule: InfoNce,
) -> Result<()> {
    let operands = [("total", &*total, "2"), ("loss", &*loss, "P"), ("lse", &*lse, "P")];
    let sizes = contract("contrastive_fwd", &operands, q, c, ids)?;
    let ids = ids.map(Tensor::host::<i32>).transpose()?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let (total, loss, lse) = (total.host_mut::<R>()?, loss.host_mut::<R>()?, lse.host_mut::<R>()?);
            cpu_fwd::<R>(total, loss, lse, Scores { q: q.host()?, c: c.host()?, ids, rule, sizes });
        }),
        Device::Gpu(_) => no_kernel("contrastive_fwd")?,
    }
    Ok(())
}

fn contract(
    op: &'static str,
    operands: &[(&str, &Tensor, &str)],
    q: &Tensor,
    c: &Tensor,
    ids: Option<&Tensor>,
) -> Result<[usize; 3]> {
    let mut all = vec![("q", q, "P C"), ("c", c, "M C")];
    all.extend(ids.map(|ids| ("ids", ids, "M")));
    all.extend(operands);
    let [p, m, width] = dims(op, ["P", "M", "C"], &all)?;
    if p == 0 || m < p {
        return refuse(op, format!("{m} candidates for {p} queries, expected one positive each"));
    }
    Ok([p, m, width])
}

/// Rows of the score matrix that are held at a time.
const BLOCK: usize = 256;

#[derive(Clone, Copy)]
struct Scores<'a, R> {
    q: &'a [R],
    c: &'a [R],
    ids: Option<&'a [i32]>,
    rule: InfoNce,
    sizes: [usize; 3],
}

impl<R: Real> Scores<'_, R> {
    /// Calls `use_block(first row, cosines)` for every [`BLOCK`] rows.
    fn blocks(&self, mut use_block: impl FnMut(usize, &mut [R])) {
        let [p, m, c] = self.sizes;
        let mut room = vec![R::ZERO; BLOCK.min(p) * m];
        for first in (0..p).step_by(BLOCK) {
            let rows = BLOCK.min(p - first);
            let cosines = &mut room[..rows * m];
            let (q, c) = (Matrix::rows(&self.q[first * c..], rows, c, c), Matrix::rows(self.c, m, c, c));
            matmul(cosines, m, false, 1.0, q, c.t(), true);
            use_block(first, cosines);
        }
    }

    /// Whether candidate `j` takes part in the row of query `i`, whose cosines these are.
    fn counts(&self, i: usize, j: usize, cosines: &[R]) -> bool {
        let same = self.ids.is_some_and(|ids| ids[i] == ids[j]);
        let above = self.rule.margin.is_some_and(|m| cosines[j] > cosines[i] + R::of(m));
        j == i || !(same || above)
    }
}

fn cpu_fwd<R: Real + Element>(total: &mut [R], loss: &mut [R], lse: &mut [R], scores: Scores<R>) {
    let ([p, m, _], scale) = (scores.sizes, R::of(scores.rule.scale));
    scores.blocks(|first, cosines| {
        let list = loss[first..].par_iter_mut().zip(&mut lse[first..]).zip(cosines.par_chunks(m)).enumerate();
        list.for_each(|(r, ((loss, lse), cosines))| {
            let i = first + r;
            let terms = || (0..m).filter(|&j| scores.counts(i, j, cosines)).map(|j| cosines[j] * scale);
            let most = terms().fold(cosines[i] * scale, |a, b| a.max(b));
            let sum = terms().fold(R::ZERO, |s, z| s + (z - most).exp());
            *lse = most + sum.ln();
            *loss = *lse - cosines[i] * scale;
        });
        let won = cosines.chunks(m).enumerate().filter(|(r, cosines)| {
            let i = first + r;
            (0..m).all(|j| j == i || !scores.counts(i, j, cosines) || cosines[j] < cosines[i])
        });
        total[1] = R::of(won.count() as f64) + if first == 0 { R::ZERO } else { total[1] };
    });
    total[0] = R::of(loss.iter().map(|l| l.f64()).sum::<f64>() / p as f64);
}

/// `dz[p,m] = s dmean / P (e^(s q[p]·c[m] - lse[p]) - [m = p])`, `dq = dz c`, `dc = dzᵀ q`; the scores are computed anew,
/// and which of them count is taken as constant.
///
/// | operand          | shape  | dtype     | role                    |
/// |------------------|--------|-----------|-------------------------|
/// | `dq`             | [P, C] | statistic | overwritten             |
/// | `dc`             | [M, C] | statistic | overwritten             |
/// | `q`, `c`, `ids`  |        |           | read, as in the forward |
/// | `lse`            | [P]    | statistic | read, from the forward  |
///
/// `dmean` is the gradient of the mean loss.
#[allow(clippy::too_many_arguments)]
pub fn contrastive_bwd(
    device: &Device,
    dq: &mut Tensor,
    dc: &mut Tensor,
    q: &Tensor,
    c: &Tensor,
    ids: Option<&Tensor>,
    lse: &Tensor,
    rule: InfoNce,
    dmean: f64,
) -> Result<()> {
    let operands = [("dq", &*dq, "P C"), ("dc", &*dc, "M C"), ("lse", lse, "P")];
    let sizes = contract("contrastive_bwd", &operands, q, c, ids)?;
    let ids = ids.map(Tensor::host::<i32>).transpose()?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let scores = Scores { q: q.host()?, c: c.host()?, ids, rule, sizes };
            cpu_bwd::<R>(dq.host_mut()?, dc.host_mut()?, lse.host()?, scores, dmean)
        }),
        Device::Gpu(_) => no_kernel("contrastive_bwd")?,
    }
    Ok(())
}

fn cpu_bwd<R: Real>(dq: &mut [R], dc: &mut [R], lse: &[R], scores: Scores<R>, dmean: f64) {
    let ([p, m, width], scale) = (scores.sizes, R::of(scores.rule.scale));
    let weight = R::of(scores.rule.scale * dmean / p as f64);
    scores.blocks(|first, cosines| {
        cosines.par_chunks_mut(m).enumerate().for_each_init(Vec::new, |dz, (r, cosines)| {
            let i = first + r;
            dz.clear();
            dz.extend((0..m).map(|j| match scores.counts(i, j, cosines) {
                true => exp_or_zero(cosines[j] * scale - lse[i]) * weight,
                false => R::ZERO,
            }));
            dz[i] += -weight;
            cosines.copy_from_slice(dz);
        });
        let rows = cosines.len() / m;
        let dz = Matrix::rows(cosines, rows, m, m);
        matmul(
            &mut dq[first * width..],
            width,
            false,
            1.0,
            dz,
            Matrix::rows(scores.c, m, width, width),
            true,
        );
        let q = Matrix::rows(&scores.q[first * width..], rows, width, width);
        matmul(dc, width, first > 0, 1.0, dz.t(), q, true);
    });
}
