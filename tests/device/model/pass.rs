//! One forward and backward of a whole model: by the graph on any device, and as a chain of unfused ops on the CPU that
//! rounds to bf16 after each, which is what kernels are measured by.

use super::tiny::{RANK, Tiny};
use half::bf16;
use llm2vec::device::Device;
use llm2vec::memory::Arena;
use llm2vec::model::Model;
use llm2vec::model::adapted::Adapted;
use llm2vec::model::grads::{Grads, LayerGrads, LoraGrads, Scratch};
use llm2vec::model::lora::Stack;
use llm2vec::model::plan;
use llm2vec::model::state::{Keep, Saved, Shared, State};
use llm2vec::model::weights::{Linear, Storage};
use llm2vec::ops::attention::{attention_bwd, attention_fwd};
use llm2vec::ops::contrastive::contrastive_workspace;
use llm2vec::ops::embed::embed_fwd;
use llm2vec::ops::lora_linear::{self, lora_linear_bwd, lora_linear_fwd};
use llm2vec::ops::rmsnorm::{rmsnorm_bwd, rmsnorm_fwd};
use llm2vec::ops::rope::{rope_bwd, rope_fwd};
use llm2vec::ops::swiglu::{swiglu_bwd, swiglu_fwd};
use llm2vec::tensor::Tensor;

/// A model with all that a pass needs.
pub struct Pass<'a> {
    tiny: &'a Tiny,
    pub model: Model,
    pub state: State,
    scratch: Scratch,
    grads: Grads,
}

/// Hidden states, and each LoRA gradient.
pub type Numbers = (Vec<f64>, Vec<Vec<f64>>);

impl<'a> Pass<'a> {
    pub fn new(tiny: &'a Tiny, device: &Device, keep: Keep, tokens: usize) -> Pass<'a> {
        let (mut arena, config) = (Arena::new(device), &tiny.config);
        let mut model = Model::new(&mut arena, config, tiny.mask, Storage::Real, 64);
        model.weights.attach(&mut arena, RANK, |layer, module| tiny.delta(layer, module));
        plan::workspace(&mut arena, config, &model.weights, tokens);
        let state = State::new(&mut arena, config, tokens, RANK, keep);
        let scratch = Scratch::new(&mut arena, config, tokens, RANK);
        let grads = Grads::new(&mut arena, &model.weights);
        // Of a loss that the caller may have.
        arena.workspace(|| contrastive_workspace(device, 16, 32, config.width));
        arena.finish().unwrap();
        model.load(tiny).unwrap();
        Pass { tiny, model, state, scratch, grads }
    }

    fn batch(&mut self, ids: &[i32], starts: &[i32]) {
        self.grads.clear().unwrap();
        self.state.set_batch(ids, starts).unwrap();
        self.scratch.set_rows(ids.len()).unwrap();
    }

    fn numbers(&self) -> Numbers {
        (self.state.hidden.to_f64(), self.grads.all().map(Tensor::to_f64).collect())
    }

    /// The graph. `loss` makes of the hidden states their gradient.
    pub fn graph(&mut self, ids: &[i32], starts: &[i32], loss: impl FnOnce(&Tensor, &mut Tensor)) -> Numbers {
        self.batch(ids, starts);
        let Pass { model, state, scratch, grads, .. } = self;
        model.forward(state, None).unwrap();
        loss(&state.hidden, &mut scratch.h);
        model.backward(grads, scratch, state, None).unwrap();
        self.numbers()
    }

    /// The hidden states `[N, C]` alone.
    pub fn hidden(&mut self, ids: &[i32], starts: &[i32]) -> Vec<f64> {
        self.batch(ids, starts);
        self.model.forward(&mut self.state, None).unwrap();
        self.state.hidden.to_f64()
    }

    /// [`Pass::graph`] under `--check-finite`: what it says.
    pub fn checked(&mut self, ids: &[i32], starts: &[i32], dh: &[f32]) -> String {
        self.state.watch(&mut Arena::new(&self.model.device), &self.tiny.config);
        self.batch(ids, starts);
        self.scratch.h.put_rows(0, dh).unwrap();
        let Pass { model, state, scratch, grads, .. } = self;
        let done = model.forward(state, None).and_then(|()| model.backward(grads, scratch, state, None));
        let done = done.and_then(|()| state.verdict());
        done.map_or_else(|e| e.to_string(), |()| "nothing".into())
    }

    /// The chain, under the same loss. Every layer's state is kept, on a CPU that computes in f32.
    pub fn chain(&mut self, ids: &[i32], starts: &[i32], loss: impl FnOnce(&Tensor, &mut Tensor)) -> Numbers {
        self.model.weights.trained_mut().for_each(round);
        self.batch(ids, starts);
        embed_fwd(&self.model.device, &mut self.state.streams[0], &self.model.weights.embed, &self.state.ids)
            .unwrap();
        let layers = self.tiny.config.layers;
        (0..layers).for_each(|i| self.block_fwd(i));
        let State { streams, hidden, rstd, .. } = &mut self.state;
        let (eps, w) = (self.tiny.config.norm_eps, &self.model.weights.norm);
        rmsnorm_fwd(&self.model.device, hidden, rstd, &streams[layers], w, eps).unwrap();
        round(hidden);
        let Scratch { stream: [outer, _], h, .. } = &mut self.scratch;
        loss(hidden, h);
        round(h);
        rmsnorm_bwd(&self.model.device, outer, h, None, &streams[layers], w, rstd).unwrap();
        round(outer);
        (0..layers).rev().for_each(|i| self.block_bwd(i));
        self.numbers()
    }

    fn block_fwd(&mut self, i: usize) {
        let Pass { tiny, model: Model { device: d, weights, rope, .. }, state, .. } = self;
        let (heads, eps, w) = (tiny.config.heads, tiny.config.norm_eps, &weights.layers[i]);
        let State { streams, saved, shared: Shared { h, h2, act }, positions, starts, .. } = state;
        let (before, after) = streams.split_at_mut(i + 1);
        let (before, after) = (&before[i], &mut after[0]);
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = &mut saved[i];
        let Adapted { qkv: xa_qkv, o: xa_o, gate_up: xa_gate_up, down: xa_down } = xa;
        rmsnorm_fwd(d, h, rstd, before, &w.attention_norm, eps).unwrap();
        round(h);
        linear(d, qkv, xa_qkv, h, &w.linears.qkv);
        rope_fwd(d, qkv, &rope.cos, &rope.sin, positions, heads).unwrap();
        round(qkv);
        attention_fwd(d, attention, lse.as_mut(), qkv, starts, heads, tiny.mask, None).unwrap();
        round(attention);
        linear(d, middle, xa_o, attention, &w.linears.o);
        add(middle, before);
        rmsnorm_fwd(d, h2, rstd2, middle, &w.mlp_norm, eps).unwrap();
        round(h2);
        linear(d, gate_up, xa_gate_up, h2, &w.linears.gate_up);
        swiglu_fwd(d, act, gate_up).unwrap();
        round(act);
        linear(d, after, xa_down, act, &w.linears.down);
        add(after, middle);
    }

    fn block_bwd(&mut self, i: usize) {
        let Pass { tiny, model: Model { device: d, weights, rope, .. }, state, scratch, grads } = self;
        let (heads, w) = (tiny.config.heads, &weights.layers[i]);
        let State { streams, saved, shared: Shared { h, h2, act }, positions, starts, .. } = state;
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = &mut saved[i];
        let eps = tiny.config.norm_eps;
        rmsnorm_fwd(d, h, rstd, &streams[i], &w.attention_norm, eps).unwrap();
        rmsnorm_fwd(d, h2, rstd2, middle, &w.mlp_norm, eps).unwrap();
        swiglu_fwd(d, act, gate_up).unwrap();
        [h, h2, act].into_iter().for_each(round);
        let Shared { h, h2, act } = &state.shared;
        let Scratch {
            stream,
            h: dh,
            qkv: dqkv,
            attention: dattention,
            gate_up: dgate_up,
            act: dact,
            xa: dxa,
        } = scratch;
        let [outer, inner] = stream;
        let LayerGrads { qkv: g_qkv, o: g_o, gate_up: g_gate_up, down: g_down } = &mut grads.layers[i];
        linear_bwd(d, dact, g_down, &mut dxa.down, outer, act, &xa.down, &w.linears.down);
        swiglu_bwd(d, dgate_up, dact, gate_up).unwrap();
        round(dgate_up);
        linear_bwd(d, dh, g_gate_up, &mut dxa.gate_up, dgate_up, h2, &xa.gate_up, &w.linears.gate_up);
        rmsnorm_bwd(d, inner, dh, None, middle, &w.mlp_norm, rstd2).unwrap();
        round(inner);
        add(inner, outer);
        linear_bwd(d, dattention, g_o, &mut dxa.o, inner, attention, &xa.o, &w.linears.o);
        attention_bwd(
            d,
            dqkv,
            dattention,
            attention,
            lse.as_ref().unwrap(),
            qkv,
            starts,
            heads,
            tiny.mask,
            None,
        )
        .unwrap();
        round(dqkv);
        rope_bwd(d, dqkv, &rope.cos, &rope.sin, positions, heads).unwrap();
        round(dqkv);
        linear_bwd(d, dh, g_qkv, &mut dxa.qkv, dqkv, h, &xa.qkv, &w.linears.qkv);
        rmsnorm_bwd(d, outer, dh, None, &streams[i], &w.attention_norm, rstd).unwrap();
        round(outer);
        add(outer, inner);
    }
}

fn round(t: &mut Tensor) {
    t.host_mut::<f32>().unwrap().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
}

fn add(y: &mut Tensor, x: &Tensor) {
    let x = x.host::<f32>().unwrap();
    y.host_mut::<f32>().unwrap().iter_mut().zip(x).for_each(|(y, x)| *y += x);
    round(y);
}

fn linear(d: &Device, y: &mut Tensor, xa: &mut Tensor, x: &Tensor, w: &Linear) {
    let lora = w.lora.as_ref().map(Stack::view);
    lora_linear_fwd(d, Some(y), Some(xa), x, &w.w, w.bias.as_ref(), lora, None, None).unwrap();
    round(y);
    round(xa);
}

#[allow(clippy::too_many_arguments)]
fn linear_bwd(
    d: &Device,
    dx: &mut Tensor,
    grads: &mut Option<LoraGrads>,
    dxa: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    xa: &Tensor,
    w: &Linear,
) {
    let grads = grads.as_mut().map(|g| lora_linear::LoraGrads { a: &mut g.a, b: &mut g.b });
    let lora = w.lora.as_ref().map(Stack::view);
    lora_linear_bwd(d, Some(&mut *dx), grads, Some(dxa), dy, x, Some(xa), &w.w, lora, None).unwrap();
    round(dx);
}
