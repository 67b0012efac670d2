//! The graph, written once: configuration, weights, LoRA, state, and the Llama forward and backward. Knows no files and
//! no text.

pub mod adapted;
pub mod config;
pub mod finite;
pub mod grads;
pub mod llama;
pub mod lora;
pub mod plan;
pub mod rope;
pub mod state;
pub mod watch;
pub mod weights;

use crate::device::Device;
use crate::error::Result;
use crate::memory::Arena;
use crate::ops::attention::Mask;
use config::Config;
use rope::RopeTables;
use weights::{Source, Storage, Weights};

/// A decoder and how it is run: all that a forward and a backward read.
#[derive(Clone, Debug)]
pub struct Model {
    /// Where it computes.
    pub device: Device,
    /// Its shape.
    pub config: Config,
    /// Who attends to whom.
    pub mask: Mask,
    /// Weights, and adapters where they are live.
    pub weights: Weights,
    /// Angles of the positions.
    pub rope: RopeTables,
}

impl Model {
    /// Room for `config`, the large matrices kept as `storage` says, sequences at most `positions` tokens long.
    pub fn new(arena: &mut Arena, config: &Config, mask: Mask, storage: Storage, positions: usize) -> Model {
        let weights = Weights::new(arena, config, storage);
        let rope = RopeTables::new(arena, config, positions);
        Model { device: arena.device.clone(), config: config.clone(), mask, weights, rope }
    }

    /// Reads the weights.
    pub fn load(&mut self, source: &impl Source) -> Result<()> {
        self.weights.load(&self.config, source)
    }
}
