//! The Llama decoder: forward and backward as lists of op calls, written once for every device.

use crate::device::Device;
use crate::error::Result;
use crate::model::config::Config;
use crate::model::finite::{check_block, check_block_bwd, check_hidden, check_loss};
use crate::model::grads::{Grads, LayerGrads, LoraGrads, Scratch};
use crate::model::lora::Stack;
use crate::model::rope::RopeTables;
use crate::model::state::{Saved, Shared, State};
use crate::model::weights::{Linear, Weights};
use crate::ops::attention::{Mask, attention_bwd, attention_fwd};
use crate::ops::dropout::Dropout;
use crate::ops::embed::embed_fwd;
use crate::ops::lora_linear::{self, lora_linear_bwd, lora_linear_fwd};
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

/// A model and how it is run: what forward and backward both need to know.
#[derive(Clone, Copy)]
pub struct Decoder<'a> {
    /// Where to compute.
    pub device: &'a Device,
    /// The shape of the model.
    pub config: &'a Config,
    /// Its weights.
    pub weights: &'a Weights,
    /// Its angles.
    pub rope: &'a RopeTables,
    /// Who attends to whom.
    pub mask: Mask,
    /// Dropout; `None` outside training.
    pub noise: Option<&'a Noise>,
}

impl Decoder<'_> {
    /// Runs the batch in `state` through the decoder; `state.hidden` holds the result after the final norm.
    pub fn forward(&self, state: &mut State) -> Result<()> {
        embed_fwd(self.device, &mut state.streams[0], &self.weights.embed, &state.ids)?;
        for i in 0..self.config.layers {
            self.block_fwd(state, i, false)?;
            check_block(self.device, state, i)?;
        }
        let last = self.config.layers % state.streams.len();
        let State { streams, hidden, rstd, .. } = state;
        rmsnorm_fwd(self.device, hidden, rstd, &streams[last], &self.weights.norm, self.config.norm_eps)?;
        check_hidden(self.device, state)
    }

    /// Adds to `grads` what the gradient of `state.hidden`, given in `scratch.h`, says about every adapter.
    ///
    /// `state` is as the forward of the same batch and noise left it, with [`Keep::All`](super::state::Keep::All) or
    /// [`Keep::Streams`](super::state::Keep::Streams).
    /// Nothing flows into the embedding, which is frozen.
    pub fn backward(&self, grads: &mut Grads, scratch: &mut Scratch, state: &mut State) -> Result<()> {
        if state.saved[0].lse.is_none() {
            return nothing_kept();
        }
        check_loss(self.device, scratch, state)?;
        let Scratch { stream, h, .. } = scratch;
        let (stream, w) = (&mut stream[0], &self.weights.norm);
        rmsnorm_bwd(self.device, stream, h, None, &state.streams[self.config.layers], w, &state.rstd)?;
        for i in (0..self.config.layers).rev() {
            // What the forward left behind is the last block's.
            match state.saved.len() {
                _ if i + 1 == self.config.layers => {}
                1 => self.block_fwd(state, i, true)?,
                _ => self.refill(&grads.layers[i], state, i)?,
            }
            self.block_bwd(&mut grads.layers[i], scratch, state, i)?;
            check_block_bwd(self.device, scratch, state, i)?;
        }
        Ok(())
    }

    /// Block `i`: reads the stream before it, writes the stream after it, unless that is kept from the time before.
    fn block_fwd(&self, state: &mut State, i: usize, again: bool) -> Result<()> {
        let State { streams, saved, shared: Shared { h, h2, act }, positions, starts, .. } = state;
        let (before, after) = adjacent(streams, i);
        let at = i % saved.len();
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = &mut saved[at];
        let [xa_qkv, xa_o, xa_gate_up, xa_down] = xa;
        let (d, w, heads, eps) =
            (self.device, &self.weights.layers[i], self.config.heads, self.config.norm_eps);
        let drop = |place| Noise::at(self.noise, i, place);
        rmsnorm_fwd(d, h, rstd, before, &w.attention_norm, eps)?; //                                              1 h         <- before
        linear_fwd(d, Some(qkv), xa_qkv, h, &w.qkv, None, drop(Place::Qkv))?; //                                  2 qkv       <- h
        rope_fwd(d, qkv, &self.rope.cos, &self.rope.sin, positions, heads)?; //                                   3 qkv       <- qkv
        attention_fwd(d, attention, lse.as_mut(), qkv, starts, heads, self.mask, drop(Place::Attention))?; //     4 attention <- qkv
        linear_fwd(d, Some(middle), xa_o, attention, &w.o, Some(before), drop(Place::O))?; //                     5 middle    <- before, attention
        rmsnorm_fwd(d, h2, rstd2, middle, &w.mlp_norm, eps)?; //                                                  6 h2        <- middle
        linear_fwd(d, Some(gate_up), xa_gate_up, h2, &w.gate_up, None, drop(Place::GateUp))?; //                  7 gate_up   <- h2
        swiglu_fwd(d, act, gate_up)?; //                                                                          8 act       <- gate_up
        let after = (!again).then_some(after);
        linear_fwd(d, after, xa_down, act, &w.down, Some(middle), drop(Place::Down)) //                           9 after     <- middle, act
    }

    /// What the gradients of block `i` read of [`Shared`], from what is kept of it: the same bits again, rstd's too.
    fn refill(&self, grads: &LayerGrads, state: &mut State, i: usize) -> Result<()> {
        let State { streams, saved, shared: Shared { h, h2, act }, .. } = state;
        let Saved { rstd, middle, rstd2, gate_up, .. } = &mut saved[i];
        let (d, w, eps) = (self.device, &self.weights.layers[i], self.config.norm_eps);
        if grads.qkv.is_some() {
            rmsnorm_fwd(d, h, rstd, &streams[i], &w.attention_norm, eps)?;
        }
        if grads.gate_up.is_some() {
            rmsnorm_fwd(d, h2, rstd2, middle, &w.mlp_norm, eps)?;
        }
        grads.down.as_ref().map_or(Ok(()), |_| swiglu_fwd(d, act, gate_up))
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
        let before = &streams[i];
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = &saved[i % saved.len()];
        let Scratch {
            stream,
            h: dh,
            qkv: dqkv,
            attention: dattention,
            gate_up: dgate_up,
            act: dact,
            xa: dxa,
        } = scratch;
        let Some(lse) = lse else { return nothing_kept() };
        let [d_outer, d_middle] = stream;
        let (d, w, heads) = (self.device, &self.weights.layers[i], self.config.heads);
        let drop = |place| Noise::at(self.noise, i, place);
        let LayerGrads { qkv: g_qkv, o: g_o, gate_up: g_gate_up, down: g_down } = grads;
        linear_bwd(d, Some(dact), g_down, &mut dxa[3], d_outer, act, &xa[3], &w.down, drop(Place::Down))?; //     9
        swiglu_bwd(d, dgate_up, dact, gate_up)?; //                                                               8
        linear_bwd(
            d,
            Some(dh),
            g_gate_up,
            &mut dxa[2],
            dgate_up,
            h2,
            &xa[2],
            &w.gate_up,
            drop(Place::GateUp),
        )?; //                                                                                                    7
        rmsnorm_bwd(d, d_middle, dh, Some(d_outer), middle, &w.mlp_norm, rstd2)?; //                              6
        linear_bwd(d, Some(dattention), g_o, &mut dxa[1], d_middle, attention, &xa[1], &w.o, drop(Place::O))?; // 5
        attention_bwd(
            d,
            dqkv,
            dattention,
            attention,
            lse,
            qkv,
            starts,
            heads,
            self.mask,
            drop(Place::Attention),
        )?; //                                                                                                    4
        rope_bwd(d, dqkv, &self.rope.cos, &self.rope.sin, positions, heads)?; //                                  3
        let dx = (i > 0).then_some(&mut *dh);
        linear_bwd(d, dx, g_qkv, &mut dxa[0], dqkv, h, &xa[0], &w.qkv, drop(Place::Qkv))?; //                     2
        if i == 0 {
            return Ok(());
        }
        rmsnorm_bwd(d, d_outer, dh, Some(d_middle), before, &w.attention_norm, rstd) //                           1
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

/// Without `y`, which is kept from the time before, there is only xa to compute.
fn linear_fwd(
    device: &Device,
    y: Option<&mut Tensor>,
    xa: &mut Tensor,
    x: &Tensor,
    w: &Linear,
    residual: Option<&Tensor>,
    dropout: Option<Dropout>,
) -> Result<()> {
    let lora = w.lora.as_ref().map(Stack::view);
    if y.is_none() && lora.is_none() {
        return Ok(());
    }
    lora_linear_fwd(device, y, Some(xa), x, &w.w, w.bias.as_ref(), lora, residual, dropout)
}

/// Frozen weights have no gradient, so a projection without an adapter only passes `dy` on.
#[allow(clippy::too_many_arguments)]
fn linear_bwd(
    device: &Device,
    dx: Option<&mut Tensor>,
    grads: &mut Option<LoraGrads>,
    dxa: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    xa: &Tensor,
    w: &Linear,
    dropout: Option<Dropout>,
) -> Result<()> {
    let grads = grads.as_mut().map(|g| lora_linear::LoraGrads { a: &mut g.a, b: &mut g.b });
    let lora = w.lora.as_ref().map(Stack::view);
    let dxa = lora.is_some().then_some(dxa);
    lora_linear_bwd(device, dx, grads, dxa, dy, x, Some(xa), &w.w, lora, dropout)
}
