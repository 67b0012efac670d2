//! Any one barrier, wait or fence taken out of a correct kernel is noticed: a report, or other bits.

use super::*;

#[test]
fn every_barrier_wait_and_fence_is_needed() {
    let x = noise(4096, 1);
    let ints: Vec<i32> = (0..128).collect();
    let (x, zeros) = (bytes_of(&x), [0u8; 1024]);
    let none = |ptx: &str, kernel: &str, launch: Launch, args: &[Arg<'_>], lines: usize| {
        excused(survivors_of(ptx, kernel, &launch, args), lines, &[], kernel);
    };
    none(BASICS, "block_sum", line(2, 128), &[Arg::Scratch(8), Arg::In(x), Arg::Int(1000)], 1);
    none(BASICS, "histogram", line(2, 128), &[Arg::In(&zeros), Arg::In(&x[..2000]), Arg::Int(2000)], 2);
    let scan = Launch { shared: 1024, ..line(1, 128) };
    none(BASICS, "block_scan", scan, &[Arg::Scratch(512), Arg::In(bytes_of(&ints)), Arg::Int(128)], 2);
    let tile = Launch { block: [32, 8, 1], ..Launch::default() };
    none(
        BASICS,
        "transpose_padded",
        tile,
        &[Arg::Scratch(4096), Arg::In(&x[..4096]), Arg::Int(32), Arg::Int(32)],
        1,
    );
    let sum = [Arg::Scratch(4), Arg::Scratch(32), Arg::In(&[0; 4]), Arg::In(x), Arg::Int(2000)];
    none(BASICS, "grid_sum", line(8, 64), &sum, 3);
    // Four steps: a ring of three, and one stage filled again.
    let x = noise(64 * 256 / 2, 1);
    let x = bytes_of(&x);
    let product = [Arg::Scratch(4 * 64 * 64), Arg::In(x), Arg::In(x), Arg::Int(64), Arg::Int(256)];
    none(GEMM, "gemm", line(1, 128), &product, 2);
}
