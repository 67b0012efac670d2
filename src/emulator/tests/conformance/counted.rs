//! What is counted is what the kernel does, worked out by hand.

use super::*;

fn transpose(kernel: &str) -> Counters {
    let x = noise(32 * 32, 1);
    let launch = Launch { block: [32, 8, 1], ..Launch::default() };
    let args = [Arg::Scratch(4096), Arg::In(bytes_of(&x)), Arg::Int(32), Arg::Int(32)];
    run(BASICS, kernel, &launch, &args).unwrap().1
}

#[test]
fn bank_conflicts_of_a_transpose() {
    // 32 warp loads of a column of 32 words pitch: 32 passes each, one would do.
    let (plain, padded) = (transpose("transpose_conflicts").total, transpose("transpose_padded").total);
    assert_eq!((plain.conflicts, plain.wavefronts), (32 * 31, 32 + 32 * 32));
    assert_eq!((padded.conflicts, padded.wavefronts), (0, 64));
    // Both read and write every byte once, in whole sectors.
    for total in [plain, padded] {
        assert_eq!((total.requests, total.sectors, total.bytes), (64, 2 * 4096 / 32, 2 * 4096));
    }
}

#[test]
fn sectors_of_a_vector_sum() {
    let x = noise(1024, 1);
    let args = |n| [Arg::Scratch(4096), Arg::In(bytes_of(&x)), Arg::In(bytes_of(&x)), Arg::Int(n)];
    for (kernel, n, requests) in [("vector_add", 1024, 96), ("vector_add4", 256, 24)] {
        let total = run(BASICS, kernel, &line(1024 / 128, 128), &args(n)).unwrap().1.total;
        assert_eq!((total.requests, total.sectors, total.bytes), (requests, 3 * 128, 3 * 4096));
    }
}

#[test]
fn a_report_by_line() {
    let counters = transpose("transpose_conflicts");
    let worst = counters.lines.iter().max_by_key(|(_, c)| c.conflicts).unwrap();
    let source = include_str!("cuda/basics.cu");
    let line = 1 + source.lines().position(|l| l.contains("tile[threadIdx.x][threadIdx.y + j];")).unwrap();
    assert!(worst.0.contains(&format!("basics.cu:{line}")), "{}", worst.0);
    let json: serde_json::Value = serde_json::from_str(&counters.json()).unwrap();
    assert_eq!(json["total"]["bank_conflicts"], 32 * 31);
    assert_eq!(json["lines"][worst.0]["bank_conflicts"], 32 * 31);
    assert!(counters.table().contains(worst.0.as_str()));
}
