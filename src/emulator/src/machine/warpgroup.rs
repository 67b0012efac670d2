//! The four warps of a warpgroup: who has come, products under way, registers.

use super::clock::WARPS;
use super::frame::Frame;
use crate::isa::module::Function;
use crate::isa::operand::LANES;
use std::collections::VecDeque;

/// Warps of a warpgroup.
pub const GROUP: usize = 4;

/// Warpgroups of a block, at most.
pub const WARPGROUPS: usize = WARPS / GROUP;

/// A product under way.
#[derive(Clone, Debug)]
pub struct Product {
    /// Of its warpgroup's, from 1.
    pub number: u64,
    pub pc: u32,
    pub frames: [Frame; GROUP],
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub scale: bool,
}

/// A warpgroup.
#[derive(Clone, Debug, Default)]
pub struct Warpgroup {
    /// Warps that wait for the others: number, instruction, storage.
    pub come: Vec<(usize, u32, Frame)>,
    /// Not yet done, oldest first.
    pub flights: VecDeque<Product>,
    /// Products so far.
    pub issued: u64,
    /// Registers of each of its threads.
    pub registers: u32,
}

impl Warpgroup {
    /// With so many registers a thread.
    pub fn new(registers: u32) -> Warpgroup {
        Warpgroup { registers, ..Warpgroup::default() }
    }

    /// Somebody has come.
    pub fn waits(&self) -> bool {
        !self.come.is_empty()
    }

    /// Registers that warpgroups have given back to their block's pool, which started with `each` a thread.
    pub fn spare(groups: &[Warpgroup], each: u32) -> u32 {
        let given: i64 = groups.iter().map(|g| i64::from(each) - i64::from(g.registers)).sum();
        (given * (GROUP * LANES) as i64) as u32
    }
}

/// Registers of each thread when a kernel starts, where its bounds say so: the compiler hands out all that they allow.
pub fn registers(kernel: &Function) -> u32 {
    let share = |threads: u32| {
        let threads = u64::from(threads).next_multiple_of(LANES as u64).max(1);
        ((1 << 16) / (threads * u64::from(kernel.least_blocks.max(1)))).min(256) as u32
    };
    kernel.most_registers.or(kernel.most_threads.map(share)).unwrap_or(0) & !7
}
