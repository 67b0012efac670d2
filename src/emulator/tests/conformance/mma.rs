//! `mma.sync` in all its shapes against the ISA's fragments, written down here a second time.

use super::*;
use half::{bf16, f16};

/// Small whole numbers as their bits.
fn bits(kind: &str, x: i32) -> Vec<u8> {
    match kind {
        "f16" => f16::from_f32(x as f32).to_le_bytes().to_vec(),
        "bf16" => bf16::from_f32(x as f32).to_le_bytes().to_vec(),
        "s8" | "u8" => vec![x as u8],
        "s32" => x.to_le_bytes().to_vec(),
        _ => (x as f32).to_le_bytes().to_vec(),
    }
}

fn check(k: usize, a: &str, b: &str, sum: &str) {
    // Unsigned operands have the sign bit set here and there: it must not count as one.
    let value = |kind: &str, i: usize, j: usize| {
        let v = ((i * 31 + j * 17 + i * j) % 9) as i32;
        if kind == "u8" { v * 31 } else { v - 4 }
    };
    let (size, width) = (bits(a, 0).len(), bits(sum, 0).len());
    let pack = 4 / size;
    let (na, nb, nd) = (k / 2 / pack, k / 4 / pack, width);
    let (mut fa, mut fb) = (vec![0u8; 32 * 4 * na], vec![0u8; 32 * 4 * nb]);
    let (mut fc, mut want) = (vec![0u8; 32 * 4 * nd], vec![0u8; 32 * 4 * nd]);
    for lane in 0..32 {
        let (group, inner) = (lane / 4, lane % 4);
        // A: the row is g, or g + 8 for every second register; the columns' upper half has the upper registers.
        for e in 0..na * pack {
            let (r, i) = (e / pack, e % pack);
            let (row, column) = (group + 8 * (r % 2), inner * pack + i + if r >= 2 { k / 2 } else { 0 });
            fa[(lane * na * pack + e) * size..][..size].copy_from_slice(&bits(a, value(a, row, column)));
        }
        for e in 0..nb * pack {
            let (r, i) = (e / pack, e % pack);
            let row = inner * pack + i + if r >= 1 { k / 2 } else { 0 };
            fb[(lane * nb * pack + e) * size..][..size].copy_from_slice(&bits(b, value(b, row, group)));
        }
        for e in 0..4 {
            let (row, column) = (group + 8 * (e / 2), inner * 2 + e % 2);
            let c = (row * 8 + column) as i32 % 23 - 11;
            let d = c + (0..k).map(|k| value(a, row, k) * value(b, k, column)).sum::<i32>();
            fc[(lane * 4 + e) * width..][..width].copy_from_slice(&bits(sum, c));
            want[(lane * 4 + e) * width..][..width].copy_from_slice(&bits(sum, d));
        }
    }
    let list = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
    let each = |text: &str, name: &str, n: usize| {
        (0..n)
            .map(|i| text.replace('#', &format!("%{name}{i}")).replace('@', &(4 * i).to_string()))
            .collect::<String>()
    };
    let base = |i: u32, n: usize| {
        format!("ld.param.u64 %p{i}, [q{i}];\nmul.wide.u32 %p4, %t, {};\nadd.u64 %p{i}, %p{i}, %p4;\n", 4 * n)
    };
    let ptx = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .visible .entry k(.param .u64 q0, .param .u64 q1, .param .u64 q2, .param .u64 q3)\n{{\n\
         .reg.b32 %t, %a<{na}>, %b<{nb}>, %c<{nd}>, %d<{nd}>; .reg .b64 %p<5>;\nmov.u32 %t, %tid.x;\n{}{}{}{}{}{}{}\
         mma.sync.aligned.m16n8k{k}.row.col.{sum}.{a}.{b}.{sum} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n{}ret;\n}}\n",
        base(0, nd),
        base(1, na),
        base(2, nb),
        base(3, nd),
        each("ld.global.b32 #, [%p1+@];\n", "a", na),
        each("ld.global.b32 #, [%p2+@];\n", "b", nb),
        each("ld.global.b32 #, [%p3+@];\n", "c", nd),
        list("d", nd),
        list("a", na),
        list("b", nb),
        list("c", nd),
        each("st.global.b32 [%p0+@], #;\n", "d", nd),
    );
    let args = [Arg::Scratch(want.len()), Arg::In(&fa), Arg::In(&fb), Arg::In(&fc)];
    // Whole numbers: the order of the sums changes nothing.
    let right = |out: &[Vec<u8>]| assert!(out[0] == want, "m16n8k{k} {a} {b} {sum}");
    let counters = judge_all(&ptx, "k", &line(1, 32), &args, right);
    assert_eq!(counters.total.flops, (2 * 16 * 8 * k) as u64);
}

#[test]
fn every_shape() {
    for k in [8, 16] {
        check(k, "bf16", "bf16", "f32");
        check(k, "f16", "f16", "f32");
        check(k, "f16", "f16", "f16");
    }
    check(4, "tf32", "tf32", "f32");
    check(8, "tf32", "tf32", "f32");
    for (a, b) in [("s8", "s8"), ("u8", "u8"), ("s8", "u8"), ("u8", "s8")] {
        check(16, a, b, "s32");
        check(32, a, b, "s32");
    }
}
