//! A run that was killed, or asked to stop, and resumed ends as one that never was.

use super::{Data, log, same_run, train};
use crate::command::{Tiny, failed, folder, good, str};
use crate::common::amount;
use llm2vec::format::hf::Checkpoint as Tensors;
use llm2vec::rng::philox;
use llm2vec::train::checkpoint::Checkpoint;
use llm2vec::train::lock::FILE;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A stage with much of what it can do, on little data: epochs end, batches are short, several make a step.
pub(super) struct Case {
    pub(super) stage: &'static str,
    pub(super) tiny: Tiny,
    pub(super) below: TempDir,
    pub(super) data: Data,
}

impl Case {
    pub(super) fn new(stage: &'static str) -> Case {
        let tiny = Tiny::new();
        Case { stage, below: tiny.adapter(1), tiny, data: Data::new(45) }
    }

    fn run(&self, out: &Path, flags: &[&str]) -> Command {
        let (valid, pairs) = (self.data.validation(), self.data.pairs());
        let below = str(self.below.path());
        let own: &[&str] = match self.stage {
            "mntp" => &[
                "--batch",
                "3",
                "--accumulation",
                "2",
                "--train-head",
                "--validation",
                str(&valid),
                "--eval-steps",
                "4",
                "--grouping",
                "apart",
            ],
            "simcse" => &[
                "--batch",
                "6",
                "--grad-cache",
                "5",
                "--weight-decay",
                "0.1",
                "--validation",
                str(&pairs),
                "--eval-steps",
                "3",
                "--keep-best",
            ],
            _ => &[
                "--batch",
                "5",
                "--accumulation",
                "2",
                "--mask-false-negatives",
                "--false-negative-margin",
                "0.5",
                "--warmup",
                "4",
                "--adapter",
                below,
                "--recompute",
            ],
        };
        let common = ["--max-length", "24", "--epochs", "100", "--lr", "1e-2", "--rank", "4"];
        train(self.stage, self.tiny.dir.path(), &self.data, out, &[&common, own, flags].concat())
    }

    /// A run to the end, and how long it took.
    fn straight(&self, out: &Path, flags: &[&str]) -> Duration {
        let started = Instant::now();
        good(self.run(out, flags));
        started.elapsed()
    }

    /// Kills the run at random moments until it has come to its end, and starts another, until there were enough.
    fn killed(&self) {
        let dir = folder();
        let save_steps = if self.stage == "supervised" { "2" } else { "1" };
        let flags = ["--steps", "20", "--keep", "2", "--save-steps", save_steps];
        let straight = dir.path().join("straight");
        let whole = self.straight(&straight, &flags);
        let wanted = amount("LLM2VEC_KILLS", 20);
        let (mut kills, mut runs, mut saves) = (0, 0, 0);
        while kills < wanted {
            let out = dir.path().join(format!("run-{runs}"));
            loop {
                let draw = philox([kills as u32, runs, 0, 0], [7, self.stage.len() as u32]);
                let threads = (1 + draw[1] % 2).to_string();
                let flags = [&flags[..], &["--resume", "--threads", &threads]].concat();
                let mut child = self.run(&out, &flags).spawn().unwrap();
                sleep(whole.mul_f64(0.7 * f64::from(draw[0]) / f64::from(u32::MAX)));
                child.kill().unwrap();
                let ended = child.wait().unwrap();
                if ended.signal().is_none() {
                    assert!(ended.success(), "{ended}");
                    break;
                }
                kills += 1;
                saves += usize::from(whole_files(&out));
            }
            same_run(&out, &straight);
            runs += 1;
        }
        assert!(saves > 0, "no kill fell into a save");
        println!(
            "{}: {kills} kills, {saves} within a save, over {runs} runs; a straight one takes {whole:?}",
            self.stage
        );
    }
}

/// What a killed run has left under a final name can be read; and whether it was killed within a save.
fn whole_files(out: &Path) -> bool {
    let mut half = false;
    let entries = std::fs::read_dir(out).into_iter().flatten().map(|e| e.unwrap().path());
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        half |= name.starts_with('.') && name != FILE;
        if name.starts_with("checkpoint-") {
            Checkpoint::read(&path).unwrap();
        } else if name == "adapter_model.safetensors" {
            Tensors::open_file(&path).unwrap();
        } else if name.ends_with(".json") && !name.starts_with('.') {
            let text = std::fs::read(&path).unwrap();
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        }
    }
    half
}

#[test]
fn a_killed_mntp_run_ends_as_a_straight_one() {
    Case::new("mntp").killed();
}

#[test]
fn a_killed_simcse_run_ends_as_a_straight_one() {
    Case::new("simcse").killed();
}

#[test]
fn a_killed_supervised_run_ends_as_a_straight_one() {
    Case::new("supervised").killed();
}

/// A checkpoint of a run that trains its head, written without it, is no checkpoint of that run.
#[test]
fn a_checkpoint_without_its_trained_head_is_refused() {
    let (case, dir) = (Case::new("mntp"), folder());
    let out = dir.path().join("run");
    let flags = ["--steps", "4", "--save-steps", "2"];
    good(case.run(&out, &flags));
    std::fs::remove_dir_all(out.join("checkpoint-4")).unwrap();
    let saved = out.join("checkpoint-2");
    std::fs::remove_file(saved.join("extra.safetensors")).unwrap();
    let path = saved.join("trainer_state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(state["files"].as_object_mut().unwrap().remove("extra.safetensors").is_some());
    // One of before states had a hash of themselves.
    assert!(state.as_object_mut().unwrap().remove("sha256").is_some());
    std::fs::write(&path, state.to_string()).unwrap();
    let output = case.run(&out, &[&flags[..], &["--resume"]].concat()).output().unwrap();
    failed(output, 1, &["the checkpoint has no lm_head.weight of the learner's shape"]);
}

/// Sends a signal once the log has more than so many lines.
fn signal_after(child: &Child, out: &Path, lines: usize, signal: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let path = out.join("log.jsonl");
    while std::fs::read_to_string(&path).map_or(0, |text| text.lines().count()) <= lines {
        assert!(Instant::now() < deadline, "no step in a minute");
        sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_signal_ends_the_step_saves_and_says_so() {
    for stage in super::STAGES {
        let (case, dir) = (Case::new(stage), folder());
        // No checkpoint but those of the signals and the last.
        let flags = ["--steps", "150", "--keep", "1", "--save-steps", "1000"];
        let (straight, out) = (dir.path().join("straight"), dir.path().join("run"));
        let run = |out: &Path, more: &[&str]| case.run(out, &[&flags[..], more].concat());
        good(run(&straight, &[]));
        let (mut lines, mut done) = (0, 0);
        for (signal, name, status) in [("-INT", "SIGINT", 130), ("-TERM", "SIGTERM", 143)] {
            let mut command = run(&out, &["--resume"]);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            signal_after(&child, &out, lines + 2, signal);
            let output = child.wait_with_output().unwrap();
            let last = log(&out).last().unwrap()["step"].as_u64().unwrap() as usize;
            assert!(last > done && last < 150, "{last} steps after {done}");
            failed(output, status, &[name, &format!("step {last} is saved"), "--resume goes on"]);
            assert!(out.join(format!("checkpoint-{last}")).exists());
            (lines, done) = (log(&out).len(), last);
        }
        good(run(&out, &["--resume"]));
        same_run(&out, &straight);
    }
}
