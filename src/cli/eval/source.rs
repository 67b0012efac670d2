//! What every evaluation shares: where vectors come from, instructions, and where the scores go. Mining has the first two.

use crate::cli::info::tell;
use crate::cli::lists::{Listed, paths};
use crate::cli::progress::Tally;
use crate::cli::table::aligned;
use crate::cli::{KernelSetFlags, ModelFlags, print};
use crate::encode::Encoder;
use crate::encode::texts::Empty;
use crate::error::{Error, Result};
use crate::eval::instructions::{self, Instruction};
use crate::eval::scores::Scores;
use crate::eval::source::Vectors;
use crate::format::atomic;
use crate::pretrained::open::Options;
use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Flags that say where vectors come from, and what texts are read for.
#[derive(Args)]
// Vectors take the place of a model; that one of the two is given is asked in `open`.
#[command(mut_arg("model", |arg| arg.required(false).default_value("").hide_default_value(true)))]
pub struct VectorFlags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    kernels: KernelSetFlags,
    /// Instead of a model: its vectors, made by any program, .npy or .safetensors, a row for each text in the order of the texts; repeat for several files, read as one
    #[arg(long, env = "LLM2VEC_VECTORS", value_name = "FILE")]
    vectors: Vec<Listed>,
    /// An MTEB task, for its instruction in the paper's table or in --instructions
    #[arg(long, env = "LLM2VEC_TASK", value_name = "NAME")]
    task: Option<String>,
    /// JSON {"task": "instruction"} or {"task": {"query", "document"}}, looked up by --task, else by the name of the data; wins over the table
    #[arg(long, env = "LLM2VEC_INSTRUCTIONS", value_name = "FILE")]
    instructions: Option<PathBuf>,
    /// Instruction in front of queries, or of all texts of a task that has none [default: none, or that of --task]
    #[arg(long, env = "LLM2VEC_INSTRUCTION", value_name = "TEXT", conflicts_with_all = ["instructions", "task"])]
    instruction: Option<String>,
    /// Take the states after block N: 0 is the embedding, -1 the last, which alone has the final norm [default: -1]
    #[arg(long, env = "LLM2VEC_LAYER", value_name = "N", allow_negative_numbers = true)]
    layer: Option<i64>,
    /// What an empty text gives: an error, or a vector of zeros
    #[arg(long, env = "LLM2VEC_EMPTY", default_value = "error", value_name = "WHAT")]
    empty: Empty,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    pub quiet: bool,
}

/// Flags of every evaluation.
#[derive(Args)]
pub struct SourceFlags {
    #[command(flatten)]
    vectors: VectorFlags,
    /// Scores, settings and all as JSON
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE.json")]
    output: Option<PathBuf>,
}

/// Flags of an evaluation on one set.
#[derive(Args)]
pub struct SetFlags {
    /// The folder of one set
    #[arg(long, env = "LLM2VEC_DATA", value_name = "DIR")]
    pub data: PathBuf,
    #[command(flatten)]
    source: SourceFlags,
}

impl SetFlags {
    /// Opens model or vectors for a task.
    pub fn open(&self, kind: &str) -> Result<Session> {
        self.source.open(kind, std::slice::from_ref(&self.data))
    }

    /// Runs a task that has no flags of its own.
    pub fn scores(
        self,
        kind: &str,
        run: fn(&mut Vectors, &Path, &Instruction) -> Result<Scores>,
    ) -> Result<()> {
        let mut session = self.open(kind)?;
        let scores = run(&mut session.vectors, &self.data, &session.instruction)?;
        session.scores(&scores)
    }
}

/// What makes vectors, and what is said of it at the end.
pub struct Session {
    /// Where vectors come from.
    pub vectors: Vectors,
    /// What texts are read for.
    pub instruction: Instruction,
    tally: Rc<RefCell<Tally>>,
    head: Value,
    output: Option<PathBuf>,
}

impl SourceFlags {
    /// Opens model or vectors for a task on `data`, after all that can be refused without them.
    pub fn open(&self, kind: &str, data: &[PathBuf]) -> Result<Session> {
        if let Some(output) = &self.output {
            refuse_inputs(output, data.iter().chain(&self.vectors.files()))?;
        }
        // Now, not after minutes of work: can it be written at all?
        self.output.as_deref().map(atomic::beside).transpose()?;
        let session = self.vectors.open(kind, data)?;
        Ok(Session { output: self.output.clone(), ..session })
    }
}

/// Refuses an output that is one of the files read.
pub fn refuse_inputs<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    if inputs.any(|input| atomic::same_file(input, output)) {
        let what = "is one of the files read; give another name";
        return Err(Error::usage(format!("--output {} {what}", output.display())));
    }
    Ok(())
}

impl VectorFlags {
    /// The files of vectors.
    pub fn files(&self) -> Vec<PathBuf> {
        paths(&self.vectors)
    }

    /// Opens model or vectors for a task on `data`, whose name tells the instruction if nothing else does.
    pub fn open(&self, kind: &str, data: &[PathBuf]) -> Result<Session> {
        let instruction = self.instruction(data)?;
        let tally = Rc::new(RefCell::new(Tally::new(self.quiet)));
        let added = Rc::clone(&tally);
        let progress = move |texts, tokens| added.borrow_mut().add(texts, tokens);
        let options = self.model.options()?;
        let device = self.kernels.apply(&self.model.device, options.device)?;
        let options = Options { layer: self.layer, device, ..options };
        let mut head = json!({ "task": kind, "data": data, "instruction": instruction });
        if let Some(task) = &self.task {
            head["task_name"] = json!(task);
        }
        let vectors = if !self.vectors.is_empty() {
            head["vectors"] = json!(self.files());
            Vectors::files(&self.files(), progress)?
        } else if options.model.is_empty() {
            return Err(Error::usage("nothing makes vectors: give a model (--model DIR) or --vectors FILE"));
        } else {
            let encoder = Encoder::open(&options)?;
            tell(&encoder.setup, self.quiet);
            head["model"] = json!(encoder.setup.dir);
            head["adapters"] = json!(options.adapters);
            head["settings"] = json!(encoder.setup.settings());
            Vectors::model(encoder, self.empty, progress)
        };
        Ok(Session { vectors, instruction, tally, head, output: None })
    }

    fn instruction(&self, data: &[PathBuf]) -> Result<Instruction> {
        let folder = data.first().and_then(|path| path.file_name()).unwrap_or_default().to_string_lossy();
        match (&self.instruction, &self.instructions, &self.task) {
            (Some(query), ..) => Ok(Instruction { query: query.clone(), document: String::new() }),
            (None, Some(file), task) => instructions::of_file(file, task.as_deref().unwrap_or(&folder)),
            (None, None, Some(task)) => instructions::of_paper(task),
            (None, None, None) => Ok(Instruction::default()),
        }
    }
}

impl Session {
    /// Says how much was encoded, and writes `body`'s fields with those of the settings to `--output`.
    pub fn finish(self, body: Value) -> Result<()> {
        let mut tally = self.tally.borrow_mut();
        tally.cut = self.vectors.cut;
        // Of vectors from files nothing was encoded.
        match self.vectors.encoder() {
            Some(_) => tally.finish(),
            None => tally.clear(),
        }
        let Some(output) = &self.output else { return Ok(()) };
        let (mut json, Value::Object(body)) = (self.head, body) else { return Ok(()) };
        for (key, value) in body {
            json[key] = value;
        }
        atomic::write_json(output, &json)
    }

    /// [`Session::finish`] with the scores of one set, as `scores` and as a table (figures x 100).
    pub fn scores(self, scores: &Scores) -> Result<()> {
        self.finish(json!({ "scores": scores }))?;
        print(&table(scores))
    }
}

/// A line for each figure; a column for the whole, and one for each part.
fn table(scores: &Scores) -> String {
    let number = |name: &str, v: Option<f64>| match v {
        None => "-".to_string(),
        // In the units of its similarity.
        Some(v) if name.ends_with("threshold") => format!("{v:.4}"),
        Some(v) => format!("{:.2}", 100.0 * v),
    };
    let mut head = vec!["figure".to_string(), "all".to_string()];
    head.extend(scores.subsets.iter().map(|(name, _)| name.clone()));
    let mut rows = vec![head];
    for (name, value) in &scores.values {
        let star = if *name == scores.main { " *" } else { "" };
        let mut row = vec![format!("{name}{star}"), number(name, *value)];
        row.extend(scores.subsets.iter().map(|(_, part)| number(name, part.value(name))));
        rows.push(row);
    }
    for (name, count) in &scores.counts {
        let mut row = vec![name.clone(), count.to_string()];
        let part = |part: &Scores| part.counts.iter().find(|(n, _)| n == name).map(|(_, c)| c.to_string());
        row.extend(scores.subsets.iter().map(|(_, s)| part(s).unwrap_or("-".into())));
        rows.push(row);
    }
    aligned(&rows)
}
