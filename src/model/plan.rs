//! What a GPU says to a model before a weight is read: which sizes its kernels take, and what its ops work in.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::model::config::Config;
use crate::ops::attention::{WIDTHS, attention_workspace};
use crate::ops::rmsnorm;

/// Refuses a model that `device` has no kernels for.
pub fn check(device: &Device, config: &Config) -> Result<()> {
    let Device::Gpu(_) = device else { return Ok(()) };
    let refused = |what: String| Err(Error::Unsupported(format!("config.json: {what}; use --device cpu")));
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

/// Counts what the graph's ops work in, for packs of at most `tokens` tokens.
pub fn workspace(arena: &mut Arena, config: &Config, tokens: usize) {
    arena.workspace(|| attention_workspace(config.heads, tokens));
}
