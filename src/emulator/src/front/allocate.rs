//! Registers of a function put into as few slots as are alive at a time.
//!
//! The compiler's PTX names every value once, ten thousand of them in a large kernel; as slots they would be megabytes for
//! each warp, all of them cold. Two registers share a slot if no instruction from the first to the last that one of them is
//! alive at (or written at) is such an instruction of the other. A register that may be read before it is written is
//! alive from the function's start, alone in its slot up to its last use, so that it is still found to have no value.
//! What a `wgmma` holds beyond itself is alone in its slot from the function's start to its end.

use crate::isa::module::Inst;
use crate::isa::op::{ControlOp, Op};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// The most words of sets; a function that needs more is left as it is.
const MOST: usize = 1 << 22;

/// A set of registers.
type Set = Vec<u64>;

fn has(set: &Set, r: u32) -> bool {
    set[r as usize / 64] >> (r % 64) & 1 == 1
}

fn insert(set: &mut Set, r: u32) {
    set[r as usize / 64] |= 1 << (r % 64);
}

/// Instructions that are entered at the first and left behind the last alone.
struct Block {
    from: usize,
    end: usize,
    /// Blocks that may follow.
    next: Vec<usize>,
    /// Registers that it reads before it writes them, and that it surely writes.
    reads: Set,
    writes: Set,
    /// Alive at its start.
    alive: Set,
}

/// Renames the registers of a function, whose instructions begin with number `start` of the module; gives how many it has
/// now of `registers`.
pub fn allocate(insts: &mut [Inst], start: u32, tables: &[Vec<u32>], registers: u32) -> u32 {
    let blocks = blocks(insts, start, tables);
    if registers == 0 || 3 * blocks.len() * (registers as usize / 64 + 1) > MOST {
        return registers;
    }
    let blocks = flow(insts, blocks, registers);
    let mut spans = spans(insts, &blocks, registers);
    insts.iter().flat_map(|inst| inst.op.held()).for_each(|r| spans[r as usize] = (0, usize::MAX));
    let mut order: Vec<u32> = (0..registers).filter(|r| spans[*r as usize].0 < usize::MAX).collect();
    order.sort_by_key(|r| spans[*r as usize]);
    let (mut slots, mut used) = (vec![0; registers as usize], 0);
    // Slots in use, by the last instruction of whoever has it; and those that were used before.
    let (mut busy, mut free) = (BinaryHeap::<Reverse<(usize, u32)>>::new(), BTreeSet::new());
    for r in order {
        let (first, last) = spans[r as usize];
        while let Some(&Reverse((end, slot))) = busy.peek()
            && end < first
        {
            busy.pop();
            free.insert(slot);
        }
        let slot = free.pop_first().unwrap_or_else(|| {
            used += 1;
            used - 1
        });
        busy.push(Reverse((last, slot)));
        slots[r as usize] = slot;
    }
    for inst in insts {
        inst.op.names(&mut |r, _| *r = slots[*r as usize]);
        inst.shares.iter_mut().for_each(|(r, _)| *r = slots[*r as usize]);
    }
    used
}

/// A function's blocks in their order.
fn blocks(insts: &[Inst], start: u32, tables: &[Vec<u32>]) -> Vec<Block> {
    let place = |to: &u32| (to - start) as usize;
    let targets = |op: &Op| match op {
        Op::Control(ControlOp::Bra { to }) => vec![place(to)],
        Op::Control(ControlOp::Brx { table, .. }) => tables[*table as usize].iter().map(place).collect(),
        Op::Control(
            ControlOp::Call { .. }
            | ControlOp::Ret
            | ControlOp::Exit
            | ControlOp::Trap
            | ControlOp::GridWait
            | ControlOp::Nop,
        ) => Vec::new(),
        Op::Register(_) | Op::Memory(_) | Op::Copy(_) | Op::Fence(_) => Vec::new(),
        Op::Warp(_) | Op::Barrier(_) | Op::Group(_) => Vec::new(),
    };
    let parts = |op: &Op| match op {
        Op::Control(op) => !matches!(op, ControlOp::Call { .. } | ControlOp::GridWait | ControlOp::Nop),
        Op::Register(_) | Op::Memory(_) | Op::Copy(_) | Op::Fence(_) => false,
        Op::Warp(_) | Op::Barrier(_) | Op::Group(_) => false,
    };
    let mut heads = BTreeSet::from([0]);
    for (i, inst) in insts.iter().enumerate().filter(|(_, inst)| parts(&inst.op)) {
        heads.extend(targets(&inst.op));
        heads.insert(i + 1);
    }
    heads.remove(&insts.len());
    let heads: Vec<usize> = heads.into_iter().collect();
    let block = |(b, from): (usize, &usize)| {
        let end = heads.get(b + 1).copied().unwrap_or(insts.len());
        let last = &insts[end - 1];
        let mut next: Vec<usize> =
            targets(&last.op).iter().filter_map(|to| heads.binary_search(to).ok()).collect();
        if (!parts(&last.op) || last.guard.is_some()) && b + 1 < heads.len() {
            next.push(b + 1);
        }
        Block { from: *from, end, next, reads: Set::new(), writes: Set::new(), alive: Set::new() }
    };
    heads.iter().enumerate().map(block).collect()
}

/// What is alive at the start of each block: what it reads, and what blocks behind it read unless it is written here. A
/// guarded write may leave a lane's register as it is.
fn flow(insts: &mut [Inst], mut blocks: Vec<Block>, registers: u32) -> Vec<Block> {
    let empty = vec![0; registers as usize / 64 + 1];
    for block in &mut blocks {
        (block.reads, block.writes) = (empty.clone(), empty.clone());
        for inst in &mut insts[block.from..block.end] {
            let kills = inst.guard.is_none();
            inst.op.names(&mut |r, write| match write {
                true if kills => insert(&mut block.writes, *r),
                true => {}
                false if !has(&block.writes, *r) => insert(&mut block.reads, *r),
                false => {}
            });
        }
        block.alive = block.reads.clone();
    }
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks.len()).rev() {
            for n in 0..blocks[b].next.len() {
                let next = blocks[b].next[n];
                for w in 0..empty.len() {
                    let more = blocks[next].alive[w] & !blocks[b].writes[w] & !blocks[b].alive[w];
                    blocks[b].alive[w] |= more;
                    changed |= more != 0;
                }
            }
        }
    }
    blocks
}

/// The first and last instruction at which each register is alive or named, doubled; what is read by an instruction ends
/// before what it writes begins.
fn spans(insts: &mut [Inst], blocks: &[Block], registers: u32) -> Vec<(usize, usize)> {
    let mut spans = vec![(usize::MAX, 0); registers as usize];
    let mut at = |r: u32, place: usize| {
        let span = &mut spans[r as usize];
        *span = (span.0.min(place), span.1.max(place));
    };
    for block in blocks {
        let alive = |set: &Set| (0..registers).filter(|r| has(set, *r)).collect::<Vec<_>>();
        alive(&block.alive).into_iter().for_each(|r| at(r, 2 * block.from));
        for next in &block.next {
            alive(&blocks[*next].alive).into_iter().for_each(|r| at(r, 2 * block.end - 1));
        }
        for (i, inst) in insts[block.from..block.end].iter_mut().enumerate() {
            inst.op.names(&mut |r, write| at(*r, 2 * (block.from + i) + usize::from(write)));
        }
    }
    spans
}
