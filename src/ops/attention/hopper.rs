//! attention on Hopper: which widths it takes, and how many heads of a slice of rows a block goes through.

use super::gpu::{Numbers, rows};
use super::{Heads, Rule};
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::Extent;
use crate::kernels::attention_bwd_keys_sm90::{self as keys, AttentionBwdKeysSm90};
use crate::kernels::attention_bwd_queries_sm90::{self as queries, AttentionBwdQueriesSm90};
use crate::kernels::attention_fwd_sm90::{self as kernels, AttentionFwdSm90};
use crate::tensor::{Tensor, int};

/// Whether the kernels are asked for and take this width; else the portable ones do.
pub fn takes(gpu: &Gpu, width: usize) -> bool {
    gpu.hopper("attention") && kernels::ATTENTION_FWD_SM90.contains(&(width as i32))
}

/// Mean length from which on `auto` takes the backward: it loads 64 rows of a text that has fewer, and they are one side of each
/// of its products; the portable kernels load what there is and multiply sixteens.
const SHORT: usize = 24;

/// Whether the backward is asked for, takes this width, and is predicted to be the faster for `b` texts of `n` rows together.
pub fn takes_backward(gpu: &Gpu, width: usize, n: usize, b: usize) -> bool {
    takes(gpu, width) && (!gpu.chooses() || n >= SHORT * b)
}

/// Query heads that a block goes through one after the other: those that share keys where texts are short, so that keys are
/// read once, else two, which rows of half a slice take side by side; one where blocks would be left without work.
fn heads_at_a_time(gpu: &Gpu, n: usize, b: usize, heads: Heads) -> usize {
    let (group, rows) = (heads.query / heads.key, kernels::ROWS as usize);
    let most = match group {
        2.. if n <= b * rows => group,
        _ => 2 - heads.query % 2,
    };
    let slices = n.div_ceil(rows).max(b);
    if slices * heads.query / most < gpu.processors() { 1 } else { most }
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
    const OP: &str = "attention_fwd";
    let (tokens, sequences) = (qkv.shape()[0], starts.numel() - 1);
    let Numbers { sizes: [_, b, h, g, d], reach, dropout } = Numbers::new(OP, tokens, starts, rule)?;
    let heads = heads_at_a_time(gpu, tokens, sequences, rule.heads);
    let most = (tokens.div_ceil(kernels::ROWS as usize) + sequences) * rule.heads.query / heads;
    let shared = if d == 64 { kernels::SHARED_64 } else { kernels::SHARED_128 };
    let launch = Launch::clusters(most, 1, kernels::THREADS as usize, shared);
    let (heads, stored) = (int(OP, heads)?, &out.tiles(gpu, "out", kernels::STORED)?);
    let qkv = &qkv.tiles(gpu, "qkv", kernels::LOADED)?;
    let arguments = AttentionFwdSm90 { d, stored, out, lse, qkv, starts, b, h, g, heads, reach, dropout };
    // SAFETY: the op's contract holds the arrays to the rows, b and the heads, of which `heads` at a time leave none over; maps
    // are of the boxes that the file's head gives. That starts rise from 0 to the rows the caller answers for.
    unsafe { kernels::attention_fwd_sm90(gpu, launch, arguments) }
}

/// Blocks for what keys own, and key heads that one goes through: two, which texts of half a slice take side by side; one where
/// blocks would be left without work.
fn spread_keys(gpu: &Gpu, n: usize, b: usize, heads: Heads) -> (Launch, usize) {
    let slices = n.div_ceil(keys::ROWS as usize) + b;
    let at_a_time = if slices * heads.key < 2 * gpu.processors() { 1 } else { 2 - heads.key % 2 };
    let shared = if heads.width == 64 { keys::SHARED_64 } else { keys::SHARED_128 };
    (Launch::clusters(slices * heads.key / at_a_time, 1, keys::THREADS as usize, shared), at_a_time)
}

/// Launches the backward: first dq of texts of several slices, with what the keys' kernel reads of each of their rows, then all
/// that keys own, and dq of shorter texts.
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
    const OP: &str = "attention_bwd";
    let (tokens, query) = (qkv.shape()[0], rule.heads.query);
    let Numbers { sizes: [n, b, h, g, d], reach, dropout } = Numbers::new(OP, tokens, starts, rule)?;
    let extent = Extent { n, b, h, g };
    let [mut rows] = Tensor::workspace(gpu, [(DType::F32, &rows(rule.heads, tokens)[..])])?;
    let (stored, rows) = (&dqkv.tiles(gpu, "dqkv", keys::STORED)?, &mut rows);
    let [qkv, dout, out] =
        [(qkv, "qkv"), (dout, "dout"), (out, "out")].map(|(x, name)| x.tiles(gpu, name, keys::UNIT));
    let (qkv, dout, out) = (&qkv?, &dout?, &out?);

    let most = 2 * tokens / queries::ROWS as usize * query;
    if most > 0 {
        let shared = if d == 64 { queries::SHARED_64 } else { queries::SHARED_128 };
        let launch = Launch::clusters(most, 1, queries::THREADS as usize, shared);
        let (dqkv, rows) = (&mut *dqkv, &mut *rows);
        let arguments = AttentionBwdQueriesSm90 {
            d,
            stored,
            dqkv,
            rows,
            dout,
            out,
            lse,
            qkv,
            starts,
            extent,
            reach,
            dropout,
        };
        // SAFETY: the op's contract holds the arrays to n, b and the heads, rows has its own shape of them; maps are of the
        // boxes that the file's head gives. That starts rise from 0 to n the caller answers for.
        unsafe { queries::attention_bwd_queries_sm90(gpu, launch, arguments) }?;
    }

    let (launch, heads) = spread_keys(gpu, tokens, starts.numel() - 1, rule.heads);
    let heads = int(OP, heads)?;
    let arguments = AttentionBwdKeysSm90 {
        d,
        stored,
        dqkv,
        dout,
        out,
        rows,
        lse,
        qkv,
        starts,
        extent,
        heads,
        reach,
        dropout,
    };
    // SAFETY: likewise; `heads` divides the key heads, and the launch above has written rows of all texts whose rows are read.
    unsafe { keys::attention_bwd_keys_sm90(gpu, launch, arguments) }
}
