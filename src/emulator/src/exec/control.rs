//! Branches, calls and the end: where lanes part.

use super::context::{Context, Next, Run};
use crate::isa::op::{ControlOp, Op};
use crate::isa::operand::{Src, lanes};
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// Runs one for its lanes, of those of `mask` that are at it.
    #[inline]
    pub fn control_op(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        mask: u32,
        op: &ControlOp,
    ) -> Result<Next, Box<Fault>> {
        match op {
            ControlOp::Bra { to } if run.exec == mask => Ok(Next::To(*to)),
            ControlOp::Bra { to } => {
                warp.part((run.pc, run.inst.join), run.exec, mask);
                warp.go(run.exec, *to);
                warp.go(mask & !run.exec, run.pc + 1);
                Ok(Next::Again)
            }
            ControlOp::Brx { table, index } => self.branch(warp, run, *table, *index),
            ControlOp::Call { function, args, .. } => self.call(warp, run, *function, args),
            ControlOp::Ret => Ok(self.leave(warp, run, false)),
            ControlOp::Exit => Ok(self.leave(warp, run, true)),
            ControlOp::Trap => {
                let lane = run.exec.trailing_zeros() as usize;
                Err(self.fault(Kind::Trap, warp, lane, run.inst, "the kernel trapped"))
            }
            ControlOp::GridWait => {
                if self.before.is_some() {
                    self.predecessor_ends(warp, run);
                }
                Ok(Next::On)
            }
            ControlOp::Nop => Ok(Next::On),
        }
    }

    /// `brx.idx`
    fn branch(&self, warp: &mut Warp, run: &Run<'_>, table: u32, index: Src) -> Result<Next, Box<Fault>> {
        self.known(warp, run, &[index], "the number of its target is")?;
        let (targets, index) =
            (&self.module.tables[table as usize], warp.get(run.frame, index, &self.module.consts));
        for lane in lanes(run.exec) {
            let Some(to) = targets.get(index[lane] as u32 as usize) else {
                let what = format!("branch {} of a table of {}", index[lane], targets.len());
                return Err(self.fault(Kind::Trap, warp, lane, run.inst, what));
            };
            warp.pc[lane] = *to;
        }
        let mut rest = run.exec;
        while rest != 0 {
            let first = warp.pc[rest.trailing_zeros() as usize];
            let some = lanes(rest).filter(|l| warp.pc[*l] == first).fold(0, |m, l| m | 1 << l);
            if some != rest {
                warp.part((run.pc, run.inst.join), some, rest);
            }
            rest &= !some;
        }
        warp.impatience += 1;
        Ok(Next::Again)
    }

    fn call(
        &self,
        warp: &mut Warp,
        run: &Run<'_>,
        function: u32,
        args: &[(u32, u32, u32)],
    ) -> Result<Next, Box<Fault>> {
        let (to, from) =
            (&self.module.functions[function as usize], &self.module.functions[run.frame.function as usize]);
        let lane = run.exec.trailing_zeros() as usize;
        if to.start == to.end && to.name == "__assertfail" {
            return Err(self.failed_assert(warp, run, lane, args));
        }
        if to.start == to.end {
            let what = format!("call of {}, which this file only declares", to.name);
            return Err(self.fault(Kind::Trap, warp, lane, run.inst, what));
        }
        if !warp.enter(run.exec, Some((*run.frame, from)), function, to, run.pc + 1) {
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

    /// `assert`, which the compiler makes a call of: condition, file, line, function, bytes of a character.
    fn failed_assert(&self, warp: &Warp, run: &Run<'_>, lane: usize, args: &[(u32, u32, u32)]) -> Box<Fault> {
        let value = |i: usize| {
            let (from, _, size) = *args.get(i)?;
            let bytes = warp.param[lane].get((run.frame.param + from) as usize..)?.get(..size as usize)?;
            Some(bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
        };
        let text = |i: usize| {
            let (region, at) = self.memory.find(value(i)?)?;
            let bytes = self.memory.regions[region].data.get(usize::try_from(at).ok()?..)?;
            let end = bytes.iter().position(|b| *b == 0)?;
            Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
        };
        let [condition, file, function] = [0, 1, 3].map(|i| text(i).unwrap_or_else(|| "?".into()));
        let line = value(2).unwrap_or(0);
        let what = format!("assert: `{condition}` has failed, {file}:{line}, in {function}");
        self.fault(Kind::Assert, warp, lane, run.inst, what)
    }

    fn leave(&self, warp: &mut Warp, run: &Run<'_>, exit: bool) -> Next {
        warp.share_waits();
        for lane in lanes(run.exec) {
            warp.frames[lane].pop();
            let caller = if exit { None } else { warp.frames[lane].last().copied() };
            let Some(caller) = caller else {
                warp.live &= !(1 << lane);
                // Whoever waits for this lane must look again.
                warp.parked = 0;
                continue;
            };
            warp.partings.leave(lane, warp.frames[lane].len());
            warp.pc[lane] = run.frame.back;
            if let Op::Control(ControlOp::Call { results, .. }) =
                &self.module.insts[run.frame.back as usize - 1].op
            {
                for (ours, theirs, size) in results {
                    let from = (run.frame.param + theirs) as usize;
                    warp.param[lane].copy_within(from..from + *size as usize, (caller.param + ours) as usize);
                }
            }
        }
        Next::Again
    }
}
