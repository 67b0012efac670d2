//! Small random models at widths that a GPU takes: one of each family, every weight a number that bf16 holds.

use crate::answers;
use crate::run::emulated;
use half::bf16;
use llm2vec::device::{DType, Device};
use llm2vec::error::{Error, Result};
use llm2vec::model::config::Config;
use llm2vec::model::lora::Delta;
use llm2vec::model::weights::Source;
use llm2vec::ops::attention::Mask;
use llm2vec::rng::normal;
use llm2vec::tensor::Raw;
use serde_json::json;
use std::collections::BTreeMap;

/// The rank of every adapter pair.
pub const RANK: usize = 8;

pub struct Tiny {
    pub config: Config,
    pub mask: Mask,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    deltas: BTreeMap<(usize, String), Delta>,
}

impl Tiny {
    fn new(family: &str, [heads, groups, width]: [usize; 3], mask: Mask) -> Tiny {
        let config = json!({"model_type": family, "hidden_size": 64, "num_attention_heads": heads,
            "num_key_value_heads": groups, "head_dim": width, "intermediate_size": 96, "num_hidden_layers": 2,
            "vocab_size": 128, "sliding_window": 8, "tie_word_embeddings": family == "llama"});
        let config = Config::parse(&config).unwrap();
        let mut tiny = Tiny { config, mask, tensors: BTreeMap::new(), deltas: BTreeMap::new() };
        tiny.fill();
        tiny
    }

    fn fill(&mut self) {
        let (c, v) = (self.config.width, self.config.vocab);
        let mut named = vec![
            ("model.embed_tokens.weight".to_string(), vec![v, c]),
            ("model.norm.weight".to_string(), vec![c]),
            ("lm_head.weight".to_string(), vec![v, c]),
        ];
        for (layer, p) in (0..self.config.layers).flat_map(|i| self.config.projections().map(|p| (i, p))) {
            let name = format!("model.layers.{layer}.{}.{}", p.group, p.module);
            named.push((format!("{name}.weight"), vec![p.rows, p.cols]));
            if p.bias {
                named.push((format!("{name}.bias"), vec![p.rows]));
            }
            let draw = |seed: usize, n: usize, scale: f64| {
                normal((1000 + 20 * layer + seed) as u64, n).iter().map(|x| (scale * x) as f32).collect()
            };
            let seed = 2 * self.deltas.len();
            let a = draw(seed, RANK * p.cols, (p.cols as f64).powf(-0.5));
            let b = draw(seed + 1, p.rows * RANK, 0.1);
            self.deltas.insert((layer, p.module.into()), Delta { scale: 2.0, rank: RANK, a, b });
        }
        for layer in 0..self.config.layers {
            let norms = ["input_layernorm", "post_attention_layernorm"];
            named.extend(norms.map(|norm| (format!("model.layers.{layer}.{norm}.weight"), vec![c])));
        }
        for (seed, (name, shape)) in named.into_iter().enumerate() {
            let (level, scale) = match shape.len() {
                1 if name.contains("norm") => (1.0, 0.1),
                1 => (0.0, 0.1),
                _ => (0.0, (shape[1] as f64).powf(-0.5)),
            };
            let values = normal(seed as u64, shape.iter().product());
            let bytes = values.iter().flat_map(|x| bf16::from_f64(level + scale * x).to_le_bytes()).collect();
            self.tensors.insert(name, (shape, bytes));
        }
    }

    /// The pair that starts at a place.
    pub fn delta(&self, layer: usize, module: &str) -> Option<&Delta> {
        self.deltas.get(&(layer, module.to_string()))
    }
}

impl Source for Tiny {
    fn tensor(&self, name: &str) -> Result<Raw<'_>> {
        let (name, (shape, data)) =
            self.tensors.get_key_value(name).ok_or_else(|| Error::unsupported(name))?;
        Ok(Raw { name, dtype: DType::Bf16, shape: shape.clone(), data })
    }

    fn deltas(&self, _: usize, _: &str) -> Vec<&Delta> {
        Vec::new()
    }
}

/// Grouped heads; a window; biases and a single key head.
pub fn models() -> [Tiny; 3] {
    [
        Tiny::new("llama", [4, 2, 16], Mask::Full),
        Tiny::new("mistral", [2, 1, 32], Mask::Window(8)),
        Tiny::new("qwen2", [4, 1, 16], Mask::Causal),
    ]
}

/// The emulator, with portable kernels and with Hopper's, and the GPU where one answers.
pub fn devices() -> Vec<Device> {
    if !answers::built() {
        return Vec::new();
    }
    let emulated = [(8, 0), (9, 0)].map(emulated);
    emulated.into_iter().chain(answers::cuda()).map(Device::Gpu).collect()
}
