//! A warp's `cp.async` that it has not waited for: of each lane, or, while all 32 do the same, of all of them at once.

use crate::isa::operand::{LANES, lanes};

/// A copy that has begun.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// Offset in shared memory.
    pub to: usize,
    /// Allocation and offset; none where nothing is read.
    pub from: Option<(usize, usize)>,
    /// Bytes written, and those of them that are read; zeros fill the rest.
    pub bytes: (usize, usize),
    /// The instruction.
    pub pc: u32,
    /// Of its thread's, from 1.
    pub number: u32,
    /// The agent that reads for it, and its time.
    pub reads: (u32, u32),
    /// By an mbarrier.
    pub tracked: bool,
}

/// A lane's copies that it has not waited for.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    pub open: Vec<Copy>,
    /// Committed, oldest first.
    pub closed: Vec<Vec<Copy>>,
    pub issued: u32,
    /// The agent that reads for them.
    pub agent: Option<u32>,
}

impl Copies {
    /// `cp.async.commit_group`
    pub fn commit(&mut self) {
        self.closed.push(std::mem::take(&mut self.open));
    }
}

/// What all lanes of a warp copy by one instruction, 16 bytes each.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Offsets in shared memory.
    pub to: [usize; LANES],
    /// The allocation, and offsets there.
    pub from: (usize, [usize; LANES]),
    /// The instruction.
    pub pc: u32,
    /// Of lane 0's; other lanes may be ahead of it, or behind, by always as many.
    pub number: u32,
    /// The agent that reads for all of them, and its time.
    pub reads: (u32, u32),
}

/// A warp's copies.
#[derive(Clone, Debug)]
pub struct WarpCopies {
    /// By lane.
    pub lanes: Vec<Copies>,
    /// In their place, unless lanes have gone their own ways.
    pub open: Vec<Pack>,
    /// Committed, oldest first.
    pub closed: Vec<Vec<Pack>>,
    /// They have.
    pub apart: bool,
}

impl Default for WarpCopies {
    fn default() -> WarpCopies {
        let lanes = vec![Copies::default(); LANES];
        WarpCopies { lanes, open: Vec::new(), closed: Vec::new(), apart: false }
    }
}

impl WarpCopies {
    /// `cp.async.commit_group` by these lanes.
    pub fn commit(&mut self, exec: u32) {
        if exec == !0 && !self.apart {
            self.closed.push(std::mem::take(&mut self.open));
            return;
        }
        self.part();
        lanes(exec).for_each(|l| self.lanes[l].commit());
    }

    /// Each lane has its own copies from now on.
    pub fn part(&mut self) {
        if std::mem::replace(&mut self.apart, true) {
            return;
        }
        let issued = self.lanes[0].issued;
        for (l, lane) in self.lanes.iter_mut().enumerate() {
            let copy = |pack: &Pack| Copy {
                to: pack.to[l],
                from: Some((pack.from.0, pack.from.1[l])),
                bytes: (16, 16),
                pc: pack.pc,
                number: lane.issued.wrapping_add(pack.number).wrapping_sub(issued),
                reads: pack.reads,
                tracked: false,
            };
            lane.closed = self.closed.iter().map(|group| group.iter().map(copy).collect()).collect();
            lane.open = self.open.iter().map(copy).collect();
        }
        self.open.clear();
        self.closed.clear();
    }

    /// A lane's own.
    pub fn of(&mut self, lane: usize) -> &mut Copies {
        self.part();
        &mut self.lanes[lane]
    }

    /// Where no lane has any left, all of them begin again.
    pub fn join(&mut self) {
        self.apart &= self.lanes.iter().any(|lane| !lane.open.is_empty() || !lane.closed.is_empty());
    }
}
