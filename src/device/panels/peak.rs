//! What this CPU's instructions multiply with all threads where nothing is read or written: the roof of a product.

use super::units::Half;
use pulp::{Simd, WithSimd};
use std::time::Instant;

/// Instructions of a sample, in each of the sums that a thread keeps: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// FLOP/s of all threads together, of bf16 or else of f32, and by which instruction.
pub fn peak(bf16: bool) -> (f64, &'static str) {
    let find = || Half::find().filter(|_| bf16);
    let name = match find() {
        Some(Half::Amx(_)) => "tdpbf16ps",
        Some(Half::Avx512(_)) => "vdpbf16ps",
        _ => "f32 multiply-add",
    };
    let rates = rayon::broadcast(|_| {
        let (unit, start) = (find(), Instant::now());
        let flops = match &unit {
            Some(Half::Amx(tiles)) => tiles.spin(ROUNDS),
            Some(Half::Avx512(vectors)) => vectors.spin(ROUNDS),
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
