//! Every unit that this CPU has, and the tiles that it may lack, against f64.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;

use super::*;
use half::bf16;

type Forward = Box<dyn Fn(&Panels, &mut [f32], &[f32], usize, bool)>;
type Back = Box<dyn Fn(&Panels, &mut [f32], &[f32], usize)>;

/// A unit's name, whether it takes bf16, its two products.
type Case = (&'static str, bool, Forward, Back);

fn case<S: Step, P: Gives<S>, U: Unit<S> + 'static>(
    name: &'static str,
    of: fn(&Panels) -> &Packed<P>,
    load: fn() -> U,
) -> Case {
    let forward = move |p: &Panels, y: &mut [f32], x: &[f32], n, add| of(p).matmul(load, y, x, n, add);
    let back = move |p: &Panels, dx: &mut [f32], dy: &[f32], n| of(p).matmul_back(load, dx, dy, n);
    (name, P::NUMBERS == 2, Box::new(forward), Box::new(back))
}

fn half(panels: &Panels) -> &Packed<Pair> {
    let Panels::Bf16(packed) = panels else { unreachable!() };
    packed
}

fn single(panels: &Panels) -> &Packed<f32> {
    let Panels::F32(packed) = panels else { unreachable!() };
    packed
}

fn units() -> Vec<Case> {
    let mut units = vec![
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        case("tiles", half, || Half::Amx(tiles::load())),
        case::<Wide, _, _>("bf16 widened", half, Single::load),
        case::<Wide, _, _>("bf16 widened, portable", half, || Single::Portable),
        case::<f32, _, _>("f32 as it comes", single, Single::load),
        case::<f32, _, _>("f32 without AVX-512", single, Single::narrow),
        case::<f32, _, _>("f32, portable", single, || Single::Portable),
    ];
    if bf16_unit().is_some() {
        units.push(case("bf16 as it comes", half, Half::load));
    }
    if Half::without_tiles().is_some() {
        units.push(case("bf16 without tiles", half, || Half::without_tiles().unwrap()));
    }
    units
}

fn numbers(n: usize, step: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * step % 101) as f32 - 50.0) / 31.0).collect()
}

fn packed(bf16: bool, w: &[f32], m: usize, k: usize) -> Panels {
    let mut panels = Panels::zeros(bf16, m, k);
    w.chunks(k).enumerate().for_each(|(r, row)| panels.set_row(r, row));
    panels
}

fn is_the_f64_product_of_the_rounded_operands([n, m, k]: [usize; 3]) {
    let (x, w, dy) = (numbers(n * k, 37), numbers(m * k, 53), numbers(n * m, 43));
    for (unit, bf16, forward, back) in units() {
        let panels = packed(bf16, &w, m, k);
        let r = |v: f32| if bf16 { bf16::from_f32(v).to_f64() } else { v.into() };
        let near = |what: &str, i: usize, got: f32, exact: f64, depth: usize| {
            let bound = 1e-5 * depth as f64;
            assert!((f64::from(got) - exact).abs() < bound, "{unit} {what} [{n},{m},{k}] {i}: {got} {exact}");
        };
        let mut y = vec![f32::NAN; n * m];
        forward(&panels, &mut y, &x, n, false);
        forward(&panels, &mut y, &x, n, true);
        for (i, got) in y.iter().enumerate() {
            let exact: f64 = (0..k).map(|t| 2.0 * r(x[i / m * k + t]) * r(w[i % m * k + t])).sum();
            near("forward", i, *got, exact, k);
        }
        let mut dx = vec![f32::NAN; n * k];
        back(&panels, &mut dx, &dy, n);
        for (i, got) in dx.iter().enumerate() {
            let exact: f64 = (0..m).map(|t| r(dy[i / k * m + t]) * r(w[t * k + i % k])).sum();
            near("backward", i, *got, exact, m);
        }
    }
}

/// Ragged in every direction: tails of rows, columns, an odd K, several depths; adding, overwriting, and backward.
#[test]
fn products_are_those_of_the_rounded_operands() {
    for size in
        [[1, 1, 1], [3, 47, 5], [32, 48, 32], [33, 49, 33], [600, 100, 258], [9, 1009, 970], [2, 95, 2048]]
    {
        is_the_f64_product_of_the_rounded_operands(size);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]
    #[test]
    fn products_of_any_shape_are(n in 1..70usize, m in 1..170usize, k in 1..1200usize) {
        is_the_f64_product_of_the_rounded_operands([n, m, k]);
    }
}

/// Rows of whole and of ragged tiles, adding to what is in `y` and overwriting, and backward.
#[test]
fn a_row_has_the_same_bits_whatever_rows_are_beside_it() {
    const N: usize = 300;
    for (m, k) in [(48, 64), (100, 258), (20, 1300)] {
        for (unit, bf16, forward, back) in units() {
            let (x, panels) = (numbers(N * k, 37), packed(bf16, &numbers(m * k, 53), m, k));
            let before = numbers(N * m, 29);
            for way in 0..3 {
                let rows = |first: usize, n: usize| {
                    let mut y = before[first * m..][..n * m].to_vec();
                    let mut dx = vec![f32::NAN; n * k];
                    match way {
                        2 => back(&panels, &mut dx, &y, n),
                        add => forward(&panels, &mut y, &x[first * k..][..n * k], n, add == 1),
                    }
                    if way == 2 { dx } else { y }.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                let (all, wide) = (rows(0, N), if way == 2 { k } else { m });
                for (first, n) in
                    [(0, 1), (149, 1), (3, 7), (5, 8), (31, 9), (17, 32), (1, 33), (40, 95), (9, 280)]
                {
                    let same = rows(first, n) == all[first * wide..][..n * wide];
                    assert!(same, "{unit} [{m},{k}], way {way}: {n} rows from {first} differ");
                }
            }
        }
    }
}

/// As many steps as two threads pack in two parts, the second from row 768 on.
#[test]
fn rows_that_are_packed_later_are_the_same_as_alone() {
    let (n, m) = (1100, 1536);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (bf16, k) in [(false, 4096), (true, 8192)] {
        let (x, panels) = (numbers(n * k, 37), packed(bf16, &numbers(m * k, 53), m, k));
        let rows = |first: usize, n: usize| {
            let mut y = vec![f32::NAN; n * m];
            pool.install(|| panels.matmul(&mut y, &x[first * k..][..n * k], n, false));
            y
        };
        let all = rows(0, n);
        for (first, n) in [(0, 1), (383, 2), (767, 2), (1099, 1)] {
            assert!(rows(first, n) == all[first * m..][..n * m], "bf16 {bf16}: {n} rows from {first} differ");
        }
    }
}

/// One thread or several.
#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (n, m, k) = (70, 500, 1100);
    let (x, dy) = (numbers(n * k, 37), numbers(n * m, 43));
    for bf16 in [false, true] {
        let panels = packed(bf16, &numbers(m * k, 53), m, k);
        let products = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut dx) = (vec![0.0; n * m], vec![0.0; n * k]);
            pool.install(|| {
                panels.matmul(&mut y, &x, n, false);
                panels.matmul_back(&mut dx, &dy, n);
            });
            (y, dx)
        };
        let one = products(1);
        assert!([2, 3, 5].into_iter().all(|threads| products(threads) == one), "bf16 {bf16}");
    }
}

/// Without AMX's instructions the handler has counted those of the tiles' roof.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_roof_of_tiles_counts_what_it_multiplies() {
    let before = tiles::products();
    let operations = tiles::load().spin(3);
    let products = operations / (2 * 16 * 16 * 32);
    assert_eq!(products, 18);
    assert!(amx::available() || tiles::products() - before == products);
}

#[test]
fn a_row_is_read_as_it_was_set() {
    for bf16 in [false, true] {
        let w = numbers(50 * 7, 53);
        let panels = packed(bf16, &w, 50, 7);
        for (r, row) in w.chunks(7).enumerate() {
            let mut got = [f32::NAN; 7];
            panels.row(r, |at, v| got[at] = v);
            let wanted: Vec<f32> =
                row.iter().map(|&v| if bf16 { bf16::from_f32(v).to_f32() } else { v }).collect();
            assert_eq!(got[..], wanted);
        }
    }
}

/// Any strides of x, whole and ragged tiles of rows; adding and overwriting.
#[test]
fn a_product_of_lanes_is_the_f64_product() {
    let Some(lanes) = Lanes::load() else { return };
    for (n, k, strides) in [(1, 1, [1, 1]), (7, 33, [40, 1]), (64, 50, [1, 70]), (21, 480, [3, 64])] {
        let x = numbers((n - 1) * strides[0] + (k - 1) * strides[1] + 1, 37);
        let (w, mut y) = (numbers(k * PANEL, 53), vec![[f32::NAN; PANEL]; n]);
        let w = w.as_chunks::<PANEL>().0;
        lanes.product(&mut y, &x, strides, w, false);
        lanes.product(&mut y, &x, strides, w, true);
        for (i, got) in y.as_flattened().iter().enumerate() {
            let x = |t: usize| f64::from(x[i / PANEL * strides[0] + t * strides[1]]);
            let exact: f64 = (0..k).map(|t| 2.0 * x(t) * f64::from(w[t][i % PANEL])).sum();
            assert!((f64::from(*got) - exact).abs() < 4e-7 * k as f64, "[{n},{k}] {i}: {got} {exact}");
        }
    }
}
