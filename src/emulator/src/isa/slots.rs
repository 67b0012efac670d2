//! Which registers an instruction names.

use super::copy::{Bulk, End};
use super::mbarrier::{Mbar, What};
use super::op::Op;
use super::operand::{Barrier, NONE, Src, Vote};
use std::slice::from_mut;

impl Op {
    /// Calls `f` with every general register that it reads and, `true` and behind them, that it writes, so that they can
    /// be renamed. What `wgmma` holds, and beyond itself, is its own affair.
    pub fn slots(&mut self, f: &mut dyn FnMut(&mut u32, bool)) {
        let mut reads = |list: &mut [Src]| list.iter_mut().for_each(|s| read(s, f));
        match self {
            Op::Alu { s, .. } | Op::Lop3 { s, .. } | Op::Shfl { s, .. } => reads(s),
            Op::Bfi { s, .. } => reads(s),
            Op::Carry { s, .. } | Op::Selp { s, .. } | Op::Setp { s, .. } | Op::Mapa { s, .. } => reads(s),
            Op::Pack { s, n, .. } => reads(&mut s[..*n as usize]),
            Op::Unpack { s, .. } | Op::Rank { s, .. } | Op::Brx { index: s, .. } => read(s, f),
            Op::Ld { addr, .. } | Op::Ldmatrix { addr, .. } => read(&mut addr.base, f),
            Op::St { s, n, addr, .. } | Op::Stmatrix { s, n, addr, .. } => {
                reads(&mut s[..*n as usize]);
                read(&mut addr.base, f);
            }
            Op::Atom { s, addr, .. } => {
                reads(s);
                read(&mut addr.base, f);
            }
            Op::Barrier { id, count, .. } => [id].into_iter().chain(count).for_each(|s| read(s, f)),
            Op::Match { a, .. } | Op::Redux { a, .. } => read(a, f),
            Op::CpAsync { to, from, source, .. } => {
                [&mut to.base, &mut from.base].into_iter().chain(source).for_each(|s| read(s, f));
            }
            Op::Mma(mma) => [&mut mma.a, &mut mma.b, &mut mma.c].into_iter().for_each(|l| reads(l)),
            Op::Mbarrier(bar) => bar.reads(f),
            Op::Bulk(bulk) => bulk.reads(f),
            Op::WarpSync { .. } | Op::Vote { .. } | Op::Elect { .. } | Op::ActiveMask { .. } => {}
            Op::Logic { .. } | Op::Bra { .. } | Op::Call { .. } | Op::Ret | Op::Exit | Op::Trap | Op::Nop => {
            }
            Op::BulkCommit | Op::BulkWait { .. } | Op::ProxyFence { .. } | Op::ClusterBarrier { .. } => {}
            Op::Fence | Op::CpCommit | Op::CpWait { .. } | Op::SetRegisters { .. } => {}
            Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait { .. } => {}
        }
        if let Op::WarpSync { mask }
        | Op::Shfl { mask, .. }
        | Op::Vote { mask, .. }
        | Op::Match { mask, .. }
        | Op::Redux { mask, .. }
        | Op::Elect { mask, .. } = self
        {
            read(mask, f);
        }
        self.targets().iter_mut().filter(|d| **d != NONE).for_each(|d| f(d, true));
    }

    /// The general registers that it writes.
    fn targets(&mut self) -> &mut [u32] {
        match self {
            Op::Alu { d, .. } | Op::Lop3 { d, .. } | Op::Bfi { d, .. } | Op::Carry { d, .. } => from_mut(d),
            Op::Pack { d, .. } | Op::Selp { d, .. } | Op::Mapa { d, .. } | Op::Rank { d, .. } => from_mut(d),
            Op::Shfl { d, .. } | Op::Match { d, .. } | Op::Redux { d, .. } | Op::Atom { d, .. } => {
                from_mut(d)
            }
            Op::ActiveMask { d } | Op::Elect { d, .. } => from_mut(d),
            // Their others write predicates.
            Op::Vote { mode: Vote::Ballot, d, .. } | Op::Barrier { kind: Barrier::RedPopc, d, .. } => {
                from_mut(d)
            }
            Op::Ld { d, n, .. } | Op::Ldmatrix { d, n, .. } | Op::Unpack { d, n, .. } => {
                &mut d[..*n as usize]
            }
            Op::Mma(mma) => &mut mma.d,
            Op::Mbarrier(bar) => match &mut bar.what {
                What::Arrive { d, .. } => from_mut(d),
                _ => &mut [],
            },
            _ => &mut [],
        }
    }
}

fn read(s: &mut Src, f: &mut dyn FnMut(&mut u32, bool)) {
    if let Src::Reg(r) = s {
        f(r, false);
    }
}

impl Mbar {
    fn reads(&mut self, f: &mut dyn FnMut(&mut u32, bool)) {
        read(&mut self.addr.base, f);
        match &mut self.what {
            What::Init { count: s } | What::Expect { tx: s } | What::Complete { tx: s } => read(s, f),
            What::Wait { phase, .. } => read(phase, f),
            What::Arrive { count, tx, .. } => count.iter_mut().chain(tx).for_each(|s| read(s, f)),
            What::Inval | What::Copies { .. } => {}
        }
    }
}

impl Bulk {
    fn reads(&mut self, f: &mut dyn FnMut(&mut u32, bool)) {
        for end in [&mut self.from, &mut self.to] {
            match end {
                End::Global(addr) | End::Shared(addr) => read(&mut addr.base, f),
                End::Box(addr, list) => {
                    read(&mut addr.base, f);
                    list.iter_mut().for_each(|s| read(s, f));
                }
                End::Registers(list, _) => list.iter_mut().for_each(|s| read(s, f)),
            }
        }
        let rest =
            self.size.iter_mut().chain(self.mbarrier.as_mut().map(|m| &mut m.base)).chain(&mut self.mask);
        rest.for_each(|s| read(s, f));
    }
}
