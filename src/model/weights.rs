//! The weights: every field with its shape, and where each comes from in a checkpoint.

use crate::device::panels::f32_unit;
use crate::device::{DType, Device};
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::model::adapted::Adapted;
use crate::model::config::Config;
use crate::model::lora::{Delta, Stack};
use crate::ops::narrow::narrow_fwd;
use crate::tensor::{Edit, Raw, Tensor};

/// How the large matrices are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the type that the device computes in; on a CPU packed for its products, where those are the quicker ones.
    Real,
    /// bf16, widened tile by tile as it is used: half the memory of f32.
    Bf16,
    /// bf16, packed for the bf16 matrix product.
    Panels,
}

/// Whether weights are packed that this device computes with as they are.
pub fn packs(device: &Device) -> bool {
    matches!(device, Device::Cpu(DType::F32)) && f32_unit().is_some()
}

/// A projection `[M, K]`, possibly several of the checkpoint's, one below the other.
#[derive(Clone, Debug)]
pub struct Linear {
    /// [M, K]
    pub w: Tensor,
    /// `[M]`
    pub bias: Option<Tensor>,
    /// Live adapters of its parts.
    pub lora: Option<Stack>,
    parts: Vec<(&'static str, usize)>,
}

/// One decoder block.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[C]`
    pub attention_norm: Tensor,
    /// `[C]`
    pub mlp_norm: Tensor,
    /// qkv [(H + 2G) D, C], o [C, H D], gate_up [2F, C], down [C, F]
    pub linears: Adapted<Linear>,
}

/// The decoder, and its head where one was asked for.
#[derive(Clone, Debug)]
pub struct Weights {
    /// [V, C]
    pub embed: Tensor,
    /// L of them
    pub layers: Vec<Layer>,
    /// `[C]`
    pub norm: Tensor,
    /// [V, C] where it was asked for and is not `embed` itself
    head: Option<Tensor>,
    /// [V, C] f32 where the head is trained on a device that computes with a rounded copy of it
    head_master: Option<Tensor>,
    head_trained: bool,
}

/// Where weights come from: a checkpoint, seen as named tensors and the deltas to merge into them.
pub trait Source: Sync {
    /// The tensor of this (long) name, for instance `model.layers.0.self_attn.q_proj.weight`.
    fn tensor(&self, name: &str) -> Result<Raw<'_>>;
    /// The deltas to add to `module` (`q_proj`, …) of `layer`, in order.
    fn deltas(&self, layer: usize, module: &str) -> Vec<&Delta>;
    /// Hears of so many more bytes of tensors that were read, and of the end, whether all were or not: `None`.
    fn taken(&self, _bytes: Option<usize>) {}
}

impl Linear {
    fn new(
        arena: &mut Arena,
        parts: &[(&'static str, usize)],
        k: usize,
        bias: bool,
        storage: Storage,
    ) -> Linear {
        let m = parts.iter().map(|(_, rows)| rows).sum();
        let w = match storage {
            Storage::Real if packs(&arena.device) => arena.panels(DType::F32, [m, k]),
            Storage::Real => arena.activation(&[m, k]),
            Storage::Bf16 => arena.tensor(DType::Bf16, &[m, k]),
            Storage::Panels => arena.panels(DType::Bf16, [m, k]),
        };
        Linear { w, bias: bias.then(|| arena.activation(&[m])), lora: None, parts: parts.to_vec() }
    }

    fn load(&mut self, source: &impl Source, layer: usize, group: &str) -> Result<()> {
        let k = self.w.shape()[1];
        let mut first = 0;
        for &(module, rows) in &self.parts {
            let name = format!("model.layers.{layer}.{group}.{module}");
            let deltas = source.deltas(layer, module);
            let merged =
                |row: usize, values: &mut [f32]| deltas.iter().for_each(|d| d.add_to_row(row, values));
            let edit: Option<Edit> = if deltas.is_empty() { None } else { Some(&merged) };
            fill(&mut self.w, first, source, &format!("{name}.weight"), &[rows, k], edit)?;
            if let Some(bias) = &mut self.bias {
                fill(bias, first, source, &format!("{name}.bias"), &[rows], None)?;
            }
            first += rows;
        }
        Ok(())
    }

    fn attach<'a>(&mut self, arena: &mut Arena, rank: usize, delta: impl Fn(&str) -> Option<&'a Delta>) {
        let deltas: Vec<_> = self.parts.iter().map(|(module, _)| delta(module)).collect();
        if deltas.iter().any(Option::is_some) {
            let rows: Vec<_> = self.parts.iter().map(|(_, rows)| *rows).collect();
            self.lora = Some(Stack::new(arena, &rows, self.w.shape()[1], rank, &deltas));
        }
    }
}

impl Weights {
    /// Room for the weights of `config`.
    pub fn new(arena: &mut Arena, config: &Config, storage: Storage) -> Weights {
        arena.group("weights");
        let (c, f, h) = (config.width, config.feed_forward, config.heads);
        let (q, kv) = (h.query * h.width, h.key * h.width);
        let table = if storage == Storage::Real { arena.device.activation() } else { DType::Bf16 };
        let embed = arena.tensor(table, &[config.vocab, c]);
        let layers = (0..config.layers)
            .map(|_| {
                let attention_norm = arena.activation(&[c]);
                let mut linear = |parts: &[_], k, bias| Linear::new(arena, parts, k, bias, storage);
                let qkv = linear(&[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], c, config.qkv_bias);
                let o = linear(&[("o_proj", c)], q, config.o_bias);
                let gate_up = linear(&[("gate_proj", f), ("up_proj", f)], c, false);
                let down = linear(&[("down_proj", c)], f, false);
                let mlp_norm = arena.activation(&[c]);
                Layer { attention_norm, mlp_norm, linears: Adapted { qkv, o, gate_up, down } }
            })
            .collect();
        let norm = arena.activation(&[c]);
        Weights { embed, layers, norm, head: None, head_master: None, head_trained: false }
    }

    /// Makes room for the head of `config`. A tied one is the embedding, unless it is to be trained: then it is a copy.
    pub fn add_head(&mut self, arena: &mut Arena, config: &Config, trained: bool) {
        arena.group("weights");
        self.head_trained = trained;
        let shape = [config.vocab, config.width];
        if trained {
            self.head = Some(arena.activation(&shape));
            let rounded = arena.device.activation() != arena.device.statistic();
            self.head_master = rounded.then(|| arena.statistic(&shape));
        } else if !config.tied {
            self.head = Some(arena.tensor(self.embed.dtype(), &shape));
        }
    }

    /// [V, C], the matrix that turns states into logits. [`Weights::add_head`] comes first.
    pub fn head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// [V, C], what an optimiser has made of the head, if it is trained.
    pub fn trained_head(&self) -> Option<&Tensor> {
        self.head_master.as_ref().or(self.head.as_ref()).filter(|_| self.head_trained)
    }

    /// Rounds a trained head anew, after its master has changed.
    pub fn round_head(&mut self, device: &Device) -> Result<()> {
        match (&mut self.head, &self.head_master) {
            (Some(head), Some(master)) => narrow_fwd(device, head, master),
            _ => Ok(()),
        }
    }

    /// Fills every tensor from `source`, deltas merged in f32 and rounded once.
    ///
    /// Errors name the tensor: missing, of another shape, or holding NaN or infinity.
    pub fn load(&mut self, config: &Config, source: &impl Source) -> Result<()> {
        let loaded = self.fill(config, source);
        source.taken(None);
        loaded
    }

    fn fill(&mut self, config: &Config, source: &impl Source) -> Result<()> {
        use rayon::prelude::*;
        let c = config.width;
        let whole = |to: &mut Tensor, name: &str, shape: &[usize]| fill(to, 0, source, name, shape, None);
        whole(&mut self.embed, table(config, source), &[config.vocab, c])?;
        whole(&mut self.norm, "model.norm.weight", &[c])?;
        let name = if config.tied { table(config, source) } else { "lm_head.weight" };
        for head in self.head_master.iter_mut().chain(&mut self.head) {
            whole(head, name, &[config.vocab, c])?;
        }
        // Rows of a matrix go to all cores, and so do layers, whose small tensors would leave most of them idle.
        self.layers.par_iter_mut().enumerate().try_for_each(|(i, layer)| {
            let norm = |which: &str| format!("model.layers.{i}.{which}_layernorm.weight");
            whole(&mut layer.attention_norm, &norm("input"), &[c])?;
            whole(&mut layer.mlp_norm, &norm("post_attention"), &[c])?;
            let Adapted { qkv, o, gate_up, down } = &mut layer.linears;
            qkv.load(source, i, "self_attn")?;
            o.load(source, i, "self_attn")?;
            gate_up.load(source, i, "mlp")?;
            down.load(source, i, "mlp")
        })
    }

    /// Everything that is trained: adapters by layer; qkv, o, gate_up, down; A before B; then the head.
    pub fn trained_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let head = self.head_master.as_mut().or(self.head.as_mut()).filter(|_| self.head_trained);
        let linears = self.layers.iter_mut().flat_map(|layer| layer.linears.iter_mut());
        linears.filter_map(|w| w.lora.as_mut()).flat_map(Stack::factors_mut).chain(head)
    }

    /// The live adapter, projection by projection: layer, module, delta.
    pub fn adapter(&self) -> Result<Vec<(usize, &'static str, Delta)>> {
        let mut all = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            for linear in layer.linears.iter() {
                let segments = linear.lora.as_ref().map_or(Ok(Vec::new()), Stack::segments)?;
                let parts = linear.parts.iter().zip(segments);
                all.extend(parts.filter_map(|(&(module, _), pair)| pair.map(|delta| (i, module, delta))));
            }
        }
        Ok(all)
    }

    /// Makes one adapter live beside the frozen weights: `delta(layer, module)` is its pair for that projection,
    /// if it has one, and `rank` its largest rank.
    pub fn attach<'a>(
        &mut self,
        arena: &mut Arena,
        rank: usize,
        delta: impl Fn(usize, &str) -> Option<&'a Delta>,
    ) {
        arena.group("lora");
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for linear in layer.linears.iter_mut() {
                linear.attach(arena, rank, |module| delta(i, module));
            }
        }
    }
}

/// Refuses a checkpoint that lacks a tensor of `config`, or holds one of another shape, before anything is sized by
/// either: a configuration that claims more than its checkpoint holds is not believed.
pub fn check(config: &Config, source: &impl Source) -> Result<()> {
    let c = config.width;
    of_shape(source, table(config, source), &[config.vocab, c])?;
    of_shape(source, "model.norm.weight", &[c])?;
    for i in 0..config.layers {
        for norm in ["input", "post_attention"] {
            of_shape(source, &format!("model.layers.{i}.{norm}_layernorm.weight"), &[c])?;
        }
        for p in config.projections() {
            let name = format!("model.layers.{i}.{}.{}", p.group, p.module);
            of_shape(source, &format!("{name}.weight"), &[p.rows, p.cols])?;
            if p.bias {
                of_shape(source, &format!("{name}.bias"), &[p.rows])?;
            }
        }
    }
    Ok(())
}

/// The name of the embedding: a tied checkpoint may hold its one matrix under either.
fn table(config: &Config, source: &impl Source) -> &'static str {
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let only_head = config.tied && source.tensor(table).is_err() && source.tensor(head).is_ok();
    if only_head { head } else { table }
}

/// Fills rows of a tensor, from `first` on, with one of the checkpoint's.
fn fill(
    to: &mut Tensor,
    first: usize,
    source: &impl Source,
    name: &str,
    shape: &[usize],
    edit: Option<Edit>,
) -> Result<()> {
    let raw = of_shape(source, name, shape)?;
    to.fill(first, &raw, edit)?;
    source.taken(Some(raw.data.len()));
    Ok(())
}

fn of_shape<'a>(source: &'a impl Source, name: &str, shape: &[usize]) -> Result<Raw<'a>> {
    let raw = source.tensor(name)?;
    if raw.shape == shape {
        return Ok(raw);
    }
    let what = format!("{} is {:?}, expected {shape:?} by config.json", raw.name, raw.shape);
    Err(Error::Shape { op: "weights", what })
}
