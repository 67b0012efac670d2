//! Texts to vectors, whatever they come from: the one path of `encode` and of every evaluation.

use crate::encode::Encoder;
use crate::error::{Error, Message, Result, Setting, message};
use crate::text::Prompt;
use rayon::prelude::*;

/// What a text with nothing to pool gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Empty {
    /// An error that names its place.
    Error,
    /// A vector of zeros.
    Zero,
}

/// A text and the instruction it is read under (which may be empty).
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// The instruction.
    pub instruction: &'a str,
    /// The text.
    pub text: &'a str,
}

/// The vectors of a list of texts.
pub struct Rows {
    /// One row `[C]` per text, in order.
    pub vectors: Vec<f32>,
    /// Texts that a length limit cut.
    pub cut: u64,
}

impl Encoder {
    /// A vector for each text, in order, without instructions. An error names the text by its number.
    pub fn embed(&mut self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let items: Vec<Item> = texts.iter().map(|text| Item { instruction: "", text }).collect();
        let at = |i: usize, what: Message| Error::usage(message![format!("text {i}: "), what]);
        let rows = self.texts(&items, Empty::Error, at, |_, _| {})?;
        Ok(rows.vectors.chunks_exact(self.width()).map(<[f32]>::to_vec).collect())
    }

    /// One finite vector per item; `at(i, what)` makes the error of item `i`, `progress` is told texts and tokens.
    pub fn texts(
        &mut self,
        items: &[Item],
        empty: Empty,
        at: impl Fn(usize, Message) -> Error + Sync,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Rows> {
        let prompts = items
            .par_iter()
            .enumerate()
            .map(|(i, item)| self.prompt_to_pool(*item, empty).map_err(|e| at(i, e.message())));
        let prompts: Vec<Option<Prompt>> = prompts.collect::<Result<_>>()?;
        let places: Vec<usize> = (0..prompts.len()).filter(|&i| prompts[i].is_some()).collect();
        let prompts: Vec<Prompt> = prompts.into_iter().flatten().collect();

        let c = self.width();
        let mut vectors = vec![0.0; prompts.len() * c];
        self.encode(&prompts, &mut vectors, &mut progress)?;
        let cut = prompts.iter().filter(|p| p.cut).count() as u64;
        if let Some(bad) = vectors.iter().position(|v| !v.is_finite()) {
            return Err(at(places[bad / c], "the vector holds NaN or infinity".into()));
        }
        if places.len() == items.len() {
            return Ok(Rows { vectors, cut });
        }
        progress(items.len() - places.len(), 0);
        let mut rows = vec![0.0; items.len() * c];
        for (vector, &i) in vectors.chunks_exact(c).zip(&places) {
            rows[i * c..][..c].copy_from_slice(vector);
        }
        Ok(Rows { vectors: rows, cut })
    }

    /// The prompt of a text; `None` for one that has nothing to pool and may.
    pub(super) fn prompt_to_pool(&self, item: Item, empty: Empty) -> Result<Option<Prompt>> {
        let prompt = self.prompt(item.instruction, item.text)?;
        let nothing = item.text.is_empty() || prompt.text.is_empty();
        if nothing && empty == Empty::Error {
            let (what, zeros) = ("an empty text has nothing to pool; ", " zero gives it a vector of zeros");
            return Err(Error::usage(message![what, Setting::Empty, zeros]));
        }
        Ok((!nothing).then_some(prompt))
    }
}
