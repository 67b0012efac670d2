//! One instruction for the lanes of a group.

use super::context::{Context, Next, Run};
use super::fence::fence_op;
use crate::isa::module::Inst;
use crate::isa::op::{BarrierOp, ControlOp, GroupOp, Op, WarpOp};
use crate::isa::operand::Pred;
use crate::machine::frame::Group;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// Runs a warp for about `turn` instructions, or until it can do no more; gives the number.
    pub fn turn(&mut self, warp: &mut Warp, turn: u64) -> Result<u64, Box<Fault>> {
        let mut used = 0;
        while used < turn {
            let Some(group) = warp.choose() else { break };
            used += self.group(warp, &group, turn - used)?;
        }
        Ok(used)
    }

    fn group(&mut self, warp: &mut Warp, group: &Group, turn: u64) -> Result<u64, Box<Fault>> {
        let (module, frame, mask) = (self.module, &group.frame, group.mask);
        let (mut pc, mut used) = (group.pc, 0);
        let alone = group.mask == warp.live & !warp.parked & !warp.waiting;
        loop {
            let inst = &module.insts[pc as usize];
            if inst.joins && !warp.partings.is_empty() {
                warp.join(mask, pc);
            }
            let exec = match inst.guard {
                None => mask,
                Some((p, not)) => {
                    let (value, known) = warp.predicate(frame, Pred::Reg(p, not));
                    if mask & !known != 0 {
                        let lane = (mask & !known).trailing_zeros() as usize;
                        let what = "uninitialised: it depends on a predicate that nothing has written";
                        self.report(self.fault(Kind::Uninitialised, warp, lane, inst, what))?;
                    }
                    value & mask
                }
            };
            used += 1;
            let count = &mut self.counts[pc as usize];
            count.issued += 1;
            count.lanes += u64::from(exec.count_ones());
            let next = if exec != 0 && exec != mask && splits(&inst.op) {
                warp.part((pc, pc + 1), exec, mask);
                warp.go(exec, pc);
                warp.go(mask & !exec, pc + 1);
                Next::Again
            } else if exec == 0 {
                Next::On
            } else {
                if !inst.shares.is_empty() {
                    self.touch(warp, &Run { frame, inst, pc, exec })?;
                }
                match self.step(warp, &Run { frame, inst, pc, exec }, mask) {
                    // What it would have done is left out.
                    Err(fault) if passes(&inst.op) => self.report(fault).map(|()| Next::On)?,
                    next => next?,
                }
            };
            match next {
                Next::On => pc += 1,
                Next::To(to) => {
                    warp.impatience += u32::from(to <= pc && !alone);
                    pc = to;
                }
                Next::Again => return Ok(used),
            }
            if pc >= group.stop || used >= turn || warp.impatience >= 64 {
                warp.go(mask, pc);
                return Ok(used);
            }
        }
    }

    fn step(&mut self, warp: &mut Warp, run: &Run<'_>, mask: u32) -> Result<Next, Box<Fault>> {
        match &run.inst.op {
            Op::Register(op) => self.register_op(warp, run, mask, op),
            Op::Memory(op) => self.memory_op(warp, run, op)?,
            Op::Copy(op) => self.copy_op(warp, run, op)?,
            Op::Fence(op) => {
                if op.aligned() && !self.aligned(warp, run)? {
                    return Ok(Next::Again);
                }
                fence_op(warp, op);
                if op.aligned() && warp.live != mask {
                    warp.go(warp.live, run.pc + 1);
                    return Ok(Next::Again);
                }
            }
            Op::Control(op) => return self.control_op(warp, run, mask, op),
            Op::Warp(op) => return self.warp_op(warp, run, mask, op),
            Op::Barrier(op) => return self.barrier_op(warp, run, op),
            Op::Group(_) => return self.come(warp, run),
        }
        Ok(Next::On)
    }
}

/// Instructions behind which lanes can go on where one of them has gone wrong.
fn passes(op: &Op) -> bool {
    match op {
        Op::Memory(_) | Op::Copy(_) => true,
        Op::Register(_) | Op::Fence(_) | Op::Control(_) => false,
        Op::Warp(_) | Op::Barrier(_) | Op::Group(_) => false,
    }
}

/// Instructions for which the lanes that do not run them go on alone.
fn splits(op: &Op) -> bool {
    match op {
        Op::Control(op) => !matches!(op, ControlOp::Bra { .. } | ControlOp::GridWait | ControlOp::Nop),
        Op::Warp(_) | Op::Barrier(_) | Op::Group(_) => true,
        Op::Fence(op) => op.aligned(),
        Op::Register(_) | Op::Memory(_) | Op::Copy(_) => false,
    }
}

/// The instruction's text cannot be had any more; its kind is enough for a message.
pub fn waits_at(inst: &Inst) -> &'static str {
    match &inst.op {
        Op::Barrier(BarrierOp::Barrier { .. }) => "a barrier of the block",
        Op::Barrier(BarrierOp::ClusterBarrier { .. }) => "the cluster's barrier",
        Op::Barrier(BarrierOp::WarpSync { .. }) => "a barrier of the warp",
        Op::Warp(WarpOp::Shfl { .. }) => "a shuffle",
        Op::Warp(WarpOp::Mma(_) | WarpOp::Ldmatrix { .. } | WarpOp::Stmatrix { .. }) => {
            "a matrix instruction"
        }
        Op::Group(GroupOp::Wgmma(_)) => "a wgmma of the whole warpgroup",
        Op::Group(GroupOp::WgmmaWait { .. }) => "wgmma.wait_group",
        Op::Group(GroupOp::SetRegisters { .. }) => {
            "setmaxnreg of the whole warpgroup, for registers of the block's pool,"
        }
        _ => "an instruction of the whole warp",
    }
}
