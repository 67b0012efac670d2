//! Where an adapter comes from and where it goes: fresh factors before training, PEFT's pairs after it.

use crate::error::{Error, Result};
use crate::format::peft::{Adapter, AdapterConfig, Pair};
use crate::model::config::Config;
use crate::model::lora::Delta;
use crate::model::weights::Weights;
use crate::pretrained::chain::{self, Link};
use crate::pretrained::settings::Settings;
use crate::rng::philox;
use crate::train::config::{TargetModule, TrainConfig};
use std::path::Path;

/// Marks the draws of initial values, apart from those of masks, shuffles and dropout.
const FRESH: u32 = 0x4652_4553;

/// A new adapter: A uniform within ±1 / √K (Kaiming with a = √5, as PEFT starts), B zero.
pub fn fresh(model: &Config, config: &TrainConfig, base: &Path) -> Adapter {
    let scale = config.alpha() / config.lora_r as f64;
    let mut pairs = Vec::new();
    for layer in 0..model.layers {
        for (place, module) in config.lora_modules.iter().enumerate() {
            let Some([outputs, inputs]) = shape(model, module.name()) else { continue };
            let (rank, bound) = (config.lora_r, (inputs as f64).sqrt().recip());
            let site = (layer * config.lora_modules.len() + place) as u32;
            let a = uniform(config.seed, site, rank * inputs, bound);
            let (module, b) = (module.name().to_string(), vec![0.0; outputs * rank]);
            pairs.push(Pair { layer, module, rank, scale, a, b, inputs, outputs });
        }
    }
    Adapter { config: description(config, base), dir: base.to_path_buf(), pairs }
}

/// The learner's adapter as PEFT has it.
pub fn trained(model: &Config, config: &TrainConfig, base: &Path, weights: &Weights) -> Result<Adapter> {
    let scale = config.alpha() / config.lora_r as f64;
    let pair = |(layer, module, Delta { a, b, .. }): (usize, &str, Delta)| {
        let [outputs, inputs] = shape(model, module)?;
        Some(Pair { layer, module: module.into(), rank: config.lora_r, scale, a, b, inputs, outputs })
    };
    let pairs = weights.adapter()?.into_iter().filter_map(pair).collect();
    Ok(Adapter { config: description(config, base), dir: base.to_path_buf(), pairs })
}

/// The adapter in `dir`, to be trained on; its rank, alpha and projections become the run's.
pub fn continued(dir: &Path, config: &mut TrainConfig) -> Result<Adapter> {
    let adapter = Adapter::open(dir)?;
    let Some(first) = adapter.pairs.first() else {
        return Err(Error::file(dir, "holds no adapter matrices to train on"));
    };
    if let Some(p) = adapter.pairs.iter().find(|p| (p.rank, p.scale) != (first.rank, first.scale)) {
        let what = format!(
            "{} of layer {} has rank {} and scale {}, {} of layer {} has {} and {}; only one rank and scale for all \
             can be trained on; merge it and start a new one",
            p.module, p.layer, p.rank, p.scale, first.module, first.layer, first.rank, first.scale
        );
        return Err(Error::file(dir, what));
    }
    let has = |module: &TargetModule| adapter.pairs.iter().any(|p| p.module == module.name());
    config.lora_modules = TargetModule::ALL.into_iter().filter(has).collect();
    (config.lora_r, config.lora_alpha) = (first.rank, Some(first.scale * first.rank as f64));
    Ok(adapter)
}

/// Refuses to train the adapter in `dir` on, if it records other layers below it than `chain`.
pub fn on_its_layers(dir: &Path, chain: &[Link]) -> Result<()> {
    let recorded = Settings::read(dir)?.and_then(|s| s.adapters);
    recorded.map_or(Ok(()), |below| chain::check(dir, &below, chain))
}

fn description(config: &TrainConfig, base: &Path) -> AdapterConfig {
    AdapterConfig {
        r: config.lora_r,
        lora_alpha: config.alpha(),
        use_rslora: false,
        target_modules: config.lora_modules.iter().map(|module| module.name().to_string()).collect(),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model_name_or_path: Some(base.to_string_lossy().into_owned()),
        lora_dropout: config.lora_dropout,
    }
}

/// `[M, K]` of a projection.
fn shape(model: &Config, module: &str) -> Option<[usize; 2]> {
    model.projections().iter().find(|p| p.module == module).map(|p| [p.rows, p.cols])
}

fn uniform(seed: u64, site: u32, n: usize, bound: f64) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let words = (0..n.div_ceil(4)).flat_map(|i| philox([i as u32, site, 0, FRESH], key));
    words.take(n).map(|w| (bound * ((f64::from(w) + 0.5) / 2_147_483_648.0 - 1.0)) as f32).collect()
}
