//! What a run is measured by while it goes: running text under masks that never change, rows that are held out, or pairs of
//! sentences and how alike people find them.

use crate::error::{Error, Message, Result, Setting, message};
use crate::eval::correlation::{pearson, spearman};
use crate::eval::similarity::cosine;
use crate::eval::sts::{self, Pair};
use crate::pretrained::open::Setup;
use crate::train::blocks::{Block, Blocks};
use crate::train::config::TrainConfig;
use crate::train::contrastive::{Contrastive, Rule};
use crate::train::data::{Items, Texts, Triples};
use crate::train::learner::Learner;
use crate::train::mask::{Draw, Masking};
use crate::train::mntp::Mntp;
use crate::train::stage::{self, Feed, Loss};
use rayon::prelude::*;
use std::path::Path;

/// The data of `validation_file`.
pub enum Validation {
    /// Token blocks to mask.
    Blocks(Blocks, Masking),
    /// Rows as supervised training has them.
    Rows(Triples),
    /// Pairs as `eval sts` has them.
    Pairs(Vec<Pair>),
}

/// What an evaluation gave: the first figure is the one that tells which is better.
pub type Figures = Vec<(&'static str, f64)>;

impl Validation {
    /// Opens the data of `config`, if it has any, and adds to the lines to show.
    pub fn open(
        config: &TrainConfig,
        setup: &Setup,
        feed: &Feed,
        lines: &mut Vec<Message>,
    ) -> Result<Option<Validation>> {
        let Some(path) = config.validation_file.as_deref().map(Path::new) else {
            return Ok(None);
        };
        if let Feed::Mntp { masking, .. } = feed {
            let mut texts = Texts::lines_in(path, config.text_column.as_deref(), config.strict)?;
            let blocks = stage::blocks(&mut texts, config, setup)?;
            return Ok(Some(Validation::Blocks(blocks, *masking)));
        }
        if sts::holds_pairs(path)? {
            let pairs = sts::read(path)?;
            lines.push(format!("validation: {} pairs of sentences", pairs.len()).into());
            return Ok(Some(Validation::Pairs(pairs)));
        }
        let rows = Triples::open(path, &stage::instructions(config)?, config.strict)?;
        lines.extend(stage::found("validation", rows.report()));
        Ok(Some(Validation::Rows(rows)))
    }

    /// Whether the better of two first figures is the higher.
    pub fn rises(&self) -> bool {
        matches!(self, Validation::Pairs(_))
    }

    /// Measures the model as it is, without any dropout.
    pub fn evaluate(
        &mut self,
        learner: &mut Learner,
        loss: &mut Loss,
        config: &TrainConfig,
        setup: &Setup,
    ) -> Result<Figures> {
        match (self, loss) {
            (Validation::Blocks(blocks, masking), Loss::Mntp(loss)) => {
                masked(blocks, masking, learner, loss, config.per_device_eval_batch_size)
            }
            (Validation::Rows(rows), Loss::Contrastive(loss)) => held_out(rows, learner, loss, config, setup),
            (Validation::Pairs(pairs), Loss::Contrastive(loss)) => {
                judged(pairs, learner, loss, config, setup)
            }
            _ => stage::other_stage(),
        }
    }
}

/// Refuses what follows evaluations where there are none.
pub fn check(config: &TrainConfig) -> Result<()> {
    let wants = [
        (config.load_best_model_at_end, Setting::KeepBest),
        (config.early_stopping_patience > 0, Setting::EarlyStopping),
    ];
    match wants.into_iter().find(|(wanted, _)| *wanted && config.validation_file.is_none()) {
        Some((_, setting)) => {
            Err(Error::usage(message![setting, " goes by evaluations; give ", Setting::ValidationFile]))
        }
        None => Ok(()),
    }
}

/// Mean loss, perplexity and accuracy over all masked tokens.
fn masked(
    blocks: &mut Blocks,
    masking: &Masking,
    learner: &mut Learner,
    mntp: &mut Mntp,
    size: usize,
) -> Result<Figures> {
    let (mut sum, mut hits, mut rows) = (0.0, 0, 0);
    for first in (0..blocks.len()).step_by(size) {
        let end = blocks.len().min(first + size);
        let batch = (first..end).map(|i| blocks.read(i)).collect::<Result<Vec<Block>>>()?;
        let got = mntp.evaluate(learner, &masking.apply(Draw::Evaluation, first, &batch))?;
        sum += got.loss * got.rows as f64;
        (hits, rows) = (hits + got.hits, rows + got.rows);
    }
    let mean = sum / rows as f64;
    Ok(vec![("loss", mean), ("perplexity", mean.exp()), ("accuracy", hits as f64 / rows as f64)])
}

/// The loss of batches as large as training's, in the file's order, and how many queries score their positive above all else.
fn held_out(
    rows: &mut Triples,
    learner: &mut Learner,
    loss: &mut Contrastive,
    config: &TrainConfig,
    setup: &Setup,
) -> Result<Figures> {
    let all: usize = rows.sizes().iter().sum();
    let (mut sum, mut hits) = (0.0, 0);
    for first in (0..all).step_by(config.per_device_train_batch_size) {
        let end = all.min(first + config.per_device_train_batch_size);
        let batch = (first..end).map(|i| rows.read(i)).collect::<Result<Vec<_>>>()?;
        let rule = Rule { chunk: stage::at_once(config), ..stage::rule(config, setup) };
        let got = loss.evaluate(learner, &stage::triples(&batch, config, setup)?, rule)?;
        sum += got.loss * got.rows as f64;
        hits += got.hits;
    }
    Ok(vec![("loss", sum / all as f64), ("accuracy", hits as f64 / all as f64)])
}

/// Correlations of the cosines with what people said, from -1 to 1.
fn judged(
    pairs: &[Pair],
    learner: &mut Learner,
    loss: &mut Contrastive,
    config: &TrainConfig,
    setup: &Setup,
) -> Result<Figures> {
    let chunk = stage::at_once(config);
    let texts: Vec<&String> = pairs.iter().flat_map(|pair| &pair.sentences).collect();
    let mut cosines = Vec::with_capacity(pairs.len());
    for texts in texts.chunks(chunk.next_multiple_of(2)) {
        let sequences =
            texts.par_iter().map(|text| stage::sequence(setup, "", text)).collect::<Result<Vec<_>>>()?;
        let unit = loss.embed_alone(learner, &sequences, chunk, setup.pooling.op())?;
        let width = unit.len() / sequences.len();
        cosines.extend(unit.chunks(2 * width).map(|pair| cosine(&pair[..width], &pair[width..])));
    }
    let scores: Vec<f64> = pairs.iter().map(|pair| pair.score).collect();
    let or_nan = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
    Ok(vec![
        ("spearman", or_nan(spearman(&cosines, &scores))),
        ("pearson", or_nan(pearson(&cosines, &scores))),
    ])
}
