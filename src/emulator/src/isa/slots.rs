//! Which registers an instruction names.

use super::copy::{Bulk, End};
use super::mbarrier::{Mbar, What};
use super::op::{BarrierOp, ControlOp, CopyOp, GroupOp, MemoryOp, Op, RegisterOp, WarpOp};
use super::operand::{Barrier, NONE, Src, Vote};
use super::product::Left;
use std::slice::from_mut;

/// Told of a register, and whether it is written.
type Told<'a> = &'a mut dyn FnMut(&mut u32, bool);

impl Op {
    /// Calls `f` with every general register that it reads and, `true` and behind them, that it writes, so that they can
    /// be renamed. What `wgmma` holds, and beyond itself, is its own affair.
    pub fn slots(&mut self, f: Told<'_>) {
        match self {
            Op::Register(op) => op.reads(f),
            Op::Memory(op) => op.reads(f),
            Op::Copy(op) => op.reads(f),
            Op::Control(op) => op.reads(f),
            Op::Warp(op) => op.reads(f),
            Op::Barrier(op) => op.reads(f),
            Op::Fence(_) | Op::Group(_) => {}
        }
        self.targets().iter_mut().filter(|d| **d != NONE).for_each(|d| f(d, true));
    }

    /// The same with what `wgmma` names: its descriptors, and what it holds.
    pub fn names(&mut self, f: Told<'_>) {
        self.slots(f);
        let Op::Group(GroupOp::Wgmma(op)) = self else { return };
        match &mut op.a {
            Left::Shared(s) => read(s, f),
            Left::Registers(list) => read_all(list, f),
        }
        read(&mut op.b, f);
        op.d.iter_mut().for_each(|d| f(d, true));
    }

    /// The general registers that a `wgmma` holds until a wait covers it.
    pub fn held(&self) -> impl Iterator<Item = u32> {
        let op = if let Op::Group(GroupOp::Wgmma(op)) = self { Some(op) } else { None };
        op.into_iter().flat_map(|op| op.d.iter().copied().chain(op.left()))
    }

    /// The general registers that it writes.
    fn targets(&mut self) -> &mut [u32] {
        match self {
            Op::Register(op) => op.targets(),
            Op::Memory(MemoryOp::Ld { d, n, .. }) => &mut d[..*n as usize],
            Op::Memory(MemoryOp::Atom { d, .. }) => from_mut(d),
            Op::Memory(MemoryOp::St { .. }) => &mut [],
            Op::Warp(op) => op.targets(),
            Op::Barrier(op) => op.targets(),
            Op::Copy(_) | Op::Fence(_) | Op::Control(_) | Op::Group(_) => &mut [],
        }
    }
}

fn read_all(list: &mut [Src], f: Told<'_>) {
    list.iter_mut().for_each(|s| read(s, f));
}

impl RegisterOp {
    fn reads(&mut self, f: Told<'_>) {
        match self {
            RegisterOp::Alu { s, .. } | RegisterOp::Lop3 { s, .. } => read_all(s, f),
            RegisterOp::Bfi { s, .. } => read_all(s, f),
            RegisterOp::Carry { s, .. } | RegisterOp::Selp { s, .. } => read_all(s, f),
            RegisterOp::Setp { s, .. } | RegisterOp::Mapa { s, .. } => read_all(s, f),
            RegisterOp::Pack { s, n, .. } => read_all(&mut s[..*n as usize], f),
            RegisterOp::Unpack { s, .. } | RegisterOp::Rank { s, .. } => read(s, f),
            RegisterOp::Logic { .. } | RegisterOp::ActiveMask { .. } => {}
        }
    }

    fn targets(&mut self) -> &mut [u32] {
        match self {
            RegisterOp::Alu { d, .. } | RegisterOp::Lop3 { d, .. } | RegisterOp::Bfi { d, .. } => from_mut(d),
            RegisterOp::Carry { d, .. } | RegisterOp::Pack { d, .. } | RegisterOp::Selp { d, .. } => {
                from_mut(d)
            }
            RegisterOp::Mapa { d, .. } | RegisterOp::Rank { d, .. } | RegisterOp::ActiveMask { d } => {
                from_mut(d)
            }
            RegisterOp::Unpack { d, n, .. } => &mut d[..*n as usize],
            // They write predicates.
            RegisterOp::Setp { .. } | RegisterOp::Logic { .. } => &mut [],
        }
    }
}

impl MemoryOp {
    fn reads(&mut self, f: Told<'_>) {
        let addr = match self {
            MemoryOp::Ld { addr, .. } => addr,
            MemoryOp::St { s, n, addr, .. } => {
                read_all(&mut s[..*n as usize], f);
                addr
            }
            MemoryOp::Atom { s, addr, .. } => {
                read_all(s, f);
                addr
            }
        };
        read(&mut addr.base, f);
    }
}

impl CopyOp {
    fn reads(&mut self, f: Told<'_>) {
        match self {
            CopyOp::CpAsync { to, from, source, .. } => {
                [&mut to.base, &mut from.base].into_iter().chain(source).for_each(|s| read(s, f));
            }
            CopyOp::Bulk(bulk) => bulk.reads(f),
            CopyOp::Prefetch { from, size } => {
                from.reads(f);
                size.iter_mut().for_each(|s| read(s, f));
            }
            CopyOp::CpCommit | CopyOp::CpWait { .. } | CopyOp::BulkCommit | CopyOp::BulkWait { .. } => {}
        }
    }
}

impl ControlOp {
    fn reads(&mut self, f: Told<'_>) {
        match self {
            ControlOp::Brx { index, .. } => read(index, f),
            ControlOp::Bra { .. } | ControlOp::Call { .. } | ControlOp::Ret => {}
            ControlOp::Exit | ControlOp::Trap | ControlOp::GridWait | ControlOp::Nop => {}
        }
    }
}

impl WarpOp {
    fn reads(&mut self, f: Told<'_>) {
        match self {
            WarpOp::Shfl { s, mask, .. } => {
                read_all(s, f);
                read(mask, f);
            }
            WarpOp::Match { a, mask, .. } | WarpOp::Redux { a, mask, .. } => {
                read(a, f);
                read(mask, f);
            }
            WarpOp::Vote { mask, .. } | WarpOp::Elect { mask, .. } => read(mask, f),
            WarpOp::Ldmatrix { addr, .. } => read(&mut addr.base, f),
            WarpOp::Stmatrix { s, n, addr, .. } => {
                read_all(&mut s[..*n as usize], f);
                read(&mut addr.base, f);
            }
            WarpOp::Mma(mma) => [&mut mma.a, &mut mma.b, &mut mma.c].into_iter().for_each(|l| read_all(l, f)),
        }
    }

    fn targets(&mut self) -> &mut [u32] {
        match self {
            WarpOp::Shfl { d, .. } | WarpOp::Match { d, .. } | WarpOp::Redux { d, .. } => from_mut(d),
            WarpOp::Vote { mode: Vote::Ballot, d, .. } | WarpOp::Elect { d, .. } => from_mut(d),
            // They write a predicate.
            WarpOp::Vote { mode: Vote::All | Vote::Any | Vote::Uni, .. } => &mut [],
            WarpOp::Ldmatrix { d, n, .. } => &mut d[..*n as usize],
            WarpOp::Stmatrix { .. } => &mut [],
            WarpOp::Mma(mma) => &mut mma.d,
        }
    }
}

impl BarrierOp {
    fn reads(&mut self, f: Told<'_>) {
        match self {
            BarrierOp::WarpSync { mask } => read(mask, f),
            BarrierOp::Barrier { id, count, .. } => {
                [id].into_iter().chain(count).for_each(|s| read(s, f));
            }
            BarrierOp::Mbarrier(bar) => bar.reads(f),
            BarrierOp::ClusterBarrier { .. } => {}
        }
    }

    fn targets(&mut self) -> &mut [u32] {
        match self {
            BarrierOp::Barrier { kind: Barrier::RedPopc, d, .. } => from_mut(d),
            // They write a predicate, or nothing.
            BarrierOp::Barrier { kind: Barrier::RedAnd | Barrier::RedOr, .. } => &mut [],
            BarrierOp::Barrier { kind: Barrier::Sync | Barrier::Arrive, .. } => &mut [],
            BarrierOp::Mbarrier(bar) => match &mut bar.what {
                What::Arrive { d, .. } => from_mut(d),
                What::Init { .. } | What::Inval | What::Expect { .. } | What::Complete { .. } => &mut [],
                What::Wait { .. } | What::Copies { .. } => &mut [],
            },
            BarrierOp::WarpSync { .. } | BarrierOp::ClusterBarrier { .. } => &mut [],
        }
    }
}

fn read(s: &mut Src, f: Told<'_>) {
    if let Src::Reg(r) = s {
        f(r, false);
    }
}

impl Mbar {
    fn reads(&mut self, f: Told<'_>) {
        read(&mut self.addr.base, f);
        match &mut self.what {
            What::Init { count: s } | What::Expect { tx: s } | What::Complete { tx: s } => read(s, f),
            What::Wait { phase, .. } => read(phase, f),
            What::Arrive { count, tx, .. } => count.iter_mut().chain(tx).for_each(|s| read(s, f)),
            What::Inval | What::Copies { .. } => {}
        }
    }
}

impl End {
    fn reads(&mut self, f: Told<'_>) {
        match self {
            End::Global(addr) | End::Shared(addr) => read(&mut addr.base, f),
            End::Box(addr, list) => {
                read(&mut addr.base, f);
                list.iter_mut().for_each(|s| read(s, f));
            }
            End::Registers(list, _) => list.iter_mut().for_each(|s| read(s, f)),
        }
    }
}

impl Bulk {
    fn reads(&mut self, f: Told<'_>) {
        for end in [&mut self.from, &mut self.to] {
            end.reads(f);
        }
        let rest =
            self.size.iter_mut().chain(self.mbarrier.as_mut().map(|m| &mut m.base)).chain(&mut self.mask);
        rest.for_each(|s| read(s, f));
    }
}
