//! What the blocks of a cluster share, and where its addresses point.

use super::clock::Clock;
use super::flight::{Flight, Groups, Where};
use super::mbarrier::Mbarrier;
use super::memory::Region;
use crate::isa::operand::LANES;
use std::collections::{BTreeMap, HashMap};

/// Blocks of a cluster, at most: what every GPU with clusters gives. An H100 gives 16 to kernels whose attribute for sizes
/// that are not portable is set; nobody sets it here.
pub const MOST_BLOCKS: u64 = 8;

/// An address of shared memory holds the rank of its block, plus one, above so many bits; zero is one's own.
pub const RANK_SHIFT: u32 = 24;

/// What the blocks of a cluster share.
#[derive(Default)]
pub struct Cluster {
    /// Numbers of its blocks, by rank.
    pub blocks: Vec<u32>,
    /// Their shared memories.
    pub shared: Vec<Region>,
    /// Which of them have left.
    pub left: Vec<bool>,
    /// The barrier: what those who came know, and what those knew for whom it has opened.
    pub arrived: Option<Clock>,
    /// The latter.
    pub opened: Option<Clock>,
    /// mbarriers by rank and offset.
    pub mbarriers: Vec<BTreeMap<usize, Mbarrier>>,
    /// Phases of those that were, by rank and offset.
    pub phases: HashMap<(usize, usize), u32>,
    /// Copies that an mbarrier awaits, oldest first.
    pub flights: Vec<Flight>,
    /// `cp.async` that have arrived for an mbarrier, by block, thread and number: its agent, and the time behind which
    /// they are. Until their thread knows.
    pub landed: HashMap<(u32, u32, u32), (u32, u32)>,
    /// Something has happened that a sleeper may wait for.
    pub wake: bool,
    /// Counts what changes anything: while it stands still, nobody gets anywhere.
    pub progress: u64,
}

impl Cluster {
    /// Arrivals and bytes that copies under way will bring to an mbarrier, oldest first, with their numbers.
    pub fn under_way(&self, rank: usize, at: usize) -> impl Iterator<Item = (usize, u32, i64)> {
        let flights = self.flights.iter().enumerate();
        let ours =
            flights.filter(move |(_, f)| f.mbarrier == Some(at) && f.to.contains(&Where::Shared(rank)));
        ours.map(|(i, f)| (i, f.arrivals, f.bytes as i64))
    }

    /// How many of the copies under way, oldest first, complete the current phase.
    pub fn completes(&self, rank: usize, at: usize) -> Option<usize> {
        let bar = self.mbarriers[rank].get(&at)?;
        let (mut pending, mut tx) = (i64::from(bar.pending), bar.tx);
        for (n, (_, arrivals, bytes)) in self.under_way(rank, at).enumerate() {
            (pending, tx) = (pending - i64::from(arrivals), tx - bytes);
            if pending == 0 && tx == 0 {
                return Some(n + 1);
            }
        }
        None
    }

    /// Something has changed at an mbarrier: a phase may be over, or could be.
    pub fn changed(&mut self, rank: usize, at: usize) {
        self.progress += 1;
        self.wake |= self.completes(rank, at).is_some();
        let Some(bar) = self.mbarriers[rank].get_mut(&at) else { return };
        if bar.pending == 0 && bar.tx == 0 {
            bar.phases += 1;
            bar.pending = bar.count;
            bar.arrived.heard(bar.agent, bar.phases);
            bar.done.clone_from(&bar.arrived);
            self.wake = true;
        }
    }

    /// Bytes and arrivals that a copy brings.
    pub fn arrives(&mut self, rank: usize, at: usize, bytes: usize, arrivals: u32) {
        if let Some(bar) = self.mbarriers[rank].get_mut(&at) {
            bar.tx -= bytes as i64;
            bar.pending = bar.pending.saturating_sub(arrivals);
        }
        self.changed(rank, at);
    }

    /// A thread's arrival is on its way; `more`: one that the phase did not count on. Whether the phase has room for it.
    pub fn joins(&mut self, rank: usize, at: usize, clock: &Clock, more: bool) -> bool {
        let coming = self.under_way(rank, at).map(|u| u.1).sum::<u32>();
        let Some(bar) = self.mbarriers[rank].get_mut(&at) else { return false };
        bar.pending += u32::from(more);
        bar.arrived.join(clock);
        bar.pending > coming
    }

    /// The agent of an mbarrier and the time at which its current phase will be over.
    pub fn current(&self, rank: usize, at: usize) -> Option<(u32, u32)> {
        self.mbarriers[rank].get(&at).map(|bar| (bar.agent, bar.phases + 1))
    }

    /// What an mbarrier lacks, for who waits for ever.
    pub fn lacks(&self, rank: usize, at: usize) -> String {
        let name = &self.shared[rank].name;
        let Some(bar) = self.mbarriers[rank].get(&at) else { return format!("the mbarrier at {name}+{at}") };
        let sums = self.under_way(rank, at).fold((0, 0), |s, (_, a, b)| (s.0 + i64::from(a), s.1 + b));
        let (pending, tx) = (i64::from(bar.pending) - sums.0, bar.tx - sums.1);
        let (phase, parity) = (bar.phases - bar.base, (bar.phases - bar.base) & 1);
        let mut text = format!("the mbarrier at {name}+{at}, which is in phase {phase} (parity {parity})");
        if pending > 0 {
            text += &format!(", {pending} of {} arrivals missing", bar.count);
        }
        match tx {
            1.. => text += &format!(", {tx} bytes missing that were expected"),
            ..0 => text += &format!(", {} bytes more sent than expected", -tx),
            0 => {}
        }
        text
    }
}

/// A warp's part in what goes on beside the warps.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Lanes, of those that wait, that try again when something has happened.
    pub asleep: u32,
    /// Lanes that have come to the cluster's barrier, which is still closed.
    pub arrived: u32,
    /// Lanes for which it has opened, and that have not noticed.
    pub passes: u32,
    /// The warp's time when its last lane came.
    pub came: u32,
    /// Lanes whose last wait at an mbarrier said that it is not over.
    pub failed: u32,
    /// Offset of the mbarrier that a lane has last waited for.
    pub awaits: [u32; LANES],
    /// Bulk groups by lane.
    pub bulk: [Groups; LANES],
    /// What single threads have waited for, and nothing has told their warp: thread, agent, time.
    pub waited: Vec<(u32, u32, u32)>,
}

/// A rank's address of shared memory.
pub fn mapped(address: u64, rank: u32) -> u64 {
    let low = (address as u32) & ((1 << RANK_SHIFT) - 1);
    address & !0xffff_ffff | u64::from(low | (rank + 1) << RANK_SHIFT)
}

/// The rank that an address names, if it is not one's own.
pub fn rank_of(address: u64) -> Option<u32> {
    match address as u32 >> RANK_SHIFT {
        // Far below zero: a negative offset in one's own.
        0 | 0x80.. => None,
        tag => Some(tag - 1),
    }
}
