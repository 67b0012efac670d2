//! A word-level task by one argument, and its figures under the names that all tasks have.

use super::data::{DataSet, Files};
use super::features::Extractor;
use super::{LayerReport, Report, extracted, run};
use crate::error::{Error, Result};
use crate::eval::probe::Options;
use crate::eval::scores::Scores;
use std::path::{Path, PathBuf};

/// A set with one layer of tags.
#[derive(Clone, Debug)]
pub struct WordTask {
    /// The name of its folder, or the start of its files' names.
    pub name: String,
    /// Where it is, as [`Files::find`] takes it.
    pub path: PathBuf,
    /// What was read.
    pub data: DataSet,
}

impl WordTask {
    /// Reads `PATH:LABEL`, or `PATH` where its files have one layer of tags.
    pub fn read(argument: &str) -> Result<WordTask> {
        let (path, label) = match argument.rsplit_once(':') {
            // A colon in the name of a folder.
            Some((path, label)) if !label.contains('/') && !path.is_empty() => (path, Some(label)),
            _ => (argument, None),
        };
        let path = Path::new(path);
        let data = DataSet::read(&Files::find(path)?, label)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(WordTask { name, path: path.to_path_buf(), data })
    }

    /// `ud-ewt/chunk`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.name, self.data.train.label)
    }

    /// The figure that counts: of spans their F1, else the accuracy.
    pub fn main(&self) -> &'static str {
        if self.data.spans { "f1" } else { "accuracy" }
    }

    /// A probe on the features of the extractor's only layer; `progress` is told steps, all steps and the loss.
    pub fn run(
        &self,
        from: &mut Extractor,
        options: Options,
        mut progress: impl FnMut(usize, usize, f64),
    ) -> Result<(Report, Scores)> {
        let features = extracted(&self.data, from)?;
        let report = run(&self.data, &features, options, |_, step, all, loss| progress(step, all, loss))?;
        let [layer] = report.layers.as_slice() else {
            let n = report.layers.len();
            return Err(Error::unsupported(format!("features of {n} layers, those of one were wanted")));
        };
        let scores = self.scores(layer, &report);
        Ok((report, scores))
    }

    fn scores(&self, layer: &LayerReport, report: &Report) -> Scores {
        let figures = |of: &super::scores::Scores| {
            let mut scores = Scores::new(self.main());
            for (name, value) in
                [("accuracy", of.accuracy), ("precision", of.precision), ("recall", of.recall), ("f1", of.f1)]
            {
                scores.add(name, value);
            }
            scores.count("words", of.words);
            scores.count("sentences", of.sentences);
            scores
        };
        let mut scores = figures(&layer.test);
        scores.add("train_loss", layer.train_loss);
        scores.count("classes", report.classes.len());
        scores.count("steps", layer.steps);
        scores.count("words_left_out", report.words_left_out);
        scores.count("unknown_tags", report.unknown_tags);
        scores.subsets.extend(layer.validation.as_ref().map(|of| ("validation".into(), figures(of))));
        scores
    }
}
