//! What NVIDIA's own headers and samples do though the ISA does not allow it: see [`Habit`].

use super::context::Context;
use crate::isa::op::{MemoryOp, Op};
use crate::isa::operand::{Rmw, Src};
use crate::machine::clock::Touch;
use crate::machine::flight::Where;
use crate::machine::warp::Warp;
use crate::report::finding::Habit;
use std::collections::HashSet;

impl Context<'_> {
    /// The habit that a race of instruction `pc` with another access is.
    pub fn habit(&self, warp: &Warp, pc: u32, place: Where, other: Touch) -> Option<Habit> {
        let (block, thread) = other.by().ok()?;
        if self.first_read(pc, other.pc()) || self.first_read(other.pc(), pc) {
            return Some(Habit::FirstRead);
        }
        // The flag itself is the first thing behind the fence.
        let flag = matches!(self.module.insts[other.pc() as usize].op, Op::Memory(MemoryOp::Atom { .. }));
        let seen = |time: u32| other.time() <= time + u32::from(flag);
        let known = warp.flags.as_ref().map(|flags| flags.thread(block, thread));
        let elsewhere = block != warp.clock.block && matches!(place, Where::Global(_));
        (elsewhere && known.is_some_and(|time| time > 0 && seen(time))).then_some(Habit::LastBlock)
    }

    /// Whether `read` is a plain read, `cas` is an `atom.cas` of as many bytes, and such a one compares with what was read.
    fn first_read(&self, read: u32, cas: u32) -> bool {
        let Op::Memory(MemoryOp::Ld { ty, d, n: 1, order, .. }) = &self.module.insts[read as usize].op else {
            return false;
        };
        let cas_of = |op: &Op| {
            let Op::Memory(MemoryOp::Atom { ty: wide, f: Rmw::Cas, s, .. }) = op else { return None };
            (wide.size() == ty.size()).then_some(s[0])
        };
        if order.strong || cas_of(&self.module.insts[cas as usize].op).is_none() {
            return false;
        }
        let function = self.module.functions.iter().find(|f| (f.start..f.end).contains(&read));
        let rest = function.map_or(0..0, |f| read as usize + 1..f.end as usize);
        // Registers that hold it, or what was made of it.
        let mut held = HashSet::from([d[0]]);
        for inst in &self.module.insts[rest] {
            if let Some(Src::Reg(compared)) = cas_of(&inst.op)
                && held.contains(&compared)
            {
                return true;
            }
            let mut takes = false;
            inst.op.clone().slots(&mut |register, written| match written {
                false => takes |= held.contains(register),
                true if takes => drop(held.insert(*register)),
                true if inst.guard.is_none() => drop(held.remove(register)),
                true => {}
            });
        }
        false
    }
}
