//! `--check-finite`: in what part of the graph the first NaN or infinity stands.

use crate::device::{DType, Device};
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::model::config::Config;
use crate::model::grads::Scratch;
use crate::model::state::{Saved, Shared, State};
use crate::ops::finite::finite_fwd;
use crate::tensor::Tensor;

/// What is looked at in a pass, in this order, and what was found there.
#[derive(Clone, Debug)]
pub struct Watch {
    /// [S, 2] of each tensor: numbers that are NaN or infinite, and the first row that has one
    found: Tensor,
    /// Where in the graph, which tensor, its numbers
    seen: Vec<(String, &'static str, usize)>,
}

impl Watch {
    /// The first tensor in which something was found, and how much. The count wraps, so it is the row that tells.
    fn verdict(&self) -> Result<()> {
        let found = self.found.read()?;
        let all = self.seen.iter().zip(found.as_chunks().0);
        let first = all.into_iter().find(|(_, [_, row])| *row != f64::from(i32::MAX));
        let Some(((place, name, of), [count, row])) = first else { return Ok(()) };
        let count = *count as i32 as u32;
        let what =
            format!("{place}: {name} has {count} of {of} numbers NaN or infinite, the first in row {row}");
        Err(Error::NotFinite(what))
    }

    /// Nothing is found yet.
    pub fn clear(&mut self) -> Result<()> {
        self.seen.clear();
        self.found.write(&[0, i32::MAX].repeat(self.found.shape()[0]))
    }
}

impl State {
    /// From now on every activation and every gradient of one is looked at as soon as its block is through.
    pub fn watch(&mut self, arena: &mut Arena, config: &Config) {
        arena.group("activations");
        // The lists below: 8 of a block forward, 7 back; embedding, final norm and the loss.
        let found = arena.tensor(DType::I32, &[15 * config.layers + 3, 2]);
        self.watch = Some(Watch { found, seen: Vec::new() });
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

fn check<'a>(
    device: &Device,
    watch: &mut Option<Watch>,
    place: &str,
    list: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
) -> Result<()> {
    let Some(Watch { found, seen }) = watch else { return Ok(()) };
    for (name, tensor) in list {
        finite_fwd(device, found, tensor, seen.len())?;
        seen.push((place.into(), name, tensor.numel()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2^32 of them are counted as 0, one less as -1.
    #[test]
    fn a_count_that_wraps_is_still_a_finding() {
        let mut watch = Watch { found: Tensor::zeros(DType::I32, &[3, 2]), seen: Vec::new() };
        watch.clear().unwrap();
        watch.seen = ["a", "b", "c"].map(|name| (name.to_string(), "x", 1 << 33)).to_vec();
        watch.verdict().unwrap();
        for (count, says) in [(0, "b: x has 0 of"), (-1, "b: x has 4294967295 of")] {
            watch.found.write(&[0, i32::MAX, count, 7, 5, 1]).unwrap();
            let error = watch.verdict().unwrap_err().to_string();
            assert!(error.contains(says) && error.ends_with("row 7"), "{error}");
        }
    }
}
