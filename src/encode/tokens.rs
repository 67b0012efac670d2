//! Texts to rows of their own tokens or words, and one answer a text: also where some of them have none.

use crate::encode::Encoder;
use crate::encode::texts::{Empty, Item};
use crate::error::{Error, Result, Setting, message};
use crate::ops::pool::Pooling;
use crate::text::Prompt;
use crate::text::pack::{Pack, pack};
use crate::text::prompt::Aligned;
use rayon::prelude::*;
use std::ops::Range;

/// What of a text gets a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Level {
    /// The text: one.
    #[default]
    Text,
    /// Each of its own tokens.
    Token,
    /// Each of its words.
    Word,
}

impl Level {
    /// As the command has it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Text => "text",
            Level::Token => "token",
            Level::Word => "word",
        }
    }
}

/// The vector of a word that has several tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum WordPooling {
    /// Its first token's.
    First,
    /// Its last token's.
    Last,
    /// The average, as in the reference's word tasks.
    Mean,
}

impl WordPooling {
    /// How its tokens' rows are pooled.
    pub(super) fn of_tokens(self) -> Pooling {
        match self {
            WordPooling::First => Pooling::First,
            WordPooling::Last => Pooling::Last,
            WordPooling::Mean => Pooling::Mean,
        }
    }
}

/// How [`Encoder::tokens`] makes rows.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Rows of what.
    pub level: Level,
    /// How a word's tokens become one row.
    pub word_pooling: WordPooling,
    /// What a text, or a word, without a token gives.
    pub empty: Empty,
    /// Scale the rows of tokens and words to unit length; a text's vector is as the encoder's options say.
    pub normalize: bool,
}

/// A text, and where its words stand in it.
#[derive(Clone, Copy)]
pub struct Passage<'a> {
    /// Text and instruction.
    pub item: Item<'a>,
    /// The bytes of each word, in order; `None` splits the text at white space.
    pub words: Option<&'a [Range<usize>]>,
}

/// The rows of one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// `[n, C]` one row per token or word, in order; of a text its vector alone.
    pub vectors: Vec<f32>,
    /// `[n]` the bytes of the text that each row stands for; of a text none. Tokens may share bytes, as the pieces of one
    /// character do, and a token's bytes may begin with the space before it.
    pub offsets: Vec<Range<usize>>,
    /// Whether a length limit cut the text: the rows are then those of the tokens, or of the whole words, that were left.
    pub cut: bool,
}

/// What is to be done for a text.
pub(super) enum Plan {
    /// Nothing: these rows follow without the model.
    Done(Block),
    /// A row of ids, which positions of it are pooled for each row, and what each row stands for.
    Run(Prompt, Vec<Range<usize>>, Vec<Range<usize>>),
}

/// A text whose row is run.
struct Job {
    /// Which of the texts.
    place: usize,
    prompt: Prompt,
    spans: Vec<Range<usize>>,
    /// Its rows, to be filled.
    block: Block,
}

impl Encoder {
    /// One answer per text, in order: its rows, or what is wrong with it. An error of the whole is the device's.
    ///
    /// Rows are the states of the layer that the options name, at the text's own tokens: none of BOS, instruction, prompt
    /// and template. Modules that follow the pooling of a sentence-transformers model (Dense, truncation) are not applied
    /// to tokens and words, whose rows are C wide. `progress` is told texts and tokens.
    ///
    /// A word has the tokens that share a byte with it, so a token over two words belongs to both. Of a cut text, the words
    /// that have lost a token are left out, and so are those behind them.
    pub fn tokens(
        &mut self,
        passages: &[Passage],
        parts: Parts,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Result<Block>>> {
        let plans: Vec<Result<Plan>> =
            passages.par_iter().map(|passage| self.plan(*passage, parts)).collect();
        let c = self.row_width(parts.level);
        let (mut answers, mut jobs) = (Vec::new(), Vec::new());
        for (place, plan) in plans.into_iter().enumerate() {
            answers.push(match plan {
                Ok(Plan::Run(prompt, spans, offsets)) => {
                    let rows = if parts.level == Level::Text { 1 } else { spans.len() };
                    let block = Block { vectors: vec![0.0; rows * c], offsets, cut: prompt.cut };
                    jobs.push(Job { place, prompt, spans, block });
                    Ok(Block::default())
                }
                Ok(Plan::Done(block)) => {
                    progress(1, 0);
                    Ok(block)
                }
                Err(wrong) => Err(wrong),
            });
        }

        match parts.level {
            Level::Text => self.run_texts(&mut jobs, &mut progress)?,
            Level::Token | Level::Word => self.run_parts(&mut jobs, parts, &mut progress)?,
        }
        for Job { place, block, .. } in jobs {
            answers[place] = match block.vectors.iter().all(|v| v.is_finite()) {
                true => Ok(block),
                false => Err(Error::unsupported("the vector holds NaN or infinity")),
            };
        }
        Ok(answers)
    }

    /// The numbers in a row of this level.
    pub fn row_width(&self, level: Level) -> usize {
        if level == Level::Text { self.width() } else { self.setup.config.width }
    }

    pub(super) fn plan(&self, Passage { item, words }: Passage, parts: Parts) -> Result<Plan> {
        if parts.level == Level::Text {
            let zeros = || Block { vectors: vec![0.0; self.width()], ..Block::default() };
            let prompt = self.prompt_to_pool(item, parts.empty)?;
            return Ok(match prompt {
                Some(prompt) => Plan::Run(prompt, Vec::new(), Vec::new()),
                None => Plan::Done(zeros()),
            });
        }
        let Aligned { prompt, tokens, lost } = self.setup.prompter.aligned(item.instruction, item.text)?;
        self.setup.config.check_ids(prompt.ids.iter().map(|&id| id.into()))?;
        let first = prompt.text.start;
        let (spans, offsets) = if parts.level == Level::Token {
            ((0..tokens.len()).map(|t| t..t + 1).collect(), tokens)
        } else {
            let split = words.is_none().then(|| split(item.text));
            let words = split.as_deref().or(words).unwrap_or_default();
            let whole = words.iter().take_while(|word| lost.is_none_or(|lost| word.end <= lost)).count();
            (word_spans(&words[..whole], &tokens), words[..whole].to_vec())
        };
        if parts.empty == Empty::Error {
            let refused =
                |what: String| Err(Error::usage(message![what, Setting::Empty, " zero lets it pass"]));
            if spans.is_empty() && !prompt.cut {
                return refused("an empty text has no token; ".into());
            }
            if let Some(w) = spans.iter().position(Range::is_empty) {
                return refused(format!("word {} has no token; ", w + 1));
            }
        }
        if spans.iter().all(Range::is_empty) {
            let vectors = vec![0.0; spans.len() * self.setup.config.width];
            return Ok(Plan::Done(Block { vectors, offsets, cut: prompt.cut }));
        }
        let spans = spans.into_iter().map(|s| s.start + first..s.end + first).collect();
        Ok(Plan::Run(prompt, spans, offsets))
    }

    fn run_texts(&mut self, jobs: &mut [Job], progress: &mut impl FnMut(usize, usize)) -> Result<()> {
        let c = self.width();
        let prompts: Vec<Prompt> = jobs.iter_mut().map(|job| std::mem::take(&mut job.prompt)).collect();
        let mut rows = vec![0.0; prompts.len() * c];
        self.encode(&prompts, &mut rows, progress)?;
        for (job, row) in jobs.iter_mut().zip(rows.chunks_exact(c)) {
            job.block.vectors.copy_from_slice(row);
        }
        Ok(())
    }

    fn run_parts(
        &mut self,
        jobs: &mut [Job],
        parts: Parts,
        progress: &mut impl FnMut(usize, usize),
    ) -> Result<()> {
        let c = self.setup.config.width;
        let pooling =
            if parts.level == Level::Token { Pooling::First } else { parts.word_pooling.of_tokens() };
        let lengths: Vec<usize> = jobs.iter().map(|job| job.prompt.ids.len()).collect();
        for items in pack(&lengths, self.setup.tokens) {
            let sequences = items.iter().map(|&i| (jobs[i].prompt.ids.as_slice(), 0..lengths[i]));
            let pack = Pack::new(sequences);
            let super::Buffers { model, state, .. } = &mut self.buffers;
            state.set_batch(&pack.ids, &pack.starts)?;
            model.forward(state, None)?;
            state.verdict()?;

            // Where each row goes, and the positions of the pack that it is made from.
            let mut rows: Vec<(usize, usize)> = Vec::new();
            let mut spans: Vec<i32> = Vec::new();
            for (&i, &start) in items.iter().zip(&pack.starts) {
                for (row, span) in jobs[i].spans.iter().enumerate().filter(|(_, span)| !span.is_empty()) {
                    rows.push((i, row));
                    spans.extend([start + span.start as i32, start + span.end as i32]);
                }
            }
            // Words that share tokens may be more than the pack has tokens, for which there is room.
            let most = self.setup.tokens;
            for (rows, spans) in rows.chunks(most).zip(spans.chunks(2 * most)) {
                let vectors = self.buffers.pool(&self.setup, spans, pooling, parts.normalize)?;
                for (&(i, row), vector) in rows.iter().zip(vectors.chunks_exact(c)) {
                    jobs[i].block.vectors[row * c..][..c].copy_from_slice(vector);
                }
            }
            progress(items.len(), items.iter().map(|&i| lengths[i]).sum());
        }
        Ok(())
    }
}

/// The bytes of each word of a text, between white space.
fn split(text: &str) -> Vec<Range<usize>> {
    let place = |word: &str| {
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        start..start + word.len()
    };
    text.split_whitespace().map(place).collect()
}

/// The tokens of each word, empty for a word without one. The offsets of tokens rise, but for the pieces of one character,
/// which share theirs.
fn word_spans(words: &[Range<usize>], tokens: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut first = 0;
    let span = |word: &Range<usize>| {
        // What ends before this word belongs to no later one either.
        first += tokens[first..].iter().take_while(|t| t.end <= word.start).count();
        let shared = |t: &&Range<usize>| t.start < word.end && t.end > word.start;
        let count = if word.is_empty() { 0 } else { tokens[first..].iter().take_while(shared).count() };
        first..first + count
    };
    words.iter().map(span).collect()
}
