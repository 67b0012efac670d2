//! attention's forward on Hopper: which widths it takes, and how many heads of a slice of rows a block goes through.

use super::gpu::Numbers;
use super::{Heads, Rule};
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::attention_fwd_sm90::{self as kernels, AttentionFwdSm90};
use crate::tensor::{Tensor, int};

/// Whether the kernel is asked for and takes this width; else the portable one does.
pub fn takes(gpu: &Gpu, width: usize) -> bool {
    gpu.hopper("attention") && kernels::ATTENTION_FWD_SM90.contains(&(width as i32))
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
