//! What a backward computes in: the gradients of live adapters, and buffers that all layers share.

use crate::error::Result;
use crate::memory::Arena;
use crate::model::config::Config;
use crate::model::lora::Stack;
use crate::model::weights::{Layer, Weights};
use crate::tensor::Tensor;

/// Gradients of one projection's stacked adapter.
#[derive(Clone, Debug)]
pub struct LoraGrads {
    /// [S R, K]
    pub a: Tensor,
    /// [M, R]
    pub b: Tensor,
}

/// Gradients of one block's adapters, named as in [`Layer`]; `None` where a projection has none.
#[derive(Clone, Debug)]
pub struct LayerGrads {
    /// of q, k, v
    pub qkv: Option<LoraGrads>,
    /// of o
    pub o: Option<LoraGrads>,
    /// of gate, up
    pub gate_up: Option<LoraGrads>,
    /// of down
    pub down: Option<LoraGrads>,
}

/// The gradients of everything that is trained.
#[derive(Clone, Debug)]
pub struct Grads {
    /// L of them
    pub layers: Vec<LayerGrads>,
    /// [V, C] of the language-model head, where it is trained
    pub head: Option<Tensor>,
}

impl LayerGrads {
    fn all(&self) -> [&Option<LoraGrads>; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    fn all_mut(&mut self) -> [&mut Option<LoraGrads>; 4] {
        [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down]
    }
}

impl Grads {
    /// Zeros for every live adapter of `weights`, and for a head that is trained.
    pub fn new(arena: &mut Arena, weights: &Weights) -> Grads {
        arena.group("gradients");
        let mut like = |lora: &Option<Stack>| {
            lora.as_ref()
                .map(Stack::view)
                .map(|l| LoraGrads { a: arena.statistic(l.a.shape()), b: arena.statistic(l.b.shape()) })
        };
        let mut layer = |w: &Layer| LayerGrads {
            qkv: like(&w.qkv.lora),
            o: like(&w.o.lora),
            gate_up: like(&w.gate_up.lora),
            down: like(&w.down.lora),
        };
        let layers = weights.layers.iter().map(&mut layer).collect();
        Grads { layers, head: weights.trained_head().map(|head| arena.statistic(head.shape())) }
    }

    /// Every gradient in the order of [`Weights::trained_mut`]: by layer; qkv, o, gate_up, down; A before B; the head.
    pub fn all(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(LayerGrads::all).flatten();
        layers.flat_map(|g| [&g.a, &g.b]).chain(&self.head)
    }

    /// All zeros again.
    pub fn clear(&mut self) -> Result<()> {
        let mut all = self.layers.iter_mut().flat_map(LayerGrads::all_mut).flatten();
        all.try_for_each(|g| g.a.clear().and_then(|()| g.b.clear()))?;
        self.head.as_mut().map_or(Ok(()), Tensor::clear)
    }
}

/// Gradients of activations: one copy, overwritten by every layer.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// [N, C] each: gradients of the stream, taking turns
    pub stream: [Tensor; 2],
    /// [N, C] of `h` and `h2`
    pub h: Tensor,
    /// [N, (H + 2G) D]
    pub qkv: Tensor,
    /// [N, H D]
    pub attention: Tensor,
    /// [N, 2F]
    pub gate_up: Tensor,
    /// [N, F]
    pub act: Tensor,
    /// [N, S R] of `xa`: qkv, o, gate_up, down
    pub xa: [Tensor; 4],
}

impl Scratch {
    /// Buffers for at most `tokens` tokens and adapters of rank `rank`.
    pub fn new(arena: &mut Arena, config: &Config, tokens: usize, rank: usize) -> Scratch {
        let (n, c, f, heads) = (tokens, config.width, config.feed_forward, config.heads);
        arena.group("scratch");
        Scratch {
            stream: [(); 2].map(|()| arena.activation(&[n, c])),
            h: arena.activation(&[n, c]),
            qkv: arena.activation(&[n, heads.columns()]),
            attention: arena.activation(&[n, heads.query * heads.width]),
            gate_up: arena.activation(&[n, 2 * f]),
            act: arena.activation(&[n, f]),
            xa: [3, 1, 2, 1].map(|segments| arena.activation(&[n, segments * rank])),
        }
    }

    /// Sized for a batch of `n` tokens.
    pub fn set_rows(&mut self, n: usize) -> Result<()> {
        let Scratch { stream, h, qkv, attention, gate_up, act, xa } = self;
        let one = [h, qkv, attention, gate_up, act];
        one.into_iter().chain(stream).chain(xa).try_for_each(|t| t.set_rows(n))
    }
}
