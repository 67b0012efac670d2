//! A model that learns: frozen weights, a live adapter, its gradients, and what AdamW remembers.

use crate::device::Device;
use crate::device::gpu::Graphs;
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::model::Model;
use crate::model::config::Config;
use crate::model::grads::{Grads, Scratch};
use crate::model::llama::Noise;
use crate::model::lora::Delta;
use crate::model::plan;
use crate::model::state::{Keep, State};
use crate::model::weights::{Source, Storage};
use crate::ops::adamw::{AdamW, Clip, adamw_norm, adamw_step, adamw_workspace};
use crate::ops::attention::Mask;
use crate::tensor::Tensor;
use crate::train::cards::{self, Exchange};
use crate::train::partials::Partials;
use crate::train::ranks::{Reduce, Share};

/// What memory a learner takes.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Most tokens in a pack.
    pub tokens: usize,
    /// Most tokens in a sequence.
    pub positions: usize,
    /// The adapter's rank.
    pub rank: usize,
    /// What a forward keeps.
    pub keep: Keep,
    /// How the frozen matrices are kept.
    pub storage: Storage,
    /// The language-model head.
    pub head: Head,
}

/// What becomes of the language-model head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Not needed.
    None,
    /// Read.
    Frozen,
    /// Trained, in a matrix of its own where the model ties it to the embedding.
    Trained,
}

/// Everything that is allocated, once.
pub struct Learner {
    /// Frozen weights and the live adapter.
    pub model: Model,
    /// The last forward.
    pub state: State,
    /// Gradients of activations; a loss puts that of `state.hidden` into `scratch.h`.
    pub scratch: Scratch,
    /// How what is queued between two copies from or to the host gets to the device.
    pub graphs: Graphs,
    /// The slices of a step that are this process's.
    pub share: Share,
    partials: Partials,
    exchange: Option<Exchange>,
    grads: Grads,
    /// AdamW's mean of gradients and of their squares, in the order of [`Learner::names`]
    moments: Vec<[Tensor; 2]>,
    /// [1]
    norm: Tensor,
}

impl Learner {
    /// Room for everything; `delta(layer, module)` is where each adapter pair starts from.
    pub fn new<'a>(
        arena: &mut Arena,
        config: &Config,
        mask: Mask,
        size: Size,
        delta: impl Fn(usize, &str) -> Option<&'a Delta>,
    ) -> Learner {
        let mut model = Model::new(arena, config, mask, size.storage, size.positions);
        if size.head != Head::None {
            model.weights.add_head(arena, config, size.head == Head::Trained);
        }
        model.weights.attach(arena, size.rank, delta);
        plan::workspace(arena, config, &model.weights, size.tokens);
        let state = State::new(arena, config, size.tokens, size.rank, size.keep);
        let scratch = Scratch::new(arena, config, size.tokens, size.rank);
        let grads = Grads::new(arena, &model.weights);
        arena.group("optimiser");
        let moments = grads.all().map(|g| [(); 2].map(|()| arena.statistic(g.shape()))).collect();
        let norm = arena.statistic(&[1]);
        arena.workspace(|| adamw_workspace(grads.all().map(Tensor::numel)));
        let graphs = if let Device::Gpu(gpu) = &model.device { Graphs::of(gpu) } else { Graphs::default() };
        let (share, partials) = (Share::default(), Partials::default());
        Learner { model, state, scratch, graphs, share, partials, exchange: None, grads, moments, norm }
    }

    /// Room for the gradients of this process's slices, in steps of `turns` batches, and for their exchange between GPUs.
    pub fn divide(&mut self, arena: &mut Arena, share: Share, turns: usize) {
        let apart = if share.reduce == Reduce::Tree { share.own().len() } else { 1 };
        self.partials = Partials::new(arena, &self.model.weights, apart, turns);
        self.exchange = share.ranks.are_joined(&self.model.device).then(|| {
            let elements = self.grads.all().map(Tensor::numel).sum::<usize>().min(cards::ELEMENTS);
            Exchange::new(arena, share.ranks.size, elements, share.reduce == Reduce::Tree)
        });
        self.share = share;
    }

    /// Reads the frozen weights.
    pub fn load(&mut self, source: &impl Source) -> Result<()> {
        self.model.load(source)
    }

    /// Takes a pack to the device.
    pub fn take(&mut self, ids: &[i32], starts: &[i32]) -> Result<()> {
        self.model.config.check_ids(ids.iter().map(|&id| id.into()))?;
        self.state.set_batch(ids, starts)?;
        self.scratch.set_rows(ids.len())
    }

    /// Runs the pack; the result is `state.hidden`.
    pub fn forward(&mut self, noise: Option<&Noise>) -> Result<()> {
        self.model.forward(&mut self.state, noise)
    }

    /// Adds to the gradients what `scratch.h`, the gradient of `state.hidden`, says. The noise is the forward's.
    pub fn backward(&mut self, noise: Option<&Noise>) -> Result<()> {
        let Learner { model, state, grads, scratch, .. } = self;
        model.backward(grads, scratch, state, noise)
    }

    /// Before the backward of a slice, by its number among this process's; what is added to the gradients then is its own.
    pub fn begin_slice(&mut self, slice: usize) {
        self.partials.begin(&mut self.grads, slice);
    }

    /// After the last backward of a slice.
    pub fn end_slice(&mut self, slice: usize) -> Result<()> {
        self.partials.end(&self.model.device, &mut self.grads, slice)
    }

    /// The head, its gradient where it is trained, the last hidden states, and where their gradient goes.
    pub fn head(&mut self) -> (&Tensor, Option<&mut Tensor>, &Tensor, &mut Tensor) {
        (self.model.weights.head(), self.grads.head.as_mut(), &self.state.hidden, &mut self.scratch.h)
    }

    /// After the last batch of a step: the gradients of all slices on all ranks become one sum.
    pub fn sum(&mut self) -> Result<()> {
        let Learner { model, grads, share, partials, exchange, .. } = self;
        partials.sum(&model.device, grads)?;
        share.ranks.sum(&model.device, grads.all_mut(), share.reduce, exchange.as_mut())
    }

    /// One step of AdamW under the gradient's norm `most` (0: no bound), then gradients of 0. Gives the norm before.
    ///
    /// A norm that is not finite changes nothing and is an error that names the tensor.
    pub fn update(&mut self, by: AdamW, most: f64) -> Result<f64> {
        let graphs = self.graphs.clone();
        let Learner { model, grads, norm, .. } = self;
        graphs.run("norm", || adamw_norm(&model.device, norm, grads.all()))?;
        let length = norm.read()?[0];
        if !length.is_finite() {
            let bad = |g: &Tensor| g.to_f64().iter().any(|x| !x.is_finite());
            let which = self.grads.all().position(bad);
            let names = self.names();
            let name = which.and_then(|i| names.get(i)).map_or("all together", String::as_str);
            return Err(Error::Diverged { step: by.step, what: format!("the gradient of {name}") });
        }
        graphs.run("update", || self.step(by, most))?;
        Ok(length)
    }

    fn step(&mut self, by: AdamW, most: f64) -> Result<()> {
        let Learner { model: Model { device, weights, .. }, grads, moments, norm, .. } = self;
        let clip = (most > 0.0).then_some(Clip { norm, most });
        let masters = weights.trained_mut();
        for ((p, g), [m, v]) in masters.zip(grads.all()).zip(moments) {
            adamw_step(device, p, m, v, g, clip, by)?;
        }
        weights.round_head(device)?;
        grads.clear()
    }

    /// The names of what is trained: by layer; qkv, o, gate_up, down; A before B; the head last.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (i, layer) in self.grads.layers.iter().enumerate() {
            for (part, _) in layer.named().iter().filter(|(_, g)| g.is_some()) {
                names.extend(["A", "B"].map(|side| format!("layers.{i}.{part}.lora_{side}")));
            }
        }
        names.extend(self.grads.head.is_some().then(|| "lm_head".to_string()));
        names
    }

    /// The gradients, in the order of [`Learner::names`].
    pub fn grads(&self) -> impl Iterator<Item = &Tensor> {
        self.grads.all()
    }

    /// AdamW's means, in the order of [`Learner::names`].
    pub fn moments(&self) -> &[[Tensor; 2]] {
        &self.moments
    }

    /// AdamW's means, to be filled at a resume.
    pub fn moments_mut(&mut self) -> &mut [[Tensor; 2]] {
        &mut self.moments
    }
}
