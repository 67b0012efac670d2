//! `llm2vec analyze efficiency`: STS against the steps of training runs.

use super::AnalysisFlags;
use crate::cli::lists::{Listed, paths, strings};
use crate::cli::progress::Tally;
use crate::cli::table::aligned;
use crate::cli::{print, say};
use crate::encode::Encoder;
use crate::encode::texts::Empty;
use crate::error::{Error, Result};
use crate::eval::source::Vectors;
use crate::eval::sts;
use crate::format::atomic;
use crate::format::svg::{self, Curve};
use crate::pretrained::open::{Options, Setup};
use crate::train::checkpoint;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Semantic similarity (Spearman, x 100) of every checkpoint of training runs against its step: sample efficiency, figure 6.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec analyze efficiency -m DIR --adapter mntp --run supervised --data stsb.test.tsv --plot efficiency.svg
  llm2vec analyze efficiency -m DIR --run 25=early --run 100=late --data FOLDER     # adapters with their steps
A run's folder has a checkpoint for every --save-steps of `train`, all of them unless --keep said fewer. Step 0
is the model with its --adapter alone, read as the run reads texts. Several runs are several curves.")]
pub struct Efficiency {
    #[command(flatten)]
    flags: AnalysisFlags,
    /// A folder of `train`, all of whose checkpoints are measured; or STEP=FOLDER of one adapter; may be repeated
    #[arg(long, env = "LLM2VEC_RUN", required = true, value_name = "DIR")]
    run: Vec<Listed>,
    /// TSV with the header subset, score, sentence1, sentence2 (.gz and .zst too), or a folder of such; may be repeated
    #[arg(long, env = "LLM2VEC_DATA", required = true, value_name = "PATH")]
    data: Vec<Listed>,
}

/// A curve before it is measured: its name, its adapters by step.
struct Run {
    name: String,
    adapters: Vec<(u64, PathBuf)>,
}

/// A measured step.
#[derive(serde::Serialize)]
struct Point {
    step: u64,
    adapter: Option<PathBuf>,
    cosine_spearman: Option<f64>,
    cosine_pearson: Option<f64>,
}

impl Efficiency {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let runs = self.runs()?;
        let lists = paths(&self.data).iter().map(|path| sts::files(path)).collect::<Result<Vec<_>>>()?;
        let files = lists.concat();
        files.iter().try_for_each(|file| sts::read(file).map(drop))?;
        self.flags.check_outputs(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        let options = self.flags.options()?;
        let mut head = json!({
            "analysis": "efficiency", "model": options.model, "adapters": options.adapters, "data": files,
            "instruction": self.flags.instruction,
        });
        let mut curves: Vec<(String, Vec<Point>)> = Vec::new();
        for Run { name, adapters } in &runs {
            let last = adapters.last().map(|(_, path)| path.as_path());
            let trained = Setup::open(&with(&options, last))?;
            head["settings"] = json!(trained.settings());
            // What an adapter records of itself holds for the point where it began.
            let start = Options {
                attention: Some(trained.attention),
                pooling: Some(trained.pooling),
                max_length: Some(trained.limits.max_length),
                doc_max_length: Some(trained.limits.doc_max_length),
                ..options.clone()
            };
            drop(trained);
            let mut points = Vec::new();
            let steps = adapters.iter().map(|(step, path)| (*step, Some(path)));
            for (step, adapter) in [(0, None)].into_iter().chain(steps) {
                let from = if adapter.is_some() { &options } else { &start };
                self.say(&format!("{name}, step {step}"));
                points.push(self.point(&with(from, adapter.map(PathBuf::as_path)), step, adapter, &files)?);
            }
            curves.push((name.clone(), points));
        }
        if let Some(path) = &self.flags.plot {
            draw(path, &curves)?;
        }
        if let Some(output) = &self.flags.output {
            let curves: Vec<_> =
                curves.iter().map(|(run, points)| json!({ "run": run, "points": points })).collect();
            head["curves"] = json!(curves);
            atomic::write_json(output, &head)?;
        }
        print(&table(&curves))
    }

    fn say(&self, line: &str) {
        if !self.flags.quiet {
            say(line);
        }
    }

    /// The curves: a run each, and all adapters with a step of their own as one more.
    fn runs(&self) -> Result<Vec<Run>> {
        let (mut runs, mut single) = (Vec::new(), Vec::new());
        for text in &strings(&self.run) {
            let split = text.split_once('=').and_then(|(step, dir)| Some((step.parse::<u64>().ok()?, dir)));
            if let Some((step, dir)) = split {
                if step == 0 {
                    return Err(Error::usage(format!(
                        "--run {text}: step 0 is the model without it; give a later one"
                    )));
                }
                single.push((step, PathBuf::from(dir)));
                continue;
            }
            let path = Path::new(text);
            let adapters = checkpoint::steps(path)?;
            if adapters.is_empty() {
                let what = "holds no checkpoint-STEP of `train`; of one adapter give the step too, as --run STEP=FOLDER";
                return Err(Error::file(path, what));
            }
            if adapters.len() == 1 {
                let what = "has one checkpoint (`train --keep`?); others may be given as STEP=FOLDER";
                self.say(&format!("warning: {text} {what}"));
            }
            runs.push(Run { name: text.clone(), adapters });
        }
        single.sort();
        if let Some(pair) = single.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::usage(format!("--run: step {} stands there twice", pair[0].0)));
        }
        if !single.is_empty() {
            runs.push(Run { name: "adapters".into(), adapters: single });
        }
        Ok(runs)
    }

    fn point(
        &self,
        options: &Options,
        step: u64,
        adapter: Option<&PathBuf>,
        files: &[PathBuf],
    ) -> Result<Point> {
        let encoder = Encoder::open(options)?;
        let tally = std::rc::Rc::new(std::cell::RefCell::new(Tally::new(self.flags.quiet)));
        let added = std::rc::Rc::clone(&tally);
        let progress = move |texts, tokens| added.borrow_mut().add(texts, tokens);
        let mut vectors = Vectors::model(encoder, Empty::Error, progress);
        let report = sts::run(&mut vectors, files, &self.flags.instruction)?;
        tally.borrow().clear();
        let adapter = adapter.cloned();
        let [cosine_spearman, cosine_pearson] =
            ["cosine_spearman", "cosine_pearson"].map(|name| report.mean.value(name));
        Ok(Point { step, adapter, cosine_spearman, cosine_pearson })
    }
}

/// The options with one adapter more.
fn with(options: &Options, adapter: Option<&Path>) -> Options {
    let mut options = options.clone();
    options.adapters.extend(adapter.map(|path| path.to_string_lossy().into_owned()));
    options
}

fn draw(path: &Path, curves: &[(String, Vec<Point>)]) -> Result<()> {
    let points = |points: &[Point]| {
        points.iter().filter_map(|p| Some((p.step as f64, 100.0 * p.cosine_spearman?))).collect()
    };
    let curve = |(name, all): &(String, Vec<Point>)| Curve { name: name.clone(), points: points(all) };
    let curves: Vec<Curve> = curves.iter().map(curve).collect();
    svg::curves(path, "STS against training steps", ["step", "Spearman x 100"], &curves)
}

fn table(curves: &[(String, Vec<Point>)]) -> String {
    let mut rows = vec![["run", "step", "spearman", "pearson"].map(String::from).to_vec()];
    let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{:.2}", 100.0 * v));
    for (name, points) in curves {
        for p in points {
            rows.push(vec![
                name.clone(),
                p.step.to_string(),
                number(p.cosine_spearman),
                number(p.cosine_pearson),
            ]);
        }
    }
    aligned(&rows)
}
