//! Semantic textual similarity: whether the cosine of two vectors orders pairs of sentences as people do.

use super::correlation::{pearson, spearman};
use super::scores::Scores;
use super::similarity::{cosine, dot};
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Message, Result, message};
use crate::format::input::{self, Format, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The first line of every file.
const HEADER: [&str; 4] = ["subset", "score", "sentence1", "sentence2"];

/// How the names of files end.
pub(super) const ENDINGS: [&str; 3] = [".tsv", ".tsv.gz", ".tsv.zst"];

/// Pairs that are embedded at a time: only their cosines are kept.
const WINDOW: usize = 4096;

/// Two sentences and how alike people find them.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The line in the file, from 1.
    pub line: u64,
    /// The part of the data set it comes from.
    pub subset: String,
    /// What people said, on any scale.
    pub score: f64,
    /// The sentences.
    pub sentences: [String; 2],
}

/// The files at `path`: itself, or the `.tsv`, `.tsv.gz` and `.tsv.zst` of a folder, by name.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let entries = entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io(path, e)));
    let mut files = entries.collect::<Result<Vec<_>>>()?;
    files.retain(|f| f.is_file() && is_named(f));
    files.sort();
    if files.is_empty() {
        return Err(Error::file(path, "holds no .tsv file; give a file, or the folder of such files"));
    }
    Ok(files)
}

fn is_named(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Whether a file is one of pairs, by its name and its first line.
pub(super) fn has_header(path: &Path) -> Result<bool> {
    if !is_named(path) {
        return Ok(false);
    }
    let first = input::open(&path.to_string_lossy(), Some(Format::Text))?.next().transpose()?;
    Ok(first.is_some_and(|line| line.text.split('\t').eq(HEADER)))
}

/// The pairs of a TSV file (no quoting; `.gz` and `.zst` too). A row that is not one is an error naming its line.
pub fn read(path: &Path) -> Result<Vec<Pair>> {
    let mut records = input::open(&path.to_string_lossy(), Some(Format::Text))?;
    let header = records.next().transpose()?.map_or(String::new(), |r| r.text);
    if header.split('\t').ne(HEADER) {
        let what = format!("line 1: the header was wanted: {} (tabs between)", HEADER.join(", "));
        return Err(Error::file(path, what));
    }
    let pairs = records.map(|r| pair(path, r?)).collect::<Result<Vec<_>>>()?;
    if pairs.is_empty() {
        return Err(Error::file(path, "holds no pair, only the header"));
    }
    Ok(pairs)
}

fn pair(path: &Path, record: Record) -> Result<Pair> {
    let wrong = |what: String| Error::file(path, format!("line {}: {what}", record.place));
    let fields: Vec<&str> = record.text.split('\t').collect();
    let &[subset, score, one, two] = fields.as_slice() else {
        let (n, wanted) = (fields.len(), HEADER.join(", "));
        return Err(wrong(format!("{n} fields between tabs, 4 were wanted: {wanted}")));
    };
    let number = score.trim().parse().ok().filter(|s: &f64| s.is_finite());
    let score = number.ok_or_else(|| wrong(format!("score {score:?}, a number was wanted")))?;
    let sentences = [one.to_string(), two.to_string()];
    Ok(Pair { line: record.place, subset: subset.to_string(), score, sentences })
}

/// How far the cosines and the scores agree, times 100; `None` where one of them is constant.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Pairs compared.
    pub pairs: usize,
    /// By rank.
    pub spearman: Option<f64>,
    /// By value.
    pub pearson: Option<f64>,
    /// Of inner products instead of cosines, by rank.
    pub dot_spearman: Option<f64>,
    /// Of inner products, by value.
    pub dot_pearson: Option<f64>,
}

/// What pairs gave, and what people said.
#[derive(Clone, Debug, Default)]
struct Judged {
    cosines: Vec<f64>,
    dots: Vec<f64>,
    scores: Vec<f64>,
}

impl Judged {
    fn add(&mut self, other: &Judged) {
        self.cosines.extend(&other.cosines);
        self.dots.extend(&other.dots);
        self.scores.extend(&other.scores);
    }

    fn agreement(&self) -> Agreement {
        let percent = |r: Option<f64>| r.map(|r| 100.0 * r);
        Agreement {
            pairs: self.scores.len(),
            spearman: percent(spearman(&self.cosines, &self.scores)),
            pearson: percent(pearson(&self.cosines, &self.scores)),
            dot_spearman: percent(spearman(&self.dots, &self.scores)),
            dot_pearson: percent(pearson(&self.dots, &self.scores)),
        }
    }
}

/// What one file gave.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: PathBuf,
    /// Over all its pairs.
    #[serde(flatten)]
    pub all: Agreement,
    /// By subset, in alphabetical order.
    pub subsets: BTreeMap<String, Agreement>,
}

/// What all files gave.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// File by file.
    pub files: Vec<FileReport>,
    /// Over the pairs of all files, as if they were one.
    pub all: Agreement,
    /// The average over the files.
    pub mean: Agreement,
    /// Texts that a length limit cut.
    pub cut: u64,
}

/// Embeds both sides of every pair of `files` and compares; all files are read before the first is embedded.
///
/// The texts are sentence1 and sentence2 of the first pair, then of the next.
pub fn run(vectors: &mut Vectors, files: &[PathBuf], instruction: &str) -> Result<Report> {
    let data = files.iter().map(|f| Ok((f, read(f)?))).collect::<Result<Vec<_>>>()?;
    let (mut reports, mut all, c) = (Vec::new(), Judged::default(), vectors.width());
    for (file, pairs) in data {
        let mut judged = Judged { scores: pairs.iter().map(|p| p.score).collect(), ..Judged::default() };
        for window in pairs.chunks(WINDOW) {
            let at = |i: usize, what: Message| {
                let place = format!("line {}, sentence {}: ", window[i / 2].line, i % 2 + 1);
                Error::file(file, message![place, what])
            };
            let texts = window.iter().flat_map(|p| &p.sentences);
            let items: Vec<Item> = texts.map(|text| Item { instruction, text }).collect();
            for both in vectors.rows(&items, at)?.chunks_exact(2 * c) {
                judged.cosines.push(cosine(&both[..c], &both[c..]));
                judged.dots.push(dot(&both[..c], &both[c..]));
            }
        }
        let mut subsets: BTreeMap<String, Judged> = BTreeMap::new();
        for (i, pair) in pairs.into_iter().enumerate() {
            let subset = subsets.entry(pair.subset).or_default();
            subset.cosines.push(judged.cosines[i]);
            subset.dots.push(judged.dots[i]);
            subset.scores.push(pair.score);
        }
        reports.push(FileReport {
            file: file.clone(),
            all: judged.agreement(),
            subsets: subsets.into_iter().map(|(name, judged)| (name, judged.agreement())).collect(),
        });
        all.add(&judged);
    }
    vectors.finish()?;
    let mean = |of: fn(&Agreement) -> Option<f64>| {
        let sum = reports.iter().map(|r| of(&r.all)).sum::<Option<f64>>()?;
        Some(sum / reports.len() as f64)
    };
    let mean = Agreement {
        pairs: all.scores.len(),
        spearman: mean(|a| a.spearman),
        pearson: mean(|a| a.pearson),
        dot_spearman: mean(|a| a.dot_spearman),
        dot_pearson: mean(|a| a.dot_pearson),
    };
    Ok(Report { all: all.agreement(), mean, cut: vectors.cut, files: reports })
}

impl Report {
    /// The agreement over all pairs under MTEB's names.
    pub fn scores(&self) -> Scores {
        let share = |percent: Option<f64>| percent.map(|p| p / 100.0);
        let mut scores = Scores::new("cosine_spearman");
        scores.add("cosine_spearman", share(self.all.spearman));
        scores.add("cosine_pearson", share(self.all.pearson));
        scores.add("dot_spearman", share(self.all.dot_spearman));
        scores.add("dot_pearson", share(self.all.dot_pearson));
        scores.count("pairs", self.all.pairs);
        scores
    }
}
