//! Clustering as MTEB's: mini-batch k-means with as many clusters as there are labels, judged by the V-measure.
//!
//! A set may come in parts (field `set`), each clustered for itself, as in the tasks of the LLM2Vec paper. MTEB runs each
//! part once, with seed 42; here the mean of several seeds is taken, which tells more. MTEB's newer tasks, which draw
//! rows of a whole at random, have files of another layout and are in [`sampled`](super::sampled).

use super::kmeans::{self, mini_batch_kmeans};
use super::labelled::{self, File};
use super::metrics::vmeasure::{VMeasure, v_measure};
use super::scores::Scores;
use super::source::Vectors;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;

/// MTEB's settings of the task, with its defaults, but for the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct Options {
    /// Rows of a step of k-means [default: 500, of sentences with labels 512]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_CLUSTERING_BATCH_SIZE", value_name = "N"))]
    pub clustering_batch_size: Option<usize>,
    /// The first seed
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_SEED", default_value_t = 42, value_name = "N"))]
    pub seed: u32,
    /// Seeds, one after the other, whose figures are averaged (MTEB takes 1)
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_REPEATS", default_value_t = 10, value_name = "N"))]
    pub repeats: u32,
    /// Of sentences with labels: how often rows are drawn and clustered (MTEB's n_clusters)
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_BOOTSTRAPS", default_value_t = 10, value_name = "N")
    )]
    pub bootstraps: usize,
    /// Likewise: rows of each draw (MTEB's max_documents_per_cluster)
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_DOCUMENTS_PER_CLUSTER", default_value_t = 16384, value_name = "N")
    )]
    pub documents_per_cluster: usize,
    /// Likewise: rows drawn from the file to embed (MTEB's max_document_to_embed) [default: all]
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_DOCUMENTS", value_name = "N"))]
    pub documents: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            clustering_batch_size: None,
            seed: 42,
            repeats: 10,
            bootstraps: 10,
            documents_per_cluster: 16384,
            documents: None,
        }
    }
}

/// A data set: `test.jsonl` of a folder.
#[derive(Clone, Debug)]
pub struct DataSet(pub File);

impl DataSet {
    /// Reads a folder.
    pub fn read(folder: &Path) -> Result<DataSet> {
        Ok(DataSet(File::read(folder, "test")?))
    }

    /// The parts by name, in the order of their first rows, with the numbers of their rows.
    pub fn parts(&self) -> Vec<(&str, Vec<usize>)> {
        let mut parts: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, row) in self.0.values().enumerate() {
            match parts.iter_mut().find(|(name, _)| *name == row.set) {
                Some((_, rows)) => rows.push(i),
                None => parts.push((&row.set, vec![i])),
            }
        }
        parts
    }
}

/// Means over the seeds, of one part.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Its name; empty where the set is one.
    pub set: String,
    /// Rows.
    pub rows: usize,
    /// Labels, and clusters.
    pub labels: usize,
    /// MTEB's figure.
    pub v_measure: f64,
    /// Standard deviation over the seeds.
    pub v_measure_std: f64,
    /// Whether clusters hold one label each.
    pub homogeneity: f64,
    /// Whether labels lie in one cluster each.
    pub completeness: f64,
    /// Of each seed.
    pub v_measures: Vec<f64>,
}

/// What the task gave, from 0 to 1 as MTEB has it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Mean over the parts.
    pub v_measure: f64,
    /// Standard deviation over the parts.
    pub v_measure_std: f64,
    /// Of each part.
    pub v_measures: Vec<f64>,
    /// Part by part.
    pub sets: Vec<PartReport>,
}

impl Report {
    /// The figures under MTEB's names, with those of each part.
    pub fn scores(&self) -> Scores {
        if let [set] = &self.sets[..] {
            return set.scores();
        }
        let mean =
            |of: fn(&PartReport) -> f64| self.sets.iter().map(of).sum::<f64>() / self.sets.len() as f64;
        let mut scores = Scores::new("v_measure");
        scores.add("v_measure", self.v_measure);
        scores.add("v_measure_std", self.v_measure_std);
        scores.add("homogeneity", mean(|set| set.homogeneity));
        scores.add("completeness", mean(|set| set.completeness));
        scores.count("rows", self.sets.iter().map(|set| set.rows).sum());
        scores.count("labels", self.sets.iter().map(|set| set.labels).max().unwrap_or(0));
        scores.subsets = self.sets.iter().map(|set| (set.set.clone(), set.scores())).collect();
        scores
    }
}

impl PartReport {
    fn scores(&self) -> Scores {
        let mut scores = Scores::new("v_measure");
        scores.add("v_measure", self.v_measure);
        scores.add("v_measure_std", self.v_measure_std);
        scores.add("homogeneity", self.homogeneity);
        scores.add("completeness", self.completeness);
        scores.count("rows", self.rows);
        scores.count("labels", self.labels);
        scores
    }
}

/// Runs the task; vectors are asked for all rows in the order of the file.
pub fn run(data: &DataSet, vectors: &mut Vectors, instruction: &str, options: Options) -> Result<Report> {
    let features = data.0.vectors(vectors, instruction)?;
    vectors.finish()?;
    evaluate(data, &features, vectors.width(), options)
}

/// [`run`] on features `[N, width]` of the rows.
pub fn evaluate(data: &DataSet, features: &[f32], width: usize, options: Options) -> Result<Report> {
    assert_eq!(features.len(), data.0.rows.len() * width, "a row of features per row");
    if options.repeats == 0 || options.clustering_batch_size == Some(0) {
        return Err(Error::usage("no repeat, or no row in a batch, at least 1 of each was wanted"));
    }
    let part = |(name, rows): (&str, Vec<usize>)| {
        let labelled = || rows.iter().map(|&i| &data.0.rows[i].value);
        let classes = labelled::classes(labelled());
        let truth = labelled::numbers(labelled(), &classes);
        let x: Vec<f32> = rows.iter().flat_map(|&i| &features[i * width..][..width]).copied().collect();
        let seeds = (0..options.repeats).map(|i| options.seed.wrapping_add(i));
        let one_seed = |seed| -> Result<VMeasure> {
            let (clusters, batch) = (classes.len(), options.clustering_batch_size.unwrap_or(500));
            let options = kmeans::Options { clusters, batch, starts: 1, rounds: 100, seed };
            Ok(v_measure(&truth, &mini_batch_kmeans(&x, width, options)?.labels))
        };
        let seeds: Vec<u32> = seeds.collect();
        let measures = seeds.into_par_iter().map(one_seed).collect::<Result<Vec<_>>>()?;
        Ok(part_report(name, rows.len(), classes.len(), &measures))
    };
    let sets = data.parts().into_iter().map(part).collect::<Result<Vec<_>>>()?;
    let v_measures: Vec<f64> = sets.iter().map(|set| set.v_measure).collect();
    let (mean, std) = mean_and_std(&v_measures);
    Ok(Report { v_measure: mean, v_measure_std: std, v_measures, sets })
}

fn part_report(name: &str, rows: usize, labels: usize, measures: &[VMeasure]) -> PartReport {
    let figures = |of: fn(&VMeasure) -> f64| measures.iter().map(of).collect::<Vec<_>>();
    let v_measures = figures(|m| m.v_measure);
    let (v_measure, v_measure_std) = mean_and_std(&v_measures);
    let [(homogeneity, _), (completeness, _)] =
        [mean_and_std(&figures(|m| m.homogeneity)), mean_and_std(&figures(|m| m.completeness))];
    let set = name.to_string();
    PartReport { set, rows, labels, v_measure, v_measure_std, homogeneity, completeness, v_measures }
}

/// Mean, and standard deviation of all.
pub(super) fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}
