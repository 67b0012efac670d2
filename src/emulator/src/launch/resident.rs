//! Blocks on the machine: how they begin, take turns, pass their barriers, and leave.

use super::environment::environment;
use super::plan::Running;
use crate::exec::context::Context;
use crate::isa::operand::{Barrier, LANES, lanes};
use crate::isa::space::GUARD;
use crate::machine::clock::{Clock, WARPS};
use crate::machine::cluster::{Beside, Cluster};
use crate::machine::copies::WarpCopies;
use crate::machine::flight::{Flight, Groups};
use crate::machine::gate::{GATES, Gate};
use crate::machine::memory::{Region, State};
use crate::machine::partings::Partings;
use crate::machine::products::Products;
use crate::machine::warp::Warp;
use crate::machine::warpgroup::{GROUP, WARPGROUPS, Warpgroup};
use crate::report::finding::{Fault, Kind, coordinates};
use std::collections::BTreeMap;

/// A block.
pub struct Block {
    /// Its warps.
    pub warps: Vec<Warp>,
    gates: [Gate; GATES],
    warpgroups: [Warpgroup; WARPGROUPS],
}

impl Block {
    /// Bulk copies in its threads' groups.
    fn flights(&self) -> impl Iterator<Item = &Flight> {
        self.warps.iter().flat_map(|w| &w.beside.bulk).flat_map(Groups::flights)
    }

    /// What the barrier lacks that a warp waits at, for who waits for ever.
    pub fn lacks(&self, warp: u32) -> Option<String> {
        let id = self.gates.iter().position(|gate| gate.waits.iter().any(|w| w.0 == warp as usize))?;
        let (gate, live) = (&self.gates[id], self.warps.iter().map(|w| w.live.count_ones()).sum());
        let (come, all) = (gate.arrived, gate.expected.unwrap_or(live));
        Some(format!("barrier {id} of the block, to which {come} of {all} threads have come,"))
    }
}

/// A cluster's blocks, by rank, and what they share.
pub struct Resident {
    /// The blocks.
    pub blocks: Vec<Block>,
    /// What they share.
    pub cluster: Cluster,
}

impl Resident {
    /// Block and number of every warp.
    pub fn slots(&self) -> impl Iterator<Item = (usize, usize)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(b, block)| (0..block.warps.len()).map(move |w| (b, w)))
    }

    fn warps(&mut self) -> impl Iterator<Item = &mut Warp> {
        self.blocks.iter_mut().flat_map(|b| &mut b.warps)
    }

    /// Whether anybody sleeps.
    pub fn sleeps(&self) -> bool {
        self.blocks.iter().flat_map(|b| &b.warps).any(|w| w.beside.asleep != 0)
    }

    /// Sleepers look again.
    fn wake(&mut self) {
        self.warps().for_each(|w| w.waiting &= !std::mem::take(&mut w.beside.asleep));
    }

    /// Sleepers look again, and a wait that has a time limit is over for now.
    pub fn time_out(&mut self) {
        self.warps().for_each(|w| w.beside.failed &= !w.beside.asleep);
        self.wake();
    }

    /// Opens the cluster's barrier when all lanes that are left have come.
    fn open(&mut self) {
        let (mut some, mut all) = (false, true);
        for warp in self.warps() {
            some |= warp.beside.arrived != 0;
            all &= warp.live & !warp.beside.arrived == 0;
        }
        if some && all {
            self.warps().for_each(|w| w.beside.passes |= std::mem::take(&mut w.beside.arrived));
            self.cluster.opened = self.cluster.arrived.clone();
            self.cluster.wake = true;
        }
    }
}

impl Running<'_> {
    /// A warp's turn; gives the instructions that it ran.
    pub fn turn(&mut self, of: &mut Resident, b: usize, w: usize, turn: u64) -> Result<u64, Box<Fault>> {
        let (mut context, warps) = self.context(of, b);
        context.turn(&mut warps[w], turn)
    }

    /// What an instruction of block `b` may reach, and its warps.
    fn context<'a>(&'a mut self, of: &'a mut Resident, b: usize) -> (Context<'a>, &'a mut [Warp]) {
        let Resident { blocks, cluster } = of;
        let Block { warps, gates, warpgroups } = &mut blocks[b];
        let context = Context {
            module: self.plan.module,
            memory: self.memory,
            cluster,
            rank: b,
            agents: &mut self.agents,
            dice: &mut self.dice,
            spare: Warpgroup::spare(warpgroups, self.registers),
            warpgroups,
            barriers: gates,
            counts: &mut self.counts,
            before: self.plan.before,
            found: &self.found,
            extents: self.plan.extents(),
            early: self.plan.launch.seed & 1 == 1,
            mixed: self.plan.launch.seed & 2 == 2,
        };
        (context, warps)
    }

    /// Lets warpgroups go on that have met, or whose products are done.
    fn warpgroups(&mut self, of: &mut Resident, b: usize) -> Result<(), Box<Fault>> {
        for g in (0..WARPGROUPS).filter(|g| of.blocks[b].warpgroups[*g].waits()).collect::<Vec<_>>() {
            let (mut context, warps) = self.context(of, b);
            let end = warps.len().min(GROUP * (g + 1));
            context.warpgroup(g, &mut warps[GROUP * g..end])?;
        }
        Ok(())
    }

    /// What a turn of block `b` has brought about; whether the whole cluster has left.
    pub fn settle(&mut self, of: &mut Resident, b: usize) -> Result<bool, Box<Fault>> {
        open_gates(&mut of.blocks[b]);
        self.warpgroups(of, b)?;
        if of.blocks.len() > 1 || of.blocks[b].warps.iter().any(|w| w.beside.arrived != 0) {
            of.open();
        }
        if !of.cluster.left[b] && of.blocks[b].warps.iter().all(|w| w.live == 0) {
            self.leaves(of, b)?;
            of.cluster.left[b] = true;
            of.cluster.progress += 1;
        }
        if std::mem::take(&mut of.cluster.wake) {
            of.wake();
        }
        Ok(of.cluster.left.iter().all(|l| *l))
    }

    /// A block leaves: nobody may be about to touch its memory.
    fn leaves(&mut self, of: &mut Resident, b: usize) -> Result<(), Box<Fault>> {
        let (inst, name) = (|pc: u32| &self.plan.module.insts[pc as usize], &of.cluster.shared[b].name);
        let late = |pc: u32, (block, thread): (u32, u32)| {
            let what = format!(
                "{name} is still in use by what runs beside the block, which leaves without waiting for it"
            );
            Fault::new(Kind::Race, self.plan.module, inst(pc), self.at(block, thread), what)
        };
        let mut copies = of.blocks.iter().flat_map(Block::flights).chain(&of.cluster.flights);
        if let Some(flight) = copies.find(|f| f.uses(b)) {
            let fault = late(flight.pc, (flight.block, flight.thread));
            return self.found.borrow_mut().add(fault);
        }
        let mut clock = Clock::blank(of.cluster.blocks[b]);
        of.blocks[b].warps.iter().for_each(|w| clock.join(&w.clock));
        // A block by itself, its memory touched by its warps alone, has nobody to wait for.
        let alone = of.blocks.len() == 1 && self.agents.none_in_shared();
        let foreign = if alone { None } else { of.cluster.shared[b].races.foreign(&clock) };
        let Some((at, touch)) = foreign else {
            self.flights.extend(of.blocks[b].flights().cloned());
            return Ok(());
        };
        let Ok((block, thread)) = touch.by() else {
            return self.found.borrow_mut().add(late(touch.pc(), (clock.block, 0)));
        };
        let what = format!("touches {name}+{at}, whose block may have left by then");
        let fault = Fault::new(Kind::Race, self.plan.module, inst(touch.pc()), self.at(block, thread), what)
            .and("blocks of a cluster leave together: a cluster barrier is missing behind the last access");
        self.found.borrow_mut().add(fault)
    }

    /// A cluster by its number.
    pub fn resident(&self, number: u32) -> Resident {
        let ([gx, gy, gz], [x, y, z]) = (self.plan.launch.grid, self.plan.launch.cluster);
        let [cx, cy, cz] = coordinates(number, [gx / x, gy / y, gz / z]);
        let place = |rank: u32| {
            let [rx, ry, rz] = coordinates(rank, [x, y, z]);
            cx * x + rx + gx * (cy * y + ry + gy * (cz * z + rz))
        };
        let blocks: Vec<u32> = (0..x * y * z).map(place).collect();
        let name = |rank: u32| match blocks.len() {
            1 => "shared memory".to_string(),
            _ => format!("shared memory of rank {rank}"),
        };
        let (shared, dynamic): (Vec<Region>, Vec<usize>) =
            (0..x * y * z).map(|r| self.shared(&name(r))).unzip();
        let dynamic = dynamic.first().copied().unwrap_or(0);
        Resident {
            blocks: blocks.iter().map(|index| self.block(*index, dynamic)).collect(),
            cluster: Cluster {
                left: vec![false; blocks.len()],
                mbarriers: vec![BTreeMap::new(); blocks.len()],
                blocks,
                shared,
                ..Cluster::default()
            },
        }
    }

    /// A block's shared memory, and where its dynamic part begins.
    fn shared(&self, name: &str) -> (Region, usize) {
        let statics = self.plan.module.shared.iter().chain(&self.plan.kernel.shared);
        let end = statics.clone().map(|v| v.offset + v.size).max().unwrap_or(0);
        let dynamic = if end == 0 { 0 } else { (end + GUARD).next_multiple_of(1024) };
        let mut shared = Region::guarded(name, dynamic + self.plan.launch.shared + GUARD);
        statics.for_each(|v| shared.mark(v.offset, v.size, State::Unwritten));
        shared.mark(dynamic, self.plan.launch.shared, State::Unwritten);
        (shared, dynamic)
    }

    fn block(&self, index: u32, dynamic: usize) -> Block {
        let threads: u32 = self.plan.launch.block.iter().product();
        let warps =
            (0..threads.div_ceil(LANES as u32)).map(|w| self.warp(index, w, threads, dynamic)).collect();
        let warpgroups = std::array::from_fn(|_| Warpgroup::new(self.registers));
        Block { warps, gates: Default::default(), warpgroups }
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
            locals: Vec::new(),
            env: environment(&self.plan.launch, self.plan.symbols, block, index, dynamic),
            pc: [0; LANES],
            frames: vec![Vec::new(); LANES],
            live: all,
            all,
            parked: 0,
            waiting: 0,
            param: vec![Vec::new(); LANES],
            local: vec![Region::new("local memory", 0); LANES],
            carry: 0,
            clock: Clock { own, ..Clock::blank(block) },
            floor: 1,
            released: None,
            pending: None,
            flags: None,
            copies: WarpCopies::default(),
            products: Products::default(),
            partings: Partings::default(),
            beside: Beside::default(),
            impatience: 0,
            calls: false,
        };
        warp.enter(all, None, self.plan.index, self.plan.kernel, 0);
        let bytes = self.plan.param.len();
        lanes(all).for_each(|l| warp.param[l][..bytes].copy_from_slice(&self.plan.param));
        warp
    }
}

/// Lets those go on whose barrier is complete.
pub fn open_gates(block: &mut Block) {
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
            if let Some(flags) = &gate.flags {
                warp.flags.get_or_insert_with(|| Box::new(Clock::blank(clock.block))).join(flags);
            }
            warp.clock.own[w] += 1;
            warp.floor = warp.clock.own[w];
            use Barrier::{Arrive, RedAnd, RedOr, RedPopc, Sync};
            let all = |yes: bool| if yes { !0 } else { 0 };
            let known = all(!gate.unknown);
            match kind {
                Sync | Arrive => {}
                RedAnd => warp.put_predicate(&frame, d, mask, all(gate.votes.0 == gate.votes.1), known),
                RedOr => warp.put_predicate(&frame, d, mask, all(gate.votes.0 > 0), known),
                RedPopc => warp.put(&frame, d, mask, &[gate.votes.0.into(); LANES], known),
            }
        }
    }
}
