//! Spans of tags as seqeval reads them by default, and conlleval before it: IOB1, IOB2 and IOBES alike, and whatever a
//! classifier makes of them.
//!
//! A span begins at `B-` and `S-`, and at `I-` or `E-` where none of that type is open; it ends before a word that begins
//! one or is outside, and behind `E-` and `S-`. So a stray `I-X` after `O` is a span, and a change of type ends one.

use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// Words of one type, by their places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Span<'a> {
    /// What stands behind the hyphen.
    pub kind: &'a str,
    /// Its first word.
    pub first: usize,
    /// Its last word.
    pub last: usize,
}

/// The letter and the type of a tag: `O` has none, and what is neither `O` nor `B-`, `I-`, `E-`, `S-` and a type is no tag.
pub fn parts(tag: &str) -> Option<(u8, &str)> {
    match tag.split_once('-') {
        None if tag == "O" => Some((b'O', "")),
        Some((letter @ ("B" | "I" | "E" | "S"), kind)) if !kind.is_empty() => {
            Some((letter.as_bytes()[0], kind))
        }
        _ => None,
    }
}

/// The spans of one sentence, in order. What is no tag counts as outside.
pub fn spans<'a>(tags: &[&'a str]) -> Vec<Span<'a>> {
    let mut found = Vec::new();
    let mut open: Option<(&str, usize)> = None;
    for (place, tag) in tags.iter().enumerate() {
        let (letter, kind) = parts(tag).unwrap_or((b'O', ""));
        let goes_on = matches!(letter, b'I' | b'E') && open.is_some_and(|(of, _)| of == kind);
        if !goes_on {
            found.extend(open.take().map(|(kind, first)| Span { kind, first, last: place - 1 }));
            open = (letter != b'O').then_some((kind, place));
        }
        if matches!(letter, b'E' | b'S') {
            found.extend(open.take().map(|(kind, first)| Span { kind, first, last: place }));
        }
    }
    found.extend(open.map(|(kind, first)| Span { kind, first, last: tags.len() - 1 }));
    found
}

/// How many there are, how many were answered, and how many answers are right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the data.
    pub truth: usize,
    /// In the answers.
    pub answers: usize,
    /// In both.
    pub right: usize,
}

/// Precision, recall and F1, from 0 to 1; 0 where there is nothing to divide by, as seqeval has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Right ones of those answered.
    pub precision: f64,
    /// Right ones of those there are.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// How many there are.
    pub support: usize,
}

impl Counts {
    /// Of both.
    pub fn add(&mut self, other: Counts) {
        self.truth += other.truth;
        self.answers += other.answers;
        self.right += other.right;
    }

    /// The figures.
    pub fn figures(self) -> Figures {
        let ratio = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let (precision, recall) = (ratio(self.right, self.answers), ratio(self.right, self.truth));
        // 2 P R / (P + R), in whole numbers.
        Figures {
            precision,
            recall,
            f1: ratio(2 * self.right, self.truth + self.answers),
            support: self.truth,
        }
    }
}

/// The counts of each type over sentences of true and answered tags. A span is right that has the same words and type.
pub fn counts<'a>(sentences: impl IntoIterator<Item = [&'a [&'a str]; 2]>) -> BTreeMap<&'a str, Counts> {
    let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
    for [truth, answers] in sentences {
        let truth = spans(truth);
        for span in spans(answers) {
            counts.entry(span.kind).or_default().answers += 1;
        }
        let answered: HashSet<Span> = spans(answers).into_iter().collect();
        for span in truth {
            let of_kind = counts.entry(span.kind).or_default();
            of_kind.truth += 1;
            of_kind.right += usize::from(answered.contains(&span));
        }
    }
    counts
}
