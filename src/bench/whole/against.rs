//! The same work by PyTorch: what its processes are told, and how far their results are from ours.

use super::work::{LORA_DROPOUT, MOST, RANK, RATE, SCALE, adapters, batch, drawn, ids, masked, recipe};
use super::{Size, Task, Timed};
use crate::bench::rival::{Patience, Python, Script};
use crate::error::{Error, Result, Setting, message};
use crate::format::hf::write_safetensors;
use crate::tensor::Tensor;
use crate::train::config::Stage;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What to compare with.
#[derive(Clone, Debug)]
pub struct Against {
    /// A Python that has torch.
    pub python: String,
    /// The CUDA ordinal, on a GPU.
    pub gpu: Option<usize>,
    /// `torch.compile` as well.
    pub compile: bool,
    /// How long it may take for an answer.
    pub patience: Patience,
}

/// PyTorch's ways, each in a process of its own: one that runs out of memory or never ends takes no other with it.
pub(super) struct Rivals {
    /// By name: `eager`, `compile`.
    pub ways: Vec<(&'static str, Python)>,
    bf16: bool,
    // Weights, ids and adapters, for as long as the processes may read them.
    folder: tempfile::TempDir,
}

impl Rivals {
    /// Starts them; they read nothing yet. `bf16` is what frozen weights are kept in.
    pub fn start(against: &Against, timed: &Timed, task: Task, size: Size, bf16: bool) -> Result<Rivals> {
        if timed.adapted {
            let what = ": this model is an adapter on its base; `llm2vec merge` makes one model of them";
            return Err(Error::usage(message![Setting::Against, what]));
        }
        let folder = tempfile::Builder::new().prefix("llm2vec-bench-").tempdir();
        let folder = folder.map_err(|e| Error::io("what PyTorch is to read", e))?;
        let operands = folder.path().join("operands.safetensors");
        write(&operands, timed, task, size)?;
        let script = if task == Task::Encode { Script::Encode } else { Script::Train };
        let stage = if let Task::Train(stage) = task { Some(stage) } else { None };
        let names = ["eager", "compile"].into_iter().filter(|name| *name == "eager" || against.compile);
        let start = |name| {
            let settings = json!({
                "device": against.gpu.map_or("cpu".into(), |n| format!("cuda:{n}")),
                "threads": rayon::current_num_threads(), "compile": name == "compile", "bf16": bf16,
                "folder": timed.folder, "shape": timed.shape, "layers": timed.config.layers,
                "operands": operands, "length": size.length, "stage": stage, "recompute": size.recompute,
                "queries": size.tokens / size.length / recipe(task).texts, "rank": RANK, "alpha": SCALE * RANK as f64,
                "lora_dropout": LORA_DROPOUT, "attention_dropout": recipe(task).dropout,
                "scale": recipe(task).scale, "rate": RATE, "most": MOST,
                "modules": timed.config.projections().map(|p| p.module),
            });
            Python::start(&against.python, script, &settings, 1, against.patience)
                .map(|python| (name, python))
        };
        let ways = names.map(start).collect::<Result<_>>()?;
        Ok(Rivals { ways, bf16, folder })
    }

    /// How far the first way's result without chance is from ours, relative, by what was compared.
    ///
    /// Errors with the reason where it is not the same work, or nothing came.
    pub fn apart(&mut self, ours: &Tensor, task: Task) -> std::result::Result<BTreeMap<String, f64>, String> {
        let file = self.folder.path().join("result");
        let (_, python) = &mut self.ways[0];
        let answer = python.order(&json!({"check": file}))?;
        if let Some(why) = answer.get("error").and_then(Value::as_str) {
            return Err(why.into());
        }
        let bytes = std::fs::read(&file).map_err(|e| format!("no result: {e}"))?;
        let numbers = bytes.as_chunks().0.iter().map(|four| f64::from(f32::from_le_bytes(*four)));
        let (width, ours, theirs) =
            (ours.shape().last().copied(), ours.to_f64(), numbers.collect::<Vec<_>>());
        if theirs.len() != ours.len() {
            return Err(format!("it has {} numbers, ours {}", theirs.len(), ours.len()));
        }
        if let Some(x) = ours.iter().chain(&theirs).find(|x| !x.is_finite()) {
            return Err(format!("not the same work: one result has {x}"));
        }
        let eps = if self.bf16 { 2f64.powi(-8) } else { 2f64.powi(-23) };
        let found: Vec<(&str, f64, f64)> = match task {
            Task::Encode => {
                let rows =
                    |all: &[f64]| all.chunks(width.unwrap_or(1)).map(<[f64]>::to_vec).collect::<Vec<_>>();
                let pairs = rows(&ours).into_iter().zip(rows(&theirs));
                let worst = pairs.map(|(a, b)| 1.0 - cosine(&a, &b)).fold(0.0, f64::max);
                vec![("1 - cosine", worst, 4.0 * eps)]
            }
            Task::Train(_) => {
                let tolerance = if self.bf16 { 3e-2 } else { 1e-4 };
                // The loss is a difference of numbers as large as the scale.
                let rounding = [recipe(task).scale * eps, 0.0];
                let names = ["loss", "norm of the gradient"].into_iter().zip(rounding);
                let pairs = ours.iter().zip(&theirs);
                let one = |((name, rounding), (a, b)): ((&'static str, f64), (&f64, &f64))| {
                    let size = b.abs().max(f64::MIN_POSITIVE);
                    (name, (a - b).abs() / size, tolerance + rounding / size)
                };
                names.zip(pairs).map(one).collect()
            }
        };
        match found.iter().find(|(_, off, most)| off > most) {
            Some((what, off, _)) => Err(format!("not the same work: {what} {off:.1e} apart")),
            None => Ok(found.into_iter().map(|(name, off, _)| (name.into(), off)).collect()),
        }
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The numbers of a random model, the adapters, the ids as the model sees them, and what MNTP predicts where.
fn write(path: &Path, timed: &Timed, task: Task, size: Size) -> Result<()> {
    let mut list: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let config = &timed.config;
    if timed.shape.is_some() {
        let drawn = drawn();
        list.push(("drawn".into(), Dtype::BF16, vec![drawn.len() / 2], drawn));
    }
    let mut int = |name: &str, values: Vec<i32>| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        list.push((name.into(), Dtype::I32, vec![values.len()], bytes));
    };
    match task {
        Task::Encode => int("ids", ids(config, size.tokens)),
        Task::Train(Stage::Mntp) => {
            let pack = masked(config, size);
            int("ids", pack.ids);
            int("rows", pack.rows);
            int("labels", pack.labels);
        }
        Task::Train(stage) => {
            let all = batch(config, stage, size).sequences;
            int("ids", all.iter().flat_map(|text| text.ids.iter().map(|&id| id as i32)).collect());
        }
    }
    if task != Task::Encode {
        let both = config.projections().into_iter().zip(adapters(config));
        for (p, (module, delta)) in both {
            for (side, shape, values) in [("A", [RANK, p.cols], &delta.a), ("B", [p.rows, RANK], &delta.b)] {
                let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                list.push((format!("{module}.lora_{side}"), Dtype::F32, shape.to_vec(), bytes));
            }
        }
    }
    let mut views = Vec::new();
    for (name, dtype, shape, bytes) in &list {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        views.push((name, view.map_err(|e| Error::file(path, format!("cannot be written: {e}")))?));
    }
    write_safetensors(path, views.iter().map(|(name, view)| (name.to_string(), view)).collect())
}
