//! The learning rate: a linear warm-up, then its shape's way down.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where the rate reaches 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Decay {
    /// At the end of all epochs, as the reference has it: a run that stops early hardly decays at all.
    Epochs,
    /// At the last step that is run.
    Steps,
}

/// The shape of the learning rate, by Transformers' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum Shape {
    /// Up to the peak and down to 0, in straight lines.
    #[default]
    Linear,
    /// Up in a straight line, down to 0 by half a wave of the cosine.
    Cosine,
    /// The peak, without a warm-up.
    Constant,
    /// Up in a straight line, then the peak.
    ConstantWithWarmup,
}

/// What a schedule is made from.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Batches in an epoch.
    pub batches: usize,
    /// Batches of one optimiser step.
    pub accumulation: usize,
    /// Passes over the data; need not be whole.
    pub epochs: f64,
    /// Steps of the whole schedule in place of the epochs', as Transformers' `max_steps`.
    pub max_steps: Option<usize>,
    /// Steps to stop after, if the schedule is not over before.
    pub stop: usize,
    /// Steps of warm-up; 0 means `warmup_ratio` decides.
    pub warmup: usize,
    /// Warm-up as a part of all steps that decay is over.
    pub warmup_ratio: f64,
    /// Where the rate reaches 0.
    pub decay: Decay,
    /// How it gets there.
    pub shape: Shape,
}

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its highest.
    pub peak: f64,
    /// Steps up to the peak.
    pub warmup: usize,
    /// Where the rate is 0.
    pub total: usize,
    /// Steps that are run.
    pub steps: usize,
    /// How the rate gets from the peak to its end.
    pub shape: Shape,
}

impl Schedule {
    /// Counts steps as Transformers' trainer does: an epoch's last step may have fewer batches than the others.
    pub fn new(peak: f64, plan: &Plan) -> Result<Schedule> {
        let per_epoch = plan.batches.div_ceil(plan.accumulation.max(1)).max(1);
        let all = plan.max_steps.unwrap_or((per_epoch as f64 * plan.epochs).ceil() as usize);
        let steps = all.min(plan.stop);
        if steps == 0 {
            let what = format!("{} epochs of {per_epoch} steps, stopped after {}", plan.epochs, plan.stop);
            return Err(Error::usage(format!("{what}: there is no step to train")));
        }
        let total = if plan.decay == Decay::Epochs { all } else { steps };
        let ratio = (total as f64 * plan.warmup_ratio).ceil() as usize;
        let warmup = match plan.shape {
            Shape::Constant => 0,
            _ if plan.warmup > 0 => plan.warmup,
            _ => ratio,
        };
        Ok(Schedule { peak, warmup, total, steps, shape: plan.shape })
    }

    /// The rate of optimiser step `step`, from 0. With a warm-up the first step's rate is 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let left =
            self.total.saturating_sub(step) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
        self.peak
            * match self.shape {
                Shape::Linear => left,
                Shape::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
                Shape::Constant | Shape::ConstantWithWarmup => 1.0,
            }
    }
}
