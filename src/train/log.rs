//! What a run tells while it goes: a line per step, a bar with the time left, JSONL, TensorBoard.

use super::progress::Progress;
use super::tensorboard::Events;
use crate::device::cpu::memory;
use crate::error::{Error, Message, Result, Setting, Spelling, message};
use crate::train::ranks::Spent;
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The first figure of an evaluation has one of these names; one that has both is of the former.
const FIRST: [&str; 2] = ["spearman", "loss"];

/// Where the log goes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps between lines on stderr; 0 and 1 mean every step has one.
    pub every: u64,
    /// Nothing on stderr.
    pub quiet: bool,
    /// One JSON object per line.
    pub jsonl: Option<PathBuf>,
    /// Folder for TensorBoard.
    pub tensorboard: Option<PathBuf>,
    /// How a line names a setting.
    pub spelling: Spelling,
}

/// One optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// The loss.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// The learning rate it was made with.
    pub lr: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// How long it took.
    pub time: Duration,
    /// Of that, what went to other ranks, where there are any.
    pub spent: Option<Spent>,
}

/// What the plot needs of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its number.
    pub step: u64,
    /// The loss.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
}

/// An open log.
pub struct Log {
    steps: u64,
    every: u64,
    quiet: bool,
    spelling: Spelling,
    progress: Progress,
    jsonl: Option<(PathBuf, File)>,
    events: Option<Events>,
    /// All steps of the run: those before a resume too, where there is a JSONL file.
    pub points: Vec<Point>,
    /// Likewise the step and the first figure of every evaluation.
    pub evaluations: Vec<(u64, f64)>,
}

impl Log {
    /// Opens the log of a run that has `done` steps behind it: what is in the files beyond them is forgotten.
    pub fn open(options: &Options, done: u64) -> Result<Log> {
        let mut told = Told::default();
        let jsonl = options.jsonl.as_ref().map(|path| Ok((path.clone(), rewind(path, done, &mut told)?)));
        let progress = Progress::steps(options.steps, done, options.quiet);
        Ok(Log {
            steps: options.steps,
            every: options.every.max(1),
            quiet: options.quiet,
            spelling: options.spelling,
            progress,
            jsonl: jsonl.transpose()?,
            events: options.tensorboard.as_ref().map(|dir| Events::create(dir, done + 1)).transpose()?,
            points: told.points,
            evaluations: told.evaluations,
        })
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            self.progress.line(text);
        }
    }

    /// A message as a line above the bar.
    pub fn message(&self, message: &Message) {
        self.line(&message.spelled(self.spelling));
    }

    /// Tells of one step.
    pub fn step(&mut self, s: &Step) -> Result<()> {
        let rate = s.tokens as f64 / s.time.as_secs_f64().max(1e-9);
        let peak = memory("/proc/self/status", "VmHWM:");
        let width = self.steps.to_string().len();
        let Step { step, loss, grad_norm, lr, .. } = s;
        let mib = peak.map_or(String::new(), |bytes| format!("  {} MiB", bytes >> 20));
        if step % self.every == 0 || *step == self.steps || *step == 1 {
            self.line(&format!(
                "step {step:>width$}/{}  loss {loss:.4}  grad {grad_norm:.4}  lr {lr:.3e}  {rate:.0} tokens/s{mib}",
                self.steps
            ));
        }
        self.progress.step(*step, &format!("loss {loss:.4}"));
        self.points.push(Point { step: *step, loss: *loss, lr: *lr });
        let mut values =
            vec![("loss", *loss), ("grad_norm", *grad_norm), ("lr", *lr), ("tokens_per_second", rate)];
        values.extend(peak.map(|bytes| ("memory_mib", bytes as f64 / (1 << 20) as f64)));
        if let Some(Spent { wait, exchange }) = s.spent {
            let share = |part: Duration| part.as_secs_f64() / s.time.as_secs_f64().max(1e-9);
            values.extend([("ranks_wait_share", share(wait)), ("ranks_exchange_share", share(exchange))]);
        }
        self.write(*step, "train", &values)
    }

    /// Tells what an evaluation after `step` gave.
    pub fn evaluation(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let list: Vec<_> = values.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
        self.line(&format!("step {step}  evaluation: {}", list.join("  ")));
        self.evaluations.extend(values.first().map(|(_, value)| (step, *value)));
        self.write(step, "eval", values)
    }

    /// Every line is written whole and at once, so that a killed run loses none.
    fn write(&mut self, step: u64, kind: &str, values: &[(&str, f64)]) -> Result<()> {
        if let Some((path, file)) = &mut self.jsonl {
            let mut object = Map::new();
            object.insert("step".into(), json!(step));
            object.insert("kind".into(), json!(kind));
            object.extend(values.iter().map(|(name, v)| (name.to_string(), json!(v))));
            let line = format!("{}\n", Value::Object(object));
            file.write_all(line.as_bytes()).map_err(|e| Error::io(path, e))?;
        }
        if let Some(events) = &mut self.events {
            let tagged: Vec<_> = values.iter().map(|(name, v)| (format!("{kind}/{name}"), *v)).collect();
            events.scalars(step, &tagged)?;
        }
        Ok(())
    }

    /// Makes the lines so far durable: to be called before a checkpoint that relies on them.
    pub fn sync(&self) -> Result<()> {
        self.jsonl.iter().try_for_each(|(path, file)| file.sync_data().map_err(|e| Error::io(path, e)))
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.progress.finish();
    }
}

/// What the lines of a file tell.
#[derive(Default)]
struct Told {
    points: Vec<Point>,
    evaluations: Vec<(u64, f64)>,
}

/// Opens the JSONL file behind its lines up to step `done`, which it adds to `told`. One run at a time has it.
fn rewind(path: &Path, done: u64, told: &mut Told) -> Result<File> {
    let io = |e| Error::io(path, e);
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        return Err(Error::usage(message![
            Setting::Log,
            format!(" {} is another run's; name another", path.display())
        ]));
    }
    let keep = kept(path, &file, done, told)?;
    file.set_len(keep).map_err(io)?;
    file.seek(std::io::SeekFrom::End(0)).map_err(io)?;
    Ok(file)
}

/// Refuses a file that is there and is no log.
pub(super) fn check(path: &Path) -> Result<()> {
    match File::open(path) {
        Ok(file) => kept(path, &file, u64::MAX, &mut Told::default()).map(|_| ()),
        Err(_) => Ok(()),
    }
}

/// Bytes of the lines up to step `done`, which it adds to `told`. A line that is not ours is an error, so that
/// a wrong file name costs nobody a file; a last line cut short by a kill is none.
fn kept(path: &Path, file: &File, done: u64, told: &mut Told) -> Result<u64> {
    let io = |e| Error::io(path, e);
    let mut reader = BufReader::new(file);
    let (mut keep, mut number, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        number += 1;
        let got = reader.read_until(b'\n', &mut line).map_err(io)?;
        let whole = line.last() == Some(&b'\n');
        let json: Option<Value> = serde_json::from_slice(&line).ok();
        if !whole && json.is_none() && (got == 0 || line.starts_with(b"{")) {
            return Ok(keep);
        }
        let Some((json, step)) = json.and_then(|j| j["step"].as_u64().map(|step| (j, step))) else {
            return Err(not_ours(path, number));
        };
        if !whole {
            return Ok(keep);
        }
        // A run without a checkpoint begins again, evaluation before the first step included.
        if step > done || done == 0 {
            continue;
        }
        // The steps only grow, so what is beyond `done` is the file's end.
        keep += got as u64;
        if let (Some(loss), Some(lr), Some("train")) =
            (json["loss"].as_f64(), json["lr"].as_f64(), json["kind"].as_str())
        {
            told.points.push(Point { step, loss, lr });
        }
        if json["kind"] == "eval" {
            let figure = FIRST.iter().find_map(|name| json[name].as_f64());
            told.evaluations.extend(figure.map(|figure| (step, figure)));
        }
    }
}

fn not_ours(path: &Path, number: u64) -> Error {
    let what = "is no line of a training log, and this file would be overwritten; name another";
    Error::file(path, format!("line {number} {what}"))
}
