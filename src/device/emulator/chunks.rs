//! A grid on all cores: chunks of blocks, each with its own copy of what it writes, put together in their order.
//!
//! What a chunk is depends on the grid alone, and so do its dice: bits, counters and the first report are the same on any
//! number of cores. Chunks cannot tell each other anything, so bytes that one of them writes and another one touches are a
//! race. A kernel that has atomic or volatile accesses to global memory could: its grid is one chunk.

use super::Launch;
use super::bulk::End;
use super::cluster::Dice;
use super::counters::Count;
use super::launch::{RESIDENT, Running};
use super::memory::{Memory, Region};
use super::ptx::{Function, Module, Op, Space};
use super::race::{Agents, Touch};
use super::report::{At, Fault, Kind, spelled};
use super::warpgroup;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Chunks of a grid, at most: each has a copy of what it writes to.
const MOST: u32 = 16;

/// A launch that has been checked.
pub struct Plan<'a> {
    /// The program.
    pub module: &'a Module,
    /// What runs.
    pub kernel: &'a Function,
    /// Its number.
    pub index: u32,
    /// How.
    pub launch: Launch,
    /// The arguments.
    pub param: Vec<u8>,
    /// Addresses of the module's variables.
    pub symbols: &'a [u64],
}

/// What a chunk leaves behind.
struct Left {
    memory: Memory,
    counts: Vec<Count>,
    agents: Agents,
}

type Outcome<T> = Result<T, Box<Fault>>;

impl Plan<'_> {
    /// Runs it to its end; gives the counts by instruction.
    pub fn run(&self, memory: &mut Memory) -> Outcome<Vec<Count>> {
        let chunks = self.chunks();
        if let [one] = &chunks[..] {
            return self.chunk(memory, 0, one.clone()).map(|(counts, _)| counts);
        }
        let base = memory.share();
        let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let left: Vec<Mutex<Option<Outcome<Left>>>> = chunks.iter().map(|_| Mutex::default()).collect();
        let work = || {
            while let i = next.fetch_add(1, Ordering::Relaxed)
                && let Some(chunk) = chunks.get(i)
            {
                // The first that fails is the report, so those before it are run.
                if i > failed.load(Ordering::Relaxed) {
                    continue;
                }
                let mut memory = base.clone();
                let ran = self.chunk(&mut memory, i, chunk.clone());
                if ran.is_err() {
                    failed.fetch_min(i, Ordering::Relaxed);
                }
                let ran = ran.map(|(counts, agents)| Left { memory, counts, agents });
                *left[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(ran);
            }
        };
        let workers = match self.launch.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        std::thread::scope(|scope| {
            (1..workers.min(chunks.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        drop(base);
        let left = left.into_iter().filter_map(|l| l.into_inner().unwrap_or_else(|e| e.into_inner()));
        self.join(memory, left)
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
            Op::Atom { space, .. } => global(space),
            Op::Ld { space, order, .. } | Op::St { space, order, .. } => order.strong && global(space),
            Op::Bulk(bulk) => bulk.reduce.is_some() && !matches!(bulk.to, End::Shared(_)),
            _ => false,
        };
        let insts = |f: &Function| &self.module.insts[f.start as usize..f.end as usize];
        let calls = insts(self.kernel).iter().any(|inst| matches!(inst.op, Op::Call { .. }));
        let called = self.module.functions.iter().filter(|f| calls && !f.entry);
        called.chain([self.kernel]).flat_map(insts).any(|inst| talks(&inst.op))
    }

    fn chunk(&self, memory: &mut Memory, i: usize, clusters: Range<u32>) -> Outcome<(Vec<Count>, Agents)> {
        let mut running = Running {
            module: self.module,
            memory,
            kernel: self.kernel,
            index: self.index,
            launch: self.launch,
            param: &self.param,
            symbols: self.symbols,
            counts: vec![Count::default(); self.module.insts.len()],
            registers: warpgroup::registers(self.kernel),
            dice: Dice(self.launch.seed.wrapping_add((i as u64) << 32)),
            agents: Agents::default(),
            flights: Vec::new(),
        };
        running.clusters(clusters)?;
        Ok((running.counts, running.agents))
    }

    /// Puts together what chunks have left, in their order.
    fn join(&self, memory: &mut Memory, left: impl Iterator<Item = Outcome<Left>>) -> Outcome<Vec<Count>> {
        let mut counts = vec![Count::default(); self.module.insts.len()];
        let mut agents = Agents::default();
        for (i, left) in left.enumerate() {
            let left = left?;
            counts.iter_mut().zip(&left.counts).for_each(|(to, more)| to.add(more));
            let numbers = agents.adopt(&left.agents);
            if i == 0 {
                *memory = left.memory;
                continue;
            }
            for (ours, theirs) in memory.regions.iter_mut().zip(left.memory.regions) {
                let Region { name, data, state, races, .. } = theirs;
                let found = races.onto(&mut ours.races, &numbers, |range, both| {
                    let same = !both || ours.data[range.clone()] == data[range.clone()];
                    ours.data[range.clone()].copy_from_slice(&data[range.clone()]);
                    ours.state[range.clone()].copy_from_slice(&state[range]);
                    same
                });
                if let Some((at, write, it, other)) = found {
                    return Err(self.race(&agents, &format!("{name}+{at}"), write, (it, other)));
                }
            }
        }
        Ok(counts)
    }

    /// The report of two chunks' accesses to the same bytes.
    fn race(&self, agents: &Agents, place: &str, write: bool, (it, other): (Touch, Touch)) -> Box<Fault> {
        let extents = (self.launch.grid, self.launch.block);
        let (block, thread) = it.by().unwrap_or_else(|agent| agents.owner(agent));
        let inst = &self.module.insts[it.pc() as usize];
        let act = if write { "writes" } else { "reads" };
        let what = format!("race: it {act} {place} without an order to another access");
        Fault::new(Kind::Race, self.module, inst, At::of(extents, block, thread), what)
            .and(format!("the other access: {}", spelled(self.module, extents, agents, other)))
    }
}
