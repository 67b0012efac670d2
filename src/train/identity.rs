//! What makes a resumed run the one that was stopped: the settings that decide its numbers, and what it reads, by
//! content. A path is a name only: another spelling of it is the same file, and the same spelling may be another.

use crate::error::{Error, Result};
use crate::format::{peft, peft::Adapter};
use crate::pretrained::chain::Link;
use crate::pretrained::fingerprint::{files, model, whole};
use crate::pretrained::open::Setup;
use crate::train::config::TrainConfig;
use crate::train::schedule::Decay;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a run must have in common with its checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Settings that decide the numbers of a step.
    pub configuration: Value,
    /// Where it reads: what checkpoints without `inputs` compare instead.
    pub paths: Value,
    /// What it reads, by content. The rows of the data have a hash in its position.
    pub inputs: Value,
}

/// Settings that may change at a resume.
const FREE: [&str; 10] = [
    "output_dir",
    "overwrite_output_dir",
    "strict",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "per_device_eval_batch_size",
    "gradient_checkpointing",
    VALIDATION,
];

/// Settings that are paths.
const PATHS: [&str; 5] =
    ["model_name_or_path", "peft_model_name_or_path", "dataset_file_path", "train_file", "instructions"];

/// May come or go at a resume; where it stays it is the same.
const VALIDATION: &str = "validation_file";

impl Identity {
    /// Of a run by `config`, which trains on from `start` if there is one.
    pub fn new(config: &TrainConfig, setup: &Setup, start: Option<&Adapter>) -> Result<Identity> {
        let (mut configuration, mut paths) = (Map::new(), Map::new());
        if let Value::Object(fields) = json!(config) {
            for (key, value) in fields.into_iter().filter(|(key, _)| !FREE.contains(&key.as_str())) {
                // Under a decay over the epochs a run may be given more steps.
                match key.as_str() {
                    "stop_after_n_steps" if config.decay == Decay::Epochs => {}
                    path if PATHS.contains(&path) => drop(paths.insert(key, value)),
                    _ => drop(configuration.insert(key, value)),
                }
            }
        }
        let mut inputs = model(&setup.stack)?;
        let mut note = |what: &str, value: String| inputs.insert(what.into(), value.into());
        note("template", setup.template.into());
        if let Some(start) = start {
            note("continued adapter", Link::hash(start));
        }
        if let Some(file) = &config.instructions {
            note("instructions", whole(Path::new(file))?);
        }
        if let Some(path) = &config.validation_file {
            note(VALIDATION, files(Path::new(path))?);
        }
        Ok(Identity { configuration: configuration.into(), paths: paths.into(), inputs: inputs.into() })
    }

    /// Refuses the checkpoint in `dir`, of this configuration and these inputs, if it is another run's, by what differs.
    pub fn check(&self, dir: &Path, configuration: &Value, inputs: &Value) -> Result<()> {
        // Through text, as the saved one went.
        let mut wanted: Value = serde_json::from_str(&self.configuration.to_string())
            .map_err(|e| Error::file(dir, format!("the configuration cannot be compared: {e}")))?;
        let by_path = inputs.is_null();
        // Runs of before there were slices had one.
        let mut saved = configuration.clone();
        if let (Value::Object(fields), true) = (&mut saved, wanted["slices"].is_number()) {
            fields.entry("slices").or_insert(1.into());
        }
        if let (true, Value::Object(all), Value::Object(paths)) = (by_path, &mut wanted, &self.paths) {
            all.extend(paths.clone());
        }
        let lines = differences(&TrainConfig::respelled(&saved, &wanted), &wanted);
        if !lines.is_empty() {
            let what = format!("is of another configuration ({lines}); give the same to resume");
            return Err(Error::file(dir, what));
        }
        let (mut saved, mut wanted) = (inputs.clone(), self.inputs.clone());
        if let (Value::Object(saved), Value::Object(wanted)) = (&mut saved, &mut wanted)
            && saved.contains_key(VALIDATION) != wanted.contains_key(VALIDATION)
        {
            saved.remove(VALIDATION);
            wanted.remove(VALIDATION);
        }
        if by_path || saved == wanted {
            return Ok(());
        }
        let what = format!("was trained from another input ({})", differences(&saved, &wanted));
        Err(Error::file(dir, format!("{what}; give the same to resume")))
    }
}

/// Names what differs, so that the user knows which flag or file to change.
pub(crate) fn differences(saved: &Value, wanted: &Value) -> String {
    let keys = |v: &Value| v.as_object().map_or(Vec::new(), |o| o.keys().cloned().collect());
    let mut all: Vec<String> = [keys(saved), keys(wanted)].concat();
    all.sort();
    all.dedup();
    let show = |v: &Value, key: &str| v.get(key).map_or("absent".into(), peft::brief);
    let differ = all.iter().filter(|k| saved.get(k) != wanted.get(k));
    let lines: Vec<_> =
        differ.map(|k| format!("{k} {} there, {} here", show(saved, k), show(wanted, k))).collect();
    lines.join("; ")
}
