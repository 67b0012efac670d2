//! Many sets of many types: which type a folder is of, seen from what lies in it, and the figure that counts.

use super::instructions::{Instruction, paper_task};
use super::rows::{self, Rows};
use super::sampled::{self, Sampled};
use super::scores::Scores;
use super::source::Vectors;
use super::{bitext, classification, clustering, pairs, reranking, retrieval, sts, summary};
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A type of task; in the order of the paper's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // a module each
pub enum Kind {
    Retrieval,
    Reranking,
    Clustering,
    Pairs,
    Classification,
    Sts,
    Summary,
    Bitext,
}

use Kind::{Bitext, Classification, Clustering, Pairs, Reranking, Retrieval, Sts, Summary};

/// Fields of the first row of `test.jsonl`, by which a type is known.
const FIELDS: [(&[&str], Kind); 6] = [
    (&["query", "positive", "negative"], Reranking),
    (&["text1", "text2", "label"], Pairs),
    (&["source", "target"], Bitext),
    (&["human", "machine", "relevance"], Summary),
    (&["text", "label"], Clustering),
    (&["sentences", "labels"], Clustering),
];

/// The 15 tasks of the paper's ablation (its table 3).
pub const PAPER15: [(&str, Kind); 15] = [
    ("SciFact", Retrieval),
    ("ArguAna", Retrieval),
    ("NFCorpus", Retrieval),
    ("StackOverflowDupQuestions", Reranking),
    ("SciDocsRR", Reranking),
    ("BiorxivClusteringS2S", Clustering),
    ("MedrxivClusteringS2S", Clustering),
    ("TwentyNewsgroupsClustering", Clustering),
    ("SprintDuplicateQuestions", Pairs),
    ("Banking77Classification", Classification),
    ("EmotionClassification", Classification),
    ("MassiveIntentClassification", Classification),
    ("STS17", Sts),
    ("SICK-R", Sts),
    ("STSBenchmark", Sts),
];

/// Levels of folders that are looked through: of types, of sets, and a set's own.
const DEPTH: usize = 3;

/// A set of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its type.
    pub kind: Kind,
    /// The name of its folder, or of its file without `.tsv`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Kind {
    /// The name, which is the subcommand of `eval` too.
    pub fn name(self) -> &'static str {
        match self {
            Retrieval => "retrieval",
            Reranking => "reranking",
            Clustering => "clustering",
            Pairs => "pairs",
            Classification => "classification",
            Sts => "sts",
            Summary => "summary",
            Bitext => "bitext",
        }
    }
}

/// The set of each of the paper's 15 tasks, where there is one.
pub fn paper15(sets: &[Set]) -> Vec<(&'static str, Option<&Set>)> {
    let set = |(task, kind): &(&'static str, Kind)| {
        let is_it = |set: &&Set| set.kind == *kind && paper_task(&set.name) == Some(*task);
        (*task, sets.iter().find(is_it))
    };
    PAPER15.iter().map(set).collect()
}

impl Set {
    /// `sts/stsb.test`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.kind.name(), self.name)
    }

    /// The figures of the set, by the settings that `eval` has by default.
    pub fn run(&self, vectors: &mut Vectors, instruction: &Instruction) -> Result<Scores> {
        let (path, query) = (&*self.path, &*instruction.query);
        match self.kind {
            Retrieval => retrieval::run(vectors, path, "test", instruction, false),
            Reranking => reranking::run(vectors, path, instruction),
            Pairs => pairs::run(vectors, path, instruction),
            Bitext => bitext::run(vectors, path, instruction),
            Summary => summary::run(vectors, path, instruction),
            Sts => Ok(sts::run(vectors, std::slice::from_ref(&self.path), query)?.scores()),
            Clustering => {
                if let Some(file) = sampled::find(path)? {
                    return Sampled::read(&file)?.run(vectors, query, Default::default());
                }
                let data = clustering::DataSet::read(path)?;
                Ok(clustering::run(&data, vectors, query, Default::default())?.scores())
            }
            Classification => {
                let data = classification::DataSet::read(path)?;
                Ok(classification::run(&data, vectors, query, Default::default())?.scores())
            }
        }
    }
}

/// The sets at `path`: a TSV file of STS, a set's folder, or a folder of such or of folders of such; in the order of their
/// names. What is no set is passed over below `path`; where there is none at all, that is an error.
pub fn sets(path: &Path) -> Result<Vec<Set>> {
    if path.is_file() {
        sts::read(path)?;
        return Ok(vec![set(Sts, path)]);
    }
    let found = sets_below(path, DEPTH)?;
    if found.is_empty() {
        let wanted = "the .tsv files of sts, corpus.jsonl and queries.jsonl with qrels (retrieval), or test.jsonl of one of \
                      the other types (.gz and .zst too)";
        return Err(Error::file(path, format!("holds no set of any type; wanted were {wanted}")));
    }
    Ok(found)
}

fn sets_below(folder: &Path, depth: usize) -> Result<Vec<Set>> {
    if let Some(kind) = kind(folder)? {
        return Ok(vec![set(kind, folder)]);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let entries = entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io(folder, e)));
    let mut entries = entries.collect::<Result<Vec<_>>>()?;
    entries.sort();
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() && depth > 1 {
            found.extend(sets_below(&path, depth - 1)?);
        } else if path.is_file() && sts::has_header(&path)? {
            found.push(set(Sts, &path));
        }
    }
    Ok(found)
}

/// The type of the set that a folder is, if it is one.
fn kind(folder: &Path) -> Result<Option<Kind>> {
    let has = |name: &str| rows::file(folder, name).is_ok();
    if has("corpus.jsonl") && has("queries.jsonl") {
        return Ok(Some(Retrieval));
    }
    let Ok(test) = rows::file(folder, "test.jsonl") else { return Ok(None) };
    let first = Rows::<Map<String, Value>>::open(&test, "{…}")?.next().transpose()?;
    let Some(first) = first else { return Ok(None) };
    let fields = |(names, _): &&(&[&str], Kind)| names.iter().all(|name| first.value.contains_key(*name));
    let found = FIELDS.iter().find(fields).map(|(_, kind)| *kind);
    let learnt = first.value.contains_key("label") && has("train.jsonl");
    Ok(found.map(|kind| if kind == Clustering && learnt { Classification } else { kind }))
}

fn set(kind: Kind, path: &Path) -> Set {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = match kind {
        Sts => sts::ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name),
        _ => &name,
    };
    Set { kind, name: name.to_string(), path: path.to_path_buf() }
}
