//! From instruction and text to a row of ids and the span that is the text's own.

use crate::error::{Error, Result};
use crate::text::reference;
use crate::text::template::{NONE, Template};
use crate::text::tokenizer::{Encoded, Tokenizer};
use std::ops::Range;

/// Lengths in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the whole row: specials, template, instruction, text.
    pub max_length: usize,
    /// Of the text itself.
    pub doc_max_length: usize,
}

/// Whose rules decide about ids and span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// Ours: spans from token offsets, cuts between characters.
    Default,
    /// The reference implementation's, quirks included ([`reference`]).
    Reference,
}

/// A row of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Specials, template, instruction and text.
    pub ids: Vec<u32>,
    /// The positions that are the text's own; empty if it has no token.
    pub text: Range<usize>,
    /// Whether a limit cut the text.
    pub cut: bool,
}

/// Tokens (and bytes) beside a cut whose neighbours could have changed them.
const SPARE: usize = 64;
/// Bytes to look at for each token wanted; where that is too few, the whole text is tokenised.
const BYTES_OF_A_TOKEN: usize = 16;

/// Turns texts into prompts.
pub struct Prompter {
    tokenizer: Tokenizer,
    template: Template,
    limits: Limits,
    eos: Option<u32>,
    compat: Compat,
    reference_eos: &'static str,
}

impl Prompter {
    /// `append_eos` is for EOS pooling; `reference_eos` is what the reference appends then ([`reference::eos_text`]).
    pub fn new(
        tokenizer: Tokenizer,
        template: Template,
        limits: Limits,
        append_eos: bool,
        compat: Compat,
        reference_eos: &'static str,
    ) -> Result<Prompter> {
        let eos = append_eos.then(|| tokenizer.eos_id()).flatten();
        if append_eos && eos.is_none() {
            let what = "EOS pooling: tokenizer_config.json names no eos_token that the tokenizer has; use --pooling last";
            return Err(Error::Unsupported(what.into()));
        }
        Ok(Prompter { tokenizer, template, limits, eos, compat, reference_eos })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The row for `text` under `instruction` (which may be empty).
    pub fn prompt(&self, instruction: &str, text: &str) -> Result<Prompt> {
        if self.compat == Compat::Reference {
            let eos = self.eos.map(|_| self.reference_eos);
            return reference::prompt(&self.tokenizer, self.template, self.limits, eos, instruction, text);
        }
        let instruction = instruction.trim();
        let text = if self.template == NONE { text } else { text.trim() };
        let mut full = self.template.prefix.to_string();
        if !instruction.is_empty() {
            full.push_str(instruction);
            full.push(' ');
        }
        let from = full.len();
        if let Some((head, tail)) = self.ends(text) {
            let row = self.tokenizer.encode(&[&full, head, tail, self.template.suffix].concat(), true)?;
            let whole = (0..row.ids.len()).filter(|&i| row.offsets[i].1 <= from + head.len()).count();
            // What precedes the text counts too; it is the text's head that must have tokens to spare.
            let before = (0..row.ids.len()).filter(|&i| row.offsets[i].1 <= from).count();
            if whole - before >= self.most() + SPARE {
                return self.cut(row, from..from + head.len() + tail.len());
            }
        }
        full.push_str(text);
        full.push_str(self.template.suffix);
        let row = self.tokenizer.encode(&full, true)?;
        self.cut(row, from..from + text.len())
    }

    /// The most tokens of a text that can be kept.
    fn most(&self) -> usize {
        self.limits.max_length.min(self.limits.doc_max_length)
    }

    /// The ends of a text so long that its middle is certain to be cut: the middle need not be tokenised then, since
    /// merges reach a few characters far. A line of 10 MB costs what one of 20 kB does.
    fn ends<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        let boundary = |n: usize| (n..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
        let head = boundary((self.most() + SPARE).saturating_mul(BYTES_OF_A_TOKEN));
        let tail = boundary(text.len().saturating_sub(SPARE));
        (head < tail).then(|| (&text[..head], &text[tail..]))
    }

    /// Finds the text's tokens, and takes the last of them out until both limits are met.
    fn cut(&self, mut row: Encoded, bytes: Range<usize>) -> Result<Prompt> {
        let own =
            |i: usize| !row.special[i] && row.offsets[i].0 < bytes.end && row.offsets[i].1 > bytes.start;
        // An EOS that is the text's own may be cut off.
        let closed = |eos| row.ids.last() == Some(&eos) && !own(row.ids.len() - 1);
        let eos = self.eos.filter(|&eos| !closed(eos));
        let first = (0..row.ids.len()).find(|&i| own(i)).unwrap_or(0);
        let count = (first..row.ids.len()).take_while(|&i| own(i)).count();
        let around = row.ids.len() - count + usize::from(eos.is_some());
        let room = self.limits.max_length.saturating_sub(around);
        if room == 0 && count > 0 {
            return Err(Error::Usage(format!(
                "instruction and template take {around} tokens; --max-length {} leaves none for the text",
                self.limits.max_length
            )));
        }
        let kept = whole_characters(&row.offsets[first..first + count], room.min(self.limits.doc_max_length));
        row.ids.drain(first + kept..first + count);
        row.ids.extend(eos);
        Ok(Prompt { ids: row.ids, text: first..first + kept, cut: kept < count })
    }
}

/// At most `most` tokens, fewer if that would end inside a character: the pieces of one character share their bytes.
fn whole_characters(offsets: &[(usize, usize)], most: usize) -> usize {
    if offsets.len() <= most {
        return offsets.len();
    }
    let splits = |n: usize| offsets[n].0 < offsets[n - 1].1;
    (1..=most).rev().find(|&n| !splits(n)).unwrap_or(most)
}
