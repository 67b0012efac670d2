//! What to run: the caller's options, the model folder's own settings, and the reference's defaults.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::hf;
use crate::memory::Arena;
use crate::model::config::{Attention, Config, Family};
use crate::model::plan;
use crate::model::rope::RopeTables;
use crate::model::state::{Keep, State};
use crate::model::weights::{Storage, Weights};
use crate::ops::attention::Mask;
use crate::ops::pool::Pooling;
use crate::pretrained::files::ModelFiles;
use crate::pretrained::settings::{self, Settings};
use crate::pretrained::{names, sentence_transformers};
use crate::text::prompt::{Compat, Limits, Prompt, Prompter};
use crate::text::reference::eos_text;
use crate::text::template::Template;
use crate::text::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// Which vector of a text is its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingMode {
    /// Average.
    Mean,
    /// Average with weights 1, 2, …, n.
    WeightedMean,
    /// The last token of the pooled span.
    Last,
    /// The EOS token, appended where the tokenizer does not.
    Eos,
    /// The BOS token, which the tokenizer must put first.
    Bos,
}

impl PoolingMode {
    /// By our name, the reference's, or sentence-transformers'.
    pub fn by_name(name: &str) -> Result<PoolingMode> {
        match name.replace('_', "-").as_str() {
            "mean" => Ok(PoolingMode::Mean),
            "weighted-mean" => Ok(PoolingMode::WeightedMean),
            "last" | "last-token" => Ok(PoolingMode::Last),
            "eos" | "eos-token" => Ok(PoolingMode::Eos),
            "bos" | "bos-token" | "cls" => Ok(PoolingMode::Bos),
            _ => {
                Err(Error::Usage(format!("pooling `{name}`: expected mean, weighted-mean, last, eos or bos")))
            }
        }
    }

    /// The op's name.
    pub fn op(self) -> Pooling {
        match self {
            PoolingMode::Mean => Pooling::Mean,
            PoolingMode::WeightedMean => Pooling::WeightedMean,
            PoolingMode::Last | PoolingMode::Eos => Pooling::Last,
            PoolingMode::Bos => Pooling::First,
        }
    }

    /// Our name.
    pub fn name(self) -> &'static str {
        match self {
            PoolingMode::Mean => "mean",
            PoolingMode::WeightedMean => "weighted-mean",
            PoolingMode::Last => "last",
            PoolingMode::Eos => "eos",
            PoolingMode::Bos => "bos",
        }
    }

    /// The name that the reference writes into `llm2vec_config.json`.
    pub fn reference_name(self) -> &'static str {
        match self {
            PoolingMode::Mean => "mean",
            PoolingMode::WeightedMean => "weighted_mean",
            PoolingMode::Last => "last_token",
            PoolingMode::Eos => "eos_token",
            PoolingMode::Bos => "bos_token",
        }
    }
}

/// `--attention` by name.
fn attention_by_name(name: &str) -> Result<Attention> {
    match name {
        "full" => Ok(Attention::Full),
        "causal" => Ok(Attention::Causal),
        "window" => Ok(Attention::Window),
        _ => Err(Error::Usage(format!("attention `{name}`: expected full, causal or window"))),
    }
}

/// What the caller asks for; `None` means what the model's folder says, else the reference's default.
#[derive(Clone, Debug)]
pub struct Options {
    /// Model folder, or a name in the local Hugging Face cache.
    pub model: String,
    /// Adapter folders, merged in this order.
    pub adapters: Vec<PathBuf>,
    /// Pooling mode name; default `mean`.
    pub pooling: Option<String>,
    /// Pool every token (BOS, instruction and template too) instead of the text's own.
    pub pool_all: Option<bool>,
    /// `full`, `causal` or `window`; default `full`.
    pub attention: Option<String>,
    /// Template name; default by the model's name, as the reference does.
    pub template: Option<String>,
    /// Most tokens in a row; default 512.
    pub max_length: Option<usize>,
    /// Most tokens of the text itself; default 400.
    pub doc_max_length: Option<usize>,
    /// Scale every vector to unit length; default no.
    pub normalize: Option<bool>,
    /// Reproduce the reference's ids and spans.
    pub compat: Compat,
    /// Keep weights as bf16 and multiply in bf16.
    pub bf16: bool,
    /// Tokens in a pack.
    pub tokens: Option<usize>,
    /// Stop at the first NaN or infinity in an activation, and say where.
    pub check_finite: bool,
    /// Where to compute.
    pub device: Device,
}

impl Options {
    /// Every default, for the model in `model`.
    pub fn new(model: impl Into<String>) -> Options {
        Options {
            model: model.into(),
            adapters: Vec::new(),
            pooling: None,
            pool_all: None,
            attention: None,
            template: None,
            max_length: None,
            doc_max_length: None,
            normalize: None,
            compat: Compat::Default,
            bf16: false,
            tokens: None,
            check_finite: false,
            device: Device::cpu(),
        }
    }
}

/// The options with every `None` decided, and the files behind them.
pub struct Setup {
    /// The model folder.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: Config,
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
    /// The mask that follows from it.
    pub mask: Mask,
    /// Unit vectors.
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

/// The most that a length or a pack may be: keeps the sizes that follow from it far from overflow.
pub const MOST_TOKENS: usize = 1 << 24;

impl Setup {
    /// Opens everything that is small or mapped, and checks it; reads no weight yet.
    pub fn open(o: &Options) -> Result<Setup> {
        let dir = names::model_dir(&o.model)?;
        let config = Config::parse(&hf::read_json(&dir.join("config.json"))?)?;
        plan::check(&o.device, &config)?;
        let (files, warnings) = ModelFiles::open(&dir, &config, &o.adapters)?;
        let (from, saved) = saved_settings(&dir, &o.adapters)?;
        let pooling = named(&o.pooling, &saved.pooling_mode, &from, PoolingMode::by_name)?;
        let pooling = pooling.unwrap_or(PoolingMode::Mean);
        let attention = named(&o.attention, &saved.attention, &from, attention_by_name)?;
        let attention = attention.unwrap_or(Attention::Full);
        let template = named(&o.template, &saved.template, &from, Template::by_name)?;
        let template = template.unwrap_or_else(|| Template::for_model(&config.name));
        let limits = Limits {
            max_length: o.max_length.or(saved.max_length).unwrap_or(512),
            doc_max_length: o.doc_max_length.or(saved.doc_max_length).unwrap_or(400),
        };
        let lengths = [("--max-length", limits.max_length), ("--doc-max-length", limits.doc_max_length)];
        if let Some((flag, n)) = lengths.iter().find(|(_, n)| !(1..=MOST_TOKENS).contains(n)) {
            return Err(Error::Usage(format!("{flag} {n}: expected 1 to {MOST_TOKENS}")));
        }
        let usual = if let Device::Cpu(_) = o.device { CPU_TOKENS } else { GPU_TOKENS };
        let tokens = o.tokens.unwrap_or(usual).max(limits.max_length);
        let storage = storage(o, &config, &files, tokens, limits.max_length)?;
        let name = template.name;
        let tokenizer = Tokenizer::open(&dir)?;
        let append_eos = pooling == PoolingMode::Eos;
        let reference_eos = eos_text(template, &config.name, config.family == Family::Qwen2);
        Ok(Setup {
            prompter: Prompter::new(tokenizer, template, limits, append_eos, o.compat, reference_eos)?,
            template: name,
            limits,
            pooling,
            pool_all: o.pool_all.or(saved.skip_instruction.map(|skip| !skip)).unwrap_or(false),
            mask: config.mask(attention)?,
            attention,
            normalize: o.normalize.or(saved.normalize).unwrap_or(false),
            tokens,
            storage,
            warnings,
            check_finite: o.check_finite,
            device: o.device.clone(),
            dir,
            config,
            files,
        })
    }

    /// The rows of a prompt that its vector is made from.
    pub fn span(&self, prompt: &Prompt) -> Result<std::ops::Range<usize>> {
        let all = 0..prompt.ids.len();
        let span = match self.pooling {
            PoolingMode::Eos => all,
            PoolingMode::Bos => {
                let bos = self.prompter.tokenizer().bos_id();
                if bos.is_none() || prompt.ids.first().copied() != bos {
                    let what = "--pooling bos: the tokenizer puts no BOS token first; use another pooling";
                    return Err(Error::Unsupported(what.into()));
                }
                all
            }
            _ if self.pool_all => all,
            _ => prompt.text.clone(),
        };
        if span.is_empty() {
            return Err(Error::Unsupported("a text without tokens has nothing to pool".into()));
        }
        Ok(span)
    }

    /// These settings, and what is stacked here, as `llm2vec_config.json` records them.
    pub fn settings(&self) -> Settings {
        let attention = match self.attention {
            Attention::Full => "full",
            Attention::Causal => "causal",
            Attention::Window => "window",
        };
        Settings {
            pooling_mode: Some(self.pooling.reference_name().into()),
            max_length: Some(self.limits.max_length),
            doc_max_length: Some(self.limits.doc_max_length),
            skip_instruction: Some(!self.pool_all),
            template: Some(self.template.into()),
            attention: Some(attention.into()),
            normalize: Some(self.normalize),
            adapters: Some(self.files.chain.clone()),
        }
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
        Device::Cpu(_) if o.bf16 => return Ok(Storage::Panels),
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

/// What a flag or else a file names; a name in the file that nobody knows is the file's error.
fn named<T>(
    flag: &Option<String>,
    saved: &Option<String>,
    from: &Path,
    by_name: impl Fn(&str) -> Result<T>,
) -> Result<Option<T>> {
    match (flag, saved) {
        (Some(name), _) => by_name(name).map(Some),
        (None, Some(name)) => {
            by_name(name).map(Some).map_err(|e| Error::file(from.join(settings::FILE), e.to_string()))
        }
        (None, None) => Ok(None),
    }
}

/// The nearest recorded settings: the last adapter's folder, the ones before it, the model's; and which it was.
fn saved_settings(dir: &Path, adapters: &[PathBuf]) -> Result<(PathBuf, Settings)> {
    for folder in adapters.iter().rev().map(PathBuf::as_path).chain([dir]) {
        if let Some(s) = Settings::read(folder)? {
            return Ok((folder.into(), s));
        }
    }
    Ok((
        dir.into(),
        Settings { pooling_mode: sentence_transformers::st_pooling(dir)?, ..Settings::default() },
    ))
}
