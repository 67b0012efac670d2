//! What the CPU functions of every op stand on: the float trait, the matrix product, SIMD dispatch.

use crate::device::DType;
use gemm_common::Parallelism;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Range, Sub};

/// A product of the GEMM crate's: sizes M, N, K; C, its column and row stride, whether it is read; A and B with theirs; the
/// factors of C and of the product; what is conjugated; threads.
type Product<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// `f32` or `f64`: every CPU function is generic over it.
pub trait Real:
    bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
{
    /// The matching tensor element type.
    const DTYPE: DType;
    /// Rounds from `f64`.
    fn of(x: f64) -> Self;
    /// Widens to `f64`.
    fn f64(self) -> f64;
    /// `e^x`, within 2 ulp; branch-free at `f32` so that loops over it vectorise.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The larger of two numbers (neither NaN).
    fn max(self, other: Self) -> Self;
    /// The matrix product for this CPU.
    fn product() -> Product<Self>;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    fn of(x: f64) -> f64 {
        x
    }
    fn f64(self) -> f64 {
        self
    }
    fn exp(self) -> f64 {
        self.exp()
    }
    fn ln(self) -> f64 {
        self.ln()
    }
    fn sqrt(self) -> f64 {
        self.sqrt()
    }
    fn max(self, other: f64) -> f64 {
        f64::max(self, other)
    }
    fn product() -> Product<f64> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self as f64
    }
    /// Cody-Waite reduction and a degree-7 polynomial on [-ln2/2, ln2/2], with the
    /// minimax coefficients of the Cephes library.
    #[inline(always)]
    fn exp(self) -> f32 {
        const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + MAGIC; // its low bits are n
        let n = shifted - MAGIC;
        let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
        let p = (p * r + 8.333_452e-3) * r + 4.166_579_6e-2;
        let p = (p * r + 0.166_666_65) * r + 0.5;
        let p = p * r * r + r + 1.0;
        let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        p * scale
    }
    fn ln(self) -> f32 {
        self.ln()
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        self.sqrt()
    }
    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if self > other { self } else { other }
    }
    fn product() -> Product<f32> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

/// `e^x`, or 0 where that is below 1e-30: what follows would be products of denormal numbers, a hundred times slower.
#[inline(always)]
pub fn exp_or_zero<T: Real>(x: T) -> T {
    let y = x.exp();
    if y < T::of(1e-30) { T::ZERO } else { y }
}

/// Runs `f` compiled for the widest vectors this CPU has.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    static ARCH: std::sync::LazyLock<pulp::Arch> = std::sync::LazyLock::new(pulp::Arch::new);
    ARCH.dispatch(f)
}

/// `sum_i a[i] * b[i]` in 16 independent partial sums, so that it vectorises; the order is fixed.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail = a16.remainder().iter().zip(b16.remainder());
    let tail = tail.fold(T::ZERO, |s, (&x, &y)| s + x * y);
    for (x, y) in a16.zip(b16) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().fold(tail, |s, &x| s + x)
}

/// A matrix inside a slice: element (i, j) at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row and column stride, in elements.
    pub strides: [usize; 2],
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix whose rows are `stride` apart.
    pub fn rows(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        Matrix { data, shape: [rows, cols], strides: [stride, 1] }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        let ([r, c], [rs, cs]) = (self.shape, self.strides);
        Matrix { data: self.data, shape: [c, r], strides: [cs, rs] }
    }

    /// Some of its columns.
    fn columns(self, columns: Range<usize>) -> Self {
        let first = (columns.start * self.strides[1]).min(self.data.len());
        Matrix { data: &self.data[first..], shape: [self.shape[0], columns.len()], ..self }
    }
}

fn last([r, c]: [usize; 2], [rs, cs]: [usize; 2]) -> usize {
    if r == 0 || c == 0 { 0 } else { (r - 1) * rs + (c - 1) * cs + 1 }
}

/// `y = alpha a b`, or `y += alpha a b` where `add`; `y` is row-major with rows `stride` apart.
///
/// `parallel` spreads it over the rayon pool. Panics if a view leaves its slice or the shapes
/// disagree: callers are ops that have checked their contracts.
pub fn matmul<T: Real>(
    y: &mut [T],
    stride: usize,
    add: bool,
    alpha: f64,
    a: Matrix<T>,
    b: Matrix<T>,
    parallel: bool,
) {
    let ([m, k], [k2, n]) = (a.shape, b.shape);
    assert!(k == k2 && last(a.shape, a.strides) <= a.data.len() && last(b.shape, b.strides) <= b.data.len());
    assert!(last([m, n], [stride, 1]) <= y.len() && stride >= n);
    if m == 0 || n == 0 {
        return;
    }
    // It likes rows of C that stand a stride apart: `yᵀ = bᵀ aᵀ` has them. A y of one column has none of its own.
    let one_column = stride <= 1;
    let (a, b) = if one_column { (a, b) } else { (b.t(), a.t()) };
    let [column_stride, row_stride] = if one_column { [1, stride] } else { [stride, 1] };
    let threads = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the three asserts bound every element the product touches; `y` is borrowed mutably,
    // so it overlaps neither operand; rows of `y` do not overlap since stride >= n.
    unsafe {
        T::product()(
            a.shape[0],
            b.shape[1],
            k,
            y.as_mut_ptr(),
            column_stride as isize,
            row_stride as isize,
            add,
            a.data.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.data.as_ptr(),
            b.strides[1] as isize,
            b.strides[0] as isize,
            T::ONE,
            T::of(alpha),
            false,
            false,
            false,
            threads,
        );
    }
}

/// Up to so many elements of `y` the GEMM crate takes dot products, in an order of their own.
const DOTS: usize = 256;
/// Up to so many rows and columns it cuts `k` at [`DEPTH`], and beyond by the sizes of caches, but never below that.
const SMALL: usize = 64;
const DEPTH: usize = 512;

/// [`matmul`] whose rows of `y` have the same bits whatever rows are beside them: `a` is tokens, `b` a weight.
///
/// Few rows are padded to as many as the GEMM crate takes as it takes many (it also has a way of its own for one), and
/// where few and many are cut along `k` in different places, it is cut here.
pub fn token_matmul<T: Real>(
    y: &mut [T],
    stride: usize,
    add: bool,
    alpha: f64,
    a: Matrix<T>,
    b: Matrix<T>,
    parallel: bool,
) {
    let ([n, k], [_, m]) = (a.shape, b.shape);
    assert!(k == b.shape[0] && last([n, m], [stride, 1]) <= y.len());
    let rows = (DOTS / m.max(1) + 1).max(2);
    if n == 0 || m == 0 || n >= rows {
        let depth = if m <= SMALL { DEPTH } else { k.max(1) };
        for first in (0..k.max(1)).step_by(depth) {
            let part = first..k.min(first + depth);
            let (a, b) = (a.columns(part.clone()), b.t().columns(part).t());
            matmul(y, stride, add || first > 0, alpha, a, b, parallel);
        }
        return;
    }
    let (mut wide_a, mut wide_y) = (vec![T::ZERO; rows * k], vec![T::ZERO; rows * m]);
    for (i, to) in wide_a.chunks_mut(k.max(1)).take(n).enumerate() {
        to.iter_mut().enumerate().for_each(|(j, to)| *to = a.data[i * a.strides[0] + j * a.strides[1]]);
    }
    if add {
        wide_y.chunks_mut(m).zip(y.chunks(stride)).take(n).for_each(|(to, y)| to.copy_from_slice(&y[..m]));
    }
    token_matmul(&mut wide_y, m, add, alpha, Matrix::rows(&wide_a, rows, k, k), b, parallel);
    y.chunks_mut(stride).zip(wide_y.chunks(m)).take(n).for_each(|(y, from)| y[..m].copy_from_slice(from));
}

/// A figure in KiB from one of Linux's `/proc` tables, in bytes: `memory("/proc/self/status", "VmHWM:")`
/// is the peak resident set. `None` on other systems.
pub fn memory(table: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(table).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Lets the peak resident set begin anew from what is resident now, where the system can.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let (got, exact) = (Real::exp(x) as f64, (x as f64).exp());
            assert!(
                (got - exact).abs() <= 2.0 * exact * f32::EPSILON as f64,
                "exp({x}) = {got}, exact {exact}"
            );
        }
    }

    /// Whatever features the dispatcher is built with.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn loops_have_the_vectors_of_the_cpu() {
        struct Lanes;
        impl pulp::WithSimd for Lanes {
            type Output = usize;
            fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        let lanes = pulp::Arch::new().dispatch(Lanes);
        let avx2 = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
        assert!(lanes >= 8 || !avx2, "{lanes} lanes");
    }

    #[test]
    fn matmul_adds_scales_and_strides() {
        let a: Vec<f64> = (0..6).map(f64::from).collect(); // [2, 3]
        let b: Vec<f64> = (0..12).map(f64::from).collect(); // [4, 3], used transposed
        let mut y = vec![1.0; 10]; // [2, 4] with rows 5 apart
        let (a, b) = (Matrix::rows(&a, 2, 3, 3), Matrix::rows(&b, 4, 3, 3).t());
        matmul(&mut y, 5, true, 2.0, a, b, false);
        assert_eq!(y, [11., 29., 47., 65., 1., 29., 101., 173., 245., 1.]);
    }

    /// At every border of the GEMM crate's ways: dot products, one row, and two rules for where `k` is cut.
    fn rows_alone_and_among_others<T: Real>() {
        const N: usize = 140;
        let numbers = |n: usize, step: usize| -> Vec<T> {
            (0..n).map(|i| T::of(((i * step % 1009) as f64 - 504.0) / 317.0)).collect()
        };
        for (m, k) in [(3, 90), (48, 1100), (64, 700), (65, 1300), (100, 33), (256, 64), (300, 1030), (40, 2)]
        {
            let (a, b, before) = (numbers(N * k, 37), numbers(m * k, 53), numbers(N * m, 71));
            for (add, alpha) in [(false, 1.0), (true, 1.0), (false, 0.3), (true, 0.3)] {
                let rows = |first: usize, n: usize| {
                    let mut y = before[first * m..][..n * m].to_vec();
                    let (a, b) = (Matrix::rows(&a[first * k..], n, k, k), Matrix::rows(&b, m, k, k).t());
                    token_matmul(&mut y, m, add, alpha, a, b, true);
                    y.into_iter().map(|y| y.f64().to_bits()).collect::<Vec<u64>>()
                };
                let all = rows(0, N);
                for (first, n) in [(0, 1), (139, 1), (5, 2), (7, 5), (20, 64), (30, 65), (3, 130)] {
                    let same = rows(first, n) == all[first * m..][..n * m];
                    assert!(same, "[{m},{k}], add {add}, alpha {alpha}: {n} rows from {first} differ");
                }
            }
        }
    }

    #[test]
    fn a_row_of_tokens_has_the_same_bits_whatever_rows_are_beside_it() {
        rows_alone_and_among_others::<f32>();
        rows_alone_and_among_others::<f64>();
    }
}
