//! The flags of an ablation, and what they make of each stage's configuration.

use super::plan::{Plan, Task};
use crate::cli::KernelSetFlags;
use crate::cli::lists::Listed;
use crate::device::images::KernelSet;
use crate::encode::texts::Empty;
use crate::encode::words::LabelPosition;
use crate::error::{Error, Result, message};
use crate::eval::probe;
use crate::pretrained::open::Compute;
use crate::pretrained::pooling::PoolingMode;
use crate::train::blocks::Grouping;
use crate::train::config::{Stage, TrainConfig, Trimmed};
use crate::train::schedule::Decay;
use clap::Args;
use clap::builder::{BoolishValueParser, EnumValueParser, NonEmptyStringValueParser};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The paper's ablation (tables 4 and 5) by one command: train every variant, evaluate each by every pooling, compare.
#[derive(Args)]
#[command(after_help = "Example:
  llm2vec ablate -m DIR --mntp text.txt.gz --simcse sentences.txt.gz --supervised triplets.jsonl.gz \\
      --tasks sts/stsb.test.tsv retrieval/xquad-en classification/banking77 \\
      --words word/ud-ewt:chunk word/ud-ewt:upos word/conll2003:ner -o ablation
Variants: Uni (causal), Bi (full attention, untrained), Bi+MNTP, Uni+SimCSE, Bi+SimCSE, Bi+MNTP+SimCSE, Bi+MNTP+supervised;
those whose data is not given are left out. Every adapter is trained once a seed. A run that was stopped goes on when the
same command is given again, and ends in the same files.")]
pub struct Ablate {
    /// Model folder, or org/name or org/name@revision in the local Hugging Face cache
    #[arg(short, long, env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")]
    pub model: String,
    /// Running text for MNTP (.gz and .zst too)
    #[arg(long, env = "LLM2VEC_MNTP", value_name = "TEXT")]
    pub mntp: Option<PathBuf>,
    /// Text to evaluate MNTP on
    #[arg(long, env = "LLM2VEC_MNTP_VALIDATION", value_name = "TEXT", requires = "mntp")]
    pub mntp_validation: Option<PathBuf>,
    /// Sentences for unsupervised SimCSE, one per line
    #[arg(long, env = "LLM2VEC_SIMCSE", value_name = "SENTENCES")]
    pub simcse: Option<PathBuf>,
    /// JSONL rows {"query", "positive", "negative"} for supervised training: a file, or a folder of data sets
    #[arg(long, env = "LLM2VEC_SUPERVISED", value_name = "TRIPLETS")]
    pub supervised: Option<PathBuf>,
    /// What to evaluate on: sets as `eval` takes them, STS files (.tsv), or folders of such; a set's type is seen from its files
    #[arg(long, env = "LLM2VEC_TASKS", value_name = "PATH", num_args = 1.., required_unless_present = "words")]
    pub tasks: Vec<Listed>,
    /// Folder of the ablation
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "DIR")]
    pub output: PathBuf,
    /// Train everything with each of these seeds
    #[arg(long, env = "LLM2VEC_SEEDS", value_delimiter = ',', default_value = "1,2,3", value_name = "N,…", value_parser = |text: &str| text.trim().parse::<u64>())]
    pub seeds: Vec<u64>,
    /// Evaluate by each of these poolings; contrastive training is by the mean
    #[arg(
        long,
        env = "LLM2VEC_POOLING",
        value_delimiter = ',',
        default_value = "eos,mean,weighted-mean",
        value_name = "MODE,…",
        value_parser = Trimmed(EnumValueParser::<PoolingMode>::new()),
        hide_possible_values = true
    )]
    pub pooling: Vec<PoolingMode>,
    /// JSON {"task": "instruction"} or {"task": {"query", "document"}} for the evaluation, by the names of the sets
    #[arg(long, env = "LLM2VEC_INSTRUCTIONS", value_name = "FILE")]
    pub instructions: Option<PathBuf>,
    /// What an empty text gives: an error, or a vector of zeros
    #[arg(long, env = "LLM2VEC_EMPTY", default_value = "error", value_name = "WHAT")]
    pub empty: Empty,
    #[command(flatten)]
    pub words: WordFlags,
    #[command(flatten)]
    pub stages: StageFlags,
    /// On the CPU: compute in f32, or keep frozen weights as bf16 and multiply in bf16; a GPU does the latter always
    #[arg(
        long,
        env = "LLM2VEC_DTYPE",
        value_name = "DTYPE",
        default_value = "f32",
        help_heading = "Machine"
    )]
    pub dtype: Compute,
    /// auto (a GPU if one answers), cpu, cuda[:N] or emulated[:80|:90]
    #[arg(
        long,
        env = "LLM2VEC_DEVICE",
        value_name = "DEVICE",
        default_value = "auto",
        help_heading = "Machine"
    )]
    pub device: String,
    #[command(flatten)]
    pub kernels: KernelSetFlags,
    /// Nothing on stderr but errors
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    pub quiet: bool,
}

/// Word-level tasks: a linear probe on the features of each variant, as `eval words` trains it.
#[derive(Args)]
#[command(next_help_heading = "Words")]
pub struct WordFlags {
    /// Tagged words to evaluate on: --data of `eval words` and its --label, as word/ud-ewt:chunk; one pass serves all labels of a folder
    #[arg(long, env = "LLM2VEC_WORDS", value_name = "FOLDER:LABEL", num_args = 1.., value_delimiter = ',', value_parser = Trimmed(NonEmptyStringValueParser::new()))]
    pub words: Vec<String>,
    /// Which states stand for a word in every variant: its tokens', or those one token earlier [default: before where MNTP is below, else same]
    #[arg(long, env = "LLM2VEC_LABEL_POSITION", value_name = "PLACE", requires = "words")]
    pub label_position: Option<LabelPosition>,
    /// Steps of a probe
    #[arg(long = "words-steps", env = "LLM2VEC_WORDS_STEPS", value_name = "N", requires = "words",
        default_value_t = probe::Options::default().stop_after)]
    steps: usize,
    /// Learning rate of a probe's first step
    #[arg(long = "words-lr", env = "LLM2VEC_WORDS_LR", value_name = "RATE", requires = "words",
        default_value_t = probe::Options::default().rate)]
    rate: f64,
}

impl WordFlags {
    /// How probes are trained.
    pub fn probe(&self) -> probe::Options {
        probe::Options { stop_after: self.steps, rate: self.rate, ..probe::Options::default() }
    }
}

/// What is other than this command's own recipe, which is that of a model of a few million weights.
#[derive(Args)]
#[command(next_help_heading = "Training")]
pub struct StageFlags {
    /// Steps of MNTP [default: 300]
    #[arg(long, env = "LLM2VEC_MNTP_STEPS", value_name = "N")]
    mntp_steps: Option<usize>,
    /// Rows of a batch [default: 32]
    #[arg(long, env = "LLM2VEC_MNTP_BATCH", value_name = "ROWS")]
    mntp_batch: Option<usize>,
    /// Most tokens of a row, which is a line [default: 96]
    #[arg(long, env = "LLM2VEC_MNTP_MAX_LENGTH", value_name = "TOKENS")]
    mntp_max_length: Option<usize>,
    /// Highest learning rate [default: 1e-3]
    #[arg(long, env = "LLM2VEC_MNTP_LR", value_name = "RATE")]
    mntp_lr: Option<f64>,
    /// All settings of MNTP, as `train mntp` reads them, in place of these defaults
    #[arg(long, env = "LLM2VEC_MNTP_CONFIG", value_name = "FILE.json")]
    mntp_config: Option<PathBuf>,
    /// Steps of SimCSE [default: 150]
    #[arg(long, env = "LLM2VEC_SIMCSE_STEPS", value_name = "N")]
    simcse_steps: Option<usize>,
    /// Rows of a batch [default: 64]
    #[arg(long, env = "LLM2VEC_SIMCSE_BATCH", value_name = "ROWS")]
    simcse_batch: Option<usize>,
    /// Most tokens of a row [default: 64]
    #[arg(long, env = "LLM2VEC_SIMCSE_MAX_LENGTH", value_name = "TOKENS")]
    simcse_max_length: Option<usize>,
    /// Highest learning rate [default: 3e-4]
    #[arg(long, env = "LLM2VEC_SIMCSE_LR", value_name = "RATE")]
    simcse_lr: Option<f64>,
    /// Dropout of attention probabilities [default: 0.2]
    #[arg(long, env = "LLM2VEC_SIMCSE_ATTENTION_DROPOUT", value_name = "RATE")]
    simcse_attention_dropout: Option<f64>,
    /// All settings of SimCSE, as `train simcse` reads them, in place of these defaults
    #[arg(long, env = "LLM2VEC_SIMCSE_CONFIG", value_name = "FILE.json")]
    simcse_config: Option<PathBuf>,
    /// Steps of supervised training [default: 200]
    #[arg(long, env = "LLM2VEC_SUPERVISED_STEPS", value_name = "N")]
    supervised_steps: Option<usize>,
    /// Rows of a batch [default: 64]
    #[arg(long, env = "LLM2VEC_SUPERVISED_BATCH", value_name = "ROWS")]
    supervised_batch: Option<usize>,
    /// Most tokens of a row [default: 64]
    #[arg(long, env = "LLM2VEC_SUPERVISED_MAX_LENGTH", value_name = "TOKENS")]
    supervised_max_length: Option<usize>,
    /// Highest learning rate [default: 1e-3]
    #[arg(long, env = "LLM2VEC_SUPERVISED_LR", value_name = "RATE")]
    supervised_lr: Option<f64>,
    /// All settings of supervised training, as `train supervised` reads them, in place of these defaults
    #[arg(long, env = "LLM2VEC_SUPERVISED_CONFIG", value_name = "FILE.json")]
    supervised_config: Option<PathBuf>,
}

/// The fields that have flags of their own, and how these end.
const FIELDS: [(&str, &str); 5] = [
    ("stop_after_n_steps", "steps"),
    ("per_device_train_batch_size", "batch"),
    ("max_seq_length", "max-length"),
    ("learning_rate", "lr"),
    ("simcse_dropout", "attention-dropout"),
];

/// Fields that each training fills in for itself.
const FILLED: [&str; 8] = [
    "stage",
    "model_name_or_path",
    "peft_model_name_or_path",
    "train_file",
    "validation_file",
    "output_dir",
    "seed",
    "bidirectional",
];

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Mntp => "mntp",
        Stage::Simcse => "simcse",
        Stage::Supervised => "supervised",
    }
}

/// The flag that sets a field of a stage, or names the file that does.
fn flag(stage: Stage, field: &str) -> String {
    let own = FIELDS.iter().find(|(key, _)| *key == field);
    let own = own.filter(|(_, end)| *end != "attention-dropout" || stage == Stage::Simcse);
    own.map_or_else(
        || format!("--{}-config: {field}", name(stage)),
        |(_, end)| format!("--{}-{end}", name(stage)),
    )
}

/// This command's recipe: the reference figures' of a small model.
fn recipe(stage: Stage) -> TrainConfig {
    let mut config = TrainConfig::new(stage);
    let choose = |[mntp, simcse, supervised]: [usize; 3]| match stage {
        Stage::Mntp => mntp,
        Stage::Simcse => simcse,
        Stage::Supervised => supervised,
    };
    config.stop_after_n_steps = choose([300, 150, 200]);
    config.per_device_train_batch_size = choose([32, 64, 64]);
    config.max_seq_length = choose([96, 64, 64]);
    config.warmup_steps = choose([20, 0, 20]);
    config.learning_rate = if stage == Stage::Simcse { 3e-4 } else { 1e-3 };
    config.decay = Decay::Steps;
    config.save_steps = 50;
    match stage {
        Stage::Mntp => config.grouping = Grouping::Lines,
        Stage::Simcse => config.simcse_dropout = 0.2,
        Stage::Supervised => config.loss_scale = 20.0,
    }
    config
}

impl Ablate {
    /// The data of a stage.
    pub fn data(&self, stage: Stage) -> Option<&Path> {
        match stage {
            Stage::Mntp => self.mntp.as_deref(),
            Stage::Simcse => self.simcse.as_deref(),
            Stage::Supervised => self.supervised.as_deref(),
        }
    }

    /// The file that sets a stage.
    pub fn config_file(&self, stage: Stage) -> Option<&Path> {
        let s = &self.stages;
        let file = match stage {
            Stage::Mntp => &s.mntp_config,
            Stage::Simcse => &s.simcse_config,
            Stage::Supervised => &s.supervised_config,
        };
        file.as_deref()
    }

    /// A stage's settings: the recipe or the file, and over it the flags.
    pub fn config(&self, stage: Stage) -> Result<TrainConfig> {
        let mut config = match self.config_file(stage) {
            Some(file) => TrainConfig::read(file, stage)?.0,
            None => recipe(stage),
        };
        let s = &self.stages;
        let (steps, batch, length, rate) = match stage {
            Stage::Mntp => (s.mntp_steps, s.mntp_batch, s.mntp_max_length, s.mntp_lr),
            Stage::Simcse => (s.simcse_steps, s.simcse_batch, s.simcse_max_length, s.simcse_lr),
            Stage::Supervised => {
                (s.supervised_steps, s.supervised_batch, s.supervised_max_length, s.supervised_lr)
            }
        };
        config.stop_after_n_steps = steps.unwrap_or(config.stop_after_n_steps);
        config.per_device_train_batch_size = batch.unwrap_or(config.per_device_train_batch_size);
        config.max_seq_length = length.unwrap_or(config.max_seq_length);
        config.learning_rate = rate.unwrap_or(config.learning_rate);
        if stage == Stage::Simcse {
            config.simcse_dropout = s.simcse_attention_dropout.unwrap_or(config.simcse_dropout);
        }
        config.save_total_limit = Some(1);
        let named = |invalid: crate::train::config::Invalid| {
            Error::usage(message![format!("{} ", flag(stage, invalid.key)), invalid.what])
        };
        config.validate().map_err(named)?;
        if let Some(data) = self.data(stage) {
            std::fs::metadata(data).map_err(|e| Error::io(data, e))?;
        }
        Ok(config)
    }

    /// All that decides the figures, by the flags that set it.
    pub fn settings(&self, configs: &[TrainConfig; 3], plan: &Plan) -> Value {
        let mut all = Map::new();
        let mut put = |flag: &str, value: Value| drop(all.insert(flag.into(), value));
        put("--model", json!(self.model));
        put("--mntp-validation", json!(self.mntp_validation));
        put("--seeds", json!(self.seeds));
        put("--instructions", json!(self.instructions));
        put("--empty", json!(format!("{:?}", self.empty).to_lowercase()));
        put("--dtype", json!(format!("{:?}", self.dtype).to_lowercase()));
        put("--device", json!(self.device));
        // Likewise on a GPU; a folder that was begun without the flag goes on.
        if self.kernels.set != KernelSet::Auto {
            put("--kernels", json!(format!("{:?}", self.kernels.set).to_lowercase()));
        }
        put("--pooling", json!(self.pooling));
        // Paths too: another folder may hold a set of that name.
        let tasks = || plan.sections.iter().flat_map(|section| &section.tasks);
        let paths = |of_words: bool| {
            let tasks = tasks().filter(|task| matches!(task, Task::Words(_)) == of_words);
            Value::Object(tasks.map(|task| (task.id(), json!(task.path()))).collect())
        };
        put("--tasks", paths(false));
        // None but where they are given: a folder that was begun without them goes on.
        if !self.words.words.is_empty() {
            put("--words", paths(true));
            put("--words-steps", json!(self.words.steps));
            put("--words-lr", json!(self.words.rate));
            if let Some(position) = self.words.label_position {
                put("--label-position", json!(position.name()));
            }
        }
        for config in configs {
            let stage = config.stage;
            put(&format!("--{}", name(stage)), json!(self.data(stage)));
            let Value::Object(fields) = json!(config) else { continue };
            for (key, value) in fields.into_iter().filter(|(key, _)| !FILLED.contains(&&**key)) {
                put(&flag(stage, &key), value);
            }
        }
        Value::Object(all)
    }
}
