//! attention: softmax(q kᵀ / sqrt(D)) v over packed sequences, under an explicit mask.

use crate::device::Device;
use crate::device::cpu::{Matrix, Real, dot, exp_or_zero, matmul, simd};
use crate::error::Result;
use crate::ops::dropout::Dropout;
use crate::tensor::{Tensor, dims, refuse, with_real};
use rayon::prelude::*;
use std::ops::Range;
use tile::{BLOCK, Block, Rule, Scratch, Tile, blocks, softmax};

mod gpu;
mod hopper;
mod lanes;
mod tile;

pub use gpu::{WIDTHS, attention_workspace};

/// Which keys a query sees. There is no default: a forgotten mask must not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Every key of its own sequence.
    Full,
    /// Keys at or before the query.
    Causal,
    /// Keys nearer than this on both sides, |i - j| < w: `Window(w + 1)` is Transformers' bidirectional window of w.
    Window(usize),
    /// Keys at or before the query and nearer than this, i - j < w: Mistral v0.1 as it was pre-trained, and
    /// Transformers' causal window of w.
    CausalWindow(usize),
}

impl Mask {
    /// The keys that the query at `i` sees in a sequence of `len`.
    pub fn keys(self, i: usize, len: usize) -> Range<usize> {
        match self {
            Mask::Full => 0..len,
            Mask::Causal => 0..i + 1,
            Mask::Window(w) => (i + 1).saturating_sub(w)..len.min(i + w),
            Mask::CausalWindow(w) => (i + 1).saturating_sub(w)..i + 1,
        }
    }
}

/// How the columns of a packed `qkv` row divide: H query heads, then G key heads, then G value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, H.
    pub query: usize,
    /// Key (and value) heads, G; divides H.
    pub key: usize,
    /// Head width, D.
    pub width: usize,
}

impl Heads {
    /// `(H + 2G) D`.
    pub fn columns(self) -> usize {
        (self.query + 2 * self.key) * self.width
    }

    /// Refuses a `qkv` of another width, and head counts that do not divide.
    pub fn check(self, op: &'static str, columns: usize) -> Result<()> {
        if self.key == 0 || !self.query.is_multiple_of(self.key) {
            return refuse(op, format!("{} query heads do not share {} key heads", self.query, self.key));
        }
        if columns != self.columns() {
            return refuse(
                op,
                format!("qkv has {columns} columns, expected (H + 2G) D = {}", self.columns()),
            );
        }
        Ok(())
    }
}

/// `out[i,h] = sum_j drop(p_ij) v[j,g]`, `p = softmax_j(q[i,h] · k[j,g] / sqrt(D))` over the keys that `mask` shows,
/// `lse[i,h]` the log of the softmax's denominator.
///
/// | operand  | shape           | dtype      | role                                             |
/// |----------|-----------------|------------|--------------------------------------------------|
/// | `out`    | [N, H D]        | activation | overwritten                                      |
/// | `lse`    | [N, H]          | statistic  | overwritten; `None` where no backward follows    |
/// | `qkv`    | [N, (H + 2G) D] | activation | read                                             |
/// | `starts` | [B + 1]         | i32        | read: first row of each sequence, then N; rising |
///
/// Plane h of the dropout mask is head h's, its column the key's position in its sequence. Errors if a shape does not
/// fit or `starts` does not rise from 0 to N.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads from Ainslie et al. 2023, arXiv:2305.13245.
#[allow(clippy::too_many_arguments)]
pub fn attention_fwd(
    device: &Device,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    qkv: &Tensor,
    starts: &Tensor,
    heads: Heads,
    mask: Mask,
    dropout: Option<Dropout>,
) -> Result<()> {
    let mut operands = vec![("qkv", qkv, "N Q"), ("out", &*out, "N O"), ("starts", starts, "S")];
    operands.extend(lse.as_deref().map(|lse| ("lse", lse, "N H")));
    contract("attention_fwd", &operands, heads, mask, dropout)?;
    let rule = Rule { heads, mask, dropout: dropout.map(|d| (d, d.key())) };
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let starts = sequences("attention_fwd", starts, qkv.shape()[0])?;
            let lse = lse.map(Tensor::host_mut::<R>).transpose()?;
            cpu_fwd::<R>(out.host_mut()?, lse, qkv.host()?, starts, rule)
        }),
        Device::Gpu(gpu) if hopper::takes(gpu, heads.width) => {
            hopper::forward(gpu, out, lse, qkv, starts, rule)?
        }
        Device::Gpu(gpu) => gpu::forward(gpu, out, lse, qkv, starts, rule)?,
    }
    Ok(())
}

/// Checks what both directions share, but for the values of `starts`.
fn contract(
    op: &'static str,
    operands: &[(&str, &Tensor, &str)],
    heads: Heads,
    mask: Mask,
    dropout: Option<Dropout>,
) -> Result<()> {
    let [n, q, o, h, _] = dims(op, ["N", "Q", "O", "H", "S"], operands)?;
    heads.check(op, q)?;
    if o != heads.query * heads.width || ![0, heads.query].contains(&h) {
        return refuse(op, format!("out is [{n}, {o}] and lse [{n}, {h}], expected H D and H columns"));
    }
    if matches!(mask, Mask::Window(0) | Mask::CausalWindow(0)) {
        return refuse(op, "a window of 0 shows no key; expected at least 1".into());
    }
    Dropout::check(dropout, op)
}

/// The sequences. On a GPU nobody looks: whoever makes the batch answers for them.
fn sequences<'a>(op: &'static str, starts: &'a Tensor, n: usize) -> Result<&'a [i32]> {
    let starts = starts.host::<i32>()?;
    let rising = starts.windows(2).all(|w| w[0] < w[1]);
    if !rising || starts.first() != Some(&0) || starts.last() != Some(&(n as i32)) {
        return refuse(op, format!("starts must rise strictly from 0 to N = {n}"));
    }
    Ok(starts)
}

fn cpu_fwd<R: Real>(out: &mut [R], lse: Option<&mut [R]>, qkv: &[R], starts: &[i32], rule: Rule) {
    if let Some(lanes) = lanes::takes::<R>(rule) {
        let lse = lse.map(bytemuck::cast_slice_mut);
        return lanes.run(bytemuck::cast_slice_mut(out), lse, bytemuck::cast_slice(qkv), starts);
    }
    let work = blocks(out, lse, starts, rule.heads, BLOCK);
    work.into_par_iter().for_each_init(Scratch::default, |scratch, mut block| {
        for h in 0..rule.heads.query {
            head_fwd(&mut block, scratch, qkv, h, rule);
        }
    });
}

fn head_fwd<R: Real>(block: &mut Block<R>, scratch: &mut Scratch<R>, qkv: &[R], h: usize, rule: Rule) {
    let (heads, first) = (rule.heads, block.sequence.start);
    let (d, stride) = (heads.width, heads.columns());
    let tile = Tile::new(&block.rows, &block.sequence, rule);
    let column = |head: usize, row: usize| &qkv[row * stride + head * d..];
    let g = heads.query + h / (heads.query / heads.key);
    let (m, t) = (tile.m, tile.t);
    let q = Matrix::rows(column(h, block.rows.start), m, d, stride);
    let k = Matrix::rows(column(g, first + tile.first), t, d, stride);
    let v = Matrix::rows(column(g + heads.key, first + tile.first), t, d, stride);
    let scores = &mut scratch.scores;
    scores.resize(m * t, R::ZERO);
    matmul(scores, t, false, 1.0 / (d as f64).sqrt(), q, k.t(), false);
    for (i, row) in scores.chunks_exact_mut(t).enumerate() {
        let at = block.rows.start + i;
        let visible = tile.visible(at - first, block.sequence.len(), rule.mask);
        row[..visible.start].fill(R::ZERO);
        row[visible.end..].fill(R::ZERO);
        let row = &mut row[visible.clone()];
        let total = softmax(row);
        if let Some(lse) = &mut block.lse {
            lse[i * heads.query + h] = total;
        }
        if let Some((dropout, key)) = rule.dropout {
            dropout.apply(key, at, h, tile.first + visible.start, row);
        }
    }
    let (out, p) = (&mut block.out[h * d..], Matrix::rows(scores, m, t, t));
    matmul(out, heads.query * d, false, 1.0, p, v, false);
}

/// With `P = drop(p)`: `dv = Pᵀ dout`, `ds = P (dout vᵀ) - p delta`, `delta[i,h] = dout[i,h] · out[i,h]`,
/// `dq = ds k / sqrt(D)`, `dk = dsᵀ q / sqrt(D)`; the scores are computed anew, a block of rows at a time.
///
/// | operand         | shape           | dtype      | role                                        |
/// |-----------------|-----------------|------------|---------------------------------------------|
/// | `dqkv`          | [N, (H + 2G) D] | activation | overwritten                                 |
/// | `dout`          | [N, H D]        | activation | read                                        |
/// | `out`           | [N, H D]        | activation | read, from the forward                      |
/// | `lse`           | [N, H]          | statistic  | read, from the forward                      |
/// | `qkv`, `starts` |                 |            | read, as in the forward                     |
///
/// Source: Dao 2023, arXiv:2307.08691, section 3.1 (the delta trick holds under dropout, since out has it as well).
#[allow(clippy::too_many_arguments)]
pub fn attention_bwd(
    device: &Device,
    dqkv: &mut Tensor,
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    qkv: &Tensor,
    starts: &Tensor,
    heads: Heads,
    mask: Mask,
    dropout: Option<Dropout>,
) -> Result<()> {
    let operands = [
        ("qkv", qkv, "N Q"),
        ("out", out, "N O"),
        ("lse", lse, "N H"),
        ("dout", dout, "N O"),
        ("dqkv", &*dqkv, "N Q"),
        ("starts", starts, "S"),
    ];
    contract("attention_bwd", &operands, heads, mask, dropout)?;
    let rule = Rule { heads, mask, dropout: dropout.map(|d| (d, d.key())) };
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let starts = sequences("attention_bwd", starts, qkv.shape()[0])?;
            let given = Given { qkv: qkv.host()?, out: out.host()?, dout: dout.host()?, lse: lse.host()? };
            cpu_bwd::<R>(dqkv.host_mut()?, given, starts, rule)
        }),
        Device::Gpu(gpu) if hopper::takes_backward(gpu, heads.width, qkv.shape()[0], starts.numel() - 1) => {
            hopper::backward(gpu, dqkv, dout, out, lse, qkv, starts, rule)?
        }
        Device::Gpu(gpu) => gpu::backward(gpu, dqkv, dout, out, lse, qkv, starts, rule)?,
    }
    Ok(())
}

/// What the backward reads.
#[derive(Clone, Copy)]
struct Given<'a, R> {
    qkv: &'a [R],
    out: &'a [R],
    dout: &'a [R],
    lse: &'a [R],
}

/// Rows above which a sequence is shared by tasks.
const LONG: usize = 128;

/// A task is a sequence; its key heads are tasks of their own where it is long.
fn cpu_bwd<R: Real>(mut dqkv: &mut [R], given: Given<R>, starts: &[i32], rule: Rule) {
    let columns = rule.heads.columns();
    let mut work = Vec::new();
    for s in starts.windows(2) {
        let rows;
        (rows, dqkv) = dqkv.split_at_mut((s[1] - s[0]) as usize * columns);
        work.push((s[0] as usize..s[1] as usize, rows));
    }
    work.into_par_iter().for_each_init(Scratch::default, |scratch, (sequence, rows)| {
        if sequence.len() <= LONG {
            for g in 0..rule.heads.key {
                let group = group_bwd(&sequence, scratch, given, g, rule);
                rows.chunks_mut(columns).enumerate().for_each(|(i, row)| group.put(i, row, g, rule.heads));
            }
            return;
        }
        let groups: Vec<_> = (0..rule.heads.key)
            .into_par_iter()
            .map_init(Scratch::default, |scratch, g| group_bwd(&sequence, scratch, given, g, rule))
            .collect();
        rows.par_chunks_mut(columns).enumerate().with_min_len(16).for_each(|(i, row)| {
            groups.iter().enumerate().for_each(|(g, group)| group.put(i, row, g, rule.heads));
        });
    });
}

/// The gradients of one key head of one sequence, of T rows each.
struct Group<R> {
    /// [T, H/G D]: those of its query heads
    dq: Vec<R>,
    /// [T, D]
    dk: Vec<R>,
    /// [T, D]
    dv: Vec<R>,
}

impl<R: Real> Group<R> {
    /// Copies row `i` into the columns of key head `g`.
    fn put(&self, i: usize, row: &mut [R], g: usize, heads: Heads) {
        let (d, wide) = (heads.width, heads.query / heads.key * heads.width);
        row[g * wide..][..wide].copy_from_slice(&self.dq[i * wide..][..wide]);
        row[(heads.query + g) * d..][..d].copy_from_slice(&self.dk[i * d..][..d]);
        row[(heads.query + heads.key + g) * d..][..d].copy_from_slice(&self.dv[i * d..][..d]);
    }
}

fn group_bwd<R: Real>(
    sequence: &Range<usize>,
    scratch: &mut Scratch<R>,
    given: Given<R>,
    g: usize,
    rule: Rule,
) -> Group<R> {
    let (d, share, len) = (rule.heads.width, rule.heads.query / rule.heads.key, sequence.len());
    let zeros = |n: usize| vec![R::ZERO; n];
    let mut group = Group { dq: zeros(len * share * d), dk: zeros(len * d), dv: zeros(len * d) };
    for h in g * share..(g + 1) * share {
        for first in sequence.clone().step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(sequence.end);
            block_bwd(&mut group, sequence, rows, scratch, given, h, rule);
        }
    }
    group
}

/// What the rows `rows` of head `h` add.
fn block_bwd<R: Real>(
    group: &mut Group<R>,
    sequence: &Range<usize>,
    rows: Range<usize>,
    scratch: &mut Scratch<R>,
    given: Given<R>,
    h: usize,
    rule: Rule,
) {
    let (heads, first, share) = (rule.heads, sequence.start, rule.heads.query / rule.heads.key);
    let (d, stride, out_stride) = (heads.width, heads.columns(), heads.query * heads.width);
    let tile = Tile::new(&rows, sequence, rule);
    let (m, t) = (tile.m, tile.t);
    let column = |head: usize, row: usize| &given.qkv[row * stride + head * d..];
    let g = heads.query + h / share;
    let q = Matrix::rows(column(h, rows.start), m, d, stride);
    let k = Matrix::rows(column(g, first + tile.first), t, d, stride);
    let v = Matrix::rows(column(g + heads.key, first + tile.first), t, d, stride);
    let dout = Matrix::rows(&given.dout[rows.start * out_stride + h * d..], m, d, out_stride);
    let Scratch { scores, dropped, gradient } = scratch;
    [&mut *scores, dropped, gradient].into_iter().for_each(|tile| tile.resize(m * t, R::ZERO));
    let scale = 1.0 / (d as f64).sqrt();
    matmul(scores, t, false, scale, q, k.t(), false);
    matmul(gradient, t, false, 1.0, dout, v.t(), false);
    for (i, at) in rows.clone().enumerate() {
        let visible = tile.visible(at - first, sequence.len(), rule.mask);
        let span = i * t..(i + 1) * t;
        let (p, kept, ds) = (&mut scores[span.clone()], &mut dropped[span.clone()], &mut gradient[span]);
        let lse = given.lse[at * heads.query + h];
        p[..visible.start].fill(R::ZERO);
        p[visible.end..].fill(R::ZERO);
        simd(
            #[inline(always)]
            || p[visible.clone()].iter_mut().for_each(|s| *s = exp_or_zero(*s - lse)),
        );
        kept.copy_from_slice(p);
        if let Some((dropout, key)) = rule.dropout {
            dropout.apply(key, at, h, tile.first + visible.start, &mut kept[visible]);
        }
        simd(
            #[inline(always)]
            || {
                let delta =
                    dot(&dout.data[i * out_stride..][..d], &given.out[at * out_stride + h * d..][..d]);
                for ((ds, &p), &kept) in ds.iter_mut().zip(&*p).zip(&*kept) {
                    *ds = kept * *ds - p * delta;
                }
            },
        );
    }
    let (kept, ds) = (Matrix::rows(dropped, m, t, t), Matrix::rows(gradient, m, t, t));
    let (wide, at) = (share * d, rows.start - first);
    matmul(&mut group.dq[at * wide + h % share * d..], wide, false, scale, ds, k, false);
    matmul(&mut group.dk[tile.first * d..], d, true, scale, ds.t(), q, false);
    matmul(&mut group.dv[tile.first * d..], d, true, 1.0, kept.t(), dout, false);
}
