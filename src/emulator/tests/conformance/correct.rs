//! Correct kernels: right numbers, no report, equal bits under every schedule.

use super::*;
use half::bf16;

#[test]
fn vectors_are_added() {
    let (a, b) = (noise(1000, 1), noise(1000, 2));
    let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let args = |n| [Arg::Scratch(4000), Arg::In(bytes_of(&a)), Arg::In(bytes_of(&b)), Arg::Int(n)];
    assert_eq!(f32s(&run_all(BASICS, "vector_add", &line(5, 96), &args(1000)).0[0]), sum);
    assert_eq!(f32s(&run_all(BASICS, "vector_add4", &line(2, 128), &args(250)).0[0]), sum);
}

#[test]
fn blocks_sum_by_shuffles() {
    let x = noise(3000, 3);
    let (out, _) = run_all(
        BASICS,
        "block_sum",
        &line(3, 160),
        &[Arg::Scratch(12), Arg::In(bytes_of(&x)), Arg::Int(3000)],
    );
    let sums = f32s(&out[0]);
    for (block, sum) in sums.iter().enumerate() {
        let mine = (0..3000).filter(|i| i / 160 % 3 == block).map(|i| f64::from(x[i])).sum::<f64>();
        assert!((f64::from(*sum) - mine).abs() < 1e-4, "{sum} {mine}");
    }
}

#[test]
fn a_histogram_by_atomics() {
    let data: Vec<u8> = noise(5000, 4).iter().map(|v| (v * v * 255.0) as u8).collect();
    let zeros = [0u8; 1024];
    let args = [Arg::In(&zeros), Arg::In(&data), Arg::Int(5000)];
    let (out, _) = run_all(BASICS, "histogram", &line(4, 128), &args);
    let mut counts = vec![0; 256];
    data.iter().for_each(|d| counts[*d as usize] += 1);
    assert_eq!(i32s(&out[0]), counts);
}

#[test]
fn a_scan_in_dynamic_shared_memory() {
    for threads in [32, 96, 200] {
        let x: Vec<i32> = (0..threads).map(|i| (i * 7919 % 101) as i32 - 50).collect();
        let launch = Launch { shared: 8 * threads as usize, ..line(1, threads) };
        let args = [Arg::Scratch(4 * x.len()), Arg::In(bytes_of(&x)), Arg::Int(threads as i32)];
        let (out, _) = run_all(BASICS, "block_scan", &launch, &args);
        let sums: Vec<i32> = x
            .iter()
            .scan(0, |s, v| {
                *s += v;
                Some(*s)
            })
            .collect();
        assert_eq!(i32s(&out[0]), sums);
    }
}

#[test]
fn the_last_block_sums_what_all_left() {
    let x = noise(2000, 5);
    let args =
        [Arg::Scratch(4), Arg::Scratch(4 * 12), Arg::In(&[0; 4]), Arg::In(bytes_of(&x)), Arg::Int(2000)];
    let (out, _) = run_all(BASICS, "grid_sum", &line(12, 32), &args);
    let sum: f64 = x.iter().map(|v| f64::from(*v)).sum();
    assert!((f64::from(f32s(&out[0])[0]) - sum).abs() < 1e-4);
}

#[test]
fn lanes_that_part_come_together() {
    let (out, _) = run_all(
        BASICS,
        "diverge",
        &line(2, 64),
        &[Arg::Scratch(4 * 128), Arg::Scratch(12 * 128), Arg::Int(128)],
    );
    let collatz = |mut v: u64| {
        let mut n = 0;
        while v != 1 {
            (v, n) = (if v % 2 == 1 { 3 * v + 1 } else { v / 2 }, n + 1);
        }
        n
    };
    let steps: Vec<i32> = (1..=128).map(collatz).collect();
    assert_eq!(i32s(&out[0]), steps);
    let votes = i32s(&out[1]);
    for (i, step) in steps.iter().enumerate() {
        let warp = &steps[i / 32 * 32..][..32];
        let ballot = |f: &dyn Fn(i32) -> bool| {
            warp.iter().enumerate().fold(0u32, |m, (l, s)| m | u32::from(f(*s)) << l) as i32
        };
        let most = *warp.iter().max().unwrap();
        assert_eq!(votes[3 * i..3 * i + 3], [ballot(&|s| s % 2 == 0), ballot(&|s| s == *step), most]);
    }
}

#[test]
fn tiles_are_transposed() {
    let x = noise(64 * 96, 6);
    for kernel in ["transpose_conflicts", "transpose_padded"] {
        let launch = Launch { grid: [3, 2, 1], block: [32, 8, 1], ..Launch::default() };
        let args = [Arg::Scratch(4 * x.len()), Arg::In(bytes_of(&x)), Arg::Int(96), Arg::Int(64)];
        let (out, _) = run_all(BASICS, kernel, &launch, &args);
        let out = f32s(&out[0]);
        assert!((0..64 * 96).all(|i| out[i % 96 * 64 + i / 96] == x[i]));
    }
}

/// Against f64 on the same bf16 numbers: only the order of the f32 sums is open.
#[test]
fn a_matrix_product_by_tensor_cores() {
    let (m, n, k) = (128, 128, 320);
    let round = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (round(noise(m * k, 7)), round(noise(n * k, 8)));
    let launch = Launch { grid: [2, 2, 1], block: [128, 1, 1], ..Launch::default() };
    let args = [
        Arg::Scratch(4 * m * n),
        Arg::In(bytes_of(&a)),
        Arg::In(bytes_of(&b)),
        Arg::Int(n as i32),
        Arg::Int(k as i32),
    ];
    let counters = judge_all(GEMM, "gemm", &launch, &args, |out| {
        for (i, d) in f32s(&out[0]).iter().enumerate() {
            let product = |j: usize| a[i / n * k + j].to_f64() * b[i % n * k + j].to_f64();
            let sum: f64 = (0..k).map(product).sum();
            let size: f64 = (0..k).map(|j| product(j).abs()).sum();
            assert!((f64::from(*d) - sum).abs() <= size * k as f64 * 2f64.powi(-24), "{i}: {d} {sum}");
        }
    });
    // What was planned: every tile's rows once a block, the result once; no pass through shared memory too many.
    let total = counters.total;
    assert_eq!(total.flops, 2 * (m * n * k) as u64);
    let blocks = (m / 64 * (n / 64)) as u64;
    let (loaded, stored) = (blocks * 2 * 64 * k as u64 * 2, 4 * (m * n) as u64);
    assert_eq!((total.bytes, total.sectors, total.conflicts), (loaded + stored, (loaded + stored) / 32, 0));
    // cp.async: a quarter of a warp a pass. ldmatrix: 2 x 2 of A and B, 4 passes each, for every 16 of k, by 4 warps.
    assert_eq!(total.wavefronts, loaded / 128 + blocks * (4 * k as u64 / 16 * 4 * 4));
}
