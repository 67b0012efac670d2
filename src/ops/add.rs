//! add: one partial sum of gradients added to another.

use crate::device::Device;
use crate::device::cpu::Real;
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::add::{self as kernels, AddFwd};
use crate::tensor::{Tensor, int, refuse, with_real};
use rayon::prelude::*;

/// `y += x`.
///
/// | operand | shape | dtype     | role    |
/// |---------|-------|-----------|---------|
/// | `y`     | any   | statistic | updated |
/// | `x`     | y's   | statistic | read    |
///
/// Errors if the shapes differ.
pub fn add_fwd(device: &Device, y: &mut Tensor, x: &Tensor) -> Result<()> {
    if y.shape() != x.shape() {
        return refuse("add_fwd", format!("y is {:?}, x {:?}", y.shape(), x.shape()));
    }
    match device {
        Device::Cpu(real) => with_real!(*real, R => cpu_fwd::<R>(y.host_mut()?, x.host()?)),
        Device::Gpu(gpu) => {
            let (n, threads) = (y.numel(), kernels::THREADS as usize);
            let launch = Launch::line((n / 4 + 1).div_ceil(threads), threads);
            let arguments = AddFwd { y, x, k: int("add_fwd", n)? };
            // SAFETY: y and x have k elements each: compared above.
            unsafe { kernels::add_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn cpu_fwd<R: Real>(y: &mut [R], x: &[R]) {
    y.par_iter_mut().zip(x).with_min_len(1 << 14).for_each(|(y, &x)| *y += x);
}
