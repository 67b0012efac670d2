//! The bf16 matrix product of the CPU over weights packed once: AMX, AVX512-BF16, or a widening fallback.
//!
//! No Rust crate multiplies bf16. All three read the same panels. The AVX512 micro-kernel holds an 8 x 48
//! tile of `y` in 24 vector registers; a step over two k multiplies one broadcast pair of `x` with 48 pairs of `w`.

use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::amx::Tiles;

/// Output columns per panel: three vectors of 16.
pub const PANEL: usize = 48;
const ROWS: usize = 8;
/// Rows of a tile product, to which blocks are padded.
const TILE_ROWS: usize = 32;

/// A bf16 weight `[M, K]` stored as panels of 48 rows, k in pairs: `[M / 48][K / 2][48][2]`.
///
/// Short last panels and a last k step shorter than 32 are padded with zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    rows: usize,
    cols: usize,
    data: Vec<[bf16; 2]>,
}

impl Panels {
    /// Bytes that a `[rows, cols]` weight takes.
    pub fn bytes(rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL) * pairs(cols) * PANEL * 4
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
        let base = row / PANEL * pairs(self.cols) * PANEL + row % PANEL;
        for (k, &v) in values.iter().enumerate() {
            self.data[base + k / 2 * PANEL][k % 2] = bf16::from_f32(v);
        }
    }

    /// One row of the weight, widened: the inverse of [`Panels::set_row`].
    pub fn row(&self, row: usize) -> impl Iterator<Item = bf16> + '_ {
        let base = row / PANEL * pairs(self.cols) * PANEL + row % PANEL;
        (0..self.cols).map(move |k| self.data[base + k / 2 * PANEL][k % 2])
    }

    /// `y[N, M] = x[N, K] w^T`, added to `y` where `add`. `x` is rounded to bf16, sums are f32.
    ///
    /// Panics if the slices are not `n` rows long.
    pub fn matmul(&self, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        self.matmul_on(Tiles::load, y, x, n, add);
    }

    fn matmul_on(&self, tiles: fn() -> Option<Tiles>, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        assert!(y.len() == n * self.rows && x.len() == n * self.cols);
        if n == 0 {
            return;
        }
        let pairs = pairs(self.cols);
        let block = block_rows(n);
        y.par_chunks_mut(block * self.rows).zip(x.par_chunks(block * self.cols)).for_each_init(
            || (Vec::new(), tiles()),
            |(xb, tiles), (y, x)| {
                let n = x.len() / self.cols;
                round_rows(xb, x, self.cols);
                for (p, w) in self.data.chunks(pairs * PANEL).enumerate() {
                    let width = PANEL.min(self.rows - p * PANEL);
                    let y = &mut y[p * PANEL..];
                    match tiles {
                        Some(tiles) => tile_panel(tiles, y, (self.rows, width), xb, (n, pairs), w, add),
                        None => {
                            for (i, xr) in xb[..n * pairs].chunks(ROWS * pairs).enumerate() {
                                tile_product(
                                    &mut y[i * ROWS * self.rows..],
                                    self.rows,
                                    width,
                                    xr,
                                    pairs,
                                    w,
                                    add,
                                );
                            }
                        }
                    }
                }
            },
        );
    }
}

/// What multiplies bf16 on this CPU, for `info`.
pub fn native() -> Option<&'static str> {
    if Tiles::load().is_some() {
        Some("AMX-BF16")
    } else if avx512bf16() {
        Some("AVX512-BF16")
    } else {
        None
    }
}

fn avx512bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16") && std::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Tile registers exist on x86-64 alone.
#[cfg(not(target_arch = "x86_64"))]
enum Tiles {}

#[cfg(not(target_arch = "x86_64"))]
impl Tiles {
    fn load() -> Option<Tiles> {
        None
    }

    fn product(&self, _: &mut [f32], _: usize, _: &[[bf16; 2]], _: usize, _: &[[bf16; 2]], _: bool) {
        match *self {}
    }
}

/// Pairs per row of `k`, padded to whole tiles of AMX.
fn pairs(cols: usize) -> usize {
    cols.div_ceil(32) * 16
}

/// Rows per task: enough for the panel of `w` to be worth its trip from memory, few enough for all cores.
fn block_rows(n: usize) -> usize {
    n.div_ceil(rayon::current_num_threads()).next_multiple_of(TILE_ROWS).min(256)
}

/// `x` as bf16 pairs, each row padded to whole steps of k, all rows to whole tiles of 32.
fn round_rows(out: &mut Vec<[bf16; 2]>, x: &[f32], cols: usize) {
    let pairs = pairs(cols);
    out.clear();
    out.resize((x.len() / cols).next_multiple_of(TILE_ROWS) * pairs, [bf16::ZERO; 2]);
    crate::device::cpu::simd(
        #[inline(always)]
        || {
            for (out, row) in out.chunks_mut(pairs).zip(x.chunks(cols)) {
                let (even, odd) = row.as_chunks::<2>();
                for (o, &[a, b]) in out.iter_mut().zip(even) {
                    *o = [round(a), round(b)];
                }
                if let &[a] = odd {
                    out[even.len()][0] = round(a);
                }
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

/// `y[n, width] (+)= x w` by tiles of 32 x 48; ragged ones go through a whole tile of their own.
fn tile_panel(
    tiles: &Tiles,
    y: &mut [f32],
    (stride, width): (usize, usize),
    x: &[[bf16; 2]],
    (n, pairs): (usize, usize),
    w: &[[bf16; 2]],
    add: bool,
) {
    for (i, x) in x.chunks(TILE_ROWS * pairs).enumerate() {
        let (y, rows) = (&mut y[i * TILE_ROWS * stride..], TILE_ROWS.min(n - i * TILE_ROWS));
        if rows == TILE_ROWS && width == PANEL {
            tiles.product(y, stride, x, pairs, w, add);
            continue;
        }
        let mut tile = [0.0; TILE_ROWS * PANEL];
        tiles.product(&mut tile, PANEL, x, pairs, w, true);
        for (y, t) in y.chunks_mut(stride).zip(tile.chunks(PANEL)).take(rows) {
            for (y, &t) in y[..width].iter_mut().zip(t) {
                *y = if add { *y + t } else { t };
            }
        }
    }
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
    if avx512bf16() {
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
        for (n, m, k) in [(1, 1, 1), (3, 47, 5), (32, 48, 32), (33, 49, 33), (600, 100, 258)] {
            let x: Vec<f32> = (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
            let w: Vec<f32> = (0..m * k).map(|i| ((i * 53 % 89) as f32 - 44.0) / 29.0).collect();
            let mut panels = Panels::zeros(m, k);
            w.chunks(k).enumerate().for_each(|(r, row)| panels.set_row(r, row));
            let r = |v: f32| bf16::from_f32(v).to_f64();
            for tiles in [Tiles::load, || None] {
                let mut y = vec![f32::NAN; n * m];
                panels.matmul_on(tiles, &mut y, &x, n, false);
                panels.matmul_on(tiles, &mut y, &x, n, true);
                for (i, got) in y.iter().enumerate() {
                    let exact: f64 = (0..k).map(|t| 2.0 * r(x[i / m * k + t]) * r(w[i % m * k + t])).sum();
                    assert!(
                        (*got as f64 - exact).abs() < 1e-5 * k as f64,
                        "[{n},{m},{k}] {i}: {got} {exact}"
                    );
                }
            }
        }
    }
}
