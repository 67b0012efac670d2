//! Tiles of scores: some rows of a sequence against the keys that they see, in either direction.

use super::{Heads, Mask};
use crate::device::cpu::{Real, simd};
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

/// Some rows of one sequence: what one task computes, for all heads.
pub struct Block<'a, R> {
    pub sequence: Range<usize>,
    pub rows: Range<usize>,
    pub out: &'a mut [R],
    pub lse: Option<&'a mut [R]>,
}

/// The sequences in blocks of at most `most` rows.
pub fn blocks<'a, R>(
    mut out: &'a mut [R],
    mut lse: Option<&'a mut [R]>,
    starts: &[i32],
    heads: Heads,
    most: usize,
) -> Vec<Block<'a, R>> {
    let mut list = Vec::new();
    for s in starts.windows(2) {
        let sequence = s[0] as usize..s[1] as usize;
        for first in sequence.clone().step_by(most) {
            let rows = first..(first + most).min(sequence.end);
            let (o, l);
            (o, out) = out.split_at_mut(rows.len() * heads.query * heads.width);
            (l, lse) = lse.map(|lse| lse.split_at_mut(rows.len() * heads.query)).unzip();
            list.push(Block { sequence: sequence.clone(), rows, out: o, lse: l });
        }
    }
    list
}

/// One task's own memory: tiles of scores, of what dropout leaves of them, and of their gradients.
pub struct Scratch<R> {
    pub scores: Vec<R>,
    pub dropped: Vec<R>,
    pub gradient: Vec<R>,
}

impl<R> Default for Scratch<R> {
    fn default() -> Scratch<R> {
        Scratch { scores: Vec::new(), dropped: Vec::new(), gradient: Vec::new() }
    }
}

/// The scores of some rows of a sequence: against which of its keys.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows.
    pub m: usize,
    /// Keys.
    pub t: usize,
    /// First key that any of the rows sees, in the sequence.
    pub first: usize,
}

impl Tile {
    /// Every mask shows one unbroken range of keys that only moves right.
    pub fn new(rows: &Range<usize>, sequence: &Range<usize>, rule: Rule) -> Tile {
        let seen = |row: usize| rule.mask.keys(row - sequence.start, sequence.len());
        let (first, end) = (seen(rows.start).start, seen(rows.end - 1).end);
        Tile { m: rows.len(), t: end - first, first }
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
