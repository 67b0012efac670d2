//! clock: how fast a GPU's multiprocessors run, for what is timed on them.

use crate::device::Device;
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::clock::{self as kernels, ClockFwd};
use crate::tensor::{Tensor, dims, int};

/// `read = [cycles, nanoseconds]` of a multiprocessor and the GPU's timer, over at least so many nanoseconds unless the timer
/// was read `turns` times before; behind all that was queued. Zeros on a CPU and on the emulator, where neither is counted.
///
/// | operand | shape | dtype | role        |
/// |---------|-------|-------|-------------|
/// | `read`  | `[2]` | i32   | overwritten |
///
/// Errors if the shape does not fit.
pub fn clock_fwd(device: &Device, read: &mut Tensor, turns: usize, nanoseconds: usize) -> Result<()> {
    dims("clock_fwd", [], &[("read", &*read, "2")])?;
    match device {
        Device::Cpu(_) => read.host_mut::<i32>()?.fill(0),
        Device::Gpu(gpu) => {
            let [turns, nanoseconds] = [int("clock_fwd", turns)?, int("clock_fwd", nanoseconds)?];
            let (launch, arguments) = (Launch::line(1, 1), ClockFwd { read, turns, nanoseconds });
            // SAFETY: read has two elements, as was compared above.
            unsafe { kernels::clock_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}
