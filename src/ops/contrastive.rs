//! contrastive: InfoNCE over in-batch and hard negatives, some rows of the score matrix at a time.

use crate::device::cpu::{Matrix, Real, exp_or_zero, matmul};
use crate::device::gpu::{Gpu, Launch};
use crate::device::{DType, Device};
use crate::error::Result;
use crate::kernels::contrastive::{
    self as kernels, ContrastiveBwd, ContrastiveDc, ContrastiveDq, ContrastiveFwd, ContrastiveLimit,
    ContrastiveTotal,
};
use crate::tensor::{Element, Tensor, dims, int, refuse, whole_vectors, with_real, workspace_bytes};
use half::bf16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

mod hopper;
#[cfg(test)]
mod tests;

/// What the loss multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LossDtype {
    /// f32: by tensor cores, six products of bf16 for each.
    F32,
    /// bf16, one product in place of six: unit vectors are rounded, their gradient is that of the rounded ones, and on a
    /// GPU the gradient of the scores is rounded too. Sums stay f32.
    Bf16,
}

impl LossDtype {
    /// How many bf16 a kernel takes a number for.
    fn terms(self) -> i32 {
        match self {
            LossDtype::F32 => 3,
            LossDtype::Bf16 => 1,
        }
    }
}

/// How scores become a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InfoNce {
    /// Of the cosine, the inverse temperature.
    pub scale: f64,
    /// Candidates whose cosine exceeds the positive's by more than this count as false negatives, and not at all.
    pub margin: Option<f64>,
    /// What vectors are multiplied in.
    pub dtype: LossDtype,
}

impl InfoNce {
    /// Vectors as they are multiplied.
    fn vectors<'a, R: Real>(&self, x: &'a [R]) -> Cow<'a, [R]> {
        match self.dtype {
            LossDtype::F32 => Cow::Borrowed(x),
            LossDtype::Bf16 => {
                let rounded = |x: &R| R::of(f64::from(bf16::from_f32(x.f64() as f32)));
                Cow::Owned(x.par_iter().map(rounded).collect())
            }
        }
    }
}

/// `loss[p] = lse[p] - s q[p]·c[p]`, `lse[p] = log sum_m e^(s q[p]·c[m])` over the candidates that are p's own
/// positive or no false negative of it. The positive of query p is candidate p.
///
/// | operand | shape  | dtype     | role                                                                       |
/// |---------|--------|-----------|----------------------------------------------------------------------------|
/// | `total` | `[2]`  | statistic | overwritten: mean loss, queries whose positive scores above every negative |
/// | `loss`  | `[P]`  | statistic | overwritten, nats                                                          |
/// | `lse`   | `[P]`  | statistic | overwritten                                                                |
/// | `q`     | [P, C] | statistic | read: unit vectors                                                         |
/// | `c`     | [M, C] | statistic | read: unit vectors, the P positives first                                  |
/// | `ids`   | `[M]`  | i32       | read: candidates of equal id are the same text, no negatives of each other |
///
/// Errors if a shape does not fit or M < P, or on a GPU if C is no multiple of 8. Source: Oord et al. 2018,
/// arXiv:1807.03748, eq. 4, as LLM2Vec's `HardNegativeNLLLoss`; the margin from GISTEmbed, Solatorio 2024, arXiv:2402.16829.
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
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let ids = ids.map(Tensor::host::<i32>).transpose()?;
            let (total, loss, lse) = (total.host_mut::<R>()?, loss.host_mut::<R>()?, lse.host_mut::<R>()?);
            let (q, c) = (rule.vectors(q.host()?), rule.vectors(c.host()?));
            cpu_fwd::<R>(total, loss, lse, Scores { q: &q, c: &c, ids, rule, sizes });
        }),
        Device::Gpu(gpu) if hopper::takes(gpu, sizes) => {
            let of = hopper::Operands { q, candidates: c, ids, rule, sizes };
            hopper::forward(gpu, [total, loss, lse], of, hopper::wave(sizes))?;
        }
        Device::Gpu(gpu) => {
            let shares = shares(sizes[0], sizes[1]);
            gpu_fwd(gpu, [total, loss, lse], [q, c], ids, rule, sizes, shares)?;
        }
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

const TILE: usize = kernels::TILE as usize;
/// About so many blocks share the tiles of the score matrix.
const BLOCKS: usize = 1024;

/// Of a matrix of `rows` by `columns`: how many of a row of tiles a block goes through, and blocks for it.
fn shares(rows: usize, columns: usize) -> [usize; 2] {
    let (rows, columns) = (rows.div_ceil(TILE), columns.div_ceil(TILE));
    let tiles = (rows * columns).div_ceil(BLOCKS).min(columns);
    [tiles, columns.div_ceil(tiles)]
}

/// The most elements of [blocks for a row of tiles, rows] that [`shares`] makes of at most so many rows: fewer are cut into more.
fn most_shares(rows: usize, columns: usize) -> usize {
    (columns.div_ceil(TILE) * rows).min(BLOCKS * TILE + rows.next_multiple_of(TILE))
}

/// Blocks of the tiles of so many rows and columns.
fn grid(across: usize, down: usize) -> Launch {
    Launch::plane([across.div_ceil(TILE), down.div_ceil(TILE)], [kernels::THREADS as usize, 1])
}

#[allow(clippy::too_many_arguments)]
fn gpu_fwd(
    gpu: &Gpu,
    [total, loss, lse]: [&mut Tensor; 3],
    [q, candidates]: [&Tensor; 2],
    ids: Option<&Tensor>,
    rule: InfoNce,
    [p, m, c]: [usize; 3],
    [tiles, splits]: [usize; 2],
) -> Result<()> {
    whole_vectors("contrastive_fwd", "C", c, 8)?;
    let (parts, row) = ((DType::F32, &[splits, p][..]), (DType::F32, &[p][..]));
    let [mut most, mut sum, mut rival, mut positive, mut limit] =
        Tensor::workspace(gpu, [parts, parts, parts, row, row])?;
    let limit = limits(gpu, &mut limit, [q, candidates], rule, [p, c])?;
    let launch = Launch::plane([p.div_ceil(TILE), splits], [kernels::THREADS as usize, 1]);
    let int = |n| int("contrastive_fwd", n);
    let ([p, m, c, tiles, splits], scale) =
        ([int(p)?, int(m)?, int(c)?, int(tiles)?, int(splits)?], rule.scale as f32);
    let arguments = ContrastiveFwd {
        most: &mut most,
        sum: &mut sum,
        rival: &mut rival,
        positive: &mut positive,
        q,
        candidates,
        ids,
        limit,
        p,
        m,
        c,
        tiles,
        scale,
        terms: rule.dtype.terms(),
    };
    // SAFETY: the op's contract holds q, candidates and ids to p, m and c, a multiple of 8; the workspace is of p
    // rows and, but for `positive`, as many parts as there are blocks along y.
    unsafe { kernels::contrastive_fwd(gpu, launch, arguments) }?;
    let launch = Launch::line(1, kernels::TOTAL_THREADS as usize);
    let (most, sum, rival, positive) = (&most, &sum, &rival, &positive);
    let arguments = ContrastiveTotal { total, loss, lse, most, sum, rival, positive, p, splits, scale };
    // SAFETY: the op's contract holds loss and lse to p and total to 2; the parts are those that the launch above
    // has written.
    unsafe { kernels::contrastive_total(gpu, launch, arguments) }
}

/// The highest cosines that count, where there is a margin.
fn limits<'a>(
    gpu: &Gpu,
    limit: &'a mut Tensor,
    [q, candidates]: [&Tensor; 2],
    rule: InfoNce,
    [p, c]: [usize; 2],
) -> Result<Option<&'a Tensor>> {
    let Some(margin) = rule.margin else { return Ok(None) };
    let (launch, margin) = (grid(p, 1), margin as f32);
    let [p, c] = [int("contrastive", p)?, int("contrastive", c)?];
    let arguments =
        ContrastiveLimit { limit: &mut *limit, q, candidates, p, c, margin, terms: rule.dtype.terms() };
    // SAFETY: limit has p elements; the op's contract holds q to p rows of c, a multiple of 8, and candidates to no
    // fewer.
    unsafe { kernels::contrastive_limit(gpu, launch, arguments) }?;
    Ok(Some(limit))
}

/// `dz[p,m] = s dmean / P (e^(s q[p]·c[m] - lse[p]) - [m = p])`, `dq = dz c`, `dc = dzᵀ q`; the scores are computed anew,
/// and which of them count is taken as constant. Where vectors are rounded, it is the gradient with respect to the rounded
/// ones, handed on as it is.
///
/// | operand          | shape  | dtype     | role                    |
/// |------------------|--------|-----------|-------------------------|
/// | `dq`             | [P, C] | statistic | overwritten             |
/// | `dc`             | [M, C] | statistic | overwritten             |
/// | `q`, `c`, `ids`  |        |           | read, as in the forward |
/// | `lse`            | `[P]`  | statistic | read, from the forward  |
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
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let ids = ids.map(Tensor::host::<i32>).transpose()?;
            let (q, c) = (rule.vectors(q.host()?), rule.vectors(c.host()?));
            let scores = Scores { q: &q, c: &c, ids, rule, sizes };
            cpu_bwd::<R>(dq.host_mut()?, dc.host_mut()?, lse.host()?, scores, dmean)
        }),
        Device::Gpu(gpu) if hopper::takes(gpu, sizes) => {
            let of = hopper::Operands { q, candidates: c, ids, rule, sizes };
            hopper::backward(gpu, [dq, dc], lse, of, dmean, hopper::wave(sizes))?;
        }
        Device::Gpu(gpu) => {
            let wave = wave(sizes);
            gpu_bwd(gpu, [dq, dc], [q, c, lse], ids, rule, dmean, sizes, wave)?;
        }
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

/// Bytes that dz may take.
const WAVE: usize = 64 << 20;

/// Rows whose dz is held at a time.
fn wave([p, m, _]: [usize; 3]) -> usize {
    let rows = WAVE / 4 / m.next_multiple_of(8) / TILE * TILE;
    rows.max(TILE).min(p)
}

#[allow(clippy::too_many_arguments)]
fn gpu_bwd(
    gpu: &Gpu,
    [dq, dc]: [&mut Tensor; 2],
    [q, candidates, lse]: [&Tensor; 3],
    ids: Option<&Tensor>,
    rule: InfoNce,
    dmean: f64,
    [p, m, width]: [usize; 3],
    wave: usize,
) -> Result<()> {
    whole_vectors("contrastive_bwd", "C", width, 8)?;
    let stride = m.next_multiple_of(8);
    let parts = [(DType::F32, &[wave, stride][..]), (DType::F32, &[p][..])];
    let [mut dz, mut limit] = Tensor::workspace(gpu, parts)?;
    let limit = limits(gpu, &mut limit, [q, candidates], rule, [p, width])?;
    let (scale, weight) = (rule.scale as f32, (rule.scale * dmean / p as f64) as f32);
    let (int, terms) = (|n| int("contrastive_bwd", n), rule.dtype.terms());
    let (columns, [m, c, stride]) = (m, [int(m)?, int(width)?, int(stride)?]);
    for from in (0..p).step_by(wave) {
        let count = wave.min(p - from);
        let [first, rows] = [int(from)?, int(count)?];
        let dz = &mut dz;
        let arguments = ContrastiveBwd {
            dz: &mut *dz,
            q,
            candidates,
            ids,
            limit,
            lse,
            first,
            rows,
            m,
            c,
            stride,
            scale,
            weight,
            terms,
        };
        let launch = grid(count, columns);
        // SAFETY: the op's contract holds q, candidates, ids and lse to p, m and c, a multiple of 8; dz has room for
        // the rows of a wave, which all lie below p.
        unsafe { kernels::contrastive_bwd(gpu, launch, arguments) }?;
        let arguments = ContrastiveDq { dq: &mut *dq, dz, candidates, first, rows, m, c, stride, terms };
        let launch = grid(width, count);
        // SAFETY: dq is like q; dz is what the launch above has written of these rows.
        unsafe { kernels::contrastive_dq(gpu, launch, arguments) }?;
        let arguments = ContrastiveDc { dc: &mut *dc, dz, q, first, rows, m, c, stride, terms };
        let launch = grid(width, columns);
        // SAFETY: dc is like candidates; dz is what the launch before has written of these rows.
        unsafe { kernels::contrastive_dc(gpu, launch, arguments) }?;
    }
    Ok(())
}

/// Bytes of workspace that the forward and the backward of at most so many queries and candidates of C columns take.
pub fn contrastive_workspace(on: &Device, p: usize, m: usize, c: usize) -> usize {
    match on {
        Device::Gpu(gpu) if hopper::takes(gpu, [p, m, c]) => {
            hopper::workspace([p, m, c]).max(portable_workspace(p, m))
        }
        _ => portable_workspace(p, m),
    }
}

fn portable_workspace(p: usize, m: usize) -> usize {
    // Longer waves are of more rows: the bound holds for all of them.
    let parts = most_shares(p, m);
    let stride = m.next_multiple_of(8);
    fwd_bytes(parts, p).max(bwd_bytes((p * stride).min((WAVE / 4).max(TILE * stride)), p))
}

fn fwd_bytes(parts: usize, p: usize) -> usize {
    let (part, row) = ((DType::F32, &[parts][..]), (DType::F32, &[p][..]));
    workspace_bytes(&[part, part, part, row, row])
}

fn bwd_bytes(dz: usize, p: usize) -> usize {
    workspace_bytes(&[(DType::F32, &[dz]), (DType::F32, &[p])])
}
