//! Execution, one file for a family of instructions.

pub mod aligned;
pub mod barrier;
pub mod boxes;
pub mod bulk;
pub mod cluster;
pub mod context;
pub mod control;
pub mod copy;
pub mod fence;
pub mod habit;
pub mod matrices;
pub mod mbarrier;
pub mod memory;
pub mod predecessor;
pub mod products;
pub mod proxy;
pub mod registers;
pub mod step;
pub mod together;
pub mod warpgroup;
