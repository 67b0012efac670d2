//! A launch: blocks made, warps scheduled, barriers opened, and whoever waits for ever named.

use super::counters::{Count, Counters};
use super::environment::environment;
use super::memory::{GUARD, Memory, Region, State};
use super::ptx::{Function, LANES, Module, Op};
use super::race::{Clock, WARPS};
use super::report::{At, Fault, Kind};
use super::step::{Context, GATES, Gate, waits_at};
use super::warp::{Warp, lanes};
use super::{Args, Launch};
use crate::error::{Error, Result};

/// Blocks that are on the machine at a time.
pub const RESIDENT: usize = 8;
/// Static and dynamic shared memory that a block may have: what an H100 gives.
const MOST_SHARED: usize = 227 << 10;

struct Block {
    index: u32,
    warps: Vec<Warp>,
    shared: Region,
    gates: [Gate; GATES],
}

/// SplitMix64: the schedule's dice.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }
}

/// All that a launch needs while it runs.
struct Running<'a> {
    module: &'a Module,
    memory: &'a mut Memory,
    kernel: &'a Function,
    index: u32,
    launch: &'a Launch,
    param: Vec<u8>,
    symbols: &'a [u64],
    counts: Vec<Count>,
    dice: Dice,
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
    refuse(module, function, launch).map_err(|what| Error::Usage(format!("{kernel}: {what}")))?;
    let param = parameters(function, args).map_err(|what| Error::Usage(format!("{kernel}: {what}")))?;
    memory.regions.iter_mut().for_each(|r| {
        r.races.clear();
        r.released.clear();
    });
    let mut running = Running {
        module,
        memory,
        kernel: function,
        index: index as u32,
        launch,
        param,
        symbols,
        counts: vec![Count::default(); module.insts.len()],
        dice: Dice(launch.seed),
    };
    match running.grid() {
        Ok(()) => {
            let mut counters = Counters::new(module, &running.counts);
            for [read, written] in running.memory.regions.iter().map(|r| r.races.touched()) {
                counters.read += read;
                counters.written += written;
            }
            Ok(counters)
        }
        Err(mut fault) => {
            fault.kernel = kernel.to_string();
            Err(Error::Device(fault.to_string()))
        }
    }
}

fn refuse(module: &Module, kernel: &Function, launch: &Launch) -> std::result::Result<(), String> {
    let product = |e: [u32; 3]| e.iter().map(|n| u64::from(*n)).product::<u64>();
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
    fn grid(&mut self) -> std::result::Result<(), Box<Fault>> {
        let blocks: u32 = self.launch.grid.iter().product();
        let (mut next, mut resident, mut spent) = (0, Vec::<Block>::new(), 0u64);
        loop {
            while resident.len() < RESIDENT && next < blocks {
                let block = self.block(next);
                resident.push(block);
                next += 1;
            }
            // Somebody who can run, from a random place on.
            let slots: Vec<(usize, usize)> = resident
                .iter()
                .enumerate()
                .flat_map(|(b, block)| (0..block.warps.len()).map(move |w| (b, w)))
                .collect();
            let from = self.dice.roll(slots.len() as u64) as usize;
            let can = |(b, w): &(usize, usize)| {
                let warp = &resident[*b].warps[*w];
                warp.live & !warp.parked & !warp.waiting != 0
            };
            let order = slots[from..].iter().chain(&slots[..from]);
            let Some((b, w)) = order.copied().find(|s| can(s)) else {
                return Err(self.stuck(&resident));
            };
            // Mostly short turns, and now and then a warp that runs far ahead.
            let turn = match self.dice.roll(8) {
                0 => 4096,
                1 | 2 => 512,
                _ => 1 + self.dice.roll(64),
            };
            let early = self.launch.seed & 1 == 1;
            spent += self.turn(&mut resident[b], w, turn, early)?;
            if spent > self.launch.budget {
                return Err(self.over_budget(&resident[b], w));
            }
            let block = &mut resident[b];
            open_gates(block);
            if block.warps.iter().all(|w| w.live == 0) {
                resident.remove(b);
                if resident.is_empty() && next == blocks {
                    return Ok(());
                }
            }
        }
    }

    fn context<'a>(
        &'a mut self,
        index: u32,
        shared: &'a mut Region,
        gates: &'a mut [Gate; GATES],
        early: bool,
    ) -> Context<'a> {
        let [x, y, _] = self.launch.grid;
        Context {
            module: self.module,
            memory: self.memory,
            shared,
            barriers: gates,
            counts: &mut self.counts,
            block: [index % x, index / x % y, index / x / y],
            extents: (self.launch.grid, self.launch.block),
            early,
        }
    }

    fn turn(
        &mut self,
        block: &mut Block,
        w: usize,
        turn: u64,
        early: bool,
    ) -> std::result::Result<u64, Box<Fault>> {
        let Block { index, warps, shared, gates } = block;
        self.context(*index, shared, gates, early).turn(&mut warps[w], turn)
    }

    fn block(&self, index: u32) -> Block {
        let threads: u32 = self.launch.block.iter().product();
        let statics = self.module.shared.iter().chain(&self.kernel.shared);
        let end = statics.clone().map(|v| v.offset + v.size).max().unwrap_or(0);
        let dynamic = if end == 0 { 0 } else { (end + GUARD).next_multiple_of(1024) };
        let mut shared = Region::guarded("shared memory", dynamic + self.launch.shared + GUARD);
        statics.for_each(|v| shared.mark(v.offset, v.size, State::Unwritten));
        shared.mark(dynamic, self.launch.shared, State::Unwritten);
        let warps =
            (0..threads.div_ceil(LANES as u32)).map(|w| self.warp(index, w, threads, dynamic)).collect();
        Block { index, warps, shared, gates: Default::default() }
    }

    fn warp(&self, block: u32, index: u32, threads: u32, dynamic: usize) -> Warp {
        let count = (threads - index * LANES as u32).min(LANES as u32);
        let all = if count == 32 { !0 } else { (1u32 << count) - 1 };
        let mut own = [0; WARPS];
        own[index as usize] = 1;
        let mut warp = Warp {
            index,
            registers: Vec::new(),
            defined: Vec::new(),
            predicates: Vec::new(),
            predicates_defined: Vec::new(),
            env: environment(self.launch, self.symbols, block, index, dynamic),
            pc: [0; LANES],
            frames: vec![Vec::new(); LANES],
            live: all,
            all,
            parked: 0,
            waiting: 0,
            param: vec![Vec::new(); LANES],
            local: vec![Region::new("local memory", 0); LANES],
            carry: 0,
            clock: Clock { own, block, ..Clock::default() },
            floor: 1,
            released: None,
            pending: None,
            open: vec![Vec::new(); LANES],
            groups: vec![Vec::new(); LANES],
            impatience: 0,
        };
        warp.enter(all, None, self.index, self.kernel, 0);
        let bytes = self.param.len();
        lanes(all).for_each(|l| warp.param[l][..bytes].copy_from_slice(&self.param));
        warp
    }

    /// Who waits where, when nobody can go on.
    fn stuck(&self, resident: &[Block]) -> Box<Fault> {
        let mut waits = Vec::new();
        for block in resident {
            for warp in &block.warps {
                let mut rest = warp.parked;
                while rest != 0 {
                    let pc = warp.pc[rest.trailing_zeros() as usize];
                    let set = lanes(rest).filter(|l| warp.pc[*l] == pc).fold(0, |m, l| m | 1 << l);
                    rest &= !set;
                    let barrier = matches!(self.module.insts[pc as usize].op, Op::Barrier { .. });
                    waits.push((block, warp, set, if barrier { 1 } else { 0 }));
                }
                if warp.waiting != 0 {
                    waits.push((block, warp, warp.waiting, 2));
                }
            }
        }
        // A warp that is torn apart is the cause; whole ones at a barrier are the effect.
        waits.sort_by_key(|w| w.3);
        let describe = |(block, warp, set, _): &(&Block, &Warp, u32, i32)| {
            let inst = &self.module.insts[warp.pc[set.trailing_zeros() as usize] as usize];
            let (place, what) = (self.module.place(inst), waits_at(inst));
            format!("block {}, warp {}: lanes {set:#010x} wait at {what}, {place}", block.index, warp.index)
        };
        let Some((block, warp, set, order)) = waits.first() else {
            let inst = &self.module.insts[self.kernel.start as usize];
            let at = At { block: [0; 3], thread: [0; 3] };
            return Fault::new(Kind::Deadlock, self.module, inst, at, "nobody can go on");
        };
        let lane = set.trailing_zeros();
        let inst = &self.module.insts[warp.pc[lane as usize] as usize];
        let (kind, what) = match order {
            0 | 1 => {
                let missing = warp.all & !set;
                let what = format!(
                    "barrier: {} that lanes {missing:#010x} of its warp never come to",
                    waits_at(inst)
                );
                (Kind::Barrier, what)
            }
            _ => (Kind::Deadlock, format!("deadlock: {} that never opens", waits_at(inst))),
        };
        let at = self.at(block.index, warp.index * LANES as u32 + lane);
        let fault = Fault::new(kind, self.module, inst, at, what);
        waits.iter().take(8).map(describe).fold(fault, Fault::and)
    }

    fn at(&self, block: u32, thread: u32) -> At {
        let spread = |i: u32, [x, y, _]: [u32; 3]| [i % x, i / x % y, i / x / y];
        At { block: spread(block, self.launch.grid), thread: spread(thread, self.launch.block) }
    }

    fn over_budget(&self, block: &Block, w: usize) -> Box<Fault> {
        let warp = &block.warps[w];
        // A lane that still runs: one that has left stands nowhere.
        let lane = warp.live.trailing_zeros() & 31;
        let inst = &self.module.insts[warp.pc[lane as usize] as usize];
        let what = format!(
            "more than {} warp instructions: an endless loop, or raise the budget",
            self.launch.budget
        );
        Fault::new(
            Kind::Budget,
            self.module,
            inst,
            self.at(block.index, warp.index * LANES as u32 + lane),
            what,
        )
    }
}

/// Lets those go on whose barrier is complete.
fn open_gates(block: &mut Block) {
    let live: u32 = block.warps.iter().map(|w| w.live.count_ones()).sum();
    for gate in &mut block.gates {
        if gate.arrived == 0 || gate.arrived < gate.expected.unwrap_or(live) {
            continue;
        }
        let gate = std::mem::take(gate);
        let Some(clock) = gate.clock else { continue };
        for (w, mask, frame, kind, d) in gate.waits {
            let warp = &mut block.warps[w];
            warp.waiting &= !mask;
            lanes(mask).for_each(|l| warp.pc[l] += 1);
            warp.clock.join(&clock);
            warp.clock.own[w] += 1;
            warp.floor = warp.clock.own[w];
            use super::ptx::Barrier::{Arrive, RedAnd, RedOr, RedPopc, Sync};
            let all = |yes: bool| if yes { !0 } else { 0 };
            match kind {
                Sync | Arrive => {}
                RedAnd => warp.put_predicate(&frame, d, mask, all(gate.votes.0 == gate.votes.1), !0),
                RedOr => warp.put_predicate(&frame, d, mask, all(gate.votes.0 > 0), !0),
                RedPopc => warp.put(&frame, d, mask, &[gate.votes.0.into(); LANES], !0),
            }
        }
    }
}
