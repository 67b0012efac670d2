//! A grid on all cores: chunks of blocks, each with its own copy of what it writes, put together in their order.
//!
//! What a chunk is depends on the grid alone, and so do its dice: bits, counters and the first report are the same on any
//! number of cores. Chunks cannot tell each other anything, so bytes that one of them writes and another one touches are a
//! race. A kernel that has atomic or volatile accesses to global memory could: its grid is one chunk. Each chunk has the
//! launch's budget of instructions.

use super::plan::{Plan, RESIDENT, Running};
use crate::isa::copy::End;
use crate::isa::module::Function;
use crate::isa::op::{ControlOp, CopyOp, MemoryOp, Op};
use crate::isa::operand::Space;
use crate::machine::clock::{Agent, Agents, Touch, spelled};
use crate::machine::dice::Dice;
use crate::machine::memory::{Memory, Region, State};
use crate::machine::warpgroup::registers;
use crate::report::checks::{Collected, Severity};
use crate::report::counters::Count;
use crate::report::finding::{At, Fault, Kind, other_access, raced};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Chunks of a grid, at most: each has a copy of what it writes to.
const MOST: u32 = 16;

/// What a chunk leaves behind.
struct Left {
    memory: Memory,
    counts: Vec<Count>,
    agents: Agents,
}

/// What the first chunks have left, put together in their order.
struct Joined {
    all: Left,
    /// How many they are.
    next: usize,
    /// Of chunks that are not next, with what they have found.
    ahead: BTreeMap<usize, (Outcome<Left>, Collected)>,
    /// What the first ones have found.
    found: Collected,
    /// The first finding.
    fault: Option<Box<Fault>>,
}

type Outcome<T> = Result<T, Box<Fault>>;

/// Threads that this process may run side by side.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

impl Plan<'_> {
    /// Runs it to its end; gives the counts by instruction.
    pub fn run(&self, memory: &mut Memory, found: &mut Collected) -> Outcome<Vec<Count>> {
        let chunks = self.chunks();
        if let [one] = &chunks[..] {
            let (ran, _, new) = self.chunk(memory, 0, one.clone());
            found.append(new);
            return ran;
        }
        let base = memory.share();
        let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let all = Left { memory: Memory::default(), counts: self.no_counts(), agents: Agents::default() };
        let none = Collected::new(self.checks);
        let joined = Mutex::new(Joined { all, next: 0, ahead: BTreeMap::new(), found: none, fault: None });
        let work = || {
            while let i = next.fetch_add(1, Ordering::Relaxed)
                && let Some(chunk) = chunks.get(i)
            {
                // The first that fails is the report, so those before it are run.
                if i > failed.load(Ordering::Relaxed) {
                    continue;
                }
                let mut memory = base.clone();
                let (ran, agents, found) = self.chunk(&mut memory, i, chunk.clone());
                let mut joined = joined.lock().unwrap_or_else(|e| e.into_inner());
                joined.ahead.insert(i, (ran.map(|counts| Left { memory, counts, agents }), found));
                self.join(&mut joined);
                let bad = joined.ahead.iter().find(|left| left.1.0.is_err()).map(|left| *left.0);
                let bad = if joined.fault.is_some() { Some(joined.next) } else { bad };
                failed.fetch_min(bad.unwrap_or(usize::MAX), Ordering::Relaxed);
            }
        };
        // Threads of their own: one of a pool could take up another task, which wants this emulator too.
        let workers = match self.launch.workers {
            0 => cores(),
            workers => workers,
        };
        std::thread::scope(|scope| {
            (1..workers.min(chunks.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        let joined = joined.into_inner().unwrap_or_else(|e| e.into_inner());
        found.append(joined.found);
        if let Some(fault) = joined.fault {
            return Err(self.other_side(&base, &joined.all, &chunks[joined.next..], joined.next, fault));
        }
        *memory = joined.all.memory;
        Ok(joined.all.counts)
    }

    fn no_counts(&self) -> Vec<Count> {
        vec![Count::default(); self.module.insts.len()]
    }

    /// Clusters by number.
    fn chunks(&self) -> Vec<Range<u32>> {
        let size: u32 = self.launch.cluster.iter().product();
        let clusters = self.launch.grid.iter().product::<u32>() / size;
        let each = match self.talks() {
            true => clusters,
            false => (RESIDENT as u32 / size).max(1).max(clusters.div_ceil(MOST)),
        };
        (0..clusters).step_by(each as usize).map(|from| from..(from + each).min(clusters)).collect()
    }

    /// Whether blocks may tell each other something through global memory.
    fn talks(&self) -> bool {
        let global = |space: &Space| matches!(space, Space::Global | Space::Generic);
        let talks = |op: &Op| match op {
            Op::Memory(MemoryOp::Atom { space, .. }) => global(space),
            Op::Memory(MemoryOp::Ld { space, order, .. } | MemoryOp::St { space, order, .. }) => {
                order.strong && global(space)
            }
            Op::Copy(CopyOp::Bulk(bulk)) => bulk.reduce.is_some() && !matches!(bulk.to, End::Shared(_)),
            Op::Copy(CopyOp::Prefetch { .. } | CopyOp::BulkCommit | CopyOp::BulkWait { .. }) => false,
            Op::Copy(CopyOp::CpAsync { .. } | CopyOp::CpCommit | CopyOp::CpWait { .. }) => false,
            Op::Register(_) | Op::Fence(_) | Op::Control(_) => false,
            Op::Warp(_) | Op::Barrier(_) | Op::Group(_) => false,
        };
        let insts = |f: &Function| &self.module.insts[f.start as usize..f.end as usize];
        let calls =
            insts(self.kernel).iter().any(|inst| matches!(inst.op, Op::Control(ControlOp::Call { .. })));
        let called = self.module.functions.iter().filter(|f| calls && !f.entry);
        called.chain([self.kernel]).flat_map(insts).any(|inst| talks(&inst.op))
    }

    /// Runs some clusters; gives what ran beside their warps, too.
    fn chunk(
        &self,
        memory: &mut Memory,
        i: usize,
        clusters: Range<u32>,
    ) -> (Outcome<Vec<Count>>, Agents, Collected) {
        let mut running = Running {
            plan: self,
            memory,
            counts: self.no_counts(),
            registers: registers(self.kernel),
            dice: Dice(self.launch.seed.wrapping_add((i as u64) << 32)),
            agents: Agents::default(),
            flights: Vec::new(),
            found: RefCell::new(Collected::new(self.checks)),
        };
        if self.before.is_some() {
            // The first agent: its number is known.
            running.agents.number(Agent::Predecessor);
        }
        let ran = running.clusters(clusters);
        (ran.map(|()| running.counts), running.agents, running.found.into_inner())
    }

    /// Puts together what has been left up to the first chunk that is still missing.
    fn join(&self, joined: &mut Joined) {
        while joined.fault.is_none()
            && let Some((left, found)) = joined.ahead.remove(&joined.next)
        {
            joined.found.append(found);
            let (all, found) = (&mut joined.all, &mut joined.found);
            match left.and_then(|left| self.add(all, found, left, joined.next == 0)) {
                Ok(()) => joined.next += 1,
                Err(fault) => joined.fault = Some(fault),
            }
        }
    }

    fn add(&self, all: &mut Left, found: &mut Collected, left: Left, first: bool) -> Outcome<()> {
        all.counts.iter_mut().zip(&left.counts).for_each(|(to, more)| to.add(more));
        let numbers = all.agents.adopt(&left.agents);
        if first {
            all.memory = left.memory;
            return Ok(());
        }
        for (ours, theirs) in all.memory.regions.iter_mut().zip(left.memory.regions) {
            let Region { name, data, state, races, .. } = theirs;
            let put = |range: Range<usize>, both: bool| {
                let same = !both || ours.data[range.clone()] == data[range.clone()];
                ours.data[range.clone()].copy_from_slice(&data[range.clone()]);
                ours.state[range.clone()].copy_from_slice(&state[range]);
                same
            };
            races.onto(&mut ours.races, &numbers, put, |at, write, it, other| {
                let (block, thread) = it.by().unwrap_or_else(|agent| all.agents.owner(agent));
                let inst = &self.module.insts[it.pc() as usize];
                let at = (At::of(self.extents(), block, thread), raced(write, &name, at));
                let fault = Fault::new(Kind::Race, self.module, inst, at.0, at.1);
                found.add(fault.and(self.other(&all.agents, other)))
            })?;
        }
        Ok(())
    }

    fn other(&self, agents: &Agents, touch: Touch) -> String {
        other_access(&spelled(self.module, self.extents(), agents, touch))
    }

    /// A byte without a value that another chunk writes is a race: with one `before`, or one behind the finding's, of
    /// which `rest` is the first, and whose successors run for this.
    fn other_side(
        &self,
        base: &Memory,
        before: &Left,
        rest: &[Range<u32>],
        first: usize,
        mut fault: Box<Fault>,
    ) -> Box<Fault> {
        let Some((region, at)) = fault.lacks else { return fault };
        if self.checks.severity(Kind::Race, None) == Severity::Note {
            return fault;
        }
        let write = |memory: &Memory| memory.regions.get(region).and_then(|r| r.races.written(at));
        let mut other = write(&before.memory).map(|touch| self.other(&before.agents, touch));
        for (i, chunk) in rest.iter().enumerate().skip(1) {
            if other.is_some() {
                break;
            }
            let mut memory = base.clone();
            // It must not stop where it reads such bytes itself; whatever becomes of it, what it wrote counts.
            let state = &mut memory.regions[region].state;
            state.iter_mut().filter(|s| **s == State::Unwritten).for_each(|s| *s = State::Written);
            let (_, agents, _) = self.chunk(&mut memory, first + i, chunk.clone());
            other = write(&memory).map(|touch| self.other(&agents, touch));
        }
        let Some(other) = other else { return fault };
        (fault.kind, fault.what) = (Kind::Race, raced(false, &base.regions[region].name, at));
        fault.and(other)
    }
}
