//! Fences.

use super::context::{Context, Run};
use crate::isa::op::Op;
use crate::machine::cluster::{MOST_BLOCKS, mapped, rank_of};
use crate::machine::warp::Warp;

/// What was read with strength before now counts, and what follows publishes all that was before.
pub fn fence(warp: &mut Warp) {
    if let Some(pending) = warp.pending.take() {
        warp.clock.join(&pending);
    }
    warp.released = Some(Box::new(warp.clock.clone()));
    warp.clock.own[warp.index as usize] += 1;
}

impl Context<'_> {
    /// Addresses within the cluster, and fences for the asynchronous proxy.
    pub fn cluster_plain(&mut self, warp: &mut Warp, run: &Run<'_>) {
        let (frame, consts) = (run.frame, &self.module.consts);
        match &run.inst.op {
            Op::Mapa { d, s } => {
                let known = warp.known(frame, s[0]) & warp.known(frame, s[1]);
                let [a, rank] = s.map(|s| warp.get(frame, s, consts));
                // A rank that is too large stays too large.
                let map = |l: usize| mapped(a[l], (rank[l] as u32).min(MOST_BLOCKS as u32));
                warp.put(frame, *d, run.exec, &std::array::from_fn(map), known);
            }
            Op::Rank { d, s } => {
                let (known, a) = (warp.known(frame, *s), warp.get(frame, *s, consts));
                let rank = a.map(|a| rank_of(a).map_or(self.rank as u64, u64::from));
                warp.put(frame, *d, run.exec, &rank, known);
            }
            Op::ProxyFence { proxies, release } => {
                warp.clock.fence(proxies);
                warp.clock.own[warp.index as usize] += 1;
                if *release {
                    fence(warp);
                }
            }
            _ => {}
        }
    }
}
