//! Panels by AVX-512: 8 x 48 of `y` in 24 vector registers; a step multiplies one broadcast step of `x` with 48 of `w`.

use super::PANEL;
use super::step::Pair;
use super::tile::{Lines, Tile};
use std::arch::x86_64::*;

/// The instructions for f32 are there.
pub struct F32Vectors(());

/// The instructions for bf16 are there.
pub struct Bf16Vectors(());

impl F32Vectors {
    /// None where the CPU lacks AVX-512.
    pub fn load() -> Option<F32Vectors> {
        std::is_x86_feature_detected!("avx512f").then_some(F32Vectors(()))
    }
}

impl Bf16Vectors {
    /// None where the CPU lacks AVX512-BF16.
    pub fn load() -> Option<Bf16Vectors> {
        let there = std::is_x86_feature_detected!("avx512bf16") && std::is_x86_feature_detected!("avx512f");
        there.then_some(Bf16Vectors(()))
    }
}

/// The product of one type of panels.
///
/// Its tiles have their rows written out: sums in an array of as many rows as a parameter says, the compiler would begin in
/// memory, by a call of memset, which waits there for what the tile before has written.
macro_rules! product {
    ($vectors:ident, $step:ty, $features:literal, $dot:ident) => {
        impl $vectors {
            /// `y (+)= x w`; `w` is some steps of a panel.
            ///
            /// Panics if a slice is too short.
            pub fn product(&self, y: &mut Tile, x: Lines<$step>, w: &[$step], add: bool) {
                assert!(x.holds(y.rows(), w.len() / PANEL));
                let mut row = 0;
                while row < y.rows() {
                    // SAFETY: `load` has seen that the CPU has the instructions; x holds y's rows and w's steps.
                    row += unsafe {
                        match y.rows() - row {
                            8.. => Self::tile_8(y, row, x, w, add),
                            4.. => Self::tile_4(y, row, x, w, add),
                            2.. => Self::tile_2(y, row, x, w, add),
                            _ => Self::tile_1(y, row, x, w, add),
                        }
                    };
                }
            }
            product!(tile tile_8, 8, [0 1 2 3 4 5 6 7], $step, $features, $dot);
            product!(tile tile_4, 4, [0 1 2 3], $step, $features, $dot);
            product!(tile tile_2, 2, [0 1], $step, $features, $dot);
            product!(tile tile_1, 1, [0], $step, $features, $dot);
        }
    };
    (tile $name:ident, $rows:literal, [$($r:literal)*], $step:ty, $features:literal, $dot:ident) => {
        /// So many rows from `row` on; gives their number.
        ///
        /// # Safety
        /// - the CPU has the instructions
        /// - `x` holds so many rows from `row` on, and of each the steps of `w`
        #[target_feature(enable = $features)]
        unsafe fn $name(y: &mut Tile, row: usize, x: Lines<$step>, w: &[$step], add: bool) -> usize {
            $( [0, 16, 32].into_iter().for_each(|column| y.fetch(row + $r, column)); )*
            let zero = _mm512_setzero_ps();
            let mut sums = [$({ let _ = $r; [zero, zero, zero] }),*];
            for (k, w) in w.as_chunks::<PANEL>().0.iter().enumerate() {
                // SAFETY: a vector is 16 of the 48 steps; x holds as many rows, and step k of each.
                unsafe {
                    let w = [0, 16, 32].map(|at| _mm512_loadu_si512(w.as_ptr().add(at).cast()));
                    $(
                        let step = _mm512_set1_epi32(x.steps.as_ptr().add((row + $r) * x.stride + k * x.step).cast::<i32>().read_unaligned());
                        sums[$r][0] = $dot!(sums[$r][0], step, w[0]);
                        sums[$r][1] = $dot!(sums[$r][1], step, w[1]);
                        sums[$r][2] = $dot!(sums[$r][2], step, w[2]);
                    )*
                }
            }
            $(
                let to = y.row(row + $r);
                for (v, &sum) in sums[$r].iter().enumerate() {
                    let at = to.len().min(16 * v);
                    let mask = ((1u32 << (to.len() - at).min(16)) - 1) as __mmask16;
                    // SAFETY: the mask has as many lanes as there are numbers.
                    unsafe {
                        let to = to.as_mut_ptr().add(at);
                        let before = if add { _mm512_maskz_loadu_ps(mask, to) } else { zero };
                        _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, sum));
                    }
                }
            )*
            $rows
        }
    };
}

/// `sum + x w` of two f32.
macro_rules! multiply {
    ($sum:expr, $x:expr, $w:expr) => {
        _mm512_fmadd_ps(_mm512_castsi512_ps($x), _mm512_castsi512_ps($w), $sum)
    };
}

/// `sum + x w` of two pairs.
macro_rules! multiply_pairs {
    ($sum:expr, $x:expr, $w:expr) => {
        _mm512_dpbf16_ps($sum, to_bf16($x), to_bf16($w))
    };
}

product!(F32Vectors, f32, "avx512f", multiply);
product!(Bf16Vectors, Pair, "avx512f,avx512bf16", multiply_pairs);

impl Bf16Vectors {
    /// So many instructions in each of 12 sums; gives the operations.
    pub fn spin(&self, rounds: usize) -> usize {
        // SAFETY: `load` has seen that the CPU has the instructions.
        unsafe { spin(rounds) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn spin(rounds: usize) -> usize {
    let x = std::hint::black_box(_mm512_set1_epi32(0x3f00_3f00));
    let mut sums = [_mm512_castsi512_ps(x); 12];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, to_bf16(x), to_bf16(x)));
    }
    std::hint::black_box(sums);
    4 * 16 * sums.len() * rounds
}

#[inline(always)]
fn to_bf16(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 plain bytes.
    unsafe { std::mem::transmute(v) }
}
