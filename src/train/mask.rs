//! Masked next-token prediction: which tokens are hidden, what stands in their place, which row predicts them.
//!
//! A draw depends on seed, step, block and position alone (Philox), so masks are equal at resume, on every device and in
//! batches of any size.

use crate::error::{Error, Result};
use crate::rng::philox;
use crate::text::tokenizer::Tokenizer;
use crate::train::blocks::Block;
use serde::{Deserialize, Serialize};

/// What becomes of a chosen token. The names are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Strategy {
    /// BERT's: 80 % the mask token, 10 % a random id, 10 % left as it is.
    #[serde(rename = "default")]
    #[cfg_attr(feature = "cli", value(alias = "default"))]
    Bert,
    /// Always the mask token.
    #[serde(rename = "all_mask")]
    #[cfg_attr(feature = "cli", value(name = "all", alias = "all_mask"))]
    AllMask,
}

/// Which token hides another. The names are the reference's, and `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum MaskToken {
    /// The tokenizer's own mask token where it has one, else `_`.
    Auto,
    /// `_`
    Blank,
    /// The end-of-text token.
    Eos,
    /// `<mask>`, which must be in the vocabulary.
    Mask,
}

impl MaskToken {
    /// Its id.
    pub fn id(self, tokenizer: &Tokenizer) -> Result<u32> {
        let (id, what) = match self {
            MaskToken::Auto => {
                (tokenizer.mask_id().or_else(|| tokenizer.token_id("_")), "a mask token nor `_`")
            }
            MaskToken::Blank => (tokenizer.token_id("_"), "the token `_`"),
            MaskToken::Eos => (tokenizer.eos_id(), "an eos_token"),
            MaskToken::Mask => {
                (tokenizer.mask_id().or_else(|| tokenizer.token_id("<mask>")), "the token `<mask>`")
            }
        };
        let name = format!("{self:?}").to_lowercase();
        id.ok_or_else(|| {
            let hint = "expected one of auto, blank, eos, mask that the vocabulary has (none is added to it)";
            Error::unsupported(format!("mask token `{name}`: the tokenizer has not {what}; {hint}"))
        })
    }
}

/// What a draw of masks is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// A training step: other masks at every step.
    Step(u64),
    /// Evaluation: the same masks every time.
    Evaluation,
}

/// How tokens are masked.
#[derive(Clone, Copy, Debug)]
pub struct Masking {
    /// Of every token that is not special, independently.
    pub probability: f64,
    /// What becomes of it.
    pub strategy: Strategy,
    /// The mask token.
    pub mask: u32,
    /// Random ids are below this: the tokenizer's size, at most the model's.
    pub vocab: u32,
    /// Seed of the run.
    pub seed: u64,
}

/// A pack of sequences with hidden tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    /// `[N]` what the model sees.
    pub ids: Vec<i32>,
    /// [B+1] where its sequences start, and N.
    pub starts: Vec<i32>,
    /// `[M]` rows whose hidden state predicts: the row *before* each hidden token.
    pub rows: Vec<i32>,
    /// `[M]` the token that was there. A hidden token that starts a sequence has no row before it and no label.
    pub labels: Vec<i32>,
}

/// The last word of the counters, apart from those of dropout.
const TRAINING: u32 = 0x4d41_534b;
const EVALUATION: u32 = 0x4d41_534c;

impl Masking {
    /// Masks blocks side by side. `first` is the number of the first block: in its step when training, in the corpus
    /// when evaluating.
    ///
    /// A small batch may come back without a label; its loss is a mean over nothing.
    pub fn apply(&self, draw: Draw, first: usize, blocks: &[Block]) -> Masked {
        let mut masked = Masked { starts: vec![0], ..Masked::default() };
        for (i, block) in blocks.iter().enumerate() {
            let from = masked.ids.len();
            masked.starts.extend(block.starts.iter().skip(1).map(|&s| (from + s) as i32));
            for (position, &id) in block.ids.iter().enumerate() {
                let hidden = match block.special[position] {
                    true => None,
                    false => self.hide(draw, first + i, position, id),
                };
                if hidden.is_some() && block.starts.binary_search(&position).is_err() {
                    masked.rows.push((from + position - 1) as i32);
                    masked.labels.push(id as i32);
                }
                masked.ids.push(hidden.unwrap_or(id) as i32);
            }
            masked.starts.push(masked.ids.len() as i32);
        }
        masked
    }

    /// What stands in the place of a token, if it is chosen.
    fn hide(&self, draw: Draw, block: usize, position: usize, id: u32) -> Option<u32> {
        let (step, kind) = match draw {
            Draw::Step(step) => (step, TRAINING),
            Draw::Evaluation => (0, EVALUATION),
        };
        let counter = [position as u32, block as u32, step as u32, kind ^ ((step >> 32) as u32)];
        let words = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let below = |word: u32, p: f64| f64::from(word) < p * 4_294_967_296.0;
        if !below(words[0], self.probability) {
            return None;
        }
        Some(match self.strategy {
            Strategy::AllMask => self.mask,
            Strategy::Bert if below(words[1], 0.8) => self.mask,
            Strategy::Bert if below(words[1], 0.9) => {
                let word = u64::from(words[2]) << 32 | u64::from(words[3]);
                ((u128::from(word) * u128::from(self.vocab)) >> 64) as u32
            }
            Strategy::Bert => id,
        })
    }
}
