//! Text to packed token ids: tokenizer, templates, the span to pool, packs. Knows no model and no device.

pub mod pack;
pub mod prompt;
pub mod reference;
pub mod template;
pub mod tokenizer;

use std::ops::Range;

/// Lengths in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the whole row: specials, template, instruction, text.
    pub max_length: usize,
    /// Of the text itself.
    pub doc_max_length: usize,
}

/// A row of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Specials, template, instruction and text.
    pub ids: Vec<u32>,
    /// The positions that are the text's own; empty if it has no token.
    pub text: Range<usize>,
    /// All positions, but for those of a prompt that is not to be pooled.
    pub all: Range<usize>,
    /// Whether a limit cut the text.
    pub cut: bool,
}
