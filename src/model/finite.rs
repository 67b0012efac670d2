//! `--check-finite`: in what part of the graph the first NaN or infinity stands.

use crate::device::{DType, Device};
use crate::error::Result;
use crate::memory::Arena;
use crate::model::config::Config;
use crate::model::grads::Scratch;
use crate::model::state::{Saved, Shared, State};
use crate::model::watch::{Watch, check};

impl State {
    /// From now on every activation and every gradient of one is looked at as soon as its block is through.
    pub fn watch(&mut self, arena: &mut Arena, config: &Config) {
        arena.group("activations");
        // The lists below: 8 of a block forward, 7 back; embedding, final norm and the loss.
        let found = arena.tensor(DType::I32, &[15 * config.layers + 3, 2]);
        self.watch = Some(Watch::new(found));
    }

    /// The first tensor of the pass that has held NaN or infinity, as an error. Where one watches, this waits for the pass.
    pub fn verdict(&self) -> Result<()> {
        self.watch.as_ref().map_or(Ok(()), Watch::verdict)
    }
}

/// After block `i` of the forward.
pub fn check_block(device: &Device, state: &mut State, i: usize) -> Result<()> {
    let State { streams, saved, shared, watch, .. } = state;
    let Shared { h, h2, act } = &*shared;
    let count = streams.len();
    if i == 0 {
        check(device, watch, "embedding", [("stream", &streams[0])])?;
    }
    let Saved { qkv, attention, middle, gate_up, .. } = &saved[i % saved.len()];
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
    check(device, watch, &format!("layer {i}"), list)
}

/// After the final norm.
pub fn check_hidden(device: &Device, state: &mut State) -> Result<()> {
    let State { hidden, watch, .. } = state;
    check(device, watch, "final norm", [("hidden", &*hidden)])
}

/// Before the backward: what the loss says of the hidden states.
pub fn check_loss(device: &Device, scratch: &Scratch, state: &mut State) -> Result<()> {
    check(device, &mut state.watch, "gradient of the loss", [("hidden", &scratch.h)])
}

/// After block `i` of the backward, in its order; of tensors that it has used twice, the last use.
pub fn check_block_bwd(device: &Device, scratch: &Scratch, state: &mut State, i: usize) -> Result<()> {
    let Scratch { stream, h, qkv, attention, gate_up, act, .. } = scratch;
    let last = [("h", h), ("stream", &stream[0])];
    let list =
        [("act", act), ("gate_up", gate_up), ("middle", &stream[1]), ("attention", attention), ("qkv", qkv)];
    // Nothing flows out of the first block.
    let last = last.into_iter().filter(|_| i > 0);
    check(device, &mut state.watch, &format!("gradient of layer {i}"), list.into_iter().chain(last))
}
