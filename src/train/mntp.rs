//! Masked next-token prediction: the loss of a masked pack, and what it teaches.

use crate::device::DType;
use crate::error::Result;
use crate::memory::Arena;
use crate::model::config::Config;
use crate::model::llama::Noise;
use crate::ops::masked_xent::{Gradient, masked_xent_fwd, masked_xent_step, masked_xent_workspace};
use crate::tensor::Tensor;
use crate::train::learner::Learner;
use crate::train::mask::Masked;

/// What a batch gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Mean loss over `rows`; 0 if there are none.
    pub loss: f64,
    /// Rows that were won: the label had the largest logit, or the positive the largest cosine.
    pub hits: usize,
    /// Labels, or queries.
    pub rows: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// Buffers of the loss, sized for packs of so many tokens.
pub struct Mntp {
    rows: Tensor,
    labels: Tensor,
    loss: Tensor,
    lse: Tensor,
    total: Tensor,
}

impl Mntp {
    /// For packs of at most `tokens` tokens.
    pub fn new(arena: &mut Arena, config: &Config, tokens: usize) -> Mntp {
        // Any number of them may have a label; the bound is for all of them at most.
        let device = arena.device.clone();
        arena.workspace(|| masked_xent_workspace(&device, tokens, config.vocab, config.width));
        arena.group("loss");
        Mntp {
            rows: arena.tensor(DType::I32, &[tokens]),
            labels: arena.tensor(DType::I32, &[tokens]),
            loss: arena.statistic(&[tokens]),
            lse: arena.statistic(&[tokens]),
            total: arena.statistic(&[2]),
        }
    }

    /// The loss of a pack, without learning.
    pub fn evaluate(&mut self, learner: &mut Learner, pack: &Masked) -> Result<Outcome> {
        self.forward(learner, pack, "evaluation", None, None)?;
        self.outcome(learner, pack)
    }

    /// The loss of a pack; adds `weight` times its gradient. A pack without a label teaches nothing.
    pub fn learn(
        &mut self,
        learner: &mut Learner,
        pack: &Masked,
        noise: &Noise,
        weight: f64,
    ) -> Result<Outcome> {
        self.forward(learner, pack, "forward", Some(noise), Some(weight))?;
        if !pack.rows.is_empty() {
            learner.graphs.clone().run("backward", || learner.backward(Some(noise)))?;
        }
        self.outcome(learner, pack)
    }

    /// The loss of a batch in slices, of which this process runs its own: the mean over the labels of all. `noise.first` counts
    /// from the batch's first token.
    pub fn learn_slices(
        &mut self,
        learner: &mut Learner,
        packs: &[Masked],
        noise: &Noise,
        weight: f64,
    ) -> Result<Outcome> {
        let labels: usize = packs.iter().map(|pack| pack.rows.len()).sum();
        let part = |pack: &Masked| pack.rows.len() as f64 / labels.max(1) as f64;
        let (own, mut tokens, mut figures) = (learner.share.own(), 0, Vec::new());
        for (slice, pack) in packs.iter().enumerate() {
            if own.contains(&slice) {
                let noise = Noise { first: noise.first + tokens as u64, ..*noise };
                learner.begin_slice(slice - own.start);
                let Outcome { loss, hits, .. } = self.learn(learner, pack, &noise, weight * part(pack))?;
                learner.end_slice(slice - own.start)?;
                figures.extend([loss, hits as f64]);
            }
            tokens += pack.ids.len();
        }
        let words = learner.share.ranks.gather(bytemuck::cast_slice(&figures))?.concat();
        let figures: Vec<[f64; 2]> = bytemuck::pod_collect_to_vec(&words);
        let loss = packs.iter().zip(&figures).map(|(pack, [loss, _])| loss * part(pack)).sum();
        let hits = figures.iter().map(|[_, hits]| *hits as usize).sum();
        Ok(Outcome { loss, hits, rows: labels, tokens })
    }

    /// Queues the pass and its loss, and so many times the loss's gradient, unless no token has a label. `stretch` names the
    /// graph.
    fn forward(
        &mut self,
        learner: &mut Learner,
        pack: &Masked,
        stretch: &'static str,
        noise: Option<&Noise>,
        weight: Option<f64>,
    ) -> Result<()> {
        if pack.rows.is_empty() {
            return Ok(());
        }
        let Mntp { rows, labels, loss, lse, total } = self;
        [&mut *rows, labels, loss, lse].into_iter().try_for_each(|t| t.set_rows(pack.rows.len()))?;
        learner.take(&pack.ids, &pack.starts)?;
        rows.write(&pack.rows)?;
        labels.write(&pack.labels)?;
        learner.graphs.clone().run(stretch, || {
            learner.forward(noise)?;
            let device = learner.model.device.clone();
            let (w, dw, x, dx) = learner.head();
            match weight {
                Some(dmean) => {
                    let gradient = Gradient { dx, dw, dmean };
                    masked_xent_step(&device, total, loss, lse, gradient, x, w, rows, labels)
                }
                None => masked_xent_fwd(&device, total, loss, lse, x, w, rows, labels),
            }
        })
    }

    /// What the last pass gave, once it is through.
    fn outcome(&self, learner: &Learner, pack: &Masked) -> Result<Outcome> {
        let (rows, tokens) = (pack.rows.len(), pack.ids.len());
        if rows == 0 {
            return Ok(Outcome { tokens, ..Outcome::default() });
        }
        learner.state.verdict()?;
        let total = self.total.read()?;
        Ok(Outcome { loss: total[0], hits: total[1] as usize, rows, tokens })
    }
}
