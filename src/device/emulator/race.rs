//! Happens-before: vector clocks of warps, and the last accesses to every byte.
//!
//! Barriers of a block and of a warp order what is before them with what is behind. Across blocks, and through
//! shared memory without a barrier, a fence, an atomic (or volatile) write, a read of it, and a fence do; a fence
//! counts for its whole warp. Lanes of one warp are ordered by `bar.warp.sync` and block barriers alone: the
//! hardware may run them one after the other.

use std::collections::HashMap;

/// Warps of a block, at most.
pub const WARPS: usize = 32;
const PAGE: usize = 256;

/// What a warp knows of the others: up to which time of theirs everything is done.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Of its own block.
    pub own: [u32; WARPS],
    /// Of other blocks.
    pub others: HashMap<u32, [u32; WARPS]>,
    /// Which block `own` is about.
    pub block: u32,
}

impl Clock {
    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Clock) {
        let merge = |to: &mut [u32; WARPS], from: &[u32; WARPS]| {
            to.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).max(*b));
        };
        if other.block == self.block {
            merge(&mut self.own, &other.own);
        } else {
            merge(self.others.entry(other.block).or_default(), &other.own);
        }
        for (block, times) in &other.others {
            match *block == self.block {
                true => merge(&mut self.own, times),
                false => merge(self.others.entry(*block).or_default(), times),
            }
        }
    }
}

/// A lane that accesses memory.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// What its warp knows.
    pub clock: &'a Clock,
    /// Its warp's time at the last warp-wide synchronisation.
    pub floor: u32,
    /// Thread in the block.
    pub thread: u32,
    /// Instruction.
    pub pc: u32,
    /// Atomic or volatile.
    pub strong: bool,
}

/// One access, remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Touch {
    /// `block * 1024 + thread`, plus one; zero for none.
    who: u32,
    time: u32,
    /// The instruction, doubled; odd when it was strong.
    pc: u32,
}

impl Touch {
    fn of(who: &Who<'_>) -> Touch {
        let time = who.clock.own[who.thread as usize / 32];
        Touch { who: who.clock.block * 1024 + who.thread + 1, time, pc: who.pc * 2 + u32::from(who.strong) }
    }

    /// Block and thread.
    pub fn thread(self) -> (u32, u32) {
        ((self.who - 1) / 1024, (self.who - 1) % 1024)
    }

    /// Instruction.
    pub fn pc(self) -> u32 {
        self.pc / 2
    }

    fn warp(self) -> u32 {
        self.who.wrapping_sub(1) / 32
    }

    /// Whether it may happen at the same time as what `who` does now.
    fn races(self, who: &Who<'_>, many: bool) -> bool {
        if self.who == 0 || self.pc & 1 == 1 && who.strong {
            return false;
        }
        let (block, thread) = self.thread();
        let warp = thread as usize / 32;
        if block != who.clock.block {
            return who.clock.others.get(&block).is_none_or(|times| self.time > times[warp]);
        }
        if warp == who.thread as usize / 32 {
            return self.time >= who.floor && (thread != who.thread || many);
        }
        self.time > who.clock.own[warp]
    }
}

/// The last write, and the last reads of two warps. `many`: several lanes of that warp have read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cell {
    write: Touch,
    reads: [Touch; 2],
    many: [bool; 2],
}

/// The last accesses to the bytes of a region, kept where there were any.
#[derive(Clone, Debug, Default)]
pub struct Races {
    pages: Vec<Option<Box<[Cell; PAGE]>>>,
}

impl Races {
    /// Forgets everything: nothing of before races with what comes.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Bytes that were read, and that were written, however often.
    pub fn touched(&self) -> [u64; 2] {
        let cells = || self.pages.iter().flatten().flat_map(|page| page.iter());
        let read = cells().filter(|c| c.reads[0].who != 0).count();
        [read, cells().filter(|c| c.write.who != 0).count()].map(|n| n as u64)
    }

    fn cells(&mut self, at: usize, bytes: usize) -> &mut [Cell] {
        let page = at / PAGE;
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        let cells = self.pages[page].get_or_insert_with(|| Box::new([Cell::default(); PAGE]));
        &mut cells[at % PAGE..at % PAGE + bytes]
    }

    /// Notes a read; gives the write that it races with. `bytes` is a power of two and `at` aligned to it.
    pub fn read(&mut self, at: usize, bytes: usize, who: &Who<'_>) -> Option<Touch> {
        let (touch, mut harmless) = (Touch::of(who), Touch::default());
        for cell in self.cells(at, bytes) {
            // Neighbouring bytes mostly have the same history.
            if cell.write != harmless && cell.write.races(who, false) {
                return Some(cell.write);
            }
            harmless = cell.write;
            if cell.reads[0].warp() == touch.warp() && cell.reads[0].who != 0 {
                let again = cell.reads[0].time == touch.time;
                cell.many[0] = again && (cell.many[0] || cell.reads[0].who != touch.who);
            } else {
                (cell.reads[1], cell.many[1]) = (cell.reads[0], cell.many[0]);
                cell.many[0] = false;
            }
            cell.reads[0] = touch;
        }
        None
    }

    /// Notes a write; gives the access that it races with. `same`: the bytes keep their values, so another write of
    /// them is no conflict.
    pub fn write(&mut self, at: usize, bytes: usize, who: &Who<'_>, same: bool) -> Option<Touch> {
        let (touch, mut harmless) = (Touch::of(who), Cell::default());
        for cell in self.cells(at, bytes) {
            if *cell != harmless {
                harmless = *cell;
                if !same && cell.write.races(who, false) {
                    return Some(cell.write);
                }
                for (read, many) in cell.reads.iter().zip(cell.many) {
                    if read.races(who, many) {
                        return Some(*read);
                    }
                }
            }
            cell.write = touch;
        }
        None
    }
}
