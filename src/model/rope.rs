//! The tables of the rotary embedding: cosine and sine of position times frequency.

use crate::memory::Arena;
use crate::model::config::{Config, RopeScaling};
use crate::tensor::Tensor;
use std::f64::consts::TAU;

/// `cos`, `sin`: `[P, D/2]`.
#[derive(Clone, Debug)]
pub struct RopeTables {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl RopeTables {
    /// Tables for positions `0..positions`, angles computed in `f64`.
    pub fn new(arena: &mut Arena, config: &Config, positions: usize) -> RopeTables {
        let freqs = frequencies(config);
        let shape = [positions, freqs.len()];
        let mut tables = RopeTables { cos: arena.statistic(&shape), sin: arena.statistic(&shape) };
        if arena.allocates() {
            let angles = (0..positions).flat_map(|p| freqs.iter().map(move |f| p as f64 * f));
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
            arena.put_rows(&mut tables.cos, 0, &cos);
            arena.put_rows(&mut tables.sin, 0, &sin);
        }
        tables
    }
}

/// `theta^(-2i/D)` for i in `0..D/2`, scaled as the config says.
///
/// Source of the llama3 ramp: Meta's llama-models, `apply_scaling`, as Transformers' `rope_type: "llama3"`.
pub fn frequencies(config: &Config) -> Vec<f64> {
    let d = config.heads.width;
    let plain = (0..d / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / d as f64));
    match config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq, high_freq, original } => plain
            .map(|f| {
                let turns = original * f / TAU;
                let keep = ((turns - low_freq) / (high_freq - low_freq)).clamp(0.0, 1.0);
                f * keep + f / factor * (1.0 - keep)
            })
            .collect(),
    }
}
