//! How narrow a cone the vectors of a layer fill: the mean cosine of two vectors drawn at random (Ethayarajh, 2019). It is the
//! mean over all pairs, not over a sample: the cosines of all pairs of n unit vectors sum to the square of the length of
//! their sum, less n.

use crate::encode::Encoder;
use crate::encode::texts::Item;
use crate::encode::words::TokenRows;
use crate::error::{Error, Result};
use serde::Serialize;
use std::iter::once;
use std::ops::Range;

/// Bytes of rows that are held at a time.
const WINDOW_BYTES: usize = 256 << 20;

/// A layer's mean cosines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Its number: 0 is the embedding, the last has the final norm.
    pub layer: usize,
    /// Of two tokens of different texts.
    pub tokens: f64,
    /// Of two tokens of one text; `None` where every text has one token.
    pub tokens_of_one_text: Option<f64>,
    /// Of two texts.
    pub texts: f64,
}

/// What all layers gave under one mask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Texts read.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Texts that a length limit cut.
    pub cut: usize,
    /// Layer by layer.
    pub layers: Vec<Layer>,
}

/// What is summed of a layer.
#[derive(Clone)]
struct Sums {
    /// The sum of the unit vectors of tokens.
    tokens: Vec<f64>,
    /// Their squares' sum: how many are not zero.
    ones: f64,
    /// The squared lengths of the texts' own sums.
    within: f64,
    /// The sum of the unit vectors of texts.
    texts: Vec<f64>,
    /// How many of those are not zero.
    text_ones: f64,
}

fn add_unit(sum: &mut [f64], row: &[f32]) -> f64 {
    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return 0.0;
    }
    sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) / norm);
    1.0
}

fn squared(v: &[f64]) -> f64 {
    v.iter().map(|v| v * v).sum()
}

impl Sums {
    /// Adds a text: its tokens' rows, and its own behind them.
    fn add(&mut self, rows: &[f32]) {
        let c = self.tokens.len();
        let (tokens, text) = rows.split_at(rows.len() - c);
        let mut own = vec![0.0; c];
        tokens.chunks_exact(c).for_each(|row| self.ones += add_unit(&mut own, row));
        self.within += squared(&own);
        self.tokens.iter_mut().zip(&own).for_each(|(sum, v)| *sum += v);
        self.text_ones += add_unit(&mut self.texts, text);
    }
}

/// Runs texts under the encoder's mask; a text's vector is pooled as the encoder says, at every layer. `at(i, what)` makes the
/// error of text `i`.
pub fn run(
    encoder: &mut Encoder,
    texts: &[Item],
    at: impl Fn(usize, Error) -> Error + Sync,
    mut progress: impl FnMut(usize, usize),
) -> Result<Report> {
    let (c, pooling) = (encoder.setup.config.width, encoder.setup.pooling.op());
    let layers: Vec<usize> = (0..=encoder.setup.config.layers).collect();
    let zero = || vec![0.0; c];
    let sums = Sums { tokens: zero(), ones: 0.0, within: 0.0, texts: zero(), text_ones: 0.0 };
    let mut sums = vec![sums; layers.len()];
    // A token alone is itself under every pooling.
    let spans = |_: usize, tokens: &[Range<usize>]| {
        Ok((0..tokens.len()).map(|t| t..t + 1).chain(once(0..tokens.len())).collect())
    };
    let (mut counts, mut cut): (Vec<usize>, usize) = (Vec::new(), 0);
    let most = WINDOW_BYTES / (4 * c * layers.len());
    let mut rest = texts;
    while !rest.is_empty() {
        // No more tokens than bytes, nor than the limit.
        let limit = encoder.setup.limits.doc_max_length;
        let mut tokens = 0;
        let fits = |item: &&Item| {
            tokens += item.text.len().min(limit) + 1;
            tokens <= most
        };
        let (window, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let first = texts.len() - rest.len();
        rest = later;
        let at = |i: usize, e: Error| at(first + i, e);
        let rows: Vec<TokenRows> = encoder.token_rows(window, &layers, pooling, spans, at, &mut progress)?;
        for row in &rows {
            counts.push(row.ids.len());
            cut += usize::from(row.cut);
            sums.iter_mut().zip(&row.layers).for_each(|(sums, rows)| sums.add(rows));
        }
    }
    let tokens: usize = counts.iter().sum();
    let layer = |(layer, sums): (usize, Sums)| sums.means(layer, &counts);
    Ok(Report { texts: texts.len(), tokens, cut, layers: sums.into_iter().enumerate().map(layer).collect() })
}

impl Sums {
    fn means(self, layer: usize, counts: &[usize]) -> Layer {
        let n = |v: usize| v as f64;
        let (tokens, texts) = (n(counts.iter().sum()), n(counts.len()));
        let together: f64 = counts.iter().map(|count| n(*count).powi(2)).sum();
        let same = together - tokens;
        Layer {
            layer,
            tokens: (squared(&self.tokens) - self.within) / (tokens * tokens - together),
            tokens_of_one_text: (same > 0.0).then(|| (self.within - self.ones) / same),
            texts: (squared(&self.texts) - self.text_ones) / (texts * texts - texts),
        }
    }
}
