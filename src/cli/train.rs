//! `llm2vec train`: the three stages of the recipe.

use crate::cli::{ComputeDtype, say, signal};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::train::blocks::Grouping;
use crate::train::config::{Stage, TrainConfig};
use crate::train::folder::Existing;
use crate::train::mask::{MaskToken, Strategy};
use crate::train::schedule::Decay;
use crate::train::{log, run};
use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

/// Train an adapter: masked next-token prediction, then contrastive learning.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec train mntp       -m DIR --data text.txt.gz --validation valid.txt -o mntp
  llm2vec train simcse     -m DIR --adapter mntp --data sentences.txt -o simcse
  llm2vec train supervised -m DIR --adapter mntp --data triplets.jsonl -o supervised
  llm2vec train simcse     --config train_configs/simcse/Mistral.json --resume")]
pub struct Train {
    #[command(subcommand)]
    stage: StageArgs,
}

#[derive(Subcommand)]
enum StageArgs {
    /// Masked next-token prediction on running text (one line after the other)
    Mntp(Flags),
    /// Contrastive learning of texts with themselves under another dropout (one text per line)
    Simcse(Flags),
    /// Contrastive learning on JSONL rows {"query", "positive", "negative"}: a file, or a folder of data sets
    Supervised(Flags),
}

/// What is not given comes from the configuration, then from the paper's settings of the stage.
#[derive(Args)]
struct Flags {
    /// JSON configuration: ours, or one of the reference implementation's
    #[arg(long, env = "LLM2VEC_CONFIG", value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// Model folder, or org/name[@revision] in the local Hugging Face cache
    #[arg(short, long, env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")]
    model: Option<String>,
    /// Adapter to merge before the new one is trained; repeat for several, in order
    #[arg(long, env = "LLM2VEC_ADAPTER", value_name = "DIR")]
    adapter: Vec<String>,
    /// Train the last --adapter on instead of merging it
    #[arg(long = "continue", env = "LLM2VEC_CONTINUE", value_parser = BoolishValueParser::new())]
    continue_adapter: bool,
    /// Training data (.gz and .zst too)
    #[arg(long, env = "LLM2VEC_DATA", value_name = "PATH")]
    data: Option<String>,
    /// mntp: text to evaluate on, with masks that never change
    #[arg(long, env = "LLM2VEC_VALIDATION", value_name = "PATH")]
    validation: Option<String>,
    /// supervised: JSON map of data set to instruction
    #[arg(long, env = "LLM2VEC_INSTRUCTIONS", value_name = "FILE.json")]
    instructions: Option<String>,
    /// Stop at the first bad row
    #[arg(long, env = "LLM2VEC_STRICT", value_parser = BoolishValueParser::new())]
    strict: bool,
    /// Folder of the run, one at a time: checkpoints, then the adapter; nothing that is read may be in the way
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "DIR")]
    output: Option<String>,
    /// Go on from the newest checkpoint in --output, bit for bit; model and data are known by content, not by name
    #[arg(long, env = "LLM2VEC_RESUME", value_parser = BoolishValueParser::new())]
    resume: bool,
    /// Delete the run that --output holds, and nothing that no run wrote
    #[arg(long, env = "LLM2VEC_OVERWRITE", value_parser = BoolishValueParser::new(), conflicts_with = "resume")]
    overwrite: bool,

    /// Steps of the optimiser, if the data's epochs do not end before [default: 1000]
    #[arg(long, env = "LLM2VEC_STEPS", value_name = "N", help_heading = "Recipe")]
    steps: Option<usize>,
    /// Passes over the data [default: 3]
    #[arg(long, env = "LLM2VEC_EPOCHS", value_name = "N", help_heading = "Recipe")]
    epochs: Option<f64>,
    /// Rows of a batch [default: 32 mntp, 128 simcse, 512 supervised]
    #[arg(long, env = "LLM2VEC_BATCH", value_name = "ROWS", help_heading = "Recipe")]
    batch: Option<usize>,
    /// Batches of a step [default: 1]
    #[arg(long, env = "LLM2VEC_ACCUMULATION", value_name = "N", help_heading = "Recipe")]
    accumulation: Option<usize>,
    /// Most tokens of a row [default: 512, simcse 128]
    #[arg(long, env = "LLM2VEC_MAX_LENGTH", value_name = "TOKENS", help_heading = "Recipe")]
    max_length: Option<usize>,
    /// Highest learning rate [default: 5e-5 mntp, 3e-5 simcse, 2e-4 supervised]
    #[arg(long, env = "LLM2VEC_LR", value_name = "RATE", help_heading = "Recipe")]
    lr: Option<f64>,
    /// Steps of linear warm-up [default: 0, supervised 300]
    #[arg(long, env = "LLM2VEC_WARMUP", value_name = "STEPS", help_heading = "Recipe")]
    warmup: Option<usize>,
    /// Where the learning rate reaches 0: at the end of all epochs, or of the steps that are run [default: epochs]
    #[arg(long, env = "LLM2VEC_DECAY", value_name = "WHERE", help_heading = "Recipe")]
    decay: Option<DecayFlag>,
    /// Decoupled weight decay [default: 0]
    #[arg(long, env = "LLM2VEC_WEIGHT_DECAY", value_name = "RATE", help_heading = "Recipe")]
    weight_decay: Option<f64>,
    /// Norm that gradients are clipped to; 0 is none [default: 1]
    #[arg(long, env = "LLM2VEC_CLIP", value_name = "NORM", help_heading = "Recipe")]
    clip: Option<f64>,
    /// Seed of everything [default: 42]
    #[arg(long, env = "LLM2VEC_SEED", value_name = "N", help_heading = "Recipe")]
    seed: Option<u64>,
    /// LoRA rank [default: 16]
    #[arg(long, env = "LLM2VEC_RANK", value_name = "R", help_heading = "Recipe")]
    rank: Option<usize>,
    /// LoRA alpha [default: twice the rank]
    #[arg(long, env = "LLM2VEC_ALPHA", value_name = "ALPHA", help_heading = "Recipe")]
    alpha: Option<f64>,
    /// Dropout of LoRA's input [default: 0.05]
    #[arg(long, env = "LLM2VEC_LORA_DROPOUT", value_name = "RATE", help_heading = "Recipe")]
    lora_dropout: Option<f64>,
    /// Projections with LoRA, commas between [default: all seven]
    #[arg(
        long,
        env = "LLM2VEC_MODULES",
        value_delimiter = ',',
        value_name = "NAMES",
        help_heading = "Recipe"
    )]
    modules: Vec<String>,
    /// full, or causal to train without bidirectional attention [default: full]
    #[arg(long, env = "LLM2VEC_ATTENTION", value_name = "MASK", help_heading = "Recipe")]
    attention: Option<AttentionFlag>,

    /// Part of the tokens that are masked [default: 0.2]
    #[arg(long, env = "LLM2VEC_MASK_PROBABILITY", value_name = "P", help_heading = "MNTP")]
    mask_probability: Option<f64>,
    /// bert (80 % mask, 10 % random, 10 % kept) or all [default: bert]
    #[arg(long, env = "LLM2VEC_MASK_STRATEGY", value_name = "HOW", help_heading = "MNTP")]
    mask_strategy: Option<StrategyFlag>,
    /// The token that hides others [default: the tokenizer's own mask token, else `_`]
    #[arg(long, env = "LLM2VEC_MASK_TOKEN", value_name = "TOKEN", help_heading = "MNTP")]
    mask_token: Option<MaskTokenFlag>,
    /// How lines make rows: joined (as the reference), apart (attention stays in a line), lines [default: joined]
    #[arg(long, env = "LLM2VEC_GROUPING", value_name = "HOW", help_heading = "MNTP")]
    grouping: Option<GroupingFlag>,
    /// Train the language-model head too
    #[arg(long, env = "LLM2VEC_TRAIN_HEAD", value_parser = BoolishValueParser::new(), help_heading = "MNTP")]
    train_head: bool,

    /// mean, weighted-mean, last, eos or bos [default: mean]
    #[arg(long, env = "LLM2VEC_POOLING", value_name = "MODE", help_heading = "Contrastive")]
    pooling: Option<String>,
    /// Cosines are multiplied by this [default: 20 simcse, 50 supervised]
    #[arg(long, env = "LLM2VEC_SCALE", value_name = "S", help_heading = "Contrastive")]
    scale: Option<f64>,
    /// simcse: dropout of attention probabilities [default: 0.3]
    #[arg(long, env = "LLM2VEC_ATTENTION_DROPOUT", value_name = "RATE", help_heading = "Contrastive")]
    attention_dropout: Option<f64>,
    /// supervised: hard negatives that are taken from a row at most [default: 1]
    #[arg(long, env = "LLM2VEC_HARD_NEGATIVES", value_name = "K", help_heading = "Contrastive")]
    hard_negatives: Option<usize>,
    /// A candidate that is the same text as the positive is no negative
    #[arg(long, env = "LLM2VEC_MASK_FALSE_NEGATIVES", value_parser = BoolishValueParser::new(), help_heading = "Contrastive")]
    mask_false_negatives: bool,
    /// Nor is one whose cosine exceeds the positive's by more than this
    #[arg(long, env = "LLM2VEC_FALSE_NEGATIVE_MARGIN", value_name = "COSINE", help_heading = "Contrastive")]
    false_negative_margin: Option<f64>,

    /// Run so many texts at a time, with the gradient of the whole batch
    #[arg(long, env = "LLM2VEC_GRAD_CACHE", value_name = "CHUNK", help_heading = "Machine")]
    grad_cache: Option<usize>,
    /// Keep only block inputs and compute the rest again in the backward; the numbers are the same bit for bit
    #[arg(long, env = "LLM2VEC_RECOMPUTE", value_parser = BoolishValueParser::new(), help_heading = "Machine")]
    recompute: bool,
    /// Stop at the first NaN or infinity in an activation or its gradient, and say in which layer and tensor
    #[arg(long, env = "LLM2VEC_CHECK_FINITE", value_parser = BoolishValueParser::new(), help_heading = "Machine")]
    check_finite: bool,
    /// On a GPU: queue kernel by kernel, not each forward, backward and update as one CUDA graph; the same bits
    #[arg(long, env = "LLM2VEC_NO_GRAPH", value_parser = BoolishValueParser::new(), help_heading = "Machine")]
    no_graph: bool,
    /// On the CPU: compute in f32, or keep frozen weights as bf16 and multiply in bf16; a GPU does the latter always
    #[arg(
        long,
        env = "LLM2VEC_DTYPE",
        value_name = "DTYPE",
        default_value = "f32",
        help_heading = "Machine"
    )]
    dtype: ComputeDtype,
    /// auto (a GPU if one answers), cpu, cuda[:N] or emulated[:80|:90]
    #[arg(
        long,
        env = "LLM2VEC_DEVICE",
        value_name = "DEVICE",
        default_value = "auto",
        help_heading = "Machine"
    )]
    device: String,

    /// Steps between checkpoints [default: 200]
    #[arg(long, env = "LLM2VEC_SAVE_STEPS", value_name = "N", help_heading = "Output")]
    save_steps: Option<usize>,
    /// Checkpoints to keep [default: all]
    #[arg(long, env = "LLM2VEC_KEEP", value_name = "K", help_heading = "Output")]
    keep: Option<usize>,
    /// mntp: steps between evaluations [default: 100]
    #[arg(long, env = "LLM2VEC_EVAL_STEPS", value_name = "N", help_heading = "Output")]
    eval_steps: Option<usize>,
    /// Steps between lines on stderr [default: 50]
    #[arg(long, env = "LLM2VEC_LOG_STEPS", value_name = "N", help_heading = "Output")]
    log_steps: Option<usize>,
    /// Every step as JSON [default: log.jsonl in --output]
    #[arg(long, env = "LLM2VEC_LOG", value_name = "FILE.jsonl", help_heading = "Output")]
    log: Option<PathBuf>,
    /// Every step as TensorBoard events
    #[arg(long, env = "LLM2VEC_TENSORBOARD", value_name = "DIR", help_heading = "Output")]
    tensorboard: Option<PathBuf>,
    /// Draw loss and learning rate at the end
    #[arg(long, env = "LLM2VEC_PLOT", value_name = "FILE.svg", help_heading = "Output")]
    plot: Option<PathBuf>,
    /// Nothing on stderr but errors
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DecayFlag {
    Epochs,
    Steps,
}

#[derive(Clone, Copy, ValueEnum)]
enum AttentionFlag {
    Full,
    Causal,
}

#[derive(Clone, Copy, ValueEnum)]
enum StrategyFlag {
    #[value(alias = "default")]
    Bert,
    #[value(alias = "all_mask")]
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum MaskTokenFlag {
    Auto,
    Blank,
    Eos,
    Mask,
}

#[derive(Clone, Copy, ValueEnum)]
enum GroupingFlag {
    Joined,
    Apart,
    Lines,
}

impl Train {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let (stage, flags) = match self.stage {
            StageArgs::Mntp(flags) => (Stage::Mntp, flags),
            StageArgs::Simcse(flags) => (Stage::Simcse, flags),
            StageArgs::Supervised(flags) => (Stage::Supervised, flags),
        };
        flags.run(stage)
    }
}

/// Takes a flag's value over, if it was given.
fn set<T>(to: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *to = value;
    }
}

impl Flags {
    fn run(self, stage: Stage) -> Result<()> {
        let config = self.configuration(stage)?;
        let existing = match (self.resume, self.overwrite || config.overwrite_output_dir) {
            (true, _) => Existing::Resume,
            (false, true) => Existing::Overwrite,
            (false, false) => Existing::Refuse,
        };
        let beside = config.output_dir.as_ref().map(|dir| Path::new(dir).join("log.jsonl"));
        run::run(run::Options {
            config,
            device: Device::by_name(&self.device)?,
            bf16: matches!(self.dtype, ComputeDtype::Bf16),
            check_finite: self.check_finite,
            graph: !self.no_graph,
            existing,
            source: self.config,
            log: log::Options {
                quiet: self.quiet,
                jsonl: self.log.or(beside),
                tensorboard: self.tensorboard,
                ..log::Options::default()
            },
            plot: self.plot,
            stop: signal::stop_flag()?,
        })
    }

    /// The file's settings, and the flags over them.
    fn configuration(&self, stage: Stage) -> Result<TrainConfig> {
        let mut c = match &self.config {
            None => TrainConfig::new(stage),
            Some(path) => {
                let (config, ignored) = TrainConfig::read(path, stage)?;
                if !ignored.is_empty() && !self.quiet {
                    say(format_args!("warning: {}: no meaning here: {}", path.display(), ignored.join(", ")));
                }
                config
            }
        };
        self.set_files(&mut c);
        self.set_recipe(&mut c);
        c.validate().map_err(Error::Usage)?;
        Ok(c)
    }

    fn set_files(&self, c: &mut TrainConfig) {
        let some = |v: &Option<String>| v.clone().map(Some);
        set(&mut c.model_name_or_path, some(&self.model));
        if !self.adapter.is_empty() {
            c.peft_model_name_or_path.clone_from(&self.adapter);
        }
        c.continue_adapter |= self.continue_adapter;
        if self.data.is_some() {
            c.train_file.clone_from(&self.data);
        }
        set(&mut c.validation_file, some(&self.validation));
        set(&mut c.instructions, some(&self.instructions));
        c.strict |= self.strict;
        set(&mut c.output_dir, some(&self.output));
        c.overwrite_output_dir &= !self.resume;
        set(&mut c.save_steps, self.save_steps);
        set(&mut c.save_total_limit, self.keep.map(Some));
        set(&mut c.eval_steps, self.eval_steps);
        set(&mut c.logging_steps, self.log_steps);
        set(&mut c.grad_cache, self.grad_cache);
        c.gradient_checkpointing |= self.recompute;
    }

    fn set_recipe(&self, c: &mut TrainConfig) {
        set(&mut c.stop_after_n_steps, self.steps);
        set(&mut c.num_train_epochs, self.epochs);
        set(&mut c.per_device_train_batch_size, self.batch);
        set(&mut c.gradient_accumulation_steps, self.accumulation);
        set(&mut c.max_seq_length, self.max_length);
        set(&mut c.learning_rate, self.lr);
        set(&mut c.warmup_steps, self.warmup);
        set(
            &mut c.decay,
            self.decay.map(|d| match d {
                DecayFlag::Epochs => Decay::Epochs,
                DecayFlag::Steps => Decay::Steps,
            }),
        );
        set(&mut c.weight_decay, self.weight_decay);
        set(&mut c.max_grad_norm, self.clip);
        set(&mut c.seed, self.seed);
        set(&mut c.lora_r, self.rank);
        set(&mut c.lora_alpha, self.alpha.map(Some));
        set(&mut c.lora_dropout, self.lora_dropout);
        if !self.modules.is_empty() {
            c.lora_modules.clone_from(&self.modules);
        }
        set(&mut c.bidirectional, self.attention.map(|a| matches!(a, AttentionFlag::Full)));
        set(&mut c.mlm_probability, self.mask_probability);
        set(
            &mut c.data_collator_type,
            self.mask_strategy.map(|s| match s {
                StrategyFlag::Bert => Strategy::Bert,
                StrategyFlag::All => Strategy::AllMask,
            }),
        );
        set(
            &mut c.mask_token_type,
            self.mask_token.map(|t| match t {
                MaskTokenFlag::Auto => MaskToken::Auto,
                MaskTokenFlag::Blank => MaskToken::Blank,
                MaskTokenFlag::Eos => MaskToken::Eos,
                MaskTokenFlag::Mask => MaskToken::Mask,
            }),
        );
        set(
            &mut c.grouping,
            self.grouping.map(|g| match g {
                GroupingFlag::Joined => Grouping::Joined,
                GroupingFlag::Apart => Grouping::Apart,
                GroupingFlag::Lines => Grouping::Lines,
            }),
        );
        c.train_head |= self.train_head;
        set(&mut c.pooling_mode, self.pooling.clone());
        set(&mut c.loss_scale, self.scale);
        set(&mut c.simcse_dropout, self.attention_dropout);
        set(&mut c.hard_negatives, self.hard_negatives);
        c.mask_false_negatives |= self.mask_false_negatives;
        set(&mut c.false_negative_margin, self.false_negative_margin.map(Some));
    }
}
