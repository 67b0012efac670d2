//! Matrix products as instructions: of a warp, and of a warpgroup.

use super::operand::{Pred, Src};

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

impl Element {
    pub fn parse(text: &str) -> Option<Element> {
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

/// Where A comes from.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// Each warp's 16 rows, laid out as for `mma.sync`.
    Registers([Src; 4]),
    /// A descriptor.
    Shared(Src),
}

/// D = A B + D on tiles of 64 x k by k x n.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Of A and B.
    pub element: Element,
    /// 8 to 256.
    pub n: usize,
    /// Sums are f16, two in a register.
    pub half: bool,
    /// The accumulator.
    pub d: Vec<u32>,
    /// The left operand.
    pub a: Left,
    /// B's descriptor.
    pub b: Src,
    /// False: D is not read.
    pub scale: Pred,
    /// A's and B's elements change their sign.
    pub negate: [bool; 2],
    /// A and B lie along m and n.
    pub across: [bool; 2],
}

impl Wgmma {
    /// Registers that A takes.
    pub fn left(&self) -> impl Iterator<Item = u32> {
        let list = match self.a {
            Left::Registers(list) => list.map(Some),
            Left::Shared(_) => [None; 4],
        };
        list.into_iter().filter_map(|s| if let Some(Src::Reg(r)) = s { Some(r) } else { None })
    }
}
