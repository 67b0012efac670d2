//! Word-level tasks of the LLM2Vec paper: chunking, named entities, parts of speech. The model stays as it is; a linear
//! probe is trained on the features of its words, and answers the test words.
//!
//! A word's features are the mean over its tokens' states. Causal and plain bidirectional models are read at the word's
//! own tokens; after MNTP, which trains the state before a token to predict it, one token earlier
//! ([`LabelPosition::Before`](crate::encode::words::LabelPosition::Before)). Differences from the reference, on purpose:
//!
//! * dropout is off while answering, and an adapter has none while features are made: it is merged;
//! * spans are scored on the test set too, as seqeval does, where the reference reports the accuracy of words alone,
//!   which counts the many `O`;
//! * the probe is f32 on the CPU whatever the device, starts at zero, and is deterministic for a seed;
//! * features are made once, without dropout, and not in each step.

pub mod config;
pub mod data;
pub mod features;
#[cfg(feature = "cli")]
pub mod plot;
pub mod reader;
pub mod scores;
pub mod spans;
pub mod task;

use self::data::DataSet;
use self::features::{Extractor, Table};
use self::reader::Tagged;
use self::scores::Scores;
use super::probe::{Options, Probe, Words};
use crate::error::{Error, Message, Result, Setting, message};
use crate::format::vectors::VectorFile;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Rows that are answered at a time.
const WINDOW: usize = 8192;

/// What one layer gave.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// The layer, where features are a model's.
    pub layer: Option<usize>,
    /// Of the test file.
    pub test: Scores,
    /// Of the validation file.
    pub validation: Option<Scores>,
    /// Steps that the probe took.
    pub steps: usize,
    /// The mean loss of the last steps, twenty at most.
    pub train_loss: f64,
}

/// What the task gave.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The layer of tags.
    pub label: String,
    /// Whether they mark spans.
    pub spans: bool,
    /// The tags that can be answered.
    pub classes: Vec<String>,
    /// By layer.
    pub layers: Vec<LayerReport>,
    /// Words of all files without features: without a token, or cut.
    pub words_left_out: usize,
    /// Sentences that a length limit cut.
    pub sentences_cut: usize,
    /// Words of the test file whose tag the training file has not: wrong in any case.
    pub unknown_tags: usize,
}

impl Report {
    /// What a reader of the figures should know of them.
    pub fn warnings(&self) -> Vec<Message> {
        let mut warnings = Vec::new();
        if self.unknown_tags > 0 {
            let what = "words of the test file have tags that the training file has not, and are wrong";
            warnings.push(format!("{} {what}", self.unknown_tags).into());
        }
        if self.words_left_out > 0 {
            let what = "words have no features and are left out (no token of their own, or none before it)";
            let mut warning = message![format!("{} {what}", self.words_left_out)];
            if self.sentences_cut > 0 {
                warning.push(format!("; {} sentences were cut, try ", self.sentences_cut));
                warning.push(Setting::MaxLength);
            }
            warnings.push(warning);
        }
        warnings
    }
}

/// The features of a set's files for one layer.
pub struct Features {
    /// The layer, where features are a model's.
    pub layer: Option<usize>,
    /// A table for each of [`DataSet::parts`].
    pub tables: Vec<Table>,
}

/// Features by a model, for each of the extractor's layers.
pub fn extracted(data: &DataSet, from: &mut Extractor) -> Result<Vec<Features>> {
    let features = |&layer: &usize| Features { layer: Some(layer), tables: Vec::new() };
    let mut all: Vec<Features> = from.layers().iter().map(features).collect();
    for part in data.parts() {
        for (features, table) in all.iter_mut().zip(from.tables(part)?) {
            features.tables.push(table);
        }
    }
    Ok(all)
}

/// Features that any program has made: a row for each word of the training file, the validation file if there is one, and
/// the test file; several files are read as one.
pub fn from_files(data: &DataSet, paths: &[PathBuf]) -> Result<Features> {
    let files = paths.iter().map(|path| VectorFile::open(path)).collect::<Result<Vec<_>>>()?;
    let first = files.first().ok_or_else(|| Error::usage("no file of features was given"))?;
    let width = first.width();
    if let Some(other) = files.iter().find(|file| file.width() != width) {
        let (got, as_in) = (other.width(), first.path().display());
        return Err(Error::file(
            other.path(),
            format!("rows of {got} numbers, {width} were wanted as in {as_in}"),
        ));
    }
    let (got, wanted): (usize, usize) =
        (files.iter().map(VectorFile::rows).sum(), data.parts().map(words).sum());
    if got != wanted {
        let parts: Vec<String> =
            data.parts().map(|part| format!("{} of {}", words(part), part.path.display())).collect();
        let what =
            format!("{got} rows of features, {wanted} were wanted, one for each word: {}", parts.join(", "));
        return Err(Error::file(first.path(), what));
    }
    let mut rows = files.iter().flat_map(|file| file.read(0..file.rows())).collect::<Vec<f32>>();
    if let Some(bad) = rows.iter().position(|v| !v.is_finite()) {
        return Err(Error::file(first.path(), format!("row {} holds NaN or infinity", bad / width)));
    }
    let mut tables = Vec::new();
    for part in data.parts() {
        let rest = rows.split_off(words(part) * width);
        tables.push(Table::held(std::mem::replace(&mut rows, rest), width));
    }
    Ok(Features { layer: None, tables })
}

fn words(file: &Tagged) -> usize {
    file.sentences.iter().map(|sentence| sentence.words.len()).sum()
}

/// The words of a file that have features.
struct Kept<'a> {
    /// Their tags, by sentence.
    tags: Vec<Vec<&'a str>>,
    /// Where the rows of each sentence start, and their number.
    starts: Vec<usize>,
}

impl<'a> Kept<'a> {
    fn new(file: &'a Tagged, table: &Table) -> Kept<'a> {
        let mut left_out = table.left_out.iter().copied().peekable();
        let (mut tags, mut starts, mut word) = (Vec::new(), vec![0], 0);
        for sentence in &file.sentences {
            let mut kept = Vec::new();
            for tag in &sentence.tags {
                if left_out.next_if_eq(&word).is_none() {
                    kept.push(tag.as_str());
                }
                word += 1;
            }
            starts.push(starts[starts.len() - 1] + kept.len());
            tags.push(kept);
        }
        Kept { tags, starts }
    }
}

/// Trains a probe for each layer and scores it; `progress` is told layers done, and steps, all steps and the loss of the
/// one that is trained.
pub fn run(
    data: &DataSet,
    features: &[Features],
    options: Options,
    mut progress: impl FnMut(usize, usize, usize, f64),
) -> Result<Report> {
    let mut layers = Vec::new();
    for (done, of_layer) in features.iter().enumerate() {
        layers
            .push(layer_report(data, of_layer, options, |step, all, loss| progress(done, step, all, loss))?);
    }
    let tables = || features.iter().take(1).flat_map(|features| &features.tables);
    let test_tags = data.test.sentences.iter().flat_map(|sentence| &sentence.tags);
    Ok(Report {
        label: data.train.label.clone(),
        spans: data.spans,
        classes: data.classes.clone(),
        layers,
        words_left_out: tables().map(|table| table.left_out.len()).sum(),
        sentences_cut: tables().map(|table| table.cut).sum(),
        unknown_tags: test_tags.filter(|tag| data.class(tag).is_none()).count(),
    })
}

fn layer_report(
    data: &DataSet,
    features: &Features,
    options: Options,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<LayerReport> {
    let (parts, tables): (Vec<&Tagged>, &[Table]) = (data.parts().collect(), &features.tables);
    let kept = Kept::new(parts[0], &tables[0]);
    let class = |tag: &&str| data.class(tag).unwrap_or_default();
    let labels: Vec<usize> = kept.tags.iter().flatten().map(class).collect();
    let train =
        Words { features: tables[0].floats(), width: tables[0].width, labels: &labels, starts: &kept.starts };
    let mut losses = Vec::new();
    let probe = Probe::train(train, data.classes.len(), options, |step, all, loss| {
        losses.push(loss);
        progress(step, all, loss);
    })?;
    let scored = |part: usize| scored(data, parts[part], &tables[part], &probe);
    let last = parts.len() - 1;
    let tail = &losses[losses.len().saturating_sub(20)..];
    Ok(LayerReport {
        layer: features.layer,
        test: scored(last)?,
        validation: if last == 2 { Some(scored(1)?) } else { None },
        steps: losses.len(),
        train_loss: tail.iter().sum::<f64>() / tail.len().max(1) as f64,
    })
}

fn scored(data: &DataSet, file: &Tagged, table: &Table, probe: &Probe) -> Result<Scores> {
    let kept = Kept::new(file, table);
    if kept.tags.iter().all(Vec::is_empty) {
        return Err(Error::file(&file.path, "has no word that a token is left of"));
    }
    let windows = table.floats().chunks(WINDOW * table.width);
    let answers = windows.map(|rows| probe.classes(rows)).collect::<Result<Vec<_>>>()?.concat();
    let of_sentence = |places: &[usize]| -> Vec<&str> {
        answers[places[0]..places[1]].iter().map(|&class| data.classes[class].as_str()).collect()
    };
    let answers: Vec<Vec<&str>> = kept.starts.windows(2).map(of_sentence).collect();
    Ok(scores::scores(&kept.tags, &answers, data.spans))
}

/// The files that a set is read from, for what must not overwrite them.
pub fn paths(data: &DataSet) -> Vec<&Path> {
    data.parts().map(|part| part.path.as_path()).collect()
}
