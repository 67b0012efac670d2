//! Layer by layer and token by token, how alike the states of one text are under two masks (figures 5, 8 and 9 of the paper):
//! a model whose states hardly change without a causal mask has learnt to do without one.

use crate::encode::Encoder;
use crate::encode::texts::Item;
use crate::encode::words::TokenRows;
use crate::error::{Error, Result};
use crate::eval::similarity::cosine;
use crate::ops::pool::Pooling;
use serde::Serialize;

/// The cosines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The text's tokens as they stand in it.
    pub tokens: Vec<String>,
    /// The layers: 0 is the embedding, the last has the final norm.
    pub layers: Vec<usize>,
    /// A row for each layer, a column for each token.
    pub similarity: Vec<Vec<f64>>,
    /// Over the tokens.
    pub mean_by_layer: Vec<f64>,
    /// Over the tokens and the layers, the embedding left out: it knows no mask.
    pub mean: f64,
    /// Whether a length limit cut the text.
    pub cut: bool,
}

/// The states of every token of a text at every layer, under the encoder's mask.
pub fn states(
    encoder: &mut Encoder,
    text: &str,
    instruction: &str,
    progress: impl FnMut(usize, usize),
) -> Result<TokenRows> {
    let layers: Vec<usize> = (0..=encoder.setup.config.layers).collect();
    let each = |_: usize, tokens: &[_]| Ok((0..tokens.len()).map(|t| t..t + 1).collect());
    let items = [Item { instruction, text }];
    let rows = encoder.token_rows(&items, &layers, Pooling::First, each, |_, e| e, progress)?;
    rows.into_iter().next().ok_or_else(|| Error::unsupported("a text gave no rows"))
}

/// Compares the states of one text under two masks.
pub fn compare(text: &str, one: &TokenRows, other: &TokenRows, width: usize) -> Report {
    let row = |(one, other): (&Vec<f32>, &Vec<f32>)| -> Vec<f64> {
        one.chunks_exact(width).zip(other.chunks_exact(width)).map(|(a, b)| cosine(a, b)).collect()
    };
    let similarity: Vec<Vec<f64>> = one.layers.iter().zip(&other.layers).map(row).collect();
    let mean = |row: &[f64]| row.iter().sum::<f64>() / row.len().max(1) as f64;
    let mean_by_layer: Vec<f64> = similarity.iter().map(|row| mean(row)).collect();
    let shown =
        |bytes: &std::ops::Range<usize>| String::from_utf8_lossy(&text.as_bytes()[bytes.clone()]).into();
    Report {
        tokens: one.offsets.iter().map(shown).collect(),
        layers: (0..similarity.len()).collect(),
        mean: mean(mean_by_layer.get(1..).unwrap_or_default()),
        mean_by_layer,
        similarity,
        cut: one.cut,
    }
}
