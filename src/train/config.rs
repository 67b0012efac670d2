//! What a run trains and how: the paper's defaults, the reference's JSON files, ours, and the command's flags.
//!
//! A setting is one row of the table below. Keys are the reference's own where it has one, so a file of ours is one of
//! theirs with a few keys more. A flag goes over a file, a file over the stage's default.

mod check;
mod json;
mod table;
#[cfg(feature = "cli")]
mod trimmed;

pub use check::Invalid;
#[cfg(feature = "cli")]
pub use trimmed::Trimmed;

use crate::format::keys::one_or_many;
use crate::ops::contrastive::LossDtype;
use crate::pretrained::pooling::PoolingMode;
use crate::text::template::Template;
use crate::train::blocks::Grouping;
use crate::train::mask::{MaskToken, Strategy};
use crate::train::ranks::Reduce;
use crate::train::schedule::{Decay, Plan, Shape};
use check::{
    MOST, fraction, fraction_above_0, fraction_below_1, integer, number_above_0, number_from_0, optional,
};
#[cfg(feature = "cli")]
use clap::ArgAction;
#[cfg(feature = "cli")]
use clap::builder::{BoolishValueParser, EnumValueParser, PossibleValuesParser, TypedValueParser};
use serde::{Deserialize, Serialize};
use table::settings;

/// The three stages of the recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Stage {
    /// Masked next-token prediction.
    Mntp,
    /// Unsupervised contrastive learning: a text and itself under another dropout.
    Simcse,
    /// Supervised contrastive learning on triples.
    Supervised,
}

impl Stage {
    /// As the command has it.
    pub fn name(self) -> &'static str {
        self.choose(["mntp", "simcse", "supervised"])
    }

    /// The value of this stage: MNTP's, SimCSE's or that of supervised training.
    fn choose<T>(self, [mntp, simcse, supervised]: [T; 3]) -> T {
        match self {
            Stage::Mntp => mntp,
            Stage::Simcse => simcse,
            Stage::Supervised => supervised,
        }
    }
}

/// Name under which the effective configuration lies beside the adapter.
pub const FILE: &str = crate::pretrained::chain::RUN_FILE;

/// A projection of a block, as checkpoints name it and PEFT lists it among its `target_modules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
#[allow(missing_docs, clippy::enum_variant_names)] // their names say it
pub enum TargetModule {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

use TargetModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};

impl TargetModule {
    /// In the order of a block.
    pub const ALL: [TargetModule; 7] = [QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj];

    /// Its name in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            QProj => "q_proj",
            KProj => "k_proj",
            VProj => "v_proj",
            OProj => "o_proj",
            GateProj => "gate_proj",
            UpProj => "up_proj",
            DownProj => "down_proj",
        }
    }
}

/// The optimiser; there is one, under the names that Transformers has for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    #[default]
    /// AdamW with its moments in f32.
    #[serde(
        alias = "adamw_torch_fused",
        alias = "adamw_hf",
        alias = "adamw_apex_fused",
        alias = "adamw_torch_xla"
    )]
    AdamwTorch,
}

/// The contrastive loss; there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    #[default]
    /// InfoNCE over in-batch and hard negatives, by the reference's name.
    HardNegativeNLLLoss,
}

settings! {
    /// Model folder, or org/name or org/name@revision in the local Hugging Face cache
    flag(short, long = "model", env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")
    model_name_or_path: Option<String> = None;
    /// Adapter to merge before the new one is trained; repeat for several, in order
    #[serde(deserialize_with = "one_or_many")]
    flag(long = "adapter", env = "LLM2VEC_ADAPTER", value_name = "DIR")
    peft_model_name_or_path: Vec<String> = Vec::new();
    /// Train the last --adapter on instead of merging it
    // The paper's MNTP + SimCSE + supervised.
    flag(long = "continue", env = "LLM2VEC_CONTINUE", value_parser = BoolishValueParser::new())
    continue_adapter: bool = false;
    /// Training data: text, or JSON lines, a JSON array, CSV, TSV, Parquet, Arrow by content (.gz and .zst too)
    flag(long = "data", env = "LLM2VEC_DATA", value_name = "PATH")
    train_file: Option<String> = None;
    /// Training data where `train_file` is absent: a file or a folder of files.
    flag(skip)
    dataset_file_path: Option<String> = None;
    /// The form of the data: `E5` (supervised, with its instructions) or `Wiki1M` (simcse). Another name is one that the
    /// reference downloads, and is replaced by files.
    flag(skip)
    dataset_name: Option<String> = None, optional(check::dataset);
    /// What to evaluate on: mntp text, with masks that never change; else pairs as `eval sts` has them, or held-out rows
    flag(long = "validation", env = "LLM2VEC_VALIDATION", value_name = "PATH")
    validation_file: Option<String> = None;
    /// supervised: JSON map of data set to instruction
    flag(long, env = "LLM2VEC_INSTRUCTIONS", value_name = "FILE.json")
    instructions: Option<String> = None;
    /// Symmetric tasks of E5 have their instruction on both sides; `false` is the released code (Q-D2).
    flag(skip)
    document_instructions: bool = true;
    /// The column of a table, or the key of JSON, that holds a text [default: text]
    flag(long, env = "LLM2VEC_TEXT_COLUMN", value_name = "NAME")
    text_column: Option<String> = None;
    /// Stop at the first bad row
    flag(long, env = "LLM2VEC_STRICT", value_parser = BoolishValueParser::new())
    strict: bool = false;
    /// Folder of the run, one at a time: checkpoints, then the adapter; nothing that is read may be in the way
    flag(short, long = "output", env = "LLM2VEC_OUTPUT", value_name = "DIR")
    output_dir: Option<String> = None;
    /// Whether that folder may hold a run already. What a command asks for is of one run, and not recorded.
    flag(skip)
    overwrite_output_dir: bool = false;

    /// Steps of the optimiser, if the data's epochs do not end before [default: 1000]
    flag(long = "steps", env = "LLM2VEC_STEPS", value_name = "N", help_heading = "Recipe")
    stop_after_n_steps: usize = 1000, integer(1, usize::MAX);
    /// Steps of the schedule in place of the epochs', where above 0. In a file it is what `stop_after_n_steps` is by default.
    flag(skip)
    max_steps: i64 = -1;
    /// Passes over the data [default: 3]
    flag(long = "epochs", env = "LLM2VEC_EPOCHS", value_name = "N", help_heading = "Recipe")
    num_train_epochs: f64 = 3.0, number_above_0();
    /// Rows of a batch, over all ranks; in a file without `slices`, as the reference's, of each [default: 32 mntp, 128 simcse, 512 supervised]
    // The paper's supervised runs have 8 devices with 64 each.
    flag(long = "batch", env = "LLM2VEC_BATCH", value_name = "ROWS", help_heading = "Recipe")
    per_device_train_batch_size: usize => [32, 128, 512], check::batch;
    /// Rows of an evaluation batch.
    flag(skip)
    per_device_eval_batch_size: usize = 32, integer(1, MOST);
    /// Batches of a step; the last of an epoch may have fewer [default: 1]
    flag(long = "accumulation", env = "LLM2VEC_ACCUMULATION", value_name = "N", help_heading = "Recipe")
    gradient_accumulation_steps: usize = 1, integer(1, MOST);
    /// Drop a last batch that is not whole.
    flag(skip)
    dataloader_drop_last: bool = false;
    /// Most tokens of a row [default: 512, simcse 128]
    flag(long = "max-length", env = "LLM2VEC_MAX_LENGTH", value_name = "TOKENS", help_heading = "Recipe")
    max_seq_length: usize => [512, 128, 512], integer(1, MOST);
    /// Highest learning rate [default: 5e-5 mntp, 3e-5 simcse, 2e-4 supervised]
    flag(long = "lr", env = "LLM2VEC_LR", value_name = "RATE", help_heading = "Recipe")
    learning_rate: f64 => [5e-5, 3e-5, 2e-4], number_above_0();
    /// Steps of linear warm-up [default: 0, supervised 300]
    flag(long = "warmup", env = "LLM2VEC_WARMUP", value_name = "STEPS", help_heading = "Recipe")
    warmup_steps: usize => [0, 0, 300];
    /// Warm-up as a part of the schedule, where `warmup_steps` is 0.
    flag(skip)
    warmup_ratio: f64 = 0.0, fraction();
    /// Where the learning rate reaches 0: at the end of all epochs, or of the steps that are run [default: epochs]
    flag(long, env = "LLM2VEC_DECAY", value_name = "WHERE", help_heading = "Recipe")
    decay: Decay = Decay::Epochs;
    /// linear, cosine, constant or constant_with_warmup [default: linear]
    flag(long = "schedule", env = "LLM2VEC_SCHEDULE", value_name = "SHAPE", hide_possible_values = true, help_heading = "Recipe")
    lr_scheduler_type: Shape = Shape::Linear;
    /// The optimiser; there is one.
    flag(skip)
    optim: Optimizer = Optimizer::AdamwTorch;
    /// Decoupled weight decay [default: 0]
    flag(long, env = "LLM2VEC_WEIGHT_DECAY", value_name = "RATE", help_heading = "Recipe")
    weight_decay: f64 = 0.0, number_from_0();
    /// AdamW's first beta.
    flag(skip)
    adam_beta1: f64 = 0.9, fraction_below_1();
    /// AdamW's second beta.
    flag(skip)
    adam_beta2: f64 = 0.999, fraction_below_1();
    /// AdamW's epsilon.
    flag(skip)
    adam_epsilon: f64 = 1e-8, number_above_0();
    /// Norm that gradients are clipped to; 0 is none [default: 1]
    flag(long = "clip", env = "LLM2VEC_CLIP", value_name = "NORM", help_heading = "Recipe")
    max_grad_norm: f64 = 1.0, number_from_0();
    /// Seed of everything [default: 42]
    flag(long, env = "LLM2VEC_SEED", value_name = "N", help_heading = "Recipe")
    seed: u64 = 42;
    /// LoRA rank [default: 16]
    flag(long = "rank", env = "LLM2VEC_RANK", value_name = "R", help_heading = "Recipe")
    lora_r: usize = 16, integer(1, 4096);
    /// LoRA alpha [default: twice the rank]
    flag(long = "alpha", env = "LLM2VEC_ALPHA", value_name = "ALPHA", help_heading = "Recipe")
    lora_alpha: Option<f64> = None, optional(number_above_0());
    /// Dropout of LoRA's input [default: 0.05]
    flag(long, env = "LLM2VEC_LORA_DROPOUT", value_name = "RATE", help_heading = "Recipe")
    lora_dropout: f64 = 0.05, fraction_below_1();
    /// Projections with LoRA, commas between [default: all seven]
    flag(long = "modules", env = "LLM2VEC_MODULES", value_delimiter = ',', value_name = "NAMES", help_heading = "Recipe",
         value_parser = Trimmed(EnumValueParser::<TargetModule>::new()))
    lora_modules: Vec<TargetModule> = TargetModule::ALL.to_vec(), check::modules;
    /// full, or causal to train without bidirectional attention [default: full]
    flag(long = "attention", env = "LLM2VEC_ATTENTION", value_name = "MASK", help_heading = "Recipe",
         value_parser = PossibleValuesParser::new(["full", "causal"]).map(|name| name == "full"), action = ArgAction::Set)
    bidirectional: bool = true;

    /// Part of the tokens that are masked [default: 0.2]
    flag(long = "mask-probability", env = "LLM2VEC_MASK_PROBABILITY", value_name = "P", help_heading = "MNTP")
    mlm_probability: f64 = 0.2, fraction_above_0();
    /// bert (80 % mask, 10 % random, 10 % kept) or all [default: bert]
    flag(long = "mask-strategy", env = "LLM2VEC_MASK_STRATEGY", value_name = "HOW", help_heading = "MNTP")
    data_collator_type: Strategy = Strategy::Bert;
    /// The token that hides others [default: the tokenizer's own mask token, else `_`]
    flag(long = "mask-token", env = "LLM2VEC_MASK_TOKEN", value_name = "TOKEN", help_heading = "MNTP")
    mask_token_type: MaskToken = MaskToken::Auto;
    /// How lines make rows: joined (as the reference), apart (attention stays in a line), lines [default: joined]
    flag(long, env = "LLM2VEC_GROUPING", value_name = "HOW", help_heading = "MNTP")
    grouping: Grouping = Grouping::Joined;
    /// The reference's name for `grouping` `lines`.
    flag(skip)
    line_by_line: bool = false;
    /// Train the language-model head too
    // As the released code does, and then throws it away (Q-M1).
    flag(long, env = "LLM2VEC_TRAIN_HEAD", value_parser = BoolishValueParser::new(), help_heading = "MNTP")
    train_head: bool = false;

    /// mean, weighted-mean, last, eos or bos [default: mean]
    flag(long = "pooling", env = "LLM2VEC_POOLING", value_name = "MODE", hide_possible_values = true, help_heading = "Contrastive")
    pooling_mode: PoolingMode = PoolingMode::Mean;
    /// Supervised: template around a text, by name; absent means what `encode` would take. The other stages have none.
    flag(skip)
    template: Option<Template> = None, optional(check::template);
    /// The contrastive loss; there is one.
    flag(skip)
    loss_class: Loss = Loss::HardNegativeNLLLoss;
    /// Cosines are multiplied by this [default: 20 simcse, 50 supervised]
    flag(long = "scale", env = "LLM2VEC_SCALE", value_name = "S", help_heading = "Contrastive")
    loss_scale: f64 => [20.0, 20.0, 50.0], number_above_0();
    /// f32, or bf16 to round the unit vectors and take one product in place of six [default: f32]
    flag(long, env = "LLM2VEC_LOSS_DTYPE", value_name = "DTYPE", hide_possible_values = true, help_heading = "Contrastive")
    loss_dtype: LossDtype = LossDtype::F32;
    /// simcse: dropout of attention probabilities [default: 0.3]
    flag(long = "attention-dropout", env = "LLM2VEC_ATTENTION_DROPOUT", value_name = "RATE", help_heading = "Contrastive")
    simcse_dropout: f64 => [0.0, 0.3, 0.0], fraction_below_1();
    /// supervised: hard negatives that are taken from a row at most [default: 1]
    flag(long, env = "LLM2VEC_HARD_NEGATIVES", value_name = "K", help_heading = "Contrastive")
    hard_negatives: usize = 1, integer(0, 1000);
    /// Matryoshka dimensions, commas between: the loss is the sum of those of the vectors' first so many numbers
    flag(long = "matryoshka", env = "LLM2VEC_MATRYOSHKA", value_delimiter = ',', value_name = "DIMS", help_heading = "Contrastive",
         value_parser = |text: &str| text.trim().parse::<usize>())
    matryoshka_dims: Vec<usize> = Vec::new(), check::dims;
    /// Weights of the Matryoshka dimensions' losses, in their order; 1 each where there are none.
    flag(skip)
    matryoshka_weights: Vec<f64> = Vec::new(), check::weights;
    /// A candidate that is the same text as the positive is no negative
    flag(long, env = "LLM2VEC_MASK_FALSE_NEGATIVES", value_parser = BoolishValueParser::new(), help_heading = "Contrastive")
    mask_false_negatives: bool = false;
    /// Nor is one whose cosine exceeds the positive's by more than this
    flag(long, env = "LLM2VEC_FALSE_NEGATIVE_MARGIN", value_name = "COSINE", help_heading = "Contrastive")
    false_negative_margin: Option<f64> = None;

    /// Run so many texts at a time, with the gradient of the whole batch
    flag(long, env = "LLM2VEC_GRAD_CACHE", value_name = "CHUNK", help_heading = "Machine")
    grad_cache: usize = 0;
    /// Keep only block inputs and compute the rest again in the backward; the numbers are the same bit for bit
    flag(long = "recompute", env = "LLM2VEC_RECOMPUTE", value_parser = BoolishValueParser::new(), help_heading = "Machine")
    gradient_checkpointing: bool = false;

    /// Parts of a batch, a power of two, that ranks share; they decide the order of sums, ranks do not [default: the ranks]
    flag(long, env = "LLM2VEC_SLICES", value_name = "K", help_heading = "Machine")
    slices: Option<usize> = None, optional(check::slices);
    /// tree (the same bits for any number of ranks), or fast (as they come, and as MPI or NCCL adds) [default: tree]
    flag(long, env = "LLM2VEC_REDUCE", value_name = "HOW", hide_possible_values = true, help_heading = "Machine")
    reduce: Reduce = Reduce::Tree;

    /// Steps between checkpoints [default: 200]
    flag(long, env = "LLM2VEC_SAVE_STEPS", value_name = "N", help_heading = "Output")
    save_steps: usize = 200, integer(1, usize::MAX);
    /// Checkpoints to keep [default: all]
    flag(long = "keep", env = "LLM2VEC_KEEP", value_name = "K", help_heading = "Output")
    save_total_limit: Option<usize> = None;
    /// Steps between evaluations [default: 100]
    flag(long, env = "LLM2VEC_EVAL_STEPS", value_name = "N", help_heading = "Output")
    eval_steps: usize = 100, integer(1, usize::MAX);
    /// End with the adapter of the best evaluation, by the first of its figures; it is in OUTPUT/best meanwhile
    flag(long = "keep-best", env = "LLM2VEC_KEEP_BEST", value_parser = BoolishValueParser::new(), help_heading = "Output")
    load_best_model_at_end: bool = false;
    /// Stop after so many evaluations without a better one; 0 is never [default: 0]
    flag(long = "early-stopping", env = "LLM2VEC_EARLY_STOPPING", value_name = "N", help_heading = "Output")
    early_stopping_patience: usize = 0;
    /// Steps between lines on stderr [default: 50]
    flag(long = "log-steps", env = "LLM2VEC_LOG_STEPS", value_name = "N", help_heading = "Output")
    logging_steps: usize = 50, integer(1, usize::MAX);
}

pub use crate::format::keys::explained;

impl TrainConfig {
    /// The name of data that the reference would download, in whose place files are read.
    pub fn downloaded(&self) -> Option<&str> {
        let form = match self.stage {
            Stage::Mntp => None,
            Stage::Simcse => Some("Wiki1M"),
            Stage::Supervised => Some("E5"),
        };
        self.dataset_name.as_deref().filter(|name| form != Some(name))
    }

    /// LoRA's alpha.
    pub fn alpha(&self) -> f64 {
        self.lora_alpha.unwrap_or(2.0 * self.lora_r as f64)
    }

    /// The training data, under either name.
    pub fn data(&self) -> Option<&str> {
        self.train_file.as_deref().or(self.dataset_file_path.as_deref())
    }

    /// The Matryoshka dimensions with their weights.
    pub fn levels(&self) -> Vec<(usize, f64)> {
        let weights = self.matryoshka_weights.iter().copied().chain(std::iter::repeat(1.0));
        self.matryoshka_dims.iter().copied().zip(weights).collect()
    }

    /// What the learning rate follows, for `batches` an epoch.
    pub fn plan(&self, batches: usize) -> Plan {
        Plan {
            batches,
            accumulation: self.gradient_accumulation_steps,
            epochs: self.num_train_epochs,
            max_steps: usize::try_from(self.max_steps).ok().filter(|&n| n > 0),
            stop: self.stop_after_n_steps,
            warmup: self.warmup_steps,
            warmup_ratio: self.warmup_ratio,
            decay: self.decay,
            shape: self.lr_scheduler_type,
        }
    }
}
