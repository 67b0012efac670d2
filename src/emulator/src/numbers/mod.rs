//! What instructions compute: functions of registers, and of nothing else.

pub mod alu;
pub mod convert;
pub mod descriptor;
pub mod float;
pub mod mma;
pub mod rmw;
pub mod wgmma;
