//! Panels from rows of a weight, panel by panel, by all cores.

use super::step::Kept;
use super::{PANEL, Packed, Panels, padded};
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Steps of columns that are put into place before those behind them: a cache line of each row, or two.
const STEPS: usize = 16;

/// Rows of one panel, which lie one beside the other.
pub struct PanelRows<'a, S> {
    data: &'a mut [S],
    first: usize,
    cols: usize,
}

/// Takes rows of a weight into their places.
pub trait Places {
    /// The rows' numbers as a file of bf16 has them.
    fn copy(&mut self, bits: &[[u8; 2]]);
    /// The rows' numbers, rounded.
    fn round(&mut self, values: &[f32]);
}

/// What fills rows, counted from the first of all.
pub type Fill<'a> = &'a (dyn Fn(Range<usize>, &mut dyn Places) -> Result<()> + Sync);

impl Panels {
    /// Has the panels of these rows filled: `each` gets rows of a panel and their places.
    pub fn fill(&mut self, rows: Range<usize>, each: Fill) -> Result<()> {
        match self {
            Panels::F32(p) => p.fill(rows, each),
            Panels::Bf16(p) => p.fill(rows, each),
        }
    }
}

impl<S: Kept> Packed<S> {
    fn fill(&mut self, rows: Range<usize>, each: Fill) -> Result<()> {
        let (cols, size) = (self.cols, padded::<S>(self.cols) * PANEL);
        let (first, last) = (rows.start / PANEL, rows.end.div_ceil(PANEL));
        let panels = self.panels_mut()[first * size..last * size].par_chunks_mut(size).enumerate();
        panels.try_for_each(|(i, data)| {
            let panel = (first + i) * PANEL;
            let (from, to) = (rows.start.max(panel), rows.end.min(panel + PANEL));
            let mut places = PanelRows { data, first: from - panel, cols };
            each(from - rows.start..to - rows.start, &mut places)
        })
    }
}

impl<S: Kept> Places for PanelRows<'_, S> {
    fn copy(&mut self, bits: &[[u8; 2]]) {
        self.place(bits, S::of_bits);
    }

    fn round(&mut self, values: &[f32]) {
        self.place(values, S::of);
    }
}

impl<S: Kept> PanelRows<'_, S> {
    fn place<T>(&mut self, values: &[T], step: impl Fn(&[T]) -> S) {
        let wide = STEPS * S::NUMBERS;
        for (at, block) in self.data.chunks_mut(STEPS * PANEL).enumerate() {
            let columns = self.cols.min(wide * at)..self.cols.min(wide * (at + 1));
            for (r, row) in values.chunks_exact(self.cols).enumerate() {
                let places = block.iter_mut().skip(self.first + r).step_by(PANEL);
                let steps = row[columns.clone()].chunks_exact(S::NUMBERS);
                let odd = steps.remainder();
                let mut places = places;
                steps.zip(&mut places).for_each(|(numbers, to)| *to = step(numbers));
                if let (false, Some(to)) = (odd.is_empty(), places.next()) {
                    *to = step(odd);
                }
            }
        }
    }
}
