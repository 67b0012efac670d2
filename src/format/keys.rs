//! Settings from the keys of a JSON object, one by one, so that an error names its key.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

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

/// Takes over into `settings`, whose fields are all keys that there are, what `given` holds; gives the keys that mean nothing
/// here: the common ones, and those in `also`. A key with `null` is absent. The error is of one key, named.
pub fn take_over<T: Serialize + DeserializeOwned>(
    settings: &mut T,
    given: &Map<String, Value>,
    also: &[&str],
) -> Result<Vec<String>, String> {
    let mut ignored = Vec::new();
    let Ok(Value::Object(mut fields)) = serde_json::to_value(&*settings) else { return Ok(ignored) };
    for (key, value) in given.iter().filter(|(_, v)| !v.is_null()) {
        if NO_MEANING.iter().chain(also).any(|name| name == key) {
            ignored.push(key.clone());
            continue;
        }
        let Some(field) = fields.get_mut(key) else {
            return Err(format!("unknown key {key:?}{}; remove it", meant(key, &fields)));
        };
        *field = value.clone();
        *settings = serde_json::from_value(Value::Object(fields.clone()))
            .map_err(|e| format!("{key:?} is {value}: {e}"))?;
    }
    Ok(ignored)
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
pub fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let value = Value::deserialize(d)?;
    let list = if value.is_string() { json!([value]) } else { value };
    serde_json::from_value(list).map_err(serde::de::Error::custom)
}
