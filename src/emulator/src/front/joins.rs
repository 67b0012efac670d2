//! Where lanes that part at a branch come together again: at its immediate post-dominator, as the driver's compiler has it.
//!
//! Traps, and all ends of a function but the last, are no way out: who takes them is gone, and nobody waits for him.

use crate::isa::module::{Inst, NOWHERE};
use crate::isa::op::{ControlOp, Op};
use std::collections::BTreeSet;

/// How an instruction goes on.
enum Way {
    /// Only at the next one.
    On,
    /// At these instructions.
    To(Vec<u32>),
    /// Out of the function.
    Out,
}

fn way(inst: &Inst, pc: u32, tables: &[Vec<u32>]) -> Way {
    let Op::Control(op) = &inst.op else { return Way::On };
    let mut to = match op {
        ControlOp::Bra { to } => vec![*to],
        ControlOp::Brx { table, .. } => tables[*table as usize].clone(),
        ControlOp::Ret | ControlOp::Exit if inst.guard.is_none() => return Way::Out,
        ControlOp::Ret | ControlOp::Exit | ControlOp::Trap => Vec::new(),
        ControlOp::Call { .. } | ControlOp::GridWait | ControlOp::Nop => return Way::On,
    };
    to.extend(inst.guard.map(|_| pc + 1));
    Way::To(to)
}

/// Notes at each branch of a function, whose first instruction is `start`, where its lanes come together again, and at
/// each instruction whether that is such a place.
pub fn mark_joins(insts: &mut [Inst], start: u32, tables: &[Vec<u32>]) {
    let ways: Vec<Way> = insts.iter().zip(start..).map(|(inst, pc)| way(inst, pc, tables)).collect();
    let mut leaders = BTreeSet::from([start]);
    for (way, next) in ways.iter().zip(start + 1..) {
        match way {
            Way::On => {}
            Way::To(to) => leaders.extend(to.iter().copied().chain([next])),
            Way::Out => drop(leaders.insert(next)),
        }
    }
    let end = start + insts.len() as u32;
    let leaders: Vec<u32> = leaders.into_iter().filter(|l| (start..end).contains(l)).collect();
    let block = |pc: u32| leaders.partition_point(|l| *l <= pc) - 1;
    let last = |b: usize| leaders.get(b + 1).copied().unwrap_or(end) - 1;
    let out = leaders.len();
    let next = |b: usize| -> Vec<usize> {
        match &ways[(last(b) - start) as usize] {
            Way::On => (b + 1 < out).then_some(b + 1).into_iter().collect(),
            Way::To(to) => to.iter().filter(|to| (start..end).contains(*to)).map(|to| block(*to)).collect(),
            Way::Out => Vec::new(),
        }
    };
    let mut next: Vec<Vec<usize>> = (0..out).map(next).collect();
    let (mut reached, mut stack) = (vec![false; out], vec![0]);
    while let Some(b) = stack.pop() {
        if !std::mem::replace(&mut reached[b], true) {
            stack.extend(&next[b]);
        }
    }
    let end_of = |b: usize| (last(b) - start) as usize;
    let ends = |b: &usize| reached[*b] && matches!(ways[end_of(*b)], Way::Out);
    // A loop may be left by an exit under a guard alone.
    let leaves = |b: &usize| {
        reached[*b] && matches!(insts[end_of(*b)].op, Op::Control(ControlOp::Ret | ControlOp::Exit))
    };
    if let Some(b) = (0..out).rev().find(ends).or((0..out).rev().find(leaves)) {
        next[b].push(out);
    }
    let joins = post_dominators(&next, out);
    for (at, way) in ways.iter().enumerate() {
        let pc = start + at as u32;
        let join = match way {
            Way::To(to) if to.len() > 1 || insts[at].guard.is_some() => {
                joins[block(pc)].filter(|b| *b < out).map_or(NOWHERE, |b| leaders[b])
            }
            // Under a guard others may go on alone.
            _ if insts[at].guard.is_some() => pc + 1,
            _ => continue,
        };
        insts[at].join = join;
        if let Some(inst) = join.checked_sub(start).and_then(|i| insts.get_mut(i as usize)) {
            inst.joins = true;
        }
    }
}

/// The immediate post-dominators of blocks by those that follow each; `out` is behind the last. None: it never gets there.
/// By Cooper, Harvey and Kennedy.
fn post_dominators(next: &[Vec<usize>], out: usize) -> Vec<Option<usize>> {
    let mut before = vec![Vec::new(); out + 1];
    for (b, list) in next.iter().enumerate() {
        list.iter().for_each(|n| before[*n].push(b));
    }
    // From the end backwards; whom a walk leaves last comes first.
    let (mut order, mut seen, mut stack) = (Vec::new(), vec![false; out + 1], vec![(out, 0)]);
    seen[out] = true;
    while let Some((b, i)) = stack.pop() {
        match before[b].get(i) {
            None => order.push(b),
            Some(&from) => {
                stack.push((b, i + 1));
                if !std::mem::replace(&mut seen[from], true) {
                    stack.push((from, 0));
                }
            }
        }
    }
    let mut rank = vec![0; out + 1];
    order.iter().enumerate().for_each(|(i, b)| rank[*b] = i);
    let mut found: Vec<Option<usize>> = vec![None; out + 1];
    found[out] = Some(out);
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for &b in order.iter().rev().filter(|b| **b != out) {
            let meet = |a: usize, b: usize| {
                let (mut a, mut b) = (a, b);
                while a != b {
                    let lower = if rank[a] < rank[b] { &mut a } else { &mut b };
                    *lower = found[*lower].unwrap_or(out);
                }
                a
            };
            let known = next[b].iter().copied().filter(|n| found[*n].is_some());
            let new = known.reduce(meet);
            changed |= new != found[b];
            found[b] = new;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_join_behind_both_sides() {
        // 0 parts to 1 and 2, both go to 3; 3 goes back to 0 or to 4, a dead end beside the way out.
        let next = [vec![1, 2], vec![3], vec![3], vec![0, 4, 5], vec![], vec![6]];
        assert_eq!(post_dominators(&next, 6), [Some(3), Some(3), Some(3), Some(5), None, Some(6), Some(6)]);
        // A loop that nobody leaves.
        assert_eq!(post_dominators(&[vec![1], vec![0]], 2), [None, None, Some(2)]);
    }
}
