//! attention on a GPU: which kernel, and how it is spread.

use super::{Heads, Mask, Rule};
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::attention_bwd::{self as bwd, AttentionBwdKeys, AttentionBwdQueries};
use crate::kernels::attention_fwd::{self as fwd, AttentionFwd};
use crate::kernels::{Draw, Reach};
use crate::tensor::{Tensor, int, limited, workspace_bytes};

/// Head widths that have kernels.
pub const WIDTHS: [usize; 6] = {
    let (mut widths, mut i) = ([0; 6], 0);
    while i < widths.len() {
        widths[i] = fwd::ATTENTION_FWD[i] as usize;
        i += 1;
    }
    widths
};

/// The numbers that all kernels take.
pub struct Numbers {
    /// N, B, H, G, D
    pub sizes: [i32; 5],
    pub reach: Reach,
    pub dropout: Draw,
}

impl Numbers {
    /// Refuses what no kernel takes.
    pub fn new(op: &'static str, n: usize, starts: &Tensor, rule: Rule) -> Result<Numbers> {
        let Rule { heads, mask, dropout } = rule;
        if !WIDTHS.contains(&heads.width) {
            return limited(op, format!("D = {}", heads.width), format!("D in {WIDTHS:?}"));
        }
        if n == 0 || n >= 1 << 30 {
            return limited(op, format!("N = {n}"), "from 1 row to 2^30");
        }
        let [n_, b, h, g, d] =
            [n, starts.numel() - 1, heads.query, heads.key, heads.width].map(|x| int(op, x));
        let (left, right) = reach(mask, n);
        Ok(Numbers {
            sizes: [n_?, b?, h?, g?, d?],
            reach: Reach { left: int(op, left)?, right: int(op, right)? },
            dropout: Draw::new(dropout.map(|d| d.0)),
        })
    }
}

/// How many keys before and behind itself a query sees, of a pack of `n` rows.
fn reach(mask: Mask, n: usize) -> (usize, usize) {
    match mask {
        Mask::Full => (n, n),
        Mask::Causal => (n, 0),
        Mask::Window(w) => (n.min(w - 1), n.min(w - 1)),
        Mask::CausalWindow(w) => (n.min(w - 1), 0),
    }
}

/// A block of `threads` for every `tile` rows of every head, and `rows` rows of shared memory.
fn spread(
    op: &'static str,
    n: usize,
    [tile, threads]: [i32; 2],
    heads: usize,
    rows: i32,
    rest: u32,
    d: usize,
) -> Result<Launch> {
    let blocks = int(op, n.div_ceil(tile as usize) * heads)?;
    let shared = rows as u32 * 2 * (d as u32 + 8) + rest;
    Ok(Launch { shared, ..Launch::line(blocks as usize, threads as usize) })
}

/// Launches the forward.
pub fn forward(
    gpu: &Gpu,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    qkv: &Tensor,
    starts: &Tensor,
    rule: Rule,
) -> Result<()> {
    let (op, tokens, Heads { query, width, .. }) = ("attention_fwd", qkv.shape()[0], rule.heads);
    let Numbers { sizes: [n, b, h, g, d], reach, dropout } = Numbers::new(op, tokens, starts, rule)?;
    let launch = spread(op, tokens, [fwd::ROWS, fwd::THREADS], query, fwd::ROWS + 4 * fwd::KEYS, 0, width)?;
    let arguments = AttentionFwd { d, out, lse, qkv, starts, n, b, h, g, reach, dropout };
    // SAFETY: the op's contract holds the arrays to n, b and the heads, and `spread` is the plan. That starts rise
    // from 0 to n the caller answers for.
    unsafe { fwd::attention_fwd(gpu, launch, arguments) }
}

/// Launches the backward: first what queries own, with what the keys' kernel reads of every row, then what keys own.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    gpu: &Gpu,
    dqkv: &mut Tensor,
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    qkv: &Tensor,
    starts: &Tensor,
    rule: Rule,
) -> Result<()> {
    let (op, tokens, heads) = ("attention_bwd", qkv.shape()[0], rule.heads);
    let Numbers { sizes: [n, b, h, g, d], reach, dropout } = Numbers::new(op, tokens, starts, rule)?;
    let (tiles, own) = (2 * bwd::OWNED + 4 * bwd::STREAMED, [bwd::OWNED, bwd::THREADS]);
    let to = spread(op, tokens, own, heads.query, tiles, 0, heads.width)?;
    let then = spread(op, tokens, own, heads.key, tiles, 16 * bwd::STREAMED as u32, heads.width)?;
    let [mut rows] = Tensor::workspace(gpu, [(DType::F32, &rows(heads, tokens)[..])])?;
    let (dqkv, rows) = (dqkv, &mut rows);
    let arguments = AttentionBwdQueries {
        d,
        dqkv: &mut *dqkv,
        rows: &mut *rows,
        dout,
        out,
        lse,
        qkv,
        starts,
        n,
        b,
        h,
        g,
        reach,
        dropout,
    };
    // SAFETY: the op's contract holds the arrays to n, b and the heads, rows has its own shape of them, and `spread`
    // is the plan. That starts rise from 0 to n the caller answers for.
    unsafe { bwd::attention_bwd_queries(gpu, to, arguments) }?;
    let arguments = AttentionBwdKeys { d, dqkv, dout, rows, qkv, starts, n, b, h, g, reach, dropout };
    // SAFETY: likewise, and the launch above has written rows.
    unsafe { bwd::attention_bwd_keys(gpu, then, arguments) }
}

/// What the backward's kernel of queries leaves for that of keys: lse and delta of each row, an even number of rows a head.
pub(super) fn rows(heads: Heads, n: usize) -> [usize; 3] {
    [heads.query, n.next_multiple_of(2), 2]
}

/// Bytes of workspace that [`super::attention_bwd`] takes for a pack of `n` rows.
pub fn attention_workspace(heads: Heads, n: usize) -> usize {
    workspace_bytes(&[(DType::F32, &rows(heads, n))])
}
