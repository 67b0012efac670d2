//! Barriers of a warp and of a block.

use super::context::{Context, Next, Run};
use crate::isa::op::{BarrierOp, Op};
use crate::isa::operand::{Barrier, LANES, Pred, Src, lanes};
use crate::machine::clock::Clock;
use crate::machine::gate::GATES;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// Runs one for its lanes.
    pub fn barrier_op(&mut self, warp: &mut Warp, run: &Run<'_>, op: &BarrierOp) -> Result<Next, Box<Fault>> {
        warp.share_waits();
        match op {
            BarrierOp::WarpSync { mask } => self.warp_barrier(warp, run, *mask),
            BarrierOp::Barrier { kind, aligned, id, count, p, d } => {
                self.block_barrier(warp, run, (*kind, *aligned), (*id, *count), (*p, *d))
            }
            BarrierOp::ClusterBarrier { wait, aligned, relaxed } => {
                self.cluster_barrier(warp, run, *wait, *aligned, *relaxed)
            }
            BarrierOp::Mbarrier(op) => self.mbarrier(warp, run, op),
        }
    }

    /// Lanes may come to it from different places.
    fn warp_barrier(&mut self, warp: &mut Warp, run: &Run<'_>, members: Src) -> Result<Next, Box<Fault>> {
        warp.go(run.exec, run.pc);
        self.known(warp, run, &[members], "its mask of lanes is")?;
        let first = run.exec.trailing_zeros() as usize;
        let member = warp.look(run.frame, members, &self.module.consts)[first] as u32;
        let set = lanes(run.exec)
            .filter(|l| warp.look(run.frame, members, &self.module.consts)[*l] as u32 == member);
        let set = set.fold(0u32, |m, l| m | 1 << l);
        if set & !member != 0 {
            let lane = (set & !member).trailing_zeros() as usize;
            let what = format!("a lane that its own mask {member:#x} does not name");
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        warp.parked |= set;
        let waits = |l: &usize| {
            matches!(self.module.insts[warp.pc[*l] as usize].op, Op::Barrier(BarrierOp::WarpSync { .. }))
        };
        let come = lanes(warp.parked & member).filter(waits).fold(0u32, |m, l| m | 1 << l);
        if come == member & warp.live {
            warp.parked &= !come;
            let alike = lanes(come)
                .all(|l| (warp.pc[l], warp.frames[l].len()) == (warp.pc[first], warp.frames[first].len()));
            if come == warp.live && alike {
                warp.partings.clear();
            }
            lanes(come).for_each(|l| warp.pc[l] += 1);
            let time = &mut warp.clock.own[warp.index as usize];
            *time += 1;
            warp.floor = *time;
        }
        Ok(Next::Again)
    }

    /// `bar`, `barrier.cta`
    fn block_barrier(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        (kind, aligned): (Barrier, bool),
        (id, count): (Src, Option<Src>),
        (p, d): (Pred, u32),
    ) -> Result<Next, Box<Fault>> {
        warp.go(run.exec, run.pc);
        let lane = run.exec.trailing_zeros() as usize;
        if aligned && !self.aligned(warp, run)? {
            return Ok(Next::Again);
        }
        let here = if aligned { warp.live } else { run.exec };
        let wrong = |this: &Self, what: String| Err(this.fault(Kind::Barrier, warp, lane, run.inst, what));
        if aligned && warp.live != warp.all {
            let gone = warp.all & !warp.live;
            return wrong(
                self,
                format!("barrier: lanes {gone:#010x} of its warp have exited and never come to it"),
            );
        }
        self.known(warp, run, &[id], "the barrier's number is")?;
        self.known(warp, run, count.as_slice(), "its number of threads is")?;
        let value = |s: Src| warp.look(run.frame, s, &self.module.consts)[lane] as u32;
        let (id, count) = (value(id), count.map(value));
        if id as usize >= GATES {
            return wrong(self, format!("barrier {id}, of 0 to 15"));
        }
        if count.is_some_and(|c| c == 0 || c % LANES as u32 != 0) {
            return wrong(
                self,
                format!("barrier for {} threads, which is no multiple of 32", count.unwrap_or(0)),
            );
        }
        let gate = &self.barriers[id as usize];
        if gate.arrived > 0 && gate.expected != count {
            let (was, is) = (gate.expected, count);
            return wrong(
                self,
                format!("barrier {id} for {is:?} threads, while others wait there for {was:?}"),
            );
        }
        let (votes, known) = warp.predicate(run.frame, p);
        let gate = &mut self.barriers[id as usize];
        gate.unknown |= here & !known != 0;
        gate.expected = count;
        gate.arrived += if aligned && count.is_some() { LANES as u32 } else { here.count_ones() };
        gate.votes = (gate.votes.0 + (votes & here).count_ones(), gate.votes.1 + here.count_ones());
        gate.clock.get_or_insert_with(|| Clock::blank(warp.clock.block)).join(&warp.clock);
        if let Some(pending) = &warp.pending {
            gate.flags.get_or_insert_with(|| Box::new(Clock::blank(warp.clock.block))).join(pending);
        }
        warp.clock.own[warp.index as usize] += 1;
        warp.parked &= !here;
        if kind == Barrier::Arrive {
            warp.go(here, run.pc + 1);
        } else {
            warp.waiting |= here;
            gate.waits.push((warp.index as usize, here, *run.frame, kind, d));
        }
        Ok(Next::Again)
    }
}
