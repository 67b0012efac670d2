//! The bf16 matrix product of the CPU over weights packed once: AMX, AVX512-BF16, or a widening fallback.
//!
//! No Rust crate multiplies bf16. All three read the same panels. The AVX512 micro-kernel holds an 8 x 48
//! tile of `y` in 24 vector registers; a step over two k multiplies one broadcast pair of `x` with 48 pairs of `w`.

#[cfg(target_arch = "x86_64")]
mod amx;
mod fill;

use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use amx::Tiles;
#[cfg(target_arch = "x86_64")]
use avx512::Vectors;

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
        // The system's zeros, which nobody has to write: whoever fills them touches them first.
        Panels { rows, cols, data: bytemuck::zeroed_vec(Self::bytes(rows, cols) / 4) }
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
    /// A row of `y` has the same bits whatever rows are beside it. Panics if the slices are not `n` rows long.
    pub fn matmul(&self, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        self.matmul_on(Native::load, y, x, n, add);
    }

    fn matmul_on<U: Unit>(&self, load: fn() -> U, y: &mut [f32], x: &[f32], n: usize, add: bool) {
        assert!(y.len() == n * self.rows && x.len() == n * self.cols);
        if n == 0 {
            return;
        }
        let pairs = pairs(self.cols);
        let block = block_rows(n);
        y.par_chunks_mut(block * self.rows).zip(x.par_chunks(block * self.cols)).for_each_init(
            || (Vec::new(), load()),
            |(xb, unit), (y, x)| {
                let n = x.len() / self.cols;
                round_rows(xb, x, self.cols);
                for (p, w) in self.data.chunks(pairs * PANEL).enumerate() {
                    let width = PANEL.min(self.rows - p * PANEL);
                    unit.panel(&mut y[p * PANEL..], [self.rows, width], xb, [n, pairs], w, add);
                }
            },
        );
    }
}

/// What multiplies rows by a panel.
trait Unit {
    /// `y[n, width] (+)= x w`, rows of `y` being `stride` apart; `x` is padded to whole tiles of 32 rows.
    fn panel(
        &self,
        y: &mut [f32],
        stride_and_width: [usize; 2],
        x: &[[bf16; 2]],
        n_and_pairs: [usize; 2],
        w: &[[bf16; 2]],
        add: bool,
    );
}

/// The three that there are.
enum Native {
    Amx(Tiles),
    Avx512(Vectors),
    Widening,
}

impl Native {
    /// The quickest that this CPU has.
    fn load() -> Native {
        match Tiles::load() {
            Some(tiles) => Native::Amx(tiles),
            None => Native::without_tiles(),
        }
    }

    /// The quickest beside tiles.
    fn without_tiles() -> Native {
        Vectors::load().map_or(Native::Widening, Native::Avx512)
    }
}

impl Unit for Native {
    fn panel(
        &self,
        y: &mut [f32],
        [stride, width]: [usize; 2],
        x: &[[bf16; 2]],
        [n, pairs]: [usize; 2],
        w: &[[bf16; 2]],
        add: bool,
    ) {
        if let Native::Amx(tiles) = self {
            let product = |y: &mut [f32], stride: usize, x: &[[bf16; 2]], add: bool| {
                tiles.product(y, stride, x, pairs, w, add);
            };
            return tile_panel(product, y, [stride, width], x, [n, pairs], add);
        }
        for (i, x) in x[..n * pairs].chunks(ROWS * pairs).enumerate() {
            let y = &mut y[i * ROWS * stride..];
            match self {
                Native::Avx512(vectors) => vectors.product(y, [stride, width], x, pairs, w, add),
                _ => widening_product(y, [stride, width], x, pairs, w, add),
            }
        }
    }
}

/// What multiplies bf16 on this CPU, for `info`.
pub fn native() -> Option<&'static str> {
    match Native::load() {
        Native::Amx(_) => Some("AMX-BF16"),
        Native::Avx512(_) => Some("AVX512-BF16"),
        Native::Widening => None,
    }
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

/// And so do these vectors.
#[cfg(not(target_arch = "x86_64"))]
enum Vectors {}

#[cfg(not(target_arch = "x86_64"))]
impl Vectors {
    fn load() -> Option<Vectors> {
        None
    }

    fn product(&self, _: &mut [f32], _: [usize; 2], _: &[[bf16; 2]], _: usize, _: &[[bf16; 2]], _: bool) {
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

/// `y[n, width] (+)= x w` by tiles of 32 x 48: `product(y, stride, x, add)` is that of a whole one.
///
/// Ragged ones go through a whole tile of their own, which begins with what is in `y`: a row's sum is taken in the same
/// order in both, or its bits would say how many rows are beside it.
fn tile_panel(
    product: impl Fn(&mut [f32], usize, &[[bf16; 2]], bool),
    y: &mut [f32],
    [stride, width]: [usize; 2],
    x: &[[bf16; 2]],
    [n, pairs]: [usize; 2],
    add: bool,
) {
    for (i, x) in x.chunks(TILE_ROWS * pairs).enumerate() {
        let (y, rows) = (&mut y[i * TILE_ROWS * stride..], TILE_ROWS.min(n - i * TILE_ROWS));
        if rows == TILE_ROWS && width == PANEL {
            product(y, stride, x, add);
            continue;
        }
        let mut tile = [0.0; TILE_ROWS * PANEL];
        let rows = || (0..rows).map(|r| (r * stride, r * PANEL));
        if add {
            rows().for_each(|(y_at, at)| tile[at..][..width].copy_from_slice(&y[y_at..][..width]));
        }
        product(&mut tile, PANEL, x, true);
        rows().for_each(|(y_at, at)| y[y_at..][..width].copy_from_slice(&tile[at..][..width]));
    }
}

/// `y[rows of x, width] (+)= x w` in f32, `w` one panel.
fn widening_product(
    y: &mut [f32],
    [stride, width]: [usize; 2],
    x: &[[bf16; 2]],
    pairs: usize,
    w: &[[bf16; 2]],
    add: bool,
) {
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
    use super::{PANEL, ROWS, bf16};
    use std::arch::x86_64::*;

    /// The instructions are there.
    pub struct Vectors(());

    impl Vectors {
        /// None where the CPU lacks AVX512-BF16.
        pub fn load() -> Option<Vectors> {
            let there =
                std::is_x86_feature_detected!("avx512bf16") && std::is_x86_feature_detected!("avx512f");
            there.then_some(Vectors(()))
        }

        /// `y[rows of x, width] (+)= x w`, `x` up to 8 rows of `pairs`, `w` one panel.
        ///
        /// Panics if a slice is too short.
        pub fn product(
            &self,
            y: &mut [f32],
            [stride, width]: [usize; 2],
            x: &[[bf16; 2]],
            pairs: usize,
            w: &[[bf16; 2]],
            add: bool,
        ) {
            let rows = x.len() / pairs;
            assert!(rows <= ROWS && width <= PANEL && w.len() == pairs * PANEL);
            assert!(y.len() >= (rows - 1) * stride + width);
            // SAFETY: `load` has seen that the CPU has the instructions; the asserts bound all three operands.
            unsafe {
                if rows == ROWS {
                    return tile::<ROWS>(y, stride, width, x, pairs, w, add);
                }
                for (i, x) in x.chunks_exact(pairs).enumerate() {
                    tile::<1>(&mut y[i * stride..], stride, width, x, pairs, w, add);
                }
            }
        }
    }

    /// An `R` x 48 tile.
    ///
    /// # Safety
    /// - the CPU has avx512f and avx512bf16
    /// - `x` holds `R * pairs`, `w` holds `pairs * 48` pairs, `y` reaches `(R - 1) * stride + width`
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile<const R: usize>(
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

    /// Tile registers as the manual defines them: each step over 16 pairs sums the products of even and of odd k from zero,
    /// and adds the sum of both to `y`.
    struct Model;

    impl Unit for Model {
        fn panel(
            &self,
            y: &mut [f32],
            ragged: [usize; 2],
            x: &[[bf16; 2]],
            [n, pairs]: [usize; 2],
            w: &[[bf16; 2]],
            add: bool,
        ) {
            let product = |y: &mut [f32], stride: usize, x: &[[bf16; 2]], add: bool| {
                for (r, c) in (0..TILE_ROWS * PANEL).map(|i| (i / PANEL, i % PANEL)) {
                    let mut sum = if add { y[r * stride + c] } else { 0.0 };
                    for step in (0..pairs).step_by(16) {
                        let half = |i: usize| {
                            let product =
                                |k: usize| x[r * pairs + k][i].to_f32() * w[k * PANEL + c][i].to_f32();
                            (step..step + 16).fold(0.0, |sum, k| sum + product(k))
                        };
                        sum += half(0) + half(1);
                    }
                    y[r * stride + c] = sum;
                }
            };
            tile_panel(product, y, ragged, x, [n, pairs], add);
        }
    }

    type Product = fn(&Panels, &mut [f32], &[f32], usize, bool);

    /// Every unit that this CPU has, and the model of the one that it may lack.
    fn units() -> Vec<(&'static str, Product)> {
        let mut units: Vec<(&str, Product)> = vec![
            ("widening", |p, y, x, n, add| p.matmul_on(|| Native::Widening, y, x, n, add)),
            ("tile model", |p, y, x, n, add| p.matmul_on(|| Model, y, x, n, add)),
        ];
        if Vectors::load().is_some() {
            units.push(("AVX512-BF16", |p, y, x, n, add| p.matmul_on(Native::without_tiles, y, x, n, add)));
        }
        if Tiles::load().is_some() {
            units.push(("AMX-BF16", Panels::matmul));
        }
        units
    }

    fn operands(n: usize, m: usize, k: usize) -> (Vec<f32>, Vec<f32>, Panels) {
        let x = (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
        let w: Vec<f32> = (0..m * k).map(|i| ((i * 53 % 89) as f32 - 44.0) / 29.0).collect();
        let mut panels = Panels::zeros(m, k);
        w.chunks(k).enumerate().for_each(|(r, row)| panels.set_row(r, row));
        (x, w, panels)
    }

    /// Ragged in every direction: tails of rows, columns and an odd K, adding and overwriting.
    #[test]
    fn equals_the_f64_product_of_the_rounded_operands() {
        for (n, m, k) in [(1, 1, 1), (3, 47, 5), (32, 48, 32), (33, 49, 33), (600, 100, 258)] {
            let (x, w, panels) = operands(n, m, k);
            let r = |v: f32| bf16::from_f32(v).to_f64();
            for (unit, product) in units() {
                let mut y = vec![f32::NAN; n * m];
                product(&panels, &mut y, &x, n, false);
                product(&panels, &mut y, &x, n, true);
                for (i, got) in y.iter().enumerate() {
                    let exact: f64 = (0..k).map(|t| 2.0 * r(x[i / m * k + t]) * r(w[i % m * k + t])).sum();
                    assert!(
                        (*got as f64 - exact).abs() < 1e-5 * k as f64,
                        "{unit} [{n},{m},{k}] {i}: {got} {exact}"
                    );
                }
            }
        }
    }

    /// Rows of whole and of ragged tiles, adding to what is in `y` and overwriting.
    #[test]
    fn a_row_has_the_same_bits_whatever_rows_are_beside_it() {
        const N: usize = 150;
        for (m, k) in [(48, 64), (100, 258), (20, 700)] {
            let (x, _, panels) = operands(N, m, k);
            let before: Vec<f32> = (0..N * m).map(|i| ((i * 29 % 83) as f32 - 41.0) / 7.0).collect();
            for ((unit, product), add) in units().into_iter().flat_map(|u| [(u, false), (u, true)]) {
                let rows = |first: usize, n: usize| {
                    let mut y = before[first * m..][..n * m].to_vec();
                    product(&panels, &mut y, &x[first * k..][..n * k], n, add);
                    y.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                let all = rows(0, N);
                for (first, n) in [(0, 1), (149, 1), (3, 7), (5, 8), (31, 9), (17, 32), (1, 33), (40, 95)] {
                    let same = rows(first, n) == all[first * m..][..n * m];
                    assert!(same, "{unit} [{m},{k}], add {add}: {n} rows from {first} differ");
                }
            }
        }
    }
}
