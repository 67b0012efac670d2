//! Blocks that run together: their shared memories, their barrier, and lanes that sleep until something happens.

use super::access::{Run, Where};
use super::bulk::{Flight, Groups};
use super::mbarrier::Mbarrier;
use super::memory::Region;
use super::ptx::{LANES, Op};
use super::race::Clock;
use super::report::{Bad, Fault, Kind};
use super::step::{Context, Next, fence};
use super::warp::Warp;
use std::collections::{BTreeMap, HashMap};

/// Blocks of a cluster, at most: what an H100 gives to who asks for more than 8.
pub const MOST_BLOCKS: u64 = 16;
/// An address of shared memory holds the rank of its block, plus one, above so many bits; zero is one's own.
const RANK_SHIFT: u32 = 24;

/// SplitMix64: the schedule's dice.
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }
}

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

impl Context<'_> {
    /// A place in the block's own shared memory.
    pub fn own_shared(&self, address: u64) -> Result<(Where, i64), Bad> {
        if let Some(rank) = rank_of(address)
            && rank as usize != self.rank
        {
            let what = format!("out of bounds: address of rank {rank} of the cluster, used as one's own");
            return Err((Kind::Access, what));
        }
        self.any_shared(address)
    }

    /// A place in the shared memory of the cluster.
    pub fn any_shared(&self, address: u64) -> Result<(Where, i64), Bad> {
        let bad = |what: String| Err((Kind::Access, what));
        if !matches!(address >> 32, 0 | 0xffff_ffff) {
            return bad(format!("out of bounds: {address:#x} in shared memory; is it a generic address?"));
        }
        let Some(rank) = rank_of(address) else {
            return Ok((Where::Shared(self.rank), i64::from(address as i32)));
        };
        match self.cluster.left.get(rank as usize) {
            None => {
                bad(format!("out of bounds: shared memory of rank {rank}, which the cluster does not have"))
            }
            Some(true) => bad(format!("shared memory of rank {rank} of the cluster, whose block has left")),
            Some(false) => Ok((Where::Shared(rank as usize), (address & ((1 << RANK_SHIFT) - 1)) as i64)),
        }
    }

    /// Addresses within the cluster, and fences for the asynchronous proxy.
    pub fn cluster_plain(&mut self, warp: &mut Warp, run: &Run<'_>) {
        let (frame, consts) = (run.frame, &self.module.consts);
        match &run.inst.op {
            Op::Mapa { d, s } => {
                let known = warp.known(frame, s[0]) & warp.known(frame, s[1]);
                let [a, rank] = s.map(|s| warp.get(frame, s, consts));
                // A rank that is too large stays too large.
                let map = |l: usize| mapped(a[l], (rank[l] as u32).min(MOST_BLOCKS as u32));
                warp.put(frame, *d, run.exec, &std::array::from_fn(map), known);
            }
            Op::Rank { d, s } => {
                let (known, a) = (warp.known(frame, *s), warp.get(frame, *s, consts));
                let rank = a.map(|a| rank_of(a).map_or(self.rank as u64, u64::from));
                warp.put(frame, *d, run.exec, &rank, known);
            }
            Op::ProxyFence { proxies, release } => {
                warp.clock.fence(proxies);
                warp.clock.own[warp.index as usize] += 1;
                if *release {
                    fence(warp);
                }
            }
            _ => {}
        }
    }

    /// Lanes wait until something has happened, and then try the instruction again.
    pub fn sleep(&mut self, warp: &mut Warp, run: &Run<'_>, mask: u32) -> Next {
        warp.go(mask, run.pc);
        warp.waiting |= mask;
        warp.beside.asleep |= mask;
        // It is not over: it counts when it is.
        let count = &mut self.counts[run.pc as usize];
        count.issued -= 1;
        count.lanes -= u64::from(mask.count_ones());
        Next::Again
    }

    /// `barrier.cluster`: comes, or waits.
    pub fn cluster_barrier(&mut self, warp: &mut Warp, run: &Run<'_>) -> Result<Next, Box<Fault>> {
        let Op::ClusterBarrier { wait, aligned, relaxed } = run.inst.op else { return Ok(Next::On) };
        warp.go(run.exec, run.pc);
        let here = if aligned { self.here(warp, run) } else { run.exec };
        if aligned && here != warp.live {
            warp.parked |= here;
            return Ok(Next::Again);
        }
        warp.parked &= !here;
        let run = Run { exec: here, ..*run };
        if !wait {
            self.cluster_arrive(warp, &run, relaxed)?;
        } else if let Next::Again = self.cluster_wait(warp, &run)? {
            return Ok(Next::Again);
        }
        warp.go(here, run.pc + 1);
        Ok(Next::Again)
    }

    /// `barrier.cluster.arrive`; not `relaxed`: what was before it is known to who waits.
    fn cluster_arrive(&mut self, warp: &mut Warp, run: &Run<'_>, relaxed: bool) -> Result<(), Box<Fault>> {
        let again = run.exec & (warp.beside.arrived | warp.beside.passes);
        if again != 0 {
            let what = "barrier: comes to the cluster's barrier a second time without having waited";
            return Err(self.fault(Kind::Barrier, warp, again.trailing_zeros() as usize, run.inst, what));
        }
        if !relaxed {
            self.cluster.arrived.get_or_insert_with(|| Clock::blank(warp.clock.block)).join(&warp.clock);
        }
        let time = &mut warp.clock.own[warp.index as usize];
        *time += 1;
        (warp.beside.came, self.cluster.progress) = (*time, self.cluster.progress + 1);
        warp.beside.arrived |= run.exec;
        Ok(())
    }

    /// `barrier.cluster.wait`
    fn cluster_wait(&mut self, warp: &mut Warp, run: &Run<'_>) -> Result<Next, Box<Fault>> {
        let never = run.exec & !(warp.beside.arrived | warp.beside.passes);
        if never != 0 {
            let what = "barrier: waits at the cluster's barrier without having come to it";
            return Err(self.fault(Kind::Barrier, warp, never.trailing_zeros() as usize, run.inst, what));
        }
        if run.exec & warp.beside.arrived != 0 {
            return Ok(self.sleep(warp, run, run.exec));
        }
        warp.beside.passes &= !run.exec;
        if let Some(opened) = &self.cluster.opened {
            warp.clock.join(opened);
        }
        warp.clock.own[warp.index as usize] += 1;
        warp.floor = warp.floor.max(warp.beside.came);
        Ok(Next::On)
    }
}
