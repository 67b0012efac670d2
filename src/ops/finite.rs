//! finite: where a matrix holds NaN or infinity, for `--check-finite`.

use crate::device::Device;
use crate::device::cpu::Real;
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::finite::{self as kernels, FiniteFwd};
use crate::tensor::{Element, Tensor, dims, int, refuse, whole_vectors, with_real};
use rayon::prelude::*;

/// `found[at,0] += ` how many elements of `x` are NaN or infinite; `found[at,1]`: the least of it and the first row that has one.
///
/// | operand | shape  | dtype      | role                                                      |
/// |---------|--------|------------|-----------------------------------------------------------|
/// | `found` | [S, 2] | i32        | row `at` updated; 0 and the largest i32 where none is yet |
/// | `x`     | [N, C] | activation | read                                                      |
///
/// Errors if a shape does not fit or there is no row `at`.
pub fn finite_fwd(device: &Device, found: &mut Tensor, x: &Tensor, at: usize) -> Result<()> {
    let operands = [("x", x, "N C"), ("found", &*found, "S 2")];
    let [n, c, s] = dims("finite_fwd", ["N", "C", "S"], &operands)?;
    if at >= s {
        return refuse("finite_fwd", format!("row {at} of found, which has {s}"));
    }
    match device {
        Device::Cpu(real) => {
            let [count, row] = with_real!(*real, R => cpu_fwd::<R>(x.host()?, c));
            let found = &mut found.host_mut::<i32>()?[2 * at..][..2];
            (found[0], found[1]) = (found[0].wrapping_add(count), found[1].min(row));
        }
        Device::Gpu(gpu) => {
            whole_vectors("finite_fwd", "C", c, 8)?;
            let rows = kernels::ROWS_PER_BLOCK as usize;
            let launch = Launch::line(n.div_ceil(rows), 32 * rows);
            let int = |n| int("finite_fwd", n);
            let arguments = FiniteFwd { found, x, at: int(at)?, n: int(n)?, c: int(c)? };
            // SAFETY: `dims` holds x to n and c, a multiple of 8; found has a row `at`: compared above.
            unsafe { kernels::finite_fwd(gpu, launch, arguments) }?;
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
