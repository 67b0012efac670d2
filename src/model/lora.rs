//! Low-rank adapters: one pair per projection, and the stacked form that a merged projection computes with.

use crate::error::Result;
use crate::memory::Arena;
use crate::ops::lora_linear::Lora;
use crate::tensor::Tensor;

/// One adapter matrix pair as files hold it: `W += scale * b a`.
#[derive(Clone, Debug)]
pub struct Delta {
    /// `alpha / r`.
    pub scale: f64,
    /// R.
    pub rank: usize,
    /// `[R, K]`.
    pub a: Vec<f32>,
    /// `[M, R]`.
    pub b: Vec<f32>,
}

impl Delta {
    /// Adds this delta's row `row` to a row of W. The sum is f32.
    pub fn add_to_row(&self, row: usize, w: &mut [f32]) {
        for (r, b) in self.b[row * self.rank..][..self.rank].iter().enumerate() {
            let factor = self.scale as f32 * b;
            let a = &self.a[r * w.len()..];
            w.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
        }
    }
}

/// The adapters of a merged projection, live: stacked as [`Lora`] wants them.
#[derive(Clone, Debug)]
pub struct Stack {
    a: Tensor,
    b: Tensor,
    rows: Vec<usize>,
    scales: Vec<f64>,
}

impl Stack {
    /// Stacks one delta (or none) per segment; `rows[i]` is the height of segment i, `k` the input width.
    ///
    /// `rank` is the adapter's largest: smaller ones are padded with zeros.
    pub fn new(arena: &mut Arena, rows: &[usize], k: usize, rank: usize, deltas: &[Option<&Delta>]) -> Stack {
        let (mut a, mut b) =
            (arena.statistic(&[rows.len() * rank, k]), arena.statistic(&[rows.iter().sum(), rank]));
        let mut first = 0;
        for (s, (&height, delta)) in rows.iter().zip(deltas).enumerate() {
            if let Some(d) = delta {
                arena.put_rows(&mut a, s * rank, &d.a);
                let mut padded = vec![0.0; height * rank];
                for (to, from) in padded.chunks_mut(rank).zip(d.b.chunks(d.rank)) {
                    to[..d.rank].copy_from_slice(from);
                }
                arena.put_rows(&mut b, first, &padded);
            }
            first += height;
        }
        let scales = deltas.iter().map(|d| d.map_or(0.0, |d| d.scale)).collect();
        Stack { a, b, rows: rows.to_vec(), scales }
    }

    /// A and B, for an optimiser.
    pub fn factors_mut(&mut self) -> [&mut Tensor; 2] {
        [&mut self.a, &mut self.b]
    }

    /// The delta of each segment, at the stack's rank; `None` where it has no adapter.
    pub fn segments(&self) -> Result<Vec<Option<Delta>>> {
        let (rank, k) = (self.b.shape()[1], self.a.shape()[1]);
        let (a, b) = (self.a.read_f32()?, self.b.read_f32()?);
        let mut first = 0;
        let parts = self.rows.iter().zip(&self.scales).enumerate().map(|(s, (&rows, &scale))| {
            let (a, b) = (&a[s * rank * k..][..rank * k], &b[first * rank..][..rows * rank]);
            first += rows;
            (scale != 0.0).then(|| Delta { scale, rank, a: a.to_vec(), b: b.to_vec() })
        });
        Ok(parts.collect())
    }

    /// The op's view.
    pub fn view(&self) -> Lora<'_> {
        Lora { a: &self.a, b: &self.b, rows: &self.rows, scales: &self.scales }
    }
}
