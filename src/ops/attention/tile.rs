//! Tiles of scores: some rows of a sequence against the keys that they see, in either direction.

use super::{Heads, Mask};
use crate::device::cpu::{LANES, Matrix, Real, matmul, simd, small_matmul};
use crate::ops::dropout::Dropout;
use std::ops::Range;

/// What every task needs to know; the dropout comes with its key.
#[derive(Clone, Copy)]
pub struct Rule {
    pub heads: Heads,
    pub mask: Mask,
    pub dropout: Option<(Dropout, [u32; 2])>,
}

/// Query rows that one task takes: the scores of a block against a long text stay in cache.
pub const BLOCK: usize = 64;

/// One task's own memory: tiles of scores or their gradients, and the keys or values of a head transposed.
pub struct Scratch<R> {
    pub scores: Vec<R>,
    pub dropped: Vec<R>,
    pub gradient: Vec<R>,
    pub transposed: Vec<R>,
}

impl<R> Default for Scratch<R> {
    fn default() -> Scratch<R> {
        Scratch { scores: Vec::new(), dropped: Vec::new(), gradient: Vec::new(), transposed: Vec::new() }
    }
}

/// Keys up to which the small product replaces the blocked one: its setup costs more than the work of a short text.
pub const SHORT: usize = 160;

/// The scores of some rows of a sequence: which keys, and how they are multiplied.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows and keys.
    pub m: usize,
    pub t: usize,
    /// Scores per row, of which the first `t` are used.
    pub width: usize,
    pub short: bool,
    /// First key that any of the rows sees, in the sequence.
    pub first: usize,
}

impl Tile {
    /// Every mask shows one unbroken range of keys that only moves right.
    pub fn new(rows: &Range<usize>, sequence: &Range<usize>, rule: Rule) -> Tile {
        let seen = |row: usize| rule.mask.keys(row - sequence.start, sequence.len());
        let (first, end) = (seen(rows.start).start, seen(rows.end - 1).end);
        let t = end - first;
        let short = t <= SHORT && rule.heads.width.is_multiple_of(LANES);
        Tile { m: rows.len(), t, width: if short { t.next_multiple_of(LANES) } else { t }, short, first }
    }

    /// `y[m, width] = alpha a[m, d] b[t, d]ᵀ`; both have rows `stride`s apart. Columns beyond `t` become 0.
    pub fn rows_by_keys<R: Real>(
        self,
        y: &mut Vec<R>,
        alpha: f64,
        a: Matrix<R>,
        (b, b_stride): (&[R], usize),
        transposed: &mut Vec<R>,
    ) {
        let (d, width) = (a.shape[1], self.width);
        y.resize(self.m * width, R::ZERO);
        if !self.short {
            matmul(y, width, false, alpha, a, Matrix::rows(b, self.t, d, b_stride).t(), false);
            return;
        }
        transposed.clear();
        transposed.resize(d * width, R::ZERO);
        simd(
            #[inline(always)]
            || {
                for (j, row) in b.chunks(b_stride).take(self.t).enumerate() {
                    row[..d].iter().enumerate().for_each(|(c, &x)| transposed[c * width + j] = x);
                }
                small_matmul(width, R::of(alpha), false, (y, width), a, (transposed, width));
            },
        );
    }

    /// `y (+)= alpha a b` with D columns, `a` a tile of scores or its transpose.
    pub fn product<R: Real>(
        self,
        (y, y_stride): (&mut [R], usize),
        add: bool,
        alpha: f64,
        a: Matrix<R>,
        (b, b_stride): (&[R], usize),
        d: usize,
    ) {
        if self.short {
            simd(
                #[inline(always)]
                || small_matmul(d, R::of(alpha), add, (y, y_stride), a, (b, b_stride)),
            );
        } else {
            matmul(y, y_stride, add, alpha, a, Matrix::rows(b, a.shape[1], d, b_stride), false);
        }
    }

    /// The columns of the tile that row `at` of the sequence sees.
    pub fn visible(self, at: usize, len: usize, mask: Mask) -> Range<usize> {
        let keys = mask.keys(at, len);
        keys.start - self.first..keys.end - self.first
    }
}

/// Softmax in place; returns the log of the sum of exponentials.
pub fn softmax<R: Real>(row: &mut [R]) -> R {
    simd(
        #[inline(always)]
        || {
            let mut most = [row[0]; 16];
            let (head, tail) = row.as_chunks::<16>();
            for x in head {
                for i in 0..16 {
                    most[i] = most[i].max(x[i]);
                }
            }
            let most = tail.iter().chain(&most).fold(row[0], |a, &b| a.max(b));
            let mut sum = [R::ZERO; 16];
            let (head, tail) = row.as_chunks_mut::<16>();
            for x in head {
                for i in 0..16 {
                    x[i] = (x[i] - most).exp();
                    sum[i] += x[i];
                }
            }
            let mut total = R::ZERO;
            for x in tail {
                *x = (*x - most).exp();
                total += *x;
            }
            let total = sum.iter().fold(total, |a, &b| a + b);
            let scale = R::ONE / total;
            row.iter_mut().for_each(|x| *x = *x * scale);
            most + total.ln()
        },
    )
}
