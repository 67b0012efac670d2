//! Registers that a function's `wgmma` hold.

use crate::isa::module::Inst;
use std::collections::HashSet;

/// Notes which registers an instruction of a function names that its `wgmma` hold.
pub fn mark_shared(insts: &mut [Inst]) {
    let held: HashSet<u32> = insts.iter().flat_map(|inst| inst.op.held()).collect();
    if held.is_empty() {
        return;
    }
    for inst in insts {
        let mut shares = Vec::new();
        inst.op.slots(&mut |r, write| {
            if held.contains(r) {
                shares.push((*r, write));
            }
        });
        inst.shares = shares.into();
    }
}
