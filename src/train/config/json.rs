//! A configuration as a file: the reference's, or ours.

use super::{FILE, TrainConfig};
use crate::error::{Error, Result};
use crate::format::{atomic, hf::read_json, keys};
use crate::train::blocks::Grouping;
use crate::train::config::Stage;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

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

    /// Whether the batch of this file is each rank's, as the reference's are: a file of ours has `slices` beside it.
    pub fn has_batch_per_rank(path: &Path) -> Result<bool> {
        let json = read_json(path)?;
        Ok(json["slices"].is_null() && !json["per_device_train_batch_size"].is_null())
    }

    /// Takes over what `given` holds, key by key, so that an error names its key.
    fn set(&mut self, given: &Map<String, Value>) -> std::result::Result<Vec<String>, String> {
        let stage = json!(self.stage);
        if let Some(other) = given.get("stage").filter(|other| !other.is_null() && **other != stage) {
            return Err(format!("it is a configuration of stage {other}, {stage} is run"));
        }
        let given = &respelled(given);
        let ignored = keys::take_over(self, given, &[])?;
        // What the flag made of a saved run's `line_by_line` stands in its `grouping`.
        if self.line_by_line && given.get("grouping").is_none_or(Value::is_null) {
            self.grouping = Grouping::Lines;
        }
        Ok(ignored)
    }

    /// Settings that were saved by any version of ours, as this one spells them, and its defaults of what it has in `others`
    /// more; as they are where it cannot.
    pub fn respelled(saved: &Value, others: &Value) -> Value {
        let (Value::Object(given), Ok(stage)) = (saved, Stage::deserialize(&saved["stage"])) else {
            return saved.clone();
        };
        let mut config = TrainConfig::new(stage);
        if config.set(given).is_err() {
            return saved.clone();
        }
        let today = json!(config);
        let others = others.as_object().into_iter().flat_map(Map::keys);
        given.keys().chain(others).map(|key| (key.clone(), today[key].clone())).collect::<Map<_, _>>().into()
    }

    /// Writes the effective configuration into the run's folder.
    pub fn save(&self, dir: &Path) -> Result<()> {
        atomic::write_json(&dir.join(FILE), self)
    }
}

/// Keys of Transformers' trainer by ours, where ours says the same in other words.
fn respelled(given: &Map<String, Value>) -> Map<String, Value> {
    let mut keys = given.clone();
    let mut rename = |from: &str, to: &str, value: Option<Value>| {
        if let (Some(value), false) = (value, given.contains_key(to)) {
            keys.remove(from);
            keys.insert(to.into(), value);
        }
    };
    // Transformers 5 writes a part of the schedule as steps below 1.
    let part =
        given.get("warmup_steps").filter(|v| v.as_f64().is_some_and(|steps| steps > 0.0 && steps < 1.0));
    rename("warmup_steps", "warmup_ratio", part.cloned());
    rename(
        "activation_checkpointing",
        "gradient_checkpointing",
        given.get("activation_checkpointing").cloned(),
    );
    // Else the default would end the run before them.
    if let Some(steps) = given.get("max_steps").filter(|v| v.as_i64().is_some_and(|steps| steps > 0))
        && !given.contains_key("stop_after_n_steps")
    {
        keys.insert("stop_after_n_steps".into(), steps.clone());
    }
    keys
}
