//! From instruction and text to a row of ids and the span that is the text's own.

use crate::error::{Error, Result, Setting, message};
use crate::text::reference;
use crate::text::template::{NONE, Template};
use crate::text::tokenizer::{Encoded, Tokenizer};
use crate::text::{Limits, Prompt};
use std::ops::Range;

/// Whose rules decide about ids and span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Compat {
    #[cfg_attr(feature = "cli", value(skip))]
    /// Ours: spans from token offsets, cuts between characters.
    Default,
    /// The reference implementation's, quirks included ([`reference`](mod@crate::text::reference)).
    Reference,
    #[cfg_attr(feature = "cli", value(skip))]
    /// sentence-transformers': prompt and text as one string, cut between tokens whatever they stand for.
    SentenceTransformers,
}

/// How a row is put together.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What stands around instruction and text.
    pub template: Template,
    /// Lengths.
    pub limits: Limits,
    /// For EOS pooling: where the tokenizer appends none, an EOS is appended.
    pub append_eos: bool,
    /// What the reference appends then ([`reference::eos_text`]).
    pub reference_eos: &'static str,
    /// Whose rules.
    pub compat: Compat,
    /// In front of a text without an instruction, as it is; may be empty.
    pub prompt: String,
    /// Whether the tokens of prompt or instruction are pooled where all are.
    pub pool_prompt: bool,
}

/// A row of ids, and where the text's own tokens stand in the text.
pub struct Aligned {
    /// The row.
    pub prompt: Prompt,
    /// The bytes of the text that each of its tokens stands for: as many ranges as `Prompt::text` has positions. Tokens may
    /// share bytes, as the pieces of one character do.
    pub tokens: Vec<Range<usize>>,
    /// Of a cut text, where the first token begins that is not in the row.
    pub lost: Option<usize>,
}

/// As the tokenizer gives them.
type Offsets = Vec<(usize, usize)>;

/// Turns texts into prompts.
pub struct Prompter {
    tokenizer: Tokenizer,
    rules: Rules,
    eos: Option<u32>,
}

impl Prompter {
    /// Errors if an EOS is to be appended and the tokenizer has none.
    pub fn new(tokenizer: Tokenizer, rules: Rules) -> Result<Prompter> {
        let eos = rules.append_eos.then(|| tokenizer.eos_id()).flatten();
        if rules.append_eos && eos.is_none() {
            let what = "EOS pooling: tokenizer_config.json names no eos_token that the tokenizer has; use ";
            return Err(Error::unsupported(message![what, Setting::Pooling, " last"]));
        }
        Ok(Prompter { tokenizer, rules, eos })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The row for `text` under `instruction` (which may be empty).
    pub fn prompt(&self, instruction: &str, text: &str) -> Result<Prompt> {
        let Rules { template, limits, compat, .. } = self.rules;
        if compat == Compat::Reference {
            let eos = self.eos.map(|_| self.rules.reference_eos);
            return reference::prompt(&self.tokenizer, template, limits, eos, instruction, text);
        }
        self.aligned(instruction, text).map(|row| row.prompt)
    }

    /// Likewise, with the places of its tokens in `text`.
    pub fn aligned(&self, instruction: &str, text: &str) -> Result<Aligned> {
        let Rules { template, limits, compat, .. } = self.rules;
        if compat == Compat::Reference {
            let what = " reference counts a text's tokens without knowing where they stand; leave it out";
            return Err(Error::unsupported(message![Setting::Compat, what]));
        }
        let trimmed = if template == NONE { 0 } else { text.len() - text.trim_start().len() };
        let instruction = instruction.trim();
        let text = if template == NONE { text } else { text.trim() };
        let mut full = template.prefix.to_string();
        match instruction {
            "" => full.push_str(&self.rules.prompt),
            given => full.extend([given, " "]),
        }
        let before = if self.rules.pool_prompt { 0 } else { self.prompt_tokens(&full)? };
        // A tokenizer takes a hundred times the memory of its text: of a long one, the middle is certain to be cut.
        let (start, most) = (full.len(), limits.doc_max_length.min(limits.max_length));
        let mut bytes = most.saturating_mul(32).saturating_add(HEAD_BYTES);
        loop {
            let (head, tail) = ends(text, bytes);
            full.truncate(start);
            [head, tail, template.suffix].iter().for_each(|part| full.push_str(part));
            let row = self.tokenizer.encode(&full, true)?;
            let in_head = |o: &&(usize, usize)| o.1 > start && o.1 <= start + head.len();
            if tail.is_empty() || row.offsets.iter().filter(in_head).count() >= most + SPARE_TOKENS {
                let bytes = start..start + head.len() + tail.len();
                let place = |at: usize| at.clamp(bytes.start, bytes.end) - bytes.start + trimmed;
                let (mut prompt, offsets, lost) = self.cut(row, bytes.clone())?;
                prompt.all.start = before.min(prompt.ids.len());
                let tokens = offsets.into_iter().map(|(from, to)| place(from)..place(to)).collect();
                return Ok(Aligned { prompt, tokens, lost: lost.map(place) });
            }
            bytes = bytes.saturating_mul(4);
        }
    }

    /// Tokens that `prompt` takes at the front of a row, as sentence-transformers counts them: those of the prompt alone,
    /// without a special token at their end.
    fn prompt_tokens(&self, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let row = self.tokenizer.encode(prompt, true)?;
        let closed = row.ids.last().is_some_and(|&id| self.tokenizer.is_special(id));
        Ok(row.ids.len() - usize::from(closed))
    }

    /// Finds the text's tokens, and takes the last of them out until both limits are met; with the offsets of those that
    /// stay, and where the first that does not would begin.
    fn cut(&self, mut row: Encoded, bytes: Range<usize>) -> Result<(Prompt, Offsets, Option<usize>)> {
        let own =
            |i: usize| !row.special[i] && row.offsets[i].0 < bytes.end && row.offsets[i].1 > bytes.start;
        // An EOS that is the text's own may be cut off.
        let closed = |eos| row.ids.last() == Some(&eos) && !own(row.ids.len() - 1);
        let eos = self.eos.filter(|&eos| !closed(eos));
        let first = (0..row.ids.len()).find(|&i| own(i)).unwrap_or(0);
        let count = (first..row.ids.len()).take_while(|&i| own(i)).count();
        let around = row.ids.len() - count + usize::from(eos.is_some());
        let limits = self.rules.limits;
        let room = limits.max_length.saturating_sub(around);
        if room == 0 && count > 0 {
            return Err(Error::usage(message![
                format!("instruction and template take {around} tokens; "),
                Setting::MaxLength,
                format!(" {} leaves none for the text", limits.max_length)
            ]));
        }
        let most = room.min(limits.doc_max_length);
        let kept = match self.rules.compat {
            Compat::SentenceTransformers => count.min(most),
            _ => whole_characters(&row.offsets[first..first + count], most),
        };
        let offsets = row.offsets[first..first + kept].to_vec();
        let lost = (kept < count).then(|| row.offsets[first + kept].0);
        row.ids.drain(first + kept..first + count);
        row.ids.extend(eos);
        let all = 0..row.ids.len();
        let prompt = Prompt { ids: row.ids, text: first..first + kept, all, cut: lost.is_some() };
        Ok((prompt, offsets, lost))
    }
}

/// Bytes of a text to begin with, above what the limits may take.
const HEAD_BYTES: usize = 16 << 10;

/// Bytes at the end of a text, which may share a token with the template behind it.
const TAIL_BYTES: usize = 256;

/// Tokens left between those that are kept and the end of the head, where a token may be another than in the whole text.
const SPARE_TOKENS: usize = 1024;

/// A head of about `bytes` and a tail of a long text, whole characters; all of a shorter one, and no tail.
fn ends(text: &str, bytes: usize) -> (&str, &str) {
    let boundary = |n: usize| (n..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let (head, tail) = (boundary(bytes), boundary(text.len().saturating_sub(TAIL_BYTES)));
    if head < tail { (&text[..head], &text[tail..]) } else { (text, "") }
}

/// At most `most` tokens, fewer if that would end inside a character: the pieces of one character share their bytes.
fn whole_characters(offsets: &[(usize, usize)], most: usize) -> usize {
    if offsets.len() <= most {
        return offsets.len();
    }
    let splits = |n: usize| offsets[n].0 < offsets[n - 1].1;
    (1..=most).rev().find(|&n| !splits(n)).unwrap_or(most)
}
