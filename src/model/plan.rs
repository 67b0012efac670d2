//! What a GPU says to a model before a weight is read: which sizes its kernels take, and what its ops work in.

use crate::device::Device;
use crate::error::{Error, Result, Setting, message};
use crate::memory::Arena;
use crate::model::config::Config;
use crate::model::lora::Stack;
use crate::model::weights::Weights;
use crate::ops::attention::{WIDTHS, attention_workspace};
use crate::ops::lora_linear::{Sizes, lora_linear_workspace};
use crate::ops::rmsnorm;

/// Refuses a model that `device` has no kernels for.
pub fn check(device: &Device, config: &Config) -> Result<()> {
    let Device::Gpu(_) = device else { return Ok(()) };
    let refused = |what: String| {
        Err(Error::unsupported(message![format!("config.json: {what}; use "), Setting::Device, " cpu"]))
    };
    let heads = config.heads;
    if !WIDTHS.contains(&heads.width) {
        return refused(format!("heads are {} wide, a GPU takes {WIDTHS:?}", heads.width));
    }
    for (key, size) in [("hidden_size", config.width), ("intermediate_size", config.feed_forward)] {
        if !size.is_multiple_of(8) {
            return refused(format!("{key} = {size}, a GPU takes multiples of 8"));
        }
    }
    if config.width > rmsnorm::WIDEST {
        return refused(format!("hidden_size = {}, a GPU takes at most {}", config.width, rmsnorm::WIDEST));
    }
    Ok(())
}

/// Counts what the ops of a forward with adapters and of its backward work in, for packs of at most `tokens` tokens.
pub fn workspace(arena: &mut Arena, config: &Config, weights: &Weights, tokens: usize) {
    arena.workspace(|| {
        let mut linears: Vec<Sizes> = Vec::new();
        for linear in weights.layers.iter().flat_map(|layer| layer.linears.iter()) {
            let (lora, [m, k]) = (linear.lora.as_ref().map(Stack::view), [0, 1].map(|i| linear.w.shape()[i]));
            let rank = lora.map_or(0, |l| l.b.shape()[1]);
            let new = Sizes::new([tokens, k, m, rank], lora.as_ref());
            if !linears.iter().any(|old| (old.k, old.m, &old.segments) == (k, m, &new.segments)) {
                linears.push(new);
            }
        }
        let linear = linears.iter().map(lora_linear_workspace).max().unwrap_or(0);
        linear.max(attention_workspace(config.heads, tokens))
    });
}
