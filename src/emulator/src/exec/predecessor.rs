//! Programmatic launch: what a kernel may touch while the one before it may still run.

use super::context::{Context, Done, Run};
use crate::isa::operand::lanes;
use crate::machine::flight::Where;
use crate::machine::predecessor::PREDECESSOR;
use crate::machine::warp::Warp;
use crate::report::finding::{Kind, other_access};

impl Context<'_> {
    /// `griddepcontrol.wait`: all that the kernel before did is over, for these lanes and whoever is ordered behind them.
    pub fn predecessor_ends(&self, warp: &mut Warp, run: &Run<'_>) {
        match run.exec == warp.live {
            true => warp.clock.heard(PREDECESSOR, 1),
            false => lanes(run.exec).for_each(|lane| warp.waited(lane, PREDECESSOR, 1)),
        }
    }

    /// Reports a read of what the kernel before has written, or a write of what it has touched, that no
    /// `griddepcontrol.wait` stands before.
    pub fn not_before(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        (place, at): (Where, usize),
        bytes: usize,
        write: bool,
    ) -> Done {
        let (Where::Global(region), Some(before)) = (place, self.before) else { return Ok(()) };
        let region = &self.memory.regions[region];
        let thread = warp.thread(lane);
        let waited = || warp.beside.waited.iter().any(|w| (w.0, w.1) == (thread, PREDECESSOR));
        let Some(races) = &region.before else { return Ok(()) };
        if warp.clock.knows(PREDECESSOR, 1) || waited() {
            return Ok(());
        }
        let Some((at, wrote, other)) = races.conflict(at, bytes, write) else { return Ok(()) };
        let (act, did) = (if write { "writes" } else { "reads" }, if wrote { "writes" } else { "reads" });
        let (name, kernel) = (&region.name, &before.kernel);
        let what = format!(
            "race: it {act} {name}+{at}, which {kernel}, the kernel before it, {did} and may not have done yet: \
             no griddepcontrol.wait stands before this"
        );
        let there = before.module.place(&before.module.insts[other.pc() as usize]);
        let fault = self.fault(Kind::Race, warp, lane, run.inst, what);
        self.report(fault.and(other_access(&format!("{there}, in {kernel}"))))
    }
}
