//! What a product reads and writes: rows of `x` in steps, and tiles of `y` that tasks take apart from each other.

use super::PANEL;
use std::marker::PhantomData;
use std::ops::Range;

/// A dense row-major matrix.
pub struct Rows<D> {
    /// `rows * cols` numbers.
    pub data: D,
    /// Its rows.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
}

/// Some steps of rows of `x`, or tiles of them, where 16 rows of as many steps lie together
/// ([`Unit::tiled`](super::units::Unit::tiled)): then every 16th row begins where it would without.
#[derive(Clone, Copy)]
pub struct Lines<'a, S> {
    /// From the first step of the first row on.
    pub steps: &'a [S],
    /// Steps from row to row.
    pub stride: usize,
    /// Places from one step of a row to the next; 1 but for [`Lanes`](super::Lanes).
    pub step: usize,
}

impl<'a, S> Lines<'a, S> {
    /// Whether there are so many steps of so many rows.
    pub fn holds(&self, rows: usize, steps: usize) -> bool {
        rows == 0 || steps == 0 || (rows - 1) * self.stride + (steps - 1) * self.step < self.steps.len()
    }

    /// The rows from this one on.
    pub fn from(self, row: usize) -> Lines<'a, S> {
        Lines { steps: &self.steps[row * self.stride..], ..self }
    }
}

/// `y`, of which tasks take tiles.
pub struct Output<'a> {
    at: *mut f32,
    rows: usize,
    cols: usize,
    whole: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a mutable slice, which may go to another thread; who takes tiles on several sees to it that none overlap.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// All of it.
    pub fn new(y: Rows<&'a mut [f32]>) -> Output<'a> {
        assert!(y.data.len() == y.rows * y.cols);
        Output { at: y.data.as_mut_ptr(), rows: y.rows, cols: y.cols, whole: PhantomData }
    }

    /// Some columns of some rows.
    ///
    /// # Safety
    /// - no other tile that lives has a number in common with this one
    pub unsafe fn tile(&self, rows: Range<usize>, columns: Range<usize>) -> Tile<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        assert!(columns.start < columns.end && columns.end <= self.cols);
        // SAFETY: the first number of a tile that lies within y.
        let at = unsafe { self.at.add(rows.start * self.cols + columns.start) };
        Tile { at, stride: self.cols, rows: rows.len(), width: columns.len(), part: PhantomData }
    }
}

/// Some columns of some rows of `y`.
pub struct Tile<'a> {
    at: *mut f32,
    stride: usize,
    rows: usize,
    width: usize,
    part: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// Its rows; at least 1.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// One of them: at most 48 numbers, at least 1.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: a row of the tile, which is this one's alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.stride), self.width) }
    }

    /// Has the cache fetch the line with this column of this row, for when it is written.
    #[inline(always)]
    pub fn fetch(&self, row: usize, column: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: whatever the address, a prefetch touches no memory.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.at.wrapping_add(row * self.stride + column).cast()) };
        }
    }

    /// Some of its rows.
    pub fn part(&mut self, rows: Range<usize>) -> Tile<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        // SAFETY: a row of the tile.
        let at = unsafe { self.at.add(rows.start * self.stride) };
        Tile { at, rows: rows.len(), part: PhantomData, ..*self }
    }

    /// Its first number and how many lie between two rows, where it is [`WHOLE`] rows of a whole panel.
    #[cfg(target_arch = "x86_64")]
    pub fn whole(&mut self) -> Option<(*mut f32, usize)> {
        (self.rows == WHOLE && self.width == PANEL).then_some((self.at, self.stride))
    }
}

/// Rows of AMX's tiles, and their steps.
pub const SIDE: usize = 16;
/// Rows of a product that takes whole tiles alone: two of them.
pub const WHOLE: usize = 32;

/// Has a product added to 32 x 48 numbers that begin as those of `y`, or with 0.
pub fn through_a_whole_tile(y: &mut Tile, add: bool, product: impl FnOnce(&mut [f32; WHOLE * PANEL])) {
    let mut room = [0.0; WHOLE * PANEL];
    let (rows, width) = (y.rows, y.width);
    if add {
        (0..rows).zip(room.chunks_mut(PANEL)).for_each(|(r, to)| to[..width].copy_from_slice(y.row(r)));
    }
    product(&mut room);
    (0..rows).zip(room.chunks(PANEL)).for_each(|(r, from)| y.row(r).copy_from_slice(&from[..width]));
}
