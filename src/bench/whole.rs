//! A whole pass over a pack: encoding, or a step of training; a real model or a random one, random tokens.

use super::cases::large::SHAPES;
use super::measure::{Bounds, Clock, DRAWN, Deadline, Operands, Settings, bounds, ints};
use super::record::{Roof, Row, Spread};
use crate::device::gpu::Graphs;
use crate::device::{DType, Device};
use crate::error::{Error, Result, Setting, message};
use crate::memory::Arena;
use crate::model::Model;
use crate::model::config::Config;
use crate::model::llama::Noise;
use crate::model::lora::Delta;
use crate::model::state::{Keep, State};
use crate::model::weights::{Source, Storage};
use crate::ops::adamw::AdamW;
use crate::ops::attention::Mask;
use crate::ops::contrastive::InfoNce;
use crate::ops::pool::{Pooling, pool_fwd};
use crate::pretrained::files::{ModelFiles, Stack};
use crate::rng::normal;
use crate::tensor::Raw;
use crate::train::contrastive::{Batch, Contrastive, Rule, Sequence};
use crate::train::learner::{self, Head, Learner};
use half::bf16;
use serde_json::json;
use std::time::Instant;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A pack to vectors on the host.
    Encode,
    /// SimCSE: forward, loss, backward, clip, AdamW; rank 16 on every projection, the recipe's dropout.
    Train,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// In a pack.
    pub tokens: usize,
    /// In a text.
    pub length: usize,
    /// bf16 weights packed for the CPU's micro-kernels.
    pub panels: bool,
    /// Keep only the inputs of blocks.
    pub recompute: bool,
    /// On a GPU: queue stretches of a step as graphs.
    pub graph: bool,
}

/// A model to be timed, and where its weights come from.
pub struct Timed {
    /// As it was asked for.
    pub name: String,
    config: Config,
    files: Option<ModelFiles>,
}

const RANK: usize = 16;

impl Timed {
    /// Of a folder, or of the local Hugging Face cache.
    pub fn open(name: &str) -> Result<Timed> {
        let stack = Stack::open(name, &[])?;
        let config = Config::parse(&stack.config)?;
        let (files, _) = ModelFiles::open(&stack.base, &config, &stack.adapters)?;
        Ok(Timed { name: name.into(), config, files: Some(files) })
    }

    /// Random weights in a known shape.
    pub fn random(name: &str) -> Result<Timed> {
        let Some(shape) = SHAPES.iter().find(|s| s.name.eq_ignore_ascii_case(name)) else {
            let names = SHAPES.map(|s| s.name).join(", ");
            return Err(Error::usage(message![Setting::Shape, format!(" {name}: expected one of {names}")]));
        };
        let config = Config::parse(&json!({
            "model_type": "llama", "hidden_size": shape.width, "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads.query,
            "num_key_value_heads": shape.heads.key, "head_dim": shape.heads.width, "vocab_size": shape.vocab,
        }))?;
        Ok(Timed { name: format!("{}, random", shape.name), config, files: None })
    }

    /// Leaves out layers from behind.
    pub fn cut(&mut self, layers: usize) -> Result<()> {
        if !(1..=self.config.layers).contains(&layers) {
            let what = format!(" {layers}: the model has {}", self.config.layers);
            return Err(Error::usage(message![Setting::Layers, what]));
        }
        self.name += &format!(", {layers} of {} layers", self.config.layers);
        self.config.layers = layers;
        Ok(())
    }

    /// Multiplications and additions of the matrix products and of attention, both ways where it learns; adapters left out.
    fn flops(&self, task: Task, size: Size) -> u64 {
        let (c, texts) = (&self.config, size.tokens / size.length);
        let weights: usize = c.projections().iter().map(|p| p.rows * p.cols).sum();
        let linear = 2 * weights * size.tokens;
        let attention = 4 * c.heads.query * c.heads.width * size.length * size.length * texts;
        let (linears, attentions) = match (task, size.recompute) {
            (Task::Encode, _) => (1.0, 1.0),
            // Frozen weights have no gradient of their own.
            (Task::Train, false) => (2.0, 3.5),
            (Task::Train, true) => (3.0, 4.5),
        };
        (c.layers as f64 * (linears * linear as f64 + attentions * attention as f64)) as u64
    }
}

/// Times a task; the roof's product in between.
pub fn measure(
    device: &Device,
    timed: &Timed,
    task: Task,
    size: Size,
    settings: Settings,
) -> Result<(Row, Roof)> {
    if size.length == 0 || size.tokens < 2 * size.length || size.tokens > 1 << 20 {
        let tokens = message![Setting::Tokens, format!(" {} ", size.tokens)];
        let length = message![Setting::Length, format!(" {}", size.length)];
        let what = ": expected at least two texts, and at most 2^20 tokens";
        return Err(Error::usage(message![tokens, length, what]));
    }
    let size = Size { tokens: size.tokens / (2 * size.length) * 2 * size.length, ..size };
    let mut runner: Box<dyn FnMut() -> Result<()>> = match task {
        Task::Encode => Box::new(encoder(device, timed, size)?),
        Task::Train => Box::new(trainer(device, timed, size)?),
    };
    runner()?;
    let (operands, mut clock, mut samples) = (Operands::new(device), Clock::new(device)?, Vec::new());
    let cases = bounds(device);
    let mut bounds = Bounds::new(&operands, &cases, size.panels);
    let deadline = Deadline::new(settings.time);
    for round in 0..settings.rounds {
        if round > 0 && deadline.over(1.0) {
            break;
        }
        bounds.sample(&mut clock, settings.samples)?;
        for _ in 0..settings.samples {
            let start = Instant::now();
            runner()?;
            samples.push(start.elapsed().as_secs_f64());
        }
    }
    let (time, roof, flops) = (Spread::of(&samples), bounds.roof(device), timed.flops(task, size));
    let share = roof.flops_per_second.zip(time).map(|(rate, t)| flops as f64 / rate / t.median);
    let trains = |flag: bool, words: &'static str| if flag && task == Task::Train { words } else { "" };
    let (kept, queued) = (trains(size.recompute, ", recomputed"), trains(!size.graph, ", kernel by kernel"));
    let packed = if size.panels { ", bf16 panels" } else { "" };
    let row = Row {
        op: if task == Task::Encode { "encode" } else { "train" }.into(),
        label: format!(
            "{}{packed}, {} texts of {} tokens{kept}{queued}",
            timed.name,
            size.tokens / size.length,
            size.length
        ),
        flops,
        tokens: Some(size.tokens as u64),
        time,
        share,
        ..Row::default()
    };
    Ok((row, roof))
}

fn storage(size: Size) -> Storage {
    if size.panels { Storage::Panels } else { Storage::Real }
}

/// Random ids, and where each text starts.
fn texts(timed: &Timed, size: Size) -> (Vec<i32>, Vec<i32>) {
    let vocab = timed.config.vocab as f64;
    let id = |x: f64| ((x.abs() * 0.37).fract() * vocab) as i32;
    let ids = normal(3, size.tokens).into_iter().map(id).collect();
    (ids, (0..=size.tokens).step_by(size.length).map(|at| at as i32).collect())
}

fn load(timed: &Timed, model: &mut Model) -> Result<()> {
    match &timed.files {
        Some(files) => model.load(files),
        None => model.load(&Random::new(&timed.config)),
    }
}

fn encoder(device: &Device, timed: &Timed, size: Size) -> Result<impl FnMut() -> Result<()>> {
    let Size { tokens, length, .. } = size;
    let buffers = |arena: &mut Arena| {
        let model = Model::new(arena, &timed.config, Mask::Full, storage(size), length);
        let state = State::new(arena, &timed.config, tokens, 0, Keep::Nothing);
        arena.group("vectors");
        let pooled = arena.statistic(&[tokens / length, timed.config.width]);
        (model, state, pooled)
    };
    fits(device, |arena| {
        buffers(arena);
    })?;
    let mut arena = Arena::new(device);
    let (mut model, mut state, mut pooled) = buffers(&mut arena);
    arena.finish()?;
    load(timed, &mut model)?;
    let (ids, starts) = texts(timed, size);
    let spans: Vec<i32> = starts.windows(2).flat_map(|w| [w[0], w[1]]).collect();
    let spans = ints(device, &[tokens / length, 2], &spans)?;
    Ok(move || {
        state.set_batch(&ids, &starts)?;
        model.forward(&mut state, None)?;
        pool_fwd(&model.device, &mut pooled, &state.hidden, &spans, Pooling::Mean)?;
        // Waits for the device, as whoever wants vectors does.
        pooled.to_host().map(|_| ())
    })
}

fn fits(device: &Device, build: impl FnOnce(&mut Arena)) -> Result<()> {
    let mut arena = Arena::planning(device);
    build(&mut arena);
    let (tokens, layers) = (Setting::Tokens, Setting::Layers);
    arena.check(message!["fewer ", tokens, " or ", layers, ", or ", Setting::Recompute])
}

fn trainer(device: &Device, timed: &Timed, size: Size) -> Result<impl FnMut() -> Result<()>> {
    let Size { tokens, length, .. } = size;
    let (config, queries) = (&timed.config, tokens / length / 2);
    let deltas = adapters(config);
    let size_of = learner::Size {
        tokens,
        positions: length,
        rank: RANK,
        keep: if size.recompute { Keep::Streams } else { Keep::All },
        storage: storage(size),
        head: Head::None,
    };
    let buffers = |arena: &mut Arena| {
        let delta = |_, module: &str| deltas.iter().find(|(m, _)| *m == module).map(|(_, d)| d);
        let learner = Learner::new(arena, config, Mask::Full, size_of, delta);
        (learner, Contrastive::new(arena, config.width, queries, queries, 2 * queries))
    };
    fits(device, |arena| {
        buffers(arena);
    })?;
    let mut arena = Arena::new(device);
    let (mut learner, mut loss) = buffers(&mut arena);
    arena.finish()?;
    load(timed, &mut learner.model)?;
    if !size.graph {
        learner.graphs = Graphs::default();
    }
    let (ids, _) = texts(timed, size);
    let half = ids[..tokens / 2]
        .chunks(length)
        .map(|ids| Sequence { ids: ids.iter().map(|&id| id as u32).collect(), span: 0..length });
    let half: Vec<Sequence> = half.collect();
    let batch = Batch { sequences: [half.clone(), half].concat(), queries, same: None };
    let rule = Rule { pooling: Pooling::Mean, loss: InfoNce { scale: 20.0, margin: None }, chunk: 0 };
    let mut step = 0;
    Ok(move || {
        step += 1;
        let noise = Noise { attention: 0.3, lora: 0.05, seed: 1, step, first: 0 };
        loss.learn(&mut learner, &batch, rule, Some(&noise), 1.0)?;
        let step = u64::from(step);
        let by = AdamW { rate: 3e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, step };
        learner.update(by, 1.0).map(|_| ())
    })
}

/// One random pair for each kind of projection; all layers begin with the same.
fn adapters(config: &Config) -> Vec<(&'static str, Delta)> {
    let some = |n: usize, scale: f64| -> Vec<f32> {
        let drawn = normal(n as u64, n.min(DRAWN));
        drawn.iter().cycle().take(n).map(|x| (x * scale) as f32).collect()
    };
    let pair = |p: &crate::model::config::Projection| {
        let a = some(RANK * p.cols, (p.cols as f64).powf(-0.5));
        (p.module, Delta { scale: 2.0, rank: RANK, a, b: some(p.rows * RANK, 0.01) })
    };
    config.projections().iter().map(pair).collect()
}

/// A checkpoint of random bf16 numbers: matrices share one array, vectors another.
struct Random<'a> {
    config: &'a Config,
    matrix: Vec<u8>,
    vector: Vec<u8>,
}

impl Random<'_> {
    fn new(config: &Config) -> Random<'_> {
        let matrices = config.projections().map(|p| p.rows * p.cols);
        let most = matrices.into_iter().max().unwrap_or(0).max(config.vocab * config.width);
        // How Llama's weights start.
        let drawn: Vec<[u8; 2]> =
            normal(1, DRAWN).iter().map(|x| bf16::from_f64(0.02 * x).to_le_bytes()).collect();
        let matrix = drawn.iter().cycle().take(most).flatten().copied().collect();
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
            None => name.contains("embed_tokens").then(|| vec![self.config.vocab, c]),
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
