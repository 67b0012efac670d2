//! The Llama forward: a list of op calls, written once for every device.

use crate::device::Device;
use crate::error::Result;
use crate::model::config::Config;
use crate::model::lora::Stack;
use crate::model::rope::RopeTables;
use crate::model::state::{Saved, State};
use crate::model::weights::{Layer, Linear, Weights};
use crate::ops::attention::{Mask, attention_fwd};
use crate::ops::embed::embed_fwd;
use crate::ops::lora_linear::lora_linear_fwd;
use crate::ops::rmsnorm::rmsnorm_fwd;
use crate::ops::rope::rope_fwd;
use crate::ops::swiglu::swiglu_fwd;
use crate::tensor::Tensor;

/// Runs the batch in `state` through the decoder; `state.hidden` holds the result after the final norm.
pub fn forward(
    device: &Device,
    config: &Config,
    weights: &Weights,
    rope: &RopeTables,
    state: &mut State,
    mask: Mask,
) -> Result<()> {
    embed_fwd(device, &mut state.streams[0], &weights.embed, &state.ids)?;
    for (i, layer) in weights.layers.iter().enumerate() {
        block_fwd(device, config, layer, rope, state, i, mask)?;
    }
    let last = config.layers % state.streams.len();
    let State { streams, hidden, rstd, .. } = state;
    rmsnorm_fwd(device, hidden, rstd, &streams[last], &weights.norm, config.norm_eps)
}

/// Block `i`: reads the stream before it, writes the stream after it.
fn block_fwd(
    device: &Device,
    config: &Config,
    w: &Layer,
    rope: &RopeTables,
    state: &mut State,
    i: usize,
    mask: Mask,
) -> Result<()> {
    let State { streams, saved, positions, starts, .. } = state;
    let (before, after) = adjacent(streams, i);
    let at = i % saved.len();
    let Saved { h, rstd, qkv, attention, lse, middle, h2, rstd2, gate_up, act, xa } = &mut saved[at];
    let [xa_qkv, xa_o, xa_gate_up, xa_down] = xa;
    let (heads, eps) = (config.heads, config.norm_eps);
    rmsnorm_fwd(device, h, rstd, before, &w.attention_norm, eps)?; //              1 h         <- before
    linear(device, qkv, xa_qkv, h, &w.qkv, None)?; //                                  2 qkv       <- h
    rope_fwd(device, qkv, &rope.cos, &rope.sin, positions, heads)?; //             3 qkv       <- qkv
    attention_fwd(device, attention, Some(lse), qkv, starts, heads, mask, None)?; // 4 attention <- qkv
    linear(device, middle, xa_o, attention, &w.o, Some(before))?; //                 5 middle    <- before, attention
    rmsnorm_fwd(device, h2, rstd2, middle, &w.mlp_norm, eps)?; //                  6 h2        <- middle
    linear(device, gate_up, xa_gate_up, h2, &w.gate_up, None)?; //                         7 gate_up   <- h2
    swiglu_fwd(device, act, gate_up)?; //                                          8 act       <- gate_up
    linear(device, after, xa_down, act, &w.down, Some(middle)) //                       9 after     <- middle, act
}

/// The streams before and after block `i`; with two streams they take turns.
fn adjacent(streams: &mut [Tensor], i: usize) -> (&Tensor, &mut Tensor) {
    let (before, after) = (i % streams.len(), (i + 1) % streams.len());
    if before < after {
        let (low, high) = streams.split_at_mut(after);
        (&low[before], &mut high[0])
    } else {
        let (low, high) = streams.split_at_mut(before);
        (&high[0], &mut low[after])
    }
}

fn linear(
    device: &Device,
    y: &mut Tensor,
    xa: &mut Tensor,
    x: &Tensor,
    w: &Linear,
    residual: Option<&Tensor>,
) -> Result<()> {
    let lora = w.lora.as_ref().map(Stack::view);
    lora_linear_fwd(device, y, Some(xa), x, &w.w, w.bias.as_ref(), lora, residual, None)
}
