//! What orders, and waits for nobody.

use crate::isa::op::FenceOp;
use crate::machine::warp::Warp;

/// Runs one for a warp: fences order for all of it.
pub fn fence_op(warp: &mut Warp, op: &FenceOp) {
    warp.share_waits();
    match op {
        FenceOp::Fence => fence(warp),
        FenceOp::ProxyFence { proxies, release } => {
            warp.clock.fence(proxies);
            warp.clock.own[warp.index as usize] += 1;
            if *release {
                fence(warp);
            }
        }
        FenceOp::WgmmaFence => warp.products.fence(),
        FenceOp::WgmmaCommit => warp.products.commit(),
    }
}

/// What was read with strength before now counts, and what follows publishes all that was before.
fn fence(warp: &mut Warp) {
    if let Some(pending) = warp.pending.take() {
        warp.clock.join(&pending);
    }
    warp.released = Some(Box::new(warp.clock.clone()));
    warp.clock.own[warp.index as usize] += 1;
}
