//! Copies on their way: what they move, and a thread's groups of them.

use super::memory::{Memory, State};
use crate::isa::operand::{Rmw, Ty};
use crate::numbers::rmw::modify_global;

/// Which region an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// An allocation.
    Global(usize),
    /// A block's, by its rank in the cluster.
    Shared(usize),
    /// A lane's.
    Local(usize),
}

/// Bytes of a copy that lie together at both ends.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Zeros if nowhere.
    pub from: Option<usize>,
    /// Offsets in the regions at both ends.
    pub to: usize,
    /// How many.
    pub bytes: usize,
}

/// A copy under way.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The instruction and thread (of the block) that issued it.
    pub pc: u32,
    /// The block's number.
    pub block: u32,
    /// The thread.
    pub thread: u32,
    /// Where the bytes are from.
    pub from: Where,
    /// Regions that get it, all at the same offsets.
    pub to: Vec<Where>,
    /// What lies together.
    pub pieces: Vec<Piece>,
    /// Where they go, as runs; none: nobody has asked yet.
    pub runs: Vec<(usize, usize)>,
    /// What the pieces hold, one behind the other, once that is read.
    pub data: Option<Vec<u8>>,
    /// How it joins what is there, if not in its place.
    pub reduce: Option<(Rmw, Ty)>,
    /// The mbarrier's offset in the regions.
    pub mbarrier: Option<usize>,
    /// Bytes that the mbarrier counts.
    pub bytes: usize,
    /// Arrivals that it counts.
    pub arrivals: u32,
    /// The number of the thread's `cp.async` that it is; zero: none.
    pub copy: u32,
    /// The agent that reads for that one, and its time.
    pub reads: (u32, u32),
}

/// A lane's bulk groups.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    pub open: Vec<Flight>,
    /// Committed, oldest first.
    pub closed: Vec<Vec<Flight>>,
    /// Groups that are wholly over.
    pub over: u32,
}

impl Groups {
    /// Those whose bytes have not all arrived.
    pub fn flights(&self) -> impl Iterator<Item = &Flight> {
        self.closed.iter().flatten().chain(&self.open)
    }

    /// `cp.async.bulk.commit_group`
    pub fn commit(&mut self) {
        self.closed.push(std::mem::take(&mut self.open));
    }

    pub fn number(&self) -> u32 {
        self.over + self.closed.len() as u32 + 1
    }
}

impl Flight {
    /// Whether it still reads shared memory of a rank, or has yet to write there.
    pub fn uses(&self, rank: usize) -> bool {
        self.data.is_none() && self.from == Where::Shared(rank) || self.to.contains(&Where::Shared(rank))
    }

    /// Writes what has been read; only global memory is left to be written.
    pub fn flush(&mut self, memory: &mut Memory) {
        let (Some(data), Some(Where::Global(region))) = (self.data.take(), self.to.pop()) else { return };
        let region = &mut memory.regions[region];
        write(&mut region.data, &self.pieces, &data, self.reduce);
        self.pieces.iter().for_each(|piece| region.mark(piece.to, piece.bytes, State::Written));
    }
}

/// Places as runs, as long as they are.
pub fn runs(places: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let mut list: Vec<(usize, usize)> = places.collect();
    if !list.is_sorted() && !by_chunks(&mut list) {
        list.sort_unstable();
    }
    list.dedup_by(|next, run| {
        let joins = run.0 + run.1 == next.0;
        run.1 += if joins { next.1 } else { 0 };
        joins
    });
    list
}

/// Sorts chunks of 16 bytes that are near to each other, as those of a swizzled box are; whether they are such.
fn by_chunks(list: &mut [(usize, usize)]) -> bool {
    let (Some(from), Some(to)) = (list.iter().map(|p| p.0).min(), list.iter().map(|p| p.0).max()) else {
        return false;
    };
    let near = to - from < 1 << 18;
    if !near || list.iter().fold(0, |odd, (at, bytes)| odd | (bytes ^ 16) | ((at - from) % 16)) != 0 {
        return false;
    }
    let mut bits = vec![0u64; (to - from) / 1024 + 1];
    list.iter().map(|(at, _)| (at - from) / 16).for_each(|i| bits[i / 64] |= 1 << (i % 64));
    if bits.iter().map(|b| b.count_ones() as usize).sum::<usize>() != list.len() {
        return false;
    }
    let mut places = list.iter_mut();
    for (i, word) in bits.iter().enumerate() {
        let mut rest = *word;
        while rest != 0 {
            if let Some(place) = places.next() {
                *place = (from + 16 * (64 * i + rest.trailing_zeros() as usize), 16);
            }
            rest &= rest - 1;
        }
    }
    true
}

/// Writes what the pieces hold.
pub fn write(to: &mut [u8], pieces: &[Piece], data: &[u8], reduce: Option<(Rmw, Ty)>) {
    let mut at = 0;
    for piece in pieces {
        let (range, new) = (piece.to..piece.to + piece.bytes, &data[at..at + piece.bytes]);
        at += piece.bytes;
        let to = &mut to[range];
        let Some((f, ty)) = reduce else {
            // Mostly chunks of 16 bytes.
            match (to.as_chunks_mut().0, new.as_chunks::<16>().0) {
                ([to], [all]) if new.len() == 16 => *to = *all,
                _ => to.copy_from_slice(new),
            }
            continue;
        };
        let size = ty.size();
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        for (old, new) in to.chunks_exact_mut(size).zip(new.chunks_exact(size)) {
            let value = modify_global(f, ty, word(old), word(new), 0);
            old.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}
