//! Settings from the keys of a JSON object, one by one, so that an error names its key.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

/// Keys of the reference's files, or of Transformers' trainer, that change nothing here, by what decides in their place.
const NO_MEANING: [(&str, &[&str]); 8] = [
    (
        "the device decides on kernels and memory, and on precision but for a CPU's dtype",
        &[
            "activation_checkpointing_kwargs",
            "attn_implementation",
            "bf16",
            "bf16_full_eval",
            "fp16",
            "fp16_backend",
            "fp16_full_eval",
            "fp16_opt_level",
            "gradient_checkpointing_kwargs",
            "half_precision_backend",
            "jit_mode_eval",
            "liger_kernel_config",
            "low_cpu_mem_usage",
            "no_cuda",
            "tf32",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "torch_dtype",
            "torch_empty_cache_steps",
            "use_cache",
            "use_cpu",
            "use_ipex",
            "use_liger_kernel",
            "use_mps_device",
        ],
    ),
    (
        "one process trains, with every core",
        &[
            "accelerator_config",
            "average_tokens_across_devices",
            "dataloader_in_order",
            "dataloader_multiprocessing_context",
            "dataloader_num_workers",
            "dataloader_persistent_workers",
            "dataloader_pin_memory",
            "dataloader_prefetch_factor",
            "ddp_backend",
            "ddp_broadcast_buffers",
            "ddp_bucket_cap_mb",
            "ddp_find_unused_parameters",
            "ddp_static_graph",
            "ddp_timeout",
            "local_rank",
            "log_on_each_node",
            "parallelism_config",
            "preprocessing_num_workers",
            "save_on_each_node",
        ],
    ),
    (
        "log.jsonl has every step, and TensorBoard's files where a folder is given for them",
        &[
            "debug",
            "disable_tqdm",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "log_level",
            "log_level_replica",
            "logging_dir",
            "logging_first_step",
            "logging_nan_inf_filter",
            "logging_strategy",
            "project",
            "report_to",
            "run_name",
            "skip_memory_metrics",
            "trackio_bucket_id",
            "trackio_space_id",
            "trackio_static_space_id",
        ],
    ),
    (
        "a validation file is evaluated every eval_steps, at the start and at the end",
        &[
            "batch_eval_metrics",
            "do_eval",
            "do_predict",
            "do_train",
            "eval_accumulation_steps",
            "eval_delay",
            "eval_do_concat_batches",
            "eval_on_start",
            "eval_strategy",
            "eval_use_gather_object",
            "evaluation_strategy",
            "greater_is_better",
            "include_for_metrics",
            "include_inputs_for_metrics",
            "label_names",
            "past_index",
            "prediction_loss_only",
        ],
    ),
    (
        "every save_steps a whole checkpoint is saved, as safetensors",
        &[
            "enable_jit_checkpoint",
            "restore_callback_states_from_checkpoint",
            "save_only_model",
            "save_safetensors",
            "save_strategy",
        ],
    ),
    (
        "files are local, nothing is downloaded or uploaded, no code of a model runs",
        &[
            "cache_dir",
            "dataset_config_name",
            "hub_always_push",
            "hub_model_id",
            "hub_private_repo",
            "hub_revision",
            "hub_strategy",
            "hub_token",
            "model_revision",
            "overwrite_cache",
            "push_to_hub",
            "streaming",
            "token",
            "trust_remote_code",
            "use_auth_token",
        ],
    ),
    (
        "batches are packed, their order follows seed, and two runs are equal bit for bit",
        &[
            "data_seed",
            "full_determinism",
            "length_column_name",
            "pad_to_max_length",
            "remove_unused_columns",
            "use_fast_tokenizer",
        ],
    ),
    ("a name only", &["experiment_id"]),
];

/// Keys of Transformers' and sentence-transformers' trainers that would change the result: the values that leave it as it is,
/// and what to do about any other.
const WOULD_CHANGE: [(&str, &[&str], &str); 21] = [
    ("adafactor", &["false"], "AdamW is the optimiser"),
    ("auto_find_batch_size", &["false"], "the memory plan says before the first step whether a batch fits"),
    ("batch_sampler", &["batch_sampler"], "mask_false_negatives hides equal texts from each other"),
    ("deepspeed", &["", "{}"], "one device trains"),
    ("fsdp", &["", "[]", "false"], "one device trains"),
    ("fsdp_config", &["{}"], "one device trains"),
    ("group_by_length", &["false"], "batches are packed and cost their tokens; rows are shuffled"),
    ("ignore_data_skip", &["false"], "a resumed run goes on in its data where it was"),
    ("label_smoothing_factor", &["0", "0.0"], "labels are taken as they are"),
    ("learning_rate_mapping", &["{}"], "all parameters have one rate"),
    ("lr_scheduler_kwargs", &["", "{}"], "the schedule has no further settings"),
    ("max_eval_samples", &[], "give a file of so many rows"),
    ("max_train_samples", &[], "give a file of so many rows"),
    (
        "metric_for_best_model",
        &["loss", "eval_loss", "spearman"],
        "the first figure of an evaluation decides",
    ),
    ("multi_dataset_batch_sampler", &["proportional"], "every data set is gone through once an epoch"),
    ("neftune_noise_alpha", &["0", "0.0"], "embeddings get no noise"),
    ("optim_args", &["", "{}"], "AdamW's settings are adam_beta1, adam_beta2, adam_epsilon, weight_decay"),
    ("optim_target_modules", &["[]"], "lora_modules says what is trained"),
    ("resume_from_checkpoint", &["false"], "the command says whether it resumes the run in output_dir"),
    ("router_mapping", &["{}"], "one model embeds queries and documents"),
    ("train_sampling_strategy", &["random"], "rows are shuffled"),
];

/// Keys that mean nothing here, by name, each group with what decides in their place.
pub fn explained(keys: &[String]) -> String {
    let known = |key: &String| NO_MEANING.iter().position(|(_, names)| names.contains(&key.as_str()));
    let group = |of: Option<usize>| {
        let names: Vec<&str> = keys.iter().filter(|key| known(key) == of).map(String::as_str).collect();
        let why = of.map_or(String::new(), |i| format!(" ({})", NO_MEANING[i].0));
        (!names.is_empty()).then(|| names.join(", ") + &why)
    };
    let groups = (0..NO_MEANING.len()).map(Some).chain([None]).filter_map(group);
    groups.collect::<Vec<_>>().join("; ")
}

/// Whether this value of a key leaves the result as it is; an error if it would change it.
fn is_neutral(key: &str, value: &Value) -> Result<bool, String> {
    let Some((_, neutral, instead)) = WOULD_CHANGE.iter().find(|(name, ..)| *name == key) else {
        return Ok(false);
    };
    let spelled = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match neutral.contains(&spelled.as_str()) {
        true => Ok(true),
        false => Err(format!("{key:?} is {value}, which has no counterpart here: {instead}; remove it")),
    }
}

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
        let known = NO_MEANING.iter().flat_map(|(_, names)| *names).chain(also).any(|name| name == key);
        if known || is_neutral(key, value)? {
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
