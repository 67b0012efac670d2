//! Numbers from HF Transformers: every model folder under `$GOLDEN_DIR` (default: tests/golden, and ../shared/golden
//! where it is there) in the layout of tests/golden/README.md, compared state by state.
//!
//! A golden's `model` is a folder under the golden's root or, failing that, under `$GOLDEN_MODELS` (default:
//! tests/models, then ../shared/data/models).

use crate::common;
mod configs;
mod layers;
mod training;

use common::{Loaded, here};
use llm2vec::device::Device;
use llm2vec::format::hf::{Checkpoint, read_json};
use llm2vec::ops::attention::Mask;
use llm2vec::ops::pool::{Pooling, pool_fwd};
use llm2vec::tensor::Tensor;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One golden folder and a count of what has been compared.
struct Golden {
    name: String,
    tensors: Checkpoint,
    json: Value,
    model: Loaded,
    compared: usize,
    worst: f64,
}

fn roots() -> Vec<PathBuf> {
    match std::env::var_os("GOLDEN_DIR") {
        Some(dir) => vec![dir.into()],
        None => vec![here("tests/golden"), here("../shared/golden")],
    }
}

fn model_folder(root: &Path, name: &str) -> Option<PathBuf> {
    let more = match std::env::var_os("GOLDEN_MODELS") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => vec![here("tests/models"), here("../shared/data/models")],
    };
    let places = std::iter::once(root.to_path_buf()).chain(more).map(|p| p.join(name));
    places.into_iter().find(|p| p.join("config.json").is_file())
}

#[test]
fn every_state_equals_transformers() {
    let (mut folders, mut numbers) = (0, 0);
    for root in roots() {
        let Ok(entries) = std::fs::read_dir(&root) else {
            println!("skipped: no {}", root.display());
            continue;
        };
        let mut entries: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        entries.sort();
        for dir in entries.into_iter().filter(|d| d.join("golden.json").is_file()) {
            let json = read_json(&dir.join("golden.json")).unwrap();
            let name = json["model"].as_str().unwrap();
            let Some(folder) = model_folder(&root, name) else {
                println!("skipped: {} (no folder for its model {name})", dir.display());
                continue;
            };
            let mut golden = Golden {
                name: dir.file_name().unwrap().to_string_lossy().into_owned(),
                tensors: Checkpoint::open_file(&dir.join("golden.safetensors")).unwrap(),
                model: Loaded::load(&folder, Device::cpu(), &[], None),
                json,
                compared: 0,
                worst: 0.0,
            };
            golden.states();
            golden.layers();
            golden.pools();
            golden.instructions();
            golden.greedy();
            golden.adapters(&folder, &dir.join("lora_init"));
            golden.training(&folder, &dir.join("lora_init"));
            println!("{}: {} numbers, worst off by {:.1e}", golden.name, golden.compared, golden.worst);
            folders += 1;
            numbers += golden.compared;
        }
    }
    println!("compared {numbers} numbers of {folders} golden folders");
    assert!(folders > 0 && numbers > 10_000, "no golden folder found");
}

impl Golden {
    fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let data = self.tensors.get(name)?.data;
        Some(data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
    }

    fn ints(&self, name: &str) -> Option<Vec<i32>> {
        let data = self.tensors.get(name)?.data;
        Some(data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as i32).collect())
    }

    /// atol 2e-4 + rtol 1e-4: the tolerance that the goldens' own README states for states and pools.
    fn compare(&mut self, what: &str, got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{}: {what}", self.name);
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let off = (g - w).abs();
            assert!(off <= 2e-4 + 1e-4 * w.abs(), "{}: {what}[{i}] = {g}, Transformers says {w}", self.name);
            self.worst = self.worst.max(off);
        }
        self.compared += want.len();
    }

    fn sentences(&self) -> Vec<Vec<i32>> {
        (0..).map_while(|k| self.ints(&format!("ids.{k:02}"))).collect()
    }

    fn states(&mut self) {
        let window = self.model.config.window;
        let masks = [
            ("hidden", Some(Mask::Full)),
            ("causal.hidden", Some(window.map_or(Mask::Causal, |_| Mask::Causal))),
            ("window.hidden", window.map(Mask::Window)),
            ("causal.window.hidden", window.map(Mask::CausalWindow)),
        ];
        let sentences = self.sentences();
        let batch: Vec<&[i32]> = sentences.iter().map(Vec::as_slice).collect();
        let c = self.model.config.width;
        for (prefix, mask) in masks {
            let Some(mask) = mask else { continue };
            let hidden = self.model.hidden(&batch, mask);
            for (k, states) in hidden.iter().enumerate() {
                let Some(want) = self.floats(&format!("{prefix}.{k:02}")) else { continue };
                let kept = self.ints(&format!("pos.{k:02}")).unwrap();
                let got: Vec<f64> =
                    kept.iter().flat_map(|&p| states[p as usize * c..][..c].to_vec()).collect();
                self.compare(&format!("{prefix}.{k:02}"), &got, &want);
            }
        }
    }

    /// The stream before each block, and after the final norm.
    fn layers(&mut self) {
        let Some(k) = self.json["layers_sentence"].as_u64() else { return };
        let ids = self.ints(&format!("ids.{k:02}")).unwrap();
        let hidden = self.model.hidden(&[&ids], Mask::Full).remove(0);
        let layers = self.model.config.layers;
        let streams = self.model.streams();
        for (i, stream) in streams.iter().take(layers).chain([&hidden]).enumerate() {
            if let Some(want) = self.floats(&format!("layer.{i}")) {
                self.compare(&format!("layer.{i}"), stream, &want);
            }
        }
    }

    fn pool(&self, states: &[f64], span: [i32; 2], pooling: Pooling) -> Vec<f64> {
        let c = self.model.config.width;
        let dtype = self.model.device.statistic();
        let x = Tensor::from_f64(dtype, &[states.len() / c, c], states.iter().copied());
        let mut spans = Tensor::zeros(llm2vec::device::DType::I32, &[1, 2]);
        spans.host_mut().unwrap().copy_from_slice(&span);
        let mut y = Tensor::zeros(dtype, &[1, c]);
        pool_fwd(&self.model.device, &mut y, &x, &spans, pooling).unwrap();
        y.to_f64()
    }

    fn pools(&mut self) {
        let sentences = self.sentences();
        let batch: Vec<&[i32]> = sentences.iter().map(Vec::as_slice).collect();
        let hidden = self.model.hidden(&batch, Mask::Full);
        for (name, pooling) in
            [("mean", Pooling::Mean), ("weighted_mean", Pooling::WeightedMean), ("last_token", Pooling::Last)]
        {
            let Some(want) = self.floats(&format!("pool.{name}")) else { continue };
            let got: Vec<f64> = hidden
                .iter()
                .zip(&sentences)
                .flat_map(|(h, ids)| self.pool(h, [0, ids.len() as i32], pooling))
                .collect();
            self.compare(&format!("pool.{name}"), &got, &want);
        }
    }

    fn instructions(&mut self) {
        let Some(want) = self.floats("instr.pool") else { return };
        let mut got = Vec::new();
        for case in self.json["instructions"].as_array().unwrap().clone() {
            let ids: Vec<i32> =
                case["ids"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect();
            let (end, n) = (ids.len() as i32, case["pooled_last_n"].as_i64().unwrap() as i32);
            let hidden = self.model.hidden(&[&ids], Mask::Full).remove(0);
            for pooling in [Pooling::Mean, Pooling::WeightedMean, Pooling::Last] {
                got.extend(self.pool(&hidden, [end - n, end], pooling));
            }
        }
        self.compare("instr.pool", &got, &want);
    }

    /// Causal generation: the greedy continuation through the tied head is the same token for token.
    fn greedy(&mut self) {
        let Some(want) = self.ints("causal.greedy") else { return };
        let prompt = want.len() - 24;
        let c = self.model.config.width;
        assert!(self.model.config.tied, "{}: greedy goldens are of tied models", self.name);
        let hidden = self.model.hidden(&[&want], Mask::Causal).remove(0);
        let table = self.model.weights.embed.to_f64();
        for t in prompt..want.len() {
            let state = &hidden[(t - 1) * c..][..c];
            let logit = |row: &[f64]| row.iter().zip(state).map(|(a, b)| a * b).sum::<f64>();
            let best =
                table.chunks_exact(c).map(logit).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
            assert_eq!(best as i32, want[t], "{}: greedy token {t}", self.name);
            self.compared += 1;
        }
    }

    /// The adapter merged into the weights, and live beside them.
    fn adapters(&mut self, folder: &Path, adapter: &Path) {
        let Some(want) = self.floats("lora.hidden") else { return };
        let row = self.ints("simcse.input_ids").unwrap();
        let mask = self.ints("simcse.attention_mask").unwrap();
        let width = self.tensors.get("simcse.input_ids").unwrap().shape[1];
        let ids: Vec<i32> =
            row[..width].iter().zip(&mask[..width]).filter(|(_, m)| **m == 1).map(|(i, _)| *i).collect();
        let mut merged = Loaded::load(folder, Device::cpu(), &[adapter.to_path_buf()], None);
        let mut live = Loaded::load(folder, Device::cpu(), &[], Some(adapter));
        let merged = merged.hidden(&[&ids], Mask::Full).remove(0);
        let live = live.hidden(&[&ids], Mask::Full).remove(0);
        self.compare("lora.hidden (merged)", &merged, &want);
        self.compare("lora.hidden (live)", &live, &want);
        assert!(common::distance(&merged, &live) < 1e-4, "{}: merged and live adapters differ", self.name);
    }
}
