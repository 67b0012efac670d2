//! Classification as MTEB's: logistic regression on a few training rows of each label, ten times over.
//!
//! Rows are drawn as MTEB 2 draws them, and the regression takes SciPy's steps, so that also runs which end at the limit
//! of steps end where scikit-learn's do, up to rounding. Here average precision is there for labels of any kind; the
//! positive one is the one that sorts last.

use super::labelled::{self, File, Label};
use super::logistic::{self, Logistic};
use super::metrics::accuracy;
use super::metrics::average_precision::average_precision;
use super::sampling;
use super::scores::Scores;
use super::source::Vectors;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;

/// MTEB's settings of the task, with its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct Options {
    /// Training rows of each label
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_SAMPLES_PER_LABEL", default_value_t = 8, value_name = "N")
    )]
    pub samples_per_label: usize,
    /// Times that rows are drawn and a classifier is trained
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_EXPERIMENTS", default_value_t = 10, value_name = "N")
    )]
    pub experiments: usize,
    /// Steps of the optimiser at most
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_MAX_ITER", default_value_t = 100, value_name = "N")
    )]
    pub max_iter: usize,
    /// Of the generator that draws rows
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_SEED", default_value_t = 42, value_name = "N"))]
    pub seed: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { samples_per_label: 8, experiments: 10, max_iter: 100, seed: 42 }
    }
}

/// A data set: `train.jsonl` and `test.jsonl` of a folder.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// Rows to learn from.
    pub train: File,
    /// Rows to answer.
    pub test: File,
}

impl DataSet {
    /// Reads a folder. Training rows of one label only are an error.
    pub fn read(folder: &Path) -> Result<DataSet> {
        let data = DataSet { train: File::read(folder, "train")?, test: File::read(folder, "test")? };
        if labelled::classes(data.train.values()).len() < 2 {
            let what = "rows of one label, at least two were wanted to tell apart";
            return Err(Error::file(&data.train.path, what));
        }
        Ok(data)
    }
}

/// MTEB's figures of one experiment, or their means; averages are over labels (`f1`) or weighted by their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // the names say it, and they are MTEB's
pub struct Figures {
    pub accuracy: f64,
    pub f1: f64,
    pub f1_weighted: f64,
    pub precision: f64,
    pub precision_weighted: f64,
    pub recall: f64,
    pub recall_weighted: f64,
    /// Average precision of the answers as 0 and 1, as MTEB has it; of two labels only.
    pub ap: Option<f64>,
    pub ap_weighted: Option<f64>,
    /// Average precision of the classifier's scores, which MTEB does not report.
    pub ap_of_scores: Option<f64>,
}

/// What the task gave, from 0 to 1 as MTEB has it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Means over the experiments.
    pub mean: Figures,
    /// Standard deviation of the accuracy over the experiments.
    pub accuracy_std: f64,
    /// One by one.
    pub scores_per_experiment: Vec<Figures>,
    /// Experiments whose classifier was stopped by the limit of steps.
    pub experiments_at_limit: usize,
    /// Labels.
    pub labels: usize,
    /// Rows to learn from, of which each experiment takes a few.
    pub train: usize,
    /// Rows to answer.
    pub test: usize,
}

impl Report {
    /// The means under MTEB's names.
    pub fn scores(&self) -> Scores {
        let mut scores = self.mean.scores();
        scores.add("accuracy_std", self.accuracy_std);
        scores.count("labels", self.labels);
        scores.count("train", self.train);
        scores.count("test", self.test);
        scores.count("experiments_at_limit", self.experiments_at_limit);
        scores
    }
}

impl Figures {
    fn scores(&self) -> Scores {
        let mut scores = Scores::new("accuracy");
        scores.add("accuracy", self.accuracy);
        scores.add("f1", self.f1);
        scores.add("f1_weighted", self.f1_weighted);
        scores.add("precision", self.precision);
        scores.add("precision_weighted", self.precision_weighted);
        scores.add("recall", self.recall);
        scores.add("recall_weighted", self.recall_weighted);
        for (name, value) in
            [("ap", self.ap), ("ap_weighted", self.ap_weighted), ("ap_of_scores", self.ap_of_scores)]
        {
            // Of more than two labels there is none.
            if value.is_some() {
                scores.add(name, value);
            }
        }
        scores
    }
}

/// Runs the task; vectors are asked for the training rows, then for the test rows.
pub fn run(data: &DataSet, vectors: &mut Vectors, instruction: &str, options: Options) -> Result<Report> {
    let train = data.train.vectors(vectors, instruction)?;
    let test = data.test.vectors(vectors, instruction)?;
    vectors.finish()?;
    evaluate(data, [&train, &test], vectors.width(), options)
}

/// [`run`] on features of training and test rows, `[N, width]` each.
pub fn evaluate(data: &DataSet, features: [&[f32]; 2], width: usize, options: Options) -> Result<Report> {
    let [train, test] = features;
    assert!(train.len() == data.train.rows.len() * width && test.len() == data.test.rows.len() * width);
    if options.samples_per_label == 0 || options.experiments == 0 {
        return Err(Error::usage("no rows per label, or no experiment, at least 1 of each was wanted"));
    }
    let classes = labelled::classes(data.train.values().chain(data.test.values()));
    let [known, truth] = [&data.train, &data.test].map(|file| labelled::numbers(file.values(), &classes));
    let samples = sampling::samples(&known, options.samples_per_label, options.experiments, options.seed);
    let experiment = |sample: &Vec<usize>| {
        let x: Vec<f32> = sample.iter().flat_map(|&row| &train[row * width..][..width]).copied().collect();
        let labels: Vec<usize> = sample.iter().map(|&row| known[row]).collect();
        one_experiment(&Known { x, labels, width }, test, &truth, options.max_iter)
    };
    let results = samples.par_iter().map(experiment).collect::<Result<Vec<_>>>()?;
    Ok(report(data, &classes, results))
}

fn report(data: &DataSet, classes: &[Label], results: Vec<(Figures, bool)>) -> Report {
    let figures: Vec<Figures> = results.iter().map(|(figures, _)| *figures).collect();
    let mean = |of: fn(&Figures) -> f64| figures.iter().map(of).sum::<f64>() / figures.len() as f64;
    let part = |of: fn(&Figures) -> Option<f64>| {
        Some(figures.iter().map(of).sum::<Option<f64>>()? / figures.len() as f64)
    };
    let mean_figures = Figures {
        accuracy: mean(|f| f.accuracy),
        f1: mean(|f| f.f1),
        f1_weighted: mean(|f| f.f1_weighted),
        precision: mean(|f| f.precision),
        precision_weighted: mean(|f| f.precision_weighted),
        recall: mean(|f| f.recall),
        recall_weighted: mean(|f| f.recall_weighted),
        ap: part(|f| f.ap),
        ap_weighted: part(|f| f.ap_weighted),
        ap_of_scores: part(|f| f.ap_of_scores),
    };
    let squares = figures.iter().map(|f| (f.accuracy - mean_figures.accuracy).powi(2));
    Report {
        mean: mean_figures,
        accuracy_std: (squares.sum::<f64>() / figures.len() as f64).sqrt(),
        experiments_at_limit: results.iter().filter(|(_, converged)| !converged).count(),
        scores_per_experiment: figures,
        labels: classes.len(),
        train: data.train.rows.len(),
        test: data.test.rows.len(),
    }
}

/// The training rows of one experiment.
struct Known {
    x: Vec<f32>,
    labels: Vec<usize>,
    width: usize,
}

/// Figures, and whether the classifier converged.
fn one_experiment(known: &Known, test: &[f32], truth: &[usize], max_iter: usize) -> Result<(Figures, bool)> {
    // A label of the test rows alone is none that could be learned.
    let mut learned = known.labels.clone();
    learned.sort_unstable();
    learned.dedup();
    let places: Vec<usize> = known.labels.iter().map(|l| learned.partition_point(|k| k < l)).collect();
    let options = logistic::Options { max_iter, ..logistic::Options::default() };
    let model = Logistic::fit(&known.x, known.width, &places, learned.len(), options)?;
    let scores = model.scores(test);
    let answers: Vec<usize> = model.classes(&scores).into_iter().map(|place| learned[place]).collect();
    let agreement = accuracy::scores(truth, &answers);
    let (by_class, by_row) = (agreement.by_class, agreement.by_row);
    let last = truth.iter().max().copied();
    let positive: Vec<bool> = truth.iter().map(|&t| Some(t) == last).collect();
    let first = truth.iter().min();
    let binary = first.copied() != last && truth.iter().all(|t| Some(t) == first || Some(*t) == last);
    let of_answers = || {
        let answers: Vec<f64> = answers.iter().map(|&a| f64::from(u8::from(Some(a) == last))).collect();
        average_precision(&positive, &answers)
    };
    let ap = binary.then(of_answers);
    let one_score = binary && model.intercepts.len() == 1;
    let figures = Figures {
        accuracy: agreement.accuracy,
        f1: by_class.f1,
        f1_weighted: by_row.f1,
        precision: by_class.precision,
        precision_weighted: by_row.precision,
        recall: by_class.recall,
        recall_weighted: by_row.recall,
        ap,
        ap_weighted: ap,
        ap_of_scores: one_score.then(|| average_precision(&positive, &scores)),
    };
    Ok((figures, model.converged))
}
