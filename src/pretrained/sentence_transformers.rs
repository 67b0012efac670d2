//! What a sentence-transformers folder says: `modules.json`, a folder per module, prompts. Everything in these files
//! that changes a vector is taken over or refused by name.
//!
//! Both forms are read, those before version 5.4 (`sentence_transformers.models.Pooling`, a boolean a mode) and after
//! (`sentence_transformers.sentence_transformer.modules.pooling.Pooling`, `"pooling_mode": "mean"`).

use crate::error::{Error, Result, Setting, message};
use crate::format::hf::{Checkpoint, RawTensor, is_file_name, read_json};
use crate::format::peft::floats;
use crate::pretrained::pooling::PoolingMode;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The list of modules.
pub const MODULES: &str = "modules.json";
/// Prompts, similarity.
pub const CONFIG: &str = "config_sentence_transformers.json";
/// Length and case, beside the transformer's `config.json`.
pub const TRANSFORMER: &str = "sentence_bert_config.json";

/// A sentence-transformers model without its transformer's weights.
#[derive(Clone, Debug)]
pub struct Modules {
    /// Where the transformer's `config.json` lies.
    pub transformer: PathBuf,
    /// How token states become one vector.
    pub pooling: PoolingMode,
    /// Whether the prompt's tokens are pooled too.
    pub include_prompt: bool,
    /// What happens to a vector after pooling, in order.
    pub steps: Vec<Step>,
    /// Most tokens of a row.
    pub max_length: Option<usize>,
    /// Texts are lower-cased before they are tokenised.
    pub lower_case: bool,
    /// Prompts by name, put in front of a text as they are.
    pub prompts: BTreeMap<String, String>,
    /// The prompt that is used where none is asked for.
    pub default_prompt: Option<String>,
    /// `cosine`, `dot`, `euclidean`, `manhattan`; for information.
    pub similarity: Option<String>,
    /// Keys that replace those of the transformer's `config.json`.
    pub config: Map<String, Value>,
}

/// What happens to a vector after pooling.
#[derive(Clone, Debug)]
pub enum Step {
    /// Scaled to unit length.
    Normalize,
    /// A linear map with an activation.
    Dense(Dense),
    /// The first numbers only (`truncate_dim`).
    Cut(usize),
}

/// The numbers that steps make of a vector of `width`.
pub fn outputs(steps: &[Step], width: usize) -> usize {
    steps.iter().fold(width, |width, step| match step {
        Step::Normalize => width,
        Step::Dense(dense) => dense.outputs,
        Step::Cut(most) => width.min(*most),
    })
}

/// What happens after pooling to vectors of `width`: whether they are scaled to unit length at the end, as asked for or as
/// saved, and other modules and a cut before that.
pub(super) fn last_steps(
    [asked, saved]: [Option<bool>; 2],
    cut: Option<usize>,
    modules: Option<&Modules>,
    width: usize,
) -> Result<(bool, Vec<Step>)> {
    let mut steps = modules.map_or(Vec::new(), |m| m.steps.clone());
    let unit = |step: &Step| matches!(step, Step::Normalize);
    let last = steps.last().is_some_and(unit);
    while steps.last().is_some_and(unit) {
        steps.pop();
    }
    if let Some(n) = cut {
        let most = outputs(&steps, width);
        if !(1..=most).contains(&n) {
            let wanted = format!(" {n}: 1 to {most} were wanted");
            return Err(Error::usage(message![Setting::Dimensions, wanted]));
        }
        steps.push(Step::Cut(n));
    }
    Ok((asked.or(saved).unwrap_or(last), steps))
}

/// `y = f(x Wᵀ + b) (+ x, or x Rᵀ)`.
#[derive(Clone, Debug)]
pub struct Dense {
    /// `[outputs, inputs]`
    pub weight: Vec<f32>,
    /// `[outputs]`
    pub bias: Option<Vec<f32>>,
    /// f.
    pub activation: Activation,
    /// What is added to the result.
    pub residual: Residual,
    /// K.
    pub inputs: usize,
    /// M.
    pub outputs: usize,
}

/// The activation of a [`Dense`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Identity,
    Tanh,
    Relu,
    Sigmoid,
    Silu,
}

/// What a [`Dense`] adds to its result.
#[derive(Clone, Debug)]
pub enum Residual {
    /// Nothing.
    None,
    /// Its input.
    Input,
    /// Its input times this, `[outputs, inputs]`.
    Map(Vec<f32>),
}

impl Modules {
    /// What the folder `dir` says; `None` if it is no sentence-transformers folder.
    pub fn read(dir: &Path) -> Result<Option<Modules>> {
        let path = dir.join(MODULES);
        if !path.exists() {
            return Ok(None);
        }
        let json = read_json(&path)?;
        let listed = modules(&path, &json)?;
        let mut rest = listed.iter();
        let Some(("Transformer", first)) = rest.next().map(|(class, p)| (class.as_str(), p)) else {
            return Err(Error::file(&path, "the first module is no Transformer, one was wanted"));
        };
        let transformer = dir.join(first);
        let Some(("Pooling", second)) = rest.next().map(|(class, p)| (class.as_str(), p)) else {
            return Err(Error::file(&path, "no Pooling follows the Transformer, one was wanted"));
        };
        let (pooling, include_prompt) = pooling(&dir.join(second).join("config.json"))?;
        let mut steps = Vec::new();
        for (class, folder) in rest {
            let folder = dir.join(folder);
            match class.as_str() {
                "Normalize" => {
                    on_sentences(&folder, &optional_object(&folder.join("config.json"))?)?;
                    steps.push(Step::Normalize);
                }
                "Dense" => steps.push(Step::Dense(Dense::read(&folder)?)),
                "Dropout" => {} // does nothing outside training
                other => {
                    let what = format!("module {other} is not built in; Normalize, Dense and Dropout are");
                    return Err(Error::unsupported(format!("{}: {what}", path.display())));
                }
            }
        }
        let mut modules = Modules {
            transformer,
            pooling,
            include_prompt,
            steps,
            max_length: None,
            lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
            similarity: None,
            config: Map::new(),
        };
        modules.read_transformer()?;
        modules.read_config(&dir.join(CONFIG))?;
        Ok(Some(modules))
    }

    /// The prompt called `name`, or the default one; empty if there is none.
    pub fn prompt(&self, name: Option<&str>) -> Result<String> {
        let Some(name) = name.or(self.default_prompt.as_deref()) else { return Ok(String::new()) };
        self.prompts.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
            Error::usage(format!("prompt `{name}`: the folder has {}", names.join(", ")))
        })
    }

    /// `sentence_bert_config.json`, under any of the names that it has had.
    fn read_transformer(&mut self) -> Result<()> {
        let old = ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"];
        let names = old.map(|base| format!("sentence_{base}_config.json"));
        let names = std::iter::once(TRANSFORMER).chain(names.iter().map(String::as_str));
        let Some(path) = names.map(|name| self.transformer.join(name)).find(|path| path.exists()) else {
            return Ok(());
        };
        let keys = optional_object(&path)?;
        let refused = |key: &str, value: &Value| {
            let what = format!("{key} is {value}, which is not built in and changes vectors");
            Err(Error::unsupported(format!("{}: {what}", path.display())))
        };
        for (key, value) in keys.iter().filter(|(_, v)| !v.is_null()) {
            let empty = value.as_object().is_some_and(Map::is_empty);
            match key.as_str() {
                "max_seq_length" => self.max_length = Some(length(&path, key, value)?),
                "do_lower_case" => self.lower_case = flag(&path, key, value)?,
                "transformer_task" if value == "feature-extraction" => {}
                "module_output_name" if value == "token_embeddings" => {}
                "modality_config" => {
                    let text = value.pointer("/text/method_output_name");
                    let method = value.pointer("/text/method");
                    if text.is_some_and(|v| v != "last_hidden_state") || method != Some(&"forward".into()) {
                        return refused(key, value);
                    }
                }
                "config_args" | "config_kwargs" => {
                    self.config.extend(value.as_object().cloned().unwrap_or_default())
                }
                "model_args" | "model_kwargs" => {
                    let known =
                        ["torch_dtype", "dtype", "attn_implementation", "device_map", "use_safetensors"];
                    let other =
                        value.as_object().into_iter().flatten().find(|(k, _)| !known.contains(&k.as_str()));
                    if let Some((k, v)) = other {
                        return refused(&format!("{key}.{k}"), v);
                    }
                }
                "tokenizer_args" | "processor_kwargs" => {
                    for (k, v) in value.as_object().into_iter().flatten() {
                        match k.as_str() {
                            "model_max_length" => self.max_length = Some(length(&path, k, v)?),
                            "padding_side" | "use_fast" => {}
                            _ => return refused(&format!("{key}.{k}"), v),
                        }
                    }
                }
                "unpad_inputs" => {}
                _ if empty => {}
                _ => return refused(key, value),
            }
        }
        Ok(())
    }

    fn read_config(&mut self, path: &Path) -> Result<()> {
        let keys = optional_object(path)?;
        let wrong = |key: &str, wanted: &str| {
            Error::file(path, format!("{key:?} is {}, {wanted} was wanted", keys[key]))
        };
        for (name, prompt) in keys.get("prompts").and_then(Value::as_object).into_iter().flatten() {
            let text = prompt.as_str().ok_or_else(|| wrong("prompts", "an object of strings"))?;
            self.prompts.insert(name.clone(), text.to_string());
        }
        if let Some(name) = keys.get("default_prompt_name").filter(|v| !v.is_null()) {
            let name = name.as_str().ok_or_else(|| wrong("default_prompt_name", "a string"))?;
            if !self.prompts.contains_key(name) {
                return Err(wrong("default_prompt_name", "the name of one of the prompts"));
            }
            self.default_prompt = Some(name.to_string());
        }
        if let Some(dims) = keys.get("truncate_dim").filter(|v| !v.is_null()) {
            self.steps.push(Step::Cut(length(path, "truncate_dim", dims)?));
        }
        self.similarity = keys.get("similarity_fn_name").and_then(Value::as_str).map(str::to_string);
        Ok(())
    }
}

/// Class and folder of each module, in their order.
fn modules(path: &Path, json: &Value) -> Result<Vec<(String, String)>> {
    let Some(list) = json.as_array() else {
        return Err(Error::file(path, "a list of modules was wanted"));
    };
    let one = |module: &Value| {
        let text = |key| module.get(key).and_then(Value::as_str);
        let (Some(class), Some(folder)) = (text("type"), text("path")) else {
            return Err(Error::file(path, format!("module {module} has no \"type\" and \"path\"")));
        };
        if !folder.is_empty() && !is_file_name(folder) {
            return Err(Error::file(
                path,
                format!("{folder:?}: the name of a folder in this one was wanted"),
            ));
        }
        match class.rsplit_once('.') {
            Some((place, name)) if place.split('.').next() == Some("sentence_transformers") => {
                Ok((name.to_string(), folder.to_string()))
            }
            _ => {
                let what = format!("module {class} is code that comes with the model, which is not run here");
                Err(Error::unsupported(format!("{}: {what}", path.display())))
            }
        }
    };
    list.iter().map(one).collect()
}

/// sentence-transformers' switches of old and the names that they have now, in its order.
pub(crate) const SWITCHES: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// The mode, and whether prompts are pooled.
fn pooling(path: &Path) -> Result<(PoolingMode, bool)> {
    let keys = optional_object(path)?;
    let names: Vec<String> = match keys.get("pooling_mode") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().map(|m| m.as_str().unwrap_or("?").to_string()).collect(),
        Some(other) => {
            return Err(Error::file(path, format!("\"pooling_mode\" is {other}, a name was wanted")));
        }
        None => {
            let on = |key: &str| keys.get(key) == Some(&Value::Bool(true));
            let mut on: Vec<_> =
                SWITCHES.iter().filter(|(key, _)| on(key)).map(|(_, m)| m.to_string()).collect();
            if on.is_empty() {
                on.push("mean".into()); // as sentence-transformers has it
            }
            on
        }
    };
    let unknown = keys.iter().find(|(key, on)| {
        key.starts_with("pooling_mode_")
            && on == &&Value::Bool(true)
            && SWITCHES.iter().all(|(k, _)| k != key)
    });
    let names: Vec<&str> = names.iter().map(String::as_str).chain(unknown.map(|(k, _)| k.as_str())).collect();
    let include = keys.get("include_prompt").is_none_or(|v| v != &Value::Bool(false));
    match names.as_slice() {
        [one] => match PoolingMode::by_sentence_transformers(one) {
            Some(mode) => Ok((mode, include)),
            None => Err(unsupported(path, one)),
        },
        many => Err(unsupported(path, &many.join(" + "))),
    }
}

fn unsupported(path: &Path, names: &str) -> Error {
    let what = "one of mean, weightedmean, lasttoken, cls was wanted";
    Error::unsupported(format!("{}: pooling by {names} is not built in; {what}", path.display()))
}

/// Refuses a module that works on something else than the pooled vector.
fn on_sentences(folder: &Path, keys: &Map<String, Value>) -> Result<()> {
    for key in ["module_input_name", "module_output_name"] {
        if let Some(name) = keys.get(key).filter(|v| !v.is_null() && *v != "sentence_embedding") {
            let what = format!("{key} is {name}, only sentence_embedding is built in");
            return Err(Error::unsupported(format!("{}: {what}", folder.display())));
        }
    }
    Ok(())
}

impl Dense {
    fn read(folder: &Path) -> Result<Dense> {
        let path = folder.join("config.json");
        let keys = optional_object(&path)?;
        on_sentences(folder, &keys)?;
        let size = |key: &str| length(&path, key, keys.get(key).unwrap_or(&Value::Null));
        let (inputs, outputs) = (size("in_features")?, size("out_features")?);
        let class = keys.get("activation_function").map_or("torch.nn.Tanh", |v| v.as_str().unwrap_or("?"));
        let activation = match class.rsplit('.').next().filter(|_| class.starts_with("torch.")) {
            Some("Identity") => Activation::Identity,
            Some("Tanh") => Activation::Tanh,
            Some("ReLU") => Activation::Relu,
            Some("Sigmoid") => Activation::Sigmoid,
            Some("SiLU") => Activation::Silu,
            _ => {
                let what = "is not built in; Identity, Tanh, ReLU, Sigmoid and SiLU of torch.nn are";
                return Err(Error::unsupported(format!("{}: activation {class} {what}", path.display())));
            }
        };
        let weights = folder.join("model.safetensors");
        if !weights.exists() && folder.join("pytorch_model.bin").exists() {
            let what = "only pytorch_model.bin is here, which is not read because it can run code; save it as safetensors";
            return Err(Error::file(folder, what));
        }
        let checkpoint = Checkpoint::open_file(&weights)?;
        let tensor = |name: &str, shape: &[usize]| match checkpoint.get(name) {
            Some(t) if t.shape == shape => floats(&weights, &t),
            Some(RawTensor { shape: got, .. }) => {
                Err(Error::file(&weights, format!("tensor {name} is {got:?}, {shape:?} was wanted")))
            }
            None => Err(Error::file(&weights, format!("has no tensor {name}"))),
        };
        let on = |key: &str, default| keys.get(key).and_then(Value::as_bool).unwrap_or(default);
        let bias = on("bias", true).then(|| tensor("linear.bias", &[outputs])).transpose()?;
        let residual = match on("use_residual", false) {
            false => Residual::None,
            true if inputs == outputs => Residual::Input,
            true => Residual::Map(tensor("residual.weight", &[outputs, inputs])?),
        };
        let weight = tensor("linear.weight", &[outputs, inputs])?;
        Ok(Dense { weight, bias, activation, residual, inputs, outputs })
    }
}

/// The keys of a JSON object; none where there is no such file.
fn optional_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    match read_json(path)? {
        Value::Object(keys) => Ok(keys),
        _ => Err(Error::file(path, "a JSON object was wanted")),
    }
}

fn length(path: &Path, key: &str, value: &Value) -> Result<usize> {
    let n = value.as_u64().filter(|n| (1..=1 << 24).contains(n));
    n.map(|n| n as usize)
        .ok_or_else(|| Error::file(path, format!("{key:?} is {value}, a whole number above 0 was wanted")))
}

fn flag(path: &Path, key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| Error::file(path, format!("{key:?} is {value}, true or false was wanted")))
}
