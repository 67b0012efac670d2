//! The forward in f32 by AVX-512: 48 queries of a key head are lanes, side by side from scores to sums.
//!
//! Scores stand as [key][lane], so that a row of them is a step of the second product's panel, and a maximum or a sum is one
//! instruction for 16 queries. They are in units of ln 2: the queries' factor has log2(e) in it, and weights are powers of 2.

use super::Mask;
use super::tile::{Block, Rule, Tile, blocks};
use crate::device::DType;
use crate::device::cpu::{Real, simd};
use crate::device::panels::{Lanes, Line, PANEL};
use rayon::prelude::*;
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Keys whose products with values are summed from zero before they are added: their weights stay in cache.
const KEYS: usize = 480;

/// A forward for 48 queries at a time.
pub struct Forward {
    lanes: Lanes,
    rule: Rule,
}

/// The forward by lanes, where CPU, type and rule are such that it is the way.
pub fn takes<R: Real>(rule: Rule) -> Option<Forward> {
    let plain = R::DTYPE == DType::F32 && rule.dropout.is_none();
    Lanes::load().filter(|_| plain).map(|lanes| Forward { lanes, rule })
}

/// One task's own memory.
#[derive(Default)]
struct Room {
    /// [D][lane]
    queries: Vec<Line>,
    /// [key][lane]
    scores: Vec<Line>,
    /// [key][D]: in `qkv` they are so far apart that few fit the cache's sets
    values: Vec<f32>,
    /// [D][lane]
    sums: Vec<Line>,
}

impl Forward {
    /// Operands as of [`attention_fwd`](super::attention_fwd).
    pub fn run(&self, out: &mut [f32], lse: Option<&mut [f32]>, qkv: &[f32], starts: &[i32]) {
        let work = blocks(out, lse, starts, self.rule.heads, PANEL);
        work.into_par_iter().for_each_init(Room::default, |room, mut block| {
            for g in 0..self.rule.heads.key {
                self.group(&mut block, room, qkv, g);
            }
        });
    }

    /// The query heads of key head `g`: their lanes are one head after the other, each with the block's rows.
    fn group(&self, block: &mut Block<f32>, room: &mut Room, qkv: &[f32], g: usize) {
        let (heads, tile) = (self.rule.heads, Tile::new(&block.rows, &block.sequence, self.rule));
        let (d, stride, share) = (heads.width, heads.columns(), heads.query / heads.key);
        let of = |head: usize| &qkv[(block.sequence.start + tile.first) * stride + head * d..];
        let (keys, values) = (of(heads.query + g), of(heads.query + heads.key + g));
        room.values.clear();
        values.chunks(stride).take(tile.t).for_each(|row| room.values.extend_from_slice(&row[..d]));
        room.queries.resize(d, [0.0; PANEL]);
        room.scores.resize(tile.t, [0.0; PANEL]);
        room.sums.resize(d, [0.0; PANEL]);
        for first in (0..share * tile.m).step_by(PANEL) {
            let lanes = first..(first + PANEL).min(share * tile.m);
            self.panel(block, room, qkv, keys, tile, (g * share, lanes));
        }
    }

    /// Lanes of the key head whose query heads begin at `head`.
    fn panel(
        &self,
        block: &mut Block<f32>,
        room: &mut Room,
        qkv: &[f32],
        keys: &[f32],
        tile: Tile,
        (head, lanes): (usize, Range<usize>),
    ) {
        let (heads, d, stride) = (self.rule.heads, self.rule.heads.width, self.rule.heads.columns());
        let places = || lanes.clone().map(|lane| (head + lane / tile.m, lane % tile.m)).enumerate();
        let Room { queries, scores, values, sums } = room;
        let scale = (LOG2_E / (d as f64).sqrt()) as f32;
        for (lane, (h, i)) in places() {
            let q = &qkv[(block.rows.start + i) * stride + h * d..][..d];
            queries.iter_mut().zip(q).for_each(|(to, q)| to[lane] = q * scale);
        }
        self.lanes.product(scores, keys, [stride, 1], queries, false);
        if self.rule.mask != Mask::Full {
            let (first, len) = (block.rows.start - block.sequence.start, block.sequence.len());
            hide(scores, places().map(|(_, (_, i))| tile.visible(first + i, len, self.rule.mask)));
        }
        let (most, total) = softmax(scores);
        for (at, (weights, values)) in scores.chunks(KEYS).zip(values.chunks(KEYS * d)).enumerate() {
            self.lanes.product(sums, values, [1, d], weights, at > 0);
        }
        for (lane, (h, i)) in places() {
            let (to, scale) = (&mut block.out[(i * heads.query + h) * d..][..d], 1.0 / total[lane]);
            to.iter_mut().zip(&*sums).for_each(|(to, sum)| *to = sum[lane] * scale);
            if let Some(lse) = &mut block.lse {
                lse[i * heads.query + h] = most[lane] * LN_2 as f32 + total[lane].ln();
            }
        }
    }
}

/// Gives keys that a lane does not see the weight 0.
fn hide(scores: &mut [Line], seen: impl Iterator<Item = Range<usize>>) {
    let (mut start, mut end) = ([0u32; PANEL], [u32::MAX; PANEL]);
    for (lane, seen) in seen.enumerate() {
        (start[lane], end[lane]) = (seen.start as u32, seen.end as u32);
    }
    simd(
        #[inline(always)]
        || {
            for (t, row) in scores.iter_mut().enumerate() {
                for lane in 0..PANEL {
                    let seen = start[lane] <= t as u32 && (t as u32) < end[lane];
                    row[lane] = if seen { row[lane] } else { f32::NEG_INFINITY };
                }
            }
        },
    );
}

/// `2^(s - most)` in place; gives every lane's largest score and its sum of powers.
fn softmax(scores: &mut [Line]) -> (Line, Line) {
    simd(
        #[inline(always)]
        || {
            let (mut most, mut total) = (scores[0], [0.0; PANEL]);
            for row in &*scores {
                (0..PANEL).for_each(|lane| most[lane] = Real::max(most[lane], row[lane]));
            }
            for row in scores {
                for lane in 0..PANEL {
                    row[lane] = exp2_or_zero(row[lane] - most[lane]);
                    total[lane] += row[lane];
                }
            }
            (most, total)
        },
    )
}

/// `2^x` of `x <= 0`, within 2 ulp, or 0 where that is below 1e-30; the coefficients are those of the Cephes library.
///
/// For CPUs that multiply and add in one instruction, as all do that have AVX-512.
#[inline(always)]
fn exp2_or_zero(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let shifted = x + MAGIC; // its low bits are n
    let r = x - (shifted - MAGIC);
    let p = 1.535_336_2e-4_f32.mul_add(r, 1.339_887_4e-3).mul_add(r, 9.618_437e-3);
    let p = p.mul_add(r, 5.550_332_5e-2).mul_add(r, 0.240_226_48).mul_add(r, LN_2 as f32).mul_add(r, 1.0);
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -100.0 { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::super::attention_fwd;
    use super::*;
    use crate::device::Device;
    use crate::ops::attention::Heads;
    use crate::rng::normal;
    use crate::tensor::Tensor;

    /// out and lse of texts of these lengths, whose rows begin at row `first` of the same numbers.
    fn forward(device: &Device, dtype: DType, lengths: &[usize], first: usize, rule: Rule) -> [Vec<f64>; 2] {
        let (heads, n) = (rule.heads, lengths.iter().sum::<usize>());
        let numbers = normal(7, (first + n) * heads.columns());
        let qkv = numbers[first * heads.columns()..].iter().map(|x| f64::from(*x as f32));
        let qkv = Tensor::from_f64(dtype, &[n, heads.columns()], qkv);
        let ends = lengths.iter().scan(0, |end, length| {
            *end += *length as i32;
            Some(*end)
        });
        let starts = Tensor::from_i32(&[0].into_iter().chain(ends).collect::<Vec<_>>());
        let [mut out, mut lse] =
            [heads.query * heads.width, heads.query].map(|columns| Tensor::zeros(dtype, &[n, columns]));
        attention_fwd(device, &mut out, Some(&mut lse), &qkv, &starts, heads, rule.mask, None).unwrap();
        [out.to_f64(), lse.to_f64()]
    }

    /// One lane, all but whole panels of them, more keys than are summed at once; every mask; heads that share keys. A text's
    /// bits are its own.
    #[test]
    fn lanes_are_the_f64_attention_in_any_company() {
        let lengths = [1, 1100, 47, 48, 49, 16];
        for (query, key, width) in [(2, 2, 16), (6, 2, 32), (5, 1, 8)] {
            for mask in [Mask::Full, Mask::Causal, Mask::Window(70), Mask::CausalWindow(500)] {
                let rule = Rule { heads: Heads { query, key, width }, mask, dropout: None };
                let [out, lse] = forward(&Device::cpu(), DType::F32, &lengths, 0, rule);
                let exact = forward(&Device::cpu_f64(), DType::F64, &lengths, 0, rule);
                for (got, exact) in out.iter().chain(&lse).zip(exact.iter().flatten()) {
                    assert!((got - exact).abs() < 4e-6 * exact.abs().max(1.0), "{mask:?}: {got} {exact}");
                }
                let alone = forward(&Device::cpu(), DType::F32, &[1100], 1, rule);
                assert!(alone[0] == out[query * width..][..1100 * query * width], "{mask:?}");
                assert!(alone[1] == lse[query..][..1100 * query], "{mask:?}");
            }
        }
    }

    #[test]
    fn powers_are_within_two_ulp() {
        for i in 0..1_000_000 {
            let x = i as f32 * -1e-4;
            let (got, exact) = (exp2_or_zero(x) as f64, (x as f64).exp2());
            assert!((got - exact).abs() <= 2.0 * exact * f32::EPSILON as f64, "2^{x} = {got}, exact {exact}");
        }
        assert_eq!([-100.1, -1e30, f32::NEG_INFINITY].map(exp2_or_zero), [0.0; 3]);
        assert!(exp2_or_zero(f32::NAN).is_nan());
    }
}
