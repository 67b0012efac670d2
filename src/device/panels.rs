//! The CPU's matrix products with weights packed once, in f32 and in bf16.
//!
//! A weight lies in panels of 48 rows: what three vectors of AVX-512 multiply in one step lies side by side, and is read from
//! memory in the order in which it is used. A product of few rows is then as quick as the memory, where one that packs weights
//! as it is called takes several times that. Backward (`dy w`) the same panels are turned, block by block, in the cache.
//!
//! What multiplies them are AMX's tiles (bf16; no Rust crate multiplies those), AVX-512's vectors (both), or else portable code.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod fill;
mod lanes;
mod peak;
mod portable;
mod product;
#[cfg(test)]
mod tests;
mod tile;
mod units;

use half::bf16;
pub use lanes::{Lanes, Line};
pub use peak::peak;
use product::{Panel, product, steps_of};
use std::ops::Range;
use tile::Rows;
use units::{Half, Single, Unit};
pub use units::{bf16_unit, f32_unit};

/// Output columns per panel: three vectors of 16.
pub const PANEL: usize = 48;
/// Steps that are summed from zero before they are added to `y`: 20 panels of bf16 turned, 10 of f32, 30 of AMX's tiles. With
/// it a row's sum is the same whatever is beside it, and 92 KB of weights stay in the level-2 cache.
const DEPTH: usize = 480;

/// A step along k of one row: an f32, or a pair of bf16.
pub trait Step: bytemuck::Pod + Send + Sync {
    /// Numbers in it.
    const NUMBERS: usize;
    /// Rows are padded to so many steps: whole tiles of AMX.
    const MULTIPLE: usize;
    /// Rounds numbers, at most [`Step::NUMBERS`] of them.
    fn of(values: &[f32]) -> Self;
    /// Takes numbers of bf16 as they lie in a file.
    fn of_bits(bits: &[[u8; 2]]) -> Self;
    /// Its number `i`.
    fn number(self, i: usize) -> f32;
    /// The steps of numbers that need no rounding.
    fn as_they_lie(values: &[f32]) -> Option<&[Self]>;
    /// Puts a row into steps, rounded; steps beyond it are zeros.
    fn row(to: &mut [Self], row: &[f32]);
    /// Turns a square of a panel: `to[48 / NUMBERS][48]` along the panel's rows, from `from`, as many steps of the panel.
    fn turn(to: &mut [Self], from: &[Self]);
}

impl Step for f32 {
    const NUMBERS: usize = 1;
    const MULTIPLE: usize = 1;
    fn of(values: &[f32]) -> f32 {
        values[0]
    }
    fn of_bits(bits: &[[u8; 2]]) -> f32 {
        bf16::from_le_bytes(bits[0]).to_f32()
    }
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
    #[inline(always)]
    fn turn(to: &mut [f32], from: &[f32]) {
        for (k, from) in from.as_chunks::<PANEL>().0.iter().enumerate() {
            to.as_chunks_mut::<PANEL>().0.iter_mut().zip(from).for_each(|(to, &w)| to[k] = w);
        }
    }
}

/// Two numbers of a row, side by side.
type Pair = [bf16; 2];

impl Step for Pair {
    const NUMBERS: usize = 2;
    const MULTIPLE: usize = 16;
    fn of(values: &[f32]) -> Pair {
        [0, 1].map(|i| values.get(i).map_or(bf16::ZERO, |v| bf16::from_f32(*v)))
    }
    fn of_bits(bits: &[[u8; 2]]) -> Pair {
        [0, 1].map(|i| bits.get(i).map_or(bf16::ZERO, |b| bf16::from_le_bytes(*b)))
    }
    fn number(self, i: usize) -> f32 {
        self[i].to_f32()
    }
    fn as_they_lie(_: &[f32]) -> Option<&[Pair]> {
        None
    }
    fn row(to: &mut [Pair], row: &[f32]) {
        let (pairs, odd) = row.as_chunks::<2>();
        let (whole, beyond) = to.split_at_mut(pairs.len());
        crate::device::cpu::simd(
            #[inline(always)]
            || whole.iter_mut().zip(pairs).for_each(|(to, &[a, b])| *to = [round(a), round(b)]),
        );
        beyond.fill([bf16::ZERO; 2]);
        if let &[last] = odd {
            beyond[0][0] = round(last);
        }
    }
    #[inline(always)]
    fn turn(to: &mut [Pair], from: &[Pair]) {
        for (k, from) in from.as_chunks::<PANEL>().0.iter().enumerate() {
            for (to, rows) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(from.as_chunks::<2>().0) {
                let [low, high] = rows;
                (to[2 * k], to[2 * k + 1]) = ([low[0], high[0]], [low[1], high[1]]);
            }
        }
    }
}

/// Round to nearest even without a branch, so that the loop vectorises (NaN payloads may become infinite).
#[inline(always)]
fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    bf16::from_bits(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
}

/// A weight `[M, K]`, packed for products with it.
#[derive(Clone, Debug)]
pub enum Panels {
    /// As it is.
    F32(Packed<f32>),
    /// Rounded; what it is multiplied with is rounded as well, sums are f32.
    Bf16(Packed<Pair>),
}

/// `[M / 48][K / NUMBERS][48]` steps. Rows and steps beyond the weight are zeros.
#[derive(Clone, Debug)]
pub struct Packed<S> {
    rows: usize,
    cols: usize,
    data: Vec<S>,
}

/// Calls a function generic over [`Step`] with the panels that these are.
macro_rules! with_packed {
    ($panels:expr, $p:ident => $body:expr) => {
        match $panels {
            Panels::F32($p) => $body,
            Panels::Bf16($p) => $body,
        }
    };
}

impl Panels {
    /// Bytes that a `[rows, cols]` weight takes, as bf16 or else f32.
    pub fn bytes(bf16: bool, rows: usize, cols: usize) -> usize {
        4 * if bf16 { Packed::<Pair>::steps(rows, cols) } else { Packed::<f32>::steps(rows, cols) }
    }

    /// All zeros, as bf16 or else f32.
    pub fn zeros(bf16: bool, rows: usize, cols: usize) -> Panels {
        if bf16 { Panels::Bf16(Packed::zeros(rows, cols)) } else { Panels::F32(Packed::zeros(rows, cols)) }
    }

    /// Rounds one row of the weight into its place.
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        with_packed!(self, p => p.set_row(row, values));
    }

    /// Widens one row of the weight: the inverse of [`Panels::set_row`].
    pub fn row(&self, row: usize, to: impl FnMut(usize, f32)) {
        with_packed!(self, p => p.row(row, to));
    }

    /// `y[N, M] = x[N, K] wᵀ`, added to `y` where `add`.
    ///
    /// A row of `y` has the same bits whatever rows are beside it. Panics if the slices are not `n` rows long.
    pub fn matmul(&self, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        match self {
            Panels::F32(p) => p.matmul(Single::load, y, x, n, add),
            Panels::Bf16(p) => p.matmul(Half::load, y, x, n, add),
        }
    }

    /// `dx[N, K] = dy[N, M] w`. In all else as [`Panels::matmul`].
    pub fn matmul_back(&self, dx: &mut [f32], dy: &[f32], n: usize) {
        match self {
            Panels::F32(p) => p.matmul_back(Single::load, dx, dy, n),
            Panels::Bf16(p) => p.matmul_back(Half::load, dx, dy, n),
        }
    }
}

impl<S: Step> Packed<S> {
    fn steps(rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL) * PANEL * padded::<S>(cols)
    }

    fn zeros(rows: usize, cols: usize) -> Packed<S> {
        // The system's zeros, which nobody has to write: whoever fills them touches them first.
        Packed { rows, cols, data: bytemuck::zeroed_vec(Self::steps(rows, cols)) }
    }

    /// Its first step's place; the others are a panel's width apart.
    fn place(&self, row: usize) -> usize {
        row / PANEL * padded::<S>(self.cols) * PANEL + row % PANEL
    }

    fn set_row(&mut self, row: usize, values: &[f32]) {
        let first = self.place(row);
        let places = self.data[first..].iter_mut().step_by(PANEL);
        places.zip(values.chunks(S::NUMBERS)).for_each(|(to, values)| *to = S::of(values));
    }

    fn row(&self, row: usize, mut to: impl FnMut(usize, f32)) {
        let steps = self.data[self.place(row)..].iter().step_by(PANEL);
        for (k, step) in (0..self.cols).step_by(S::NUMBERS).zip(steps) {
            (k..self.cols.min(k + S::NUMBERS)).for_each(|c| to(c, step.number(c - k)));
        }
    }

    fn matmul<U: Unit<S>>(&self, load: fn() -> U, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        let (x, steps) = (Rows { data: x, rows: n, cols: self.cols }, padded::<S>(self.cols));
        product(load, Rows { data: y, rows: n, cols: self.rows }, add, x, (self, Packed::panel, steps));
    }

    fn matmul_back<U: Unit<S>>(&self, load: fn() -> U, dx: &mut [f32], dy: &[f32], n: usize) {
        let (dy, steps) = (Rows { data: dy, rows: n, cols: self.rows }, padded::<S>(self.rows));
        let w = (self, Packed::turned as Panel<S>, steps);
        product(load, Rows { data: dx, rows: n, cols: self.cols }, false, dy, w);
    }

    /// Some steps of a panel.
    fn panel<'a>(&'a self, p: usize, steps: Range<usize>, _: &'a mut Vec<u32>) -> &'a [S] {
        let first = p * padded::<S>(self.cols);
        &self.data[(first + steps.start) * PANEL..(first + steps.end) * PANEL]
    }

    /// Steps of turned panels that a panel makes.
    const SQUARE: usize = PANEL / S::NUMBERS;

    /// Some steps of a panel of the transposed weight, which `room` takes.
    fn turned<'a>(&'a self, p: usize, steps: Range<usize>, room: &'a mut Vec<u32>) -> &'a [S] {
        let size = Self::SQUARE * PANEL;
        let room = steps_of(room, steps.len().next_multiple_of(Self::SQUARE) * PANEL);
        room.fill(S::zeroed());
        let panels = self.data.chunks(padded::<S>(self.cols) * PANEL).skip(steps.start / Self::SQUARE);
        for (to, panel) in room.chunks_exact_mut(size).zip(panels) {
            let from = &panel[p * size..panel.len().min((p + 1) * size)];
            crate::device::cpu::simd(
                #[inline(always)]
                || S::turn(to, from),
            );
        }
        &room[..steps.len() * PANEL]
    }
}

/// Steps of a row, with those that pad it.
fn padded<S: Step>(cols: usize) -> usize {
    cols.div_ceil(S::NUMBERS).next_multiple_of(S::MULTIPLE)
}
