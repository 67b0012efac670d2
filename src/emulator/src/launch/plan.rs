//! A launch that has been checked, and some of its clusters while they run.

use super::Launch;
use crate::isa::module::{Function, Module};
use crate::machine::clock::Agents;
use crate::machine::dice::Dice;
use crate::machine::flight::Flight;
use crate::machine::memory::Memory;
use crate::machine::predecessor::Predecessor;
use crate::report::checks::{Checks, Collected};
use crate::report::counters::Count;
use crate::report::finding::At;
use std::cell::RefCell;

/// Blocks that are on the machine at a time.
pub const RESIDENT: usize = 8;

/// A launch that has been checked.
pub struct Plan<'a> {
    /// The program.
    pub module: &'a Module,
    /// What runs.
    pub kernel: &'a Function,
    /// Its number.
    pub index: u32,
    /// How.
    pub launch: Launch,
    /// The arguments.
    pub param: Vec<u8>,
    /// Addresses of the module's variables.
    pub symbols: &'a [u64],
    /// The kernel before, where it may still run.
    pub before: Option<&'a Predecessor>,
    /// What is an error.
    pub checks: &'a Checks,
}

impl Plan<'_> {
    /// Of the grid and of a block.
    pub fn extents(&self) -> ([u32; 3], [u32; 3]) {
        (self.launch.grid, self.launch.block)
    }
}

/// Some of a launch's clusters while they run.
pub struct Running<'a> {
    /// The launch.
    pub plan: &'a Plan<'a>,
    /// Global memory.
    pub memory: &'a mut Memory,
    /// By instruction.
    pub counts: Vec<Count>,
    /// The schedule's.
    pub dice: Dice,
    /// What runs beside the warps.
    pub agents: Agents,
    /// Copies to global memory that nobody has waited for; they arrive with the end of the launch.
    pub flights: Vec<Flight>,
    /// What has been found so far.
    pub found: RefCell<Collected>,
    /// Of each thread at its start, where the kernel bounds them.
    pub registers: u32,
}

impl Running<'_> {
    /// A thread of a block, by their numbers.
    pub fn at(&self, block: u32, thread: u32) -> At {
        At::of(self.plan.extents(), block, thread)
    }
}
