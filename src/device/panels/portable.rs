//! Panels where no instruction is made for them: widened, in f32.

use super::PANEL;
use super::step::Step;
use super::tile::{Lines, Tile};

/// `y (+)= x w`; `w` is some steps of a panel.
pub fn product<S: Step>(y: &mut Tile, x: Lines<S>, w: &[S], add: bool) {
    crate::device::cpu::simd(
        #[inline(always)]
        || {
            for r in 0..y.rows() {
                let mut sums = [0f32; PANEL];
                for (x, w) in x.from(r).steps.iter().zip(w.as_chunks::<PANEL>().0) {
                    for (sum, w) in sums.iter_mut().zip(w) {
                        (0..S::NUMBERS).for_each(|i| *sum += x.number(i) * w.number(i));
                    }
                }
                for (y, sum) in y.row(r).iter_mut().zip(sums) {
                    *y = if add { *y + sum } else { sum };
                }
            }
        },
    );
}
