//! rope: rotary position embedding of queries and keys, in place, half-split pairs.

use crate::device::Device;
use crate::device::cpu::{Real, simd};
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::rope::{self as kernels, RopeBwd, RopeFwd};
use crate::ops::attention::Heads;
use crate::tensor::{Tensor, dims, int, refuse, whole_vectors, with_real};
use rayon::prelude::*;

/// Rotates the pair `(v[i], v[i + D/2])` of every query and key head by the angle `positions[n] * freq[i]`.
///
/// | operand     | shape           | dtype          | role                                        |
/// |-------------|-----------------|----------------|---------------------------------------------|
/// | `qkv`       | [N, (H + 2G) D] | activation     | q and k columns overwritten, v left alone   |
/// | `cos`, `sin`| [P, D/2]        | statistic      | read: cosine and sine of position * freq    |
/// | `positions` | `[N]`           | i32, in [0, P) | read                                        |
///
/// Errors if a shape does not fit or a position lies outside the tables (on a GPU, such a row becomes NaN). Source: Su et al. 2021, arXiv:2104.09864,
/// in the half-split layout of Llama checkpoints in Transformers.
pub fn rope_fwd(
    device: &Device,
    qkv: &mut Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    heads: Heads,
) -> Result<()> {
    rotate("rope_fwd", device, ("qkv", qkv), cos, sin, positions, heads, 1.0)
}

/// Turns the gradient of the rotated queries and keys back by the same angles.
///
/// | operand                  | shape           | dtype      | role                                        |
/// |--------------------------|-----------------|------------|---------------------------------------------|
/// | `dqkv`                   | [N, (H + 2G) D] | activation | q and k columns overwritten, v left alone   |
/// | `cos`, `sin`, `positions`|                 |            | read, as in the forward                     |
pub fn rope_bwd(
    device: &Device,
    dqkv: &mut Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    heads: Heads,
) -> Result<()> {
    rotate("rope_bwd", device, ("dqkv", dqkv), cos, sin, positions, heads, -1.0)
}

/// Both directions: `turn` multiplies the sines.
#[allow(clippy::too_many_arguments)]
fn rotate(
    op: &'static str,
    device: &Device,
    (name, qkv): (&str, &mut Tensor),
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    heads: Heads,
    turn: f64,
) -> Result<()> {
    let operands =
        [(name, &*qkv, "N Q"), ("cos", cos, "P E"), ("sin", sin, "P E"), ("positions", positions, "N")];
    let [n, q, p, half] = dims(op, ["N", "Q", "P", "E"], &operands)?;
    heads.check(op, q)?;
    if half * 2 != heads.width {
        return refuse(op, format!("cos has {half} columns, expected D/2 = {}", heads.width / 2));
    }
    match device {
        Device::Cpu(real) => {
            let positions = positions.host::<i32>()?;
            if let Some(at) = positions.iter().find(|&&at| at < 0 || at as usize >= p) {
                return refuse(op, format!("position {at} is outside the tables of {p} positions"));
            }
            with_real!(*real, R => {
                cpu_rotate::<R>(qkv.host_mut()?, cos.host()?, sin.host()?, positions, heads, R::of(turn))
            });
        }
        Device::Gpu(gpu) => {
            whole_vectors(op, "D", heads.width, 16)?;
            if p == 0 {
                return refuse(op, "tables without positions, expected at least one".into());
            }
            let threads = half / kernels::PAIRS_PER_THREAD as usize;
            let rotated = heads.query + heads.key;
            // As many heads at a time as a block has room for, shared out evenly over the steps.
            let steps = rotated.div_ceil((kernels::MAX_THREADS as usize / threads).max(1));
            let launch = Launch::plane([n, 1], [threads, rotated.div_ceil(steps.max(1))]);
            let int = |n| int(op, n);
            let [p, h, g, d] = [int(p)?, int(heads.query)?, int(heads.key)?, int(heads.width)?];
            match turn > 0.0 {
                true => {
                    let arguments = RopeFwd { qkv, cos, sin, positions, p, h, g, d };
                    // SAFETY: `dims` and the heads' check hold the arrays to these sizes, with a block for each row; a
                    // position outside the tables reads their first row.
                    unsafe { kernels::rope_fwd(gpu, launch, arguments) }?
                }
                false => {
                    let arguments = RopeBwd { dqkv: qkv, cos, sin, positions, p, h, g, d };
                    // SAFETY: as of the forward.
                    unsafe { kernels::rope_bwd(gpu, launch, arguments) }?
                }
            }
        }
    }
    Ok(())
}

fn cpu_rotate<R: Real>(qkv: &mut [R], cos: &[R], sin: &[R], positions: &[i32], heads: Heads, turn: R) {
    let (d, half) = (heads.width, heads.width / 2);
    let rotated = (heads.query + heads.key) * d;
    qkv.par_chunks_mut(heads.columns()).zip(positions).with_min_len(16).for_each(|(row, &at)| {
        let (cos, sin) = (&cos[at as usize * half..][..half], &sin[at as usize * half..][..half]);
        simd(
            #[inline(always)]
            || {
                for head in row[..rotated].chunks_exact_mut(d) {
                    let (first, second) = head.split_at_mut(half);
                    for i in 0..half {
                        let (a, b, sin) = (first[i], second[i], sin[i] * turn);
                        first[i] = a * cos[i] - b * sin;
                        second[i] = b * cos[i] + a * sin;
                    }
                }
            },
        );
    });
}
