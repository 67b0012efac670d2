//! finite: where a matrix holds NaN or infinity, for `--check-finite`.

use crate::device::Device;
use crate::device::cpu::Real;
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::finite as kernels;
use crate::tensor::{Element, Tensor, dims, int, whole_vectors, with_real};
use rayon::prelude::*;

/// `found[0]`: how many elements of `x` are NaN or infinite; `found[1]`: the first row that has one, else the largest i32.
///
/// | operand | shape  | dtype      | role        |
/// |---------|--------|------------|-------------|
/// | `found` | [2]    | i32        | overwritten |
/// | `x`     | [N, C] | activation | read        |
///
/// Errors if a shape does not fit.
pub fn finite_fwd(device: &Device, found: &mut Tensor, x: &Tensor) -> Result<()> {
    let [n, c] = dims("finite_fwd", ["N", "C"], &[("x", x, "N C"), ("found", &*found, "2")])?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => found.write(&cpu_fwd::<R>(x.host()?, c)))?,
        Device::Gpu(gpu) => {
            whole_vectors("finite_fwd", "C", c, 8)?;
            found.write(&[0, i32::MAX])?;
            let rows = kernels::ROWS_PER_BLOCK as usize;
            let launch = Launch::line(n.div_ceil(rows), 32 * rows);
            kernels::finite_fwd(gpu, launch, found, x, int("finite_fwd", n)?, int("finite_fwd", c)?)?;
        }
    }
    Ok(())
}

fn cpu_fwd<R: Real + Element>(x: &[R], c: usize) -> [i32; 2] {
    let rows = x.par_chunks(c.max(1)).enumerate().with_min_len(64).map(|(n, row)| {
        let count = row.iter().filter(|x| !x.f64().is_finite()).count();
        [count as i32, if count > 0 { n as i32 } else { i32::MAX }]
    });
    rows.reduce(|| [0, i32::MAX], |a, b| [a[0].wrapping_add(b[0]), a[1].min(b[1])])
}
