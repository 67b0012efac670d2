//! The folder of an ablation: `ablation.json` with its settings, `seed-N/ADAPTER` with a record beside it when it is done,
//! and `scores/VARIANT/seed-N/POOLING/TASK.json`, for words `words` in place of a pooling; every file whole or not there.

use super::plan::{Source, Task, Training};
use crate::error::{Error, Result};
use crate::eval::scores::Scores;
use crate::format::atomic;
use crate::format::hf::read_json;
use crate::pretrained::pooling::PoolingMode;
use crate::train::checkpoint::Losses;
use crate::train::folder::holds_no_model;
use crate::train::identity::differences;
use crate::train::lock::Lock;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The settings: what names a folder as one of an ablation.
const SETTINGS: &str = "ablation.json";

/// The folder of this process's ablation.
pub struct Record {
    /// Where it is.
    pub path: PathBuf,
    _lock: Lock,
}

/// Some flags of a command, by their names, and their values.
pub type Flags = Value;

impl Record {
    /// Makes the folder this ablation's, or goes on in it if the flags are the same.
    pub fn open(path: &Path, flags: &Flags) -> Result<Record> {
        holds_no_model(path)?;
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        let lock = Lock::new(path)?;
        let file = path.join(SETTINGS);
        if file.exists() {
            let differ = differences(&read_json(&file)?, &written(flags)?);
            if !differ.is_empty() {
                let what = format!("holds an ablation with other flags ({differ})");
                let hint = "give the same to go on with it, or another --output";
                return Err(Error::usage(format!("--output {} {what}; {hint}", path.display())));
            }
            return Ok(Record { path: path.into(), _lock: lock });
        }
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        for entry in entries {
            let name = entry.map_err(|e| Error::io(path, e))?.file_name().to_string_lossy().into_owned();
            // A killed one may have left its lock, and the settings half written.
            if !name.starts_with('.') {
                let what =
                    format!("holds {name} and no {SETTINGS}: no ablation wrote it; take another folder");
                return Err(Error::usage(format!("--output {} {what}", path.display())));
            }
        }
        atomic::write_json(&file, flags)?;
        Ok(Record { path: path.into(), _lock: lock })
    }

    /// The folder of an adapter.
    pub fn adapter(&self, training: &Training, seed: u64) -> PathBuf {
        self.path.join(format!("seed-{seed}")).join(training.name)
    }

    fn trained_file(&self, training: &Training, seed: u64) -> PathBuf {
        self.adapter(training, seed).with_extension("json")
    }

    /// Whether an adapter is there.
    pub fn is_trained(&self, training: &Training, seed: u64) -> bool {
        self.trained_file(training, seed).exists()
    }

    /// What was noted of it.
    pub fn trained(&self, training: &Training, seed: u64) -> Result<Value> {
        read_json(&self.trained_file(training, seed))
    }

    /// Notes that it is.
    pub fn set_trained(&self, training: &Training, seed: u64, losses: &Losses) -> Result<()> {
        let mean = losses.sum / losses.steps.max(1) as f64;
        let record = json!({ "steps": losses.steps, "first_loss": losses.first, "last_loss": losses.last, "mean_loss": mean });
        atomic::write_json(&self.trained_file(training, seed), &record)
    }

    fn score_file(&self, source: &Source, task: &Task) -> PathBuf {
        let seed = source.seed.map_or("untrained".into(), |seed| format!("seed-{seed}"));
        let folder = self.path.join("scores").join(source.variant.folder).join(seed);
        folder.join(source.level()).join(format!("{}.json", task.id().replace('/', ".")))
    }

    /// What a task gave, if it was run: the figure that counts, if there is one (a correlation of equal numbers is none).
    pub fn score(&self, source: &Source, task: &Task) -> Result<Option<Option<f64>>> {
        let file = self.score_file(source, task);
        if !file.exists() {
            return Ok(None);
        }
        Ok(Some(read_json(&file)?["scores"]["main_score"].as_f64()))
    }

    /// Keeps what it gave.
    pub fn set_score(&self, source: &Source, task: &Task, scores: &Scores) -> Result<()> {
        let file = self.score_file(source, task);
        let folder = file.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let (name, kind) = match task {
            Task::Sentences(set) => (&set.name, json!(set.kind)),
            Task::Words(words) => (&words.name, json!("words")),
        };
        let mut record = json!({ "variant": source.variant.name, "seed": source.seed,
            "pooling": source.pooling.map(PoolingMode::name), "task": name, "type": kind, "data": task.path(),
            "main": scores.main, "scores": scores });
        if let Task::Words(words) = task {
            record["label"] = json!(words.data.train.label);
        }
        atomic::write_json(&file, &record)
    }
}

/// The flags as they come back from a file.
fn written(flags: &Flags) -> Result<Value> {
    serde_json::from_str(&flags.to_string())
        .map_err(|e| Error::unsupported(format!("the flags cannot be compared: {e}")))
}
