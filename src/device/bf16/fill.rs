//! Panels from rows of a weight, panel by panel, by all cores.

use super::{PANEL, Panels, pairs};
use crate::error::Result;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Pairs of columns that are put into place before those behind them: a cache line of each row.
const PAIRS: usize = 16;

/// Rows of one panel, which lie one beside the other.
pub struct PanelRows<'a> {
    data: &'a mut [[bf16; 2]],
    first: usize,
    cols: usize,
}

impl Panels {
    /// Has the panels of these rows filled: `each` gets rows of a panel, counted from the first of all, and their places.
    pub fn fill(
        &mut self,
        rows: Range<usize>,
        each: impl Fn(Range<usize>, &mut PanelRows) -> Result<()> + Sync,
    ) -> Result<()> {
        let (cols, size) = (self.cols, pairs(self.cols) * PANEL);
        let (first, last) = (rows.start / PANEL, rows.end.div_ceil(PANEL));
        let panels = self.data[first * size..last * size].par_chunks_mut(size).enumerate();
        panels.try_for_each(|(i, data)| {
            let panel = (first + i) * PANEL;
            let (from, to) = (rows.start.max(panel), rows.end.min(panel + PANEL));
            let mut places = PanelRows { data, first: from - panel, cols };
            each(from - rows.start..to - rows.start, &mut places)
        })
    }
}

impl PanelRows<'_> {
    /// Takes the rows' numbers as they lie in a file.
    pub fn copy(&mut self, bits: &[[u8; 2]]) {
        self.place(bits, |b| bf16::from_le_bytes(*b));
    }

    /// Takes the rows' numbers, rounded.
    pub fn round(&mut self, values: &[f32]) {
        self.place(values, |v| bf16::from_f32(*v));
    }

    fn place<T>(&mut self, values: &[T], number: impl Fn(&T) -> bf16) {
        for (at, block) in self.data.chunks_mut(PAIRS * PANEL).enumerate() {
            let columns = self.cols.min(2 * PAIRS * at)..self.cols.min(2 * PAIRS * (at + 1));
            for (r, row) in values.chunks_exact(self.cols).enumerate() {
                let mut places = block.iter_mut().skip(self.first + r).step_by(PANEL);
                let (pairs, odd) = row[columns.clone()].as_chunks::<2>();
                for ([a, b], to) in pairs.iter().zip(&mut places) {
                    *to = [number(a), number(b)];
                }
                // Its neighbour is padding, and stays 0.
                if let ([last], Some(to)) = (odd, places.next()) {
                    to[0] = number(last);
                }
            }
        }
    }
}
