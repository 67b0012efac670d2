//! The files behind a model: its checkpoint, and the adapters to merge into it.

use crate::device::DType;
use crate::error::{Error, Result};
use crate::format::hf::{Checkpoint, RawTensor};
use crate::format::peft::{Adapter, Pair};
use crate::model::config::Config;
use crate::model::lora::Delta;
use crate::model::weights::{Source, check};
use crate::pretrained::chain::{self, Link};
use crate::pretrained::settings::Settings;
use crate::tensor::Raw;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A mapped checkpoint and the deltas of its adapters, in the order they were named.
pub struct ModelFiles {
    dir: PathBuf,
    /// The base weights.
    pub checkpoint: Checkpoint,
    /// What is stacked on the bare model, by its record and by `--adapter`.
    pub chain: Vec<Link>,
    deltas: Vec<BTreeMap<(usize, String), Delta>>,
}

impl ModelFiles {
    /// Opens and checks everything against `config`; also gives warnings, one line each.
    pub fn open(dir: &Path, config: &Config, adapters: &[PathBuf]) -> Result<(ModelFiles, Vec<String>)> {
        let checkpoint = Checkpoint::open(dir)?;
        let mut files =
            ModelFiles { dir: dir.to_path_buf(), checkpoint, chain: Vec::new(), deltas: Vec::new() };
        check(config, &files)?;
        let mut warnings = Vec::new();
        let recorded = |folder: &Path| Ok(Settings::read(folder)?.and_then(|s| s.adapters));
        files.chain = recorded(dir)?.unwrap_or_default();
        for folder in adapters {
            let adapter = Adapter::open(folder)?;
            if let Some(below) = recorded(folder)? {
                chain::check(folder, &below, &files.chain)?;
            }
            files.chain.push(Link::of(&adapter));
            warnings.extend(other_base(dir, config, &adapter));
            files.deltas.push(fitting(config, adapter)?);
        }
        Ok((files, warnings))
    }

    /// The element type of the checkpoint's large matrices.
    pub fn checkpoint_dtype(&self) -> Option<DType> {
        self.checkpoint.find("model.layers.0.mlp.down_proj.weight").and_then(|t| element_type(t.dtype))
    }

    /// The pairs of adapter number `which`, for use beside the frozen weights.
    pub fn adapter<'a>(&'a self, which: usize) -> impl Fn(usize, &str) -> Option<&'a Delta> {
        move |layer, module| self.deltas.get(which)?.get(&(layer, module.to_string()))
    }

    /// The largest rank of adapter number `which`.
    pub fn rank(&self, which: usize) -> usize {
        self.deltas.get(which).into_iter().flat_map(|a| a.values()).map(|d| d.rank).max().unwrap_or(0)
    }

    /// A file tensor as the model reads it, or the reason why not.
    pub fn raw<'a>(&self, t: RawTensor<'a>) -> Result<Raw<'a>> {
        let Some(dtype) = element_type(t.dtype) else {
            let what = format!("{} is {:?}; expected F32, F16 or BF16", t.name, t.dtype);
            return Err(Error::file(&self.dir, what));
        };
        Ok(Raw { name: t.name, dtype, shape: t.shape, data: t.data })
    }
}

fn element_type(t: safetensors::Dtype) -> Option<DType> {
    match t {
        safetensors::Dtype::F32 => Some(DType::F32),
        safetensors::Dtype::F16 => Some(DType::F16),
        safetensors::Dtype::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

impl Source for ModelFiles {
    fn tensor(&self, name: &str) -> Result<Raw<'_>> {
        match self.checkpoint.find(name) {
            Some(t) => self.raw(t),
            None => Err(Error::file(&self.dir, format!("the checkpoint has no tensor {name}"))),
        }
    }

    fn deltas(&self, layer: usize, module: &str) -> Vec<&Delta> {
        let key = (layer, module.to_string());
        self.deltas.iter().filter_map(|adapter| adapter.get(&key)).collect()
    }
}

/// A line if the adapter says it was made for another base than the model in `dir`.
fn other_base(dir: &Path, config: &Config, adapter: &Adapter) -> Option<String> {
    let base = adapter.config.base_model_name_or_path.as_deref().filter(|b| !b.is_empty())?;
    let stem = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_lowercase();
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf()).to_string_lossy().into_owned();
    let snapshot = format!("models--{}", base.replace('/', "--"));
    let same = stem(base) == stem(&full) || stem(base) == stem(&config.name) || full.contains(&snapshot);
    let adapter = adapter.dir.display();
    (!same).then(|| format!("adapter {adapter} names the base \"{base}\", the model is {full}"))
}

/// The adapter's pairs by place, each of the shape that `config` gives its projection.
pub fn fitting(config: &Config, adapter: Adapter) -> Result<BTreeMap<(usize, String), Delta>> {
    let (dir, projections) = (adapter.dir.clone(), config.projections());
    let mut map = BTreeMap::new();
    for Pair { layer, module, rank, scale, a, b, inputs, outputs } in adapter.pairs {
        let Some(p) = projections.iter().find(|p| p.module == module && layer < config.layers) else {
            let what = format!(
                "has {module} of layer {layer}, the model has {} layers and no such place",
                config.layers
            );
            return Err(Error::file(dir, what));
        };
        if [outputs, inputs] != [p.rows, p.cols] {
            let what = format!(
                "{module} of layer {layer} is for a [{outputs}, {inputs}] weight, the model's is [{}, {}]",
                p.rows, p.cols
            );
            return Err(Error::file(dir, what));
        }
        map.insert((layer, module), Delta { scale, rank, a, b });
    }
    Ok(map)
}
