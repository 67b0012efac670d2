//! The cluster's barrier, and lanes that sleep until something happens.

use super::context::{Context, Next, Run};
use crate::machine::clock::Clock;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
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
    pub fn cluster_barrier(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        wait: bool,
        aligned: bool,
        relaxed: bool,
    ) -> Result<Next, Box<Fault>> {
        warp.go(run.exec, run.pc);
        if aligned && !self.aligned(warp, run)? {
            return Ok(Next::Again);
        }
        let here = if aligned { warp.live } else { run.exec };
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
