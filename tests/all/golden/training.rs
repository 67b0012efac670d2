//! The training half of a golden folder: losses, LoRA gradients, AdamW's trajectory, contrastive scores.

use super::{Golden, Path};
use llm2vec::device::Device;
use llm2vec::memory::Arena;
use llm2vec::model::state::Keep;
use llm2vec::model::weights::Storage;
use llm2vec::ops::adamw::AdamW;
use llm2vec::ops::attention::Mask;
use llm2vec::ops::contrastive::{InfoNce, LossDtype};
use llm2vec::ops::pool::Pooling;
use llm2vec::pretrained::files::ModelFiles;
use llm2vec::pretrained::names::Located;
use llm2vec::tensor::Tensor;
use llm2vec::train::contrastive::{Batch, Contrastive, Rule, Sequence};
use llm2vec::train::learner::{Head, Learner, Size};
use llm2vec::train::mask::Masked;
use llm2vec::train::mntp::Mntp;

/// Tokens of the largest golden batch, with room.
const TOKENS: usize = 2048;

impl Golden {
    /// A learner with `lora_init` live, its head frozen.
    fn learner(&self, folder: &Path, adapter: &Path) -> (Learner, Arena) {
        let config = self.model.config.clone();
        let (files, _) = ModelFiles::open(&Located::folder(folder), &config, &[]).unwrap();
        let (live, _) =
            ModelFiles::open(&Located::folder(folder), &config, &[Located::folder(adapter)]).unwrap();
        let size = Size {
            tokens: TOKENS,
            positions: 1024,
            rank: live.rank(0),
            keep: Keep::All,
            storage: Storage::Real,
            head: Head::Frozen,
        };
        let mut arena = Arena::new(&Device::cpu());
        let mut learner = Learner::new(&mut arena, &config, Mask::Full, size, live.adapter(0));
        learner.load(&files).unwrap();
        (learner, arena)
    }

    /// The rows of a padded batch without their padding, and the first column of each.
    fn rows(&self, name: &str) -> (Vec<Vec<i32>>, Vec<usize>) {
        let width = self.tensors.get(&format!("{name}.input_ids")).unwrap().shape[1];
        let ids = self.ints(&format!("{name}.input_ids")).unwrap();
        let mask = self.ints(&format!("{name}.attention_mask")).unwrap();
        let real = ids.chunks(width).zip(mask.chunks(width)).map(|(ids, mask)| {
            let first = mask.iter().position(|&m| m == 1).unwrap();
            assert!(mask[first..].iter().all(|&m| m == 1), "left padding only");
            (ids[first..].to_vec(), first)
        });
        real.unzip()
    }

    pub fn training(&mut self, folder: &Path, adapter: &Path) {
        self.masked(folder, adapter);
        self.contrastive(folder, adapter, "simcse");
        self.contrastive(folder, adapter, "sup");
    }

    /// MNTP: loss, gradients, and five steps of AdamW.
    fn masked(&mut self, folder: &Path, adapter: &Path) {
        if self.floats("mntp.loss").is_none() {
            return;
        }
        let (rows, firsts) = self.rows("mntp");
        let labels = self.ints("mntp.labels").unwrap();
        let width = labels.len() / rows.len();
        let mut pack = Masked { starts: vec![0], ..Masked::default() };
        for ((ids, first), labels) in rows.iter().zip(firsts).zip(labels.chunks(width)) {
            let from = pack.ids.len() as i32;
            for (i, &label) in labels[first..].iter().enumerate().skip(1).filter(|(_, l)| **l >= 0) {
                pack.rows.push(from + i as i32 - 1);
                pack.labels.push(label);
            }
            pack.ids.extend(ids);
            pack.starts.push(pack.ids.len() as i32);
        }
        let (mut learner, mut arena) = self.learner(folder, adapter);
        let mut mntp = Mntp::new(&mut arena, &learner.model.config, TOKENS);
        let noise = Default::default();
        let by = |step| AdamW { rate: 5e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01, step };
        let mut losses = Vec::new();
        for step in 1..=5 {
            losses.push(mntp.learn(&mut learner, &pack, &noise, 1.0).unwrap().loss);
            if step == 1 {
                self.gradients("mntp", &learner);
            }
            learner.update(by(step), 0.0).unwrap();
        }
        losses.push(mntp.evaluate(&mut learner, &pack).unwrap().loss);
        let want = self.floats("mntp.loss").unwrap()[0];
        assert!((losses[0] - want).abs() < 1e-4, "{}: MNTP loss {} {want}", self.name, losses[0]);
        let want = self.floats("adamw.losses").unwrap();
        for (step, (got, want)) in losses.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 1e-3, "{}: loss after {step} steps {got} {want}", self.name);
        }
        self.compared += 1 + want.len();
        for (layer, module, delta) in learner.model.weights.adapter().unwrap() {
            for (side, got) in [("A", delta.a), ("B", delta.b)] {
                let name = format!("adamw.final.{}", tensor_name(layer, module, side));
                let want = self.floats(&name).unwrap();
                let off = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
                assert!(off < 2e-3, "{}: {name} is off by {off}", self.name);
                self.compared += want.len();
            }
        }
    }

    /// SimCSE (a pass twice, without dropout) or triples: scores, loss and gradients; in chunks the same.
    fn contrastive(&mut self, folder: &Path, adapter: &Path, stage: &str) {
        if self.floats(&format!("{stage}.loss")).is_none() {
            return;
        }
        let parts = match stage {
            "simcse" => vec!["simcse", "simcse"],
            _ => vec!["sup.query", "sup.positive", "sup.negative"],
        };
        let texts: Vec<Vec<i32>> = parts.iter().flat_map(|p| self.rows(p).0).collect();
        let queries = texts.len() / parts.len();
        let sequence =
            |ids: &Vec<i32>| Sequence { ids: ids.iter().map(|&id| id as u32).collect(), span: 0..ids.len() };
        let batch = Batch { sequences: texts.iter().map(sequence).collect(), queries, same: None };
        for chunk in [0, 2] {
            let rule = Rule {
                pooling: Pooling::Mean,
                loss: InfoNce { scale: 20.0, margin: None, dtype: LossDtype::F32 },
                chunk,
            };
            let (mut learner, mut arena) = self.learner(folder, adapter);
            let c = learner.model.config.width;
            let mut loss = Contrastive::new(&mut arena, c, queries, texts.len() - queries, texts.len(), &[]);
            let outcome = loss.learn(&mut learner, &batch, rule, None, 1.0).unwrap();
            let want = self.floats(&format!("{stage}.loss")).unwrap()[0];
            assert!(
                (outcome.loss - want).abs() < 1e-4,
                "{}: {stage} loss {} {want}",
                self.name,
                outcome.loss
            );
            let [q, candidates] = loss.vectors().each_ref().map(Tensor::to_f64);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> =
                q.chunks(c).flat_map(|q| candidates.chunks(c).map(move |k| 20.0 * dot(q, k))).collect();
            let want = self.floats(&format!("{stage}.scores")).unwrap();
            let off = super::common::distance(&scores, &want);
            assert!(off < 1e-3, "{}: {stage} scores are off by {off}", self.name);
            self.compared += 1 + want.len();
            self.gradients(stage, &learner);
        }
    }

    /// Every LoRA gradient to 1e-3 of the tensor's norm, and the norm of all.
    fn gradients(&mut self, stage: &str, learner: &Learner) {
        let heads = learner.model.config.heads;
        let (q, kv, f) =
            (heads.query * heads.width, heads.key * heads.width, learner.model.config.feed_forward);
        let c = learner.model.config.width;
        let parts: [&[(&str, usize)]; 4] = [
            &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)],
            &[("o_proj", c)],
            &[("gate_proj", f), ("up_proj", f)],
            &[("down_proj", c)],
        ];
        let tensors: Vec<&Tensor> = learner.grads().collect();
        for (i, pair) in tensors.chunks(2).enumerate() {
            let (a, b) = (pair[0].to_f64(), pair[1].to_f64());
            let (rank, k) = (pair[1].shape()[1], pair[0].shape()[1]);
            let mut first = 0;
            for (s, &(module, rows)) in parts[i % 4].iter().enumerate() {
                let of = [&a[s * rank * k..][..rank * k], &b[first * rank..][..rows * rank]];
                for (side, got) in ["A", "B"].into_iter().zip(of) {
                    let name = format!("{stage}.grad.{}", tensor_name(i / 4, module, side));
                    let want = self.floats(&name).unwrap_or_else(|| panic!("no {name}"));
                    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let difference: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
                    let (off, size) = (norm(&difference), norm(&want));
                    assert!(off <= 1e-3 * size, "{}: {name} is off by {off} of {size}", self.name);
                    self.compared += want.len();
                }
                first += rows;
            }
        }
        let total = tensors.iter().flat_map(|t| t.to_f64()).map(|x| x * x).sum::<f64>().sqrt();
        let want = self.floats(&format!("{stage}.grad_norm_total")).unwrap()[0];
        assert!((total / want - 1.0).abs() < 1e-3, "{}: {stage} norm {total} {want}", self.name);
    }
}

fn tensor_name(layer: usize, module: &str, side: &str) -> String {
    let block = if ["q_proj", "k_proj", "v_proj", "o_proj"].contains(&module) { "self_attn" } else { "mlp" };
    format!("base_model.model.layers.{layer}.{block}.{module}.lora_{side}.weight")
}
