//! mbarriers: phases, arrivals, bytes on their way, and who waits.
//!
//! A failed wait first says so; the next one sleeps until something has happened that could complete the phase, or
//! until nobody else can run (it may have a time limit). Copies that are late arrive when a wait asks for them a second
//! time, and only if that completes the phase.

use super::context::{Context, Done, Next, Run};
use crate::isa::mbarrier::{Mbar, What};
use crate::isa::operand::{LANES, Lanes, NONE, Proxy, Space, Src, lanes};
use crate::machine::clock::{Agent, Clock};
use crate::machine::cluster::mapped;
use crate::machine::flight::Where;
use crate::machine::mbarrier::{MOST, Mbarrier};
use crate::machine::memory::State;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Habit, Kind};

impl Context<'_> {
    /// Runs one instruction on mbarriers for its lanes.
    pub fn mbarrier(&mut self, warp: &mut Warp, run: &Run<'_>, op: &Mbar) -> Result<Next, Box<Fault>> {
        let addresses = self.addresses(warp, run, &op.addr)?;
        for (source, what) in op.values() {
            self.known(warp, run, source.as_slice(), what)?;
        }
        let value = |warp: &Warp, s: Src| warp.get(run.frame, s, &self.module.consts);
        match op.what {
            What::Init { count } => {
                let count = value(warp, count);
                for lane in lanes(run.exec) {
                    self.mbarrier_init(warp, run, lane, op, addresses[lane], count[lane] as u32)?;
                }
            }
            What::Inval => {
                for lane in lanes(run.exec) {
                    self.mbarrier_end(warp, run, lane, op, addresses[lane])?;
                }
            }
            What::Wait { p, phase, parity, relaxed } => {
                let phase = value(warp, phase);
                return self.mbarrier_wait(warp, run, op, &addresses, (p, &phase, parity, relaxed));
            }
            What::Copies { counted } => {
                for lane in lanes(run.exec) {
                    let (rank, at) = self.mbarrier_at(warp, run, lane, (op.space, true), addresses[lane])?;
                    self.track_copies(warp, run, lane, (rank, at), counted)?;
                }
                warp.clock.own[warp.index as usize] += 1;
            }
            What::Arrive { .. } | What::Expect { .. } | What::Complete { .. } => {
                self.mbarrier_counts(warp, run, op, &addresses)?;
            }
        }
        Ok(Next::On)
    }

    /// The initialised mbarrier at an address: rank and offset; `own`: it must be the block's.
    pub fn mbarrier_at(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        (space, own): (Space, bool),
        address: u64,
    ) -> Result<(usize, usize), Box<Fault>> {
        let wrong = |this: &Self, what: String| this.fault(Kind::Barrier, warp, lane, run.inst, what);
        let (rank, at) = self.mbarrier_place(warp, run, lane, space, address)?;
        if !self.cluster.mbarriers[rank].contains_key(&at) {
            let name = &self.cluster.shared[rank].name;
            let what =
                format!("mbarrier: {name}+{at} holds none: it was not initialised, or was invalidated");
            return Err(wrong(self, what));
        }
        if rank != self.rank && own {
            return Err(wrong(
                self,
                "mbarrier: only the own block's can be waited for or invalidated".into(),
            ));
        }
        if let Some(other) = self.cluster.shared[rank].races.read(at, 8, &warp.who(lane, run.pc, true)) {
            self.report(self.race(warp, lane, run, (Where::Shared(rank), at), false, other))?;
        }
        Ok((rank, at))
    }

    fn mbarrier_place(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        space: Space,
        address: u64,
    ) -> Result<(usize, usize), Box<Fault>> {
        let found = self.find(space, lane, address).and_then(|(place, at)| match place {
            Where::Shared(rank) if at >= 0 && at % 8 == 0 => {
                self.cluster.shared[rank].range(at, 8, false).map(|at| (rank, at))
            }
            Where::Shared(rank) => {
                let name = &self.cluster.shared[rank].name;
                Err((Kind::Misaligned, format!("misaligned: an mbarrier at {name}+{at}, not at 8 bytes")))
            }
            _ => Err((Kind::Access, format!("{address:#x} is not in shared memory, where mbarriers are"))),
        });
        found.map_err(|bad| self.bad(warp, lane, run.inst, bad))
    }

    fn mbarrier_init(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        lane: usize,
        op: &Mbar,
        address: u64,
        count: u32,
    ) -> Done {
        let (rank, at) = self.mbarrier_place(warp, run, lane, op.space, address)?;
        let wrong = |this: &Self, what: String| Err(this.fault(Kind::Barrier, warp, lane, run.inst, what));
        let name = &self.cluster.shared[rank].name;
        if self.cluster.mbarriers[rank].contains_key(&at) {
            return wrong(self, format!("mbarrier: {name}+{at} is one in use; mbarrier.inval ends it"));
        }
        if rank != self.rank || !(1..=MOST).contains(&i64::from(count)) {
            return wrong(
                self,
                format!("mbarrier: {name}+{at} for {count} arrivals, of 1 to {MOST} in one's own"),
            );
        }
        self.write(warp, run, Space::Shared, lane, at as u64, &[0; 8], false)?;
        let block = self.cluster.blocks[rank];
        let agent = self.agents.number(Agent::Mbarrier(block, at as u32));
        let base = self.cluster.phases.get(&(rank, at)).copied().unwrap_or(0);
        let clock = Clock::blank(block);
        let (arrived, done) = (clock.clone(), clock);
        let bar = Mbarrier { count, pending: count, tx: 0, phases: base, base, agent, arrived, done };
        self.cluster.mbarriers[rank].insert(at, bar);
        self.cluster.shared[rank].mark(at, 8, State::Barrier);
        Ok(())
    }

    fn mbarrier_end(&mut self, warp: &mut Warp, run: &Run<'_>, lane: usize, op: &Mbar, address: u64) -> Done {
        let (rank, at) = self.mbarrier_at(warp, run, lane, (op.space, true), address)?;
        if self.cluster.under_way(rank, at).next().is_some() {
            let what = format!(
                "mbarrier: {}+{at} ends while copies that count on it are under way",
                self.own().name
            );
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        if let Some(bar) = self.cluster.mbarriers[rank].remove(&at) {
            self.cluster.phases.insert((rank, at), bar.phases);
        }
        self.cluster.shared[rank].mark(at, 8, State::Unwritten);
        self.write(warp, run, Space::Shared, lane, at as u64, &[0; 8], false)?;
        Ok(())
    }

    /// Arrivals, and bytes expected and completed by hand.
    fn mbarrier_counts(&mut self, warp: &mut Warp, run: &Run<'_>, op: &Mbar, addresses: &Lanes) -> Done {
        let value = |s: Src| warp.get(run.frame, s, &self.module.consts);
        let (d, count, tx, drop, last, relaxed) = match op.what {
            What::Arrive { d, count, tx, drop, last, relaxed } => (d, count, tx, drop, last, relaxed),
            What::Expect { tx } | What::Complete { tx } => (NONE, None, Some(tx), false, true, true),
            What::Init { .. } | What::Inval | What::Wait { .. } | What::Copies { .. } => return Ok(()),
        };
        let arrives = matches!(op.what, What::Arrive { .. });
        let sign = if matches!(op.what, What::Complete { .. }) { -1 } else { 1 };
        let (count, tx) = (count.map(value), tx.map(value));
        let (mut states, mut told) = ([0; LANES], None);
        for lane in lanes(run.exec) {
            let place @ (rank, at) = self.mbarrier_at(warp, run, lane, (op.space, false), addresses[lane])?;
            let count = if arrives { count.as_ref().map_or(1, |c| i64::from(c[lane] as u32)) } else { 0 };
            let tx = tx.as_ref().map_or(0, |t| i64::from(t[lane] as u32));
            let name = self.cluster.shared[rank].name.clone();
            let Some(bar) = self.cluster.mbarriers[rank].get_mut(&at) else { continue };
            states[lane] = u64::from(bar.phases) << 32 | u64::from(bar.pending);
            let pending = i64::from(bar.pending) - count;
            let dropped = if drop { count } else { 0 };
            let wrong = if arrives && count == 0 || pending < 0 {
                let (phase, left) = (bar.phases - bar.base, bar.pending);
                Some(format!("{count} arrivals at {name}+{at}, whose phase {phase} lacks {left}"))
            } else if dropped > i64::from(bar.count) {
                Some(format!("{dropped} arrivals dropped at {name}+{at}, whose phases count {}", bar.count))
            } else if !last && pending == 0 {
                Some(format!("arrive.noComplete completes the phase of {name}+{at}"))
            } else if tx > MOST || (bar.tx + sign * tx).abs() > MOST {
                Some(format!("{} bytes at {name}+{at}, at most {MOST} can be counted", bar.tx + sign * tx))
            } else {
                None
            };
            if let Some(what) = wrong {
                return Err(self.fault(Kind::Barrier, warp, lane, run.inst, format!("mbarrier: {what}")));
            }
            (bar.tx, bar.pending) = (bar.tx + sign * tx, pending as u32);
            bar.count -= dropped as u32;
            if !relaxed && told != Some(place) {
                bar.arrived.join(&warp.publishes(run.exec));
                told = Some(place);
            }
            self.cluster.changed(rank, at);
        }
        if !relaxed {
            warp.clock.own[warp.index as usize] += 1;
        }
        warp.put(run.frame, d, run.exec, &states, !0);
        Ok(())
    }

    fn mbarrier_wait(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        op: &Mbar,
        addresses: &Lanes,
        (p, phase, parity, relaxed): (u32, &Lanes, bool, bool),
    ) -> Result<Next, Box<Fault>> {
        let (mut over, mut again, mut told) = (0, 0, None);
        let (first, last) = (run.exec.trailing_zeros() as usize & 31, 31 - (run.exec | 1).leading_zeros());
        let failed = warp.beside.failed & run.exec;
        let one = (failed == 0 || failed == run.exec)
            && lanes(run.exec).all(|l| (addresses[l], phase[l]) == (addresses[first], phase[first]));
        for lane in lanes(run.exec) {
            let (_, at) = self.mbarrier_at(warp, run, lane, (op.space, true), addresses[lane])?;
            let mut yes = self.phase_over(warp, run, lane, at, phase[lane], parity)?;
            if !yes && warp.beside.failed >> lane & 1 == 1 {
                let n = self.cluster.completes(self.rank, at).unwrap_or(0);
                self.land(self.rank, at, n);
                yes = self.phase_over(warp, run, lane, at, phase[lane], parity)?;
                again |= u32::from(!yes) << lane;
            }
            warp.beside.awaits[lane] = at as u32;
            over |= u32::from(yes) << lane;
            if yes && !relaxed && told != Some(at) {
                told = Some(at);
                let Some(bar) = self.cluster.mbarriers[self.rank].get(&at) else { continue };
                warp.clock.join(&bar.done);
                // What its lanes did before they arrived is over, as behind a barrier of the warp.
                warp.floor = warp.floor.max(bar.done.own[warp.index as usize] + 1);
            }
            // What one has found is so for all that ask the same.
            let who = warp.who(last as usize, run.pc, true);
            if one && lane == first && self.own().races.read_alike(at, 8, &who) {
                lanes(run.exec).for_each(|l| warp.beside.awaits[l] = at as u32);
                (over, again) = (if yes { run.exec } else { 0 }, if again != 0 { run.exec } else { 0 });
                break;
            }
        }
        if again == run.exec {
            return Ok(self.sleep(warp, run, run.exec));
        }
        warp.beside.failed = warp.beside.failed & !run.exec | run.exec & !over;
        warp.put_predicate(run.frame, p, run.exec, over, !0);
        Ok(Next::On)
    }

    fn phase_over(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        at: usize,
        phase: u64,
        parity: bool,
    ) -> Result<bool, Box<Fault>> {
        let Some(bar) = self.cluster.mbarriers[self.rank].get(&at) else { return Ok(false) };
        if parity {
            return Ok(u64::from(bar.phases - bar.base) & 1 != phase & 1);
        }
        let state = (phase >> 32) as u32;
        if bar.phases.wrapping_sub(state) > 1 {
            let what = format!(
                "mbarrier: waits by a state of {} phases ago, 1 at most",
                bar.phases.wrapping_sub(state)
            );
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        Ok(bar.phases != state)
    }

    /// The mbarrier that a bulk copy will signal: there, in the ranks of the destination, and known to the proxy.
    pub fn signals(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        address: u64,
        (ranks, multicast, proxied): (&[usize], bool, bool),
    ) -> Result<usize, Box<Fault>> {
        let (rank, at) = self.mbarrier_at(warp, run, lane, (Space::Cluster, false), address)?;
        if !multicast && ranks != [rank] {
            let what = format!("mbarrier: it is rank {rank}'s, the bytes go to rank {}", ranks[0]);
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        for rank in ranks {
            let address = mapped(at as u64, *rank as u32);
            self.mbarrier_at(warp, run, lane, (Space::Cluster, false), address)?;
            let init = self.cluster.shared[*rank].races.unfenced(at, 8, &warp.clock, Proxy::Mbarriers);
            if let Some(init) = init.filter(|_| proxied) {
                let what = format!(
                    "fence: the mbarrier at {}+{at} is invisible to the asynchronous proxy; \
                     fence.mbarrier_init.release.cluster is missing behind mbarrier.init",
                    self.cluster.shared[*rank].name
                );
                let fault = self.fault(Kind::Fence, warp, lane, run.inst, what);
                let mut fault = fault.and(format!("the mbarrier.init: {}", self.spelled(init)));
                // It is ordered before this: by a barrier, if not by the warp's own program.
                let barrier = init.time() < warp.floor || !init.within(&warp.who(lane, run.pc, true));
                fault.habit = (self.cluster.blocks.len() == 1 && barrier).then_some(Habit::InitAndBarrier);
                self.report(fault)?;
            }
        }
        Ok(at)
    }
}
