//! What a backward computes in: the gradients of live adapters, and buffers that all layers share.

use crate::error::Result;
use crate::memory::Arena;
use crate::model::adapted::{Adapted, SEGMENTS};
use crate::model::config::Config;
use crate::model::lora::Stack;
use crate::model::weights::Weights;
use crate::tensor::Tensor;

/// Gradients of one projection's stacked adapter.
#[derive(Clone, Debug)]
pub struct LoraGrads {
    /// [S R, K]
    pub a: Tensor,
    /// [M, R]
    pub b: Tensor,
}

/// Gradients of one block's adapters; `None` where a projection has none.
pub type LayerGrads = Adapted<Option<LoraGrads>>;

/// The gradients of everything that is trained.
#[derive(Clone, Debug)]
pub struct Grads {
    /// L of them
    pub layers: Vec<LayerGrads>,
    /// [V, C] of the language-model head, where it is trained
    pub head: Option<Tensor>,
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
        let layers = weights.layers.iter().map(|w| w.linears.map(|linear| like(&linear.lora))).collect();
        Grads { layers, head: weights.trained_head().map(|head| arena.statistic(head.shape())) }
    }

    /// Every gradient in the order of [`Weights::trained_mut`]: by layer; qkv, o, gate_up, down; A before B; the head.
    pub fn all(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(Adapted::iter).flatten();
        layers.flat_map(|g| [&g.a, &g.b]).chain(&self.head)
    }

    /// [`Grads::all`], to be written.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let layers = self.layers.iter_mut().flat_map(Adapted::iter_mut).flatten();
        layers.flat_map(|g| [&mut g.a, &mut g.b]).chain(&mut self.head)
    }

    /// All zeros again.
    pub fn clear(&mut self) -> Result<()> {
        self.all_mut().try_for_each(Tensor::clear)
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
    /// [N, S R] of `xa`
    pub xa: Adapted<Tensor>,
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
            xa: SEGMENTS.map(|segments| arena.activation(&[n, segments * rank])),
        }
    }

    /// Sized for a batch of `n` tokens.
    pub fn set_rows(&mut self, n: usize) -> Result<()> {
        let Scratch { stream, h, qkv, attention, gate_up, act, xa } = self;
        let one = [h, qkv, attention, gate_up, act];
        one.into_iter().chain(stream).chain(xa.iter_mut()).try_for_each(|t| t.set_rows(n))
    }
}
