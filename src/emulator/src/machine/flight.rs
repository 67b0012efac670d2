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
        write(&mut region.data, &mut region.state, &self.pieces, &data, self.reduce);
    }
}

pub fn write(to: &mut [u8], state: &mut [State], pieces: &[Piece], data: &[u8], reduce: Option<(Rmw, Ty)>) {
    let mut at = 0;
    for piece in pieces {
        let (range, new) = (piece.to..piece.to + piece.bytes, &data[at..at + piece.bytes]);
        at += piece.bytes;
        state[range.clone()].fill(State::Written);
        let to = &mut to[range];
        let Some((f, ty)) = reduce else {
            to.copy_from_slice(new);
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
