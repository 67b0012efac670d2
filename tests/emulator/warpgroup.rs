//! What a warpgroup may do wrong, each bug at its line, and the same kernels without it; `stmatrix`, `elect.sync`.

use super::*;
use half::bf16;

pub const PTX: &str = include_str!("ptx/warpgroup_sm90.ptx");

/// A, B, and 2 A B^T in whole numbers.
fn operands() -> (Vec<bf16>, Vec<bf16>, Vec<f32>) {
    let whole = |n: usize, by: usize| (0..n).map(|i| (i * by % 11) as f32 - 5.0).collect::<Vec<f32>>();
    let (a, b) = (whole(64 * 16, 7), whole(8 * 16, 5));
    let dot = |i: usize| 2.0 * (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum::<f32>();
    let d = (0..64 * 8).map(dot).collect();
    let round = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect();
    (round(a.clone()), round(b.clone()), d)
}

fn find(kernel: &str, kind: &str, words: &[&str]) {
    let (a, b, _) = operands();
    let args = [Arg::In(&[0; 2048]), Arg::In(bytes_of(&a)), Arg::In(bytes_of(&b))];
    bugs::caught(PTX, kernel, &line(1, 128), &args, (kernel, kind), words);
}

#[test]
fn without_a_bug() {
    let (a, b, d) = operands();
    for kernel in ["twice_right", "once_right"] {
        let args = [Arg::Scratch(2048), Arg::In(bytes_of(&a)), Arg::In(bytes_of(&b))];
        // Whole numbers: the order of the sums changes nothing.
        let right = |out: &[Vec<u8>]| assert_eq!(f32s(&out[0]), d, "{kernel}");
        let counters = judge_all(PTX, kernel, &line(1, 128), &args, right);
        let steps = if kernel == "twice_right" { 2 } else { 1 };
        assert_eq!(counters.total.flops, steps * 2 * 64 * 8 * 16);
    }
}

#[test]
fn registers_of_a_product_under_way() {
    let missing = "a wgmma.wait_group is missing";
    find("read_early", "warpgroup", &["it reads an accumulator", missing, "the wgmma: warpgroup_sm90.cu:"]);
    find("write_early", "warpgroup", &["it writes an accumulator", missing]);
    find("too_few_waited", "warpgroup", &["an accumulator", missing]);
    find("not_committed", "warpgroup", &["an accumulator", "a wgmma.commit_group or its wait is missing"]);
    find("a_written", "warpgroup", &["it writes a register of A", missing]);
    find("a_read", "warpgroup", &["it reads a register of A", missing]);
}

#[test]
fn registers_without_a_fence() {
    find("no_fence", "warpgroup", &["no wgmma.fence stands before the first"]);
    let missing = "since the last wgmma.fence; another one is missing";
    find(
        "no_second_fence",
        "warpgroup",
        &["an accumulator was accessed", missing, "the access: warpgroup_sm90.cu:"],
    );
    find("a_unfenced", "warpgroup", &["a register of A was accessed", missing]);
}

#[test]
fn operands_in_shared_memory() {
    find(
        "misaligned_descriptor",
        "warpgroup",
        &["misaligned: descriptor", "row 1 of a pattern of 128-byte swizzle"],
    );
    find("operand_outside", "access", &["out of bounds", "through A's descriptor"]);
    find("operand_unwritten", "uninitialised", &["through B's descriptor"]);
    find(
        "no_proxy_fence",
        "fence",
        &["fence.proxy.async.shared::cta is missing", "the write: warpgroup_sm90.cu:"],
    );
    find("proxy_fence_too_early", "fence", &["fence.proxy.async.shared::cta is missing"]);
    find("no_barrier", "fence", &["shared memory"]);
    find("refilled", "race", &["it writes shared memory", "in a wgmma group of block 0"]);
}

#[test]
fn warps_that_do_not_come_together() {
    find("warp_missing", "deadlock", &["a wgmma of the whole warpgroup"]);
    find("warp_left", "barrier", &["warp 3 of the warpgroup never comes to: it has exited"]);
    find("lanes_missing", "barrier", &["a wgmma with 31 of 32 lanes"]);
    find("elsewhere", "barrier", &["a wgmma, while warp", "is elsewhere"]);
    find("two_descriptors", "warpgroup", &["B's descriptor is", "in the warpgroup's first thread"]);
    find("two_scales", "warpgroup", &["scale-d differs"]);
}

#[test]
fn registers_of_the_pool() {
    let find = |kernel: &str, kind: &str, words: &[&str]| {
        bugs::caught(PTX, kernel, &line(1, 384), &[Arg::Scratch(4 * 384)], (kernel, kind), words);
    };
    let (out, _) = run_all(PTX, "registers_right", &line(1, 384), &[Arg::Scratch(4 * 384)]);
    assert_eq!(i32s(&out[0]), (0..384).map(|t| t / 128).collect::<Vec<i32>>());
    find("registers_beyond_the_pool", "deadlock", &["setmaxnreg", "the block's pool"]);
    find("registers_raised_to_less", "warpgroup", &["setmaxnreg raises 168 registers to 160"]);
    find("registers_of_three_warps", "barrier", &["setmaxnreg that warp 3 of the warpgroup never comes to"]);
    find("registers_unbounded", "warpgroup", &["registers are not bounded"]);
}

#[test]
fn matrices_are_stored() {
    // Element j of lane l's register i says so.
    let value = |lane: usize, i: usize, j: usize| (lane * 8 + i * 2 + j + 1) as u16;
    let input: Vec<u16> = (0..32).flat_map(|l| (0..8).map(move |e| value(l, e / 2, e % 2))).collect();
    let args = [Arg::Scratch(2 * 6 * 256 + 2), Arg::In(bytes_of(&input))];
    let (out, counters) = run_all(PTX, "stored_matrices", &line(1, 32), &args);
    let out: Vec<u16> = out[0].as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    for (form, count) in [1, 2, 4, 1, 2, 4].into_iter().enumerate() {
        for (matrix, r, c) in (0..4).flat_map(|m| (0..64).map(move |i| (m, i / 8, i % 8))) {
            // Thread 4 r + c / 2 holds row r's columns c and c + 1; transposed, they are rows.
            let (row, column) = if form < 3 { (r, c) } else { (c, r) };
            let want = value(4 * row + column / 2, matrix, column % 2);
            let want = if matrix < count { want } else { 0 };
            assert_eq!(out[form * 256 + matrix * 64 + r * 8 + c], want, "form {form}, {matrix} {r} {c}");
        }
    }
    assert_eq!(out[6 * 256], 1);
    assert_eq!(counters.total.conflicts, 0);
    let (out, _) = run_all(PTX, "there_and_back", &line(1, 32), &[Arg::Scratch(512), args_in(&input)]);
    let out: Vec<u16> = out[0].as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    for (lane, j) in (0..32).flat_map(|l| (0..2).map(move |j| (l, j))) {
        let got = |i: usize| out[8 * lane + 2 * i + j];
        // Transposed: rows 2 (l % 4) and one below, of column l / 4.
        let turned = value(4 * (lane % 4 * 2 + j) + lane / 4 / 2, 0, lane / 4 % 2);
        assert_eq!(
            [got(0), got(1), got(2), got(3)],
            [value(lane, 0, j), value(lane, 1, j), turned, value(lane, 0, j)]
        );
    }
}

fn args_in(input: &[u16]) -> Arg<'_> {
    Arg::In(bytes_of(input))
}
