//! Training end to end: the loss falls, chunks and recomputing change nothing, a killed run goes on as if it had not
//! been, and the stages make a chain.

mod chain;
mod chunks;
mod matryoshka;
mod slices;
mod validation;
use crate::command;
use crate::common;
#[cfg(all(unix, feature = "mpi"))]
mod ranks;
#[cfg(unix)]
mod resume;

use command::{Tiny, folder, good, llm2vec, names, str};
use flate2::read::GzDecoder;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const STAGES: [&str; 3] = ["mntp", "simcse", "supervised"];

/// The first rows of the texts that ship with the repository.
pub(super) struct Data {
    dir: TempDir,
}

impl Data {
    pub(super) fn new(rows: usize) -> Data {
        let dir = folder();
        for (from, to) in [
            ("persuasion.train.txt.gz", "train.txt"),
            ("persuasion.valid.txt.gz", "valid.txt"),
            ("triplets.jsonl.gz", "triplets.jsonl"),
        ] {
            let file = fs::File::open(common::here("tests/texts").join(from)).unwrap();
            let lines = BufReader::new(GzDecoder::new(file)).lines().take(rows);
            let text: String = lines.map(|line| line.unwrap() + "\n").collect();
            fs::write(dir.path().join(to), text).unwrap();
        }
        Data { dir }
    }

    pub(super) fn of(&self, stage: &str) -> PathBuf {
        self.dir.path().join(if stage == "supervised" { "triplets.jsonl" } else { "train.txt" })
    }

    fn validation(&self) -> PathBuf {
        self.dir.path().join("valid.txt")
    }

    /// Sentences by how many words they have of those that they had.
    pub(super) fn pairs(&self) -> PathBuf {
        let path = self.dir.path().join("pairs.tsv");
        let text = fs::read_to_string(self.validation()).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.len() > 30).take(20).collect();
        let pair = |(i, line): (usize, &&str)| {
            // Short enough for any run's longest row.
            let words: Vec<&str> = line.split_whitespace().take(12).collect();
            let kept = (words.len() * (1 + i % 4) / 4).max(1);
            format!("all\t{}\t{}\t{}\n", 1 + i % 4, words.join(" "), words[..kept].join(" "))
        };
        let rows: String = lines.iter().enumerate().map(pair).collect();
        fs::write(&path, format!("subset\tscore\tsentence1\tsentence2\n{rows}")).unwrap();
        path
    }
}

/// `llm2vec train STAGE` on these data into `out`, with these flags more.
fn train(stage: &str, model: &Path, data: &Data, out: &Path, flags: &[&str]) -> Command {
    let data = data.of(stage);
    let own = ["train", stage, "-m", str(model), "--data", str(&data), "-o", str(out), "--quiet"];
    llm2vec(&[&own, flags].concat())
}

/// The lines of a run's log.
fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Its lines without what the clock and the machine decide.
fn timeless_log(out: &Path) -> Vec<Value> {
    let mut lines = log(out);
    for line in &mut lines {
        let fields = line.as_object_mut().unwrap();
        fields.retain(|key, _| {
            !["tokens_per_second", "memory_mib"].contains(&key.as_str()) && !key.starts_with("ranks_")
        });
    }
    lines
}

/// `key` of each line of a kind.
fn values(log: &[Value], kind: &str, key: &str) -> Vec<f64> {
    log.iter().filter(|line| line["kind"] == kind).map(|line| line[key].as_f64().unwrap()).collect()
}

/// Two runs have left the same files, down to the last byte; only the log has what the clock decides, and the
/// configuration names the folder.
#[track_caller]
fn same_run(a: &Path, b: &Path) {
    fn files(dir: &Path) -> Vec<PathBuf> {
        let inside = names(dir).into_iter().flat_map(|name| match dir.join(&name) {
            path if path.is_dir() => {
                files(&path).into_iter().map(|rest| Path::new(&name).join(rest)).collect()
            }
            _ => vec![name.into()],
        });
        inside.collect()
    }
    assert_eq!(files(a), files(b));
    for file in files(a) {
        match file.to_str().unwrap() {
            "train_config.json" => {}
            "log.jsonl" => assert_eq!(timeless_log(a), timeless_log(b)),
            _ => assert!(
                fs::read(a.join(&file)).unwrap() == fs::read(b.join(&file)).unwrap(),
                "{file:?} differs"
            ),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// 24 rows make three batches; with 200 batches a step an epoch is one step of three, as in Transformers, and no step goes
/// through the data many times.
#[test]
fn a_step_ends_with_its_epoch() {
    let (data, model, out) = (Data::new(24), common::here("tests/models/novel5m"), folder());
    let logged = |accumulation: &str, dir: &str| {
        let out = out.path().join(dir);
        let more = ["--batch", "8", "--epochs", "3", "--accumulation", accumulation, "--max-length", "16"];
        good(train("supervised", &model, &data, &out, &more));
        let log = log(&out);
        (values(&log, "train", "step"), checkpoint_position(&out))
    };
    assert_eq!(logged("200", "many"), (vec![1.0, 2.0, 3.0], (2, 3)));
    assert_eq!(logged("2", "two"), ((1..=6).map(f64::from).collect(), (2, 3)));
}

/// Epoch and batch where the last checkpoint's data stand.
fn checkpoint_position(out: &Path) -> (u64, u64) {
    let last = names(out).into_iter().filter(|name| name.starts_with("checkpoint-")).max().unwrap();
    let state = fs::read_to_string(out.join(last).join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let number = |key: &str| state["position"][key].as_u64().unwrap();
    (number("epoch"), number("batch"))
}

/// On the model that ships with the repository, at the paper's settings but for size and rate.
#[test]
fn the_loss_falls_in_every_stage() {
    let (data, out) = (Data::new(1500), folder());
    let valid = data.validation();
    for stage in STAGES {
        let dir = out.path().join(stage);
        let common = ["--batch", "16", "--max-length", "32", "--lr", "1e-3", "--warmup", "0"];
        let (steps, own): (_, &[&str]) = match stage {
            "mntp" => (48, &["--steps", "48", "--validation", str(&valid), "--eval-steps", "12"]),
            _ => (16, &["--steps", "16"]),
        };
        good(train(stage, &common::novel5m(), &data, &dir, &[&common, own].concat()));
        let log = log(&dir);
        assert_eq!(values(&log, "train", "step"), (1..=steps).map(f64::from).collect::<Vec<_>>());
        assert!(values(&log, "train", "grad_norm").iter().all(|n| n.is_finite() && *n > 0.0));
        let rates = values(&log, "train", "lr");
        assert!(rates[0] == 1e-3 && rates.windows(2).all(|w| w[1] < w[0]), "{rates:?}");
        let losses = values(&log, "train", "loss");
        println!("{stage}: {losses:.4?}");
        if stage == "mntp" {
            // Other tokens are hidden at every step; the evaluation hides the same ones.
            let (losses, hits) = (values(&log, "eval", "loss"), values(&log, "eval", "accuracy"));
            println!("mntp, evaluation: {losses:.4?}, accuracy {hits:.4?}");
            assert!(losses.len() == 5 && losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
            assert!(losses[0] - losses[4] > 0.05 && hits[4] > hits[0], "{losses:?} {hits:?}");
        } else {
            let (first, last) = (mean(&losses[..4]), mean(&losses[12..]));
            assert!(last < 0.6 * first, "{stage}: {first} to {last}");
        }
    }
}

/// Recomputing keeps less and gives the same files; so do another number of threads and a second run.
#[test]
fn recomputing_and_threads_give_the_same_files() {
    let (tiny, data) = (Tiny::new(), Data::new(60));
    for stage in STAGES {
        let out = folder();
        let run = |name: &str, flags: &[&str]| {
            let dir = out.path().join(name);
            let common =
                ["--steps", "6", "--batch", "5", "--max-length", "24", "--lr", "1e-2", "--save-steps", "4"];
            good(train(stage, tiny.dir.path(), &data, &dir, &[&common, flags].concat()));
            dir
        };
        let plain = run("plain", &["--threads", "1"]);
        same_run(&run("again", &["--threads", "1"]), &plain);
        same_run(&run("two", &["--threads", "2"]), &plain);
        let spared = run("spared", &["--recompute", "--threads", "2"]);
        same_run(&spared, &plain);
        // And they are the files of a run that learned.
        let other = run("other", &["--seed", "43"]);
        let adapter = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).unwrap();
        assert!(adapter(&other) != adapter(&plain));
    }
}
