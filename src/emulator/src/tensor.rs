//! Matrix products on a warp: `mma.sync`. Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma".
//!
//! Numbers: products are exact, and each element's sum runs from the accumulator over rising k: in f32 (sums in f16 are
//! rounded once an instruction), or in 32-bit integers that wrap.

use super::body::{Body, Operand};
use super::decode::unknown;
use super::parse::Parsed;
use super::ptx::{LANES, Lanes, Op, Src};
use half::{bf16, f16};
use std::ops::{AddAssign, Mul};

/// What the elements of A and B are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

/// What the elements of C and D are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sum {
    F16,
    F32,
    S32,
}

/// D = A B + C on tiles of 16 x k by k x 8.
#[derive(Clone, Debug)]
pub struct Mma {
    /// Of A and of B.
    pub elements: [Element; 2],
    /// Of C and D.
    pub sum: Sum,
    /// 4, 8, 16 or 32.
    pub k: usize,
    /// Four registers, or two of f16 pairs.
    pub d: Vec<u32>,
    /// Fragments of A, row-major.
    pub a: Vec<Src>,
    /// Fragments of B, column-major.
    pub b: Vec<Src>,
    /// As many as `d` has.
    pub c: Vec<Src>,
}

/// Rows of A and columns of B.
const M: usize = 16;
const N: usize = 8;
/// The longest k.
const K: usize = 32;

/// `mma.sync.aligned.m16n8kK.row.col.D.A.B.C`
pub fn decode<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ["sync", "aligned", shape, "row", "col", d, a, b, c] = parts[1..] else { return unknown(body) };
    let elements = [a, b].map(Element::parse);
    let ([Some(a), Some(b)], true) = (elements, c == d) else { return unknown(body) };
    let (sum, k) = match (d, a, b, shape) {
        ("f16", Element::F16, Element::F16, "m16n8k16") => (Sum::F16, 16),
        ("f16", Element::F16, Element::F16, "m16n8k8") => (Sum::F16, 8),
        ("f32", Element::F16 | Element::Bf16, _, "m16n8k16") if a == b => (Sum::F32, 16),
        ("f32", Element::F16 | Element::Bf16, _, "m16n8k8") if a == b => (Sum::F32, 8),
        ("f32", Element::Tf32, Element::Tf32, "m16n8k8") => (Sum::F32, 8),
        ("f32", Element::Tf32, Element::Tf32, "m16n8k4") => (Sum::F32, 4),
        ("s32", Element::S8 | Element::U8, Element::S8 | Element::U8, "m16n8k32") => (Sum::S32, 32),
        ("s32", Element::S8 | Element::U8, Element::S8 | Element::U8, "m16n8k16") => (Sum::S32, 16),
        _ => return unknown(body),
    };
    let [Operand::Vector(d), Operand::Vector(la), Operand::Vector(lb), Operand::Vector(c)] = operands else {
        return body.parser.wrong("expected four lists of registers");
    };
    let pack = 4 / a.size();
    let (na, nb, nd) = (M * k / LANES / pack, N * k / LANES / pack, if sum == Sum::F16 { 2 } else { 4 });
    if (d.len(), la.len(), lb.len(), c.len()) != (nd, na, nb, nd) {
        return body.parser.wrong(format!("expected {nd}, {na}, {nb} and {nd} registers"));
    }
    let d = d.iter().map(|o| body.target(o)).collect::<Parsed<_>>()?;
    let [la, lb, c] = [la, lb, c].map(|l| l.iter().map(|o| body.source(o)).collect::<Parsed<Vec<Src>>>());
    Ok(Op::Mma(Box::new(Mma { elements: [a, b], sum, k, d, a: la?, b: lb?, c: c? })))
}

impl Element {
    fn parse(text: &str) -> Option<Element> {
        Some(match text {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "tf32" => Element::Tf32,
            "s8" => Element::S8,
            "u8" => Element::U8,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub fn size(self) -> usize {
        match self {
            Element::S8 | Element::U8 => 1,
            Element::F16 | Element::Bf16 => 2,
            Element::Tf32 => 4,
        }
    }

    /// Elements of 32 bytes: the k of a `wgmma`.
    pub fn depth(self) -> usize {
        32 / self.size()
    }

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
