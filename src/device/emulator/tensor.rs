//! Matrix products on a warp: `mma.sync`. Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma".
//!
//! Numbers: products are exact, and each element's sum runs in f32 from the accumulator over rising k.

use super::body::{Body, Operand};
use super::decode::unknown;
use super::parse::Parsed;
use super::ptx::{LANES, Lanes, Src};
use half::{bf16, f16};

/// What the elements of A and B are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F16,
    Bf16,
    Tf32,
}

/// D = A B + C on tiles of 16 x k by k x 8, sums in f32.
#[derive(Clone, Debug)]
pub struct Mma {
    /// Of A and B.
    pub element: Element,
    /// 4, 8 or 16.
    pub k: usize,
    /// Four f32 registers.
    pub d: [u32; 4],
    /// Fragments of A, row-major.
    pub a: Vec<Src>,
    /// Fragments of B, column-major.
    pub b: Vec<Src>,
    /// Four f32 registers.
    pub c: [Src; 4],
}

/// Rows of A and columns of B.
const M: usize = 16;
const N: usize = 8;

/// `mma.sync.aligned.m16n8kK.row.col.f32.T.T.f32`
pub fn decode<'a>(
    body: &mut Body<'_, 'a>,
    parts: &[&'a str],
    operands: &[Operand<'a>],
) -> Parsed<super::ptx::Op> {
    let (element, k) = match parts[1..] {
        ["sync", "aligned", shape, "row", "col", "f32", a, b, "f32"] if a == b => match (a, shape) {
            ("f16", "m16n8k16") => (Element::F16, 16),
            ("f16", "m16n8k8") => (Element::F16, 8),
            ("bf16", "m16n8k16") => (Element::Bf16, 16),
            ("bf16", "m16n8k8") => (Element::Bf16, 8),
            ("tf32", "m16n8k8") => (Element::Tf32, 8),
            ("tf32", "m16n8k4") => (Element::Tf32, 4),
            _ => return unknown(body),
        },
        _ => return unknown(body),
    };
    let [Operand::Vector(d), Operand::Vector(a), Operand::Vector(b), Operand::Vector(c)] = operands else {
        return body.parser.wrong("expected four lists of registers");
    };
    let per_register = if element == Element::Tf32 { 1 } else { 2 };
    let (na, nb) = (M * k / LANES / per_register, N * k / LANES / per_register);
    if (d.len(), a.len(), b.len(), c.len()) != (4, na, nb, 4) {
        return body.parser.wrong(format!("expected 4, {na}, {nb} and 4 registers"));
    }
    let mut mma = Mma { element, k, d: [0; 4], a: Vec::new(), b: Vec::new(), c: [Src::Const(0); 4] };
    for i in 0..4 {
        mma.d[i] = body.target(&d[i])?;
        mma.c[i] = body.source(&c[i])?;
    }
    mma.a = a.iter().map(|o| body.source(o)).collect::<Parsed<_>>()?;
    mma.b = b.iter().map(|o| body.source(o)).collect::<Parsed<_>>()?;
    Ok(super::ptx::Op::Mma(Box::new(mma)))
}

impl Element {
    /// Bytes in memory.
    pub fn size(self) -> usize {
        if self == Element::Tf32 { 4 } else { 2 }
    }

    /// Elements of 32 bytes: the k of a `wgmma`.
    pub fn depth(self) -> usize {
        32 / self.size()
    }

    /// From memory.
    pub fn of_bytes(self, bytes: &[u8]) -> f32 {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        self.at(u64::from_le_bytes(word), 0)
    }

    /// Element `i` of a register.
    pub fn at(self, register: u64, i: usize) -> f32 {
        match self {
            Element::F16 => f16::from_bits((register >> (16 * i)) as u16).to_f32(),
            Element::Bf16 => bf16::from_bits((register >> (16 * i)) as u16).to_f32(),
            // The hardware looks at 19 bits of each.
            Element::Tf32 => f32::from_bits(register as u32 & !0x1fff),
        }
    }
}

impl Mma {
    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        (2 * M * N * self.k) as u64
    }

    /// The four registers of D.
    pub fn product(&self, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes; 4]) -> [Lanes; 4] {
        let (mut left, mut right, mut sums) = ([[0f32; 16]; M], [[0f32; N]; 16], [[0f32; N]; M]);
        let pack = if self.element == Element::Tf32 { 1 } else { 2 };
        for lane in 0..LANES {
            let (group, inner) = (lane / 4, lane % 4);
            // A: registers alternate between rows g and g + 8, then step 4 columns' worth to the right.
            for (r, register) in a.iter().enumerate() {
                for i in 0..pack {
                    let column = (inner * pack + i) + r / 2 * 4 * pack;
                    left[group + r % 2 * 8][column] = self.element.at(register[lane], i);
                }
            }
            for (r, register) in b.iter().enumerate() {
                for i in 0..pack {
                    right[(inner * pack + i) + r * 4 * pack][group] = self.element.at(register[lane], i);
                }
            }
            for (r, register) in c.iter().enumerate() {
                sums[group + r / 2 * 8][inner * 2 + r % 2] = f32::from_bits(register[lane] as u32);
            }
        }
        for (row, sums) in left.iter().zip(&mut sums) {
            for (x, line) in row.iter().zip(&right).take(self.k) {
                for (sum, y) in sums.iter_mut().zip(line) {
                    *sum += x * y;
                }
            }
        }
        let mut d = [[0; LANES]; 4];
        for (r, register) in d.iter_mut().enumerate() {
            for (lane, value) in register.iter_mut().enumerate() {
                let sum = sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
                *value = u64::from(sum.to_bits());
            }
        }
        d
    }
}
