//! The four warps of a warpgroup: where they meet, and the registers that they pass to one another.
//!
//! They meet at `wgmma.mma_async` and at `setmaxnreg`; no order of their other accesses follows from that.

use super::context::{Context, Done, Next, Run};
use crate::isa::module::Inst;
use crate::isa::op::{GroupOp, Op};
use crate::isa::operand::{LANES, Pred, Src};
use crate::machine::frame::Frame;
use crate::machine::warp::Warp;
use crate::machine::warpgroup::{GROUP, Warpgroup};
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// A warp comes to an instruction of its warpgroup.
    pub fn come(&mut self, warp: &mut Warp, run: &Run<'_>) -> Result<Next, Box<Fault>> {
        warp.go(run.exec, run.pc);
        if !self.aligned(warp, run)? {
            return Ok(Next::Again);
        }
        let here = warp.live;
        let lane = here.trailing_zeros() as usize;
        if here != !0 {
            let what = format!("{} with {} of 32 lanes", name(run.inst), here.count_ones());
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        warp.waiting = here;
        self.warpgroups[warp.index as usize / GROUP].come.push((warp.index as usize, run.pc, *run.frame));
        Ok(Next::Again)
    }

    /// Whatever a warpgroup's warps have come for, once they are all there.
    pub fn warpgroup(&mut self, g: usize, warps: &mut [Warp]) -> Done {
        let mut group = std::mem::take(&mut self.warpgroups[g]);
        for i in (0..group.come.len()).rev() {
            let (w, pc, _) = group.come[i];
            if let Op::Group(GroupOp::WgmmaWait { pending }) = self.module.insts[pc as usize].op {
                group.come.remove(i);
                self.finish(&mut group, warps, w % GROUP, pending);
            }
        }
        let mut done = Ok(());
        if let Some((w, pc, _)) = group.come.first().copied() {
            done = match self.absent(&group, warps, g, w % GROUP, pc) {
                Ok(true) => self.meet_all(&mut group, warps, pc),
                Ok(false) => Ok(()),
                Err(fault) => Err(fault),
            };
        }
        self.warpgroups[g] = group;
        done
    }

    /// Whether all four are there; an error if they never will be.
    fn absent(
        &self,
        group: &Warpgroup,
        warps: &[Warp],
        g: usize,
        w: usize,
        pc: u32,
    ) -> Result<bool, Box<Fault>> {
        let inst = &self.module.insts[pc as usize];
        let wrong = |what: String| Err(self.fault(Kind::Barrier, &warps[w], 0, inst, what));
        if warps.len() < GROUP {
            let there = GROUP * g + warps.len();
            return wrong(format!(
                "{} of warpgroup {g}, whose four warps are not there: the block has {there}",
                name(inst)
            ));
        }
        if let Some(gone) = warps.iter().find(|w| w.live == 0) {
            return wrong(format!(
                "{} that warp {} of the warpgroup never comes to: it has exited",
                name(inst),
                gone.index
            ));
        }
        if let Some((w, other, _)) = group.come.iter().find(|c| c.1 != pc) {
            let what = format!("{}, while warp {w} of the same warpgroup is elsewhere", name(inst));
            let other = &self.module.insts[*other as usize];
            let fault = self.fault(Kind::Barrier, &warps[w % GROUP], 0, inst, what);
            return Err(fault.and(format!("warp {w} is at {}, {}", name(other), self.module.place(other))));
        }
        Ok(group.come.len() == GROUP)
    }

    fn meet_all(&mut self, group: &mut Warpgroup, warps: &mut [Warp], pc: u32) -> Done {
        let inst = &self.module.insts[pc as usize];
        let Op::Group(op) = &inst.op else {
            let what = "a warpgroup has come to what its warps do each for themselves";
            return Err(self.fault(Kind::Trap, &warps[0], 0, inst, what));
        };
        match op {
            GroupOp::Wgmma(op) => self.begin(group, warps, pc, op)?,
            GroupOp::SetRegisters { count, more } => {
                if !self.resize(group, &warps[0], inst, *count, *more)? {
                    return Ok(());
                }
            }
            // Each warp is let go by itself.
            GroupOp::WgmmaWait { .. } => {}
        }
        for (w, ..) in group.come.drain(..) {
            warps[w % GROUP].waiting = 0;
            warps[w % GROUP].go(!0, pc + 1);
        }
        Ok(())
    }

    /// A value that all threads of the warpgroup must share.
    pub fn shared_value(
        &self,
        warps: &[Warp],
        frames: &[Frame; GROUP],
        inst: &Inst,
        s: Src,
        what: &str,
    ) -> Result<u64, Box<Fault>> {
        let first = warps[0].look(&frames[0], s, &self.module.consts)[0];
        for (warp, frame) in warps.iter().zip(frames) {
            let unknown = !warp.known(frame, s);
            if unknown != 0 {
                let lane = unknown.trailing_zeros() as usize;
                let text = format!("uninitialised: {what} is a register that nothing has written");
                return Err(self.fault(Kind::Uninitialised, warp, lane, inst, text));
            }
            let values = warp.look(frame, s, &self.module.consts);
            if let Some(lane) = values.iter().position(|v| *v != first) {
                let text = format!(
                    "{what} is {:#x} here and {first:#x} in the warpgroup's first thread",
                    values[lane]
                );
                return Err(self.fault(Kind::Warpgroup, warp, lane, inst, text));
            }
        }
        Ok(first)
    }

    pub fn scale(
        &self,
        warps: &[Warp],
        frames: &[Frame; GROUP],
        inst: &Inst,
        p: Pred,
    ) -> Result<bool, Box<Fault>> {
        let first = warps[0].predicate(&frames[0], p).0 & 1;
        for (warp, frame) in warps.iter().zip(frames) {
            let (value, known) = warp.predicate(frame, p);
            if known != !0 {
                let what = "uninitialised: scale-d is a predicate that nothing has written";
                return Err(self.fault(
                    Kind::Uninitialised,
                    warp,
                    known.trailing_ones() as usize,
                    inst,
                    what,
                ));
            }
            let odd = value ^ first.wrapping_neg();
            if odd != 0 {
                let what = "scale-d differs from that of the warpgroup's first thread";
                return Err(self.fault(Kind::Warpgroup, warp, odd.trailing_zeros() as usize, inst, what));
            }
        }
        Ok(first == 1)
    }

    /// `setmaxnreg`: whether the pool has what is asked for.
    fn resize(
        &mut self,
        group: &mut Warpgroup,
        warp: &Warp,
        inst: &Inst,
        count: u32,
        more: bool,
    ) -> Result<bool, Box<Fault>> {
        let had = group.registers;
        let wrong = |what: String| Err(self.fault(Kind::Warpgroup, warp, 0, inst, what));
        if had == 0 {
            return wrong(
                "setmaxnreg in a kernel whose registers are not bounded: .maxnreg or .maxntid is needed"
                    .into(),
            );
        }
        if more && count < had || !more && count > had {
            let act = if more { "raises" } else { "lowers" };
            return wrong(format!("setmaxnreg {act} {had} registers to {count}"));
        }
        if count > had && (count - had) * (GROUP * LANES) as u32 > self.spare {
            return Ok(false);
        }
        group.registers = count;
        Ok(true)
    }
}

/// As a message calls it.
pub fn name(inst: &Inst) -> &'static str {
    match inst.op {
        Op::Group(GroupOp::SetRegisters { .. }) => "setmaxnreg",
        Op::Group(GroupOp::WgmmaWait { .. }) => "wgmma.wait_group",
        _ => "a wgmma",
    }
}
