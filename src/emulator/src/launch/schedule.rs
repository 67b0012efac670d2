//! Clusters taken one after the other, their warps in turns, and whoever waits for ever named.

use super::plan::{RESIDENT, Running};
use super::resident::Resident;
use crate::exec::step::waits_at;
use crate::isa::module::{Inst, Module};
use crate::isa::op::{BarrierOp, Op};
use crate::isa::operand::{LANES, lanes};
use crate::machine::warp::Warp;
use crate::report::finding::{At, Fault, Kind};
use std::ops::Range;

/// Rounds in which nobody gets anywhere before that is called a deadlock.
const PATIENCE: u32 = 256;

impl Running<'_> {
    /// Runs some of the grid's clusters to their end.
    pub fn clusters(&mut self, clusters: Range<u32>) -> std::result::Result<(), Box<Fault>> {
        let size: u32 = self.plan.launch.cluster.iter().product();
        let most = (RESIDENT / size as usize).max(1);
        let (mut next, mut resident, mut spent) = (clusters.start, Vec::<Resident>::new(), 0u64);
        let (mut idle, mut progress) = (0, 0);
        // Of every resident warp; none: they are to be listed anew.
        let mut slots = Vec::<(usize, usize, usize)>::new();
        loop {
            while resident.len() < most && next < clusters.end {
                resident.push(self.resident(next));
                next += 1;
                slots.clear();
            }
            // Somebody who can run, from a random place on.
            if slots.is_empty() {
                let all = resident.iter().enumerate();
                slots.extend(all.flat_map(|(r, one)| one.slots().map(move |(b, w)| (r, b, w))));
            }
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
                slots.clear();
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
                    let barrier = matches!(
                        self.plan.module.insts[pc as usize].op,
                        Op::Barrier(BarrierOp::Barrier { .. })
                    );
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
            Op::Barrier(BarrierOp::Mbarrier(_)) => {
                let at = self.warp.beside.awaits[self.set.trailing_zeros() as usize];
                self.one.cluster.lacks(self.rank, at as usize)
            }
            Op::Barrier(BarrierOp::Barrier { .. }) => {
                let lacks = self.one.blocks[self.rank].lacks(self.warp.index);
                lacks.unwrap_or_else(|| waits_at(self.inst(module)).to_string())
            }
            _ => waits_at(self.inst(module)).to_string(),
        }
    }
}
