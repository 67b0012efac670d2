//! The state of the machine as plain data: memory and its shadow, warps, clusters, barriers, what is under way.

pub mod clock;
pub mod cluster;
pub mod copies;
pub mod dice;
pub mod flight;
pub mod frame;
pub mod gate;
pub mod mbarrier;
pub mod memory;
pub mod partings;
pub mod predecessor;
pub mod products;
pub mod shadow;
pub mod warp;
pub mod warpgroup;
