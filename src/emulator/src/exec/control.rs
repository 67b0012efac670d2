//! Branches, calls and the end: where lanes part.

use super::context::{Context, Next, Run};
use crate::isa::op::Op;
use crate::machine::warp::{Warp, lanes};
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    pub fn call(&mut self, warp: &mut Warp, run: &Run<'_>) -> Result<Next, Box<Fault>> {
        let Op::Call { function, args, .. } = &run.inst.op else { return Ok(Next::On) };
        let (to, from) =
            (&self.module.functions[*function as usize], &self.module.functions[run.frame.function as usize]);
        let lane = run.exec.trailing_zeros() as usize;
        if to.start == to.end {
            let what = format!("call of {}, which this file only declares", to.name);
            return Err(self.fault(Kind::Trap, warp, lane, run.inst, what));
        }
        if !warp.enter(run.exec, Some((*run.frame, from)), *function, to, run.pc + 1) {
            return Err(self.fault(Kind::Trap, warp, lane, run.inst, "calls nest too deep"));
        }
        for lane in lanes(run.exec) {
            let base = warp.frames[lane].last().map_or(0, |f| f.param);
            for (ours, theirs, size) in args {
                let from = (run.frame.param + ours) as usize;
                warp.param[lane].copy_within(from..from + *size as usize, (base + theirs) as usize);
            }
        }
        Ok(Next::Again)
    }

    pub fn leave(&mut self, warp: &mut Warp, run: &Run<'_>, exit: bool) -> Next {
        for lane in lanes(run.exec) {
            warp.frames[lane].pop();
            let caller = if exit { None } else { warp.frames[lane].last().copied() };
            let Some(caller) = caller else {
                warp.live &= !(1 << lane);
                // Whoever waits for this lane must look again.
                warp.parked = 0;
                continue;
            };
            warp.pc[lane] = run.frame.back;
            if let Op::Call { results, .. } = &self.module.insts[run.frame.back as usize - 1].op {
                for (ours, theirs, size) in results {
                    let from = (run.frame.param + theirs) as usize;
                    warp.param[lane].copy_within(from..from + *size as usize, (caller.param + ours) as usize);
                }
            }
        }
        Next::Again
    }
}
