//! narrow: statistics as activations, for a trained matrix whose master is more exact than what is computed with.

use crate::device::Device;
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::narrow::{self as kernels, NarrowFwd};
use crate::tensor::{Tensor, dims, int, whole_vectors, with_real};

/// `y = x`, rounded to the type of activations.
///
/// | operand | shape  | dtype      | role        |
/// |---------|--------|------------|-------------|
/// | `y`     | [N, C] | activation | overwritten |
/// | `x`     | [N, C] | statistic  | read        |
///
/// Errors if the shapes differ.
pub fn narrow_fwd(device: &Device, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let [n, c] = dims("narrow_fwd", ["N", "C"], &[("x", x, "N C"), ("y", &*y, "N C")])?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => y.host_mut::<R>()?.copy_from_slice(x.host()?)),
        Device::Gpu(gpu) => {
            whole_vectors("narrow_fwd", "C", c, 8)?;
            let threads = kernels::THREADS as usize;
            let launch = Launch::line((n * c / 4).div_ceil(threads), threads);
            let arguments = NarrowFwd { y, x, k: int("narrow_fwd", n * c)? };
            // SAFETY: `dims` holds y and x to k elements, a multiple of 8, of which every thread has 4.
            unsafe { kernels::narrow_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}
