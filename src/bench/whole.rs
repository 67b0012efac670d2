//! A whole pass over a pack: encoding, or a step of training; a real model or a random one, random tokens; against PyTorch.

mod against;
mod work;

use super::cases::large::{SHAPES, SMALL};
use super::measure::{Deadline, Settings};
use super::record::{Rival, Roof, Row, Spread};
use super::roof::{Bounds, bounds};
use super::subject::{Clock, Operands};
use crate::device::Device;
use crate::device::cpu::{memory, reset_peak};
use crate::error::{Error, Result, Setting, message};
use crate::model::config::Config;
use crate::pretrained::files::{ModelFiles, Stack};
use crate::tensor::Tensor;
use crate::train::config::Stage;
use against::Rivals;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

pub use against::Against;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A pack to vectors on the host.
    Encode,
    /// A step: forward, loss, backward, clip, AdamW; rank 16 on every projection, the recipe's dropout. MNTP hides a fifth
    /// of the tokens under a frozen head, SimCSE has each text twice, a supervised query a positive and a negative.
    Train(Stage),
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// In a pack.
    pub tokens: usize,
    /// In a text.
    pub length: usize,
    /// bf16 weights packed for the CPU's products.
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
    /// Of the weights; or what `config.json` would say of random ones.
    folder: Option<PathBuf>,
    shape: Option<Value>,
    /// There are adapters in `files`.
    adapted: bool,
}

impl Timed {
    /// Of a folder, or of the local Hugging Face cache.
    pub fn open(name: &str) -> Result<Timed> {
        let stack = Stack::open(name, &[])?;
        let config = Config::parse(&stack.config)?;
        let (files, _) = ModelFiles::open(&stack.base, &config, &stack.adapters)?;
        let (folder, adapted) = (Some(stack.base.dir), !stack.adapters.is_empty());
        Ok(Timed { name: name.into(), config, files: Some(files), folder, shape: None, adapted })
    }

    /// Random weights in a known shape.
    pub fn random(name: &str) -> Result<Timed> {
        let shapes = || SHAPES.into_iter().chain([SMALL]);
        let Some(shape) = shapes().find(|s| s.name.eq_ignore_ascii_case(name)) else {
            let names = shapes().map(|s| s.name).collect::<Vec<_>>().join(", ");
            return Err(Error::usage(message![Setting::Shape, format!(" {name}: expected one of {names}")]));
        };
        let json = json!({
            "model_type": "llama", "hidden_size": shape.width, "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads.query,
            "num_key_value_heads": shape.heads.key, "head_dim": shape.heads.width, "vocab_size": shape.vocab,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        });
        let (name, config) = (format!("{}, random", shape.name), Config::parse(&json)?);
        Ok(Timed { name, config, files: None, folder: None, shape: Some(json), adapted: false })
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
            (Task::Train(_), false) => (2.0, 3.5),
            (Task::Train(_), true) => (3.0, 4.5),
        };
        let labels = if task == Task::Train(Stage::Mntp) { work::masked(c, size).rows.len() } else { 0 };
        let head = 2 * 2 * labels * c.vocab * c.width;
        (c.layers as f64 * (linears * linear as f64 + attentions * attention as f64)) as u64 + head as u64
    }

    fn label(&self, task: Task, size: Size) -> String {
        let trains = |flag: bool, words: &'static str| if flag && task != Task::Encode { words } else { "" };
        let stage = if let Task::Train(stage) = task { format!(", {}", stage.name()) } else { String::new() };
        let (kept, queued) =
            (trains(size.recompute, ", recomputed"), trains(!size.graph, ", kernel by kernel"));
        let packed = if size.panels { ", bf16 panels" } else { "" };
        let (texts, length) = (size.tokens / size.length, size.length);
        format!("{}{packed}{stage}, {texts} texts of {length} tokens{kept}{queued}", self.name)
    }
}

/// Ours so far.
#[derive(Default)]
struct Ours {
    samples: Vec<f64>,
    /// MHz behind each of them, where there is a clock.
    clocks: Vec<f64>,
    roof: Roof,
    /// Without chance, from where it starts.
    result: Option<Tensor>,
    peak: Option<u64>,
}

/// Times a task; the roof's product in between, and the rival's ways in turn. With the roof, and the rival's name.
///
/// `open` opens the device, anew for every round with a rival: what is left to one is then all that there is.
/// Errors where our own work fails; what a rival's does is in the row.
pub fn measure(
    open: &dyn Fn() -> Result<Device>,
    timed: &Timed,
    task: Task,
    size: Size,
    settings: Settings,
    against: Option<&Against>,
) -> Result<(Row, Roof, Option<String>)> {
    let texts = work::recipe(task).texts;
    if size.length == 0 || size.tokens < texts.max(2) * size.length || size.tokens > 1 << 20 {
        let tokens = message![Setting::Tokens, format!(" {} ", size.tokens)];
        let length = message![Setting::Length, format!(" {}", size.length)];
        let what =
            format!(": expected at least {} texts, and at most 2^20 tokens", ["two", "three"][texts / 3]);
        return Err(Error::usage(message![tokens, length, what]));
    }
    let size = Size { tokens: size.tokens / (texts * size.length) * texts * size.length, ..size };
    let bf16 = size.panels || against.is_some_and(|a| a.gpu.is_some());
    let mut rivals = against.map(|a| Rivals::start(a, timed, task, size, bf16)).transpose()?;
    let mut row = Row {
        op: if task == Task::Encode { "encode" } else { "train" }.into(),
        label: timed.label(task, size),
        flops: timed.flops(task, size),
        tokens: Some(size.tokens as u64),
        ..Row::default()
    };
    let (mut ours, deadline) = (Ours::default(), Deadline::new(settings.time));
    let Some(rivals) = &mut rivals else {
        turn(&open()?, timed, task, size, settings, &deadline, &mut ours)?;
        return Ok(done(row, ours, None));
    };
    for round in 0..settings.rounds.max(1) {
        if round > 0 && deadline.over(1.0) {
            break;
        }
        let once = Settings { rounds: settings.rounds.min(1), ..settings };
        turn(&open()?, timed, task, size, once, &deadline, &mut ours)?;
        if let (0, Some(result)) = (round, &ours.result) {
            match rivals.apart(result, task) {
                Ok(apart) => row.apart = apart,
                Err(why) => (row.failed, row.note) = (why.starts_with("not the same"), Some(why)),
            }
        }
        rivals.ways.iter_mut().for_each(|(_, python)| python.run(0, settings.samples));
    }
    let name = rivals.ways[0].1.name.clone();
    for (way, python) in &mut rivals.ways {
        let taken = python.taken(0).into_iter().map(|(name, found)| match found {
            // Of a process that is gone.
            Rival::Note(why) if name == "PyTorch" => (way.to_string(), Rival::Note(why)),
            found => (name, found),
        });
        // What it measured before it was lost is worth more than why it was.
        for (name, found) in taken {
            if !matches!(row.rivals.get(&name), Some(Rival::Time(_))) || matches!(found, Rival::Time(_)) {
                row.rivals.insert(name, found);
            }
        }
        row.rival_peaks.extend(python.peak.map(|bytes| (way.to_string(), bytes)));
    }
    Ok(done(row, ours, Some(name)))
}

fn done(row: Row, ours: Ours, rival: Option<String>) -> (Row, Roof, Option<String>) {
    let time = Spread::of(&ours.samples);
    let share = ours.roof.flops_per_second.zip(time).map(|(rate, t)| row.flops as f64 / rate / t.median);
    let clock_mhz = Spread::of(&ours.clocks).map(|clocks| clocks.median);
    (Row { time, share, clock_mhz, peak: ours.peak, ..row }, ours.roof, rival)
}

/// Our rounds on a device: made ready, timed, and gone.
fn turn(
    device: &Device,
    timed: &Timed,
    task: Task,
    size: Size,
    settings: Settings,
    deadline: &Deadline,
    ours: &mut Ours,
) -> Result<()> {
    let (mut work, bytes) = work::work(device, timed, task, size)?;
    reset_peak();
    let result = work(false)?;
    work(true)?;
    // A GPU's memory is what was planned; the CPU's is what the process had, as the rival's is.
    let had = memory("/proc/self/status", "VmHWM:").filter(|_| matches!(device, Device::Cpu(_)));
    ours.result.get_or_insert(result);
    ours.peak.get_or_insert(had.unwrap_or(bytes));
    let (operands, mut clock) = (Operands::new(device), Clock::new(device)?);
    let cases = bounds(device);
    let mut bounds = Bounds::new(&operands, &cases, size.panels);
    for round in 0..settings.rounds {
        if round > 0 && deadline.over(1.0) {
            break;
        }
        bounds.sample(&mut clock, settings.samples)?;
        for _ in 0..settings.samples {
            let start = Instant::now();
            work(true)?;
            ours.samples.push(start.elapsed().as_secs_f64());
            ours.clocks.extend(clock.mhz()?);
        }
    }
    ours.roof = bounds.roof(device);
    Ok(())
}
