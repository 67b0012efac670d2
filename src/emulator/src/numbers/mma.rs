//! Matrix products on a warp: `mma.sync`. Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma".
//!
//! Numbers: products are exact, and each element's sum runs from the accumulator over rising k: in f32 (sums in f16 are
//! rounded once an instruction), or in 32-bit integers that wrap.

use crate::isa::operand::{LANES, Lanes};
use crate::isa::product::{Element, Mma, Sum};
use half::f16;
use pulp::NullaryFnOnce;
use std::marker::PhantomData;
use std::ops::{AddAssign, Mul};

/// Rows of A and columns of B.
pub const M: usize = 16;

pub const N: usize = 8;

impl Element {
    /// Element `i` of a register.
    #[inline(always)]
    pub fn at(self, register: u64, i: usize) -> f32 {
        match self {
            Element::F16 => f16::from_bits((register >> (16 * i)) as u16).to_f32(),
            // A NaN that a product would make quiet becomes so there.
            Element::Bf16 => f32::from_bits((register >> (16 * i) << 16) as u32),
            // The hardware looks at 19 bits of each.
            Element::Tf32 => f32::from_bits(register as u32 & !0x1fff),
            Element::S8 => ((register >> (8 * i)) as i8).into(),
            Element::U8 => ((register >> (8 * i)) as u8).into(),
        }
    }
}

impl Mma {
    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        (2 * M * N * self.k) as u64
    }

    /// The registers of D: as many as C has, and zeros.
    pub fn product(&self, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes]) -> [Lanes; 4] {
        use Element::{Bf16, F16, Tf32};
        let single = (
            |c: &[&Lanes], h: usize, lane: usize| [0, 1].map(|i| f32::from_bits(c[2 * h + i][lane] as u32)),
            |d: &mut [Lanes; 4], h: usize, lane: usize, x: [f32; 2]| {
                [d[2 * h][lane], d[2 * h + 1][lane]] = x.map(|x| u64::from(x.to_bits()));
            },
        );
        let pairs = (
            |c: &[&Lanes], h: usize, lane: usize| [0, 1].map(|i| F16.at(c[h][lane], i)),
            |d: &mut [Lanes; 4], h: usize, lane: usize, x: [f32; 2]| {
                let [low, high] = x.map(|x| u64::from(f16::from_f32(x).to_bits()));
                d[h][lane] = low | high << 16;
            },
        );
        let integers = (
            |c: &[&Lanes], h: usize, lane: usize| [0, 1].map(|i| i64::from(c[2 * h + i][lane] as i32)),
            |d: &mut [Lanes; 4], h: usize, lane: usize, x: [i64; 2]| {
                [d[2 * h][lane], d[2 * h + 1][lane]] = x.map(|x| u64::from(x as u32));
            },
        );
        let bf16 = |v: u64, i: usize| Bf16.at(v, i);
        let f16 = |v: u64, i: usize| F16.at(v, i);
        let tf32 = |v: u64, i: usize| Tf32.at(v, i);
        match (self.sum, self.elements) {
            (Sum::F32, [Bf16, _]) => sums::<2, f32>(a, b, c, (bf16, bf16), single),
            (Sum::F32, [F16, _]) => sums::<2, f32>(a, b, c, (f16, f16), single),
            (Sum::F32, _) => sums::<1, f32>(a, b, c, (tf32, tf32), single),
            (Sum::F16, _) => sums::<2, f32>(a, b, c, (f16, f16), pairs),
            (Sum::S32, [x, y]) => {
                let (x, y) = (move |v, i| x.at(v, i) as i64, move |v, i| y.at(v, i) as i64);
                sums::<4, i64>(a, b, c, (x, y), integers)
            }
        }
    }
}

/// `PACK`: elements of a register. `sums`: the two neighbours that a lane has of them, in the upper rows or the lower.
#[inline(always)]
fn sums<const PACK: usize, T: Copy + Default + AddAssign + Mul<Output = T>>(
    a: &[&Lanes],
    b: &[&Lanes],
    c: &[&Lanes],
    elements: (impl Fn(u64, usize) -> T, impl Fn(u64, usize) -> T),
    sums: (impl Fn(&[&Lanes], usize, usize) -> [T; 2], impl Fn(&mut [Lanes; 4], usize, usize, [T; 2])),
) -> [Lanes; 4] {
    pulp::Arch::new().dispatch(Tile::<PACK, T, _, _, _, _> { a, b, c, elements, sums, number: PhantomData })
}

/// One product. A closure would not take the caller's instruction set.
struct Tile<'a, const PACK: usize, T, X, Y, F, G> {
    a: &'a [&'a Lanes],
    b: &'a [&'a Lanes],
    c: &'a [&'a Lanes],
    elements: (X, Y),
    sums: (F, G),
    number: PhantomData<T>,
}

impl<const PACK: usize, T, X, Y, F, G> NullaryFnOnce for Tile<'_, PACK, T, X, Y, F, G>
where
    T: Copy + Default + AddAssign + Mul<Output = T>,
    X: Fn(u64, usize) -> T,
    Y: Fn(u64, usize) -> T,
    F: Fn(&[&Lanes], usize, usize) -> [T; 2],
    G: Fn(&mut [Lanes; 4], usize, usize, [T; 2]),
{
    type Output = [Lanes; 4];

    #[inline(always)]
    fn call(self) -> [Lanes; 4] {
        let ((x, y), (from, to), zero) = (&self.elements, &self.sums, T::default());
        // Elements of A's registers, by lane. A register alternates between rows g and g + 8, lane 4 g + t having row g.
        let mut left = [[[zero; LANES]; PACK]; 4];
        for (left, a) in left.iter_mut().zip(self.a) {
            for (i, left) in left.iter_mut().enumerate() {
                left.iter_mut().zip(*a).for_each(|(to, a)| *to = x(*a, i));
            }
        }
        // Rows of B: k is register, t, and element.
        let mut right = [[[[zero; N]; PACK]; 4]; 2];
        for (right, b) in right.iter_mut().zip(self.b) {
            for i in 0..PACK {
                let mut elements = [zero; LANES];
                elements.iter_mut().zip(*b).for_each(|(to, b)| *to = y(*b, i));
                for (t, right) in right.iter_mut().enumerate() {
                    right[i].iter_mut().zip(elements.as_chunks::<4>().0).for_each(|(to, four)| *to = four[t]);
                }
            }
        }

        // Each sum over rising k: a product, and then an addition.
        let mut d = [[0; LANES]; 4];
        for h in 0..2 {
            let mut rows = [[zero; N]; N];
            for (lane, pair) in rows.as_flattened_mut().as_chunks_mut().0.iter_mut().enumerate() {
                *pair = from(self.c, h, lane);
            }
            for (g, row) in rows.iter_mut().enumerate() {
                let mut sums = *row;
                for (r, right) in right.iter().enumerate().take(self.b.len()) {
                    for (t, right) in right.iter().enumerate() {
                        for (i, line) in right.iter().enumerate() {
                            let x = left[2 * r + h][i][4 * g + t];
                            sums.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * *y);
                        }
                    }
                }
                *row = sums;
            }
            for (lane, pair) in rows.as_flattened().as_chunks().0.iter().enumerate() {
                to(&mut d, h, lane, *pair);
            }
        }
        d
    }
}
