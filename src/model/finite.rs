//! `--check-finite`: in what part of the graph the first NaN or infinity stands.

use crate::device::{DType, Device};
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::model::grads::Scratch;
use crate::model::state::{Saved, State};
use crate::ops::finite::finite_fwd;
use crate::tensor::Tensor;

impl State {
    /// From now on every activation and every gradient of one is looked at as soon as its block is through.
    pub fn watch(&mut self, arena: &mut Arena) {
        arena.group("activations");
        self.found = Some(arena.tensor(DType::I32, &[2]));
    }
}

/// After block `i` of the forward.
pub fn check_block(device: &Device, state: &mut State, i: usize) -> Result<()> {
    let State { streams, saved, found, .. } = state;
    let count = streams.len();
    if i == 0 {
        check(device, found, "embedding", [("stream", &streams[0])])?;
    }
    let Saved { h, qkv, attention, middle, h2, gate_up, act, .. } = &saved[i % saved.len()];
    let list = [
        ("h", h),
        ("qkv", qkv),
        ("attention", attention),
        ("middle", middle),
        ("h2", h2),
        ("gate_up", gate_up),
        ("act", act),
        ("stream", &streams[(i + 1) % count]),
    ];
    check(device, found, &format!("layer {i}"), list)
}

/// After the final norm.
pub fn check_hidden(device: &Device, state: &mut State) -> Result<()> {
    let State { hidden, found, .. } = state;
    check(device, found, "final norm", [("hidden", &*hidden)])
}

/// Before the backward: what the loss says of the hidden states.
pub fn check_loss(device: &Device, scratch: &Scratch, state: &mut State) -> Result<()> {
    check(device, &mut state.found, "gradient of the loss", [("hidden", &scratch.h)])
}

/// After block `i` of the backward, in its order; of tensors that it has used twice, the last use.
pub fn check_block_bwd(device: &Device, scratch: &Scratch, state: &mut State, i: usize) -> Result<()> {
    let Scratch { stream, h, qkv, attention, gate_up, act, .. } = scratch;
    let last = [("h", h), ("stream", &stream[0])];
    let list =
        [("act", act), ("gate_up", gate_up), ("middle", &stream[1]), ("attention", attention), ("qkv", qkv)];
    // Nothing flows out of the first block.
    let last = last.into_iter().filter(|_| i > 0);
    check(device, &mut state.found, &format!("gradient of layer {i}"), list.into_iter().chain(last))
}

fn check<'a>(
    device: &Device,
    found: &mut Option<Tensor>,
    place: &str,
    list: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    let Some(found) = found else { return Ok(()) };
    for (name, tensor) in list {
        finite_fwd(device, found, tensor)?;
        let [count, row] = found.read()?[..] else { continue };
        if count != 0.0 {
            let of = tensor.numel();
            let what = format!(
                "{place}: {name} has {count} of {of} numbers NaN or infinite, the first in row {row}"
            );
            return Err(Error::NotFinite(what));
        }
    }
    Ok(())
}
