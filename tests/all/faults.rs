//! A campaign of faults: kills at any moment and at every call that writes, disks that are full, folders that may not be
//! written or vanish, two writers at once, damaged files without end, and the same thing done a thousand times over.
//!
//! Every day runs a sample of 74 seconds on two cores; `LLM2VEC_KILLS`, `LLM2VEC_FAULTS`, `LLM2VEC_FUZZ_SECONDS` and
//! `LLM2VEC_REPEATS` are the numbers of the whole campaign, whose figures are in `benches/results/faults.md`.

mod fuzz;
mod inputs;
mod kills;
mod repeats;
mod shim;
mod sweep;
mod writers;

use crate::command::{Tiny, llm2vec, names, prose, str};
use crate::common::here;
use crate::training::Data;
use llm2vec::format::peft::Adapter;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What stands under the name of an output before a command writes it.
const BEFORE: &[u8] = b"what was there";

/// Files by their names from a folder on, whatever is in them.
type Files = BTreeMap<String, Vec<u8>>;

/// A folder in memory where the system has one: thousands of runs make durable what no power cut threatens.
fn quick() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A command that writes one output, into a folder that holds nothing else.
struct Job {
    name: &'static str,
    tiny: Tiny,
    adapter: TempDir,
    data: Data,
}

impl Job {
    fn new(name: &'static str) -> Job {
        let tiny = Tiny::new();
        Job { name, adapter: tiny.adapter(1), tiny, data: Data::new(20) }
    }

    fn trains(&self) -> bool {
        ["mntp", "simcse", "supervised"].contains(&self.name)
    }

    /// The output's name; that of a file has its ending.
    fn output(&self) -> &'static str {
        match self.name {
            "encode-npy" => "v.npy",
            "encode-safetensors" => "v.safetensors",
            "encode-jsonl" => "v.jsonl",
            "eval" => "scores.json",
            _ => "output",
        }
    }

    /// A folder as it is before the command.
    fn fresh(&self) -> TempDir {
        let dir = quick();
        if self.output().contains('.') {
            fs::write(dir.path().join(self.output()), BEFORE).unwrap();
        }
        dir
    }

    /// The command, into `dir`; a run of training goes on where there is one.
    fn command(&self, dir: &Path, more: &[&str]) -> Command {
        let out = dir.join(self.output());
        let (model, out, adapter) = (self.tiny.path(), str(&out), str(self.adapter.path()));
        let (data, pairs, sts) = (self.data.of(self.name), self.data.pairs(), here("tests/texts/sts.tsv"));
        let (data, pairs, sts) = (str(&data), str(&pairs), str(&sts));
        let own: &[&str] = match self.name {
            "encode-npy" => &["encode", "-i", prose(), "--output-dtype", "i8", "-q"],
            "merge" => &["merge", "--adapter", adapter],
            "eval" => &["eval", "sts", "--data", sts],
            "mntp" => &["train", "mntp", "--train-head", "--batch", "3"],
            "simcse" => &[
                "train",
                "simcse",
                "--batch",
                "4",
                "--validation",
                pairs,
                "--eval-steps",
                "1",
                "--keep-best",
            ],
            "supervised" => &["train", "supervised", "--batch", "3", "--adapter", adapter],
            _ => &["encode", "-i", prose(), "--adapter", adapter, "-q"],
        };
        let steps: &[&str] = if more.contains(&"--steps") { &[] } else { &["--steps", "3"] };
        let small = ["--max-length", "24", "--rank", "4", "--lr", "1e-2", "--epochs", "100000", "--quiet"];
        let runs = [&["--data", data, "--save-steps", "1", "--resume"], &small[..], steps].concat();
        let runs = if self.trains() { runs } else { Vec::new() };
        llm2vec(&[own, &["-m", model, "-o", out], &runs, more].concat())
    }

    /// What the command leaves where nothing goes wrong; with `more` flags.
    #[track_caller]
    fn straight(&self, more: &[&str]) -> Files {
        let dir = self.fresh();
        crate::command::good(self.command(dir.path(), more));
        comparable(dir.path())
    }
}

/// Everything below a folder, hidden or not.
fn files(dir: &Path) -> Files {
    let each = names(dir).into_iter().flat_map(|name| match dir.join(&name) {
        path if path.is_dir() => {
            let inside = files(&path).into_iter().map(|(rest, bytes)| (format!("{name}/{rest}"), bytes));
            // A folder without a file is there too.
            inside.chain([(format!("{name}/"), Vec::new())]).collect::<Vec<_>>()
        }
        path => vec![(name, fs::read(&path).unwrap())],
    });
    each.collect()
}

/// Likewise without what the clock and the folder's own name decide.
fn comparable(dir: &Path) -> Files {
    let mut all = files(dir);
    all.retain(|name, _| !name.ends_with("train_config.json"));
    for (name, bytes) in &mut all {
        if name.ends_with("log.jsonl") {
            let text = String::from_utf8(std::mem::take(bytes)).unwrap();
            for line in text.lines() {
                let mut line: Value = serde_json::from_str(line).unwrap();
                let clocked = |key: &String| key == "tokens_per_second" || key == "memory_mib";
                line.as_object_mut().unwrap().retain(|key, _| !clocked(key));
                bytes.extend(format!("{line}\n").into_bytes());
            }
        }
    }
    all
}

fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.'))
}

/// Unfinished files and folders.
fn leftovers(dir: &Path) -> Vec<String> {
    files(dir).into_keys().filter(|name| is_hidden(name)).collect()
}

/// Whatever has a final name is what was there before, or what a straight run gives it (at some step of it); the best
/// adapter so far may be another than that of the end.
#[track_caller]
fn whole(dir: &Path, straight: &[&Files]) {
    for (name, bytes) in files(dir) {
        if is_hidden(&name) || name.ends_with('/') || bytes == BEFORE {
            continue;
        }
        if name.ends_with("log.jsonl") {
            // Appended to line by line: the last may be cut short, which a resumed run takes away.
            let text = String::from_utf8(bytes).unwrap();
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            lines.for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
        } else if name.ends_with("train_config.json") {
            serde_json::from_slice::<Value>(&bytes).unwrap();
        } else if !name.starts_with("output/best/") {
            assert!(straight.iter().any(|all| all.get(&name) == Some(&bytes)), "{name} is not whole");
        }
    }
    let best = dir.join("output/best");
    if best.exists() {
        Adapter::open(&best).unwrap();
    }
}
