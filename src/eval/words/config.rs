//! The reference's configurations of word-level tasks (its `train_configs/word-task` and `test_configs/word-task`).

use crate::error::{Error, Result};
use crate::format::hf::read_json;
use crate::format::keys::{one_or_many, take_over};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Keys that mean something in training and nothing here: a probe is trained each time, and nothing of it is kept.
const NO_MEANING: [&str; 10] = [
    "cls_addr",
    "data_collator_type",
    "eval_steps",
    "line_by_line",
    "logging_steps",
    "mlm_probability",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "save_steps",
    "save_total_limit",
];

/// Whose label a token's state is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetroactiveLabels {
    /// Its own word's.
    SameToken,
    /// The next token's word's, as after MNTP.
    NextToken,
}

/// A layer of tags by its name in the `datasets` library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // their names say it
pub enum Task {
    PosTags,
    ChunkTags,
    NerTags,
}

impl Task {
    /// The name of the layer here.
    pub fn label(self) -> &'static str {
        match self {
            Task::PosTags => "pos",
            Task::ChunkTags => "chunk",
            Task::NerTags => "ner",
        }
    }
}

/// The shape of the learning rate; there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Down to 0 in a straight line.
    Linear,
}

/// What such a file says, by its own keys; what it leaves open is `None`, or has no entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the reference's keys
pub struct WordConfig {
    pub model_name_or_path: Option<String>,
    #[serde(deserialize_with = "one_or_many")]
    pub peft_addr: Vec<String>,
    /// `custom`, the decoder of the paper; `auto` is a bare encoder.
    pub model_class: Option<String>,
    pub bidirectional: Option<bool>,
    pub max_seq_length: Option<usize>,
    /// Whether a word is the mean of its tokens, or its first.
    pub merge_subwords: Option<bool>,
    pub retroactive_labels: Option<RetroactiveLabels>,
    /// Whose data the reference downloads; here files take its place.
    pub dataset_name: Option<String>,
    pub train_file: Option<PathBuf>,
    pub validation_file: Option<PathBuf>,
    pub task: Option<Task>,
    pub classifier_dropout: Option<f64>,
    pub learning_rate: Option<f64>,
    pub lr_scheduler_type: Option<Scheduler>,
    pub num_train_epochs: Option<f64>,
    pub stop_after_n_steps: Option<usize>,
    pub per_device_train_batch_size: Option<usize>,
    pub weight_decay: Option<f64>,
    pub max_grad_norm: Option<f64>,
    pub seed: Option<u64>,
    /// The folder of the results, as `result_summary.json`.
    pub output_dir: Option<PathBuf>,
}

impl WordConfig {
    /// Reads a file; also gives the keys in it that mean nothing here. A key that is not known is an error that names it.
    pub fn read(path: &Path) -> Result<(WordConfig, Vec<String>)> {
        let wrong = |what: String| Error::file(path, what);
        let Value::Object(given) = read_json(path)? else {
            return Err(wrong(
                "a JSON object was wanted, as in the reference's train_configs/word-task".into(),
            ));
        };
        let mut config = WordConfig::default();
        let ignored = take_over(&mut config, &given, &NO_MEANING).map_err(wrong)?;
        if let Some(class) = config.model_class.as_deref().filter(|class| *class != "custom") {
            let what = "is not run, only \"custom\"; make the features with another program and give those";
            return Err(wrong(format!("\"model_class\" is {class:?}, which {what}")));
        }
        if let Some(epochs) = config.num_train_epochs.filter(|n| n.fract() != 0.0 || *n < 1.0) {
            let what = "a whole number from 1 was wanted";
            return Err(wrong(format!("\"num_train_epochs\" is {epochs}, {what}")));
        }
        Ok((config, ignored))
    }
}
