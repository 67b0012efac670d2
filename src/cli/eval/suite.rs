//! `llm2vec eval suite`: every set below a folder, one model, a results file for each in MTEB's form.

mod record;

use crate::cli::extractor::decisive;
use crate::cli::info::tell;
use crate::cli::lists::{Listed, paths};
use crate::cli::progress::Tally;
use crate::cli::table::aligned;
use crate::cli::{KernelSetFlags, ModelFlags, print, say};
use crate::encode::Encoder;
use crate::encode::texts::Empty;
use crate::error::{Error, Result};
use crate::eval::instructions::{self, Instruction, paper_task};
use crate::eval::source::Vectors;
use crate::eval::suite::{self, Kind, Set};
use crate::pretrained::fingerprint;
use crate::pretrained::open::{Options, Setup};
use crate::train::config::Trimmed;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Args, ValueEnum};
use record::{Kept, Record};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// Every set below a folder, whatever its type: a table with averages, and a results file for each as mteb writes them.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval suite -m DIR --adapter mntp --adapter simcse --data FOLDER -o results
  llm2vec eval suite -m DIR --data FOLDER --subset paper15 --instructions paper -o results
  llm2vec eval suite -m DIR --data FOLDER --tasks scifact,sts/stsb.test -o results
A set's type is seen from its files, which are those of the other evaluations. A task whose results file is there is not run
again, so a run that was stopped goes on with the same command. Averages are of the tasks, each counted once.")]
pub struct Suite {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    kernels: KernelSetFlags,
    /// A folder of sets, or of folders of such; may be repeated
    #[arg(long, env = "LLM2VEC_DATA", required = true, value_name = "FOLDER")]
    data: Vec<Listed>,
    /// Of these the ones of these names: as scifact, or sts/stsb.test
    #[arg(long, env = "LLM2VEC_TASKS", value_delimiter = ',', value_name = "NAME,…", value_parser = Trimmed(NonEmptyStringValueParser::new()))]
    tasks: Vec<String>,
    /// Of these the paper's 15 tasks, by MTEB's names (SciFact, scifact; sick-r.test; banking77)
    #[arg(long, env = "LLM2VEC_SUBSET", value_name = "SUBSET", conflicts_with = "tasks")]
    subset: Option<Subset>,
    /// Folder of the results: TASK.json for each, and suite.json with the averages
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "DIR")]
    output: PathBuf,
    /// JSON {"task": "instruction"} or {"task": {"query", "document"}} by the names of the sets; or paper, its table for the sets that it has
    #[arg(long, env = "LLM2VEC_INSTRUCTIONS", value_name = "FILE|paper")]
    instructions: Option<PathBuf>,
    /// Take the states after block N: 0 is the embedding, -1 the last, which alone has the final norm [default: -1]
    #[arg(long, env = "LLM2VEC_LAYER", value_name = "N", allow_negative_numbers = true)]
    layer: Option<i64>,
    /// What an empty text gives: an error, or a vector of zeros
    #[arg(long, env = "LLM2VEC_EMPTY", default_value = "error", value_name = "WHAT")]
    empty: Empty,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

/// A choice of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subset {
    /// The 15 of the paper's ablation.
    Paper15,
}

/// A set that is evaluated.
struct Task {
    /// What its results are called.
    name: String,
    set: Set,
    instruction: Instruction,
    /// All that decides its figures.
    settings: Value,
    /// Of its files: what its work is guessed by.
    bytes: u64,
}

/// Sets by the names of their results, and the names of those that are not there.
type Choice = (Vec<(String, Set)>, Vec<&'static str>);

impl Suite {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let (chosen, missing) = self.chosen()?;
        let options = self.model.options()?;
        let device = self.kernels.apply(&self.model.device, options.device)?;
        let options = Options { layer: self.layer, device, ..options };
        let setup = Setup::open(&options)?;
        let common = self.settings(&setup)?;
        let tasks = chosen.into_iter().map(|(name, set)| self.task(name, set, &common));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let record = Record::open(&self.output)?;
        let kept = tasks.iter().map(|t| record.read(&t.name, &t.settings)).collect::<Result<Vec<_>>>()?;
        let results = self.results(&tasks, kept, &record, setup)?;
        let averages = averages(&tasks, &results);
        let summary = json!({
            "model": self.model.options.model, "adapters": self.model.options.adapters, "settings": common,
            "averages": averages.iter().map(|(name, n, v)| json!({ "of": name, "tasks": n, "main_score": v })).collect::<Vec<_>>(),
            "tasks": tasks.iter().zip(&results).map(|(task, result)| json!({
                "task_name": task.name, "type": task.set.kind, "main": result.main, "main_score": result.score,
            })).collect::<Vec<_>>(),
            "missing": missing,
        });
        record.summarize(&summary)?;
        print(&table(&tasks, &results, &averages))
    }

    /// The sets that are asked for.
    fn chosen(&self) -> Result<Choice> {
        let data = paths(&self.data);
        let found = data.iter().map(|path| suite::sets(path)).collect::<Result<Vec<_>>>()?;
        let mut sets = found.concat();
        sets.sort_by_key(|set| set.kind);
        let (mut chosen, mut missing): (Vec<(String, Set)>, Vec<&str>) = (Vec::new(), Vec::new());
        if self.subset == Some(Subset::Paper15) {
            for (task, set) in suite::paper15(&sets) {
                match set {
                    Some(set) => chosen.push((task.into(), set.clone())),
                    None => missing.push(task),
                }
            }
            if chosen.is_empty() {
                let what = "holds none of the paper's 15 tasks";
                return Err(Error::file(&data[0], format!("{what}: {}", missing.join(", "))));
            }
            if !missing.is_empty() {
                let (n, names) = (missing.len(), missing.join(", "));
                self.say(&format!("{n} of the paper's 15 tasks are not in the data: {names}"));
            }
        } else {
            chosen.extend(sets.iter().map(|set| (set.name.clone(), set.clone())));
        }
        let ids: Vec<String> = sets.iter().map(Set::id).collect();
        let is =
            |asked: &str, set: &Set| [&set.name, &set.id()].iter().any(|n| n.eq_ignore_ascii_case(asked));
        if let Some(lost) = self.tasks.iter().find(|asked| !sets.iter().any(|set| is(asked, set))) {
            return Err(Error::usage(format!(
                "--tasks: no set is called {lost}; there are {}",
                ids.join(", ")
            )));
        }
        if !self.tasks.is_empty() {
            chosen.retain(|(_, set)| self.tasks.iter().any(|asked| is(asked, set)));
        }
        for (i, (name, set)) in chosen.iter().enumerate() {
            let same = chosen[..i].iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
            if let Some((_, other)) = same {
                let (one, two) = (other.path.display(), set.path.display());
                return Err(Error::usage(format!(
                    "{one} and {two} are both {name}; choose by --tasks, or rename one"
                )));
            }
        }
        Ok((chosen, missing))
    }

    /// What decides every figure, by the names of flags where there are such.
    fn settings(&self, setup: &Setup) -> Result<Value> {
        let mut all = decisive(setup)?;
        let recorded = json!(setup.settings());
        for key in ["pooling_mode", "skip_instruction", "normalize"] {
            all[key] = recorded[key].clone();
        }
        all["layer"] = json!(self.layer.filter(|layer| *layer != -1));
        all["empty"] = json!(format!("{:?}", self.empty).to_lowercase());
        let options = &self.model.options;
        all["prompt"] = json!(options.prompt);
        all["compat"] = json!(options.compat.map(|compat| format!("{compat:?}").to_lowercase()));
        all["version"] = json!(env!("CARGO_PKG_VERSION"));
        Ok(all)
    }

    fn task(&self, name: String, set: Set, common: &Value) -> Result<Task> {
        let instruction = match &self.instructions {
            None => Instruction::default(),
            Some(file) if file == Path::new("paper") => {
                paper_task(&name).map_or_else(|| Ok(Instruction::default()), instructions::of_paper)?
            }
            Some(file) => instructions::of_file(file, &name)?,
        };
        let mut settings = common.clone();
        settings["instruction"] = json!(instruction);
        settings["type"] = json!(set.kind);
        let qrels = set.path.join("qrels");
        let parts = [Some(set.path.as_path()), qrels.is_dir().then_some(qrels.as_path())];
        let parts: Vec<&Path> = parts.into_iter().flatten().collect();
        let data = parts.iter().map(|path| fingerprint::files(path)).collect::<Result<Vec<_>>>()?;
        let sizes = data.iter().filter_map(|text| text.split(' ').next()?.parse::<u64>().ok());
        let bytes = sizes.sum();
        settings["data"] = json!(data);
        Ok(Task { name, set, instruction, settings, bytes })
    }

    /// The results of all tasks, those that are not kept yet computed.
    fn results(
        &self,
        tasks: &[Task],
        kept: Vec<Option<Kept>>,
        record: &Record,
        setup: Setup,
    ) -> Result<Vec<Kept>> {
        let (mut setup, mut open) = (Some(setup), None::<Vectors>);
        let tally = Rc::new(RefCell::new(Tally::new(self.quiet)));
        let mut results = Vec::new();
        let mut left: u64 = tasks.iter().zip(&kept).filter(|(_, k)| k.is_none()).map(|(t, _)| t.bytes).sum();
        let (mut done, mut seconds) = (0, 0.0);
        let old = kept.iter().flatten().count();
        if old > 0 {
            self.say(&format!("{old} of {} tasks are in {} already", tasks.len(), self.output.display()));
        }
        for (i, (task, kept)) in tasks.iter().zip(kept).enumerate() {
            if let Some(kept) = kept {
                results.push(kept);
                continue;
            }
            if let Some(setup) = setup.take() {
                tell(&setup, self.quiet);
                let added = Rc::clone(&tally);
                let progress = move |texts, tokens| added.borrow_mut().add(texts, tokens);
                open = Some(Vectors::model(Encoder::load(setup)?, self.empty, progress));
            }
            let Some(vectors) = &mut open else { break };
            let place = format!("[{}/{}] {}", i + 1, tasks.len(), task.set.id());
            self.say(&format!("{place}{}", remaining(done, left, seconds)));
            let begun = Instant::now();
            let scores = task.set.run(vectors, &task.instruction)?;
            let took = begun.elapsed().as_secs_f64();
            results.push(record.keep(&task.name, &task.settings, &scores, took)?);
            (done, left, seconds) = (done + task.bytes, left - task.bytes, seconds + took);
        }
        let mut tally = tally.borrow_mut();
        match open {
            None => tally.clear(),
            Some(vectors) => {
                tally.cut = vectors.cut;
                tally.finish();
            }
        }
        Ok(results)
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            say(line);
        }
    }
}

/// `; about 12 min left`, by the bytes of the files.
fn remaining(done: u64, left: u64, seconds: f64) -> String {
    let more = seconds * left as f64 / done.max(1) as f64;
    match done {
        0 => String::new(),
        _ if more < 90.0 => format!("; about {more:.0} s left"),
        _ => format!("; about {:.0} min left", more / 60.0),
    }
}

/// Of each type and of all: name, tasks, the mean of the figures that count; none where one has none.
fn averages(tasks: &[Task], results: &[Kept]) -> Vec<(String, usize, Option<f64>)> {
    let average = |name: String, of: Option<Kind>| {
        let some = tasks.iter().zip(results).filter(|(t, _)| of.is_none_or(|kind| t.set.kind == kind));
        let figures: Vec<Option<f64>> = some.map(|(_, r)| r.score).collect();
        let (n, sum) = (figures.len(), figures.iter().copied().sum::<Option<f64>>());
        (name, n, sum.map(|sum| sum / n as f64))
    };
    let mut kinds: Vec<Kind> = tasks.iter().map(|task| task.set.kind).collect();
    kinds.dedup();
    let by_kind = kinds.into_iter().map(|kind| average(kind.name().into(), Some(kind)));
    by_kind.chain([average("all".into(), None)]).collect()
}

fn table(tasks: &[Task], results: &[Kept], averages: &[(String, usize, Option<f64>)]) -> String {
    let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{:.2}", 100.0 * v));
    let mut rows = vec![["task", "type", "figure", "score"].map(String::from).to_vec()];
    for (task, result) in tasks.iter().zip(results) {
        let kind = task.set.kind.name().into();
        rows.push(vec![task.name.clone(), kind, result.main.clone(), number(result.score)]);
    }
    let mut means = vec![["average of", "tasks", "score"].map(String::from).to_vec()];
    means.extend(averages.iter().map(|(name, n, v)| vec![name.clone(), n.to_string(), number(*v)]));
    format!("{}\n{}", aligned(&rows), aligned(&means))
}
