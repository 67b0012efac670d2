//! One instruction for the lanes of a group.

use super::context::{Context, Next, Run};
use super::registers::{flush, logic};
use crate::isa::module::Inst;
use crate::isa::op::{Flush, Ftz, Op};
use crate::isa::operand::{LANES, Pred};
use crate::machine::frame::Group;
use crate::machine::warp::{Warp, lanes};
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
            let exec = match inst.guard {
                None => mask,
                Some((p, not)) => {
                    let (value, known) = warp.predicate(frame, Pred::Reg(p, not));
                    if mask & !known != 0 {
                        let lane = (mask & !known).trailing_zeros() as usize;
                        return Err(self.fault(
                            Kind::Uninitialised,
                            warp,
                            lane,
                            inst,
                            "uninitialised: it depends on a predicate that nothing has written",
                        ));
                    }
                    value & mask
                }
            };
            used += 1;
            let count = &mut self.counts[pc as usize];
            count.issued += 1;
            count.lanes += u64::from(exec.count_ones());
            let next = if exec != 0 && exec != mask && splits(&inst.op) {
                warp.go(exec, pc);
                warp.go(mask & !exec, pc + 1);
                Next::Again
            } else if exec == 0 {
                Next::On
            } else {
                if !inst.shares.is_empty() {
                    self.touch(warp, &Run { frame, inst, pc, exec })?;
                }
                self.step(warp, &Run { frame, inst, pc, exec }, mask)?
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
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        match &run.inst.op {
            Op::Alu { f, d, s, n, ftz: Ftz::NONE, sat: false } => {
                let mut o = [0; LANES];
                let known = s[..*n as usize].iter().fold(!0, |k, s| k & warp.known(frame, *s));
                f(
                    warp.look(frame, s[0], consts),
                    warp.look(frame, s[1], consts),
                    warp.look(frame, s[2], consts),
                    &mut o,
                );
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Bra { to } if exec == mask => return Ok(Next::To(*to)),
            Op::Bra { to } => {
                warp.go(exec, *to);
                warp.go(mask & !exec, run.pc + 1);
                return Ok(Next::Again);
            }
            Op::Setp { f, p, q, s, combine, ftz } => {
                let known = warp.known(frame, s[0]) & warp.known(frame, s[1]);
                let [a, b] = s.map(|s| warp.look(frame, s, consts));
                let value = match ftz {
                    Flush::None => f(a, b),
                    of => f(&flush(*of, a), &flush(*of, b)),
                };
                let (other, other_known) = combine.map_or((!0, !0), |(_, c)| warp.predicate(frame, c));
                let with = |v: u32| match combine {
                    None => v,
                    Some((l, _)) => logic(*l, v, other),
                };
                warp.put_predicate(frame, *p, exec, with(value), known & other_known);
                warp.put_predicate(frame, *q, exec, with(!value), known & other_known);
            }
            Op::Ld { space, ty, d, n, addr, order } => {
                self.load(warp, run, *space, *ty, &d[..*n as usize], addr, *order)?;
            }
            Op::St { space, ty, s, n, addr, order } => {
                self.store(warp, run, *space, *ty, &s[..*n as usize], addr, *order)?;
            }
            Op::Atom { space, ty, f, d, addr, s, order } => {
                self.atomic(warp, run, *space, *ty, *f, *d, addr, s, *order)?;
            }
            Op::CpAsync { to, from, size, source } => {
                self.copy_async(warp, run, to, from, *size as usize, *source)?;
            }
            Op::CpCommit => lanes(exec).for_each(|l| warp.copies[l].commit()),
            Op::Bulk(op) => self.bulk(warp, run, op)?,
            Op::BulkCommit => lanes(exec).for_each(|l| warp.beside.bulk[l].commit()),
            Op::BulkWait { pending, read } => self.bulk_wait(warp, run, *pending as usize, *read),
            Op::CpWait { pending, all } => {
                lanes(exec).filter(|_| *all).for_each(|l| warp.copies[l].commit());
                self.copy_wait(warp, run, *pending as usize)?;
            }
            Op::WgmmaFence => warp.products.fence(),
            Op::WgmmaCommit => warp.products.commit(),
            op if splits(op) => return self.meet(warp, run, mask),
            _ => self.plain(warp, run, mask),
        }
        Ok(Next::On)
    }
}

/// Instructions for which the lanes that do not run them go on alone.
fn splits(op: &Op) -> bool {
    let parts = matches!(op, Op::Brx { .. } | Op::Call { .. } | Op::Ret | Op::Exit | Op::Trap);
    let warp = matches!(op, Op::Shfl { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. });
    let waits = matches!(op, Op::Barrier { .. } | Op::ClusterBarrier { .. } | Op::WarpSync { .. });
    let waits = waits || matches!(op, Op::Mbarrier(_) | Op::Ldmatrix { .. } | Op::Mma(_));
    let group = matches!(op, Op::Wgmma(_) | Op::WgmmaWait { .. } | Op::SetRegisters { .. });
    parts || warp || waits || group || matches!(op, Op::Stmatrix { .. } | Op::Elect { .. })
}

/// The instruction's text cannot be had any more; its kind is enough for a message.
pub fn waits_at(inst: &Inst) -> &'static str {
    match inst.op {
        Op::Barrier { .. } => "a barrier of the block",
        Op::ClusterBarrier { .. } => "the cluster's barrier",
        Op::WarpSync { .. } => "a barrier of the warp",
        Op::Shfl { .. } => "a shuffle",
        Op::Mma(_) | Op::Ldmatrix { .. } | Op::Stmatrix { .. } => "a matrix instruction",
        Op::Wgmma(_) => "a wgmma of the whole warpgroup",
        Op::WgmmaWait { .. } => "wgmma.wait_group",
        Op::SetRegisters { .. } => "setmaxnreg of the whole warpgroup, for registers of the block's pool,",
        _ => "an instruction of the whole warp",
    }
}
