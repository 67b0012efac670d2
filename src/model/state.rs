//! What a forward computes in: the residual stream, what each block keeps, and the batch.

use crate::device::DType;
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::model::adapted::{Adapted, SEGMENTS};
use crate::model::config::Config;
use crate::model::watch::Watch;
use crate::tensor::Tensor;

/// What one block computes on its way: kept per layer where a backward follows, else shared by all.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `[N]`
    pub rstd: Tensor,
    /// [N, (H + 2G) D] rotated q and k, and v
    pub qkv: Tensor,
    /// [N, H D]
    pub attention: Tensor,
    /// [N, H] where a backward follows
    pub lse: Option<Tensor>,
    /// [N, C] the stream between attention and feed-forward
    pub middle: Tensor,
    /// `[N]`
    pub rstd2: Tensor,
    /// [N, 2F]
    pub gate_up: Tensor,
    /// [N, S R] each: x Aᵀ
    pub xa: Adapted<Tensor>,
}

/// What follows cheaply from a stream or a [`Saved`]: one copy, of the last block that ran; a backward fills it anew.
#[derive(Clone, Debug)]
pub struct Shared {
    /// [N, C] normalised block input
    pub h: Tensor,
    /// [N, C] normalised `middle`
    pub h2: Tensor,
    /// [N, F] swiglu of `gate_up`
    pub act: Tensor,
}

/// How much of a forward is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: two streams and one [`Saved`] serve all layers. No backward can follow.
    Nothing,
    /// The stream before every block and after the last: a backward computes each block anew.
    Streams,
    /// Everything but [`Shared`].
    All,
}

/// The batch and every buffer of a forward, sized for `tokens` tokens in at most `sequences` sequences.
#[derive(Clone, Debug)]
pub struct State {
    /// [N, C] each: the stream before block i, at index `i % len`
    pub streams: Vec<Tensor>,
    /// At index `layer % len`
    pub saved: Vec<Saved>,
    /// Of the last block that ran
    pub shared: Shared,
    /// [N, C] the stream after the final norm
    pub hidden: Tensor,
    /// `[N]`
    pub rstd: Tensor,
    /// `[N]`
    pub ids: Tensor,
    /// `[N]` position of each token in its sequence
    pub positions: Tensor,
    /// [B + 1]
    pub starts: Tensor,
    /// Where activations are checked for NaN: see [`State::watch`]
    pub watch: Option<Watch>,
}

impl Saved {
    fn new(arena: &mut Arena, config: &Config, n: usize, rank: usize, keep: Keep) -> Saved {
        let (c, f, heads) = (config.width, config.feed_forward, config.heads);
        Saved {
            rstd: arena.statistic(&[n]),
            qkv: arena.activation(&[n, heads.columns()]),
            attention: arena.activation(&[n, heads.query * heads.width]),
            lse: (keep != Keep::Nothing).then(|| arena.statistic(&[n, heads.query])),
            middle: arena.activation(&[n, c]),
            rstd2: arena.statistic(&[n]),
            gate_up: arena.activation(&[n, 2 * f]),
            xa: SEGMENTS.map(|segments| arena.activation(&[n, segments * rank])),
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let Saved { rstd, qkv, attention, lse, middle, rstd2, gate_up, xa } = self;
        [rstd, qkv, attention, middle, rstd2, gate_up].into_iter().chain(lse).chain(xa.iter_mut())
    }
}

impl Shared {
    fn new(arena: &mut Arena, config: &Config, n: usize) -> Shared {
        let [h, h2, act] =
            [config.width, config.width, config.feed_forward].map(|c| arena.activation(&[n, c]));
        Shared { h, h2, act }
    }
}

impl State {
    /// Buffers for at most `tokens` tokens and as many sequences; `rank` of a live adapter, or 0.
    pub fn new(arena: &mut Arena, config: &Config, tokens: usize, rank: usize, keep: Keep) -> State {
        let n = tokens;
        arena.group("activations");
        let streams = if keep == Keep::Nothing { 2 } else { config.layers + 1 };
        State {
            streams: (0..streams).map(|_| arena.activation(&[n, config.width])).collect(),
            saved: (0..if keep == Keep::All { config.layers } else { 1 })
                .map(|_| Saved::new(arena, config, n, rank, keep))
                .collect(),
            shared: Shared::new(arena, config, n),
            hidden: arena.activation(&[n, config.width]),
            rstd: arena.statistic(&[n]),
            ids: arena.tensor(DType::I32, &[n]),
            positions: arena.tensor(DType::I32, &[n]),
            starts: arena.tensor(DType::I32, &[n + 1]),
            watch: None,
        }
    }

    /// Takes a packed batch: `ids` of all sequences, `starts` (first token of each, then the total).
    pub fn set_batch(&mut self, ids: &[i32], starts: &[i32]) -> Result<()> {
        let n = ids.len();
        let rising = starts.windows(2).all(|w| w[0] < w[1]);
        if starts.len() < 2 || starts[0] != 0 || !rising || starts[starts.len() - 1] as usize != n {
            let what = format!("starts must rise strictly from 0 to the {n} tokens of the batch");
            return Err(Error::Shape { op: "set_batch", what });
        }
        let State { streams, saved, shared, hidden, rstd, ids: i, positions, starts: s, watch } = self;
        let Shared { h, h2, act } = shared;
        let per_token = streams.iter_mut().chain(saved.iter_mut().flat_map(Saved::all));
        for t in per_token.chain([h, h2, act, hidden, rstd, &mut *i, &mut *positions]) {
            t.set_rows(n)?;
        }
        s.set_rows(starts.len())?;
        i.write(ids)?;
        s.write(starts)?;
        let places: Vec<i32> = starts.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
        positions.write(&places)?;
        watch.as_mut().map_or(Ok(()), Watch::clear)
    }
}
