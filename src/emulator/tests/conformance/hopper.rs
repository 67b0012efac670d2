//! A matrix product by TMA, mbarriers, a cluster and wgmma: right, as planned, and with nothing in it to spare.

use super::*;
use half::bf16;

const PTX: &str = include_str!("ptx/gemm_sm90.ptx");
const SIZES: (usize, usize, usize) = (256, 128, 320);

type Judge<'a> = Option<&'a dyn Fn(&[u8])>;

/// D = A B; `n_major`: B is K x N. What a GPU gives is judged too.
fn product(
    ptx: &str,
    kernel: &str,
    seed: u64,
    (m, n, k): (usize, usize, usize),
    judge: Judge<'_>,
) -> Result<(Vec<u8>, Counters)> {
    let n_major = kernel == "gemm_n_major";
    let (a, b) = operands((m, n, k));
    let b = if n_major { (0..k * n).map(|i| b[i % n * k + i / n]).collect() } else { b };
    let map = |rows: usize, columns: usize| TensorMap {
        element: Element::Bf16,
        address: 0,
        sizes: vec![columns as u64, rows as u64],
        strides: vec![2 * columns as u64],
        tile: vec![64, 64],
        steps: vec![1, 1],
        swizzle: Swizzle::B128,
    };
    let (rows, columns) = if n_major { (k, n) } else { (n, k) };
    let args = [
        Arg::Map(bytes_of(&a), map(m, k)),
        Arg::Map(bytes_of(&b), map(rows, columns)),
        Arg::ScratchMap(2 * m * n, map(m, n)),
        Arg::Int(k as i32),
    ];
    let launch = Launch {
        grid: [m as u32 / 128, n as u32 / 128, 1],
        block: [384, 1, 1],
        cluster: [2, 1, 1],
        shared: 3 * 32768,
        seed,
        budget: 1 << 20,
        ..Launch::default()
    };
    if let Some(judge) = judge {
        real::also(ptx, kernel, &launch, &args, |there| judge(&there[2]));
    }
    let (mut arrays, counters) = run(ptx, kernel, &launch, &args)?;
    Ok((arrays.remove(2), counters))
}

fn operands((m, n, k): (usize, usize, usize)) -> (Vec<bf16>, Vec<bf16>) {
    let round = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect();
    (round(noise(m * k, 1)), round(noise(n * k, 2)))
}

#[test]
fn the_product_is_right_and_as_planned() {
    let (m, n, k) = (512, 256, 320);
    let (a, b) = operands((m, n, k));
    let rows = |v: &[bf16]| v.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let (a, b) = (rows(&a), rows(&b));
    let mut first: Option<Vec<u8>> = None;
    for kernel in ["gemm_k_major", "gemm_n_major"] {
        let judge = |out: &[u8]| {
            for (i, d) in out.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).enumerate() {
                let terms = a[i / n * k..][..k].iter().zip(&b[i % n * k..][..k]).map(|(x, y)| x * y);
                let (sum, size) = terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()));
                let error = sum.abs() * 2f64.powi(-8) + size * k as f64 * 2f64.powi(-24);
                assert!((d - sum).abs() <= error, "{kernel} {i}: {d} {sum}");
            }
        };
        let (out, counters) = product(PTX, kernel, 0, (m, n, k), Some(&judge)).unwrap();
        judge(&out);
        // Both forms add the same numbers in the same order.
        let first = first.get_or_insert_with(|| out.clone());
        assert!(*first == out, "{kernel}");
        let total = counters.total;
        assert_eq!((total.flops, total.conflicts), (2 * (m * n * k) as u64, 0));
        // A once for each 128 columns, B once for each 256 rows, D once.
        assert_eq!(total.bytes, 2 * (m * k * (n / 128) + n * k * (m / 256) + m * n) as u64);
    }
}

#[test]
fn every_schedule_gives_the_same() {
    for kernel in ["gemm_k_major", "gemm_n_major"] {
        let first = product(PTX, kernel, 0, SIZES, None).unwrap().0;
        for seed in SEEDS {
            assert!(product(PTX, kernel, seed, SIZES, None).unwrap().0 == first, "{kernel}: seed {seed}");
        }
    }
}

/// What may be left out and why, by its opcode.
pub const SPARE: Spare<'_> = &[
    (
        "bar.warp.sync",
        2,
        "lets lanes come together before an aligned barrier, as they do behind the branch that parted them anyway",
    ),
    ("setmaxnreg.inc", 1, "the compiler's matter: the size of a register file is counted, not modelled"),
];

/// Whatever else is taken out is noticed: a report, or other numbers.
#[test]
fn nothing_can_be_left_out() {
    for kernel in ["gemm_k_major", "gemm_n_major"] {
        let run = |text: &str, seed| product(text, kernel, seed, SIZES, None).map(|(out, _)| vec![out]);
        excused(survivors(PTX, kernel, run), 25, SPARE, kernel);
    }
}

/// A report says what is waited for, not only who stands beside it.
#[test]
fn a_copy_that_is_not_announced() {
    let text = PTX.replacen("mbarrier.arrive.expect_tx", "mbarrier.expect_tx.relaxed.cta", 1);
    let text = text.replacen(".shared::cta.b64 _, [%r190]", ".shared::cta.b64 [%r190]", 1);
    let what = product(&text, "gemm_k_major", 0, SIZES, None).unwrap_err().to_string();
    assert!(
        what.contains("deadlock: ") && what.contains("mbarrier") && what.contains("hopper.cuh"),
        "{what}"
    );
}
