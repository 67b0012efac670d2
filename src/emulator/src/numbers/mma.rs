//! Matrix products on a warp: `mma.sync`. Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma".
//!
//! Numbers: products are exact, and each element's sum runs from the accumulator over rising k: in f32 (sums in f16 are
//! rounded once an instruction), or in 32-bit integers that wrap.

use crate::isa::operand::{LANES, Lanes};
use crate::isa::product::{Element, Mma, Sum};
use half::{bf16, f16};
use std::ops::{AddAssign, Mul};

/// Rows of A and columns of B.
pub const M: usize = 16;

pub const N: usize = 8;

/// The longest k.
const K: usize = 32;

impl Element {
    /// Element `i` of a register.
    #[inline(always)]
    pub fn at(self, register: u64, i: usize) -> f32 {
        match self {
            Element::F16 => f16::from_bits((register >> (16 * i)) as u16).to_f32(),
            Element::Bf16 => bf16::from_bits((register >> (16 * i)) as u16).to_f32(),
            // The hardware looks at 19 bits of each.
            Element::Tf32 => f32::from_bits(register as u32 & !0x1fff),
            Element::S8 => ((register >> (8 * i)) as i8).into(),
            Element::U8 => ((register >> (8 * i)) as u8).into(),
        }
    }
}

/// Row and column of element `i` of register `r` of D, for sums of four registers and of two.
#[inline(always)]
fn place(lane: usize, r: usize, i: usize, half: bool) -> (usize, usize) {
    let (r, i) = if half { (r, i) } else { (r / 2, r % 2) };
    (lane / 4 + r * 8, lane % 4 * 2 + i)
}

impl Mma {
    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        (2 * M * N * self.k) as u64
    }

    /// The registers of D: as many as C has, and zeros.
    pub fn product(&self, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes]) -> [Lanes; 4] {
        use Element::{Bf16, F16, Tf32};
        let (from, to) = (|v: u64, _: usize| f32::from_bits(v as u32), |x: f32| u64::from(x.to_bits()));
        match (self.sum, self.elements) {
            (Sum::F32, [Bf16, _]) => {
                self.sums::<2, _>(a, b, c, (|v, i| Bf16.at(v, i), |v, i| Bf16.at(v, i)), from, to)
            }
            (Sum::F32, [F16, _]) => {
                self.sums::<2, _>(a, b, c, (|v, i| F16.at(v, i), |v, i| F16.at(v, i)), from, to)
            }
            (Sum::F32, _) => {
                self.sums::<1, _>(a, b, c, (|v, i| Tf32.at(v, i), |v, i| Tf32.at(v, i)), from, to)
            }
            (Sum::F16, _) => self.sums::<2, _>(
                a,
                b,
                c,
                (|v, i| F16.at(v, i), |v, i| F16.at(v, i)),
                |v, i| F16.at(v, i),
                |x| f16::from_f32(x).to_bits().into(),
            ),
            (Sum::S32, [x, y]) => self.sums::<4, _>(
                a,
                b,
                c,
                (|v, i| x.at(v, i) as i64, |v, i| y.at(v, i) as i64),
                |v, _| i64::from(v as i32),
                |x| u64::from(x as u32),
            ),
        }
    }

    /// `PACK`: elements of a register.
    fn sums<const PACK: usize, T: Copy + Default + AddAssign + Mul<Output = T>>(
        &self,
        a: &[&Lanes],
        b: &[&Lanes],
        c: &[&Lanes],
        (x, y): (impl Fn(u64, usize) -> T, impl Fn(u64, usize) -> T),
        from: impl Fn(u64, usize) -> T,
        to: impl Fn(T) -> u64,
    ) -> [Lanes; 4] {
        let zero = T::default();
        let (mut left, mut right, mut sums) = ([[zero; K]; M], [[zero; N]; K], [[zero; N]; M]);
        // A: registers alternate between rows g and g + 8, then step 4 columns' worth to the right.
        for (r, a) in a.iter().enumerate() {
            for (lane, a) in a.iter().enumerate() {
                let to = &mut left[lane / 4 + r % 2 * 8][(lane % 4 + r / 2 * 4) * PACK..][..PACK];
                to.iter_mut().enumerate().for_each(|(i, to)| *to = x(*a, i));
            }
        }
        for (r, b) in b.iter().enumerate() {
            for (lane, b) in b.iter().enumerate() {
                let to = &mut right[(lane % 4 + r * 4) * PACK..][..PACK];
                to.iter_mut().enumerate().for_each(|(i, to)| to[lane / 4] = y(*b, i));
            }
        }
        let half = self.sum == Sum::F16;
        for (r, c) in c.iter().enumerate() {
            for (lane, c) in c.iter().enumerate() {
                for i in 0..if half { 2 } else { 1 } {
                    let (row, column) = place(lane, r, i, half);
                    sums[row][column] = from(*c, i);
                }
            }
        }
        pulp::Arch::new().dispatch(|| multiply(&left, &right[..self.k], &mut sums));
        let mut d = [[0; LANES]; 4];
        for (r, d) in d.iter_mut().enumerate().take(c.len()) {
            for (lane, d) in d.iter_mut().enumerate() {
                for i in 0..if half { 2 } else { 1 } {
                    let (row, column) = place(lane, r, i, half);
                    *d |= to(sums[row][column]) << (16 * i);
                }
            }
        }
        d
    }
}

/// Each sum over rising k: a product, and then an addition.
#[inline(always)]
fn multiply<T: Copy + AddAssign + Mul<Output = T>>(
    left: &[[T; K]; M],
    right: &[[T; N]],
    sums: &mut [[T; N]; M],
) {
    for (row, sums) in left.iter().zip(sums) {
        let mut sum = *sums;
        for (x, line) in row.iter().zip(right) {
            for (sum, y) in sum.iter_mut().zip(line) {
                *sum += *x * *y;
            }
        }
        *sums = sum;
    }
}
