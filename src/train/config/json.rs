//! A configuration as a file: the reference's, or ours.

use super::{FILE, TrainConfig};
use crate::error::{Error, Result};
use crate::format::{atomic, hf::read_json};
use crate::train::blocks::Grouping;
use crate::train::config::Stage;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use std::path::Path;

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

impl TrainConfig {
    /// A JSON file over the stage's defaults, and the keys in it that mean nothing here. A key with `null` is absent.
    pub fn read(path: &Path, stage: Stage) -> Result<(TrainConfig, Vec<String>)> {
        let json = read_json(path)?;
        let Value::Object(given) = json else {
            return Err(Error::file(path, "a JSON object was wanted, as in the reference's train_configs"));
        };
        let mut config = TrainConfig::new(stage);
        let ignored = config.set(&given).map_err(|what| Error::file(path, what))?;
        config.validate().map_err(|invalid| Error::file(path, invalid.message()))?;
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
        // What the flag made of a saved run's `line_by_line` stands in its `grouping`.
        if self.line_by_line && given.get("grouping").is_none_or(Value::is_null) {
            self.grouping = Grouping::Lines;
        }
        Ok(ignored)
    }

    /// Settings that were saved by any version of ours, as this one spells them; as they are where it cannot.
    pub fn respelled(saved: &Value) -> Value {
        let (Value::Object(given), Ok(stage)) = (saved, Stage::deserialize(&saved["stage"])) else {
            return saved.clone();
        };
        let mut config = TrainConfig::new(stage);
        if config.set(given).is_err() {
            return saved.clone();
        }
        let today = json!(config);
        given.keys().map(|key| (key.clone(), today[key].clone())).collect::<Map<_, _>>().into()
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
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<String>, D::Error> {
    let value = Value::deserialize(d)?;
    let list = if value.is_string() { json!([value]) } else { value };
    serde_json::from_value(list).map_err(serde::de::Error::custom)
}
