//! Contrastive learning: SimCSE and supervised batches, whole or in chunks (GradCache), in slices that ranks share.
//!
//! In chunks the batch is embedded twice: once for the loss, once more, a chunk at a time, for the gradient (Gao et al.
//! 2021, arXiv:2101.06983). Dropout masks are drawn from counters, so both passes have the same ones.
//!
//! Of several ranks each embeds its own slices; the vectors are gathered, and every rank has the whole loss with its gradient
//! and runs back what belongs to its own texts. Nothing is divided by the number of ranks.
//!
//! With Matryoshka dimensions the loss is the sum of those of the vectors' first columns, each unit vectors of their own
//! (Kusupati et al. 2022, arXiv:2205.13147, as sentence-transformers' MatryoshkaLoss weighs them: 1 each by default).

use crate::device::DType;
use crate::error::Result;
use crate::memory::Arena;
use crate::model::llama::Noise;
use crate::ops::contrastive::{InfoNce, contrastive_bwd, contrastive_fwd, contrastive_workspace};
use crate::ops::l2norm::{l2norm_bwd, l2norm_fwd};
use crate::ops::pool::{Pooling, pool_bwd, pool_fwd};
use crate::tensor::Tensor;
use crate::text::pack::Pack;
use crate::train::learner::Learner;
use crate::train::mntp::Outcome;
use std::ops::Range;

/// A text as ids, and the rows that are pooled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Inside `ids`.
    pub span: Range<usize>,
}

/// Queries, and candidates of which the first are the queries' positives in order.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// P queries, then M candidates.
    pub sequences: Vec<Sequence>,
    /// P
    pub queries: usize,
    /// `[M]` candidates of equal number are the same text, no negatives of each other; `None` if none are.
    pub same: Option<Vec<i32>>,
}

/// Buffers of the loss.
pub struct Contrastive {
    /// [B, 2] for the sequences of a chunk
    spans: Tensor,
    /// [B, C] each, likewise
    pooled: Tensor,
    unit: Tensor,
    d_pooled: Tensor,
    d_unit: Tensor,
    /// [B]
    norm: Tensor,
    /// [P, C] and [M, C]
    vectors: [Tensor; 2],
    d_vectors: [Tensor; 2],
    /// [M]
    same: Tensor,
    /// [P]
    loss: Tensor,
    lse: Tensor,
    /// [2]
    total: Tensor,
    /// Each of the Matryoshka dimensions; none for the whole vectors alone.
    levels: Vec<Level>,
}

/// The loss of the vectors' first D columns, `d` of them: vectors and norms of queries and candidates, and loss.
struct Level {
    weight: f64,
    d: usize,
    /// [P, D] and [M, D]
    unit: [Tensor; 2],
    d_unit: [Tensor; 2],
    /// `[P]` and `[M]`
    norm: [Tensor; 2],
    /// [2]
    total: Tensor,
}

/// How a batch is scored.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Pooling of hidden states.
    pub pooling: Pooling,
    /// The loss.
    pub loss: InfoNce,
    /// Sequences that are run at a time; 0 means all.
    pub chunk: usize,
}

const EPS: f64 = 1e-12;

/// Sequences of a batch that run at a time.
struct Chunk {
    sequences: Range<usize>,
    noise: Option<Noise>,
}

impl Contrastive {
    /// For batches of `queries` and `candidates`, `chunk` sequences at a time, in vectors of `width`; `levels` are the
    /// Matryoshka dimensions and their weights, none for the whole vectors alone.
    pub fn new(
        arena: &mut Arena,
        width: usize,
        queries: usize,
        candidates: usize,
        chunk: usize,
        levels: &[(usize, f64)],
    ) -> Contrastive {
        // A last batch has fewer queries, and rows may have fewer negatives; the bound is for all of them.
        let device = arena.device.clone();
        for d in levels.iter().map(|level| level.0).chain([width]) {
            arena.workspace(|| contrastive_workspace(&device, queries, candidates, d));
        }
        arena.group("loss");
        let levels = levels.iter().map(|&level| Level::new(arena, queries, candidates, level)).collect();
        let mut of = |rows: usize| arena.statistic(&[rows, width]);
        let (pooled, unit, d_pooled, d_unit) = (of(chunk), of(chunk), of(chunk), of(chunk));
        let vectors = [of(queries), of(candidates)];
        Contrastive {
            d_vectors: [of(queries), of(candidates)],
            vectors,
            pooled,
            unit,
            d_pooled,
            d_unit,
            spans: arena.tensor(DType::I32, &[chunk, 2]),
            norm: arena.statistic(&[chunk]),
            same: arena.tensor(DType::I32, &[candidates]),
            loss: arena.statistic(&[queries]),
            lse: arena.statistic(&[queries]),
            total: arena.statistic(&[2]),
            levels,
        }
    }

    /// The loss of a batch; adds `weight` times its gradient. `noise.first` counts from the batch's first token.
    pub fn learn(
        &mut self,
        learner: &mut Learner,
        batch: &Batch,
        rule: Rule,
        noise: Option<&Noise>,
        weight: f64,
    ) -> Result<Outcome> {
        let (all, graphs) = (&batch.sequences, learner.graphs.clone());
        let (slices, tokens) = self.embed_slices(learner, batch, rule, noise)?;
        self.score(learner, batch, rule, "score", Some(weight))?;
        // The last chunk's states are still there.
        let mut there = true;
        for (slice, chunks) in slices.iter().enumerate().rev() {
            learner.begin_slice(slice);
            for Chunk { sequences, noise } in chunks.iter().rev() {
                if !there {
                    self.take(learner, &all[sequences.clone()])?;
                    graphs.run("again", || self.embed(learner, rule.pooling, noise.as_ref()))?;
                }
                there = false;
                self.backward(learner, sequences, batch.queries, rule.pooling, noise.as_ref())?;
            }
            learner.end_slice(slice)?;
        }
        self.outcome(batch, tokens)
    }

    /// Runs back a chunk whose states are there.
    fn backward(
        &mut self,
        learner: &mut Learner,
        chunk: &Range<usize>,
        queries: usize,
        pooling: Pooling,
        noise: Option<&Noise>,
    ) -> Result<()> {
        let Contrastive { d_vectors, d_unit, d_pooled, unit, norm, spans, .. } = self;
        [&mut *d_unit, d_pooled].into_iter().try_for_each(|t| t.set_rows(chunk.len()))?;
        learner.graphs.clone().run("backward", || {
            let mut parts = split(d_vectors, chunk, queries);
            parts.try_for_each(|(vectors, to, at, rows)| d_unit.copy_rows(at, vectors, to, rows))?;
            l2norm_bwd(&learner.model.device, d_pooled, d_unit, unit, norm, EPS, false)?;
            pool_bwd(&learner.model.device, &mut learner.scratch.h, d_pooled, spans, pooling)?;
            learner.backward(noise)
        })?;
        learner.state.verdict()
    }

    /// The loss of a batch, without any dropout.
    pub fn evaluate(&mut self, learner: &mut Learner, batch: &Batch, rule: Rule) -> Result<Outcome> {
        self.size(batch)?;
        let (all, mut tokens) = (&batch.sequences, 0);
        for sequences in pieces(0..all.len(), rule.chunk) {
            tokens += sequences.clone().map(|i| all[i].ids.len()).sum::<usize>();
            self.embed_chunk(learner, batch, &Chunk { sequences, noise: None }, rule.pooling, "embed alone")?;
        }
        self.score(learner, batch, rule, "score alone", None)?;
        self.outcome(batch, tokens)
    }

    /// The unit vectors of sequences, `chunk` at a time, without any dropout.
    pub fn embed_alone(
        &mut self,
        learner: &mut Learner,
        sequences: &[Sequence],
        chunk: usize,
        pooling: Pooling,
    ) -> Result<Vec<f32>> {
        let (mut vectors, graphs) = (Vec::new(), learner.graphs.clone());
        for chunk in sequences.chunks(chunk) {
            self.take(learner, chunk)?;
            graphs.run("embed texts", || self.embed(learner, pooling, None))?;
            learner.state.verdict()?;
            vectors.extend_from_slice(&self.unit.read_f32()?);
        }
        Ok(vectors)
    }

    /// Rows for a batch.
    fn size(&mut self, batch: &Batch) -> Result<()> {
        let (queries, candidates) = (batch.queries, batch.sequences.len() - batch.queries);
        let Contrastive { vectors: [q, c], d_vectors: [dq, dc], .. } = self;
        [q, dq].into_iter().try_for_each(|t| t.set_rows(queries))?;
        [c, dc].into_iter().try_for_each(|t| t.set_rows(candidates))
    }

    /// Leaves the vectors of a batch in `vectors`, those of the other ranks too; gives the chunks of this process's slices,
    /// each with its own dropout, and the tokens of all.
    fn embed_slices(
        &mut self,
        learner: &mut Learner,
        batch: &Batch,
        rule: Rule,
        noise: Option<&Noise>,
    ) -> Result<(Vec<Vec<Chunk>>, usize)> {
        self.size(batch)?;
        let lengths = || batch.sequences.iter().map(|s| s.ids.len());
        let starts: Vec<usize> = lengths().scan(0, |end, n| Some(std::mem::replace(end, *end + n))).collect();
        let slices = learner.share.cut(lengths());
        let own = learner.share.own();
        let noise_at = |at: usize| noise.map(|n| Noise { first: n.first + starts[at] as u64, ..*n });
        let chunk = |sequences: Range<usize>| Chunk { noise: noise_at(sequences.start), sequences };
        let chunks: Vec<Vec<Chunk>> =
            slices[own.clone()].iter().map(|s| pieces(s.clone(), rule.chunk).map(chunk).collect()).collect();
        for chunk in chunks.iter().flatten() {
            self.embed_chunk(learner, batch, chunk, rule.pooling, "embed")?;
        }
        if learner.share.ranks.size > 1 {
            self.gather(learner, slices[own.start].start..slices[own.end - 1].end, batch.queries)?;
        }
        Ok((chunks, lengths().sum()))
    }

    /// Leaves the vectors of a chunk in their rows of `vectors`.
    fn embed_chunk(
        &mut self,
        learner: &mut Learner,
        batch: &Batch,
        Chunk { sequences, noise }: &Chunk,
        pooling: Pooling,
        stretch: &'static str,
    ) -> Result<()> {
        self.take(learner, &batch.sequences[sequences.clone()])?;
        learner.graphs.clone().run(stretch, || {
            self.embed(learner, pooling, noise.as_ref())?;
            let mut parts = split(&mut self.vectors, sequences, batch.queries);
            parts.try_for_each(|(vectors, to, at, rows)| vectors.copy_rows(to, &self.unit, at, rows))
        })?;
        learner.state.verdict()
    }

    /// Brings the vectors of `own` sequences to the other ranks, and theirs here.
    fn gather(&mut self, learner: &Learner, own: Range<usize>, queries: usize) -> Result<()> {
        let [q, c] = &mut self.vectors;
        let width = q.shape()[1];
        let mut all = [q.read_f32()?, c.read_f32()?].concat();
        let mine = bytemuck::cast_slice(&all[own.start * width..own.end * width]);
        let words = learner.share.ranks.gather(mine)?.concat();
        all = bytemuck::cast_vec(words);
        q.write(&all[..queries * width])?;
        c.write(&all[queries * width..])
    }

    /// Of the last batch.
    fn outcome(&self, batch: &Batch, tokens: usize) -> Result<Outcome> {
        let of_level = |l: &Level| l.total.read().map(|total| (l.d, l.weight * total[0], total[1]));
        let levels = self.levels.iter().map(of_level).collect::<Result<Vec<_>>>()?;
        // Hits are those of the widest.
        let widest = levels.iter().max_by_key(|level| level.0);
        let (loss, hits) = match widest {
            Some(&(_, _, hits)) => (levels.iter().map(|level| level.1).sum(), hits),
            None => self.total.read().map(|total| (total[0], total[1]))?,
        };
        Ok(Outcome { loss, hits: hits as usize, rows: batch.queries, tokens })
    }

    /// The unit vectors of the queries and of the candidates of the last batch.
    pub fn vectors(&self) -> &[Tensor; 2] {
        &self.vectors
    }

    /// Takes sequences to the device; gives their tokens.
    fn take(&mut self, learner: &mut Learner, sequences: &[Sequence]) -> Result<usize> {
        let pack = Pack::new(sequences.iter().map(|s| (s.ids.as_slice(), s.span.clone())));
        learner.take(&pack.ids, &pack.starts)?;
        let Contrastive { spans, pooled, unit, norm, .. } = self;
        [&mut *spans, pooled, unit, norm].into_iter().try_for_each(|t| t.set_rows(sequences.len()))?;
        spans.write(&pack.spans)?;
        Ok(pack.ids.len())
    }

    /// Leaves the sequences' vectors in `unit`.
    fn embed(&mut self, learner: &mut Learner, pooling: Pooling, noise: Option<&Noise>) -> Result<()> {
        learner.forward(noise)?;
        let Contrastive { spans, pooled, unit, norm, .. } = self;
        pool_fwd(&learner.model.device, pooled, &learner.state.hidden, spans, pooling)?;
        l2norm_fwd(&learner.model.device, unit, norm, pooled, EPS)
    }

    /// The loss over all vectors, and so many times its gradient in `d_vectors`.
    fn score(
        &mut self,
        learner: &Learner,
        batch: &Batch,
        rule: Rule,
        stretch: &'static str,
        weight: Option<f64>,
    ) -> Result<()> {
        let Contrastive { vectors: [q, c], d_vectors: [dq, dc], same, loss, lse, total, levels, .. } = self;
        [&mut *loss, lse].into_iter().try_for_each(|t| t.set_rows(batch.queries))?;
        let same = match &batch.same {
            Some(numbers) => {
                same.set_rows(numbers.len())?;
                same.write(numbers)?;
                Some(&*same)
            }
            None => None,
        };
        let device = &learner.model.device;
        levels.iter_mut().try_for_each(|level| level.set_rows(q.shape()[0], c.shape()[0]))?;
        learner.graphs.run(stretch, || {
            if levels.is_empty() {
                contrastive_fwd(device, total, loss, lse, q, c, same, rule.loss)?;
                return match weight {
                    Some(weight) => contrastive_bwd(device, dq, dc, q, c, same, lse, rule.loss, weight),
                    None => Ok(()),
                };
            }
            [&mut *dq, dc].into_iter().try_for_each(Tensor::clear)?;
            for Level { weight: share, unit: [uq, uc], d_unit: [duq, duc], norm: [nq, nc], total, .. } in
                levels
            {
                l2norm_fwd(device, uq, nq, q, EPS)?;
                l2norm_fwd(device, uc, nc, c, EPS)?;
                contrastive_fwd(device, total, loss, lse, uq, uc, same, rule.loss)?;
                if let Some(weight) = weight {
                    contrastive_bwd(device, duq, duc, uq, uc, same, lse, rule.loss, weight * *share)?;
                    l2norm_bwd(device, dq, duq, uq, nq, EPS, true)?;
                    l2norm_bwd(device, dc, duc, uc, nc, EPS, true)?;
                }
            }
            Ok(())
        })
    }
}

impl Level {
    fn new(arena: &mut Arena, queries: usize, candidates: usize, (d, weight): (usize, f64)) -> Level {
        let mut both =
            |shape: &dyn Fn(usize) -> Vec<usize>| [queries, candidates].map(|n| arena.statistic(&shape(n)));
        let wide = |n: usize| vec![n, d];
        let [unit, d_unit, norm] = [both(&wide), both(&wide), both(&|n| vec![n])];
        Level { weight, d, unit, d_unit, norm, total: arena.statistic(&[2]) }
    }

    fn set_rows(&mut self, queries: usize, candidates: usize) -> Result<()> {
        let Level { unit, d_unit, norm, .. } = self;
        [unit, d_unit, norm]
            .into_iter()
            .flatten()
            .zip([queries, candidates].into_iter().cycle())
            .try_for_each(|(tensor, rows)| tensor.set_rows(rows))
    }
}

/// A range in pieces of at most `size`; 0 is one piece of it all.
fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = if size == 0 { range.len().max(1) } else { size };
    range.clone().step_by(size).map(move |at| at..range.end.min(at + size))
}

/// Where a chunk's rows lie in (queries, candidates): tensor, its first row, the chunk's first row, rows.
fn split<'a>(
    [queries, candidates]: &'a mut [Tensor; 2],
    chunk: &Range<usize>,
    p: usize,
) -> impl Iterator<Item = (&'a mut Tensor, usize, usize, usize)> {
    let (middle, n) = (p.clamp(chunk.start, chunk.end), chunk.len());
    let below = middle - chunk.start;
    let parts = [(queries, chunk.start, 0, below), (candidates, middle.saturating_sub(p), below, n - below)];
    parts.into_iter().filter(|part| part.3 > 0)
}
