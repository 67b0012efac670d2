//! What a stage feeds the learner: its data, and the batch that a step makes of it.

use crate::device::Device;
use crate::error::{Error, Message, Result, Setting, message};
use crate::memory::Arena;
use crate::model::config::Config;
use crate::model::llama::Noise;
use crate::ops::contrastive::InfoNce;
use crate::pretrained::open::Setup;
use crate::train::blocks::Blocks;
use crate::train::config::{Stage, TrainConfig};
use crate::train::contrastive::{Batch, Contrastive, Rule, Sequence};
use crate::train::data::{Batches, Batching, Position, Texts, Triple, Triples};
use crate::train::instructions::Instructions;
use crate::train::learner::Learner;
use crate::train::mask::{Draw, Masking};
use crate::train::mntp::{Mntp, Outcome};
use crate::train::rows::Report;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The data of a stage, batch by batch.
pub enum Feed {
    /// Token blocks to mask.
    Mntp {
        /// Blocks.
        batches: Batches<Blocks>,
        /// How they are masked.
        masking: Masking,
    },
    /// Texts, each its own positive.
    Simcse(Batches<Texts>),
    /// Queries with positives and negatives.
    Supervised(Batches<Triples>),
}

/// Buffers of the stage's loss.
#[allow(clippy::large_enum_variant)] // a run has one
pub enum Loss {
    /// Cross-entropy at masked tokens.
    Mntp(Mntp),
    /// InfoNCE.
    Contrastive(Contrastive),
}

impl Feed {
    /// Opens the data of `config`; also gives lines to show: what was found, what was left out.
    pub fn open(config: &TrainConfig, setup: &Setup) -> Result<(Feed, Vec<Message>)> {
        let Some(data) = config.data() else {
            let give = match config.downloaded() {
                Some(name) => {
                    format!("dataset_name {name:?} is not downloaded: give its text in a file, by ")
                }
                None => "no training data: give ".into(),
            };
            let or = " (or train_file, dataset_file_path in the configuration)";
            return Err(Error::usage(message![give, Setting::TrainFile, or]));
        };
        let (feed, mut lines) = Feed::read(config, setup, Path::new(data))?;
        let line = |name| {
            format!("warning: dataset_name {name:?} is not downloaded: {data} is read in its place").into()
        };
        lines.splice(0..0, config.downloaded().map(line));
        Ok((feed, lines))
    }

    fn read(config: &TrainConfig, setup: &Setup, data: &Path) -> Result<(Feed, Vec<Message>)> {
        let size = config.per_device_train_batch_size;
        let least = if config.stage == Stage::Mntp { 1 } else { 2.min(size) };
        let whole = config.stage == Stage::Supervised || config.dataloader_drop_last;
        let batching = Batching {
            size,
            smallest: if whole { size } else { least },
            same_set: config.stage == Stage::Supervised,
        };
        let column = config.text_column.as_deref();
        match config.stage {
            Stage::Mntp => {
                let mut texts = Texts::lines_in(data, column, config.strict)?;
                let mut lines = found("data", texts.report());
                let blocks = blocks(&mut texts, config, setup)?;
                let (count, tokens) = (blocks.len(), blocks.tokens());
                lines.push(format!("data: {count} blocks of {tokens} tokens in all").into());
                let tokenizer = setup.prompter.tokenizer();
                let masking = Masking {
                    probability: config.mlm_probability,
                    strategy: config.data_collator_type,
                    mask: config.mask_token_type.id(tokenizer)?,
                    vocab: tokenizer.vocab_size().min(setup.config.vocab) as u32,
                    seed: config.seed,
                };
                let batches = Batches::new(blocks, batching, config.seed)?;
                Ok((Feed::Mntp { batches, masking }, lines))
            }
            Stage::Simcse => {
                let texts = Texts::open_in(data, column, config.strict)?;
                let lines = found("data", texts.report());
                Ok((Feed::Simcse(Batches::new(texts, batching, config.seed)?), lines))
            }
            Stage::Supervised => {
                let triples = Triples::open(data, &instructions(config)?, config.strict)?;
                let mut lines = found("data", triples.report());
                lines.push(compared(config));
                Ok((Feed::Supervised(Batches::new(triples, batching, config.seed)?), lines))
            }
        }
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        match self {
            Feed::Mntp { batches, .. } => batches.per_epoch(),
            Feed::Simcse(batches) => batches.per_epoch(),
            Feed::Supervised(batches) => batches.per_epoch(),
        }
    }

    /// Where the next batch is.
    pub fn position(&self) -> Position {
        match self {
            Feed::Mntp { batches, .. } => batches.position(),
            Feed::Simcse(batches) => batches.position(),
            Feed::Supervised(batches) => batches.position(),
        }
    }

    /// Batches from the next one to the end of its epoch, at least one.
    pub fn left(&self) -> usize {
        match self {
            Feed::Mntp { batches, .. } => batches.left(),
            Feed::Simcse(batches) => batches.left(),
            Feed::Supervised(batches) => batches.left(),
        }
    }

    /// Goes on at a saved position.
    pub fn seek(&mut self, to: Position) -> Result<()> {
        match self {
            Feed::Mntp { batches, .. } => batches.seek(to),
            Feed::Simcse(batches) => batches.seek(to),
            Feed::Supervised(batches) => batches.seek(to),
        }
    }

    /// Learns from the next batch, which is number `turn` of its step, adding `weight` times its gradient.
    pub fn learn(
        &mut self,
        learner: &mut Learner,
        loss: &mut Loss,
        run: (&TrainConfig, &Setup),
        noise: &Noise,
        turn: usize,
        weight: f64,
    ) -> Result<Outcome> {
        let (config, setup) = run;
        let batch = match self {
            Feed::Mntp { batches, masking } => {
                let blocks = batches.next()?.items;
                let first = turn * config.per_device_train_batch_size;
                let slices = learner.share.cut(blocks.iter().map(|block| block.ids.len()));
                let pack = |slice: Range<usize>| {
                    masking.apply(Draw::Step(u64::from(noise.step)), first + slice.start, &blocks[slice])
                };
                let packs: Vec<_> = slices.into_iter().map(pack).collect();
                let Loss::Mntp(loss) = loss else { return other_stage() };
                return loss.learn_slices(learner, &packs, noise, weight);
            }
            Feed::Simcse(batches) => twice(&batches.next()?.items, config, setup)?,
            Feed::Supervised(batches) => triples(&batches.next()?.items, config, setup)?,
        };
        let Loss::Contrastive(loss) = loss else { return other_stage() };
        loss.learn(learner, &batch, rule(config, setup), Some(noise), weight)
    }
}

impl Loss {
    /// Buffers for the batches of `config`.
    pub fn new(arena: &mut Arena, config: &TrainConfig, model: &Config) -> Loss {
        let [queries, candidates, chunk] = rows(config);
        match config.stage {
            Stage::Mntp => Loss::Mntp(Mntp::new(arena, model, tokens(config))),
            _ => {
                let (width, levels) = (model.width, config.levels());
                Loss::Contrastive(Contrastive::new(arena, width, queries, candidates, chunk, &levels))
            }
        }
    }
}

/// Refuses Matryoshka dimensions that this model's vectors, or the kernels, do not have.
pub(super) fn check_levels(config: &TrainConfig, setup: &Setup) -> Result<()> {
    let (width, dims) = (setup.config.width, &config.matryoshka_dims);
    let wrong = |what: String| Err(Error::usage(message![Setting::Matryoshka, what]));
    if let Some(d) = dims.iter().find(|&&d| d > width) {
        return wrong(format!(" has {d}, the model's vectors have {width} numbers"));
    }
    if let (Device::Gpu(_), Some(d)) = (&setup.device, dims.iter().find(|d| !d.is_multiple_of(8))) {
        return wrong(format!(" has {d}, a GPU takes multiples of 8"));
    }
    match config.matryoshka_weights.len() {
        0 => Ok(()),
        n if n == dims.len() => Ok(()),
        n => wrong(format!(" has {} numbers, \"matryoshka_weights\" {n}", dims.len())),
    }
}

/// What a supervised query is compared with, and what the paper's are: there a batch is of one device among eight, whose
/// texts are all each other's negatives.
fn compared(config: &TrainConfig) -> Message {
    let (rows, hard) = (config.per_device_train_batch_size, hard_negatives(config));
    let line = format!(
        "batch: {rows} rows, each query against {rows} positives and {} hard negatives at most",
        rows * hard
    );
    let paper = TrainConfig::new(Stage::Supervised);
    match (rows, hard) == (paper.per_device_train_batch_size, paper.hard_negatives) {
        true => line.into(),
        false => {
            let paper = paper.per_device_train_batch_size;
            let theirs =
                format!("; the paper's eight devices share {paper} rows and {paper} hard negatives: ");
            message![line, theirs, Setting::Batch, format!(" {paper}, if need be with "), Setting::GradCache]
        }
    }
}

pub(super) fn other_stage<T>() -> Result<T> {
    Err(Error::unsupported("the loss is of another stage than the data"))
}

/// Queries and candidates of a contrastive batch, and sequences that are run at a time.
pub(super) fn rows(config: &TrainConfig) -> [usize; 3] {
    let size = config.per_device_train_batch_size;
    let candidates = size * (1 + hard_negatives(config));
    let all = size + candidates;
    [size, candidates, if config.grad_cache == 0 { all } else { config.grad_cache.min(all) }]
}

/// Sequences of any length that an evaluation may run at a time.
pub(super) fn at_once(config: &TrainConfig) -> usize {
    tokens(config) / config.max_seq_length
}

/// Hard negatives that are taken from a row.
fn hard_negatives(config: &TrainConfig) -> usize {
    if config.stage == Stage::Simcse { 0 } else { config.hard_negatives }
}

/// What stands in front of the texts of each data set.
pub(super) fn instructions(config: &TrainConfig) -> Result<Instructions> {
    match (&config.instructions, config.dataset_name.as_deref()) {
        (Some(file), _) => Instructions::read(Path::new(file)),
        (None, Some("E5")) => Ok(Instructions::e5(config.document_instructions)),
        _ => Ok(Instructions::none()),
    }
}

/// The most tokens of a pack.
pub fn tokens(config: &TrainConfig) -> usize {
    // A slice has its share of the tokens, and less than one sequence more.
    let slice = |sequences: usize| match config.slices {
        Some(slices) if slices > 1 => sequences.min(sequences.div_ceil(slices) + 1),
        _ => sequences,
    };
    let sequences = match config.stage {
        Stage::Mntp if config.validation_file.is_some() => {
            slice(config.per_device_train_batch_size).max(config.per_device_eval_batch_size)
        }
        Stage::Mntp => slice(config.per_device_train_batch_size),
        _ => {
            let [queries, candidates, chunk] = rows(config);
            slice(queries + candidates).min(chunk)
        }
    };
    sequences * config.max_seq_length
}

pub(super) fn rule(config: &TrainConfig, setup: &Setup) -> Rule {
    let loss =
        InfoNce { scale: config.loss_scale, margin: config.false_negative_margin, dtype: config.loss_dtype };
    Rule { pooling: setup.pooling.op(), loss, chunk: config.grad_cache }
}

pub(super) fn blocks(texts: &mut Texts, config: &TrainConfig, setup: &Setup) -> Result<Blocks> {
    Blocks::new(texts, setup.prompter.tokenizer(), config.grouping, config.max_seq_length)
}

/// What a file held, in lines to show.
pub(super) fn found(what: &str, report: &Report) -> Vec<Message> {
    let mut lines = vec![format!("{what}: {} rows", report.rows).into()];
    if report.bad > 0 {
        let bad = format!("warning: {} bad rows were left out (", report.bad);
        lines.push(message![bad, Setting::Strict, " stops at the first)"]);
        lines.extend(report.named.iter().map(|row| format!("warning: {row}").into()));
    }
    let nothing = |p: &PathBuf| format!("warning: {} holds no rows by its name", p.display()).into();
    lines.extend(report.ignored.iter().map(nothing));
    lines
}

pub(super) fn sequence(setup: &Setup, instruction: &str, text: &str) -> Result<Sequence> {
    let prompt = setup.prompter.prompt(instruction, text)?;
    let span = setup.span(&prompt)?;
    Ok(Sequence { ids: prompt.ids, span })
}

/// SimCSE: every text as a query and as its own positive.
fn twice(texts: &[String], config: &TrainConfig, setup: &Setup) -> Result<Batch> {
    let one = texts.par_iter().map(|t| sequence(setup, "", t)).collect::<Result<Vec<_>>>()?;
    let same = config.mask_false_negatives.then(|| numbers(texts));
    Ok(Batch { queries: one.len(), sequences: [one.clone(), one].concat(), same })
}

/// Queries; then positives, then the negatives of every row.
pub(super) fn triples(rows: &[Triple], config: &TrainConfig, setup: &Setup) -> Result<Batch> {
    let queries = rows.iter().map(|t| (&t.query_instruction, &t.query));
    let positives = rows.iter().map(|t| (&t.document_instruction, &t.positive));
    let taken = |t: &'_ Triple| t.negatives.len().min(hard_negatives(config));
    let negatives =
        rows.iter().flat_map(|t| t.negatives[..taken(t)].iter().map(|n| (&t.document_instruction, n)));
    let candidates: Vec<_> = positives.chain(negatives).collect();
    let same = config.mask_false_negatives.then(|| numbers(candidates.iter().map(|(_, text)| *text)));
    let all: Vec<_> = queries.chain(candidates).collect();
    let sequences = all.par_iter().map(|(i, t)| sequence(setup, i, t)).collect::<Result<_>>()?;
    Ok(Batch { sequences, queries: rows.len(), same })
}

/// A number for every text, equal for equal ones.
fn numbers<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<i32> {
    let mut seen: HashMap<&str, i32> = HashMap::new();
    texts
        .into_iter()
        .map(|text| {
            let next = seen.len() as i32;
            *seen.entry(text).or_insert(next)
        })
        .collect()
}
