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

/// Two products of one shape follow one another on the same accumulators, which nobody touches in between.
const IN_BETWEEN: &str = "the second product takes the accumulators of the first as they are: it needs no fence, and the \
                          wait behind it covers both";

#[test]
fn nothing_can_be_left_out() {
    let (a, b, _) = operands();
    let args = [Arg::Scratch(2048), Arg::In(bytes_of(&a)), Arg::In(bytes_of(&b))];
    let between = [
        ("wgmma.commit_group", 1, IN_BETWEEN),
        ("wgmma.wait_group", 1, IN_BETWEEN),
        ("wgmma.fence", 1, IN_BETWEEN),
    ];
    for (kernel, lines, spare) in [("twice_right", 8, &between[..]), ("once_right", 5, &[])] {
        excused(survivors_of(PTX, kernel, &line(1, 128), &args), lines, spare, kernel);
    }
    let out = [Arg::Scratch(4 * 384)];
    excused(
        survivors_of(PTX, "registers_right", &line(1, 384), &out),
        2,
        &hopper::SPARE[1..],
        "registers_right",
    );
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
    find("operand_outside", "out-of-bounds", &["out of bounds", "through A's descriptor"]);
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

/// Whatever instruction it is that names a register under way: addresses in the cluster, barriers, mbarriers.
#[test]
fn any_instruction_may_touch_a_register() {
    let run = |line_: &str| {
        let ptx = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
             .reg .b16 %h; .reg .b32 %r<16>; .reg .b64 %d<4>; .reg .f32 %f<4>;\n\
             .shared .align 1024 .b8 s[256]; .shared .align 8 .b64 b;\n\
             ld.param.u64 %d0, [out];\nmov.u32 %r8, %tid.x;\nmov.u32 %r9, s;\nmad.lo.u32 %r10, %r8, 2, %r9;\n\
             mov.u16 %h, 0;\nst.shared.u16 [%r10], %h;\nfence.proxy.async;\nbar.sync 0;\n\
             mov.u32 %r4, 0;\nmov.u32 %r5, 0;\nmov.u32 %r6, 0;\nmov.u32 %r7, 0;\n\
             mov.f32 %f0, 0f00000000;\nmov.f32 %f1, %f0;\nmov.f32 %f2, %f0;\nmov.f32 %f3, %f0;\n\
             shr.u32 %r11, %r9, 4;\ncvt.u64.u32 %d1, %r11;\nor.b64 %d1, %d1, 68720001024;\n\
             wgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, {{%r4, %r5, %r6, %r7}}, %d1, 1, 1, 1, 0;\n\
             wgmma.commit_group.sync.aligned;\n{line_}\nwgmma.wait_group.sync.aligned 0;\n\
             mul.wide.u32 %d2, %r8, 4;\nadd.u64 %d2, %d0, %d2;\nst.global.f32 [%d2], %f0;\nret;\n}}\n"
        );
        super::run(&ptx, "k", &line(1, 128), &[Arg::Scratch(512)]).map(|_| ()).map_err(|e| e.to_string())
    };
    run("").unwrap();
    run("mapa.shared::cluster.u32 %r12, %r9, 0;").unwrap();
    for touch in [
        "mapa.shared::cluster.u32 %r4, %r9, 0;",
        "mapa.shared::cluster.u32 %r12, %r9, %r4;",
        "getctarank.shared::cluster.u32 %r5, %r9;",
        "bar.red.popc.u32 %r6, 1, 1;",
        "bar.sync %r7;",
        "mbarrier.init.shared.b64 [b], %r4;",
    ] {
        let what = run(touch).expect_err(touch);
        assert!(what.contains("a register of A of a wgmma that is under way"), "{touch}: {what}");
    }
}
