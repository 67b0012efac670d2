//! Semantic textual similarity: whether the cosine of two vectors orders pairs of sentences as people do.

use super::correlation::{pearson, spearman};
use super::rows::{Row, Rows};
use super::scores::Scores;
use super::similarity::SIMILARITIES;
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Message, Result, message};
use crate::format::lines::Lines;
use crate::format::table::list;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The first line of a file without quoting.
const HEADER: [&str; 4] = ["subset", "score", "sentence1", "sentence2"];

/// How the names of files end.
pub(super) const ENDINGS: [&str; 3] = [".tsv", ".tsv.gz", ".tsv.zst"];

/// MTEB's main figure.
const MAIN: &str = "cosine_spearman";

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
    let mut lines = Lines::open(path)?;
    Ok(lines.read()? && lines.text()?.split('\t').eq(HEADER))
}

/// Whether a file is one that [`read`] takes, by its header or its first row.
pub fn holds_pairs(path: &Path) -> Result<bool> {
    let table = || {
        Rows::<Fields>::open(path, WANTED).is_ok_and(|mut rows| rows.next().is_some_and(|row| row.is_ok()))
    };
    Ok(has_header(path)? || table())
}

/// The pairs of a file: TSV under exactly this header, without quoting, or any table with a score and two sentences. A row that
/// is not one is an error naming its line.
pub fn read(path: &Path) -> Result<Vec<Pair>> {
    let mut lines = Lines::open(path)?;
    let plain = lines.read()? && lines.text().is_ok_and(|header| header.split('\t').eq(HEADER));
    let pairs = if plain { plain_rows(lines)? } else { table_rows(path)? };
    if pairs.is_empty() {
        return Err(Error::file(path, "holds no pair, only the header"));
    }
    Ok(pairs)
}

/// A row of any other table.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    subset: Option<String>,
    score: f64,
    sentence1: String,
    sentence2: String,
}
const WANTED: &str = r#"{"score": …, "sentence1": …, "sentence2": …}, with "subset" or without,"#;

/// Rows of tabs alone, as MTEB's sets are kept here.
fn plain_rows(mut lines: Lines) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    while lines.read()? {
        let fields: Vec<&str> = lines.text()?.split('\t').collect();
        let &[subset, score, one, two] = fields.as_slice() else {
            let (n, wanted) = (fields.len(), HEADER.join(", "));
            return Err(lines.wrong(format_args!("{n} fields between tabs, 4 were wanted: {wanted}")));
        };
        let number = score.trim().parse().ok().filter(|s: &f64| s.is_finite());
        let score =
            number.ok_or_else(|| lines.wrong(format_args!("score {score:?}, a number was wanted")))?;
        let sentences = [one.to_string(), two.to_string()];
        pairs.push(Pair { line: lines.place(), subset: subset.to_string(), score, sentences });
    }
    Ok(pairs)
}

fn table_rows(path: &Path) -> Result<Vec<Pair>> {
    let pair = |row: Result<Row<Fields>>| {
        let Row { line, value } = row?;
        let sentences = [value.sentence1, value.sentence2];
        Ok(Pair { line, subset: value.subset.unwrap_or_default(), score: value.score, sentences })
    };
    let rows = Rows::open(path, WANTED)?;
    if let Some(columns) = rows.columns()
        && HEADER[1..].iter().any(|name| !columns.iter().any(|column| column == name))
    {
        let what = format!("line 1: the header was wanted: {} (the first may be missing)", HEADER.join(", "));
        return Err(Error::file(path, format!("{what}; the columns are {}", list(columns))));
    }
    rows.map(pair).collect()
}

/// Pairs by each similarity, and what people said of them.
#[derive(Clone, Debug, Default)]
struct Judged {
    by_similarity: [Vec<f64>; SIMILARITIES.len()],
    scores: Vec<f64>,
}

impl Judged {
    fn add(&mut self, similarities: [f64; SIMILARITIES.len()], score: f64) {
        self.by_similarity.iter_mut().zip(similarities).for_each(|(list, value)| list.push(value));
        self.scores.push(score);
    }

    /// MTEB's figures; none of a side that is constant.
    fn figures(&self) -> Scores {
        let mut scores = Scores::new(MAIN);
        for ((name, _), list) in SIMILARITIES.iter().zip(&self.by_similarity) {
            scores.add(format!("{name}_spearman"), spearman(list, &self.scores));
            scores.add(format!("{name}_pearson"), pearson(list, &self.scores));
        }
        scores.count("pairs", self.scores.len());
        scores
    }
}

/// What all files gave: correlations from -1 to 1 under MTEB's names.
#[derive(Clone, Debug)]
pub struct Report {
    /// File by file, each with its subsets in alphabetical order.
    pub files: Vec<(PathBuf, Scores)>,
    /// Over the pairs of all files, as if they were one.
    pub all: Scores,
    /// The average over the files.
    pub mean: Scores,
}

/// Embeds both sides of every pair of `files` and compares; all files are read before the first is embedded.
///
/// The texts are sentence1 and sentence2 of the first pair, then of the next.
pub fn run(vectors: &mut Vectors, files: &[PathBuf], instruction: &str) -> Result<Report> {
    let data = files.iter().map(|f| Ok((f, read(f)?))).collect::<Result<Vec<_>>>()?;
    let (mut reports, mut all, c) = (Vec::new(), Judged::default(), vectors.width());
    for (file, pairs) in data {
        let (mut judged, mut subsets) = (Judged::default(), BTreeMap::<&str, Judged>::new());
        for window in pairs.chunks(WINDOW) {
            let at = |i: usize, what: Message| {
                let place = format!("line {}, sentence {}: ", window[i / 2].line, i % 2 + 1);
                Error::file(file, message![place, what])
            };
            let texts = window.iter().flat_map(|p| &p.sentences);
            let items: Vec<Item> = texts.map(|text| Item { instruction, text }).collect();
            let rows = vectors.rows(&items, at)?;
            for (both, pair) in rows.chunks_exact(2 * c).zip(window) {
                let similarities = SIMILARITIES.map(|(_, similarity)| similarity(&both[..c], &both[c..]));
                for judged in [&mut judged, subsets.entry(&pair.subset).or_default(), &mut all] {
                    judged.add(similarities, pair.score);
                }
            }
        }
        let mut figures = judged.figures();
        figures.subsets = subsets.iter().map(|(name, judged)| (name.to_string(), judged.figures())).collect();
        reports.push((file.clone(), figures));
    }
    vectors.finish()?;
    let all = all.figures();
    let mut mean = Scores::new(MAIN);
    for (name, _) in &all.values {
        let sum = reports.iter().map(|(_, file)| file.value(name)).sum::<Option<f64>>();
        mean.add(name.clone(), sum.map(|sum| sum / reports.len() as f64));
    }
    mean.counts = all.counts.clone();
    Ok(Report { all, mean, files: reports })
}

impl Report {
    /// The figures over all pairs, with those of each file, or of the only file's subsets.
    pub fn scores(&self) -> Scores {
        match &self.files[..] {
            [(_, only)] => only.clone(),
            files => {
                let named = files.iter().map(|(file, scores)| (file.display().to_string(), scores.clone()));
                Scores { subsets: named.collect(), ..self.all.clone() }
            }
        }
    }
}
