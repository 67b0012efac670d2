//! A launch: checked, its clusters taken one after the other, their warps in turns, and whoever waits for ever named.

use super::bulk::Flight;
use super::chunks::Plan;
use super::cluster::{Dice, MOST_BLOCKS};
use super::counters::{Count, Counters};
use super::memory::Memory;
use super::ptx::{Function, Inst, LANES, Module, Op};
use super::race::Agents;
use super::report::{At, Fault, Kind};
use super::resident::Resident;
use super::step::waits_at;
use super::warp::{Warp, lanes};
use super::{Args, Launch};
use crate::error::{Error, Result};
use std::ops::Range;

/// Blocks that are on the machine at a time.
pub const RESIDENT: usize = 8;
/// Rounds in which nobody gets anywhere before that is called a deadlock.
const PATIENCE: u32 = 256;
/// Static and dynamic shared memory that a block may have: what an H100 gives.
const MOST_SHARED: usize = 227 << 10;

/// Some of a launch's clusters while they run.
pub struct Running<'a> {
    /// The launch.
    pub plan: &'a Plan<'a>,
    /// Global memory.
    pub memory: &'a mut Memory,
    /// By instruction.
    pub counts: Vec<Count>,
    /// The schedule's.
    pub dice: Dice,
    /// What runs beside the warps.
    pub agents: Agents,
    /// Copies to global memory that nobody has waited for; they arrive with the end of the launch.
    pub flights: Vec<Flight>,
    /// Of each thread at its start, where the kernel bounds them.
    pub registers: u32,
}

/// Checks the launch and runs it to its end.
pub fn run(
    module: &Module,
    memory: &mut Memory,
    symbols: &[u64],
    kernel: &str,
    launch: &Launch,
    args: &Args<'_>,
) -> Result<Counters> {
    let found = module.functions.iter().position(|f| f.entry && f.name == kernel && f.end > f.start);
    let Some(index) = found else {
        let names: Vec<&str> = module.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str()).collect();
        let what = format!("{}: no kernel {kernel}; there are: {}", module.name, names.join(", "));
        return Err(Error::Usage(what));
    };
    let function = &module.functions[index];
    let mut launch = *launch;
    if launch.cluster == [1; 3] {
        launch.cluster = function.cluster.unwrap_or([1; 3]);
    }
    refuse(module, function, &launch).map_err(|what| Error::Usage(format!("{kernel}: {what}")))?;
    let param = parameters(function, args).map_err(|what| Error::Usage(format!("{kernel}: {what}")))?;
    memory.regions.iter_mut().for_each(|r| {
        r.races.clear();
        r.released.clear();
    });
    let plan = Plan { module, kernel: function, index: index as u32, launch, param, symbols };
    match plan.run(memory) {
        Ok(counts) => {
            let mut counters = Counters::new(module, &counts);
            (counters.threads, counters.dynamic) = (launch.block.iter().product(), launch.shared);
            for [read, written] in memory.regions.iter().map(|r| r.races.touched()) {
                counters.read += read;
                counters.written += written;
            }
            Ok(counters)
        }
        Err(mut fault) => {
            fault.kernel = kernel.to_string();
            Err(Error::Finding(fault.to_string()))
        }
    }
}

fn refuse(module: &Module, kernel: &Function, launch: &Launch) -> std::result::Result<(), String> {
    let product = |e: [u32; 3]| e.iter().fold(1u64, |n, e| n.saturating_mul(u64::from(*e)));
    let (blocks, threads) = (product(launch.grid), product(launch.block));
    if !(1..=1 << 21).contains(&blocks) {
        return Err(format!("a grid of {blocks} blocks, 1 to 2097152 can be emulated"));
    }
    if !(1..=1024).contains(&threads) {
        return Err(format!("a block of {threads} threads, 1 to 1024 are possible"));
    }
    if kernel.most_threads.is_some_and(|most| threads > u64::from(most)) {
        return Err(format!(
            "a block of {threads} threads, the kernel was compiled for {:?}",
            kernel.most_threads
        ));
    }
    let ([gx, gy, gz], cluster @ [x, y, z]) = (launch.grid, launch.cluster);
    let inside = product(cluster);
    if !(1..=MOST_BLOCKS).contains(&inside) {
        return Err(format!("a cluster of {inside} blocks, 1 to {MOST_BLOCKS} are possible"));
    }
    if gx % x + gy % y + gz % z != 0 {
        return Err(format!(
            "a grid of {:?} blocks is no whole number of clusters of {cluster:?}",
            launch.grid
        ));
    }
    if kernel.cluster.is_some_and(|own| own != cluster) {
        return Err(format!("clusters of {cluster:?}, the kernel was compiled for {:?}", kernel.cluster));
    }
    if inside > 1 && module.target < 90 {
        return Err(format!("a cluster of {inside} blocks, sm_{} has none (sm_90 does)", module.target));
    }
    let fixed: usize = module.shared.iter().chain(&kernel.shared).map(|v| v.size).sum();
    if launch.shared > MOST_SHARED || fixed + launch.shared > MOST_SHARED {
        let dynamic = launch.shared;
        return Err(format!("{fixed} + {dynamic} bytes of shared memory, at most {MOST_SHARED} are there"));
    }
    Ok(())
}

fn parameters(kernel: &Function, args: &Args<'_>) -> std::result::Result<Vec<u8>, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments were given, it takes {}", args.len(), kernel.params.len()));
    }
    let mut bytes = vec![0; kernel.param_bytes as usize];
    for (i, (arg, param)) in args.iter().zip(&kernel.params).enumerate() {
        if arg.len() != param.size {
            return Err(format!("argument {i} has {} bytes, the parameter has {}", arg.len(), param.size));
        }
        bytes[param.offset..param.offset + param.size].copy_from_slice(arg);
    }
    Ok(bytes)
}

impl Running<'_> {
    /// Runs some of the grid's clusters to their end.
    pub fn clusters(&mut self, clusters: Range<u32>) -> std::result::Result<(), Box<Fault>> {
        let size: u32 = self.plan.launch.cluster.iter().product();
        let most = (RESIDENT / size as usize).max(1);
        let (mut next, mut resident, mut spent) = (clusters.start, Vec::<Resident>::new(), 0u64);
        let (mut idle, mut progress) = (0, 0);
        loop {
            while resident.len() < most && next < clusters.end {
                resident.push(self.resident(next));
                next += 1;
            }
            // Somebody who can run, from a random place on.
            let slots: Vec<(usize, usize, usize)> = resident
                .iter()
                .enumerate()
                .flat_map(|(r, one)| one.slots().map(move |(b, w)| (r, b, w)))
                .collect();
            let from = self.dice.roll(slots.len() as u64) as usize;
            let can = |(r, b, w): &(usize, usize, usize)| {
                let warp = &resident[*r].blocks[*b].warps[*w];
                warp.live & !warp.parked & !warp.waiting != 0
            };
            let order = slots[from..].iter().chain(&slots[..from]);
            let Some((r, b, w)) = order.copied().find(|s| can(s)) else {
                // Waits that time out are let go, and again, until it is clear that nobody gets anywhere.
                let now = resident.iter().map(|r| r.cluster.progress).sum::<u64>() + u64::from(next);
                (idle, progress) = if now == progress { (idle + 1, progress) } else { (0, now) };
                if idle > PATIENCE || !resident.iter().any(Resident::sleeps) {
                    return Err(self.stuck(&resident));
                }
                resident.iter_mut().for_each(Resident::time_out);
                continue;
            };
            // Mostly short turns, and now and then a warp that runs far ahead.
            let turn = match self.dice.roll(8) {
                0 => 4096,
                1 | 2 => 512,
                _ => 1 + self.dice.roll(64),
            };
            spent += self.turn(&mut resident[r], b, w, turn)?;
            if spent > self.plan.launch.budget {
                return Err(self.over_budget(&resident[r], b, w));
            }
            if self.settle(&mut resident[r], b)? {
                resident.remove(r);
                if resident.is_empty() && next == clusters.end {
                    self.flights.iter_mut().for_each(|f| f.flush(self.memory));
                    return Ok(());
                }
            }
        }
    }

    /// Who waits where, when nobody can go on.
    fn stuck(&self, resident: &[Resident]) -> Box<Fault> {
        let mut waits = Vec::new();
        for (one, rank) in resident.iter().flat_map(|r| (0..r.blocks.len()).map(move |b| (r, b))) {
            for warp in &one.blocks[rank].warps {
                let mut rest = warp.parked | warp.waiting;
                while rest != 0 {
                    let pc = warp.pc[rest.trailing_zeros() as usize];
                    let set = lanes(rest).filter(|l| warp.pc[*l] == pc).fold(0, |m, l| m | 1 << l);
                    rest &= !set;
                    let barrier = matches!(self.plan.module.insts[pc as usize].op, Op::Barrier { .. });
                    // Those who stand with lanes that wait for something are kept by it.
                    let kept = warp.live != set && warp.live & !set & !warp.waiting == 0;
                    let order = match (set & warp.waiting != 0, kept) {
                        (true, _) => 2,
                        (_, true) => 3,
                        _ => i32::from(barrier),
                    };
                    waits.push(Wait { one, rank, warp, set, order });
                }
            }
        }
        // A warp that is torn apart is the cause; whole ones at a barrier are the effect.
        waits.sort_by_key(|w| w.order);
        let Some(first) = waits.first() else {
            let inst = &self.plan.module.insts[self.plan.kernel.start as usize];
            let at = At { block: [0; 3], thread: [0; 3] };
            return Fault::new(Kind::Deadlock, self.plan.module, inst, at, "nobody can go on");
        };
        let (warp, inst) = (first.warp, first.inst(self.plan.module));
        let (kind, what) = match first.order {
            0 | 1 => {
                let missing = warp.all & !first.set;
                let what = format!(
                    "barrier: {} that lanes {missing:#010x} of its warp never come to",
                    waits_at(inst)
                );
                (Kind::Barrier, what)
            }
            _ => (Kind::Deadlock, format!("deadlock: {} that never opens", first.what(self.plan.module))),
        };
        let at = self.at(first.block(), warp.index * LANES as u32 + first.set.trailing_zeros());
        let fault = Fault::new(kind, self.plan.module, inst, at, what);
        let describe = |w: &Wait<'_>| {
            let (block, warp, set) = (w.block(), w.warp.index, w.set);
            let (what, place) = (w.what(self.plan.module), self.plan.module.place(w.inst(self.plan.module)));
            format!("block {block}, warp {warp}: lanes {set:#010x} wait at {what}, {place}")
        };
        waits.iter().take(8).map(describe).fold(fault, Fault::and)
    }

    /// A thread of a block, by their numbers.
    pub fn at(&self, block: u32, thread: u32) -> At {
        At::of(self.plan.extents(), block, thread)
    }

    fn over_budget(&self, one: &Resident, rank: usize, w: usize) -> Box<Fault> {
        let (block, warp) = (one.cluster.blocks[rank], &one.blocks[rank].warps[w]);
        // A lane that still runs: one that has left stands nowhere.
        let lane = warp.live.trailing_zeros() & 31;
        let inst = &self.plan.module.insts[warp.pc[lane as usize] as usize];
        let what = format!(
            "more than {} warp instructions: an endless loop, or raise the budget",
            self.plan.launch.budget
        );
        Fault::new(
            Kind::Budget,
            self.plan.module,
            inst,
            self.at(block, warp.index * LANES as u32 + lane),
            what,
        )
    }
}

/// Lanes that wait at one place for ever.
struct Wait<'a> {
    one: &'a Resident,
    rank: usize,
    warp: &'a Warp,
    set: u32,
    /// Causes come first.
    order: i32,
}

impl Wait<'_> {
    fn block(&self) -> u32 {
        self.one.cluster.blocks[self.rank]
    }

    fn inst<'m>(&self, module: &'m Module) -> &'m Inst {
        &module.insts[self.warp.pc[self.set.trailing_zeros() as usize] as usize]
    }

    fn what(&self, module: &Module) -> String {
        match self.inst(module).op {
            Op::Mbarrier(_) => {
                let at = self.warp.beside.awaits[self.set.trailing_zeros() as usize];
                self.one.cluster.lacks(self.rank, at as usize)
            }
            Op::Barrier { .. } => {
                let lacks = self.one.blocks[self.rank].lacks(self.warp.index);
                lacks.unwrap_or_else(|| waits_at(self.inst(module)).to_string())
            }
            _ => waits_at(self.inst(module)).to_string(),
        }
    }
}
