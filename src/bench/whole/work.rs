//! What a bench of whole models runs: an encoder or a learner, with its weights, its adapter and its texts.

use super::{Size, Task, Timed};
use crate::bench::subject::{DRAWN, ints};
use crate::device::gpu::Graphs;
use crate::device::{DType, Device};
use crate::error::{Error, Result, Setting, message};
use crate::memory::Arena;
use crate::model::Model;
use crate::model::config::{Config, Projection};
use crate::model::llama::Noise;
use crate::model::lora::Delta;
use crate::model::state::{Keep, State};
use crate::model::weights::{Source, Storage};
use crate::ops::adamw::AdamW;
use crate::ops::attention::Mask;
use crate::ops::contrastive::{InfoNce, LossDtype};
use crate::ops::pool::{Pooling, pool_fwd};
use crate::rng::normal;
use crate::tensor::{Raw, Tensor};
use crate::train::blocks::Block;
use crate::train::config::Stage;
use crate::train::contrastive::{Batch, Contrastive, Rule, Sequence};
use crate::train::learner::{self, Head, Learner};
use crate::train::mask::{Draw, Masked, Masking, Strategy};
use crate::train::mntp::Mntp;
use half::bf16;

/// The adapter's rank, on all seven projections, and what its product is multiplied by.
pub(super) const RANK: usize = 16;
pub(super) const SCALE: f64 = 2.0;
pub(super) const LORA_DROPOUT: f64 = 0.05;
pub(super) const RATE: f64 = 3e-5;
/// The gradient's norm is clipped to this.
pub(super) const MOST: f64 = 1.0;

/// One pass over the pack: the vectors, or loss and norm of the gradient. Without chance (dropout) nothing is learned.
pub(super) type Work = Box<dyn FnMut(bool) -> Result<Tensor>>;

/// What a stage of training has of its own, as the recipe has it.
pub(super) struct Recipe {
    /// Texts come in so many.
    pub texts: usize,
    /// Dropout of attention probabilities.
    pub dropout: f64,
    /// Of the cosines; 0 where there are none.
    pub scale: f64,
}

/// The recipe's settings of a task.
pub(super) fn recipe(task: Task) -> Recipe {
    let (texts, dropout, scale) = match task {
        Task::Encode | Task::Train(Stage::Mntp) => (1, 0.0, 0.0),
        Task::Train(Stage::Simcse) => (2, 0.3, 20.0),
        Task::Train(Stage::Supervised) => (3, 0.0, 50.0),
    };
    Recipe { texts, dropout, scale }
}

/// Makes it ready; with the bytes that it takes.
pub(super) fn work(device: &Device, timed: &Timed, task: Task, size: Size) -> Result<(Work, u64)> {
    match task {
        Task::Encode => encoder(device, timed, size),
        Task::Train(Stage::Mntp) => mntp(device, timed, size),
        Task::Train(stage) => contrastive(device, timed, stage, size),
    }
}

fn storage(size: Size) -> Storage {
    if size.panels { Storage::Panels } else { Storage::Real }
}

/// Random ids.
pub(super) fn ids(config: &Config, tokens: usize) -> Vec<i32> {
    let vocab = config.vocab as f64;
    normal(3, tokens).into_iter().map(|x| ((x.abs() * 0.37).fract() * vocab) as i32).collect()
}

/// The ids with a fifth hidden, text by text.
pub(super) fn masked(config: &Config, size: Size) -> Masked {
    let block = |ids: &[i32]| Block {
        ids: ids.iter().map(|&id| id as u32).collect(),
        special: vec![false; ids.len()],
        starts: vec![0],
    };
    let blocks: Vec<Block> = ids(config, size.tokens).chunks(size.length).map(block).collect();
    let vocab = config.vocab as u32;
    let masking = Masking { probability: 0.2, strategy: Strategy::Bert, mask: 0, vocab, seed: 1 };
    masking.apply(Draw::Step(1), 0, &blocks)
}

/// Texts as queries and candidates: of SimCSE each its own positive; else positives, then negatives, of their own.
pub(super) fn batch(config: &Config, stage: Stage, size: Size) -> Batch {
    let Recipe { texts, .. } = recipe(Task::Train(stage));
    let queries = size.tokens / size.length / texts;
    let text =
        |ids: &[i32]| Sequence { ids: ids.iter().map(|&id| id as u32).collect(), span: 0..size.length };
    let mut sequences: Vec<Sequence> = ids(config, size.tokens).chunks(size.length).map(text).collect();
    if stage == Stage::Simcse {
        let (first, again) = sequences.split_at_mut(queries);
        again.clone_from_slice(first);
    }
    Batch { sequences, queries, same: None }
}

/// Plans, refuses what does not fit, then allocates what `build` asks for.
fn allocated<T>(device: &Device, build: impl Fn(&mut Arena) -> T) -> Result<(T, u64)> {
    let mut plan = Arena::planning(device);
    build(&mut plan);
    let (tokens, layers) = (Setting::Tokens, Setting::Layers);
    plan.check(message!["fewer ", tokens, " or ", layers, ", or ", Setting::Recompute])?;
    let mut arena = Arena::new(device);
    let built = build(&mut arena);
    arena.finish()?;
    Ok((built, arena.total()))
}

fn load(timed: &Timed, model: &mut Model) -> Result<()> {
    match &timed.files {
        Some(files) => model.load(files),
        None => model.load(&Random::new(&timed.config)),
    }
}

fn encoder(device: &Device, timed: &Timed, size: Size) -> Result<(Work, u64)> {
    let Size { tokens, length, .. } = size;
    let ((mut model, mut state, mut pooled), bytes) = allocated(device, |arena| {
        let model = Model::new(arena, &timed.config, Mask::Full, storage(size), length);
        let state = State::new(arena, &timed.config, tokens, 0, Keep::Nothing);
        arena.group("vectors");
        (model, state, arena.statistic(&[tokens / length, timed.config.width]))
    })?;
    load(timed, &mut model)?;
    let ids = ids(&timed.config, tokens);
    let starts: Vec<i32> = (0..=tokens).step_by(length).map(|at| at as i32).collect();
    let spans: Vec<i32> = starts.windows(2).flat_map(|w| [w[0], w[1]]).collect();
    let spans = ints(device, &[tokens / length, 2], &spans)?;
    let work = move |_| {
        state.set_batch(&ids, &starts)?;
        model.forward(&mut state, None)?;
        pool_fwd(&model.device, &mut pooled, &state.hidden, &spans, Pooling::Mean)?;
        // Waits for the device, as whoever wants vectors does.
        pooled.to_host()
    };
    Ok((Box::new(work), bytes))
}

fn learner(
    arena: &mut Arena,
    timed: &Timed,
    deltas: &[(&'static str, Delta)],
    size: Size,
    head: Head,
) -> Learner {
    let size = learner::Size {
        tokens: size.tokens,
        positions: size.length,
        rank: RANK,
        keep: if size.recompute { Keep::Streams } else { Keep::All },
        storage: storage(size),
        head,
    };
    let delta = |_, module: &str| deltas.iter().find(|(m, _)| *m == module).map(|(_, d)| d);
    Learner::new(arena, &timed.config, Mask::Full, size, delta)
}

/// Steps of a learner, its weights read: `learn` gives the loss.
fn steps(
    mut learner: Learner,
    timed: &Timed,
    task: Task,
    graph: bool,
    mut learn: impl FnMut(&mut Learner, &Noise) -> Result<f64> + 'static,
) -> Result<Work> {
    load(timed, &mut learner.model)?;
    if !graph {
        learner.graphs = Graphs::default();
    }
    let (dropout, mut step) = (recipe(task).dropout, 0);
    Ok(Box::new(move |chance| {
        step += 1;
        let on = f64::from(u8::from(chance));
        let noise = Noise { attention: on * dropout, lora: on * LORA_DROPOUT, seed: 1, step, first: 0 };
        let loss = learn(&mut learner, &noise)?;
        let step = u64::from(step);
        let by = AdamW { rate: on * RATE, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, step };
        let norm = learner.update(by, MOST)?;
        Ok(Tensor::from_f64(DType::F32, &[2], [loss, norm]))
    }))
}

fn contrastive(device: &Device, timed: &Timed, stage: Stage, size: Size) -> Result<(Work, u64)> {
    let (config, deltas, task) = (&timed.config, adapters(&timed.config), Task::Train(stage));
    let batch = batch(config, stage, size);
    let all = batch.sequences.len();
    let ((learner, mut loss), bytes) = allocated(device, |arena| {
        let learner = learner(arena, timed, &deltas, size, Head::None);
        (learner, Contrastive::new(arena, config.width, batch.queries, all - batch.queries, all, &[]))
    })?;
    let scale = recipe(task).scale;
    let rule = Rule {
        pooling: Pooling::Mean,
        loss: InfoNce { scale, margin: None, dtype: LossDtype::F32 },
        chunk: 0,
    };
    let learn = move |learner: &mut Learner, noise: &Noise| {
        loss.learn(learner, &batch, rule, Some(noise), 1.0).map(|outcome| outcome.loss)
    };
    Ok((steps(learner, timed, task, size.graph, learn)?, bytes))
}

fn mntp(device: &Device, timed: &Timed, size: Size) -> Result<(Work, u64)> {
    let (config, deltas, task) = (&timed.config, adapters(&timed.config), Task::Train(Stage::Mntp));
    let ((learner, mut loss), bytes) = allocated(device, |arena| {
        let learner = learner(arena, timed, &deltas, size, Head::Frozen);
        (learner, Mntp::new(arena, config, size.tokens))
    })?;
    let pack = masked(config, size);
    let learn = move |learner: &mut Learner, noise: &Noise| {
        loss.learn(learner, &pack, noise, 1.0).map(|outcome| outcome.loss)
    };
    Ok((steps(learner, timed, task, size.graph, learn)?, bytes))
}

/// One random pair for each kind of projection; all layers begin with the same.
pub(super) fn adapters(config: &Config) -> Vec<(&'static str, Delta)> {
    let some = |n: usize, scale: f64| -> Vec<f32> {
        let drawn = normal(n as u64, n.min(DRAWN));
        drawn.iter().cycle().take(n).map(|x| (x * scale) as f32).collect()
    };
    let pair = |p: &Projection| {
        let a = some(RANK * p.cols, (p.cols as f64).powf(-0.5));
        (p.module, Delta { scale: SCALE, rank: RANK, a, b: some(p.rows * RANK, 0.01) })
    };
    config.projections().iter().map(pair).collect()
}

/// The numbers that all matrices of a random model begin with, over and over; as Llama's weights start.
pub(super) fn drawn() -> Vec<u8> {
    normal(1, DRAWN).iter().flat_map(|x| bf16::from_f64(0.02 * x).to_le_bytes()).collect()
}

/// A checkpoint of random bf16 numbers: matrices share one array, vectors another, of ones.
struct Random<'a> {
    config: &'a Config,
    matrix: Vec<u8>,
    vector: Vec<u8>,
}

impl Random<'_> {
    fn new(config: &Config) -> Random<'_> {
        let matrices = config.projections().map(|p| p.rows * p.cols);
        let most = matrices.into_iter().max().unwrap_or(0).max(config.vocab * config.width);
        let matrix = drawn().into_iter().cycle().take(2 * most).collect();
        let vector = bf16::ONE.to_le_bytes().repeat(config.heads.columns().max(config.width));
        Random { config, matrix, vector }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let c = self.config.width;
        if name.ends_with("norm.weight") {
            return Some(vec![c]);
        }
        let projection = self.config.projections().into_iter().find(|p| name.contains(p.module));
        match projection {
            Some(p) if name.ends_with("bias") => Some(vec![p.rows]),
            Some(p) => Some(vec![p.rows, p.cols]),
            None => ["embed_tokens", "lm_head"]
                .iter()
                .any(|table| name.contains(table))
                .then(|| vec![self.config.vocab, c]),
        }
    }
}

impl Source for Random<'_> {
    fn tensor(&self, name: &str) -> Result<Raw<'_>> {
        let missing = || Error::unsupported(format!("a random model has no {name}"));
        let shape = self.shape(name).ok_or_else(missing)?;
        let all = if shape.len() == 1 { &self.vector } else { &self.matrix };
        let data = &all[..2 * shape.iter().product::<usize>()];
        Ok(Raw { name: "random", dtype: DType::Bf16, shape, data })
    }

    fn deltas(&self, _: usize, _: &str) -> Vec<&Delta> {
        Vec::new()
    }
}
