//! The linear probe of word-level tasks: one softmax layer on fixed features, trained by AdamW on minibatches.

use crate::device::Device;
use crate::device::cpu::{Matrix, matmul};
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamW, Clip, adamw_norm, adamw_step};
use crate::ops::dropout::Dropout;
use crate::rng::Stream;
use crate::tensor::Tensor;
use serde::Serialize;

/// How to train: by default as LLM2Vec's word tasks (1500 steps of 8 sentences, a rate of 5e-4 that would reach zero after
/// ten epochs, dropout 0.1) with the optimiser of Transformers' trainer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct Options {
    /// Epochs over which the rate falls to zero, and that training ends after
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_EPOCHS", default_value_t = 10, value_name = "N"))]
    pub epochs: usize,
    /// Steps that training ends after, where the epochs have more; the rate falls as if it did not
    #[cfg_attr(
        feature = "cli",
        arg(long = "steps", env = "LLM2VEC_STEPS", default_value_t = 1500, value_name = "N")
    )]
    pub stop_after: usize,
    /// Sentences of a step
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_BATCH", default_value_t = 8, value_name = "N"))]
    pub batch: usize,
    /// Learning rate of the first step; it falls to zero in a line
    #[cfg_attr(
        feature = "cli",
        arg(long = "lr", env = "LLM2VEC_LR", default_value_t = 5e-4, value_name = "RATE")
    )]
    pub rate: f64,
    /// Decoupled weight decay
    #[cfg_attr(
        feature = "cli",
        arg(long = "weight-decay", env = "LLM2VEC_WEIGHT_DECAY", default_value_t = 0.0, value_name = "RATE")
    )]
    pub decay: f64,
    /// Largest norm of the gradient that is left alone; 0 leaves all
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_MAX_GRAD_NORM", default_value_t = 1.0, value_name = "NORM")
    )]
    pub max_grad_norm: f64,
    /// Part of the features that a step does not see
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_DROPOUT", default_value_t = 0.1, value_name = "RATE")
    )]
    pub dropout: f64,
    /// Of order and dropout
    #[cfg_attr(feature = "cli", arg(long, env = "LLM2VEC_SEED", default_value_t = 42, value_name = "N"))]
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            epochs: 10,
            stop_after: 1500,
            batch: 8,
            rate: 5e-4,
            decay: 0.0,
            max_grad_norm: 1.0,
            dropout: 0.1,
            seed: 42,
        }
    }
}

/// Labelled words: a row of features and a class each, sentence after sentence.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// `[N, C]`, row-major.
    pub features: &'a [f32],
    /// C.
    pub width: usize,
    /// The class of each row.
    pub labels: &'a [usize],
    /// Where the rows of each sentence start, and N: sentence `s` is `starts[s]..starts[s + 1]`.
    pub starts: &'a [usize],
}

impl Words<'_> {
    /// Sentences.
    pub fn sentences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Refuses what does not fit together, naming it.
    fn check(&self, classes: usize) -> Result<()> {
        let n = self.labels.len();
        if self.width == 0 || self.features.len() != n * self.width {
            let (got, width) = (self.features.len(), self.width);
            return Err(Error::usage(format!("{got} features, {n} rows of width {width} were wanted")));
        }
        if let Some(label) = self.labels.iter().find(|&&label| label >= classes) {
            return Err(Error::usage(format!("class {label}, one below {classes} was wanted")));
        }
        let rising = self.starts.first() == Some(&0) && self.starts.is_sorted();
        if !rising || self.starts.last() != Some(&n) {
            let what = format!("starts of sentences that do not rise from 0 to {n}, one per row were wanted");
            return Err(Error::usage(what));
        }
        Ok(())
    }
}

/// A parameter with its gradient and the two means of AdamW.
struct Parameter {
    value: Tensor,
    gradient: Tensor,
    means: [Tensor; 2],
}

impl Parameter {
    fn zeros(shape: &[usize]) -> Parameter {
        let zeros = || Tensor::zeros(crate::device::DType::F32, shape);
        Parameter { value: zeros(), gradient: zeros(), means: [zeros(), zeros()] }
    }
}

/// A softmax layer: weights `[K, C]` and biases `[K]`. It starts at zero: the loss has one minimum, and no start is better.
pub struct Probe {
    device: Device,
    weights: Parameter,
    biases: Parameter,
    norm: Tensor,
    width: usize,
    classes: usize,
    steps: u64,
}

impl Probe {
    /// An untrained probe.
    pub fn new(width: usize, classes: usize) -> Probe {
        Probe {
            device: Device::Cpu(crate::device::DType::F32),
            weights: Parameter::zeros(&[classes, width]),
            biases: Parameter::zeros(&[classes]),
            norm: Tensor::zeros(crate::device::DType::F32, &[1]),
            width,
            classes,
            steps: 0,
        }
    }

    /// Trains a probe; `progress` is told steps, all steps, and the loss of the last batch. Sentences are shuffled for each
    /// epoch by Philox, so a seed always gives the same bits.
    pub fn train(
        words: Words,
        classes: usize,
        options: Options,
        mut progress: impl FnMut(usize, usize, f64),
    ) -> Result<Probe> {
        words.check(classes)?;
        if words.labels.is_empty() || options.batch == 0 {
            return Err(Error::usage(
                "no word to learn from, or no sentence in a batch, at least 1 was wanted",
            ));
        }
        let numbers = [options.rate, options.decay, options.max_grad_norm];
        if numbers.iter().any(|v| !v.is_finite() || *v < 0.0) {
            let what = "a rate, weight decay or norm of the gradient that is no number from 0 on";
            return Err(Error::usage(format!("{what}: {numbers:?}")));
        }
        let mut probe = Probe::new(words.width, classes);
        let mut order: Vec<usize> = (0..words.sentences()).collect();
        let all = options.epochs * order.len().div_ceil(options.batch);
        let mut taken = 0;
        for epoch in 0..options.epochs {
            Stream::new(options.seed, [epoch as u32, 0, 0]).shuffle(&mut order);
            for batch in order.chunks(options.batch) {
                if taken == options.stop_after {
                    return Ok(probe);
                }
                let rate = options.rate * (all - taken) as f64 / all as f64;
                let rows: Vec<usize> =
                    batch.iter().flat_map(|&s| words.starts[s]..words.starts[s + 1]).collect();
                let loss = probe.step(words, &rows, rate, options)?;
                taken += 1;
                progress(taken, all.min(options.stop_after), loss);
            }
        }
        Ok(probe)
    }

    /// One step of AdamW at `rate` on these rows; the mean loss before it. Of no row it is none.
    pub fn step(&mut self, words: Words, rows: &[usize], rate: f64, options: Options) -> Result<f64> {
        words.check(self.classes)?;
        if rows.is_empty() {
            return Ok(0.0);
        }
        self.steps += 1;
        let mut x: Vec<f32> =
            rows.iter().flat_map(|&i| &words.features[i * self.width..][..self.width]).copied().collect();
        if options.dropout > 0.0 {
            let (rate, seed, step) = (options.dropout, options.seed, self.steps as u32);
            let dropout = Dropout { rate, seed, step, site: 0, first: 0 };
            Dropout::check(Some(dropout), "probe")?;
            let key = dropout.key();
            x.chunks_exact_mut(self.width).enumerate().for_each(|(i, x)| dropout.apply(key, i, 0, 0, x));
        }
        let labels: Vec<usize> = rows.iter().map(|&i| words.labels[i]).collect();
        let loss = self.gradients(&x, &labels)?;
        self.update(rate, options)?;
        Ok(loss)
    }

    fn gradients(&mut self, x: &[f32], labels: &[usize]) -> Result<f64> {
        let (n, k) = (labels.len(), self.classes);
        let mut scores = self.scores(x)?;
        let mut loss = 0.0;
        for (row, &label) in scores.chunks_exact_mut(k).zip(labels) {
            loss += cross_entropy(row, label);
            row[label] -= 1.0;
            row.iter_mut().for_each(|g| *g /= n as f32);
        }
        let biases = self.biases.gradient.host_mut::<f32>()?;
        biases.fill(0.0);
        for row in scores.chunks_exact(k) {
            biases.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
        let (x, scores) = (Matrix::rows(x, n, self.width, self.width), Matrix::rows(&scores, n, k, k));
        matmul(self.weights.gradient.host_mut::<f32>()?, self.width, false, 1.0, scores.t(), x, true);
        Ok(loss / n as f64)
    }

    fn update(&mut self, rate: f64, options: Options) -> Result<()> {
        let by = AdamW { rate, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: options.decay, step: self.steps };
        let gradients = [&self.weights.gradient, &self.biases.gradient];
        adamw_norm(&self.device, &mut self.norm, gradients)?;
        for Parameter { value, gradient, means: [m, v] } in [&mut self.weights, &mut self.biases] {
            let clip = Clip { norm: &self.norm, most: options.max_grad_norm };
            let clip = (options.max_grad_norm > 0.0).then_some(clip);
            adamw_step(&self.device, value, m, v, gradient, clip, by)?;
        }
        Ok(())
    }

    /// `[N, K]` scores of rows of features.
    pub fn scores(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (n, k) = (x.len() / self.width, self.classes);
        let mut scores = self.biases.value.host::<f32>()?.repeat(n);
        let x = Matrix::rows(x, n, self.width, self.width);
        let weights = Matrix::rows(self.weights.value.host::<f32>()?, k, self.width, self.width);
        matmul(&mut scores, k, true, 1.0, x, weights.t(), true);
        Ok(scores)
    }

    /// The class of highest score of each row, the first of several.
    pub fn classes(&self, x: &[f32]) -> Result<Vec<usize>> {
        let highest =
            |row: &[f32]| (1..row.len()).fold(0, |best, k| if row[k] > row[best] { k } else { best });
        Ok(self.scores(x)?.chunks_exact(self.classes).map(highest).collect())
    }

    /// The mean cross-entropy of rows of features.
    pub fn loss(&self, x: &[f32], labels: &[usize]) -> Result<f64> {
        let mut scores = self.scores(x)?;
        let rows = scores.chunks_exact_mut(self.classes).zip(labels);
        Ok(rows.map(|(row, &label)| cross_entropy(row, label)).sum::<f64>() / labels.len() as f64)
    }
}

/// The cross-entropy of one row of scores, which becomes its probabilities.
fn cross_entropy(row: &mut [f32], label: usize) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let right = row[label] - most;
    row.iter_mut().for_each(|s| *s = (*s - most).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|s| *s /= sum);
    f64::from(sum.ln() - right)
}
