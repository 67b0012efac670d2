//! Registers that a function's `wgmma` hold.

use crate::isa::module::Inst;
use crate::isa::op::{GroupOp, Op};
use std::collections::HashSet;

/// Notes which registers an instruction of a function names that its `wgmma` hold.
pub fn mark_shared(insts: &mut [Inst]) {
    let mut held = HashSet::new();
    for inst in insts.iter() {
        if let Op::Group(GroupOp::Wgmma(op)) = &inst.op {
            held.extend(op.d.iter().copied().chain(op.left()));
        }
    }
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
