//! Multinomial logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression` with its defaults.
//!
//! In f64 throughout, as scikit-learn up to 1.8 does it for features of any kind; 1.9 keeps f32 features as they are, and so
//! ends a little elsewhere (weights of its own two ways differ by some 1e-3).

use super::lbfgs::{Stop, minimum};
use crate::device::cpu::{Matrix, matmul};
use crate::error::{Error, Result};

/// How to fit: scikit-learn's `C`, `max_iter` and `tol`, with its defaults.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The inverse of the penalty's weight.
    pub c: f64,
    /// Steps of L-BFGS at most.
    pub max_iter: usize,
    /// The largest element of the gradient that is small enough.
    pub tol: f64,
}

impl Default for Options {
    fn default() -> Options {
        Options { c: 1.0, max_iter: 100, tol: 1e-4 }
    }
}

/// A fitted classifier. Of two classes there is one row, whose sign decides: positive means the second.
#[derive(Clone, Debug)]
pub struct Logistic {
    /// Columns of a row of features.
    width: usize,
    /// `[K, C]`, K classes or 1.
    pub weights: Vec<f64>,
    /// `[K]`, not penalised.
    pub intercepts: Vec<f64>,
    /// Steps taken.
    pub steps: usize,
    /// Whether it is not the number of steps that ended it.
    pub converged: bool,
}

/// `[N, C]` in f64, with the class of each row.
struct Rows {
    x: Vec<f64>,
    classes: Vec<usize>,
    width: usize,
}

impl Rows {
    fn matrix(&self) -> Matrix<'_, f64> {
        Matrix::rows(&self.x, self.classes.len(), self.width, self.width)
    }

    /// `[N, K]` scores of `w`: K rows of C weights, then K intercepts.
    fn scores(&self, w: &[f64], outputs: usize) -> Vec<f64> {
        let (weights, intercepts) = w.split_at(outputs * self.width);
        let mut scores = intercepts.repeat(self.classes.len());
        let weights = Matrix::rows(weights, outputs, self.width, self.width);
        matmul(&mut scores, outputs, true, 1.0, self.matrix(), weights.t(), false);
        scores
    }

    /// Mean cross-entropy plus `penalty / 2` times the squares of the weights, and its gradient.
    fn loss(&self, w: &[f64], gradient: &mut [f64], outputs: usize, penalty: f64) -> f64 {
        let (n, cut) = (self.classes.len(), outputs * self.width);
        let mut scores = self.scores(w, outputs);
        let rows = scores.chunks_exact_mut(outputs).zip(&self.classes);
        // Each row of scores becomes its gradient.
        let losses = rows.map(|(row, &class)| match row {
            [score] => binary(score, class),
            row => softmax(row, class),
        });
        let loss = losses.sum::<f64>() / n as f64;

        let (weights, intercepts) = gradient.split_at_mut(cut);
        let slopes = Matrix::rows(&scores, n, outputs, outputs).t();
        matmul(weights, self.width, false, 1.0 / n as f64, slopes, self.matrix(), false);
        weights.iter_mut().zip(w).for_each(|(g, w)| *g += penalty * w);
        intercepts.fill(0.0);
        for row in scores.chunks_exact(outputs) {
            intercepts.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
        intercepts.iter_mut().for_each(|g| *g /= n as f64);
        loss + 0.5 * penalty * w[..cut].iter().map(|w| w * w).sum::<f64>()
    }
}

/// Cross-entropy of one score for class 1 against 0; the score becomes its gradient.
fn binary(score: &mut f64, class: usize) -> f64 {
    let s = *score;
    // From the side where the exponential is small.
    let e = (-s.abs()).exp();
    let probability = if s >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
    *score = probability - class as f64;
    e.ln_1p() + s.max(0.0) - s * class as f64
}

/// Cross-entropy of one row of scores; the row becomes its gradient.
fn softmax(row: &mut [f64], class: usize) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let right = row[class] - most;
    row.iter_mut().for_each(|s| *s = (*s - most).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|s| *s /= sum);
    row[class] -= 1.0;
    sum.ln() - right
}

impl Logistic {
    /// Fits rows `[N, width]` of `features`, whose classes are below `classes`: all arithmetic is in f64, the start is
    /// zero, and the steps are those of SciPy's L-BFGS-B, so that a fit that is stopped early is stopped at the same place.
    pub fn fit(
        features: &[f32],
        width: usize,
        labels: &[usize],
        classes: usize,
        options: Options,
    ) -> Result<Logistic> {
        assert_eq!(features.len(), labels.len() * width, "a row of features per label");
        if classes < 2 {
            let what =
                "rows of one class, at least two were wanted to tell apart; give training rows of another";
            return Err(Error::usage(what));
        }
        let x: Vec<f64> = features.iter().map(|&v| f64::from(v)).collect();
        if !x.iter().all(|v| v.is_finite()) {
            return Err(Error::usage("a feature is not finite, numbers were wanted; look at the vectors"));
        }
        let outputs = if classes == 2 { 1 } else { classes };
        let rows = Rows { x, classes: labels.to_vec(), width };
        let penalty = 1.0 / (options.c * labels.len() as f64);
        let stop = Stop {
            steps: options.max_iter,
            gradient: options.tol,
            decrease: 64.0 * f64::EPSILON,
            searches: 50,
        };
        let start = vec![0.0; outputs * (width + 1)];
        let found = minimum(|w, g| rows.loss(w, g, outputs, penalty), start, stop);
        let mut weights = found.x;
        let intercepts = weights.split_off(outputs * width);
        Ok(Logistic { width, weights, intercepts, steps: found.steps, converged: found.converged })
    }

    /// `[N, K]` scores of rows of features; of two classes one column.
    pub fn scores(&self, features: &[f32]) -> Vec<f64> {
        let x: Vec<f64> = features.iter().map(|&v| f64::from(v)).collect();
        let classes = vec![0; x.len() / self.width.max(1)];
        let w = [&self.weights[..], &self.intercepts].concat();
        Rows { x, classes, width: self.width }.scores(&w, self.intercepts.len())
    }

    /// The class of each row of [`Logistic::scores`]: the highest, the first of several.
    pub fn classes(&self, scores: &[f64]) -> Vec<usize> {
        let outputs = self.intercepts.len();
        let highest = |row: &[f64]| (1..outputs).fold(0, |best, k| if row[k] > row[best] { k } else { best });
        match outputs {
            1 => scores.iter().map(|&score| usize::from(score > 0.0)).collect(),
            _ => scores.chunks_exact(outputs).map(highest).collect(),
        }
    }
}
