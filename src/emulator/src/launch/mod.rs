//! A launch: how, checked, in chunks, its warps in turns.

pub mod check;
pub mod chunks;
pub mod environment;
pub mod plan;
pub mod resident;
pub mod schedule;

/// A kernel's arguments: each the bytes of its parameter.
pub type Args<'a> = [&'a [u8]];

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster, which run together; 1 each: what the kernel was compiled for, or none.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Programmatic stream serialization: it may begin before the kernel before it ends, and waits for that by
    /// `griddepcontrol.wait`. Under odd seeds, touching before then what that one writes, or writing what it reads, is
    /// reported; under even ones this is a launch as any. What the host copies or sets in between ends the kernel before.
    pub overlap: bool,
    /// Picks the schedule.
    pub seed: u64,
    /// Warp instructions after which the launch is given up, by any of the chunks that it is run in.
    pub budget: u64,
    /// Threads that run it, at most; 0: as many as this process has cores. They change no bit, count or report.
    pub workers: usize,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch {
            grid: [1; 3],
            block: [1; 3],
            cluster: [1; 3],
            shared: 0,
            overlap: false,
            seed: 0,
            budget: 1 << 32,
            workers: 0,
        }
    }
}
