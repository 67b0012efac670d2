//! The files behind a model: which folders a name stands for, the checkpoint, and the adapters to merge into it.

use crate::device::DType;
use crate::error::{Error, Message, Result, Setting, message};
use crate::format::hf::{Checkpoint, RawTensor, read_json};
use crate::format::peft::{self, Adapter, Pair};
use crate::model::config::Config;
use crate::model::lora::Delta;
use crate::model::weights::{Source, check};
use crate::pretrained::chain::{self, Link};
use crate::pretrained::loading::Loading;
use crate::pretrained::names::{self, Located, locate, stem};
use crate::pretrained::sentence_transformers::Modules;
use crate::pretrained::settings::Settings;
use crate::tensor::Raw;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folders behind the names of a model and its adapters.
pub struct Stack {
    /// The folder of configuration and tokenizer, by the name that was asked for.
    pub asked: Located,
    /// The folder of the weights: the same, or the base of the adapter that `asked` is.
    pub base: Located,
    /// Adapters from the base up.
    pub adapters: Vec<Located>,
    /// What sentence-transformers' files in `asked` say.
    pub modules: Option<Modules>,
    /// Of `asked`, or of the base where `asked` has none.
    pub config: Value,
}

/// An adapter on an adapter on … : more than anyone has, and an end to two that name each other.
const DEEPEST: usize = 8;

impl Stack {
    /// Finds the folders. A model may be a whole one, or an adapter that names its base: what training writes, and the
    /// published layout. Of the latter, what `…-mntp-supervised` was trained on top of is found by its name.
    pub fn open(model: &str, adapters: &[String]) -> Result<Stack> {
        let mut asked = locate(model)?;
        let modules = Modules::read(&asked.dir)?;
        if let Some(modules) = &modules {
            asked.dir.clone_from(&modules.transformer);
        }
        let (mut base, mut stacked) = (asked.clone(), Vec::new());
        while is_adapter(&base.dir) {
            if stacked.len() == DEEPEST {
                return Err(Error::file(&asked.dir, format!("{DEEPEST} adapters on adapters and no model")));
            }
            let below = below(&base)?;
            stacked.insert(0, std::mem::replace(&mut base, below));
        }
        for name in names::split(adapters) {
            stacked.push(locate(&name)?);
        }
        let config = [&asked, &base].map(|at| at.dir.join("config.json"));
        let config = config.iter().find(|path| path.exists()).unwrap_or(&config[1]);
        let mut config = read_json(config)?;
        if let (Some(keys), Some(modules)) = (config.as_object_mut(), &modules) {
            keys.extend(modules.config.clone());
        }
        Ok(Stack { asked, base, adapters: stacked, modules, config })
    }

    /// The folder that holds `tokenizer.json`.
    pub fn tokenizer_dir(&self) -> &Path {
        let has = |at: &&Located| at.dir.join("tokenizer.json").exists();
        [&self.asked, &self.base].into_iter().find(has).map_or(&self.asked.dir, |at| &at.dir)
    }

    /// The folders in the order in which a file is looked for.
    pub fn dirs(&self) -> [&Path; 2] {
        [&self.asked.dir, &self.base.dir]
    }

    /// The names that may have a template, the most telling first.
    pub fn names(&self) -> [&str; 2] {
        [&self.asked.name, &self.base.name]
    }
}

/// Whether the folder holds an adapter and no weights of its own.
fn is_adapter(dir: &Path) -> bool {
    let whole = ["model.safetensors", "model.safetensors.index.json"].iter().any(|n| dir.join(n).exists());
    !whole && dir.join(peft::CONFIG).exists()
}

/// What the adapter at `at` is to be put on: by its name, else by its configuration.
fn below(at: &Located) -> Result<Located> {
    let recorded = Settings::read(&at.dir)?.is_some_and(|s| s.adapters.is_some());
    if let Some(name) = chain::implied(&at.name).filter(|_| !recorded) {
        return locate(name).map_err(|e| {
            let what = format!("by its name it was trained on top of {}: ", stem(name));
            Error::file(&at.name, message![what, e.message()])
        });
    }
    let path = at.dir.join(peft::CONFIG);
    let json = read_json(&path)?;
    let text = |key: &str| json.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(name) = text("base_model_name_or_path") else {
        let what = "names no base_model_name_or_path; give the base as ";
        return Err(Error::file(path, message![what, as_adapter()]));
    };
    let name = text("revision").map_or(name.to_string(), |revision| format!("{name}@{revision}"));
    locate(&name).map_err(|e| {
        let missing = message!["the base that it names is not here: ", e.message()];
        Error::file(path, message![missing, "; or give another as ", as_adapter()])
    })
}

/// Where a base and the adapter beside it belong.
fn as_adapter() -> Message {
    message![Setting::Model, " and this folder as ", Setting::Adapters]
}

/// A mapped checkpoint and the deltas of its adapters, in the order they were named.
pub struct ModelFiles {
    dir: PathBuf,
    /// The base weights.
    pub checkpoint: Checkpoint,
    /// What is stacked on the bare model, by its record and by the adapters named.
    pub chain: Vec<Link>,
    deltas: Vec<BTreeMap<(usize, String), Delta>>,
    loading: Loading,
}

impl ModelFiles {
    /// Opens and checks everything against `config`; also gives warnings, one line each.
    pub fn open(base: &Located, config: &Config, adapters: &[Located]) -> Result<(ModelFiles, Vec<String>)> {
        let checkpoint = Checkpoint::open(&base.dir)?;
        let (dir, loading) = (base.dir.clone(), Loading::new(checkpoint.bytes()));
        let mut files = ModelFiles { dir, checkpoint, chain: Vec::new(), deltas: Vec::new(), loading };
        check(config, &files)?;
        let mut warnings = Vec::new();
        let recorded = |folder: &Path| Ok(Settings::read(folder)?.and_then(|s| s.adapters));
        files.chain = recorded(&base.dir)?.unwrap_or_default();
        for at in adapters {
            let adapter = Adapter::open(&at.dir)?;
            match recorded(&at.dir)? {
                Some(below) => chain::check(&at.dir, &below, &files.chain)?,
                None => warnings.extend(chain::check_implied(at, &files.chain)?),
            }
            files.chain.push(Link::new(at, &adapter));
            warnings.extend(other_base(base, config, &adapter));
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

    fn taken(&self, bytes: Option<usize>) {
        self.loading.taken(bytes);
    }
}

/// A line if the adapter says it was made for another base than `model`.
fn other_base(model: &Located, config: &Config, adapter: &Adapter) -> Option<String> {
    let base = adapter.config.base_model_name_or_path.as_deref().filter(|b| !b.is_empty())?;
    let full = model.dir.canonicalize().unwrap_or_else(|_| model.dir.clone()).to_string_lossy().into_owned();
    let snapshot = format!("models--{}", base.replace('/', "--"));
    let same = [model.stem(), stem(&config.name)].contains(&stem(base)) || full.contains(&snapshot);
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
