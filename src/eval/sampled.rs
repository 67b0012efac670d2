//! MTEB's newer clustering: rows drawn from the whole set, several times over, clustered and judged by the V-measure, level by
//! level where labels have several.
//!
//! The set is `test.jsonl` of `{"sentences": text, "labels": label}`, or of labels `[coarse, fine, …]`: the columns of those
//! tasks, by which they are known. A row without a level is left out of it (mteb does so where labels are numbers; where
//! they are names it takes such rows for a class). Rows are drawn as Python's `random.Random(seed)` draws them, so samples are MTEB's.

use super::clustering::{Options, mean_and_std};
use super::kmeans::{self, mini_batch_kmeans};
use super::labelled::Label;
use super::mersenne::Mersenne;
use super::metrics::vmeasure::v_measure;
use super::rows::{self, Row, Rows};
use super::scores::Scores;
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Deserialize)]
struct Document {
    sentences: String,
    labels: Levels,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a label, a whole number or a name, or a list of them was wanted")]
enum Levels {
    One(Label),
    Several(Vec<Label>),
}

impl Levels {
    fn at(&self, level: usize) -> Option<&Label> {
        match self {
            Levels::One(label) => Some(label).filter(|_| level == 0),
            Levels::Several(labels) => labels.get(level),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Levels::One(_) => 1,
            Levels::Several(labels) => labels.len(),
        }
    }
}

/// A set of this layout.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// Its file.
    pub path: PathBuf,
    rows: Vec<Row<Document>>,
}

impl Sampled {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Sampled> {
        let rows = rows::read(path, r#"{"sentences": "…", "labels": … or […]}"#)?;
        if let Some(row) = rows.iter().find(|row: &&Row<Document>| row.value.labels.depth() == 0) {
            let what = "none in the list, at least one was wanted";
            return Err(rows::wrong(path, row.line, "labels", what.into()));
        }
        Ok(Sampled { path: path.to_path_buf(), rows })
    }

    /// Runs the task; vectors are asked for all rows in the order of the file, or of the drawn ones in the order drawn.
    pub fn run(&self, vectors: &mut Vectors, instruction: &str, options: Options) -> Result<Scores> {
        let sizes =
            [Some(options.bootstraps), Some(options.documents_per_cluster), options.clustering_batch_size];
        if sizes.contains(&Some(0)) || options.documents == Some(0) {
            return Err(Error::usage(
                "no bootstrap, no document in all or in one, or no row in a batch, at least 1 of each was wanted",
            ));
        }
        let (n, mut random) = (self.rows.len(), Mersenne::python(options.seed));
        let places: Vec<usize> = match options.documents {
            Some(wanted) => random.sample(n, wanted.min(n)),
            None => (0..n).collect(),
        };
        let items = self.rows.iter().map(|row| Item { instruction, text: &row.value.sentences });
        let at = |i: usize, what| rows::wrong(&self.path, self.rows[i].line, "sentences", what);
        let features = vectors.some_rows(&items.collect::<Vec<_>>(), &places, at)?;
        vectors.finish()?;
        self.evaluate(&features, vectors.width(), &places, &mut random, options)
    }

    fn evaluate(
        &self,
        features: &[f32],
        width: usize,
        places: &[usize],
        random: &mut Mersenne,
        options: Options,
    ) -> Result<Scores> {
        let levels = || places.iter().map(|&i| &self.rows[i].value.labels);
        let (mut all, mut scores) = (Vec::new(), Scores::new("v_measure"));
        for level in 0..levels().map(Levels::depth).max().unwrap_or(0) {
            let kept: Vec<(usize, &Label)> =
                levels().enumerate().filter_map(|(i, labels)| Some((i, labels.at(level)?))).collect();
            let mut classes: Vec<&Label> = kept.iter().map(|(_, label)| *label).collect();
            classes.sort();
            classes.dedup();
            let drawn: Vec<Vec<usize>> = (0..options.bootstraps)
                .map(|_| (0..options.documents_per_cluster).map(|_| random.index(kept.len())).collect())
                .collect();
            let one = |drawn: &Vec<usize>| -> Result<f64> {
                let x = drawn.iter().flat_map(|&i| &features[kept[i].0 * width..][..width]);
                let truth: Vec<usize> =
                    drawn.iter().map(|&i| classes.partition_point(|label| *label < kept[i].1)).collect();
                let batch = options.clustering_batch_size.unwrap_or(512);
                let (clusters, seed) = (classes.len(), options.seed);
                let options = kmeans::Options { clusters, batch, starts: 1, rounds: 100, seed };
                let x: Vec<f32> = x.copied().collect();
                Ok(v_measure(&truth, &mini_batch_kmeans(&x, width, options)?.labels).v_measure)
            };
            let measures = drawn.par_iter().map(one).collect::<Result<Vec<_>>>()?;
            let (mean, std) = mean_and_std(&measures);
            let mut part = Scores::new("v_measure");
            part.add("v_measure", mean);
            part.add("v_measure_std", std);
            part.count("rows", kept.len());
            part.count("labels", classes.len());
            scores.subsets.push((format!("Level {level}"), part));
            all.extend(measures);
        }
        let (mean, std) = mean_and_std(&all);
        scores.add("v_measure", mean);
        scores.add("v_measure_std", std);
        scores.count("rows", places.len());
        Ok(scores)
    }
}

/// The path of the set in `folder`, if it is of this layout.
pub fn find(folder: &Path) -> Result<Option<PathBuf>> {
    let path = rows::file(folder, "test.jsonl")?;
    let first = Rows::<Map<String, Value>>::open(&path, "{…}")?.next().transpose()?;
    Ok(first.filter(|row| row.value.contains_key("sentences")).map(|_| path))
}
