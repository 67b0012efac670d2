//! The bf16 matrix product of the CPU: AVX512-BF16 over weights packed once, or a widening fallback.
//!
//! No Rust crate multiplies bf16. The micro-kernel holds an 8 x 48 tile of `y` in 24 vector
//! registers; a step over two k multiplies one broadcast pair of `x` with 48 pairs of `w`.

use half::bf16;
use rayon::prelude::*;

/// Output columns per panel: three vectors of 16.
pub const PANEL: usize = 48;
const ROWS: usize = 8;

/// A bf16 weight `[M, K]` stored as panels of 48 rows, k in pairs: `[M / 48][K / 2][48][2]`.
///
/// Short last panels and an odd K are padded with zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    rows: usize,
    cols: usize,
    data: Vec<[bf16; 2]>,
}

impl Panels {
    /// Bytes that a `[rows, cols]` weight takes.
    pub fn bytes(rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL) * cols.div_ceil(2) * PANEL * 4
    }

    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Panels {
        Panels { rows, cols, data: vec![[bf16::ZERO; 2]; Self::bytes(rows, cols) / 4] }
    }

    /// `[M, K]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Rounds one row of the weight into its place.
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        let base = row / PANEL * self.cols.div_ceil(2) * PANEL + row % PANEL;
        for (k, &v) in values.iter().enumerate() {
            self.data[base + k / 2 * PANEL][k % 2] = bf16::from_f32(v);
        }
    }

    /// `y[N, M] = x[N, K] w^T`, added to `y` where `add`. `x` is rounded to bf16, sums are f32.
    ///
    /// Panics if the slices are not `n` rows long.
    pub fn matmul(&self, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        assert!(y.len() == n * self.rows && x.len() == n * self.cols);
        if n == 0 {
            return;
        }
        let pairs = self.cols.div_ceil(2);
        let block = block_rows(n);
        y.par_chunks_mut(block * self.rows).zip(x.par_chunks(block * self.cols)).for_each_init(
            Vec::new,
            |xb, (y, x)| {
                round_rows(xb, x, self.cols);
                for (p, w) in self.data.chunks(pairs * PANEL).enumerate() {
                    let width = PANEL.min(self.rows - p * PANEL);
                    for (i, xr) in xb.chunks(ROWS * pairs).enumerate() {
                        let tile = &mut y[i * ROWS * self.rows + p * PANEL..];
                        tile_product(tile, self.rows, width, xr, pairs, w, add);
                    }
                }
            },
        );
    }
}

/// Whether this CPU multiplies bf16 itself.
pub fn native() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16") && std::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Rows per task: enough for the panel of `w` to be worth its trip from memory, few enough for all cores.
fn block_rows(n: usize) -> usize {
    n.div_ceil(rayon::current_num_threads()).next_multiple_of(ROWS).min(128)
}

fn round_rows(out: &mut Vec<[bf16; 2]>, x: &[f32], cols: usize) {
    out.clear();
    crate::device::cpu::simd(
        #[inline(always)]
        || {
            for row in x.chunks(cols) {
                let (even, odd) = row.as_chunks::<2>();
                out.extend(even.iter().map(|&[a, b]| [round(a), round(b)]));
                out.extend(odd.iter().map(|&a| [round(a), bf16::ZERO]));
            }
        },
    );
}

/// Round to nearest even without a branch, so that the loop vectorises (NaN payloads may become infinite).
#[inline(always)]
fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    bf16::from_bits(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
}

/// `y[rows of x, width] (+)= x w`, `x` up to 8 rows of `pairs`, `w` one panel.
fn tile_product(
    y: &mut [f32],
    stride: usize,
    width: usize,
    x: &[[bf16; 2]],
    pairs: usize,
    w: &[[bf16; 2]],
    add: bool,
) {
    let rows = x.len() / pairs;
    assert!(rows <= ROWS && w.len() == pairs * PANEL && y.len() >= (rows - 1) * stride + width);
    #[cfg(target_arch = "x86_64")]
    if native() {
        // SAFETY: the CPU has the instructions; the assert above bounds all three operands.
        unsafe {
            match rows {
                8 => avx512::tile::<8>(y, stride, width, x, pairs, w, add),
                r => {
                    for i in 0..r {
                        let y = &mut y[i * stride..];
                        avx512::tile::<1>(y, stride, width, &x[i * pairs..], pairs, w, add);
                    }
                }
            }
        }
        return;
    }
    crate::device::cpu::simd(
        #[inline(always)]
        || {
            for (i, x) in x.chunks(pairs).enumerate() {
                let mut sum = [0f32; PANEL];
                for (x, w) in x.iter().zip(w.chunks(PANEL)) {
                    let (a, b) = (f32::from(x[0]), f32::from(x[1]));
                    for (s, w) in sum.iter_mut().zip(w) {
                        *s += a * f32::from(w[0]) + b * f32::from(w[1]);
                    }
                }
                for (y, s) in y[i * stride..][..width].iter_mut().zip(sum) {
                    *y = if add { *y + s } else { s };
                }
            }
        },
    );
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{PANEL, bf16};
    use std::arch::x86_64::*;

    /// An `R` x 48 tile.
    ///
    /// # Safety
    /// - the CPU has avx512f and avx512bf16
    /// - `x` holds `R * pairs`, `w` holds `pairs * 48` pairs, `y` reaches `(R - 1) * stride + width`
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tile<const R: usize>(
        y: &mut [f32],
        stride: usize,
        width: usize,
        x: &[[bf16; 2]],
        pairs: usize,
        w: &[[bf16; 2]],
        add: bool,
    ) {
        let mut acc = [[_mm512_setzero_ps(); 3]; R];
        let (x, w) = (x.as_ptr().cast::<i32>(), w.as_ptr().cast::<i32>());
        for k in 0..pairs {
            // SAFETY: k < pairs and the caller's bounds on x and w.
            unsafe {
                let wk = w.add(k * PANEL);
                let wv = [0, 16, 32].map(|o| to_bf16(_mm512_loadu_si512(wk.add(o).cast())));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let xv = to_bf16(_mm512_set1_epi32(x.add(r * pairs + k).read_unaligned()));
                    for (a, wv) in acc.iter_mut().zip(wv) {
                        *a = _mm512_dpbf16_ps(*a, xv, wv);
                    }
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, &sum) in acc.iter().enumerate() {
                let lanes = width.saturating_sub(16 * v).min(16);
                let mask = ((1u32 << lanes) - 1) as __mmask16;
                // SAFETY: masked lanes stay inside row r of y, which the caller bounds.
                unsafe {
                    let p = y.as_mut_ptr().add((r * stride + 16 * v).min(y.len()));
                    let old = if add { _mm512_maskz_loadu_ps(mask, p) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(p, mask, _mm512_add_ps(old, sum));
                }
            }
        }
    }

    #[inline(always)]
    fn to_bf16(v: __m512i) -> __m512bh {
        // SAFETY: both are 64 plain bytes.
        unsafe { std::mem::transmute(v) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ragged in every direction: tails of rows, columns and an odd K, adding and overwriting.
    #[test]
    fn equals_the_f64_product_of_the_rounded_operands() {
        for (n, m, k) in [(1, 1, 1), (3, 47, 5), (8, 48, 16), (9, 49, 33), (200, 100, 258)] {
            let x: Vec<f32> = (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
            let w: Vec<f32> = (0..m * k).map(|i| ((i * 53 % 89) as f32 - 44.0) / 29.0).collect();
            let mut panels = Panels::zeros(m, k);
            w.chunks(k).enumerate().for_each(|(r, row)| panels.set_row(r, row));
            let mut y = vec![f32::NAN; n * m];
            panels.matmul(&mut y, &x, n, false);
            panels.matmul(&mut y, &x, n, true);
            let r = |v: f32| bf16::from_f32(v).to_f64();
            for (i, got) in y.iter().enumerate() {
                let exact: f64 = (0..k).map(|t| 2.0 * r(x[i / m * k + t]) * r(w[i % m * k + t])).sum();
                assert!((*got as f64 - exact).abs() < 1e-5 * k as f64, "[{n},{m},{k}] {i}: {got} {exact}");
            }
        }
    }
}
