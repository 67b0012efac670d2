//! attention on a GPU: which kernel, how it is spread, and what it costs.

use super::{Heads, Mask, Rule};
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::attention_bwd::{self as bwd, AttentionBwdKeys, AttentionBwdQueries};
use crate::kernels::attention_fwd::{self as fwd, AttentionFwd};
use crate::kernels::{Draw, Reach};
use crate::ops::Cost;
use crate::tensor::{Tensor, int, refuse, workspace_bytes};
use std::ops::Range;

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
struct Numbers {
    /// N, B, H, G, D
    sizes: [i32; 5],
    reach: Reach,
    dropout: Draw,
}

impl Numbers {
    /// Refuses what no kernel takes.
    fn new(op: &'static str, n: usize, starts: &Tensor, rule: Rule) -> Result<Numbers> {
        let Rule { heads, mask, dropout } = rule;
        if !WIDTHS.contains(&heads.width) {
            return refuse(op, format!("D = {}, a GPU takes D in {WIDTHS:?}", heads.width));
        }
        if n == 0 || n >= 1 << 30 {
            return refuse(op, format!("N = {n}, a GPU takes from 1 row to 2^30"));
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
fn rows(heads: Heads, n: usize) -> [usize; 3] {
    [heads.query, n.next_multiple_of(2), 2]
}

/// Bytes of workspace that [`super::attention_bwd`] takes for a pack of `n` rows.
pub fn attention_workspace(heads: Heads, n: usize) -> usize {
    workspace_bytes(&[(DType::F32, &rows(heads, n))])
}

/// The cost of [`super::attention_fwd`], with `lse`, on these sequences.
pub fn attention_fwd_cost(starts: &[i32], heads: Heads, mask: Mask) -> Cost {
    let Heads { query: h, width: d, .. } = heads;
    let seen = Seen::new(starts, mask, [fwd::ROWS as usize, 32, fwd::KEYS as usize], false);
    let vectors = 2 * seen.rows + 2 * seen.streamed;
    Cost {
        bytes: h * (2 * d * vectors + 4 * seen.rows + seen.search),
        flops: h * seen.live * 2 * (2 * 32 * 16 * d),
    }
}

/// The cost of [`super::attention_bwd`]: that of its two kernels.
pub fn attention_bwd_cost(starts: &[i32], heads: Heads, mask: Mask) -> Cost {
    let Heads { query: h, key: g, width: d } = heads;
    let shape = [bwd::OWNED as usize, 16, bwd::STREAMED as usize];
    let (queries, keys) = (Seen::new(starts, mask, shape, false), Seen::new(starts, mask, shape, true));
    // Rows past the end read the last one's out and lse, to which two lanes come.
    let all = queries.rows.next_multiple_of(shape[0]);
    let own = 2 * d * (3 * queries.rows + all + 2 * queries.streamed) + 8 * all;
    let stats = 8 * queries.rows.next_multiple_of(2);
    let given = 2 * d * 2 * keys.streamed + 8 * keys.streamed.next_multiple_of(2);
    Cost {
        bytes: h * (own + stats + queries.search + given) + g * (2 * d * 4 * keys.rows + keys.search),
        flops: h * (3 * queries.live + 4 * keys.live) * (2 * 16 * 16 * d),
    }
}

/// What the blocks of one head come across.
struct Seen {
    /// Rows of the pack.
    rows: usize,
    /// Rows that stream through the blocks.
    streamed: usize,
    /// Times that a warp multiplies its rows with 16 columns.
    live: usize,
    /// Bytes that warps read to find their sequences.
    search: usize,
}

impl Seen {
    /// By blocks of `tile` rows, warps of `own` rows, stages of `stage` columns; `transposed`: the rows are keys, whose
    /// first column is even.
    fn new(starts: &[i32], mask: Mask, [tile, own, stage]: [usize; 3], transposed: bool) -> Seen {
        let rows = starts.last().map_or(0, |&n| n as usize);
        let (mut left, mut right) = reach(mask, rows);
        if transposed {
            (left, right) = (right, left);
        }
        let range = |sequence: &[i32], i: usize| {
            let (start, end) = (sequence[0] as usize, sequence[1] as usize);
            i.saturating_sub(left).max(start)..(i + right + 1).min(end)
        };
        let rows_of = |s: &[i32]| s[0] as usize..s[1] as usize;
        let ranges: Vec<Range<usize>> =
            starts.windows(2).flat_map(|s| rows_of(s).map(|i| range(s, i)).collect::<Vec<_>>()).collect();
        let mut seen = Seen { rows, streamed: 0, live: 0, search: 0 };
        for (block, ranges) in ranges.chunks(tile).enumerate() {
            let from = if transposed { ranges[0].start / 2 * 2 } else { ranges[0].start };
            let end = ranges[ranges.len() - 1].end;
            seen.streamed += end - from;
            let columns = (from..from + (end - from).next_multiple_of(stage)).step_by(16);
            for warp in ranges.chunks(own) {
                let (lo, hi) = (warp[0].start, warp[warp.len() - 1].end);
                seen.live += columns.clone().filter(|&c| c < hi && c + 16 > lo).count();
            }
            for warp in 0..tile / own {
                seen.search += search(starts, (block * tile + warp * own).min(rows - 1));
            }
        }
        seen
    }
}

/// Bytes that a warp reads to find the sequences of its rows from `row` on: a search by 32 probes at a time, then the start
/// that it found and the 32 behind it.
fn search(starts: &[i32], row: usize) -> usize {
    let (mut from, mut count, mut loads) = (0, starts.len() - 1, 2 * 32);
    while count > 1 {
        let step = count.div_ceil(32);
        let probes = (from..from + count).step_by(step);
        loads += probes.len();
        let last = probes.rev().find(|&p| starts[p] as usize <= row).unwrap_or(from);
        (from, count) = (last, step.min(from + count - last));
    }
    4 * loads
}
