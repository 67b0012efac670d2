//! Reranking: whether a query's right candidates are more similar to it than the others given with them.
//!
//! The texts are query, positive and negative of the first row, then of the next.

use super::instructions::Instruction;
use super::metrics::average_precision::average_precision;
use super::rows::{self, Row, wrong};
use super::scores::Scores;
use super::similarity::cosine;
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Queries that are embedded at a time, with all their candidates.
const WINDOW: usize = 256;
const WANTED: &str = r#"{"query": …, "positive": […], "negative": […]}"#;

#[derive(Deserialize)]
struct Candidates {
    query: String,
    positive: Vec<String>,
    negative: Vec<String>,
}

/// What one list gives: of candidates with equal scores, the one given first stands first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Average precision, equal scores taken together.
    pub ap: f64,
    /// One over the rank of the first right candidate, from 0.
    pub reciprocal: f64,
}

impl Ranked {
    /// Of scores, those of the `positives` right candidates first.
    pub fn new(scores: &[f64], positives: usize) -> Ranked {
        let labels: Vec<bool> = (0..scores.len()).map(|i| i < positives).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
        let first = order.iter().position(|&i| labels[i]);
        Ranked {
            ap: average_precision(&labels, scores),
            reciprocal: first.map_or(0.0, |rank| 1.0 / (rank + 1) as f64),
        }
    }

    /// MTEB's: nothing where the first right candidate is not among ten.
    pub fn reciprocal_at_10(self) -> f64 {
        if self.reciprocal >= 0.1 { self.reciprocal } else { 0.0 }
    }
}

/// Figures of the set in `folder`. As in MTEB, a row without right or without wrong candidates is left out.
pub fn run(vectors: &mut Vectors, folder: &Path, instruction: &Instruction) -> Result<Scores> {
    let path = rows::file(folder, "test.jsonl")?;
    let rows: Vec<Row<Candidates>> = rows::read(&path, WANTED)?;
    if let Some(row) = rows.iter().find(|row| row.value.query.trim().is_empty()) {
        return Err(Error::file(&path, format!("line {}: the query is empty", row.line)));
    }
    let (mut lists, mut candidates, c) = (Vec::new(), 0, vectors.width());
    for window in rows.chunks(WINDOW) {
        let mut items = Vec::new();
        let mut fields = Vec::new();
        for Row { line, value } in window {
            items.push(Item { instruction: &instruction.query, text: &value.query });
            fields.push((*line, "query"));
            for (name, texts) in [("positive", &value.positive), ("negative", &value.negative)] {
                items.extend(texts.iter().map(|text| Item { instruction: &instruction.document, text }));
                fields.extend(texts.iter().map(|_| (*line, name)));
            }
        }
        let at = |i: usize, what| wrong(&path, fields[i].0, fields[i].1, what);
        let vectors = vectors.rows(&items, at)?;
        let mut vectors = vectors.chunks_exact(c);
        for Row { value, .. } in window {
            let query = vectors.next().unwrap_or_default();
            let (positives, n) = (value.positive.len(), value.positive.len() + value.negative.len());
            let scores: Vec<f64> = vectors.by_ref().take(n).map(|v| cosine(query, v)).collect();
            if positives > 0 && positives < n {
                candidates += n;
                lists.push(Ranked::new(&scores, positives));
            }
        }
    }
    vectors.finish()?;
    if lists.is_empty() {
        return Err(Error::file(&path, "no row has both positives and negatives, and nothing can be ranked"));
    }
    let mean = |figure: fn(Ranked) -> f64| lists.iter().map(|l| figure(*l)).sum::<f64>() / lists.len() as f64;
    let mut scores = Scores::new("map");
    scores.add("map", mean(|l| l.ap));
    scores.add("mrr", mean(|l| l.reciprocal));
    scores.add("mrr_at_10", mean(Ranked::reciprocal_at_10));
    scores.count("queries", lists.len());
    scores.count("candidates", candidates);
    scores.count("left_out", rows.len() - lists.len());
    Ok(scores)
}
