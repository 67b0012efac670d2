//! What to run: the caller's options, the model folder's own settings, and the reference's defaults.

use crate::device::Device;
use crate::error::{Error, Message, Result, Setting, message};
use crate::memory::Arena;
use crate::model::config::{Attention, Config, Family};
use crate::model::plan;
use crate::model::rope::RopeTables;
use crate::model::state::{Keep, State};
use crate::model::weights::{Storage, Weights};
use crate::ops::attention::Mask;
use crate::pretrained::files::{ModelFiles, Stack};
use crate::pretrained::pooling::PoolingMode;
use crate::pretrained::sentence_transformers::{Modules, Step, last_steps, outputs};
use crate::pretrained::settings::{self, Settings};
use crate::text::prompt::{Compat, Prompter, Rules};
use crate::text::reference::eos_text;
use crate::text::template::{NONE, Template};
use crate::text::tokenizer::Tokenizer;
use crate::text::{Limits, Prompt};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which tokens a vector is pooled over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PoolOver {
    /// The text's own.
    Text,
    /// All: BOS, instruction and template too.
    All,
}

/// How a CPU keeps and multiplies large matrices; a GPU always has bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Compute {
    /// f32, where it fits.
    #[default]
    #[cfg_attr(feature = "cli", value(alias = "float32"))]
    F32,
    /// bf16, with sums in f32.
    #[cfg_attr(feature = "cli", value(alias = "bfloat16"))]
    Bf16,
}

/// What the caller asks for; `None` means what the model's folder says, else the reference's default.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct Options {
    /// Model folder (config.json, tokenizer.json, model.safetensors) or adapter that names its base, or org/name or org/name@revision in the local Hugging Face cache
    #[cfg_attr(
        feature = "cli",
        arg(short, long, env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")
    )]
    pub model: String,
    /// PEFT LoRA folder or name to merge; repeat for several, in order (MNTP before SimCSE or supervised)
    #[cfg_attr(feature = "cli", arg(long = "adapter", env = "LLM2VEC_ADAPTER", value_name = "DIR"))]
    pub adapters: Vec<String>,
    /// mean, weighted-mean, last, eos, bos or first [default: what the folder records, else mean]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_POOLING", value_name = "MODE", hide_possible_values = true)
    )]
    pub pooling: Option<PoolingMode>,
    /// Pool the text's own tokens, or all: BOS, instruction and template too [default: text; all for a sentence-transformers folder]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_POOL_OVER", value_name = "SPAN"))]
    pub pool_over: Option<PoolOver>,
    /// full (bidirectional), causal (as pre-trained), window (bidirectional in the config's window) [default: what the folder says, else full]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_ATTENTION", value_name = "MASK", hide_possible_values = true)
    )]
    pub attention: Option<Attention>,
    /// One of the folder's prompts (config_sentence_transformers.json) in front of every text [default: its default one]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_PROMPT", value_name = "NAME"))]
    pub prompt: Option<String>,
    /// none, llama2, llama3, mistral, qwen2 [default: by the model's name, as the reference does]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_TEMPLATE", value_name = "NAME", value_parser = Template::by_name)
    )]
    pub template: Option<Template>,
    /// Most tokens in a row, template and instruction included [default: 512]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_MAX_LENGTH", value_name = "TOKENS"))]
    pub max_length: Option<usize>,
    /// Most tokens of the text itself [default: 400]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_DOC_MAX_LENGTH", value_name = "TOKENS"))]
    pub doc_max_length: Option<usize>,
    /// Scale every vector to unit length, or with =false not [default: what the folder records, else not]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_NORMALIZE", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1,
            require_equals = true, default_missing_value = "true", value_name = "WHETHER")
    )]
    pub normalize: Option<bool>,
    /// The first N numbers of every vector alone (a Matryoshka model's), before --normalize [default: all]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_DIMENSIONS", value_name = "N"))]
    pub dimensions: Option<usize>,
    /// Reproduce the reference implementation's ids and pooled span, quirks included
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_COMPAT", value_name = "reference"))]
    pub compat: Option<Compat>,
    /// On the CPU: compute in f32, or keep weights as bf16 and multiply in bf16 (sums stay f32); a GPU does the latter always
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_DTYPE", value_name = "DTYPE", default_value = "f32")
    )]
    pub dtype: Compute,
    /// Tokens in a pack [default: 2048 on the CPU, 16384 on a GPU]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_TOKENS", alias = "max-batch-tokens", value_name = "N")
    )]
    pub tokens: Option<usize>,
    /// The states to take: 0 those of the embedding, N those after block N, negative counted from the end; `None` and -1
    /// are the last, after the final norm.
    // A flag of the commands that make vectors.
    #[cfg_attr(feature = "cli", arg(skip))]
    pub layer: Option<i64>,
    /// Stop at the first NaN or infinity in an activation, and say in which layer and tensor
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_CHECK_FINITE", value_parser = clap::builder::BoolishValueParser::new())
    )]
    pub check_finite: bool,
    /// Where to compute.
    // A command opens it after parsing, with its threads set.
    #[cfg_attr(feature = "cli", arg(skip = Device::cpu()))]
    pub device: Device,
}

impl Options {
    /// Every default, for the model in `model`.
    pub fn new(model: impl Into<String>) -> Options {
        Options {
            model: model.into(),
            adapters: Vec::new(),
            pooling: None,
            pool_over: None,
            attention: None,
            prompt: None,
            template: None,
            max_length: None,
            doc_max_length: None,
            normalize: None,
            dimensions: None,
            compat: None,
            dtype: Compute::F32,
            tokens: None,
            layer: None,
            check_finite: false,
            device: Device::cpu(),
        }
    }
}

/// The options with every `None` decided, and the files behind them.
pub struct Setup {
    /// The folder of the tokenizer's files.
    pub dir: PathBuf,
    /// The folders behind the names.
    pub stack: Stack,
    /// Its configuration; of as many blocks as are run.
    pub config: Config,
    /// Whether vectors are made from the stream after the last of these blocks, without the final norm.
    pub inner: bool,
    /// Its weights, mapped.
    pub files: ModelFiles,
    /// Text to ids.
    pub prompter: Prompter,
    /// The template's name.
    pub template: &'static str,
    /// Lengths, in tokens.
    pub limits: Limits,
    /// Pooling mode.
    pub pooling: PoolingMode,
    /// Pool every token.
    pub pool_all: bool,
    /// Attention by name.
    pub attention: Attention,
    /// What decided it, in words.
    pub attention_by: Message,
    /// The mask that follows from it.
    pub mask: Mask,
    /// What happens to a vector after pooling.
    pub steps: Vec<Step>,
    /// Unit vectors, after that.
    pub normalize: bool,
    /// Tokens in a pack.
    pub tokens: usize,
    /// How the large matrices are kept.
    pub storage: Storage,
    /// Things a user should know and may ignore.
    pub warnings: Vec<String>,
    /// Look for NaN and infinity in activations.
    pub check_finite: bool,
    /// Where to compute.
    pub device: Device,
}

/// Tokens in a pack on the CPU: large enough for the matrix products, small enough for the caches.
const CPU_TOKENS: usize = 2048;

/// Tokens in a pack on a GPU: enough tiles for all its multiprocessors, in every product.
const GPU_TOKENS: usize = 16384;

fn usual_tokens(device: &Device) -> usize {
    if let Device::Cpu(_) = device { CPU_TOKENS } else { GPU_TOKENS }
}

/// The most that a length or a pack may be: keeps the sizes that follow from it far from overflow.
pub const MOST_TOKENS: usize = 1 << 24;

impl Setup {
    /// Opens everything that is small or mapped, and checks it; reads no weight yet.
    pub fn open(o: &Options) -> Result<Setup> {
        let stack = Stack::open(&o.model, &o.adapters)?;
        let mut config = Config::parse(&stack.config)?;
        plan::check(&o.device, &config)?;
        let (files, warnings) = ModelFiles::open(&stack.base, &config, &stack.adapters)?;
        let (from, saved) = saved_settings(&stack)?;
        let file = from.join(settings::REFERENCE_FILE);
        let pooling = named(o.pooling, &saved.pooling_mode, &file, PoolingMode::by_name)?;
        let modules = stack.modules.as_ref();
        let pooling = pooling.or(modules.map(|m| m.pooling)).unwrap_or(PoolingMode::Mean);
        let (attention, attention_by) = attention(o, &stack, &config, (&from, &saved))?;
        let mask = config.mask(attention)?;
        let inner = inner_layer(o.layer, config.layers)?;
        config.layers = inner.unwrap_or(config.layers);
        let template = named(o.template, &saved.template, &own_file(&from), Template::by_name)?;
        let template = template.unwrap_or_else(|| {
            let names = stack.names().into_iter().chain([config.name.as_str()]);
            names.map(Template::for_model).find(|t| *t != NONE).unwrap_or(NONE)
        });
        let dir = stack.tokenizer_dir().to_path_buf();
        let mut tokenizer = Tokenizer::open(&dir)?;
        if modules.is_some_and(|m| m.lower_case) {
            tokenizer.lower_case()?;
        }
        let limits = limits(o, &saved, modules, &tokenizer, &config)?;
        let tokens = o.tokens.unwrap_or(usual_tokens(&o.device)).max(limits.max_length);
        let storage = storage(o, &config, &files, tokens, limits.max_length)?;
        let pool_all = o.pool_over.map(|over| over == PoolOver::All);
        let pool_all = pool_all.or(saved.skip_instruction.map(|skip| !skip)).unwrap_or(modules.is_some());
        let asked = [o.normalize, saved.normalize];
        let (normalize, steps) = last_steps(asked, o.dimensions, modules, config.width)?;
        let rules = Rules {
            template,
            limits,
            append_eos: pooling == PoolingMode::Eos,
            reference_eos: eos_text(template, &config.name, config.family == Family::Qwen2),
            compat: match (o.compat.unwrap_or(Compat::Default), modules) {
                (Compat::Default, Some(_)) if template == NONE => Compat::SentenceTransformers,
                (compat, _) => compat,
            },
            prompt: prompt(o, modules)?,
            pool_prompt: modules.is_none_or(|m| m.include_prompt),
        };
        if !rules.pool_prompt && pool_all && pooling == PoolingMode::WeightedMean {
            let what = "weighted-mean without the prompt (include_prompt false) is not built in; use ";
            return Err(Error::unsupported(message![what, Setting::PoolOver, " text"]));
        }
        Ok(Setup {
            prompter: Prompter::new(tokenizer, rules)?,
            template: template.name,
            limits,
            pooling,
            pool_all,
            mask,
            attention,
            attention_by,
            steps,
            normalize,
            tokens,
            storage,
            warnings,
            check_finite: o.check_finite,
            device: o.device.clone(),
            dir,
            stack,
            inner: inner.is_some(),
            config,
            files,
        })
    }

    /// What an adapter records as its base.
    pub fn base_reference(&self) -> PathBuf {
        self.stack.base.reference().into()
    }

    /// The numbers in a vector.
    pub fn dimensions(&self) -> usize {
        outputs(&self.steps, self.config.width)
    }

    /// One line that says which attention is taken, and why.
    pub fn attention_line(&self) -> Message {
        message![format!("attention: {}, by ", self.attention.name()), self.attention_by.clone()]
    }

    /// The rows of a prompt that its vector is made from.
    pub fn span(&self, prompt: &Prompt) -> Result<std::ops::Range<usize>> {
        let row = 0..prompt.ids.len();
        let span = match self.pooling {
            PoolingMode::Eos => row,
            PoolingMode::Bos => {
                let bos = self.prompter.tokenizer().bos_id();
                if bos.is_none() || prompt.ids.first().copied() != bos {
                    let what = " bos: the tokenizer puts no BOS token first; use another pooling";
                    return Err(Error::unsupported(message![Setting::Pooling, what]));
                }
                row
            }
            PoolingMode::First => prompt.all.clone(),
            _ if self.pool_all => prompt.all.clone(),
            _ => prompt.text.clone(),
        };
        if span.is_empty() {
            return Err(Error::unsupported("a text without tokens has nothing to pool"));
        }
        Ok(span)
    }

    /// These settings, and what is stacked here, as `llm2vec_config.json` records them.
    pub fn settings(&self) -> Settings {
        Settings {
            pooling_mode: Some(self.pooling.reference_name().into()),
            max_length: Some(self.limits.max_length),
            doc_max_length: Some(self.limits.doc_max_length),
            skip_instruction: Some(!self.pool_all),
            template: Some(self.template.into()),
            attention: Some(self.attention.name().into()),
            normalize: Some(self.normalize),
            adapters: Some(self.files.chain.clone()),
        }
    }
}

/// The text in front of every text, of sentence-transformers' prompts.
fn prompt(o: &Options, modules: Option<&Modules>) -> Result<String> {
    match (modules, &o.prompt) {
        (Some(modules), name) => modules.prompt(name.as_deref()),
        (None, None) => Ok(String::new()),
        (None, Some(name)) => {
            let what = "the model's folder has no prompts (config_sentence_transformers.json); use ";
            Err(Error::usage(message![format!("prompt `{name}`: {what}"), Setting::Instruction]))
        }
    }
}

/// Lengths by flag, by the recorded settings, by sentence-transformers' files and rules, by the reference's defaults.
fn limits(
    o: &Options,
    saved: &Settings,
    modules: Option<&Modules>,
    tokenizer: &Tokenizer,
    config: &Config,
) -> Result<Limits> {
    let usual = |m: &Modules| {
        let positions = config.max_positions;
        m.max_length.unwrap_or(tokenizer.max_length().map_or(positions, |n| n.min(positions)))
    };
    let max_length = o.max_length.or(saved.max_length).or(modules.map(usual)).unwrap_or(512);
    let doc = modules.map_or(400, |_| max_length);
    let limits =
        Limits { max_length, doc_max_length: o.doc_max_length.or(saved.doc_max_length).unwrap_or(doc) };
    let lengths = [
        (Setting::MaxLength, limits.max_length),
        (Setting::DocMaxLength, limits.doc_max_length),
        (Setting::Tokens, o.tokens.unwrap_or(MOST_TOKENS)),
    ];
    match lengths.iter().find(|(_, n)| !(1..=MOST_TOKENS).contains(n)) {
        Some((setting, n)) => {
            Err(Error::usage(message![*setting, format!(" {n}: expected 1 to {MOST_TOKENS}")]))
        }
        None => Ok(limits),
    }
}

/// On a GPU bf16 always. On the CPU f32 where it fits; a 16-bit checkpoint whose f32 form does not fit stays bf16 and is widened as it is used.
fn storage(
    o: &Options,
    config: &Config,
    files: &ModelFiles,
    tokens: usize,
    positions: usize,
) -> Result<Storage> {
    match o.device {
        Device::Gpu(_) => return Ok(Storage::Real),
        Device::Cpu(_) if o.dtype == Compute::Bf16 => return Ok(Storage::Panels),
        Device::Cpu(_) => {}
    }
    let mut arena = Arena::planning(&o.device);
    Weights::new(&mut arena, config, Storage::Real);
    RopeTables::new(&mut arena, config, positions);
    State::new(&mut arena, config, tokens, 0, Keep::Nothing);
    let narrow = files.checkpoint_dtype().is_some_and(|t| t.size() == 2);
    let fits = o.device.available().is_none_or(|free| arena.total() <= free);
    Ok(if fits || !narrow { Storage::Real } else { Storage::Bf16 })
}

/// The blocks to run where that is not all of them and the final norm, as Transformers counts its hidden states.
fn inner_layer(layer: Option<i64>, layers: usize) -> Result<Option<usize>> {
    let Some(asked) = layer else { return Ok(None) };
    let count = layers as i64;
    match if asked < 0 { count + 1 + asked } else { asked } {
        last if last == count => Ok(None),
        inner if (0..count).contains(&inner) => Ok(Some(inner as usize)),
        _ => {
            let what =
                format!(" {asked}: the model has 0 (the embedding) to {layers}, or -1 to -{}", count + 1);
            Err(Error::usage(message![Setting::Layer, what]))
        }
    }
}

/// What a flag gives or else a file names; a name in the file that nobody knows is the file's error.
fn named<T>(
    flag: Option<T>,
    saved: &Option<String>,
    from: &Path,
    by_name: impl Fn(&str) -> Result<T>,
) -> Result<Option<T>> {
    match (flag, saved) {
        (Some(given), _) => Ok(Some(given)),
        (None, Some(name)) => by_name(name).map(Some).map_err(|e| Error::file(from, e.message())),
        (None, None) => Ok(None),
    }
}

/// The nearest recorded settings: the last adapter's folder, the ones before it, the model's; and which it was.
fn saved_settings(stack: &Stack) -> Result<(PathBuf, Settings)> {
    let adapters = stack.adapters.iter().rev();
    for at in adapters.chain([&stack.asked, &stack.base]) {
        if let Some(s) = Settings::read(&at.dir)? {
            return Ok((at.dir.clone(), s));
        }
    }
    Ok((stack.base.dir.clone(), Settings::default()))
}

/// The file in `from` that our own keys stand in: the reference's in older folders.
fn own_file(from: &Path) -> PathBuf {
    let [ours, theirs] = [settings::FILE, settings::REFERENCE_FILE].map(|name| from.join(name));
    if ours.exists() { ours } else { theirs }
}

/// The attention and what decided it: the flag, our own file, `config.json`, what sentence-transformers would do, full.
fn attention(
    o: &Options,
    stack: &Stack,
    config: &Config,
    (from, saved): (&Path, &Settings),
) -> Result<(Attention, Message)> {
    let file = own_file(from);
    if let Some(attention) = named(o.attention, &saved.attention, &file, Attention::by_name)? {
        let by = match o.attention {
            Some(_) => Setting::Attention.into(),
            None => file.display().to_string().into(),
        };
        return Ok((attention, by));
    }
    let flag = |key: &str| stack.config.get(key).and_then(Value::as_bool);
    let bidirectional = match config.window {
        Some(_) => Attention::Window,
        None => Attention::Full,
    };
    for (key, sees_all) in [("is_causal", false), ("use_bidirectional_attention", true)] {
        if let Some(value) = flag(key) {
            let attention = if value == sees_all { bidirectional } else { Attention::Causal };
            return Ok((attention, format!("\"{key}\": {value} in config.json").into()));
        }
    }
    Ok(match &stack.modules {
        Some(_) => {
            let by = "sentence-transformers' default for this model, without is_causal in config.json; ";
            (Attention::Causal, message![by, Setting::Attention, " full is LLM2Vec's"])
        }
        None => (Attention::Full, "LLM2Vec's default".into()),
    })
}
