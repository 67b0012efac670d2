//! `.aligned`: all lanes of a warp come to the instruction together, that is, no branch has parted them.
//!
//! Lanes may run ahead of others here and stand at it for a while; that is this machine's affair. What the ISA forbids is
//! an instruction within a branch that lanes take differently, even if all of them come to it in the end.

use super::context::{Context, Done, Run};
use crate::isa::module::Inst;
use crate::isa::op::{BarrierOp, FenceOp, GroupOp, Op, WarpOp};
use crate::isa::operand::Barrier;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// Whether all lanes that are left are at it; otherwise these wait for the others.
    pub fn aligned(&self, warp: &mut Warp, run: &Run<'_>) -> Result<bool, Box<Fault>> {
        let here = self.here(warp, run);
        if here != warp.live {
            warp.go(run.exec, run.pc);
            warp.parked |= here;
            return Ok(false);
        }
        warp.parked = 0;
        self.not_apart(warp, run).map(|()| true)
    }

    /// Reports that all lanes are at it, but one after the other.
    pub fn not_apart(&self, warp: &mut Warp, run: &Run<'_>) -> Done {
        if warp.partings.is_empty() {
            return Ok(());
        }
        let Some((at, apart)) = warp.partings.apart(warp.live) else { return Ok(()) };
        let what = format!(
            "barrier: lanes {apart:#010x} come to {} apart from the others of their warp; \
             .aligned wants all of them at once, outside of what a branch has parted",
            name(run.inst)
        );
        let parted = format!("they parted at {}", self.module.place(&self.module.insts[at as usize]));
        Err(self.fault(Kind::Barrier, warp, apart.trailing_zeros() as usize, run.inst, what).and(parted))
    }
}

/// The opcode of an instruction that is `.aligned`.
fn name(inst: &Inst) -> &'static str {
    match &inst.op {
        Op::Barrier(BarrierOp::Barrier { kind: Barrier::Sync, .. }) => "barrier.sync.aligned",
        Op::Barrier(BarrierOp::Barrier { kind: Barrier::Arrive, .. }) => "barrier.arrive.aligned",
        Op::Barrier(BarrierOp::Barrier { .. }) => "barrier.red.aligned",
        Op::Barrier(BarrierOp::ClusterBarrier { wait: true, .. }) => "barrier.cluster.wait.aligned",
        Op::Barrier(BarrierOp::ClusterBarrier { .. }) => "barrier.cluster.arrive.aligned",
        Op::Warp(WarpOp::Ldmatrix { .. }) => "ldmatrix.sync.aligned",
        Op::Warp(WarpOp::Stmatrix { .. }) => "stmatrix.sync.aligned",
        Op::Warp(WarpOp::Mma(_)) => "mma.sync.aligned",
        Op::Fence(FenceOp::WgmmaFence) => "wgmma.fence.sync.aligned",
        Op::Fence(FenceOp::WgmmaCommit) => "wgmma.commit_group.sync.aligned",
        Op::Group(GroupOp::Wgmma(_)) => "wgmma.mma_async.sync.aligned",
        Op::Group(GroupOp::WgmmaWait { .. }) => "wgmma.wait_group.sync.aligned",
        Op::Group(GroupOp::SetRegisters { .. }) => "setmaxnreg.sync.aligned",
        _ => "an instruction",
    }
}
