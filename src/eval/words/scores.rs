//! What the answers to tagged words are worth: by word, by class, and by span where the tags mark spans.

use super::spans::{self, Counts, Figures};
use serde::Serialize;
use std::collections::BTreeMap;

/// The figures of one set, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Right words of all: what the reference's word tasks report of the test set.
    pub accuracy: f64,
    /// Of spans, all types together, as seqeval; of plain tags the means over classes.
    pub precision: f64,
    /// Likewise.
    pub recall: f64,
    /// Likewise.
    pub f1: f64,
    /// Means over types or classes.
    pub macro_average: Figures,
    /// By type of span, or by tag.
    pub by_class: BTreeMap<String, Figures>,
    /// Words that were compared.
    pub words: usize,
    /// Sentences of at least one such word.
    pub sentences: usize,
    /// How often each tag was answered for each.
    pub confusion: Confusion,
}

/// Answers by truth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Confusion {
    /// The tags that occur, in order.
    pub tags: Vec<String>,
    /// A row for each true tag, a column for each answer.
    pub counts: Vec<Vec<usize>>,
}

/// The scores of sentences of true and answered tags, word for word; `of_spans` where the tags mark spans.
pub fn scores(truth: &[Vec<&str>], answers: &[Vec<&str>], of_spans: bool) -> Scores {
    let pairs = || {
        let sentences = truth.iter().zip(answers);
        sentences.flat_map(|(truth, answers)| truth.iter().copied().zip(answers.iter().copied()))
    };
    let by_tag = tag_counts(pairs());
    let right: usize = by_tag.values().map(|c| c.right).sum();
    let words = pairs().count();
    let by_class = if of_spans {
        spans::counts(truth.iter().zip(answers).map(|(truth, answers)| [&truth[..], &answers[..]]))
    } else {
        by_tag.clone()
    };
    let figures: BTreeMap<String, Figures> =
        by_class.iter().map(|(class, counts)| (class.to_string(), counts.figures())).collect();
    let macro_average = average(figures.values());
    let mut whole = Counts::default();
    by_class.values().for_each(|counts| whole.add(*counts));
    let main = if of_spans { whole.figures() } else { macro_average };
    Scores {
        accuracy: if words == 0 { 0.0 } else { right as f64 / words as f64 },
        precision: main.precision,
        recall: main.recall,
        f1: main.f1,
        macro_average,
        by_class: figures,
        words,
        sentences: truth.iter().filter(|sentence| !sentence.is_empty()).count(),
        confusion: confusion(pairs(), by_tag.keys().copied().collect()),
    }
}

fn tag_counts<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<&'a str, Counts> {
    let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
    for (truth, answer) in pairs {
        counts.entry(answer).or_default().answers += 1;
        let of_tag = counts.entry(truth).or_default();
        of_tag.truth += 1;
        of_tag.right += usize::from(truth == answer);
    }
    counts
}

fn average<'a>(figures: impl ExactSizeIterator<Item = &'a Figures>) -> Figures {
    let n = figures.len().max(1) as f64;
    let mut sum = Figures::default();
    for f in figures {
        sum.precision += f.precision / n;
        sum.recall += f.recall / n;
        sum.f1 += f.f1 / n;
        sum.support += f.support;
    }
    sum
}

fn confusion<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, tags: Vec<&str>) -> Confusion {
    let place = |tag: &str| tags.partition_point(|other| *other < tag);
    let mut counts = vec![vec![0; tags.len()]; tags.len()];
    pairs.for_each(|(truth, answer)| counts[place(truth)][place(answer)] += 1);
    Confusion { tags: tags.iter().map(|tag| tag.to_string()).collect(), counts }
}
