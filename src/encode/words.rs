//! Sentences of words, and texts of tokens, to rows of any number of layers in one pass: for what is learnt on frozen
//! states, and for what is asked about them.

use crate::encode::Encoder;
use crate::encode::texts::{Empty, Item};
use crate::encode::tokens::{Level, Parts, Passage, Plan, WordPooling};
use crate::error::{Error, Result};
use crate::ops::pool::Pooling;
use crate::text::Prompt;
use crate::text::pack::{Pack, pack};
use rayon::prelude::*;
use std::ops::Range;

/// Which states stand for a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LabelPosition {
    /// Those at its own tokens.
    Same,
    /// Those one token earlier, which MNTP trains to predict it: for words of one and two tokens behind BOS, those at BOS,
    /// and those at the first word and the first half of the second.
    Before,
}

impl LabelPosition {
    /// As the command spells it.
    pub fn name(self) -> &'static str {
        match self {
            LabelPosition::Same => "same",
            LabelPosition::Before => "before",
        }
    }

    /// The positions of a row's states; none where they would begin before the row.
    fn span(self, tokens: Range<usize>) -> Range<usize> {
        match self {
            LabelPosition::Same => tokens,
            LabelPosition::Before if tokens.start == 0 => 0..0,
            LabelPosition::Before => tokens.start - 1..tokens.end - 1,
        }
    }
}

/// How [`Encoder::words`] makes rows.
#[derive(Clone, Debug)]
pub struct WordRows {
    /// The layers, rising: 0 is the embedding, N after block N, of which the model's last has the final norm.
    pub layers: Vec<usize>,
    /// How a word's tokens become one row.
    pub pooling: WordPooling,
    /// Which tokens those are.
    pub position: LabelPosition,
}

/// The rows of a sentence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// The words that have rows, by their places: not those without a token, those that a length limit cut, and, at
    /// [`LabelPosition::Before`], one with nothing before it.
    pub words: Vec<usize>,
    /// For each layer `[n, C]`.
    pub layers: Vec<Vec<f32>>,
    /// Whether a length limit cut the sentence.
    pub cut: bool,
}

/// A text's own tokens, and the rows made from them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRows {
    /// The id of each token.
    pub ids: Vec<u32>,
    /// The bytes of the text that each stands for; those of one character share theirs.
    pub offsets: Vec<Range<usize>>,
    /// For each layer `[n, C]`, a row for each span that was asked for.
    pub layers: Vec<Vec<f32>>,
    /// Whether a length limit cut the text.
    pub cut: bool,
}

struct Job {
    prompt: Prompt,
    spans: Vec<Range<usize>>,
    features: Features,
}

impl Encoder {
    /// The features of each sentence, in order; `at(i, what)` makes the error of sentence `i`, `progress` is told
    /// sentences and tokens.
    pub fn words(
        &mut self,
        sentences: &[Passage],
        rows: &WordRows,
        at: impl Fn(usize, Error) -> Error + Sync,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Features>> {
        let job = |(i, passage): (usize, &Passage)| self.job(*passage, rows).map_err(|e| at(i, e));
        let mut jobs: Vec<Job> = sentences.par_iter().enumerate().map(job).collect::<Result<_>>()?;
        let run: Vec<usize> = (0..jobs.len()).filter(|&i| !jobs[i].spans.is_empty()).collect();
        progress(jobs.len() - run.len(), 0);
        let lengths: Vec<usize> = run.iter().map(|&i| jobs[i].prompt.ids.len()).collect();
        for items in pack(&lengths, self.setup.tokens) {
            let places: Vec<usize> = items.iter().map(|&i| run[i]).collect();
            self.run_layers(&mut jobs, &places, &rows.layers, rows.pooling.of_tokens())?;
            progress(items.len(), items.iter().map(|&i| lengths[i]).sum());
        }
        let finite = |job: &Job| job.features.layers.iter().flatten().all(|v| v.is_finite());
        if let Some(i) = jobs.iter().position(|job| !finite(job)) {
            return Err(at(i, Error::unsupported("a feature is NaN or infinity")));
        }
        Ok(jobs.into_iter().map(|job| job.features).collect())
    }

    /// Rows of each text at each of `layers` (as in [`WordRows`]): `spans(i, offsets)` says which of text `i`'s own tokens
    /// make them, pooled as `pooling` says. A text without a token is an error of `at(i, what)`; `progress` is told texts and
    /// tokens.
    pub fn token_rows(
        &mut self,
        texts: &[Item],
        layers: &[usize],
        pooling: Pooling,
        spans: impl Fn(usize, &[Range<usize>]) -> Result<Vec<Range<usize>>> + Sync,
        at: impl Fn(usize, Error) -> Error + Sync,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<TokenRows>> {
        let parts = Parts {
            level: Level::Token,
            word_pooling: WordPooling::Mean,
            empty: Empty::Error,
            normalize: false,
        };
        let c = self.setup.config.width;
        let job = |(i, item): (usize, &Item)| -> Result<(TokenRows, Job)> {
            let plan = self.plan(Passage { item: *item, words: None }, parts).map_err(|e| at(i, e))?;
            let Plan::Run(prompt, _, offsets) = plan else {
                return Err(at(i, Error::unsupported("a length limit leaves no token of the text")));
            };
            let own = prompt.text.clone();
            let tokens = TokenRows {
                ids: prompt.ids[own.clone()].to_vec(),
                offsets,
                cut: prompt.cut,
                layers: Vec::new(),
            };
            let spans = spans(i, &tokens.offsets).map_err(|e| at(i, e))?;
            if let Some(bad) = spans.iter().find(|s| s.is_empty() || s.end > tokens.ids.len()) {
                let what =
                    format!("tokens {} to {} of {} were asked for", bad.start, bad.end, tokens.ids.len());
                return Err(at(i, Error::unsupported(what)));
            }
            let rows = vec![0.0; spans.len() * c];
            let spans = spans.into_iter().map(|s| s.start + own.start..s.end + own.start).collect();
            let features = Features { layers: vec![rows; layers.len()], ..Features::default() };
            Ok((tokens, Job { prompt, spans, features }))
        };
        let jobs: Vec<(TokenRows, Job)> = texts.par_iter().enumerate().map(job).collect::<Result<_>>()?;
        let (mut rows, mut jobs): (Vec<TokenRows>, Vec<Job>) = jobs.into_iter().unzip();
        let lengths: Vec<usize> = jobs.iter().map(|job| job.prompt.ids.len()).collect();
        for items in pack(&lengths, self.setup.tokens) {
            self.run_layers(&mut jobs, &items, layers, pooling)?;
            progress(items.len(), items.iter().map(|&i| lengths[i]).sum());
        }
        for (i, (rows, job)) in rows.iter_mut().zip(jobs).enumerate() {
            if !job.features.layers.iter().flatten().all(|v| v.is_finite()) {
                return Err(at(i, Error::unsupported("a state is NaN or infinity")));
            }
            rows.layers = job.features.layers;
        }
        Ok(rows)
    }

    fn job(&self, passage: Passage, rows: &WordRows) -> Result<Job> {
        let parts =
            Parts { level: Level::Word, word_pooling: rows.pooling, empty: Empty::Zero, normalize: false };
        let (prompt, spans, cut) = match self.plan(passage, parts)? {
            Plan::Done(block) => (Prompt::default(), Vec::new(), block.cut),
            Plan::Run(prompt, spans, _) => {
                let cut = prompt.cut;
                (prompt, spans, cut)
            }
        };
        let spans = spans.into_iter().enumerate().filter(|(_, span)| !span.is_empty());
        let spans = spans.map(|(word, span)| (word, rows.position.span(span)));
        let (words, spans): (Vec<usize>, Vec<Range<usize>>) =
            spans.filter(|(_, span)| !span.is_empty()).unzip();
        let layer = vec![0.0; words.len() * self.setup.config.width];
        let features = Features { words, layers: vec![layer; rows.layers.len()], cut };
        Ok(Job { prompt, spans, features })
    }

    /// Runs the sentences at `places` as one pack.
    fn run_layers(
        &mut self,
        jobs: &mut [Job],
        places: &[usize],
        layers: &[usize],
        pooling: Pooling,
    ) -> Result<()> {
        let setup = &self.setup;
        let (c, last) = (setup.config.width, setup.config.layers);
        let sequences = places.iter().map(|&i| (jobs[i].prompt.ids.as_slice(), 0..0));
        let pack = Pack::new(sequences);
        let mut targets: Vec<(usize, usize)> = Vec::new();
        let mut spans: Vec<i32> = Vec::new();
        for (&i, &start) in places.iter().zip(&pack.starts) {
            for (row, span) in jobs[i].spans.iter().enumerate() {
                targets.push((i, row));
                spans.extend([start + span.start as i32, start + span.end as i32]);
            }
        }

        let super::Buffers { model, state, pool } = &mut self.buffers;
        // Words that share tokens may be more than the pack has tokens, for which there is room.
        let most = setup.tokens;
        let mut keep = |states: &_, layer: usize| -> Result<()> {
            let Some(which) = layers.iter().position(|l| *l == layer) else { return Ok(()) };
            for (targets, spans) in targets.chunks(most).zip(spans.chunks(2 * most)) {
                let vectors = pool.rows(&setup.device, states, spans, pooling, false)?;
                for (&(i, row), vector) in targets.iter().zip(vectors.chunks_exact(c)) {
                    jobs[i].features.layers[which][row * c..][..c].copy_from_slice(vector);
                }
            }
            Ok(())
        };
        state.set_batch(&pack.ids, &pack.starts)?;
        let normed = !setup.inner;
        model.forward_by_layer(state, None, |states, layer| match layer == last && normed {
            true => Ok(()),
            false => keep(states, layer),
        })?;
        if normed {
            keep(&state.hidden, last)?;
        }
        state.verdict()
    }
}
