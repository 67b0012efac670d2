//! The CPU's matrix products with weights packed once, in f32 and in bf16.
//!
//! A weight lies in panels of 48 rows: what three vectors of AVX-512 multiply in one step lies side by side, and is read from
//! memory in the order in which it is used. A product of few rows is then as quick as the memory, where one that packs weights
//! as it is called takes several times that. Backward (`dy w`) the same panels are turned, block by block, in the cache.
//!
//! What multiplies them are AMX's tiles (bf16; no Rust crate multiplies those), AVX-512's vectors (both), AVX2's (f32), or else
//! portable code. Without instructions for bf16 its panels are widened in the cache, a depth at a time, and multiplied as f32.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod fill;
mod lanes;
mod peak;
mod portable;
mod product;
mod step;
#[cfg(test)]
mod tests;
mod tile;
mod units;

pub use lanes::{Lanes, Line};
pub use peak::peak;
use product::{Panel, product};
use std::fmt::{Debug, Formatter};
use std::ops::Range;
use step::{Gives, Kept, Pair, Step, Wide, steps_of};
use tile::Rows;
use units::{Half, Single, Unit};
pub use units::{bf16_unit, f32_unit};

/// Output columns per panel: three vectors of 16.
pub const PANEL: usize = 48;
/// Steps in a cache line, where panels begin: else every vector of 16 would be read from two.
const LINE: usize = 16;

/// A weight `[M, K]`, packed for products with it.
#[derive(Clone, Debug)]
pub enum Panels {
    /// As it is.
    F32(Packed<f32>),
    /// Rounded; what it is multiplied with is rounded as well, sums are f32.
    Bf16(Packed<Pair>),
}

/// `[M / 48][K / NUMBERS][48]` steps, from `first` on. Rows and steps beyond the weight are zeros.
#[derive(Clone)]
pub struct Packed<P> {
    rows: usize,
    cols: usize,
    first: usize,
    data: Vec<P>,
}

/// Without where in memory they begin.
impl<P: Kept + Debug> Debug for Packed<P> {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let Packed { rows, cols, .. } = self;
        f.debug_struct("Packed")
            .field("rows", rows)
            .field("cols", cols)
            .field("panels", &self.panels())
            .finish()
    }
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
            Panels::Bf16(p) if bf16_unit().is_some() => p.matmul(Half::load, y, x, n, add),
            Panels::Bf16(p) => p.matmul::<Wide, _>(Single::load, y, x, n, add),
        }
    }

    /// `dx[N, K] = dy[N, M] w`. In all else as [`Panels::matmul`].
    pub fn matmul_back(&self, dx: &mut [f32], dy: &[f32], n: usize) {
        match self {
            Panels::F32(p) => p.matmul_back(Single::load, dx, dy, n),
            Panels::Bf16(p) if bf16_unit().is_some() => p.matmul_back(Half::load, dx, dy, n),
            Panels::Bf16(p) => p.matmul_back::<Wide, _>(Single::load, dx, dy, n),
        }
    }
}

impl<P: Kept> Packed<P> {
    /// With those before the first line of the cache.
    fn steps(rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL) * PANEL * padded::<P>(cols) + LINE - 1
    }

    fn zeros(rows: usize, cols: usize) -> Packed<P> {
        // The system's zeros, which nobody has to write: whoever fills them touches them first.
        let data = bytemuck::zeroed_vec(Self::steps(rows, cols));
        Packed { rows, cols, first: first_line(&data), data }
    }

    /// The panels.
    fn panels(&self) -> &[P] {
        &self.data[self.first..][..self.data.len() - (LINE - 1)]
    }

    /// The panels, to be filled.
    fn panels_mut(&mut self) -> &mut [P] {
        let steps = self.data.len() - (LINE - 1);
        &mut self.data[self.first..][..steps]
    }

    /// Its first step's place; the others are a panel's width apart.
    fn place(&self, row: usize) -> usize {
        row / PANEL * padded::<P>(self.cols) * PANEL + row % PANEL
    }

    fn set_row(&mut self, row: usize, values: &[f32]) {
        let first = self.place(row);
        let places = self.panels_mut()[first..].iter_mut().step_by(PANEL);
        places.zip(values.chunks(P::NUMBERS)).for_each(|(to, values)| *to = P::of(values));
    }

    fn row(&self, row: usize, mut to: impl FnMut(usize, f32)) {
        let steps = self.panels()[self.place(row)..].iter().step_by(PANEL);
        for (k, step) in (0..self.cols).step_by(P::NUMBERS).zip(steps) {
            (k..self.cols.min(k + P::NUMBERS)).for_each(|c| to(c, step.number(c - k)));
        }
    }

    fn matmul<S: Step, U: Unit<S>>(&self, load: fn() -> U, y: &mut [f32], x: &[f32], n: usize, add: bool)
    where
        P: Gives<S>,
    {
        let (x, steps) = (Rows { data: x, rows: n, cols: self.cols }, padded::<S>(self.cols));
        let w = (self, Packed::panel as Panel<P, S>, steps);
        product(load, Rows { data: y, rows: n, cols: self.rows }, add, x, w);
    }

    fn matmul_back<S: Step, U: Unit<S>>(&self, load: fn() -> U, dx: &mut [f32], dy: &[f32], n: usize)
    where
        P: Gives<S>,
    {
        let (dy, steps) = (Rows { data: dy, rows: n, cols: self.rows }, padded::<S>(self.rows));
        let w = (self, Packed::turned as Panel<P, S>, steps);
        product(load, Rows { data: dx, rows: n, cols: self.cols }, false, dy, w);
    }

    /// Some steps of a panel, and the same of the next one as they are kept.
    fn panel<'a, S: Step>(
        &'a self,
        p: usize,
        steps: Range<usize>,
        room: &'a mut Vec<u32>,
    ) -> (&'a [S], &'a [u8])
    where
        P: Gives<S>,
    {
        let kept = |step: usize| (step * S::NUMBERS).div_ceil(P::NUMBERS) * PANEL;
        let mut panels = self.panels().chunks(padded::<P>(self.cols) * PANEL).skip(p);
        let mut take = || panels.next().map_or(&[][..], |panel| &panel[kept(steps.start)..kept(steps.end)]);
        let (own, next) = (take(), take());
        (&P::lines(own, room)[..steps.len() * PANEL], bytemuck::cast_slice(next))
    }

    /// Some steps of a panel of the transposed weight, which `room` takes.
    fn turned<'a, S: Step>(
        &'a self,
        p: usize,
        steps: Range<usize>,
        room: &'a mut Vec<u32>,
    ) -> (&'a [S], &'a [u8])
    where
        P: Gives<S>,
    {
        // A panel's rows make so many steps of it, out of so many kept ones.
        let (square, size) = (PANEL / S::NUMBERS, PANEL / P::NUMBERS * PANEL);
        let room = steps_of(room, steps.len().next_multiple_of(square) * PANEL);
        room.fill(S::zeroed());
        let panels = self.panels().chunks(padded::<P>(self.cols) * PANEL).skip(steps.start / square);
        for (to, panel) in room.chunks_exact_mut(square * PANEL).zip(panels) {
            let kept = &panel[p * size..panel.len().min((p + 1) * size)];
            crate::device::cpu::simd(
                #[inline(always)]
                || P::turn(to, kept),
            );
        }
        (&room[..steps.len() * PANEL], &[])
    }
}

/// Steps of a row, with those that pad it.
fn padded<S: Step>(cols: usize) -> usize {
    cols.div_ceil(S::NUMBERS).next_multiple_of(S::MULTIPLE)
}

/// The first of these that begins a line of the cache; at most the sixteenth.
fn first_line<S>(steps: &[S]) -> usize {
    steps.as_ptr().align_offset(4 * LINE).min(LINE - 1)
}
