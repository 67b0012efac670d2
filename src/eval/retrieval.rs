//! Retrieval: whether the documents that answer a query are those most similar to it; sets in BEIR's folders.
//!
//! The texts are the queries of `queries.jsonl` in their order, all of them, then the documents of `corpus.jsonl`. The
//! corpus goes through in windows: neither its texts nor its vectors are ever held whole.

use super::instructions::Instruction;
use super::nearest::Nearest;
use super::ranking::{CUTS, Ranking};
use super::rows::{self, Row, Rows, wrong};
use super::scores::Scores;
use super::similarity::normalize;
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Result};
use crate::format::lines::Lines;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Documents that are embedded and compared at a time.
const WINDOW: usize = 4096;
/// As many as MTEB keeps.
const KEPT: usize = CUTS[CUTS.len() - 1];

const DOCUMENT: &str = r#"{"_id": …, "title": …, "text": …}"#;
const QUERY: &str = r#"{"_id": …, "text": …}"#;
const HEADER: [&str; 3] = ["query-id", "corpus-id", "score"];

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    title: Option<String>,
    text: String,
}

impl Document {
    /// Title and text in one, as MTEB joins them.
    fn whole(&self) -> String {
        let title = self.title.as_deref().unwrap_or("");
        format!("{title} {}", self.text).trim().to_string()
    }
}

#[derive(Deserialize)]
struct Query {
    #[serde(rename = "_id")]
    id: String,
    text: String,
}

/// The grades of a query's documents.
type Grades = HashMap<String, i64>;

/// What is asked and what answers it.
struct Judged {
    corpus: PathBuf,
    queries_path: PathBuf,
    queries: Vec<Row<Query>>,
    /// The places of the queries with grades, and the grades.
    graded: Vec<(usize, Grades)>,
    documents: usize,
}

impl Judged {
    /// Reads and checks all but the texts of the corpus, before anything is embedded.
    fn open(folder: &Path, split: &str) -> Result<Judged> {
        let (corpus, queries_path) =
            (rows::file(folder, "corpus.jsonl")?, rows::file(folder, "queries.jsonl")?);
        let qrels_path = rows::file(&folder.join("qrels"), &format!("{split}.tsv"))?;
        let queries: Vec<Row<Query>> = rows::read(&queries_path, QUERY)?;
        let mut places = HashMap::new();
        for (i, row) in queries.iter().enumerate() {
            if places.insert(row.value.id.as_str(), i).is_some() {
                return Err(repeated(&queries_path, row.line, &row.value.id));
            }
        }
        let mut graded: HashMap<usize, Grades> = HashMap::new();
        let mut wanted: HashMap<String, u64> = HashMap::new();
        let mut lines = Lines::open(&qrels_path)?;
        while lines.read()? {
            let Some((query, document, grade)) = judgement(&lines)? else { continue };
            let Some(&place) = places.get(query) else {
                let name = queries_path.file_name().unwrap_or_default().to_string_lossy();
                return Err(lines.wrong(format_args!("query-id {query:?} is not in {name}")));
            };
            graded.entry(place).or_default().insert(document.to_string(), grade);
            wanted.entry(document.to_string()).or_insert(lines.place());
        }
        let mut graded: Vec<(usize, Grades)> = graded.into_iter().collect();
        graded.sort_by_key(|(place, _)| *place);
        if graded.is_empty() {
            return Err(Error::file(&qrels_path, "holds no judgement, only the header"));
        }
        for (place, _) in &graded {
            let Row { line, value } = &queries[*place];
            if value.text.trim().is_empty() {
                let what = format!("line {line}: the query {:?} is empty, and has judgements", value.id);
                return Err(Error::file(&queries_path, what));
            }
        }
        let documents = counted(&corpus, &mut wanted)?;
        if let Some((id, line)) = wanted.iter().min_by_key(|(_, line)| **line) {
            let name = corpus.file_name().unwrap_or_default().to_string_lossy();
            return Err(Error::file(&qrels_path, format!("line {line}: corpus-id {id:?} is not in {name}")));
        }
        Ok(Judged { corpus, queries_path, queries, graded, documents })
    }
}

/// One line of qrels; nothing for the header and an empty line.
fn judgement(lines: &Lines) -> Result<Option<(&str, &str, i64)>> {
    let text = lines.text()?;
    let fields: Vec<&str> = text.split('\t').collect();
    if lines.place() == 1 {
        return match fields.iter().map(|f| f.trim()).eq(HEADER) {
            true => Ok(None),
            false => {
                let what = format!("the header was wanted: {} (tabs between)", HEADER.join(", "));
                Err(lines.wrong(what))
            }
        };
    }
    if text.trim().is_empty() {
        return Ok(None);
    }
    let &[query, document, grade] = fields.as_slice() else {
        let (n, wanted) = (fields.len(), HEADER.join(", "));
        return Err(lines.wrong(format_args!("{n} fields between tabs, 3 were wanted: {wanted}")));
    };
    let grade = grade.trim();
    let number = grade.parse::<f64>().ok().filter(|g| g.fract() == 0.0 && g.abs() < 1e6);
    let number =
        number.ok_or_else(|| lines.wrong(format_args!("score {grade:?}, a whole number was wanted")))?;
    Ok(Some((query, document, number as i64)))
}

/// Reads the corpus once for its ids, which it takes out of `wanted`; the number of documents.
fn counted(corpus: &Path, wanted: &mut HashMap<String, u64>) -> Result<usize> {
    let (mut seen, mut documents) = (HashSet::new(), 0);
    let hashes = std::hash::RandomState::new();
    for row in Rows::<Document>::open(corpus, DOCUMENT)? {
        let row = row?;
        // The hash, not the name: of millions of documents, names would be much of the memory.
        if !seen.insert(std::hash::BuildHasher::hash_one(&hashes, &row.value.id)) {
            return Err(repeated(corpus, row.line, &row.value.id));
        }
        wanted.remove(&row.value.id);
        documents += 1;
    }
    match documents {
        0 => Err(Error::file(corpus, format!("holds no document; lines of {DOCUMENT} were wanted"))),
        n => Ok(n),
    }
}

fn repeated(path: &Path, line: u64, id: &str) -> Error {
    Error::file(path, format!("line {line}: _id {id:?} stood in an earlier line already"))
}

/// Figures of the set in `folder` by the judgements in `qrels/SPLIT.tsv`. With `distinct` a document of the query's own
/// id is no answer, as in ArguAna and Quora.
pub fn run(
    vectors: &mut Vectors,
    folder: &Path,
    split: &str,
    instruction: &Instruction,
    distinct: bool,
) -> Result<Scores> {
    let set = Judged::open(folder, split)?;
    let items = set.queries.iter().map(|row| Item { instruction: &instruction.query, text: &row.value.text });
    let (items, c): (Vec<Item>, usize) = (items.collect(), vectors.width());
    let at = |i: usize, what| wrong(&set.queries_path, set.queries[i].line, "text", what);
    let places: Vec<usize> = set.graded.iter().map(|(place, _)| *place).collect();
    let mut queries = vectors.some_rows(&items, &places, at)?;
    normalize(&mut queries, c);

    let mut nearest = Nearest::new(queries, c, KEPT);
    let mut documents = Rows::<Document>::open(&set.corpus, DOCUMENT)?;
    loop {
        let window = documents.by_ref().take(WINDOW).collect::<Result<Vec<_>>>()?;
        if window.is_empty() {
            break;
        }
        let texts: Vec<String> = window.iter().map(|row| row.value.whole()).collect();
        let items = texts.iter().map(|text| Item { instruction: &instruction.document, text });
        let at = |i: usize, what| wrong(&set.corpus, window[i].line, "text", what);
        let mut rows = vectors.rows(&items.collect::<Vec<_>>(), at)?;
        normalize(&mut rows, c);
        let ids: Vec<&str> = window.iter().map(|row| row.value.id.as_str()).collect();
        nearest.add(&rows, &ids, |q, id| distinct && set.queries[places[q]].value.id == id);
    }
    vectors.finish()?;

    let mut ranking = Ranking::default();
    for (hits, (_, grades)) in nearest.into_hits().queries().zip(&set.graded) {
        let found: Vec<i64> = hits.iter().map(|h| grades.get(h.id).copied().unwrap_or(0)).collect();
        ranking.add(&found, &grades.values().copied().collect::<Vec<_>>());
    }
    let mut scores = ranking.scores("ndcg_at_10");
    scores.count("queries", set.graded.len());
    scores.count("documents", set.documents);
    Ok(scores)
}
