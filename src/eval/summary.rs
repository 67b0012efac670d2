//! Summarisation: whether a machine's summary that people rate higher is more similar to a human's.
//!
//! The texts are the human summaries and the machine summaries of the first row, then of the next; the summarised text
//! itself is not compared.

use super::correlation::{pearson, spearman};
use super::instructions::Instruction;
use super::rows::{self, Row, wrong};
use super::scores::Scores;
use super::similarity::{cosine, dot};
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Texts whose summaries are embedded at a time.
const WINDOW: usize = 256;
const WANTED: &str = r#"{"human": […], "machine": […], "relevance": […]}"#;

#[derive(Deserialize)]
struct Summaries {
    human: Vec<String>,
    machine: Vec<String>,
    relevance: Vec<f64>,
}

/// The correlations of one text's ratings with the similarities; `None` where one of them is all equal.
fn correlations(ratings: &[f64], cosines: &[f64], dots: &[f64]) -> Option<[f64; 4]> {
    let figures = [
        spearman(cosines, ratings),
        pearson(cosines, ratings),
        spearman(dots, ratings),
        pearson(dots, ratings),
    ];
    let [Some(a), Some(b), Some(c), Some(d)] = figures else { return None };
    Some([a, b, c, d])
}

/// Figures of the set in `folder`: means over texts; as in MTEB those are left out whose ratings or similarities are all
/// equal.
pub fn run(vectors: &mut Vectors, folder: &Path, instruction: &Instruction) -> Result<Scores> {
    let instruction = &instruction.query;
    let path = rows::file(folder, "test.jsonl")?;
    let rows: Vec<Row<Summaries>> = rows::read(&path, WANTED)?;
    for Row { line, value: Summaries { human, machine, relevance } } in &rows {
        if machine.len() != relevance.len() || human.is_empty() {
            let (h, m, r) = (human.len(), machine.len(), relevance.len());
            let what = format!("line {line}: {h} human and {m} machine summaries with {r} ratings");
            let wanted = "a rating for each machine summary and a human one were wanted";
            return Err(Error::file(&path, format!("{what}; {wanted}")));
        }
    }
    let (mut sums, mut texts, c) = ([0.0; 4], 0usize, vectors.width());
    for window in rows.chunks(WINDOW) {
        let (mut items, mut fields) = (Vec::new(), Vec::new());
        for Row { line, value } in window {
            for (name, texts) in [("human", &value.human), ("machine", &value.machine)] {
                items.extend(texts.iter().map(|text| Item { instruction, text }));
                fields.extend(texts.iter().map(|_| (*line, name)));
            }
        }
        let at = |i: usize, what| wrong(&path, fields[i].0, fields[i].1, what);
        let vectors = vectors.rows(&items, at)?;
        let mut vectors = vectors.chunks_exact(c);
        for Row { value, .. } in window {
            let human: Vec<&[f32]> = vectors.by_ref().take(value.human.len()).collect();
            let machine: Vec<&[f32]> = vectors.by_ref().take(value.machine.len()).collect();
            let best = |similarity: fn(&[f32], &[f32]) -> f64| -> Vec<f64> {
                let one = |m: &&[f32]| human.iter().map(|h| similarity(m, h)).fold(f64::MIN, f64::max);
                machine.iter().map(one).collect()
            };
            if let Some(figures) = correlations(&value.relevance, &best(cosine), &best(dot)) {
                texts += 1;
                sums.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
            }
        }
    }
    vectors.finish()?;
    if texts == 0 {
        return Err(Error::file(&path, "no text has two different ratings, and nothing can be compared"));
    }
    let mut scores = Scores::new("cosine_spearman");
    let names = ["cosine_spearman", "cosine_pearson", "dot_spearman", "dot_pearson"];
    names.iter().zip(sums).for_each(|(name, sum)| scores.add(*name, sum / texts as f64));
    scores.count("texts", texts);
    scores.count("left_out", rows.len() - texts);
    Ok(scores)
}
