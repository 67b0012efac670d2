//! How state spaces lie: generic windows, and the gaps between variables.

/// Bytes between shared variables, and between local ones, that nobody may touch.
pub const GUARD: usize = 64;

/// Generic addresses of shared memory start here.
pub const SHARED_WINDOW: u64 = 1 << 60;

/// Generic addresses of local memory start here.
pub const LOCAL_WINDOW: u64 = 1 << 61;

/// Generic addresses of a kernel's parameters start here.
pub const PARAM_WINDOW: u64 = 3 << 60;

/// More of anything than a real file has; keeps a broken one from taking all memory.
pub const MOST: u64 = 1 << 20;
