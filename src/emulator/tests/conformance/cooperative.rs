//! Programs on cooperative groups, barrier objects and pipelines: what the headers make of them is nothing of ours.

use super::*;

const COOPERATIVE: &str = include_str!("ptx/cooperative.ptx");

#[test]
fn a_block_copies_together_and_tiles_of_it_sum() {
    // 8 tiles of 16 threads a block; rows that fill no whole number of turns.
    for columns in [16, 36, 100] {
        let x = noise(3 * 8 * columns, 6);
        let launch = Launch { shared: 4 * 8 * columns, ..line(3, 128) };
        let args = [Arg::Scratch(4 * 24), Arg::In(bytes_of(&x)), Arg::Int(columns as i32)];
        let (out, _) = run_all(COOPERATIVE, "sums_of_rows", &launch, &args);
        for (sum, row) in f32s(&out[0]).iter().zip(x.chunks(columns)) {
            let exact: f64 = row.iter().map(|v| f64::from(*v)).sum();
            assert!((f64::from(*sum) - exact).abs() < 1e-4, "{sum} {exact}");
        }
    }
}

/// Places are given as warps come: the numbers are the same under every schedule, their order is not.
#[test]
fn threads_that_are_there_share_an_atomic() {
    let x: Vec<i32> = (0..700).map(|i| i * 7919 % 1009 - 500).collect();
    let mut wanted: Vec<i32> = x.iter().copied().filter(|&v| v > 0).collect();
    wanted.sort_unstable();
    let zeros = vec![0u8; 4 * x.len()];
    let args = [Arg::In(&zeros), Arg::In(&zeros[..4]), Arg::In(bytes_of(&x)), Arg::Int(700)];
    let mut orders = std::collections::BTreeSet::new();
    for seed in SEEDS {
        let launch = Launch { seed, ..line(6, 128) };
        let (out, _) = run(COOPERATIVE, "positives", &launch, &args).unwrap();
        let count = i32s(&out[1])[0] as usize;
        let mut kept = i32s(&out[0])[..count].to_vec();
        orders.insert(kept.clone());
        kept.sort_unstable();
        assert_eq!(kept, wanted);
    }
    assert!(orders.len() > 1, "all schedules are one");
}

#[test]
fn halves_of_a_block_hand_over_by_barrier_objects() {
    let (out, _) = run_all(COOPERATIVE, "hand_over", &line(2, 64), &[Arg::Scratch(8), Arg::Int(9)]);
    let wanted = (0..9).fold(1, |v, i| 3 * v + i);
    assert_eq!(i32s(&out[0]), [wanted; 2]);
}

#[test]
fn each_thread_keeps_two_copies_on_their_way() {
    let x = noise(4 * 1000, 7);
    let by = 2.5f32;
    let args =
        [Arg::Scratch(16000), Arg::In(bytes_of(&x)), Arg::Int(1000), Arg::Int(by.to_bits().cast_signed())];
    let (out, _) = run_all(COOPERATIVE, "scaled", &line(2, 128), &args);
    assert_eq!(f32s(&out[0]), x.iter().map(|v| v * by).collect::<Vec<_>>());
}
