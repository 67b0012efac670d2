//! Bitext mining: whether a sentence's translation is the most similar sentence of the other language.
//!
//! The texts are source and target of the first row, then of the next.

use super::instructions::Instruction;
use super::nearest::nearest_rows;
use super::rows::{self, Row, wrong};
use super::scores::Scores;
use super::similarity::normalize;
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::Result;
use serde::Deserialize;
use std::path::Path;

const WANTED: &str = r#"{"source": …, "target": …}"#;

#[derive(Deserialize)]
struct Sentences {
    source: String,
    target: String,
}

/// Figures of what was found for sentence 0, 1, …, which is right where it is that number: scikit-learn's averages over
/// the sentences, each a class with one member.
pub fn scores(found: &[usize]) -> Scores {
    let mut times = vec![0usize; found.len()];
    found.iter().for_each(|&i| times[i] += 1);
    let right = found.iter().enumerate().filter(|(i, found)| i == *found).map(|(i, _)| times[i] as f64);
    let mean = |sum: f64| sum / found.len() as f64;
    let recall = mean(right.clone().count() as f64);
    let mut scores = Scores::new("f1");
    scores.add("f1", mean(right.clone().map(|n| 2.0 / (1.0 + n)).sum()));
    scores.add("precision", mean(right.map(|n| 1.0 / n).sum()));
    scores.add("recall", recall);
    scores.add("accuracy", recall);
    scores
}

/// Figures of the set in `folder`, from source to target; the other way round is the part `reverse`.
pub fn run(vectors: &mut Vectors, folder: &Path, instruction: &Instruction) -> Result<Scores> {
    let instruction = &instruction.query;
    let path = rows::file(folder, "test.jsonl")?;
    let rows: Vec<Row<Sentences>> = rows::read(&path, WANTED)?;
    let texts = rows.iter().flat_map(|row| [&row.value.source, &row.value.target]);
    let items: Vec<Item> = texts.map(|text| Item { instruction, text }).collect();
    let at = |i: usize, what| wrong(&path, rows[i / 2].line, ["source", "target"][i % 2], what);
    let (c, mut both) = (vectors.width(), vectors.rows(&items, at)?);
    vectors.finish()?;
    normalize(&mut both, c);
    let side = |from: usize| both.chunks_exact(2 * c).flat_map(move |v| v[from..from + c].to_vec());
    let (sources, targets): (Vec<f32>, Vec<f32>) = (side(0).collect(), side(c).collect());
    let mut figures = scores(&nearest_rows(&sources, &targets, c));
    figures.count("pairs", rows.len());
    let mut reverse = scores(&nearest_rows(&targets, &sources, c));
    reverse.count("pairs", rows.len());
    figures.subsets.push(("reverse".into(), reverse));
    Ok(figures)
}
