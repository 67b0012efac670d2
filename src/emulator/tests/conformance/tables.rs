//! Instructions that come in tables, a row each, against the PTX ISA's definitions written down a second time.

use super::*;
use half::{bf16, f16};

/// Of the two warps that run everything here.
const THREADS: usize = 64;

/// Runs `code` on `%d0 %d1 %d2`, with lower halves in `%r0 %r1 %r2`; gives `%d3 %d4`. `%d10`: 16 bytes of global memory
/// of the thread's own; `%r10`: as many of shared memory; `%r11`: its number. The same under every seed, and on a GPU.
fn table(code: &str, inputs: &[[u64; 3]; THREADS]) -> Vec<[u64; 2]> {
    let ptx = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q)\n{{\n\
         .reg .b16 %h<10>; .reg .b32 %r<20>; .reg .b64 %d<20>; .reg .pred %p<6>; .shared .align 16 .b8 s[2048];\n\
         ld.param.u64 %d9, [p];\nld.param.u64 %d10, [q];\nmov.u32 %r11, %tid.x;\n\
         mul.wide.u32 %d11, %r11, 24;\nadd.s64 %d9, %d9, %d11;\nmul.wide.u32 %d11, %r11, 16;\nadd.s64 %d10, %d10, %d11;\n\
         ld.global.b64 %d0, [%d9];\nld.global.b64 %d1, [%d9+8];\nld.global.b64 %d2, [%d9+16];\n\
         cvt.u32.u64 %r0, %d0;\ncvt.u32.u64 %r1, %d1;\ncvt.u32.u64 %r2, %d2;\n\
         mov.u32 %r10, s;\nshl.b32 %r12, %r11, 4;\nadd.u32 %r10, %r10, %r12;\nmov.u64 %d3, 0;\nmov.u64 %d4, 0;\n\
         {code}\nst.global.v2.b64 [%d10], {{%d3, %d4}};\nret;\n}}\n"
    );
    let bytes: Vec<u64> = inputs.concat();
    // Every thread has a place of its own: no order of atomics matters.
    let run = if code.contains("atom") || code.contains("red.") { bits_all } else { run_all };
    let (out, _) = run(&ptx, "k", &line(1, 64), &[Arg::In(bytes_of(&bytes)), Arg::Scratch(16 * THREADS)]);
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap());
    out[1].chunks(16).map(|b| [word(&b[..8]), word(&b[8..])]).collect()
}

fn inputs(of: impl Fn(usize) -> [u64; 3]) -> [[u64; 3]; THREADS] {
    std::array::from_fn(of)
}

/// Edges and noise.
fn number(i: usize, salt: usize) -> u64 {
    const EDGES: [u64; 8] = [0, 1, 5, 0x7fff_ffff, 0x8000_0000, u32::MAX as u64, 1 << 63, !0];
    let n = (i * 8 + salt) as u64;
    let noise = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0x2545_f491_4f6c_dd1d);
    if n.is_multiple_of(3) { noise } else { EDGES[(noise >> 20) as usize % 8] }
}

type Row = (&'static str, u32, fn(u64, u64, u64) -> u64);

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

fn pair(one: fn(u16, u16) -> u16, a: u64, b: u64) -> u64 {
    u64::from(one(a as u16, b as u16)) | u64::from(one((a >> 16) as u16, (b >> 16) as u16)) << 16
}

fn half_sum(a: u16, b: u16) -> u16 {
    (f16::from_bits(a) + f16::from_bits(b)).to_bits()
}

fn brain_sum(a: u16, b: u16) -> u16 {
    (bf16::from_bits(a) + bf16::from_bits(b)).to_bits()
}

/// Every operation of `atom` with every type that it has. `red` has all but the last five.
const ATOMICS: [Row; 31] = [
    ("add.u32", 32, |a, b, _| a + b),
    ("add.s32", 32, |a, b, _| a + b),
    ("add.u64", 64, |a, b, _| a.wrapping_add(b)),
    ("add.f32", 32, |a, b, _| u64::from((f(a) + f(b)).to_bits())),
    ("add.f64", 64, |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
    ("add.noftz.f16", 16, |a, b, _| u64::from(half_sum(a as u16, b as u16))),
    ("add.noftz.bf16", 16, |a, b, _| u64::from(brain_sum(a as u16, b as u16))),
    ("add.noftz.f16x2", 32, |a, b, _| pair(half_sum, a, b)),
    ("add.noftz.bf16x2", 32, |a, b, _| pair(brain_sum, a, b)),
    ("min.u32", 32, |a, b, _| if a < b { a } else { b }),
    ("min.s32", 32, |a, b, _| if (a as i32) < b as i32 { a } else { b }),
    ("min.u64", 64, |a, b, _| if a < b { a } else { b }),
    ("min.s64", 64, |a, b, _| if (a as i64) < b as i64 { a } else { b }),
    ("max.u32", 32, |a, b, _| if a > b { a } else { b }),
    ("max.s32", 32, |a, b, _| if a as i32 > b as i32 { a } else { b }),
    ("max.u64", 64, |a, b, _| if a > b { a } else { b }),
    ("max.s64", 64, |a, b, _| if a as i64 > b as i64 { a } else { b }),
    ("and.b32", 32, |a, b, _| a & b),
    ("and.b64", 64, |a, b, _| a & b),
    ("or.b32", 32, |a, b, _| a | b),
    ("or.b64", 64, |a, b, _| a | b),
    ("xor.b32", 32, |a, b, _| a ^ b),
    ("xor.b64", 64, |a, b, _| a ^ b),
    ("inc.u32", 32, |a, b, _| if a >= b { 0 } else { a + 1 }),
    ("dec.u32", 32, |a, b, _| if a == 0 || a > b { b } else { a - 1 }),
    ("relaxed.gpu.add.u32", 32, |a, b, _| a + b),
    ("exch.b32", 32, |_, b, _| b),
    ("exch.b64", 64, |_, b, _| b),
    ("cas.b16", 16, |a, b, c| if a == b { c } else { a }),
    ("cas.b32", 32, |a, b, c| if a == b { c } else { a }),
    ("cas.b64", 64, |a, b, c| if a == b { c } else { a }),
];

/// An atomic's operands: numbers that have a type's sum, or any bits; every fourth time what is compared is there.
fn operand(row: &str, i: usize, k: usize) -> u64 {
    let whole = ((i * 7 + k * 31) % 41) as f32 - 20.0;
    let other = ((i * 5 + k * 11) % 37) as f32 - 18.0;
    let twice = |bits: fn(f32) -> u16| u64::from(bits(whole)) | u64::from(bits(other)) << 16;
    match row.rsplit('.').next().unwrap() {
        "f32" => u64::from((whole * 1.7).to_bits()) | 0xabcd << 32,
        "f64" => (f64::from(whole) * 0.3).to_bits(),
        "f16" | "f16x2" => twice(|v| f16::from_f32(v).to_bits()),
        "bf16" | "bf16x2" => twice(|v| bf16::from_f32(v).to_bits()),
        _ if k == 1 && i.is_multiple_of(4) => number(i, 0),
        _ => number(i, k),
    }
}

/// In global and shared memory, each also by a generic address: what was there, and what is then, neighbours included.
#[test]
fn atomics_by_type() {
    for (i, (row, bits, of)) in ATOMICS.iter().enumerate() {
        let name = match bits {
            16 => "h",
            32 => "r",
            _ => "d",
        };
        // The modifiers of the order come first.
        let (order, what) = match row.strip_prefix("relaxed.gpu.") {
            Some(what) => (".relaxed.gpu", what),
            None => ("", *row),
        };
        let values = inputs(|t| [0, 1, 2].map(|k| operand(row, t, k)));
        let third = if row.starts_with("cas") { format!(", %{name}2") } else { String::new() };
        let narrow = if *bits == 16 { "cvt.u16.u64 %h1, %d1; cvt.u16.u64 %h2, %d2;\n" } else { "" };
        let shared = "cvta.shared.u64 %d12, %d13;";
        for (space, at, address) in [
            (".global", "%d10", ""),
            (".shared", "%r10", ""),
            ("", "%d10", ""),
            ("", "%d12", shared),
            (".shared::cta", "%d13", ""),
        ] {
            let home = if at == "%d10" { "st.global.b64 [%d10]" } else { "st.shared.b64 [%r10]" };
            let back = if at == "%d10" { "ld.global.b64 %d4, [%d10]" } else { "ld.shared.b64 %d4, [%r10]" };
            for kind in ["atom", "red"].into_iter().take(if i < ATOMICS.len() - 5 { 2 } else { 1 }) {
                let d = if kind == "atom" { format!("%{name}3, ") } else { String::new() };
                let wide = if *bits < 64 { format!("cvt.u64.u{bits} %d3, %{name}3;") } else { String::new() };
                let wide = if kind == "atom" { wide } else { String::new() };
                let code = format!(
                    "cvt.u64.u32 %d13, %r10; {address}\n{narrow}{home}, %d0;\n\
                     {kind}{order}{space}.{what} {d}[{at}], %{name}1{third};\n{wide}\n{back};"
                );
                for (t, got) in table(&code, &values).iter().enumerate() {
                    let mask = u64::MAX >> (64 - bits);
                    let [a, b, c] = values[t].map(|v| v & mask);
                    let was = if kind == "atom" { a } else { 0 };
                    let want = [was, values[t][0] & !mask | of(a, b, c) & mask];
                    assert_eq!(*got, want, "{kind}{space}.{row} at {at}: {a:#x} {b:#x} {c:#x}");
                }
            }
        }
    }
}

/// In global memory a sum of f32 takes and gives zeros for them, with their signs; in shared memory it does not.
#[test]
fn sums_of_subnormal_numbers() {
    const PAIRS: [(u32, u32); 8] = [
        (1, 1),
        (0x8000_0001, 0x8000_0000),
        (0x0080_0000, 0x8080_0001),
        (0x007f_ffff, 0x0080_0000),
        (0x8040_0000, 0x8040_0000),
        (0x0000_0007, 0x3f80_0000),
        (0x0100_0000, 0x80c0_0000),
        (0, 0x803f_ffff),
    ];
    let values = inputs(|t| [u64::from(PAIRS[t % 8].0), u64::from(PAIRS[t % 8].1), 0]);
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    for kind in ["atom", "red"] {
        let to = if kind == "atom" { "%r3, " } else { "" };
        for (space, at) in [("global", "%d10"), ("shared", "%r10")] {
            let code = format!(
                "st.{space}.b32 [{at}], %r0;\n{kind}.{space}.add.f32 {to}[{at}], %r1;\n\
                 ld.{space}.b32 %r4, [{at}];\ncvt.u64.u32 %d3, %r4;"
            );
            for (t, got) in table(&code, &values).iter().enumerate() {
                let [a, b] = [values[t][0], values[t][1]].map(f);
                let want = if space == "global" { flush(flush(a) + flush(b)) } else { a + b };
                assert_eq!(got[0] as u32, want.to_bits(), "{kind}.{space}: {a:e} {b:e}");
            }
        }
    }
}

/// Code for some lanes of each warp; the others have nothing to say.
fn across(code: &str, mask: u32, inputs: &[[u64; 3]; THREADS]) -> Vec<[u64; 2]> {
    let code = code.replace("MASK", &mask.to_string());
    table(
        &format!(
            "mov.u32 %r13, %laneid;\nshl.b32 %r13, 1, %r13;\nand.b32 %r13, %r13, {mask};\nsetp.eq.u32 %p0, %r13, 0;\n\
             @%p0 bra PAST;\n{code}\nPAST:"
        ),
        inputs,
    )
}

const MASKS: [u32; 4] = [!0, 0x5555_5555, 0x0000_ff10, 1 << 31];

/// What a group of lanes has, and gives: `of` is told the values of the lanes that take part, and who asks.
fn grouped(code: &str, value: impl Fn(usize) -> u64, of: impl Fn(&[(usize, u64)], usize) -> [u64; 2]) {
    let values = inputs(|t| [value(t), 0, 0]);
    for mask in MASKS {
        for (t, got) in across(code, mask, &values).into_iter().enumerate() {
            let takes_part = |lane: &usize| mask >> lane & 1 == 1;
            let group: Vec<(usize, u64)> =
                (0..32).filter(takes_part).map(|l| (l, value(t / 32 * 32 + l))).collect();
            let want = if takes_part(&(t % 32)) { of(&group, t % 32) } else { [0; 2] };
            assert_eq!(got, want, "{code} of {mask:#x} in thread {t}");
        }
    }
}

#[test]
fn shuffles_by_mode() {
    // The ISA's rule: who a lane asks, and whether that one is in its part of the warp.
    let source = |mode: &str, lane: u32, b: u32, c: u32| {
        let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
        let last = lane & segment | clamp & !segment;
        let (j, inside) = match mode {
            "up" => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
            "down" => (lane + b, lane + b <= last),
            "bfly" => (lane ^ b, lane ^ b <= last),
            _ => (lane & segment | b & !segment, lane & segment | b & !segment <= last),
        };
        (if inside { j } else { lane }, inside)
    };
    for mode in ["up", "down", "bfly", "idx"] {
        let code = format!(
            "shfl.sync.{mode}.b32 %r3|%p1, %r0, %r1, %r2, MASK;\ncvt.u64.u32 %d3, %r3;\nselp.b64 %d4, 1, 0, %p1;"
        );
        for width in [32, 16, 8, 4, 2, 1] {
            for (round, clamp) in [if mode == "up" { 0 } else { 31 }, 13].into_iter().enumerate() {
                for by in [0usize, 1, 2, 5, 16, 31, 33] {
                    // In the second round every lane asks by a number of its own.
                    let b = |t: usize| (by + if round == 0 { 0 } else { t * 3 }) as u32;
                    let c = (32 - width) << 8 | clamp;
                    let values = inputs(|t| [number(t, 3), u64::from(b(t)), u64::from(c)]);
                    for (t, got) in across(&code, !0, &values).into_iter().enumerate() {
                        let (from, inside) = source(mode, t as u32 % 32, b(t), c);
                        let value = values[t / 32 * 32 + from as usize][0] & 0xffff_ffff;
                        assert_eq!(got, [value, u64::from(inside)], "{mode} {} {c:#x} in {t}", b(t));
                    }
                }
            }
        }
    }
    // Lanes of a part of the warp among themselves.
    let code = "shfl.sync.bfly.b32 %r3, %r0, 6, 31, MASK;\ncvt.u64.u32 %d3, %r3;";
    let values = inputs(|t| [t as u64 * 11, 0, 0]);
    for (t, got) in across(code, 0x5555_5555, &values).into_iter().enumerate() {
        assert_eq!(got[0], if t % 2 == 0 { (t ^ 6) as u64 * 11 } else { 0 });
    }
}

#[test]
fn votes_by_mode() {
    // Nobody, all, some, one.
    let says: [fn(usize) -> bool; 4] = [|_| false, |_| true, |t| t % 3 == 0, |t| t % 32 == 31];
    for say in says {
        for negated in [false, true] {
            let yes = |(_, v): &(usize, u64)| (*v != 0) != negated;
            let not = if negated { "!" } else { "" };
            let code = |mode: &str| {
                format!(
                    "setp.ne.u64 %p2, %d0, 0;\nvote.sync.{mode}.pred %p1, {not}%p2, MASK;\nselp.b64 %d3, 1, 0, %p1;"
                )
            };
            let value = |t: usize| u64::from(say(t));
            grouped(&code("all"), value, |g, _| [u64::from(g.iter().all(yes)), 0]);
            grouped(&code("any"), value, |g, _| [u64::from(g.iter().any(yes)), 0]);
            let one = |g: &[(usize, u64)]| g.iter().all(yes) || !g.iter().any(yes);
            grouped(&code("uni"), value, |g, _| [u64::from(one(g)), 0]);
            let ballot = format!(
                "setp.ne.u64 %p2, %d0, 0;\nvote.sync.ballot.b32 %r3, {not}%p2, MASK;\ncvt.u64.u32 %d3, %r3;"
            );
            let bits = |g: &[(usize, u64)]| g.iter().filter(|v| yes(v)).map(|v| 1 << v.0).sum::<u64>();
            grouped(&ballot, value, |g, _| [bits(g), 0]);
        }
    }
}

#[test]
fn reductions_of_a_warp_by_type() {
    type Rule = fn(u32, u32) -> u32;
    let rows: [(&str, Rule); 9] = [
        ("add.u32", u32::wrapping_add),
        ("add.s32", u32::wrapping_add),
        ("min.u32", |a, b| a.min(b)),
        ("max.u32", |a, b| a.max(b)),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
    ];
    for (row, of) in rows {
        let code = format!("redux.sync.{row} %r3, %r0, MASK;\ncvt.u64.u32 %d3, %r3;");
        for salt in 0..4 {
            let value = |t: usize| number(t, salt) | if row == "and.b32" { 0x0f0f_f000 } else { 0 };
            let whole = |g: &[(usize, u64)]| g.iter().map(|v| v.1 as u32).reduce(of).unwrap();
            grouped(&code, value, |g, _| [u64::from(whole(g)), 0]);
        }
    }
}

#[test]
fn matches_by_width() {
    // Few values, one value, and values that differ above the lower half only.
    let values: [fn(usize) -> u64; 4] =
        [|t| number(t % 5, 1), |_| 77, |t| (t as u64 % 3) << 40 | 9, |t| u64::from(t % 32 == 31)];
    for value in values {
        for (ty, register, mask) in [("b32", "%r0", u64::from(u32::MAX)), ("b64", "%d0", !0)] {
            let any = format!("match.any.sync.{ty} %r3, {register}, MASK;\ncvt.u64.u32 %d3, %r3;");
            let same = |g: &[(usize, u64)], v: u64| {
                g.iter().filter(|o| (o.1 ^ v) & mask == 0).map(|o| 1 << o.0).sum::<u64>()
            };
            let mine = |g: &[(usize, u64)], lane| g.iter().find(|o| o.0 == lane).unwrap().1;
            grouped(&any, value, |g, lane| [same(g, mine(g, lane)), 0]);
            let all = format!(
                "match.all.sync.{ty} %r3|%p1, {register}, MASK;\ncvt.u64.u32 %d3, %r3;\nselp.b64 %d4, 1, 0, %p1;"
            );
            grouped(&all, value, |g, _| {
                let everyone = g.iter().map(|o| 1 << o.0).sum::<u64>();
                if same(g, g[0].1) == everyone { [everyone, 1] } else { [0, 0] }
            });
        }
    }
}

/// Rows anywhere in shared memory, where element i is i; who gives no row gives no address either.
#[test]
fn matrices_are_loaded() {
    let fill: String = (0..8)
        .map(|j| {
            format!(
                "mad.lo.u32 %r14, %r11, 16, {};\nmad.lo.u32 %r14, %r14, 65537, 65536;\nst.shared.u32 [%r15+{}], %r14;\n",
                2 * j,
                4 * j
            )
        })
        .collect();
    for (x, trans) in [1, 2, 4].into_iter().flat_map(|x| [(x, false), (x, true)]) {
        let list = ["%r3", "%r4", "%r5", "%r6"][..x].join(", ");
        let turn = if trans { ".trans" } else { "" };
        for space in ["shared", "shared::cta"] {
            let code = format!(
                "shl.b32 %r15, %r11, 5;\nmov.u32 %r16, s;\nadd.u32 %r15, %r15, %r16;\n{fill}bar.sync 0;\n\
                 mov.u32 %r4, 0;\nmov.u32 %r5, 0;\nmov.u32 %r6, 0;\nadd.u32 %r16, %r16, %r0;\n\
                 ldmatrix.sync.aligned.m8n8.x{x}{turn}.{space}.b16 {{{list}}}, [%r16];\n\
                 mov.b64 %d3, {{%r3, %r4}};\nmov.b64 %d4, {{%r5, %r6}};"
            );
            let row = |t: usize| (t * 29 + 7) % 128;
            let gives = |t: usize| t % 32 < 8 * x;
            let got =
                table(&code, &inputs(|t| [if gives(t) { 16 * row(t) as u64 } else { 0x7fff_fff3 }, 0, 0]));
            for (t, got) in got.iter().enumerate() {
                let element =
                    |matrix: usize, r: usize, c: usize| (8 * row(t / 32 * 32 + 8 * matrix + r) + c) as u64;
                let register = |i: usize| {
                    let (r, c) = (t % 32 / 4, t % 4 * 2);
                    match (i < x, trans) {
                        (false, _) => 0,
                        (_, false) => element(i, r, c) | element(i, r, c + 1) << 16,
                        (_, true) => element(i, c, r) | element(i, c + 1, r) << 16,
                    }
                };
                let want = [register(0) | register(1) << 32, register(2) | register(3) << 32];
                assert_eq!(*got, want, "x{x}{turn} in {t}");
            }
        }
    }
}
