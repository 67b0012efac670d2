//! embed: token ids to rows of a table.

use crate::device::gpu::Launch;
use crate::device::{DType, Device};
use crate::error::Result;
use crate::kernels::embed::{self as kernels, EmbedFwd};
use crate::tensor::{Tensor, dims, int, refuse, whole_vectors, with_real};
use half::bf16;
use rayon::prelude::*;

/// `x[n] = table[ids[n]]`.
///
/// | operand | shape  | dtype          | role        |
/// |---------|--------|----------------|-------------|
/// | `x`     | [N, C] | activation     | overwritten |
/// | `table` | [V, C] | that, or bf16  | read        |
/// | `ids`   | `[N]`  | i32, in [0, V) | read        |
///
/// Errors if a shape does not fit or an id lies outside the table; on a GPU, where nothing looks at the ids before the kernel,
/// such a row becomes NaN.
pub fn embed_fwd(device: &Device, x: &mut Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
    let [n, v, c] =
        dims("embed_fwd", ["N", "V", "C"], &[("ids", ids, "N"), ("table", table, "V C"), ("x", x, "N C")])?;
    match device {
        Device::Cpu(real) => {
            let ids = ids.host::<i32>()?;
            if let Some(id) = ids.iter().find(|&&id| id < 0 || id as usize >= v) {
                return refuse("embed_fwd", format!("token id {id} is outside the table of {v} rows"));
            }
            with_real!(*real, R => match table.dtype() {
                DType::Bf16 => rows(x.host_mut::<R>()?, table.host::<bf16>()?, ids, c, |v| v.to_f32() as R),
                _ => rows(x.host_mut::<R>()?, table.host::<R>()?, ids, c, |v| v),
            });
        }
        Device::Gpu(gpu) => {
            whole_vectors("embed_fwd", "C", c, 8)?;
            if v == 0 {
                return refuse("embed_fwd", "a table without rows, expected at least one".into());
            }
            let rows = kernels::ROWS_PER_BLOCK as usize;
            let launch = Launch::line(n.div_ceil(rows), 32 * rows);
            let int = |n| int("embed_fwd", n);
            let arguments = EmbedFwd { x, table, ids, n: int(n)?, v: int(v)?, c: int(c)? };
            // SAFETY: `dims` holds x, table and ids to n, v and c, a multiple of 8; an id outside the table reads its
            // first row.
            unsafe { kernels::embed_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

fn rows<T: Copy + Sync, R: Send>(
    x: &mut [R],
    table: &[T],
    ids: &[i32],
    c: usize,
    widen: impl Fn(T) -> R + Sync,
) {
    x.par_chunks_mut(c).zip(ids).with_min_len(64).for_each(|(x, &id)| {
        let row = &table[id as usize * c..][..c];
        x.iter_mut().zip(row).for_each(|(x, &t)| *x = widen(t));
    });
}
