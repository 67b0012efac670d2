//! Pair classification: whether a threshold on the similarity of two texts tells pairs that belong together from others.
//!
//! The texts are text1 and text2 of the first row, then of the next.

use super::instructions::Instruction;
use super::metrics::average_precision::average_precision;
use super::rows::{self, Row, wrong};
use super::scores::Scores;
use super::similarity::SIMILARITIES;
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Pairs that are embedded at a time: only their similarities are kept.
const WINDOW: usize = 4096;
const WANTED: &str = r#"{"text1": …, "text2": …, "label": 0 or 1}"#;

#[derive(Deserialize)]
struct Pair {
    text1: String,
    text2: String,
    label: f64,
}

/// What thresholds on one similarity give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// The best accuracy of any threshold between two different scores.
    pub accuracy: f64,
    /// Halfway between those scores.
    pub accuracy_threshold: f64,
    /// The best F1.
    pub f1: f64,
    /// Halfway between its scores.
    pub f1_threshold: f64,
    /// At the best F1.
    pub precision: f64,
    /// At the best F1.
    pub recall: f64,
    /// The average precision.
    pub ap: f64,
}

impl Thresholds {
    /// Of scores, higher for pairs that belong together. Like MTEB, no threshold takes all pairs.
    pub fn new(scores: &[f64], labels: &[bool]) -> Thresholds {
        let groups = groups(scores, labels);
        let (n, positives) = (labels.len(), labels.iter().filter(|l| **l).count());
        let mut best = Thresholds {
            accuracy: 0.0,
            accuracy_threshold: -1.0,
            f1: 0.0,
            f1_threshold: 0.0,
            precision: 0.0,
            recall: 0.0,
            ap: average_precision(labels, scores),
        };
        let (mut taken, mut correct) = (0, 0);
        for pair in groups.windows(2) {
            let (score, next) = (pair[0].score, pair[1].score);
            taken += pair[0].count;
            correct += pair[0].positives;
            let negatives_left = (n - positives) - (taken - correct);
            let accuracy = (correct + negatives_left) as f64 / n as f64;
            if accuracy > best.accuracy {
                (best.accuracy, best.accuracy_threshold) = (accuracy, (score + next) / 2.0);
            }
            if correct > 0 {
                let (precision, recall) = (correct as f64 / taken as f64, correct as f64 / positives as f64);
                let f1 = 2.0 * precision * recall / (precision + recall);
                if f1 > best.f1 {
                    (best.f1, best.f1_threshold) = (f1, (score + next) / 2.0);
                    (best.precision, best.recall) = (precision, recall);
                }
            }
        }
        best
    }
}

/// Items of one score.
struct Group {
    score: f64,
    count: usize,
    positives: usize,
}

/// The scores from the highest down, equal ones together.
fn groups(scores: &[f64], labels: &[bool]) -> Vec<Group> {
    assert_eq!(scores.len(), labels.len(), "one label per score");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    // By ==, not by total_cmp: -0 and 0 are one value.
    let tied = order.chunk_by(|&i, &j| scores[i] == scores[j]);
    let group = |list: &[usize]| {
        let positives = list.iter().filter(|&&i| labels[i]).count();
        Group { score: scores[list[0]], count: list.len(), positives }
    };
    tied.map(group).collect()
}

/// Figures of the set in `folder`.
pub fn run(vectors: &mut Vectors, folder: &Path, instruction: &Instruction) -> Result<Scores> {
    let instruction = &instruction.query;
    let path = rows::file(folder, "test.jsonl")?;
    let rows: Vec<Row<Pair>> = rows::read(&path, WANTED)?;
    let labels = rows.iter().map(|row| label(&path, row)).collect::<Result<Vec<_>>>()?;
    let positives = labels.iter().filter(|l| **l).count();
    if positives == 0 || positives == labels.len() {
        let only = u8::from(positives > 0);
        let what =
            format!("every label is {only}, and no threshold can be judged; pairs of both were wanted");
        return Err(Error::file(&path, what));
    }
    let (c, mut lists) = (vectors.width(), [const { Vec::new() }; 4]);
    for window in rows.chunks(WINDOW) {
        let texts = window.iter().flat_map(|row| [&row.value.text1, &row.value.text2]);
        let items: Vec<Item> = texts.map(|text| Item { instruction, text }).collect();
        let at = |i: usize, what| wrong(&path, window[i / 2].line, ["text1", "text2"][i % 2], what);
        for both in vectors.rows(&items, at)?.chunks_exact(2 * c) {
            for (list, (_, similarity)) in lists.iter_mut().zip(SIMILARITIES) {
                list.push(similarity(&both[..c], &both[c..]));
            }
        }
    }
    vectors.finish()?;
    let named =
        SIMILARITIES.iter().zip(&lists).map(|((name, _), list)| (*name, Thresholds::new(list, &labels)));
    let mut scores = scores(&named.collect::<Vec<_>>());
    scores.count("pairs", labels.len());
    scores.count("positives", positives);
    Ok(scores)
}

fn label(path: &Path, row: &Row<Pair>) -> Result<bool> {
    match row.value.label {
        0.0 => Ok(false),
        1.0 => Ok(true),
        other => Err(Error::file(path, format!("line {}: label {other}, 0 or 1 was wanted", row.line))),
    }
}

/// MTEB's names: `cosine_ap` and so on, and the best of all similarities as `max_ap`.
fn scores(list: &[(&str, Thresholds)]) -> Scores {
    type Figure = (&'static str, fn(&Thresholds) -> f64);
    const FIGURES: [Figure; 5] = [
        ("ap", |t| t.ap),
        ("accuracy", |t| t.accuracy),
        ("f1", |t| t.f1),
        ("precision", |t| t.precision),
        ("recall", |t| t.recall),
    ];
    let mut scores = Scores::new("cosine_ap");
    for (name, thresholds) in list {
        FIGURES.iter().for_each(|(figure, value)| scores.add(format!("{name}_{figure}"), value(thresholds)));
        // A distance's threshold is the distance itself.
        let sign = if ["euclidean", "manhattan"].contains(name) { -1.0 } else { 1.0 };
        scores.add(format!("{name}_accuracy_threshold"), sign * thresholds.accuracy_threshold);
        scores.add(format!("{name}_f1_threshold"), sign * thresholds.f1_threshold);
    }
    for (figure, value) in FIGURES {
        let best = list.iter().map(|(_, t)| value(t)).fold(0.0, f64::max);
        scores.add(format!("max_{figure}"), best);
    }
    scores
}
