//! Products with a panel that is made for one use, on one thread: what attention multiplies.

use super::PANEL;
use super::tile::{Lines, Output, Rows};
use super::units::F32Vectors;

/// A step of a panel, or a row of a result: 48 numbers side by side.
pub type Line = [f32; PANEL];

/// Multiplies f32 by AVX-512.
pub struct Lanes(F32Vectors);

impl Lanes {
    /// None where the CPU lacks AVX-512: then there are quicker ways than panels.
    pub fn load() -> Option<Lanes> {
        F32Vectors::load().map(Lanes)
    }

    /// `y[n, 48] = x[n, k] w[k, 48]`, added to `y` where `add`; number (i, j) of `x` is at `i * strides[0] + j * strides[1]`.
    ///
    /// Every lane is summed by itself, in the order of k. Panics if `x` is too short or `y` is empty.
    pub fn product(&self, y: &mut [Line], x: &[f32], strides: [usize; 2], w: &[Line], add: bool) {
        let rows = y.len();
        let y = Output::new(Rows { data: y.as_flattened_mut(), rows, cols: PANEL });
        // SAFETY: the only tile of y.
        let mut y = unsafe { y.tile(0..rows, 0..PANEL) };
        self.0.product(
            &mut y,
            Lines { steps: x, stride: strides[0], step: strides[1] },
            w.as_flattened(),
            add,
        );
    }
}
