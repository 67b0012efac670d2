//! Whether the states of a prefix know what follows it (figures 4 and 7 of the paper, after Springer et al., 2024): of
//! q = (A, B), s+ = (A, C) and s- = (A, D), where B and C mean alike and D does not, only A's tokens are pooled. Under a causal
//! mask the three are one vector; a model that makes use of full attention has q nearer to s+ than to s-.

use crate::encode::Encoder;
use crate::encode::texts::Item;
use crate::encode::words::TokenRows;
use crate::error::{Error, Result, message};
use crate::eval::rows;
use crate::eval::similarity::cosine;
use crate::format::jsonl;
use serde::{Deserialize, Serialize};
use std::iter::once;
use std::ops::Range;
use std::path::Path;

/// A line of a file of triples.
const WANTED: &str = r#"{"prefix": A, "query": B, "positive": C, "negative": D}"#;

/// Bins of a histogram, as the paper's notebook has them.
pub const BINS: usize = 15;

/// A prefix and its three ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Triple {
    /// A, of which alone the vectors are made.
    pub prefix: String,
    /// B.
    pub query: String,
    /// C, which means what B does.
    pub positive: String,
    /// D, which does not.
    pub negative: String,
}

/// What a triple gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cosines {
    /// Of q and s+.
    pub positive: f64,
    /// Of q and s-.
    pub negative: f64,
}

/// What all triples gave under one mask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// In the order of the file.
    pub triples: Vec<Cosines>,
    /// How many have q nearer to s+ than to s-, by more than `rounding`.
    pub separated: usize,
    /// What rounding alone may make of two equal cosines.
    pub rounding: f64,
    /// The average of q and s+.
    pub mean_positive: f64,
    /// The average of q and s-.
    pub mean_negative: f64,
    /// By how much q is nearer to s+, on average.
    pub mean_difference: f64,
}

/// How often cosines fall where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// One more than bins.
    pub edges: Vec<f64>,
    /// Of q and s+.
    pub positive: Vec<usize>,
    /// Of q and s-.
    pub negative: Vec<usize>,
}

/// The triples of a JSONL file.
pub fn read(path: &Path) -> Result<Vec<Triple>> {
    let rows = rows::read::<Triple>(path, WANTED)?;
    let checked = |row: rows::Row<Triple>| match row.value.prefix.trim().is_empty() {
        true => Err(rows::wrong(path, row.line, "prefix", "is empty; there is nothing to pool".into())),
        false => Ok(row.value),
    };
    rows.into_iter().map(checked).collect()
}

/// The 35 of our own, in the form of Springer et al.
pub fn our_own() -> Result<Vec<Triple>> {
    let lines = include_str!("../../../tests/texts/triples.jsonl").lines();
    lines
        .map(|line| jsonl::parse(line).map_err(|what| Error::unsupported(format!("{line}: {what}"))))
        .collect()
}

impl Triple {
    /// q, s+ and s-.
    fn texts(&self) -> [String; 3] {
        [&self.query, &self.positive, &self.negative].map(|end| format!("{} {end}", self.prefix.trim()))
    }

    /// A's tokens among those of a text: none that holds bytes of what follows.
    fn span(&self, offsets: &[Range<usize>]) -> Result<Range<usize>> {
        let end = self.prefix.trim().len();
        let count = offsets.iter().take_while(|token| token.end <= end).count();
        match count {
            0 => Err(Error::unsupported(format!("no token ends within the prefix {:?}", self.prefix))),
            _ => Ok(0..count),
        }
    }

    /// Refuses a triple whose three rows are no fair comparison.
    fn check(&self, rows: &[TokenRows]) -> Result<()> {
        if rows.iter().any(|row| row.cut) {
            return Err(Error::unsupported("a length limit cuts it"));
        }
        let ids = |row: &TokenRows| Ok(row.ids[self.span(&row.offsets)?].to_vec());
        let ids = rows.iter().map(ids).collect::<Result<Vec<_>>>()?;
        if ids.iter().any(|other| *other != ids[0]) {
            let what = format!("the prefix {:?} has other tokens before another end", self.prefix);
            return Err(Error::unsupported(format!("{what}; let it end with a whole word")));
        }
        Ok(())
    }
}

/// Runs all triples under the encoder's mask, its layer and its pooling, but over A alone.
pub fn run(
    encoder: &mut Encoder,
    triples: &[Triple],
    instruction: &str,
    progress: impl FnMut(usize, usize),
) -> Result<Report> {
    let at = |i: usize, e: Error| Error::usage(message![format!("triple {}: ", i + 1), e.message()]);
    let texts: Vec<String> = triples.iter().flat_map(Triple::texts).collect();
    let items: Vec<Item> = texts.iter().map(|text| Item { instruction, text }).collect();
    let (layer, pooling) = (encoder.setup.config.layers, encoder.setup.pooling.op());
    let span = |i: usize, offsets: &[_]| Ok(once(triples[i / 3].span(offsets)?).collect());
    let rows = encoder.token_rows(&items, &[layer], pooling, span, |i, e| at(i / 3, e), progress)?;
    let mut cosines = Vec::new();
    for (i, (triple, rows)) in triples.iter().zip(rows.chunks_exact(3)).enumerate() {
        triple.check(rows).map_err(|e| at(i, e))?;
        let [q, positive, negative] = [0, 1, 2].map(|text: usize| &rows[text].layers[0]);
        cosines.push(Cosines { positive: cosine(q, positive), negative: cosine(q, negative) });
    }
    Ok(Report::new(cosines, encoder.rounding()))
}

impl Report {
    fn new(triples: Vec<Cosines>, rounding: f64) -> Report {
        let mean =
            |of: fn(&Cosines) -> f64| triples.iter().map(of).sum::<f64>() / triples.len().max(1) as f64;
        let (positive, negative) = (mean(|c| c.positive), mean(|c| c.negative));
        Report {
            separated: triples.iter().filter(|c| c.positive - c.negative > rounding).count(),
            rounding,
            mean_positive: positive,
            mean_negative: negative,
            mean_difference: positive - negative,
            triples,
        }
    }
}

/// Four digits, and no minus in front of none.
pub fn figure(v: f64) -> String {
    let text = format!("{v:.4}");
    if text == "-0.0000" { "0.0000".into() } else { text }
}

/// A histogram of each report, all with the same edges.
pub fn histograms(reports: &[&Report]) -> Vec<Histogram> {
    let all = reports.iter().flat_map(|r| &r.triples).flat_map(|c| [c.positive, c.negative]);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    // Of one value alone there would be no width.
    let (low, high) = if high - low > 1e-9 { (low, high) } else { (high - 0.1, high + 0.1) };
    let edge = |i: usize| low + (high - low) * i as f64 / BINS as f64;
    let edges: Vec<f64> = (0..=BINS).map(edge).collect();
    let count = |values: &mut dyn Iterator<Item = f64>| {
        let mut counts = vec![0; BINS];
        values.for_each(|v| counts[(((v - low) / (high - low) * BINS as f64) as usize).min(BINS - 1)] += 1);
        counts
    };
    let histogram = |report: &&Report| Histogram {
        edges: edges.clone(),
        positive: count(&mut report.triples.iter().map(|c| c.positive)),
        negative: count(&mut report.triples.iter().map(|c| c.negative)),
    };
    reports.iter().map(histogram).collect()
}
