//! attention: softmax(q kᵀ / sqrt(D)) v over packed sequences, under an explicit mask.

use crate::device::Device;
use crate::device::cpu::{LANES, Matrix, Real, matmul, simd, small_matmul};
use crate::error::Result;
use crate::tensor::{Tensor, dims, refuse, with_real};
use rayon::prelude::*;
use std::ops::Range;

/// Which keys a query sees. There is no default: a forgotten mask must not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Every key of its own sequence.
    Full,
    /// Keys at or before the query.
    Causal,
    /// Keys nearer than this on both sides.
    Window(usize),
    /// Keys at or before the query and nearer than this: Mistral v0.1 as it was pre-trained.
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

/// `out[i,h] = sum_j p_ij v[j,g]`, `p = softmax_j(q[i,h] · k[j,g] / sqrt(D))` over the keys that `mask` shows,
/// `lse[i,h]` the log of the softmax's denominator.
///
/// | operand  | shape           | dtype      | role                                             |
/// |----------|-----------------|------------|--------------------------------------------------|
/// | `out`    | [N, H D]        | activation | overwritten                                      |
/// | `lse`    | [N, H]          | statistic  | overwritten                                      |
/// | `qkv`    | [N, (H + 2G) D] | activation | read                                             |
/// | `starts` | [B + 1]         | i32        | read: first row of each sequence, then N; rising |
///
/// Errors if a shape does not fit or `starts` does not rise from 0 to N.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads from Ainslie et al. 2023, arXiv:2305.13245.
pub fn attention_fwd(
    device: &Device,
    out: &mut Tensor,
    lse: &mut Tensor,
    qkv: &Tensor,
    starts: &Tensor,
    heads: Heads,
    mask: Mask,
) -> Result<()> {
    let operands =
        [("qkv", qkv, "N Q"), ("out", &*out, "N O"), ("lse", &*lse, "N H"), ("starts", starts, "S")];
    let [n, q, o, h, _] = dims("attention_fwd", ["N", "Q", "O", "H", "S"], &operands)?;
    heads.check("attention_fwd", q)?;
    if o != heads.query * heads.width || h != heads.query {
        return refuse(
            "attention_fwd",
            format!("out is [{n}, {o}] and lse [{n}, {h}], expected H D and H columns"),
        );
    }
    if matches!(mask, Mask::Window(0) | Mask::CausalWindow(0)) {
        return refuse("attention_fwd", "a window of 0 shows no key; expected at least 1".into());
    }
    let starts = starts.host::<i32>()?;
    let rising = starts.windows(2).all(|w| w[0] < w[1]);
    if !rising || starts.first() != Some(&0) || starts.last() != Some(&(n as i32)) {
        return refuse("attention_fwd", format!("starts must rise strictly from 0 to N = {n}"));
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            cpu_fwd::<R>(out.host_mut()?, lse.host_mut()?, qkv.host()?, starts, heads, mask)
        }),
    }
    Ok(())
}

/// Query rows that one task takes: the scores of a block against a long text stay in cache.
const BLOCK: usize = 64;

/// Some rows of one sequence: what one task computes, for all heads.
struct Block<'a, R> {
    sequence: Range<usize>,
    rows: Range<usize>,
    out: &'a mut [R],
    lse: &'a mut [R],
}

fn blocks<'a, R>(
    mut out: &'a mut [R],
    mut lse: &'a mut [R],
    starts: &[i32],
    heads: Heads,
) -> Vec<Block<'a, R>> {
    let mut list = Vec::new();
    for s in starts.windows(2) {
        let sequence = s[0] as usize..s[1] as usize;
        for first in sequence.clone().step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(sequence.end);
            let (o, l);
            (o, out) = out.split_at_mut(rows.len() * heads.query * heads.width);
            (l, lse) = lse.split_at_mut(rows.len() * heads.query);
            list.push(Block { sequence: sequence.clone(), rows, out: o, lse: l });
        }
    }
    list
}

fn cpu_fwd<R: Real>(out: &mut [R], lse: &mut [R], qkv: &[R], starts: &[i32], heads: Heads, mask: Mask) {
    let work = blocks(out, lse, starts, heads);
    work.into_par_iter().for_each_init(
        || Scratch { scores: Vec::new(), keys: Vec::new() },
        |scratch, mut block| {
            for h in 0..heads.query {
                head_fwd(&mut block, scratch, qkv, heads, h, mask);
            }
        },
    );
}

/// One task's own memory: the scores, and the keys of a head transposed.
struct Scratch<R> {
    scores: Vec<R>,
    keys: Vec<R>,
}

/// Keys up to which the small product replaces the blocked one: its setup costs more than the work of a short text.
const SHORT: usize = 160;

fn head_fwd<R: Real>(
    block: &mut Block<R>,
    scratch: &mut Scratch<R>,
    qkv: &[R],
    heads: Heads,
    h: usize,
    mask: Mask,
) {
    let (d, stride, first) = (heads.width, heads.columns(), block.sequence.start);
    let (m, len) = (block.rows.len(), block.sequence.len());
    let seen = |row: usize| mask.keys(row - first, len);
    // The keys that any row of the block sees: every mask shows one unbroken range that only moves right.
    let keys = seen(block.rows.start).start..seen(block.rows.end - 1).end;
    let t = keys.len();
    let column = |head: usize, row: usize| &qkv[row * stride + head * d..];
    let g = heads.query + h / (heads.query / heads.key);
    let q = column(h, block.rows.start);
    let (k, v) = (column(g, first + keys.start), column(g + heads.key, first + keys.start));
    let (scale, out_stride) = (1.0 / (d as f64).sqrt(), heads.query * d);

    let short = t <= SHORT && d.is_multiple_of(LANES);
    let width = if short { t.next_multiple_of(LANES) } else { t };
    let Scratch { scores, keys: kt } = scratch;
    scores.clear();
    scores.resize(m * width, R::ZERO);
    if short {
        kt.clear();
        kt.resize(d * width, R::ZERO);
        simd(
            #[inline(always)]
            || {
                for (j, row) in k.chunks(stride).take(t).enumerate() {
                    row[..d].iter().enumerate().for_each(|(c, &x)| kt[c * width + j] = x);
                }
                small_matmul([m, d, width], R::of(scale), (scores, width), (q, stride), (kt, width));
            },
        );
    } else {
        let (q, k) = (Matrix::rows(q, m, d, stride), Matrix::rows(k, t, d, stride));
        matmul(scores, t, false, scale, q, k.t(), false);
    }
    for (i, row) in scores.chunks_exact_mut(width).enumerate() {
        let visible = seen(block.rows.start + i);
        let visible = visible.start - keys.start..visible.end - keys.start;
        row[..visible.start].fill(R::ZERO);
        row[visible.end..].fill(R::ZERO);
        block.lse[i * heads.query + h] = softmax(&mut row[visible]);
    }
    let out = &mut block.out[h * d..];
    if short {
        simd(
            #[inline(always)]
            || small_matmul([m, t, d], R::ONE, (out, out_stride), (scores, width), (v, stride)),
        );
    } else {
        let (p, v) = (Matrix::rows(scores, m, t, t), Matrix::rows(v, t, d, stride));
        matmul(out, out_stride, false, 1.0, p, v, false);
    }
}

/// Softmax in place; returns the log of the sum of exponentials.
fn softmax<R: Real>(row: &mut [R]) -> R {
    simd(
        #[inline(always)]
        || {
            let mut most = [row[0]; 16];
            let (head, tail) = row.as_chunks::<16>();
            for x in head {
                for i in 0..16 {
                    most[i] = most[i].max(x[i]);
                }
            }
            let most = tail.iter().chain(&most).fold(row[0], |a, &b| a.max(b));
            let mut sum = [R::ZERO; 16];
            let (head, tail) = row.as_chunks_mut::<16>();
            for x in head {
                for i in 0..16 {
                    x[i] = (x[i] - most).exp();
                    sum[i] += x[i];
                }
            }
            let mut total = R::ZERO;
            for x in tail {
                *x = (*x - most).exp();
                total += *x;
            }
            let total = sum.iter().fold(total, |a, &b| a + b);
            let scale = R::ONE / total;
            row.iter_mut().for_each(|x| *x = *x * scale);
            most + total.ln()
        },
    )
}
