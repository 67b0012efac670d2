//! Steps along k: what a weight is kept in, and what a product multiplies.

use super::{LINE, PANEL, first_line};
use crate::device::cpu::simd;
use half::bf16;

/// What is multiplied at once of a row: an f32, or a pair of bf16.
pub trait Step: bytemuck::Pod + Send + Sync {
    /// Numbers in it.
    const NUMBERS: usize;
    /// Rows are padded to so many steps: whole tiles of AMX.
    const MULTIPLE: usize;
    /// Its number `i`.
    fn number(self, i: usize) -> f32;
    /// The steps of numbers that need no rounding.
    fn as_they_lie(values: &[f32]) -> Option<&[Self]>;
    /// Puts a row into steps, rounded; steps beyond it are zeros.
    fn row(to: &mut [Self], row: &[f32]);
}

/// What panels are kept in.
pub trait Kept: Step {
    /// Rounds numbers, at most [`Step::NUMBERS`] of them.
    fn of(values: &[f32]) -> Self;
    /// Takes numbers of bf16 as they lie in a file.
    fn of_bits(bits: &[[u8; 2]]) -> Self;
}

/// How kept panels become those of the steps that are multiplied.
pub trait Gives<S: Step>: Kept {
    /// Steps of a panel: where they lie, or in `room`.
    fn lines<'a>(kept: &'a [Self], room: &'a mut Vec<u32>) -> &'a [S];
    /// Turns a square of a panel: `to[48 / S::NUMBERS][48]` along the panel's rows, from `kept[48 / NUMBERS][48]`.
    fn turn(to: &mut [S], kept: &[Self]);
}

impl Step for f32 {
    const NUMBERS: usize = 1;
    const MULTIPLE: usize = 1;
    fn number(self, _: usize) -> f32 {
        self
    }
    fn as_they_lie(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
    fn row(to: &mut [f32], row: &[f32]) {
        let (to, beyond) = to.split_at_mut(row.len());
        to.copy_from_slice(row);
        beyond.fill(0.0);
    }
}

impl Kept for f32 {
    fn of(values: &[f32]) -> f32 {
        values[0]
    }
    fn of_bits(bits: &[[u8; 2]]) -> f32 {
        bf16::from_le_bytes(bits[0]).to_f32()
    }
}

impl Gives<f32> for f32 {
    fn lines<'a>(kept: &'a [f32], _: &'a mut Vec<u32>) -> &'a [f32] {
        kept
    }
    #[inline(always)]
    fn turn(to: &mut [f32], kept: &[f32]) {
        for (k, kept) in kept.as_chunks::<PANEL>().0.iter().enumerate() {
            to.as_chunks_mut::<PANEL>().0.iter_mut().zip(kept).for_each(|(to, &w)| to[k] = w);
        }
    }
}

/// Two numbers of a row, side by side.
pub type Pair = [bf16; 2];

impl Step for Pair {
    const NUMBERS: usize = 2;
    const MULTIPLE: usize = 16;
    fn number(self, i: usize) -> f32 {
        self[i].to_f32()
    }
    fn as_they_lie(_: &[f32]) -> Option<&[Pair]> {
        None
    }
    fn row(to: &mut [Pair], row: &[f32]) {
        let (pairs, odd) = row.as_chunks::<2>();
        let (whole, beyond) = to.split_at_mut(pairs.len());
        simd(
            #[inline(always)]
            || whole.iter_mut().zip(pairs).for_each(|(to, &[a, b])| *to = [round(a), round(b)]),
        );
        beyond.fill([bf16::ZERO; 2]);
        if let &[last] = odd {
            beyond[0][0] = round(last);
        }
    }
}

impl Kept for Pair {
    fn of(values: &[f32]) -> Pair {
        [0, 1].map(|i| values.get(i).map_or(bf16::ZERO, |v| bf16::from_f32(*v)))
    }
    fn of_bits(bits: &[[u8; 2]]) -> Pair {
        [0, 1].map(|i| bits.get(i).map_or(bf16::ZERO, |b| bf16::from_le_bytes(*b)))
    }
}

impl Gives<Pair> for Pair {
    fn lines<'a>(kept: &'a [Pair], _: &'a mut Vec<u32>) -> &'a [Pair] {
        kept
    }
    #[inline(always)]
    fn turn(to: &mut [Pair], kept: &[Pair]) {
        for (k, kept) in kept.as_chunks::<PANEL>().0.iter().enumerate() {
            for (to, rows) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(kept.as_chunks::<2>().0) {
                let [low, high] = rows;
                (to[2 * k], to[2 * k + 1]) = ([low[0], high[0]], [low[1], high[1]]);
            }
        }
    }
}

/// A number of bf16 as an f32: what a CPU without bf16 instructions multiplies. Such products are exact.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Wide(f32);

impl Step for Wide {
    const NUMBERS: usize = 1;
    const MULTIPLE: usize = 1;
    fn number(self, _: usize) -> f32 {
        self.0
    }
    fn as_they_lie(_: &[f32]) -> Option<&[Wide]> {
        None
    }
    fn row(to: &mut [Wide], row: &[f32]) {
        let (to, beyond) = to.split_at_mut(row.len());
        simd(
            #[inline(always)]
            || to.iter_mut().zip(row).for_each(|(to, &x)| *to = widen(round(x))),
        );
        beyond.fill(Wide(0.0));
    }
}

impl Gives<Wide> for Pair {
    fn lines<'a>(kept: &'a [Pair], room: &'a mut Vec<u32>) -> &'a [Wide] {
        let room = steps_of(room, 2 * kept.len());
        simd(
            #[inline(always)]
            || {
                let lines = room.as_chunks_mut::<{ 2 * PANEL }>().0.iter_mut();
                for (to, kept) in lines.zip(kept.as_chunks::<PANEL>().0) {
                    let (low, high) = to.split_at_mut(PANEL);
                    low.iter_mut().zip(kept).for_each(|(to, pair)| *to = widen(pair[0]));
                    high.iter_mut().zip(kept).for_each(|(to, pair)| *to = widen(pair[1]));
                }
            },
        );
        room
    }
    #[inline(always)]
    fn turn(to: &mut [Wide], kept: &[Pair]) {
        for (k, kept) in kept.as_chunks::<PANEL>().0.iter().enumerate() {
            for (to, pair) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(kept) {
                (to[2 * k], to[2 * k + 1]) = (widen(pair[0]), widen(pair[1]));
            }
        }
    }
}

/// So many steps of one of these, from a line of the cache on; what is in them is not said.
pub fn steps_of<S: Step>(room: &mut Vec<u32>, steps: usize) -> &mut [S] {
    room.resize(room.len().max(steps + LINE - 1), 0);
    let first = first_line(room);
    bytemuck::cast_slice_mut(&mut room[first..first + steps])
}

/// Round to nearest even without a branch, so that the loop vectorises (NaN payloads may become infinite).
#[inline(always)]
fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    bf16::from_bits(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
}

/// The same number, without the branch for NaN.
#[inline(always)]
fn widen(x: bf16) -> Wide {
    Wide(f32::from_bits(u32::from(x.to_bits()) << 16))
}
