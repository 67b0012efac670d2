//! LoRA adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{
    atomic,
    hf::{Checkpoint, Floats, RawTensor, read_json, write_safetensors},
};
use crate::error::{Error, Result, Setting, message};

/// The name of the configuration's file.
pub const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// The projections that an adapter may be on, and where in the layer each is.
const MODULES: [(&str, &str); 7] = [
    ("q_proj", "self_attn"),
    ("k_proj", "self_attn"),
    ("v_proj", "self_attn"),
    ("o_proj", "self_attn"),
    ("gate_proj", "mlp"),
    ("up_proj", "mlp"),
    ("down_proj", "mlp"),
];

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The rank where `rank_pattern` names no other.
    pub r: usize,
    /// The numerator of the scale where `alpha_pattern` names no other.
    pub lora_alpha: f64,
    /// Whether the scale is alpha / √r instead of alpha / r.
    pub use_rslora: bool,
    /// The projections by name, or one pattern; for information, since the tensors' names decide.
    pub target_modules: Vec<String>,
    /// Other ranks, by module name or path.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, by module name or path.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The model it was trained on.
    pub base_model_name_or_path: Option<String>,
    /// The dropout it was trained with.
    pub lora_dropout: f64,
}

impl AdapterConfig {
    /// Reads `adapter_config.json` in `dir`. Keys without a meaning here are ignored; those that change what the
    /// tensors mean, and that we do not implement, are refused by name.
    pub fn read(dir: &Path) -> Result<AdapterConfig> {
        let path = dir.join(CONFIG);
        let json = read_json(&path)?;
        let Some(keys) = json.as_object() else {
            return Err(Error::file(&path, "a JSON object was wanted; save the adapter with PEFT"));
        };
        refuse(&path, keys)?;
        let keys = Keys { path: &path, keys };
        let Some(r) = keys.get("r", "a whole number above 0", rank)? else {
            return Err(Error::file(&path, "no \"r\", the rank was wanted; save the adapter with PEFT"));
        };
        let Some(lora_alpha) = keys.get("lora_alpha", "a number", Value::as_f64)? else {
            return Err(Error::file(
                &path,
                "no \"lora_alpha\", a number was wanted; save the adapter with PEFT",
            ));
        };
        Ok(AdapterConfig {
            r,
            lora_alpha,
            use_rslora: keys.get("use_rslora", "true or false", Value::as_bool)?.unwrap_or(false),
            target_modules: keys
                .get("target_modules", "a string or a list of them", names)?
                .unwrap_or_default(),
            rank_pattern: keys
                .get("rank_pattern", "an object of ranks", |v| pattern(v, rank))?
                .unwrap_or_default(),
            alpha_pattern: keys
                .get("alpha_pattern", "an object of numbers", |v| pattern(v, Value::as_f64))?
                .unwrap_or_default(),
            base_model_name_or_path: keys
                .get("base_model_name_or_path", "a string", |v| v.as_str().map(str::to_string))?,
            lora_dropout: keys.get("lora_dropout", "a number", Value::as_f64)?.unwrap_or(0.0),
        })
    }

    /// The rank and the scale of one module.
    pub fn rank_and_scale(&self, layer: usize, module: &str) -> Result<(usize, f64)> {
        let part = MODULES.iter().find(|(name, _)| *name == module).map_or("", |(_, part)| part);
        let path = format!("model.layers.{layer}.{part}.{module}");
        let rank = by_pattern("rank_pattern", &self.rank_pattern, &path)?.unwrap_or(self.r);
        let alpha = by_pattern("alpha_pattern", &self.alpha_pattern, &path)?.unwrap_or(self.lora_alpha);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / divisor))
    }

    fn to_json(&self) -> Value {
        // PEFT's type for alpha is int, though it takes floats: whole numbers are written as such.
        let number = |v: f64| if v.fract() == 0.0 && v.abs() < 1e15 { json!(v as i64) } else { json!(v) };
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": self.rank_pattern,
            "revision": null,
            "target_modules": self.target_modules,
            "task_type": "FEATURE_EXTRACTION",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// Typed look-ups that name the key in their error; null counts as absent.
struct Keys<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn get<T>(&self, key: &str, wanted: &str, take: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match take(value) {
                Some(taken) => Ok(Some(taken)),
                None => {
                    Err(Error::file(self.path, format!("{key:?} is {}, {wanted} was wanted", brief(value))))
                }
            },
        }
    }
}

/// A value short enough for one line of error.
pub(crate) fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { text.chars().take(57).chain("...".chars()).collect() } else { text }
}

fn rank(value: &Value) -> Option<usize> {
    // A rank beyond this is no low rank, and would overflow the arithmetic after it.
    value.as_u64().filter(|r| (1..=1 << 20).contains(r)).and_then(|r| usize::try_from(r).ok())
}

fn names(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|v| v.as_str().map(str::to_string)).collect(),
        _ => None,
    }
}

fn pattern<T>(value: &Value, take: impl Fn(&Value) -> Option<T>) -> Option<BTreeMap<String, T>> {
    value.as_object()?.iter().map(|(key, v)| Some((key.clone(), take(v)?))).collect()
}

/// Names what would make the tensors mean something else than a plain LoRA.
fn refuse(path: &Path, keys: &Map<String, Value>) -> Result<()> {
    let unset = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(v) => v.is_empty(),
        Value::Object(v) => v.is_empty(),
        _ => false,
    };
    let is = |v: &Value, known: &[&str]| v.as_str().is_some_and(|v| known.contains(&v));
    let refused = |key: &str, wanted: &str| {
        let value = keys.get(key).map_or("absent".to_string(), brief);
        let what = format!("{}: {key} is {value}, which is not supported; {wanted}", path.display());
        Err(Error::unsupported(what))
    };
    if !keys.get("peft_type").is_some_and(|v| is(v, &["LORA"])) {
        return refused("peft_type", "\"LORA\" was wanted");
    }
    if !keys.get("bias").is_none_or(|v| unset(v) || is(v, &["none"])) {
        return refused("bias", "\"none\" was wanted");
    }
    for key in [
        "use_dora",
        "modules_to_save",
        "fan_in_fan_out",
        "layer_replication",
        "lora_bias",
        "use_qalora",
        "alora_invocation_tokens",
        "trainable_token_indices",
        "target_parameters",
        "arrow_config",
        "kasa_config",
        "use_bdlora",
    ] {
        if !keys.get(key).is_none_or(unset) {
            return refused(key, "a plain LoRA was wanted; merge it with PEFT and give the merged model");
        }
    }
    // The others (PiSSA, OLoRA, CorDA, LoftQ) change the base weights too, so the tensors alone would be wrong.
    let init = keys.get("init_lora_weights");
    let plain = |v: &Value| v.is_null() || v.is_boolean() || is(v, &["gaussian", "eva", "orthogonal"]);
    if !init.is_none_or(plain) {
        return refused(
            "init_lora_weights",
            "an adapter on unchanged base weights was wanted; convert it with PEFT",
        );
    }
    Ok(())
}

/// PEFT's rule: a key fits the module that it names, or whose path ends in it.
fn by_pattern<T: Copy + PartialEq>(
    field: &str,
    pattern: &BTreeMap<String, T>,
    path: &str,
) -> Result<Option<T>> {
    let mut found: Option<(&str, T)> = None;
    for (key, value) in pattern {
        // PEFT takes keys as regular expressions; a wrong guess here would be a silently wrong scale.
        let literal = key.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
        if literal.contains(['*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '\\', '^', '$']) {
            let what = format!(
                "adapter {field}: {key:?} is a regular expression, a module name was wanted; write them out"
            );
            return Err(Error::unsupported(what));
        }
        let anchored = key.starts_with('^');
        let ends =
            !anchored && path.strip_suffix(literal.as_str()).is_some_and(|before| before.ends_with('.'));
        if path != literal && path.strip_prefix("model.") != Some(literal.as_str()) && !ends {
            continue;
        }
        match found {
            // The file's order, by which PEFT chooses, is not kept by a JSON object.
            Some((first, other)) if other != *value => {
                let what = format!(
                    "adapter {field}: {first:?} and {key:?} both fit {path} and differ; keep one of them"
                );
                return Err(Error::unsupported(what));
            }
            _ => found = Some((key, *value)),
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// The two matrices on one projection: y += scale · (x Aᵀ) Bᵀ.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The layer, from 0.
    pub layer: usize,
    /// `q_proj` … `down_proj`.
    pub module: String,
    /// The rank R.
    pub rank: usize,
    /// alpha / R, or alpha / √R.
    pub scale: f64,
    /// A, `[rank, inputs]`.
    pub a: Vec<f32>,
    /// B, `[outputs, rank]`.
    pub b: Vec<f32>,
    /// The projection's input width.
    pub inputs: usize,
    /// The projection's output width.
    pub outputs: usize,
}

/// An adapter in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// Where it was read.
    pub dir: PathBuf,
    /// By layer, then in the order of the projections in a layer.
    pub pairs: Vec<Pair>,
}

impl Adapter {
    /// Reads the adapter in `dir`; a tensor that is missing, unknown or misshapen is an error that names it.
    pub fn open(dir: &Path) -> Result<Adapter> {
        if !dir.join(CONFIG).exists() {
            let what = format!("no {CONFIG} here, a PEFT adapter was wanted; a model folder goes to ");
            return Err(Error::file(dir, message![what, Setting::Model]));
        }
        let config = AdapterConfig::read(dir)?;
        let path = dir.join(TENSORS);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            let what = "only adapter_model.bin is here, which is not read because it can run code; save it as safetensors";
            return Err(Error::file(dir, what));
        }
        let checkpoint = Checkpoint::open_file(&path)?;
        // By layer and place in MODULES: A and B as they turn up.
        let mut halves: BTreeMap<(usize, usize), [Option<RawTensor<'_>>; 2]> = BTreeMap::new();
        for tensor in checkpoint.names().filter_map(|name| checkpoint.get(name)) {
            let Some((layer, module, half)) = parse_key(tensor.name) else {
                let what = format!(
                    "unexpected tensor {:?}, LoRA tensors of a Llama-like model were wanted",
                    tensor.name
                );
                return Err(Error::file(&path, what));
            };
            let [a, b] = halves.entry((layer, module)).or_default();
            let slot = if half == Half::A { a } else { b };
            if let Some(first) = slot {
                let what = format!("tensors {:?} and {:?} are the same one twice", first.name, tensor.name);
                return Err(Error::file(&path, what));
            }
            *slot = Some(tensor);
        }
        if halves.is_empty() {
            return Err(Error::file(
                &path,
                "holds no tensors, LoRA tensors were wanted; was it saved before training?",
            ));
        }
        let mut pairs = Vec::with_capacity(halves.len());
        for ((layer, module), [a, b]) in halves {
            let module = MODULES.get(module).map_or("", |(name, _)| name);
            pairs.push(match (a, b) {
                (Some(a), Some(b)) => pair(&path, &config, (layer, module), &a, &b)?,
                (Some(only), None) | (None, Some(only)) => {
                    let what = format!(
                        "tensor {:?} has no lora_A or lora_B to go with it; save it again",
                        only.name
                    );
                    return Err(Error::file(&path, what));
                }
                (None, None) => continue,
            });
        }
        Ok(Adapter { config, dir: dir.to_path_buf(), pairs })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    A,
    B,
}

/// Layer, place in [`MODULES`] and half of a tensor's name, in both forms that PEFT writes.
fn parse_key(name: &str) -> Option<(usize, usize, Half)> {
    let rest = name.strip_prefix("base_model.model.")?;
    let rest = rest.strip_prefix("model.").unwrap_or(rest).strip_prefix("layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    if !layer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (part, rest) = rest.split_once('.')?;
    let (module, rest) = rest.split_once('.')?;
    let half = match rest {
        "lora_A.weight" | "lora_A.default.weight" => Half::A,
        "lora_B.weight" | "lora_B.default.weight" => Half::B,
        _ => return None,
    };
    let module = MODULES.iter().position(|known| *known == (module, part))?;
    Some((layer.parse().ok()?, module, half))
}

fn pair(
    path: &Path,
    config: &AdapterConfig,
    at: (usize, &str),
    a: &RawTensor<'_>,
    b: &RawTensor<'_>,
) -> Result<Pair> {
    let (layer, module) = at;
    let (rank, scale) = config.rank_and_scale(layer, module)?;
    let wrong = |t: &RawTensor<'_>, wanted: &str| {
        let what = format!("tensor {:?} is {:?}, {wanted} was wanted by r or rank_pattern", t.name, t.shape);
        Err(Error::file(path, what))
    };
    let inputs = match *a.shape.as_slice() {
        [r, inputs] if r == rank && inputs > 0 => inputs,
        _ => return wrong(a, &format!("[{rank}, inputs]")),
    };
    let outputs = match *b.shape.as_slice() {
        [outputs, r] if r == rank && outputs > 0 => outputs,
        _ => return wrong(b, &format!("[outputs, {rank}]")),
    };
    let (a, b) = (floats(path, a)?, floats(path, b)?);
    Ok(Pair { layer, module: module.to_string(), rank, scale, a, b, inputs, outputs })
}

/// The elements as f32, exactly; NaN and infinities are refused.
pub(crate) fn floats(path: &Path, tensor: &RawTensor<'_>) -> Result<Vec<f32>> {
    let values: Vec<f32> = match tensor.dtype {
        Dtype::F32 => tensor.data.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
        Dtype::F16 => tensor.data.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f32()).collect(),
        Dtype::BF16 => tensor.data.as_chunks().0.iter().map(|c| bf16::from_le_bytes(*c).to_f32()).collect(),
        other => {
            let what =
                format!("tensor {:?} is of type {other}, one of F32, F16, BF16 was wanted", tensor.name);
            return Err(Error::file(path, what));
        }
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::file(
            path,
            format!("tensor {:?}: element {i} is not finite; train it again", tensor.name),
        )),
        None => Ok(values),
    }
}

/// Writes `adapter` into the folder `dir` as PEFT's own files, tensors as f32.
pub fn save(dir: &Path, adapter: &Adapter) -> Result<()> {
    let mut tensors = Vec::with_capacity(2 * adapter.pairs.len());
    for pair in &adapter.pairs {
        let Some((_, part)) = MODULES.iter().find(|(name, _)| *name == pair.module) else {
            return Err(Error::unsupported(format!(
                "adapter on {:?}: not a projection of a Llama-like model",
                pair.module
            )));
        };
        // What the reader will deduce from the configuration must be what this pair is.
        let (rank, scale) = adapter.config.rank_and_scale(pair.layer, &pair.module)?;
        let sizes = (pair.a.len(), pair.b.len()) == (pair.rank * pair.inputs, pair.outputs * pair.rank);
        if rank != pair.rank || (scale - pair.scale).abs() > 1e-9 * scale.abs() || !sizes {
            let what = format!(
                "layer {} {}: rank, scale or sizes differ from the configuration",
                pair.layer, pair.module
            );
            return Err(Error::Shape { op: "peft::save", what });
        }
        let key = format!("base_model.model.layers.{}.{part}.{}", pair.layer, pair.module);
        tensors.push((
            format!("{key}.lora_A.weight"),
            Floats { shape: vec![rank, pair.inputs], values: &pair.a },
        ));
        tensors.push((
            format!("{key}.lora_B.weight"),
            Floats { shape: vec![pair.outputs, rank], values: &pair.b },
        ));
    }
    let mut config = adapter.config.clone();
    if config.target_modules.is_empty() {
        let used = |name: &str| adapter.pairs.iter().any(|pair| pair.module == name);
        config.target_modules = MODULES.iter().filter(|(n, _)| used(n)).map(|(n, _)| n.to_string()).collect();
    }
    write_safetensors(&dir.join(TENSORS), tensors)?;
    atomic::write_json(&dir.join(CONFIG), &config.to_json())
}
