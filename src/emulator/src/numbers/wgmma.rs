//! The arithmetic of `wgmma`: operands out of shared memory, and their products.
//!
//! Numbers: products are exact, and each element's sum runs in f32 from the accumulator over rising k; sums in f16 are
//! rounded once an instruction.

use super::descriptor::{CHUNK, Descriptor};
use crate::isa::operand::LANES;
use crate::isa::product::{Element, Wgmma};
use half::{bf16, f16};

/// Rows of a product.
pub const M: usize = 64;

impl Wgmma {
    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        (2 * M * self.n * self.element.depth()) as u64
    }

    /// Addresses of an operand's chunks, row by row: `rows` of A or columns of B.
    pub fn chunks(&self, descriptor: &Descriptor, across: bool, rows: usize) -> Vec<u32> {
        let (rows, k) = (rows as u32, self.element.depth() as u32);
        match across {
            false => (0..rows).flat_map(|r| (0..2).map(move |c| descriptor.along_k(r, c))).collect(),
            true => (0..k).flat_map(|k| (0..rows / 8).map(move |c| descriptor.across_k(k, c))).collect(),
        }
    }

    /// Those chunks as numbers, [k][rows].
    pub fn numbers(
        &self,
        chunks: &[u32],
        memory: &[u8],
        across: bool,
        rows: usize,
        negate: bool,
    ) -> Vec<f32> {
        let sign = if negate { -1.0 } else { 1.0 };
        match self.element {
            Element::Bf16 => gather(chunks, memory, across, rows, |b| sign * bf16::from_le_bytes(b).to_f32()),
            Element::F16 => gather(chunks, memory, across, rows, |b| sign * f16::from_le_bytes(b).to_f32()),
            // The decoder lets no other through.
            _ => gather(chunks, memory, across, rows, |b: [u8; 4]| {
                sign * Element::Tf32.at(u32::from_le_bytes(b).into(), 0)
            }),
        }
    }

    /// sums[m][n] += A B: four steps of k at a time, added one after the other.
    pub fn multiply(&self, a: &[f32], b: &[f32], sums: &mut [f32]) {
        let n = self.n;
        for (m, sums) in sums.chunks_exact_mut(n).enumerate() {
            for (a, b) in a.chunks_exact(4 * M).zip(b.chunks_exact(4 * n)) {
                let x = [a[m], a[M + m], a[2 * M + m], a[3 * M + m]];
                let ((y0, y1), (y2, y3)) = (b[..2 * n].split_at(n), b[2 * n..].split_at(n));
                for (sum, (((y0, y1), y2), y3)) in sums.iter_mut().zip(y0.iter().zip(y1).zip(y2).zip(y3)) {
                    *sum = *sum + x[0] * y0 + x[1] * y1 + x[2] * y2 + x[3] * y3;
                }
            }
        }
    }

    /// Where the elements of D's register `r` of warp `w` stand among the sums: of lane 0, and of every lane from there;
    /// the second of two stands behind the first.
    pub fn place(&self, w: usize, r: usize) -> (usize, [usize; LANES]) {
        let (row, column) = match self.half {
            true => (r % 2 * 8, r / 2 * 8),
            false => (r / 2 % 2 * 8, r / 4 * 8 + r % 2),
        };
        let lanes = std::array::from_fn(|lane| lane / 4 * self.n + lane % 4 * 2);
        ((16 * w + row) * self.n + column, lanes)
    }
}

/// Elements of S bytes from chunks, [k][rows].
fn gather<const S: usize>(
    chunks: &[u32],
    memory: &[u8],
    across: bool,
    rows: usize,
    number: impl Fn([u8; S]) -> f32,
) -> Vec<f32> {
    let wide = CHUNK / S;
    let mut numbers = vec![0f32; 2 * wide * rows];
    for (i, at) in chunks.iter().enumerate() {
        let elements = memory[*at as usize..*at as usize + CHUNK].as_chunks::<S>().0;
        // Along k the chunk's elements go to rows of their own.
        let (first, step) = if across { (i * wide, 1) } else { (i % 2 * wide * rows + i / 2, rows) };
        numbers[first..].iter_mut().step_by(step).zip(elements).for_each(|(to, e)| *to = number(*e));
    }
    numbers
}
