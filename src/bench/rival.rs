//! The same work by PyTorch, in child processes that take turns with us: `benches/pytorch/` answers line by line.
//!
//! To the child: its settings, one JSON line; then `{"run": case, "samples": n}` a line. From the child: one line that says
//! what it is; then for each run one object by variant: seconds (a list, or with the peak of memory
//! `{"seconds": [..], "peak": bytes}`), or a reason (a string).

use super::cases::{Case, Facts, Fill, Operand};
use super::record::{Rival, Spread};
use crate::error::{Error, Message, Result, Setting, Spelling, message};
use crate::ops::attention::Mask;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// All of them in one folder: they import each other.
const SCRIPTS: [(&str, &str); 5] = [
    ("rival.py", include_str!("../../benches/pytorch/rival.py")),
    ("model.py", include_str!("../../benches/pytorch/model.py")),
    ("ops.py", include_str!("../../benches/pytorch/ops.py")),
    ("encode.py", include_str!("../../benches/pytorch/encode.py")),
    ("train.py", include_str!("../../benches/pytorch/train.py")),
];

/// What a child runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Cases of ops.
    Ops,
    /// Whole packs to vectors.
    Encode,
    /// Whole steps.
    Train,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Then the child is given up.
    pub time: Duration,
    /// How the reason names the setting.
    pub spelling: Spelling,
}

/// A Python that times its own ways.
pub struct Python {
    child: Child,
    to: Sender<String>,
    from: Receiver<String>,
    patience: Patience,
    /// What it says it is.
    pub name: String,
    /// Why it answers no more.
    pub lost: Option<String>,
    /// The most memory that a run said it had, in bytes.
    pub peak: Option<u64>,
    /// Samples, or why there are none: by case and variant.
    found: Vec<BTreeMap<String, Found>>,
    // Holds the scripts for as long as they run.
    _scripts: tempfile::TempDir,
}

enum Found {
    Seconds(Vec<f64>),
    Reason(String),
}

impl Python {
    /// Starts `python` on a script's `settings`, which are of so many cases.
    pub fn start(
        python: &str,
        script: Script,
        settings: &Value,
        cases: usize,
        patience: Patience,
    ) -> Result<Python> {
        let folder = tempfile::Builder::new().prefix("llm2vec-pytorch-").tempdir();
        let folder = folder.map_err(|e| Error::io("the scripts for PyTorch", e))?;
        for (name, text) in SCRIPTS {
            let path = folder.path().join(name);
            std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
        }
        let name = match script {
            Script::Ops => "ops.py",
            Script::Encode => "encode.py",
            Script::Train => "train.py",
        };
        let mut command = Command::new(python);
        command.arg(folder.path().join(name)).arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| {
            let what = format!("{python} cannot be started ({e}); try ");
            failed(message![what, Setting::Python, " NAME"])
        })?;
        let (to, from) = lines(&mut child);
        let mut rival = Python {
            child,
            to,
            from,
            patience,
            name: String::new(),
            lost: None,
            peak: None,
            found: (0..cases).map(|_| BTreeMap::new()).collect(),
            _scripts: folder,
        };
        let answer = rival.ask(settings).map_err(failed)?;
        match answer["name"].as_str() {
            Some(name) => rival.name = name.to_string(),
            None => {
                let why = answer["error"].as_str().unwrap_or("it did not say what it is");
                let what = format!("{python}: {why}; install torch for it, or name another with ");
                return Err(failed(message![what, Setting::Python]));
            }
        }
        Ok(rival)
    }

    /// Times every variant of a case. Once it is lost, the reason is what it gives.
    pub fn run(&mut self, case: usize, samples: usize) {
        let variants = self.order(&json!({"run": case, "samples": samples}));
        let variants = variants
            .unwrap_or_else(|why| [("PyTorch".to_string(), Value::String(why))].into_iter().collect());
        for (name, value) in variants {
            self.peak = self.peak.max(value["peak"].as_u64());
            let seconds = if value.is_object() { &value["seconds"] } else { &value };
            let found = match value.as_str() {
                Some(reason) => Found::Reason(reason.into()),
                None => Found::Seconds(
                    seconds.as_array().into_iter().flatten().filter_map(Value::as_f64).collect(),
                ),
            };
            match (self.found[case].get_mut(&name), found) {
                (Some(Found::Seconds(all)), Found::Seconds(more)) => all.extend(more),
                (_, found) => {
                    self.found[case].insert(name, found);
                }
            }
        }
    }

    /// An order, and the object that answers it; or why it is lost.
    pub fn order(&mut self, what: &Value) -> std::result::Result<Map<String, Value>, String> {
        if let Some(why) = &self.lost {
            return Err(why.clone());
        }
        let answer = self.ask(what).and_then(|answer| match answer {
            Value::Object(answer) => Ok(answer),
            other => Err(said(&other.to_string())),
        });
        answer.inspect_err(|why| self.lost = Some(why.clone()))
    }

    /// What a case's runs gave.
    pub fn taken(&mut self, case: usize) -> BTreeMap<String, Rival> {
        let rival = |found| match found {
            Found::Seconds(all) => Spread::of(&all).map_or(Rival::Note("no sample".into()), Rival::Time),
            Found::Reason(why) => Rival::Note(why),
        };
        std::mem::take(&mut self.found[case]).into_iter().map(|(name, f)| (name, rival(f))).collect()
    }

    /// A line to it, and its answer; or why there is none.
    fn ask(&mut self, what: &Value) -> std::result::Result<Value, String> {
        // Where it is gone, so is the answer.
        let _ = self.to.send(what.to_string());
        match self.from.recv_timeout(self.patience.time) {
            Ok(line) => serde_json::from_str(&line).map_err(|_| said(line.trim())),
            Err(RecvTimeoutError::Timeout) => {
                let s = self.patience.time.as_secs();
                let what =
                    message![format!("the child has not answered for {s} s ("), Setting::Patience, ")"];
                Err(what.spelled(self.patience.spelling))
            }
            Err(RecvTimeoutError::Disconnected) => Err(said("nothing, and went away")),
        }
    }
}

fn failed(what: impl Into<Message>) -> Error {
    Error::device(message![Setting::Against, " pytorch: ", what])
}

fn said(what: &str) -> String {
    format!("the child said {what}; its own words are above")
}

/// A child's pipes by threads of their own: one that neither reads nor answers holds up nobody.
fn lines(child: &mut Child) -> (Sender<String>, Receiver<String>) {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { unreachable!() };
    let ((to, orders), (answers, from)) = (channel::<String>(), channel());
    std::thread::spawn(move || orders.iter().try_for_each(|line| writeln!(stdin, "{line}")));
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines().map_while(std::result::Result::ok);
        lines.all(|line| answers.send(line).is_ok())
    });
    (to, from)
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cases for other programs: op, label, facts, cost, and every operand's shape, type on a GPU and integers.
pub fn list(cases: &[Case]) -> Value {
    let one = |case: &Case| {
        let operands = |list: &[Operand]| -> Map<String, Value> {
            let one = |operand: &Operand| {
                let dtype = format!("{:?}", operand.gpu_dtype()).to_lowercase();
                let ints = if let Fill::Ints(_, values) = &operand.fill { Some(values) } else { None };
                let shape = operand.fill.shape();
                (operand.name.to_string(), json!({"shape": shape, "dtype": dtype, "ints": ints}))
            };
            list.iter().map(one).collect()
        };
        json!({
            "op": case.op, "label": case.label, "facts": facts(&case.facts),
            "flops": case.flops, "elements": case.elements,
            "outputs": operands(&case.outputs), "inputs": operands(&case.inputs),
        })
    };
    cases.iter().map(one).collect()
}

fn facts(facts: &Facts) -> Value {
    let sizes: Map<_, _> = facts.sizes.iter().map(|(name, size)| (name.to_string(), json!(size))).collect();
    let mask = facts.mask.map(|mask| {
        let (kind, window) = match mask {
            Mask::Full => ("Full", None),
            Mask::Causal => ("Causal", None),
            Mask::Window(keys) => ("Window", Some(keys)),
            Mask::CausalWindow(keys) => ("CausalWindow", Some(keys)),
        };
        json!({"kind": kind, "window": window})
    });
    json!({
        "sizes": sizes, "segments": facts.segments, "mask": mask, "margin": facts.margin, "rounded": facts.rounded,
        "dropout": facts.dropout, "pooling": facts.pooling.map(|pooling| format!("{pooling:?}")),
    })
}
