//! Tensor maps: how a tiled array lies in global memory, in 128 bytes that only the emulator reads.

use super::operand::Ty;
use crate::error::{Error, Kind, Result};

/// Element types of a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
    Bf16,
}

/// In the order of their numbers in the map.
const ELEMENTS: [(Element, Ty); 10] = [
    (Element::U8, Ty::U8),
    (Element::U16, Ty::U16),
    (Element::U32, Ty::U32),
    (Element::I32, Ty::S32),
    (Element::U64, Ty::U64),
    (Element::I64, Ty::S64),
    (Element::F16, Ty::F16),
    (Element::F32, Ty::F32),
    (Element::F64, Ty::F64),
    (Element::Bf16, Ty::Bf16),
];

impl Element {
    /// As instructions call it.
    pub(crate) fn ty(self) -> Ty {
        ELEMENTS[self as usize].1
    }

    /// Bytes.
    pub fn size(self) -> usize {
        self.ty().size()
    }
}

/// How the 16-byte chunks of a tile are exchanged in shared memory: bits of the address are xor-ed with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Not.
    None,
    /// Within 32 bytes: bit 4 by bit 7.
    B32,
    /// Within 64 bytes: bits 4 and 5 by bits 7 and 8.
    B64,
    /// Within 128 bytes: bits 4 to 6 by bits 7 to 9.
    B128,
}

impl Swizzle {
    /// Where the byte at a plain address of shared memory goes.
    pub fn place(self, address: usize) -> usize {
        let mask = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 0x10,
            Swizzle::B64 => 0x30,
            Swizzle::B128 => 0x70,
        };
        address ^ (address >> 3 & mask)
    }

    /// Bytes that the innermost side of a box may have.
    fn span(self) -> usize {
        match self {
            Swizzle::None => usize::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// An array of 1 to 5 dimensions and the box of it that one instruction moves, innermost dimension first: what
/// `cuTensorMapEncodeTiled` takes, without interleaving and with zeros outside. Elements outside the array are zeros
/// when they are loaded and dropped when they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Of the elements.
    pub element: Element,
    /// Device address of the first element, a multiple of 16.
    pub address: u64,
    /// Elements along each dimension, 1 to 2^32.
    pub sizes: Vec<u64>,
    /// Bytes from one element to the next along every dimension but the innermost: multiples of 16 below 2^40, and 0 only
    /// along a dimension of size 1.
    pub strides: Vec<u64>,
    /// Sides of the box in elements, 1 to 256; the innermost has a multiple of 16 bytes, and no more than the swizzle's.
    pub tile: Vec<u32>,
    /// Every so many elements of the box are taken, 1 to 8; the innermost dimension ignores it.
    pub steps: Vec<u32>,
    /// Of the box in shared memory.
    pub swizzle: Swizzle,
}

const MAGIC: u64 = 0x7061_6d5f_7265_7466;

/// Where the checksum stands.
const SEAL: usize = 120;

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

impl TensorMap {
    /// The 128 bytes of a kernel's parameter; the error says which rule of `cuTensorMapEncodeTiled` is broken.
    pub fn encode(&self) -> Result<[u8; 128]> {
        self.check()
            .map_err(|what| Error::Finding { kind: Kind::Access, what: format!("tensor map: {what}") })?;
        let mut map = [0; 128];
        let swizzle = self.swizzle as u8;
        map[..8].copy_from_slice(&MAGIC.to_le_bytes());
        map[8..11].copy_from_slice(&[self.sizes.len() as u8, self.element as u8, swizzle]);
        map[16..24].copy_from_slice(&self.address.to_le_bytes());
        for (i, n) in self.sizes.iter().enumerate() {
            map[24 + 8 * i..32 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        for (i, n) in self.strides.iter().enumerate() {
            map[64 + 8 * i..72 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        for (i, (side, step)) in self.tile.iter().zip(&self.steps).enumerate() {
            map[96 + 2 * i..98 + 2 * i].copy_from_slice(&(*side as u16).to_le_bytes());
            map[106 + i] = *step as u8;
        }
        let seal = checksum(&map[..SEAL]);
        map[SEAL..].copy_from_slice(&seal.to_le_bytes());
        Ok(map)
    }

    /// The reverse; `None` if these are not 128 bytes that `encode` has made.
    pub(crate) fn decode(map: &[u8]) -> Option<TensorMap> {
        let word =
            |at: usize| map.get(at..at + 8).map(|b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
        if word(0)? != MAGIC || word(SEAL)? != checksum(&map[..SEAL]) {
            return None;
        }
        let rank = map[8] as usize;
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let made = TensorMap {
            element: ELEMENTS.get(map[9] as usize)?.0,
            address: word(16)?,
            sizes: (0..rank).map(|i| word(24 + 8 * i)).collect::<Option<_>>()?,
            strides: (1..rank).map(|i| word(56 + 8 * i)).collect::<Option<_>>()?,
            tile: (0..rank).map(|i| u32::from(map[96 + 2 * i]) | u32::from(map[97 + 2 * i]) << 8).collect(),
            steps: (0..rank).map(|i| u32::from(map[106 + i])).collect(),
            swizzle: *swizzles.get(map[10] as usize)?,
        };
        Some(made)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let rank = self.sizes.len();
        if !(1..=5).contains(&rank) {
            return Err(format!("{rank} dimensions, 1 to 5 are possible"));
        }
        if self.strides.len() + 1 != rank || self.tile.len() != rank || self.steps.len() != rank {
            let lengths = (self.strides.len(), self.tile.len(), self.steps.len());
            return Err(format!(
                "{rank} sizes with {lengths:?} strides, sides and steps: one stride less, as many others"
            ));
        }
        if !self.address.is_multiple_of(16) {
            return Err(format!("address {:#x} is no multiple of 16", self.address));
        }
        if let Some(n) = self.sizes.iter().find(|n| !(1..=1 << 32).contains(*n)) {
            return Err(format!("size {n}, of 1 to {}", 1u64 << 32));
        }
        let most = (1 << 40) - 1;
        for (n, size) in self.strides.iter().zip(&self.sizes[1..]) {
            // Along a dimension of one element it is never taken: the driver accepts 0.
            if *n > most || *n == 0 && *size > 1 {
                return Err(format!("stride {n} over a size of {size}, of 1 to {most}"));
            }
        }
        if let Some(n) = self.strides.iter().find(|n| !n.is_multiple_of(16)) {
            return Err(format!("stride {n} is no multiple of 16 bytes"));
        }
        for (name, most, list) in [("box side", 256, &self.tile), ("element stride", 8, &self.steps)] {
            if let Some(n) = list.iter().find(|n| !(1..=most).contains(*n)) {
                return Err(format!("{name} {n}, of 1 to {most}"));
            }
        }
        let inner = self.tile[0] as usize * self.element.size();
        if !inner.is_multiple_of(16) {
            return Err(format!("the box's innermost side has {inner} bytes, a multiple of 16 was expected"));
        }
        if inner > self.swizzle.span() {
            let span = self.swizzle.span();
            return Err(format!(
                "the box's innermost side has {inner} bytes, the swizzle takes at most {span}"
            ));
        }
        Ok(())
    }

    /// Elements of the box along a dimension.
    fn count(&self, dimension: usize) -> usize {
        let step = if dimension == 0 { 1 } else { self.steps[dimension] };
        self.tile[dimension].div_ceil(step) as usize
    }

    /// Bytes of the box.
    pub(crate) fn bytes(&self) -> usize {
        (0..self.sizes.len()).map(|d| self.count(d)).product::<usize>() * self.element.size()
    }

    /// The map with rows that end at 16 bytes: what stores and reductions write of a ragged end, as an H200 does.
    pub(crate) fn whole_chunks(&self) -> TensorMap {
        let per_chunk = 16 / self.element.size() as u64;
        let mut map = self.clone();
        map.sizes[0] = map.sizes[0].next_multiple_of(per_chunk);
        map
    }

    /// The box at some coordinates, row by row: the place of a row in the box, the place in it where the array begins
    /// to be there, and the global address and bytes of what is there.
    pub(crate) fn rows(&self, at: &[i64]) -> Vec<(usize, usize, u64, usize)> {
        let (size, inner) = (self.element.size(), self.count(0));
        let rows: usize = (1..self.sizes.len()).map(|d| self.count(d)).product();
        let from = (-at[0]).clamp(0, inner as i64);
        let to = (self.sizes[0] as i64 - at[0]).clamp(from, inner as i64);
        let row = |number: usize| {
            let (mut rest, mut inside, mut address) = (number, true, self.address as i64);
            for (d, from) in at.iter().enumerate().skip(1) {
                let x = from + (rest % self.count(d)) as i64 * i64::from(self.steps[d]);
                rest /= self.count(d);
                inside &= x >= 0 && x < self.sizes[d] as i64;
                address = address.wrapping_add(x.wrapping_mul(self.strides[d - 1] as i64));
            }
            let bytes = if inside { (to - from) as usize * size } else { 0 };
            let address = address.wrapping_add((at[0] + from) * size as i64);
            (number * inner * size, from as usize * size, address as u64, bytes)
        };
        (0..rows).map(row).collect()
    }
}
