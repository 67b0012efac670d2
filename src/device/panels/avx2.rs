//! Panels of f32 by AVX2: 6 x 16 of `y` in 12 vector registers; a step multiplies one broadcast number of `x` with 16 of `w`.
//!
//! A panel is taken in three parts of 16 columns, each a cache line of a step: as many rows as registers are for re-read it
//! from the cache least often so (4 x 24 and 2 x 48 also spill), and 12 sums hide the latency of two multipliers.

use super::PANEL;
use super::tile::{Lines, Tile};
use std::arch::x86_64::*;

/// Columns of a part.
const PART: usize = 16;
/// What [`Unit::depth`](super::units::Unit::depth) is: 18 KB of a part stay in the level-1 cache, and a block of x in the next.
pub const DEPTH: usize = 288;
/// Steps from the one in use to the one that the cache is to fetch.
const AHEAD: usize = 16;

/// The instructions are there.
pub struct Vectors256(());

impl Vectors256 {
    /// None where the CPU lacks AVX2 or FMA.
    pub fn load() -> Option<Vectors256> {
        (std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma"))
            .then_some(Vectors256(()))
    }

    /// `y (+)= x w`; `w` is some steps of a panel, and `next` what the cache is to fetch meanwhile.
    ///
    /// Panics if a slice is too short.
    pub fn product(&self, y: &mut Tile, x: Lines<f32>, w: &[f32], add: bool, next: &[u8]) {
        assert!(x.holds(y.rows(), w.len() / PANEL));
        let parts = y.row(0).len().div_ceil(PART);
        let mut next = Next::new(next, y.rows().div_ceil(6) * parts);
        for part in 0..parts {
            let mut row = 0;
            while row < y.rows() {
                next.fetch();
                // SAFETY: `load` has seen that the CPU has the instructions; x holds y's rows and w's steps; y has columns
                // in this part.
                row += unsafe {
                    match y.rows() - row {
                        6.. => tile_6(y, row, part, x, w, add),
                        4.. => tile_4(y, row, part, x, w, add),
                        2.. => tile_2(y, row, part, x, w, add),
                        _ => tile_1(y, row, part, x, w, add),
                    }
                };
            }
        }
    }
}

/// Memory that the cache is to fetch, some of it with each tile.
struct Next<'a> {
    lines: std::slice::Chunks<'a, u8>,
    each: usize,
}

impl<'a> Next<'a> {
    fn new(memory: &'a [u8], tiles: usize) -> Next<'a> {
        let lines = memory.chunks(64);
        Next { each: lines.len().div_ceil(tiles.max(1)), lines }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        for line in self.lines.by_ref().take(self.each) {
            // SAFETY: a prefetch of memory that is there.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
}

/// A tile with its rows written out, as in [`avx512`](super::avx512).
macro_rules! tile {
    ($name:ident, $rows:literal, [$($r:literal)*]) => {
        /// So many rows from `row` on; gives their number.
        ///
        /// # Safety
        /// - the CPU has the instructions
        /// - `x` holds so many rows from `row` on, and of each the steps of `w`
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(y: &mut Tile, row: usize, part: usize, x: Lines<f32>, w: &[f32], add: bool) -> usize {
            $( [0, PART - 1].into_iter().for_each(|at| y.fetch(row + $r, PART * part + at)); )*
            let zero = _mm256_setzero_ps();
            let mut sums = [$({ let _ = $r; [zero, zero] }),*];
            for (k, w) in w.as_chunks::<PANEL>().0.iter().enumerate() {
                // SAFETY: a part is 16 of the 48 numbers; x holds as many rows, and step k of each; whatever the address,
                // a prefetch touches no memory.
                unsafe {
                    let w = w.as_ptr().add(PART * part);
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(PANEL * AHEAD).cast());
                    let w = [_mm256_loadu_ps(w), _mm256_loadu_ps(w.add(8))];
                    $(
                        let step = _mm256_broadcast_ss(&*x.steps.as_ptr().add((row + $r) * x.stride + k * x.step));
                        sums[$r][0] = _mm256_fmadd_ps(step, w[0], sums[$r][0]);
                        sums[$r][1] = _mm256_fmadd_ps(step, w[1], sums[$r][1]);
                    )*
                }
            }
            $( put(&mut y.row(row + $r)[PART * part..], sums[$r], add); )*
            $rows
        }
    };
}
tile!(tile_6, 6, [0 1 2 3 4 5]);
tile!(tile_4, 4, [0 1 2 3]);
tile!(tile_2, 2, [0 1]);
tile!(tile_1, 1, [0]);

/// The first 16 of these numbers, or as many as there are.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn put(to: &mut [f32], sums: [__m256; 2], add: bool) {
    let zero = _mm256_setzero_ps();
    if let Some(to) = to.first_chunk_mut::<PART>() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: 8 of the 16 numbers.
            unsafe {
                let to = to.as_mut_ptr().add(8 * v);
                let before = if add { _mm256_loadu_ps(to) } else { zero };
                _mm256_storeu_ps(to, _mm256_add_ps(before, sum));
            }
        }
    } else {
        let mut row = [0f32; PART];
        // SAFETY: 16 numbers.
        unsafe { (0..2).for_each(|v| _mm256_storeu_ps(row.as_mut_ptr().add(8 * v), sums[v])) };
        to.iter_mut().zip(row).for_each(|(to, sum)| *to = if add { *to + sum } else { sum });
    }
}
