//! The Llama decoder: forward and backward as lists of op calls, written once for every device.

use crate::device::Device;
use crate::error::Result;
use crate::model::Model;
use crate::model::adapted::Adapted;
use crate::model::finite::{check_block, check_block_bwd, check_hidden, check_loss};
use crate::model::grads::{Grads, LayerGrads, LoraGrads, Scratch};
use crate::model::lora::Stack;
use crate::model::rope::RopeTables;
use crate::model::state::{Saved, Shared, State};
use crate::model::weights::Linear;
use crate::ops::attention::{attention_bwd, attention_fwd};
use crate::ops::dropout::Dropout;
use crate::ops::embed::embed_fwd;
use crate::ops::lora_linear::{
    self, Rotary, lora_linear_bwd, lora_linear_fwd, lora_linear_rope_fwd, lora_linear_swiglu_fwd,
};
use crate::ops::rmsnorm::{rmsnorm_bwd, rmsnorm_fwd};
use crate::ops::rope::{rope_bwd, rope_fwd};
use crate::ops::swiglu::{swiglu_bwd, swiglu_fwd};
use crate::tensor::{Tensor, refuse};

/// What a training forward draws, and its backward draws again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// Dropout of attention probabilities.
    pub attention: f64,
    /// Dropout of the adapters' inputs.
    pub lora: f64,
    /// Of the run.
    pub seed: u64,
    /// Of the optimiser.
    pub step: u32,
    /// Tokens of this step before this pack.
    pub first: u64,
}

impl Noise {
    /// The dropout at a place of block `layer`, if its rate is not 0.
    fn at(noise: Option<&Noise>, layer: usize, place: Place) -> Option<Dropout> {
        let n = noise?;
        let rate = if place == Place::Attention { n.attention } else { n.lora };
        let site = 8 * layer as u32 + place as u32;
        (rate != 0.0).then_some(Dropout { rate, seed: n.seed, step: n.step, site, first: n.first })
    }
}

/// Places of dropout in a block.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Qkv,
    Attention,
    O,
    GateUp,
    Down,
}

/// One run of a model over a batch, forward or backward.
#[derive(Clone, Copy)]
struct Pass<'a> {
    model: &'a Model,
    noise: Option<&'a Noise>,
}

impl Model {
    /// Runs the batch in `state`; `state.hidden` holds the result after the final norm. `noise` is dropout, `None` outside
    /// training.
    pub fn forward(&self, state: &mut State, noise: Option<&Noise>) -> Result<()> {
        self.forward_by_layer(state, noise, |_, _| Ok(()))
    }

    /// Likewise; `layer` is told every stream when it is whole, as its tensor and its number: 0 is the embedding's, `i` that
    /// after block `i`.
    pub fn forward_by_layer(
        &self,
        state: &mut State,
        noise: Option<&Noise>,
        mut layer: impl FnMut(&Tensor, usize) -> Result<()>,
    ) -> Result<()> {
        let (Model { device, config, weights, .. }, pass) = (self, Pass { model: self, noise });
        embed_fwd(device, &mut state.streams[0], &weights.embed, &state.ids)?;
        layer(&state.streams[0], 0)?;
        for i in 0..config.layers {
            pass.block_fwd(state, i, false)?;
            check_block(device, state, i)?;
            layer(&state.streams[(i + 1) % state.streams.len()], i + 1)?;
        }
        let last = config.layers % state.streams.len();
        let State { streams, hidden, rstd, .. } = state;
        rmsnorm_fwd(device, hidden, rstd, &streams[last], &weights.norm, config.norm_eps)?;
        check_hidden(device, state)
    }

    /// Adds to `grads` what the gradient of `state.hidden`, given in `scratch.h`, says about every adapter.
    ///
    /// `state` is as the forward of the same batch and noise left it, with [`Keep::All`](crate::model::state::Keep::All) or
    /// [`Keep::Streams`](crate::model::state::Keep::Streams). Nothing flows into the embedding, which is frozen.
    pub fn backward(
        &self,
        grads: &mut Grads,
        scratch: &mut Scratch,
        state: &mut State,
        noise: Option<&Noise>,
    ) -> Result<()> {
        let (Model { device, config, weights, .. }, pass) = (self, Pass { model: self, noise });
        if state.saved[0].lse.is_none() {
            return nothing_kept();
        }
        check_loss(device, scratch, state)?;
        let Scratch { stream: [d_last, _], h, .. } = scratch;
        let last = &state.streams[config.layers];
        rmsnorm_bwd(device, d_last, h, None, last, &weights.norm, &state.rstd)?;
        for i in (0..config.layers).rev() {
            // What the forward left behind is the last block's.
            match state.saved.len() {
                _ if i + 1 == config.layers => {}
                1 => pass.block_fwd(state, i, true)?,
                _ => pass.refill(&grads.layers[i], state, i)?,
            }
            pass.block_bwd(&mut grads.layers[i], scratch, state, i)?;
            check_block_bwd(device, scratch, state, i)?;
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Block `i`: reads the stream before it, writes the stream after it, unless that is kept from the time before.
    fn block_fwd(&self, state: &mut State, i: usize, again: bool) -> Result<()> {
        let State { streams, saved, shared: Shared { h, h2, act }, positions, starts, watch, .. } = state;
        let (before, after) = adjacent(streams, i);
        let after = (!again).then_some(after);
        let at = i % saved.len();
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = &mut saved[at];
        let Model { device: d, config, mask, weights, rope: RopeTables { cos, sin } } = self.model;
        let (w, heads, eps, lse) = (&weights.layers[i], config.heads, config.norm_eps, lse.as_mut());
        // A backward reads gate_up, and so does who looks for the first NaN.
        let keeps = lse.is_some() || watch.is_some();
        let (mut p, dropout) = (self.linears_fwd(xa, i), self.dropout(i, Place::Attention));
        rmsnorm_fwd(d, h, rstd, before, &w.attention_norm, eps)?; //                             1 h         <- before
        if !p.qkv.turned(qkv, h, Rotary { cos, sin, positions, heads })? {
            p.qkv.run(Some(qkv), h, None)?; //                                                   2 qkv       <- h
            rope_fwd(d, qkv, cos, sin, positions, heads)?; //                                    3 qkv       <- qkv
        }
        attention_fwd(d, attention, lse, qkv, starts, heads, *mask, dropout)?; //                4 attention <- qkv
        p.o.run(Some(middle), attention, Some(before))?; //                                      5 middle    <- before, attention
        rmsnorm_fwd(d, h2, rstd2, middle, &w.mlp_norm, eps)?; //                                 6 h2        <- middle
        if keeps || !p.gate_up.gated(act, h2)? {
            p.gate_up.run(Some(gate_up), h2, None)?; //                                          7 gate_up   <- h2
            swiglu_fwd(d, act, gate_up)?; //                                                     8 act       <- gate_up
        }
        p.down.run(after, act, Some(middle)) //                                                  9 after     <- middle, act
    }

    /// Block `i` read upwards: `scratch.stream[0]` holds the gradient of the stream after it, then of the one before.
    fn block_bwd(
        &self,
        grads: &mut LayerGrads,
        scratch: &mut Scratch,
        state: &State,
        i: usize,
    ) -> Result<()> {
        let State { streams, saved, shared: Shared { h, h2, act }, positions, starts, .. } = state;
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = &saved[i % saved.len()];
        let Scratch { stream: [d_after, d_middle], h: dh, qkv: dqkv, attention: d_attention, .. } = scratch;
        let Scratch { gate_up: d_gate_up, act: d_act, xa: dxa, .. } = scratch;
        let Some(lse) = lse else { return nothing_kept() };
        let Model { device: d, config, mask, weights, rope: RopeTables { cos, sin } } = self.model;
        let (w, heads, before) = (&weights.layers[i], config.heads, &streams[i]);
        let (mut p, dropout) = (self.linears_bwd(grads, dxa, xa, i), self.dropout(i, Place::Attention));
        p.down.run(Some(d_act), d_after, act)?; //                                                          9
        swiglu_bwd(d, d_gate_up, d_act, gate_up)?; //                                                       8
        p.gate_up.run(Some(dh), d_gate_up, h2)?; //                                                         7
        rmsnorm_bwd(d, d_middle, dh, Some(d_after), middle, &w.mlp_norm, rstd2)?; //                        6
        p.o.run(Some(d_attention), d_middle, attention)?; //                                                5
        attention_bwd(d, dqkv, d_attention, attention, lse, qkv, starts, heads, *mask, dropout)?; //        4
        rope_bwd(d, dqkv, cos, sin, positions, heads)?; //                                                  3
        p.qkv.run((i > 0).then_some(&mut *dh), dqkv, h)?; //                                                2
        match i {
            0 => Ok(()), // the embedding is frozen
            _ => rmsnorm_bwd(d, d_after, dh, Some(d_middle), before, &w.attention_norm, rstd), //           1
        }
    }

    /// What the gradients of block `i` read of [`Shared`], from what is kept of it: the same bits again, rstd's too.
    fn refill(&self, grads: &LayerGrads, state: &mut State, i: usize) -> Result<()> {
        let State { streams, saved, shared: Shared { h, h2, act }, .. } = state;
        let Saved { rstd, middle, rstd2, gate_up, .. } = &mut saved[i];
        let Model { device: d, config, weights, .. } = self.model;
        let (w, eps) = (&weights.layers[i], config.norm_eps);
        if grads.qkv.is_some() {
            rmsnorm_fwd(d, h, rstd, &streams[i], &w.attention_norm, eps)?;
        }
        if grads.gate_up.is_some() {
            rmsnorm_fwd(d, h2, rstd2, middle, &w.mlp_norm, eps)?;
        }
        grads.down.as_ref().map_or(Ok(()), |_| swiglu_fwd(d, act, gate_up))
    }

    fn dropout(&self, layer: usize, place: Place) -> Option<Dropout> {
        Noise::at(self.noise, layer, place)
    }

    /// The projections of block `i`, each with what its forward needs beside its operands.
    fn linears_fwd<'s>(&'s self, xa: &'s mut Adapted<Tensor>, i: usize) -> Adapted<LinearFwd<'s>> {
        let (device, w) = (&self.model.device, &self.model.weights.layers[i].linears);
        let one = |w, xa, place| LinearFwd { device, w, xa, dropout: self.dropout(i, place) };
        Adapted {
            qkv: one(&w.qkv, &mut xa.qkv, Place::Qkv),
            o: one(&w.o, &mut xa.o, Place::O),
            gate_up: one(&w.gate_up, &mut xa.gate_up, Place::GateUp),
            down: one(&w.down, &mut xa.down, Place::Down),
        }
    }

    /// Likewise for the backward.
    fn linears_bwd<'s>(
        &'s self,
        grads: &'s mut LayerGrads,
        dxa: &'s mut Adapted<Tensor>,
        xa: &'s Adapted<Tensor>,
        i: usize,
    ) -> Adapted<LinearBwd<'s>> {
        let (device, w) = (&self.model.device, &self.model.weights.layers[i].linears);
        let one = |w, grads, dxa, xa, place| LinearBwd {
            device,
            w,
            grads,
            dxa,
            xa,
            dropout: self.dropout(i, place),
        };
        Adapted {
            qkv: one(&w.qkv, &mut grads.qkv, &mut dxa.qkv, &xa.qkv, Place::Qkv),
            o: one(&w.o, &mut grads.o, &mut dxa.o, &xa.o, Place::O),
            gate_up: one(&w.gate_up, &mut grads.gate_up, &mut dxa.gate_up, &xa.gate_up, Place::GateUp),
            down: one(&w.down, &mut grads.down, &mut dxa.down, &xa.down, Place::Down),
        }
    }
}

fn nothing_kept() -> Result<()> {
    refuse("backward", "the forward kept nothing; plan its state with Keep::Streams or All".into())
}

/// The streams before and after block `i`; with two streams they take turns.
fn adjacent(streams: &mut [Tensor], i: usize) -> (&Tensor, &mut Tensor) {
    let (before, after) = (i % streams.len(), (i + 1) % streams.len());
    if before < after {
        let (low, high) = streams.split_at_mut(after);
        (&low[before], &mut high[0])
    } else {
        let (low, high) = streams.split_at_mut(before);
        (&high[0], &mut low[after])
    }
}

/// A projection in a forward.
struct LinearFwd<'a> {
    device: &'a Device,
    w: &'a Linear,
    xa: &'a mut Tensor,
    dropout: Option<Dropout>,
}

impl LinearFwd<'_> {
    /// Without `y`, which is kept from the time before, there is only xa to compute.
    fn run(&mut self, y: Option<&mut Tensor>, x: &Tensor, residual: Option<&Tensor>) -> Result<()> {
        let LinearFwd { device, w, xa, dropout } = self;
        let lora = w.lora.as_ref().map(Stack::view);
        if y.is_none() && lora.is_none() {
            return Ok(());
        }
        lora_linear_fwd(device, y, Some(xa), x, &w.w, w.bias.as_ref(), lora, residual, *dropout)
    }

    /// Queries, keys and values, the first two turned, if this device computes it so.
    fn turned(&mut self, qkv: &mut Tensor, x: &Tensor, rotary: Rotary) -> Result<bool> {
        let LinearFwd { device, w, xa, dropout } = self;
        let (lora, bias) = (w.lora.as_ref().map(Stack::view), w.bias.as_ref());
        lora_linear_rope_fwd(device, qkv, Some(xa), x, &w.w, bias, lora, *dropout, rotary)
    }

    /// The activation of a gated projection alone, if this device computes it so.
    fn gated(&mut self, act: &mut Tensor, x: &Tensor) -> Result<bool> {
        let LinearFwd { device, w, xa, dropout } = self;
        let lora = w.lora.as_ref().map(Stack::view);
        match w.bias {
            Some(_) => Ok(false),
            None => lora_linear_swiglu_fwd(device, act, Some(xa), x, &w.w, lora, *dropout),
        }
    }
}

/// A projection in a backward.
struct LinearBwd<'a> {
    device: &'a Device,
    w: &'a Linear,
    grads: &'a mut Option<LoraGrads>,
    dxa: &'a mut Tensor,
    xa: &'a Tensor,
    dropout: Option<Dropout>,
}

impl LinearBwd<'_> {
    /// Frozen weights have no gradient, so a projection without an adapter only passes `dy` on.
    fn run(&mut self, dx: Option<&mut Tensor>, dy: &Tensor, x: &Tensor) -> Result<()> {
        let LinearBwd { device, w, grads, dxa, xa, dropout } = self;
        let grads = grads.as_mut().map(|g| lora_linear::LoraGrads { a: &mut g.a, b: &mut g.b });
        let lora = w.lora.as_ref().map(Stack::view);
        let dxa = lora.is_some().then_some(&mut **dxa);
        lora_linear_bwd(device, dx, grads, dxa, dy, x, Some(xa), &w.w, lora, *dropout)
    }
}
