//! What this CPU's instructions multiply with all threads where nothing is read or written: the roof of a product.

use super::units::Half;
use pulp::{Simd, WithSimd};
use std::time::Instant;

/// Instructions of a sample, in each of the sums that a thread keeps: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// FLOP/s of all threads together, of bf16 or else of f32, and by which instruction.
pub fn peak(bf16: bool) -> (f64, &'static str) {
    let name = match Half::load() {
        Half::Amx(_) if bf16 => "tdpbf16ps",
        Half::Avx512(_) if bf16 => "vdpbf16ps",
        _ => "f32 multiply-add",
    };
    let rates = rayon::broadcast(|_| {
        let (unit, start) = (Half::load(), Instant::now());
        let flops = match &unit {
            Half::Amx(tiles) if bf16 => tiles.spin(ROUNDS),
            Half::Avx512(vectors) if bf16 => vectors.spin(ROUNDS),
            _ => pulp::Arch::new().dispatch(Spin(std::hint::black_box(0.5))),
        };
        flops as f64 / start.elapsed().as_secs_f64()
    });
    (rates.iter().sum(), name)
}

/// Multiplies and adds this number.
struct Spin(f32);

impl WithSimd for Spin {
    type Output = usize;

    /// Gives the operations.
    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) -> usize {
        let x = simd.splat_f32s(self.0);
        let mut sums = [x; 12];
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = simd.mul_add_f32s(*sum, x, x));
        }
        std::hint::black_box(sums);
        2 * V::F32_LANES * sums.len() * ROUNDS
    }
}
