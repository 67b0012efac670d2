//! The arithmetic of `wgmma`: operands out of shared memory, and their products.
//!
//! Numbers: products are exact, and each element's sum runs in f32 from the accumulator over rising k; sums in f16 are
//! rounded once an instruction.

use super::descriptor::{CHUNK, Descriptor};
use crate::isa::operand::{LANES, Lanes};
use crate::isa::product::{Element, Wgmma};
use half::f16;
use pulp::NullaryFnOnce;

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
        let (lines, each) = if across { (k, rows / 8) } else { (rows, 2) };
        let mut chunks = Vec::with_capacity((lines * each) as usize);
        for line in 0..lines {
            for c in 0..each {
                chunks.push(if across { descriptor.across_k(line, c) } else { descriptor.along_k(line, c) });
            }
        }
        chunks
    }

    /// Those chunks as numbers, [k][rows], behind `numbers`.
    pub fn read(
        &self,
        chunks: &[u32],
        memory: &[u8],
        (across, rows, negate): (bool, usize, bool),
        numbers: &mut Vec<f32>,
    ) {
        let from = numbers.len();
        numbers.resize(from + self.element.depth() * rows, 0.0);
        let (to, sign) = (&mut numbers[from..], if negate { -1.0 } else { 1.0 });
        match self.element {
            Element::Bf16 => {
                // A NaN that a product would make quiet becomes so there.
                let number = |b: [u8; 2]| sign * f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
                let numbers = Gather { chunks, memory, across, rows, numbers: to, number };
                pulp::Arch::new().dispatch(numbers)
            }
            Element::F16 => {
                gather(chunks, memory, (across, rows), to, |b| sign * f16::from_le_bytes(b).to_f32())
            }
            // The decoder lets no other through.
            _ => gather(chunks, memory, (across, rows), to, |b: [u8; 4]| {
                sign * Element::Tf32.at(u32::from_le_bytes(b).into(), 0)
            }),
        }
    }

    /// A product's sums into its tile [M][n], from D's registers of warp `w`.
    pub fn load(&self, w: usize, d: &[&Lanes], sums: &mut [f32]) {
        match self.half {
            true => d.iter().enumerate().for_each(|(r, pair)| {
                self.lines(w, r, sums, |lane, [low, high]| {
                    *low = f16::from_bits(pair[lane] as u16).to_f32();
                    *high = f16::from_bits((pair[lane] >> 16) as u16).to_f32();
                });
            }),
            false => d.as_chunks().0.iter().enumerate().for_each(|(r, [even, odd])| {
                self.lines(w, r, sums, |lane, [low, high]| {
                    *low = f32::from_bits(even[lane] as u32);
                    *high = f32::from_bits(odd[lane] as u32);
                });
            }),
        }
    }

    /// The reverse, for the registers that hold line `r` of [`Wgmma::lines`]: one of pairs, or two.
    pub fn store(&self, w: usize, r: usize, sums: &mut [f32]) -> [Lanes; 2] {
        let [mut even, mut odd] = [[0; LANES]; 2];
        match self.half {
            true => self.lines(w, r, sums, |lane, pair| {
                let [low, high] = pair.map(|x| u64::from(f16::from_f32(x).to_bits()));
                even[lane] = low | high << 16;
            }),
            false => self.lines(w, r, sums, |lane, pair| {
                [even[lane], odd[lane]] = pair.map(|x| u64::from(x.to_bits()));
            }),
        }
        [even, odd]
    }

    /// Calls `visit` with each lane and the two neighbours among the sums that are its own: the `r`th such pair of warp `w`.
    #[inline(always)]
    fn lines(&self, w: usize, r: usize, sums: &mut [f32], mut visit: impl FnMut(usize, &mut [f32; 2])) {
        let (row, column) = (16 * w + r % 2 * 8, r / 2 * 8);
        for (g, line) in sums[row * self.n..].chunks_exact_mut(self.n).take(8).enumerate() {
            for (t, pair) in line[column..][..8].as_chunks_mut().0.iter_mut().enumerate() {
                visit(4 * g + t, pair);
            }
        }
    }
}

/// sums[m][n] += A B, of any k that is a multiple of 4: [k][M] by [k][n], each sum over rising k, four steps at a time.
pub fn multiply(a: &[f32], b: &[f32], sums: &mut [f32], n: usize) {
    pulp::Arch::new().dispatch(Multiply { a, b, sums, n });
}

/// A closure would not take the caller's instruction set.
struct Multiply<'a> {
    a: &'a [f32],
    b: &'a [f32],
    sums: &'a mut [f32],
    n: usize,
}

impl NullaryFnOnce for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Multiply { a, b, sums, n } = self;
        for (m, sums) in sums.chunks_exact_mut(n).enumerate() {
            for (a, b) in a.chunks_exact(4 * M).zip(b.chunks_exact(4 * n)) {
                steps([a[m], a[M + m], a[2 * M + m], a[3 * M + m]], b, sums);
            }
        }
    }
}

/// A product, and then an addition, of each step.
#[inline(always)]
fn steps(x: [f32; 4], b: &[f32], sums: &mut [f32]) {
    let n = sums.len();
    let ((y0, y1), (y2, y3)) = (b[..2 * n].split_at(n), b[2 * n..].split_at(n));
    for (sum, (((y0, y1), y2), y3)) in sums.iter_mut().zip(y0.iter().zip(y1).zip(y2).zip(y3)) {
        *sum = *sum + x[0] * y0 + x[1] * y1 + x[2] * y2 + x[3] * y3;
    }
}

/// [`gather`] for the instruction set that is there.
struct Gather<'a, const S: usize, F: Fn([u8; S]) -> f32> {
    chunks: &'a [u32],
    memory: &'a [u8],
    across: bool,
    rows: usize,
    numbers: &'a mut [f32],
    number: F,
}

impl<const S: usize, F: Fn([u8; S]) -> f32> NullaryFnOnce for Gather<'_, S, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Gather { chunks, memory, across, rows, numbers, number } = self;
        gather(chunks, memory, (across, rows), numbers, number);
    }
}

/// Elements of S bytes from chunks, [k][rows].
#[inline(always)]
fn gather<const S: usize>(
    chunks: &[u32],
    memory: &[u8],
    (across, rows): (bool, usize),
    numbers: &mut [f32],
    number: impl Fn([u8; S]) -> f32,
) {
    let wide = CHUNK / S;
    let chunk = |at: &u32| memory[*at as usize..*at as usize + CHUNK].as_chunks::<S>().0;
    if across {
        for (at, to) in chunks.iter().zip(numbers.chunks_exact_mut(wide)) {
            to.iter_mut().zip(chunk(at)).for_each(|(to, e)| *to = number(*e));
        }
        return;
    }
    // Along k the chunk's elements go to rows of their own: eight chunks fill the eight next numbers of each.
    for (r, of_rows) in chunks.as_chunks::<16>().0.iter().enumerate() {
        for half in 0..2 {
            let mut block = [[0f32; 8]; 8];
            for row in 0..8 {
                let mut elements = [0f32; 8];
                let bytes = chunk(&of_rows[2 * row + half]);
                elements.iter_mut().zip(bytes).for_each(|(to, e)| *to = number(*e));
                block.iter_mut().zip(&elements).for_each(|(line, e)| line[row] = *e);
            }
            let lines = numbers[half * wide * rows..].chunks_exact_mut(rows);
            lines.take(wide).zip(&block).for_each(|(line, block)| line[8 * r..][..8].copy_from_slice(block));
        }
    }
}
