//! What a run trains and how: the paper's defaults, the reference's JSON files, ours.
//!
//! Fields bear the reference's own names where it has one, so a file of ours is one of theirs with a few keys more.

use crate::error::{Error, Result};
use crate::format::{atomic, hf::read_json};
use crate::train::blocks::Grouping;
use crate::train::mask::{MaskToken, Strategy};
use crate::train::schedule::{Decay, Plan};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The three stages of the recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Masked next-token prediction.
    Mntp,
    /// Unsupervised contrastive learning: a text and itself under another dropout.
    Simcse,
    /// Supervised contrastive learning on triples.
    Supervised,
}

/// The configuration of a run. What only other stages read keeps its default and does nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The stage.
    pub stage: Stage,
    /// Model folder.
    pub model_name_or_path: Option<String>,
    /// Adapters to merge in this order before the new one; one name or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub peft_model_name_or_path: Vec<String>,
    /// Train the last adapter on, instead of merging it and starting a new one (the paper's MNTP + SimCSE + supervised).
    pub continue_adapter: bool,
    /// Folder of the run.
    pub output_dir: Option<String>,
    /// Whether that folder may hold a run already.
    pub overwrite_output_dir: bool,

    /// The form of the data: `E5` (supervised, with its instructions) or `Wiki1M` (simcse). Another name is one that the
    /// reference downloads, and is replaced by files.
    pub dataset_name: Option<String>,
    /// Training data of the contrastive stages, and of MNTP where `train_file` is absent: a file or a folder of files.
    pub dataset_file_path: Option<String>,
    /// Training data of MNTP.
    pub train_file: Option<String>,
    /// Evaluation data of MNTP; the other stages have none.
    pub validation_file: Option<String>,
    /// JSON file of instructions by data set.
    pub instructions: Option<String>,
    /// Symmetric tasks of E5 have their instruction on both sides; `false` is the released code (Q-D2).
    pub document_instructions: bool,
    /// Stop at the first bad row.
    pub strict: bool,

    /// Rows of a step and device; the paper's supervised runs have 8 devices with 64 each.
    pub per_device_train_batch_size: usize,
    /// Rows of an evaluation batch.
    pub per_device_eval_batch_size: usize,
    /// Batches of one optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Drop a last batch that is not whole.
    pub dataloader_drop_last: bool,
    /// Contrastive: rows that are run at a time, with the gradient of the whole batch; 0 means all.
    pub grad_cache: usize,
    /// Keep only block inputs and recompute the rest in the backward.
    pub gradient_checkpointing: bool,
    /// Most tokens of a row.
    pub max_seq_length: usize,

    /// Part of the tokens that are masked.
    pub mlm_probability: f64,
    /// BERT's split or all masks.
    pub data_collator_type: Strategy,
    /// The token that hides others.
    pub mask_token_type: MaskToken,
    /// A line is a row of its own: `grouping` `lines`.
    pub line_by_line: bool,
    /// How lines make blocks.
    pub grouping: Grouping,
    /// Train the language-model head too, as the released code does and then throws it away (Q-M1).
    pub train_head: bool,

    /// Full attention; `false` trains the causal model.
    pub bidirectional: bool,
    /// Pooling mode.
    pub pooling_mode: String,
    /// Supervised: template around a text, by name; absent means what `encode` would take. The other stages have none.
    pub template: Option<String>,
    /// The contrastive loss; there is one.
    pub loss_class: String,
    /// Cosines are multiplied by this (1 / temperature).
    pub loss_scale: f64,
    /// Hard negatives that are taken from a row at most; 0 leaves those in the batch.
    pub hard_negatives: usize,
    /// A candidate that is the same text as a query's positive is no negative of it.
    pub mask_false_negatives: bool,
    /// Nor is one whose cosine exceeds the positive's by more than this; absent means all count.
    pub false_negative_margin: Option<f64>,
    /// Dropout of attention probabilities in SimCSE.
    pub simcse_dropout: f64,

    /// LoRA rank.
    pub lora_r: usize,
    /// LoRA alpha; absent means twice the rank.
    pub lora_alpha: Option<f64>,
    /// Dropout of LoRA's input.
    pub lora_dropout: f64,
    /// Projections with LoRA.
    pub lora_modules: Vec<String>,

    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's first beta.
    pub adam_beta1: f64,
    /// AdamW's second beta.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this norm; 0 means never.
    pub max_grad_norm: f64,
    /// Passes over the data.
    pub num_train_epochs: f64,
    /// Stop after so many steps.
    pub stop_after_n_steps: usize,
    /// The shape of the learning rate; there is one.
    pub lr_scheduler_type: String,
    /// Steps of warm-up.
    pub warmup_steps: usize,
    /// Warm-up as a part of the schedule, where `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// Where the learning rate reaches 0.
    pub decay: Decay,

    /// Seed of everything.
    pub seed: u64,
    /// Steps between lines of the log.
    pub logging_steps: usize,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Checkpoints that are kept; absent means all.
    pub save_total_limit: Option<usize>,
    /// Steps between evaluations.
    pub eval_steps: usize,
}

/// Keys of the reference's files, or of Transformers' trainer, that change nothing here.
const NO_MEANING: [&str; 42] = [
    "attn_implementation",
    "bf16",
    "cache_dir",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_config_name",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "disable_tqdm",
    "do_eval",
    "do_train",
    "eval_strategy",
    "evaluation_strategy",
    "experiment_id",
    "fp16",
    "gradient_checkpointing_kwargs",
    "hub_model_id",
    "local_rank",
    "log_level",
    "logging_dir",
    "logging_strategy",
    "low_cpu_mem_usage",
    "model_revision",
    "overwrite_cache",
    "pad_to_max_length",
    "preprocessing_num_workers",
    "push_to_hub",
    "remove_unused_columns",
    "report_to",
    "run_name",
    "save_only_model",
    "save_safetensors",
    "save_strategy",
    "streaming",
    "tf32",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_auth_token",
    "use_fast_tokenizer",
];

/// Name under which the effective configuration lies beside the adapter.
pub const FILE: &str = "train_config.json";

/// More rows or tokens than anyone has: keeps the product of sizes from overflowing.
const MOST: usize = 1 << 24;

/// The seven projections of a block.
pub const MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl TrainConfig {
    /// The paper's settings of a stage (appendices D.1 and G.2, and the released files).
    pub fn new(stage: Stage) -> TrainConfig {
        let (batch, length, rate, scale, warmup) = match stage {
            Stage::Mntp => (32, 512, 5e-5, 20.0, 0),
            Stage::Simcse => (128, 128, 3e-5, 20.0, 0),
            Stage::Supervised => (512, 512, 2e-4, 50.0, 300),
        };
        TrainConfig {
            stage,
            model_name_or_path: None,
            peft_model_name_or_path: Vec::new(),
            continue_adapter: false,
            output_dir: None,
            overwrite_output_dir: false,
            dataset_name: None,
            dataset_file_path: None,
            train_file: None,
            validation_file: None,
            instructions: None,
            document_instructions: true,
            strict: false,
            per_device_train_batch_size: batch,
            per_device_eval_batch_size: 32,
            gradient_accumulation_steps: 1,
            dataloader_drop_last: false,
            grad_cache: 0,
            gradient_checkpointing: false,
            max_seq_length: length,
            mlm_probability: 0.2,
            data_collator_type: Strategy::Bert,
            mask_token_type: MaskToken::Auto,
            line_by_line: false,
            grouping: Grouping::Joined,
            train_head: false,
            bidirectional: true,
            pooling_mode: "mean".into(),
            template: None,
            loss_class: "HardNegativeNLLLoss".into(),
            loss_scale: scale,
            hard_negatives: 1,
            mask_false_negatives: false,
            false_negative_margin: None,
            simcse_dropout: if stage == Stage::Simcse { 0.3 } else { 0.0 },
            lora_r: 16,
            lora_alpha: None,
            lora_dropout: 0.05,
            lora_modules: MODULES.map(String::from).to_vec(),
            learning_rate: rate,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            num_train_epochs: 3.0,
            stop_after_n_steps: 1000,
            lr_scheduler_type: "linear".into(),
            warmup_steps: warmup,
            warmup_ratio: 0.0,
            decay: Decay::Epochs,
            seed: 42,
            logging_steps: 50,
            save_steps: 200,
            save_total_limit: None,
            eval_steps: 100,
        }
    }

    /// A JSON file over the stage's defaults, and the keys in it that mean nothing here. A key with `null` is absent.
    pub fn read(path: &Path, stage: Stage) -> Result<(TrainConfig, Vec<String>)> {
        let json = read_json(path)?;
        let Value::Object(given) = json else {
            return Err(Error::file(path, "a JSON object was wanted, as in the reference's train_configs"));
        };
        let mut config = TrainConfig::new(stage);
        let ignored = config.set(&given).map_err(|what| Error::file(path, what))?;
        config.validate().map_err(|what| Error::file(path, what))?;
        Ok((config, ignored))
    }

    /// Takes over what `given` holds, key by key, so that an error names its key.
    fn set(&mut self, given: &Map<String, Value>) -> std::result::Result<Vec<String>, String> {
        let mut ignored = Vec::new();
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&*self) else { return Ok(ignored) };
        for (key, value) in given.iter().filter(|(_, v)| !v.is_null()) {
            if NO_MEANING.contains(&key.as_str()) {
                ignored.push(key.clone());
                continue;
            }
            if key == "stage" && fields["stage"] != *value {
                return Err(format!("it is a configuration of stage {value}, {} is run", fields["stage"]));
            }
            let Some(field) = fields.get_mut(key) else {
                return Err(format!("unknown key {key:?}{}; remove it", meant(key, &fields)));
            };
            *field = value.clone();
            *self = serde_json::from_value(Value::Object(fields.clone()))
                .map_err(|e| format!("{key:?} is {value}: {e}"))?;
        }
        if self.line_by_line {
            self.grouping = Grouping::Lines;
        }
        Ok(ignored)
    }

    /// What makes no sense, by key.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let counts = [
            ("per_device_train_batch_size", self.per_device_train_batch_size, MOST),
            ("per_device_eval_batch_size", self.per_device_eval_batch_size, MOST),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps, MOST),
            ("max_seq_length", self.max_seq_length, MOST),
            ("lora_r", self.lora_r, 4096),
            ("stop_after_n_steps", self.stop_after_n_steps, usize::MAX),
            ("logging_steps", self.logging_steps, usize::MAX),
            ("save_steps", self.save_steps, usize::MAX),
            ("eval_steps", self.eval_steps, usize::MAX),
        ];
        if let Some((key, n, most)) = counts.iter().find(|(_, n, most)| !(1..=*most).contains(n)) {
            return Err(match n {
                0 => format!("{key:?} is 0, at least 1 was wanted"),
                _ => format!("{key:?} is {n}, at most {most} was wanted"),
            });
        }
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let (positive, part) = (|x: f64| finite(x) && x > 0.0, |x: f64| finite(x) && x < 1.0);
        let ranges = [
            (
                "mlm_probability",
                self.mlm_probability,
                positive(self.mlm_probability) && self.mlm_probability <= 1.0,
            ),
            ("simcse_dropout", self.simcse_dropout, part(self.simcse_dropout)),
            ("lora_dropout", self.lora_dropout, part(self.lora_dropout)),
            ("lora_alpha", self.alpha(), positive(self.alpha())),
            ("loss_scale", self.loss_scale, positive(self.loss_scale)),
            ("learning_rate", self.learning_rate, positive(self.learning_rate)),
            ("weight_decay", self.weight_decay, finite(self.weight_decay)),
            ("adam_beta1", self.adam_beta1, part(self.adam_beta1)),
            ("adam_beta2", self.adam_beta2, part(self.adam_beta2)),
            ("adam_epsilon", self.adam_epsilon, positive(self.adam_epsilon)),
            ("max_grad_norm", self.max_grad_norm, finite(self.max_grad_norm)),
            ("num_train_epochs", self.num_train_epochs, positive(self.num_train_epochs)),
            ("warmup_ratio", self.warmup_ratio, finite(self.warmup_ratio) && self.warmup_ratio <= 1.0),
        ];
        if let Some((key, x, _)) = ranges.iter().find(|r| !r.2) {
            return Err(format!("{key:?} is {x}, which is out of its range"));
        }
        if self.stage != Stage::Mntp && self.per_device_train_batch_size < 2 {
            let what = "the other rows of a batch are the negatives; take at least 2";
            return Err(format!("\"per_device_train_batch_size\" is 1: {what}"));
        }
        if self.lr_scheduler_type != "linear" {
            return Err(format!(
                "\"lr_scheduler_type\" is {:?}, only \"linear\" is built in",
                self.lr_scheduler_type
            ));
        }
        if self.loss_class != "HardNegativeNLLLoss" {
            return Err(format!(
                "\"loss_class\" is {:?}, only \"HardNegativeNLLLoss\" is built in",
                self.loss_class
            ));
        }
        self.validate_stage()?;
        let unknown = self.lora_modules.iter().find(|m| !MODULES.contains(&m.as_str()));
        match unknown {
            Some(module) => Err(format!("\"lora_modules\": {module:?} is none of {}", MODULES.join(", "))),
            None if self.lora_modules.is_empty() => {
                Err("\"lora_modules\" is empty: nothing would be trained".into())
            }
            None => Ok(()),
        }
    }

    /// What no stage does, or another one.
    fn validate_stage(&self) -> std::result::Result<(), String> {
        if self.hard_negatives > 1000 {
            return Err(format!("\"hard_negatives\" is {}, at most 1000 was wanted", self.hard_negatives));
        }
        let supervised = self.stage == Stage::Supervised;
        if let Some(name) = self.template.as_deref().filter(|name| !supervised && *name != "none") {
            let what =
                "only supervised training puts a template around its texts, as in the reference; remove it";
            return Err(format!("\"template\" is {name:?}: {what}"));
        }
        if let Some(file) = self.validation_file.as_deref().filter(|_| self.stage != Stage::Mntp) {
            let what =
                "only mntp (--validation) evaluates while it trains; remove it, and see eval for the adapter";
            return Err(format!("\"validation_file\" is {file:?}: {what}"));
        }
        match (self.stage, self.dataset_name.as_deref()) {
            (Stage::Simcse, Some("E5")) | (Stage::Supervised, Some("Wiki1M")) => {
                let wanted = if supervised { "\"E5\", rows of JSON" } else { "\"Wiki1M\", a text a line" };
                let got = self.dataset_name.as_deref().unwrap_or_default();
                let what = "the form of another stage's data";
                Err(format!("\"dataset_name\" is {got:?}, {what}; this one's is {wanted}"))
            }
            _ => Ok(()),
        }
    }

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

    /// What the learning rate follows, for `batches` an epoch.
    pub fn plan(&self, batches: usize) -> Plan {
        Plan {
            batches,
            accumulation: self.gradient_accumulation_steps,
            epochs: self.num_train_epochs,
            stop: self.stop_after_n_steps,
            warmup: self.warmup_steps,
            warmup_ratio: self.warmup_ratio,
            decay: self.decay,
        }
    }

    /// Writes the effective configuration into the run's folder.
    pub fn save(&self, dir: &Path) -> Result<()> {
        atomic::write_json(&dir.join(FILE), self)
    }
}

/// The known key that differs least, if it is near.
fn meant(key: &str, fields: &Map<String, Value>) -> String {
    let near = fields.keys().map(|k| (edits(key, k), k)).min();
    near.filter(|(n, _)| *n <= 3).map_or(String::new(), |(_, k)| format!(" (is {k:?} meant?)"))
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let best = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

/// A string, or a list of strings.
fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<String>, D::Error> {
    let value = Value::deserialize(d)?;
    let list = if value.is_string() { json!([value]) } else { value };
    serde_json::from_value(list).map_err(serde::de::Error::custom)
}
