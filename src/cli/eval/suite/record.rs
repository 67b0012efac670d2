//! The folder of a suite's results: `TASK.json` as mteb 2 writes and reads it, with our settings beside the scores, and
//! `suite.json`; every file whole or not there.

use crate::error::{Error, Result};
use crate::eval::scores::Scores;
use crate::format::atomic;
use crate::format::hf::read_json;
use crate::train::folder::holds_no_model;
use crate::train::identity::differences;
use crate::train::lock::Lock;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The file of the averages.
const SUMMARY: &str = "suite";

/// The key of ours in a results file; mteb passes over it.
const OURS: &str = "llm2vec";

/// The folder of this process's suite.
pub struct Record {
    path: PathBuf,
    _lock: Lock,
}

/// What a task gave.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The name of the figure that counts.
    pub main: String,
    /// It, from 0 to 1, if there is one.
    pub score: Option<f64>,
}

impl Record {
    /// Makes the folder, or goes on in it.
    pub fn open(path: &Path) -> Result<Record> {
        holds_no_model(path)?;
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        Ok(Record { path: path.into(), _lock: Lock::new(path)? })
    }

    fn file(&self, task: &str) -> PathBuf {
        self.path.join(format!("{task}.json"))
    }

    /// The kept result of a task of these settings; other settings are refused by name.
    pub fn read(&self, task: &str, settings: &Value) -> Result<Option<Kept>> {
        let file = self.file(task);
        if task == SUMMARY {
            let what = "is the name of the file of averages; rename that set";
            return Err(Error::usage(format!("a task called {SUMMARY}: {what}")));
        }
        if !file.exists() {
            return Ok(None);
        }
        let json = read_json(&file)?;
        let (Some(saved), Some(main)) = (json[OURS].get("settings"), json[OURS]["main"].as_str()) else {
            let what = "holds results that no `eval suite` wrote; take another --output";
            return Err(Error::usage(format!("{} {what}", file.display())));
        };
        // As they come back from a file.
        let wanted: Value =
            serde_json::from_str(&settings.to_string()).map_err(|e| Error::file(&file, e.to_string()))?;
        let differ = differences(saved, &wanted);
        if !differ.is_empty() {
            let what = format!("holds results of other settings ({differ})");
            let hint = "give the same to go on, or another --output";
            return Err(Error::usage(format!("{} {what}; {hint}", file.display())));
        }
        let score = json["scores"]["test"][0]["main_score"].as_f64();
        Ok(Some(Kept { main: main.into(), score }))
    }

    /// Keeps what a task gave.
    pub fn keep(&self, task: &str, settings: &Value, scores: &Scores, seconds: f64) -> Result<Kept> {
        let mut entry = json!(scores);
        entry["hf_subset"] = json!("default");
        // Undetermined: mteb averages over languages, and over none it has no score.
        entry["languages"] = json!(["und-Zzzz"]);
        let results = json!({
            "task_name": task, "dataset_revision": "local", "mteb_version": null, "scores": { "test": [entry] },
            "evaluation_time": seconds, "kg_co2_emissions": null,
            OURS: { "main": scores.main, "settings": settings },
        });
        atomic::write_json(&self.file(task), &results)?;
        Ok(Kept { main: scores.main.clone(), score: scores.value(&scores.main) })
    }

    /// Writes the averages.
    pub fn summarize(&self, summary: &Value) -> Result<()> {
        atomic::write_json(&self.file(SUMMARY), summary)
    }
}
