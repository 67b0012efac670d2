//! The same cases by PyTorch, in a child process that takes turns with us: `benches/pytorch/ops.py` answers line by line.
//!
//! To the child: the settings and the cases, one JSON line; then `{"run": case, "samples": n}` a line. From the child: one
//! line that says what it is; then for each run one object of seconds (a list) or a reason (a string) by variant.

use super::cases::{Case, Fill, gpu_dtype};
use super::record::{Rival, Spread};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const SCRIPT: &str = include_str!("../../benches/pytorch/ops.py");

/// A Python that times its own ways.
pub struct Python {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// What it says it is.
    pub name: String,
    /// Samples, or why there are none: by case and variant.
    found: Vec<BTreeMap<String, Found>>,
    // Holds the script for as long as it runs.
    _script: tempfile::NamedTempFile,
}

enum Found {
    Seconds(Vec<f64>),
    Reason(String),
}

impl Python {
    /// Starts `python` on these cases; `gpu` is a CUDA ordinal.
    pub fn start(python: &str, cases: &[Case], gpu: Option<usize>, compile: bool) -> Result<Python> {
        let mut script = tempfile::Builder::new()
            .prefix("llm2vec-ops-")
            .suffix(".py")
            .tempfile()
            .map_err(|e| Error::io("the script for --against pytorch", e))?;
        script.write_all(SCRIPT.as_bytes()).map_err(|e| Error::io(script.path(), e))?;
        let child = Command::new(python)
            .arg(script.path())
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|e| {
            Error::Device(format!("--against pytorch: {python} cannot be started ({e}); try --python NAME"))
        })?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { unreachable!() };
        let found = cases.iter().map(|_| BTreeMap::new()).collect();
        let (from, name) = (BufReader::new(from), String::new());
        let mut rival = Python { child, to, from, name, found, _script: script };
        let device = gpu.map_or("cpu".into(), |n| format!("cuda:{n}"));
        let threads = rayon::current_num_threads();
        rival
            .tell(&json!({"device": device, "threads": threads, "compile": compile, "cases": list(cases)}))?;
        let answer = rival.answer()?;
        match answer["name"].as_str() {
            Some(name) => rival.name = name.to_string(),
            None => {
                let why = answer["error"].as_str().unwrap_or("it did not say what it is");
                let hint = "install torch for it, or name another with --python";
                return Err(Error::Device(format!("--against pytorch: {python}: {why}; {hint}")));
            }
        }
        Ok(rival)
    }

    /// Times every variant of a case.
    pub fn run(&mut self, case: usize, samples: usize) -> Result<()> {
        self.tell(&json!({"run": case, "samples": samples}))?;
        let answer = self.answer()?;
        let Some(variants) = answer.as_object() else {
            return Err(self.lost("an answer that is no object"));
        };
        for (name, value) in variants {
            let found = match value {
                Value::String(reason) => Found::Reason(reason.clone()),
                _ => {
                    Found::Seconds(value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect())
                }
            };
            match (self.found[case].get_mut(name), found) {
                (Some(Found::Seconds(all)), Found::Seconds(more)) => all.extend(more),
                (_, found) => {
                    self.found[case].insert(name.clone(), found);
                }
            }
        }
        Ok(())
    }

    /// What a case's runs gave.
    pub fn taken(&mut self, case: usize) -> BTreeMap<String, Rival> {
        let rival = |found| match found {
            Found::Seconds(all) => Spread::of(&all).map_or(Rival::Note("no sample".into()), Rival::Time),
            Found::Reason(why) => Rival::Note(why),
        };
        std::mem::take(&mut self.found[case]).into_iter().map(|(name, f)| (name, rival(f))).collect()
    }

    fn tell(&mut self, what: &Value) -> Result<()> {
        // One that is gone will have said why, or does so in `answer`.
        let _ = writeln!(self.to, "{what}").and_then(|()| self.to.flush());
        Ok(())
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(n) if n > 0 => serde_json::from_str(&line).map_err(|_| self.lost(line.trim())),
            _ => Err(self.lost("nothing, and went away")),
        }
    }

    fn lost(&self, said: &str) -> Error {
        Error::Device(format!("--against pytorch: the child said {said}; its own words are above"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cases for other programs: op, label, cost, and every operand's shape, type on a GPU and integers.
pub fn list(cases: &[Case]) -> Value {
    let one = |case: &Case| {
        let operands = |list: &[(&'static str, Fill)]| -> serde_json::Map<String, Value> {
            let one = |(name, fill): &(&'static str, Fill)| {
                let dtype = format!("{:?}", gpu_dtype(case.op, name, fill)).to_lowercase();
                let ints = if let Fill::Ints(_, values) = fill { Some(values) } else { None };
                (name.to_string(), json!({"shape": fill.shape(), "dtype": dtype, "ints": ints}))
            };
            list.iter().map(one).collect()
        };
        json!({
            "op": case.op, "label": case.label, "flops": case.flops, "elements": case.elements,
            "outputs": operands(&case.outputs), "inputs": operands(&case.inputs),
        })
    };
    cases.iter().map(one).collect()
}
