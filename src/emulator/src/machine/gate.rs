//! Named barriers of a block.

use super::clock::Clock;
use super::frame::Frame;
use crate::isa::operand::Barrier;

/// Named barriers of a block.
pub const GATES: usize = 16;

/// A barrier of a block.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Threads that have come.
    pub arrived: u32,
    /// Threads that must come, where the instruction says so.
    pub expected: Option<u32>,
    /// Who waits: warp, lanes, and where a reduction's result goes.
    pub waits: Vec<(usize, u32, Frame, Barrier, u32)>,
    /// What the arrived know.
    pub clock: Option<Clock>,
    /// What they have read with strength, without a fence since.
    pub flags: Option<Box<Clock>>,
    /// Lanes whose predicate was true, and all lanes.
    pub votes: (u32, u32),
    /// A predicate among them has no value.
    pub unknown: bool,
}
