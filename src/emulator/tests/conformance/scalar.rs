//! Operations on scalars, each against its definition in the PTX ISA written down a second time.

use super::*;
use half::{bf16, f16};

/// Operands that are at the edges of every type, and noise.
fn operands(salt: u64) -> Vec<u64> {
    let edges = [
        0,
        1,
        2,
        31,
        32,
        33,
        63,
        64,
        255,
        0x7f,
        0x80,
        0x7fff,
        0x8000,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX as u64,
    ];
    let wide =
        [1u64 << 63, !0, i64::MAX as u64, 0x3f80_0000, 0xbfc0_0000, 0x7f80_0000, 0x0000_0001_3c00_3c00];
    let edges: Vec<u64> = edges.into_iter().chain(wide).collect();
    let mut state = salt;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state ^ state >> 29
    };
    (0..256)
        .map(|_| if next() >> 40 & 1 == 0 { edges[next() as usize % edges.len()] } else { next() })
        .collect()
}

/// Runs `code` (operands `%x0 %x1 %x2`, result `%x3`, of the given widths in bits) on all operands.
fn check(code: &str, (from, to): (u32, u32), inputs: &[Vec<u64>; 3], of: impl Fn(u64, u64, u64) -> u64) {
    let name = |bits: u32| match bits {
        16 => "%h",
        32 => "%r",
        _ => "%d",
    };
    let (mut text, n) = (code.to_string(), inputs[0].len());
    for i in 0..3 {
        text = text.replace(&format!("%x{i}"), &format!("{}{i}", name(from)));
    }
    text = text.replace("%x3", &format!("{}3", name(to)));
    let load =
        |i: u32| format!("ld.global.b{from} {}{i}, [%d9+{}];\n", name(from), u64::from(i) * 8 * n as u64);
    let late = ["u16x2", "s16x2", "mul.rn.bf16"].iter().any(|word| code.contains(word));
    let target = if late { "sm_90a" } else { "sm_80" };
    let ptx = format!(
        ".version 9.0\n.target {target}\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q)\n{{\n\
         .reg .b16 %h<10>; .reg .b32 %r<10>; .reg .b64 %d<16>; .reg .pred %p<4>;\n\
         ld.param.u64 %d9, [p];\nld.param.u64 %d10, [q];\nmov.u32 %r9, %tid.x;\nmul.wide.u32 %d11, %r9, 8;\n\
         add.s64 %d9, %d9, %d11;\nadd.s64 %d10, %d10, %d11;\n{}{}{}{text}\nst.global.b{to} [%d10], {}3;\nret;\n}}\n",
        load(0),
        load(1),
        load(2),
        name(to)
    );
    let bytes: Vec<u64> = inputs.concat();
    let args = [Arg::In(bytes_of(&bytes)), Arg::In(&vec![0; 8 * n])];
    let (out, _) = run_all(&ptx, "k", &line(1, n as u32), &args);
    let cut = |v: u64, bits: u32| v & u64::MAX >> (64 - bits);
    for (i, got) in out[1].as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).enumerate() {
        let [a, b, c] = [0, 1, 2].map(|k| cut(inputs[k][i], from));
        let want = cut(of(a, b, c), to);
        assert_eq!(got, want, "{code} of {a:#x}, {b:#x}, {c:#x}: {got:#x}, wanted {want:#x}");
    }
}

fn integers() -> [Vec<u64>; 3] {
    [operands(1), operands(2), operands(3)]
}

#[test]
fn integer_arithmetic() {
    let x = integers();
    let (s, w) = (|v: u64| v as u32 as i32, |v: i64| v as u64);
    check("add.s32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| a + b);
    check("sub.s64 %x3, %x0, %x1;", (64, 64), &x, |a, b, _| a.wrapping_sub(b));
    check("mul.lo.s32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| a.wrapping_mul(b));
    check("mul.hi.u32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| (a * b) >> 32);
    check("mul.hi.s32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| w((s(a) as i64 * s(b) as i64) >> 32));
    check("mul.hi.u64 %x3, %x0, %x1;", (64, 64), &x, |a, b, _| ((a as u128 * b as u128) >> 64) as u64);
    check("mul.wide.s32 %x3, %x0, %x1;", (32, 64), &x, |a, b, _| w(s(a) as i64 * s(b) as i64));
    check("mul.wide.u16 %x3, %x0, %x1;", (16, 32), &x, |a, b, _| a * b);
    check("mad.lo.s32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| (a * b).wrapping_add(c));
    check("abs.s32 %x3, %x0;", (32, 32), &x, |a, _, _| {
        w(s(a) as i64).wrapping_mul(if s(a) < 0 { !0 } else { 1 })
    });
    check("min.s32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| if s(a) < s(b) { a } else { b });
    check("max.u64 %x3, %x0, %x1;", (64, 64), &x, |a, b, _| if a > b { a } else { b });
    check("sad.u32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| c + a.abs_diff(b));
    let divisors =
        [x[0].clone(), x[1].iter().map(|v| if *v as u32 == 0 { 7 } else { *v }).collect(), x[2].clone()];
    let (q, r) =
        (|a: u64, b: u64| w(s(a) as i64 / s(b) as i64), |a: u64, b: u64| w(s(a) as i64 % s(b) as i64));
    check("div.s32 %x3, %x0, %x1;", (32, 32), &divisors, |a, b, _| q(a, b));
    check("rem.s32 %x3, %x0, %x1;", (32, 32), &divisors, |a, b, _| r(a, b));
    check("div.u64 %x3, %x0, %x1;", (64, 64), &divisors, |a, b, _| a / b);
    // 128-bit sums and differences, upper halves.
    let carry = "add.cc.u64 %d4, %x0, %x1; addc.u64 %x3, %x2, 5;";
    check(carry, (64, 64), &x, |a, b, c| c.wrapping_add(5 + u64::from(a.checked_add(b).is_none())));
    let borrow = "sub.cc.u32 %r4, %x0, %x1; subc.u32 %x3, %x2, 5;";
    check(borrow, (32, 32), &x, |a, b, c| c.wrapping_sub(5 + u64::from(a < b)));
}

#[test]
fn bits_and_bytes() {
    let x = integers();
    check("not.b32 %x3, %x0;", (32, 32), &x, |a, _, _| !a);
    check("shl.b32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| if b < 32 { a << b } else { 0 });
    check("shr.s32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| (a as i32 as i64 >> b.min(31)) as u64);
    check("shr.u64 %x3, %x0, 60;", (64, 64), &x, |a, _, _| a >> 60);
    check("popc.b64 %x3, %x0;", (64, 32), &x, |a, _, _| (0..64).map(|i| a >> i & 1).sum());
    check("clz.b32 %x3, %x0;", (32, 32), &x, |a, _, _| {
        (0..32).rev().take_while(|i| a >> i & 1 == 0).count() as u64
    });
    check("brev.b32 %x3, %x0;", (32, 32), &x, |a, _, _| (0..32).map(|i| (a >> i & 1) << (31 - i)).sum());
    let top = |a: u64| (0..32).rev().find(|i| a >> i & 1 == 1);
    check("bfind.u32 %x3, %x0;", (32, 32), &x, |a, _, _| top(a).unwrap_or(!0));
    check("bfind.shiftamt.u32 %x3, %x0;", (32, 32), &x, |a, _, _| top(a).map_or(!0, |t| 31 - t));
    let field = |a: u64, pos: u64, len: u64, sign: bool| {
        let bit = |i: u64| if i < 32 { a >> i & 1 } else { 0 };
        let (pos, len) = (pos & 255, len & 255);
        let fill = if sign && len > 0 { bit((pos + len - 1).min(31)) } else { 0 };
        (0..32).map(|i| if i < len && pos + i < 32 { bit(pos + i) } else { fill } << i).sum::<u64>()
    };
    check("bfe.u32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| field(a, b, c, false));
    check("bfe.s32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| field(a, b, c, true));
    check("bfi.b32 %x3, %x0, %x1, %x2, 9;", (32, 32), &x, |a, b, c| {
        (0..32)
            .map(|i| {
                (if i >= (c & 255) && i < (c & 255) + 9 { a >> (i - (c & 255)) } else { b >> i } & 1) << i
            })
            .sum()
    });
    check("prmt.b32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| {
        let byte = |n: u64| (b << 32 | a) >> (8 * (n & 7)) & 255;
        let pick = |n: u64| if n & 8 == 0 { byte(n) } else { (byte(n) >> 7) * 255 };
        (0..4).map(|i| pick(c >> (4 * i) & 15) << (8 * i)).sum()
    });
    for table in [0x80u64, 0xfe, 0x96, 0xca, 0x1d, 0x00, 0xff, 0x6a] {
        check(&format!("lop3.b32 %x3, %x0, %x1, %x2, {table};"), (32, 32), &x, |a, b, c| {
            (0..32).map(|i| (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i).sum()
        });
    }
    check("shf.l.wrap.b32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| (b << 32 | a) << (c & 31) >> 32);
    check("shf.r.clamp.b32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| (b << 32 | a) >> c.min(32));
    check("{ .reg .b32 lo, hi; mov.b64 {lo, hi}, %x0; mov.b64 %x3, {hi, lo}; }", (64, 64), &x, |a, _, _| {
        a.rotate_left(32)
    });
    check(
        "mov.pred %p1, -1; mov.pred %p2, 0; @%p2 mov.pred %p1, 0; selp.b32 %x3, %x0, 7, %p1;",
        (32, 32),
        &x,
        |a, _, _| a,
    );
    check("setp.lt.s32 %p1, %x0, %x1; selp.b32 %x3, %x2, 7, %p1;", (32, 32), &x, |a, b, c| {
        if (a as i32) < b as i32 { c } else { 7 }
    });
    let halves = |f: &dyn Fn(u16, u16) -> u16, a: u64, b: u64| {
        u64::from(f(a as u16, b as u16)) | u64::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
    };
    let signed = |f: fn(i16, i16) -> i16| move |x: u16, y: u16| f(x as i16, y as i16) as u16;
    for (code, f) in [
        ("add.u16x2", &u16::wrapping_add as &dyn Fn(u16, u16) -> u16),
        ("min.u16x2", &u16::min),
        ("max.u16x2", &u16::max),
        ("min.s16x2", &signed(i16::min)),
        ("max.s16x2", &signed(i16::max)),
    ] {
        check(&format!("{code} %x3, %x0, %x1;"), (32, 32), &integers(), |a, b, _| halves(f, a, b));
    }
}

#[test]
fn floats_round_as_they_say() {
    let noise: Vec<Vec<u64>> =
        (0..3).map(|s| noise(512, s + 20).iter().map(|v| u64::from((v * 3.7).to_bits())).collect()).collect();
    let x: [Vec<u64>; 3] = noise.try_into().unwrap();
    let f = |v: u64| f32::from_bits(v as u32);
    let bits = |v: f32| u64::from(v.to_bits());
    check("fma.rn.f32 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| bits(f(a).mul_add(f(b), f(c))));
    check("div.rn.f32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| bits(f(a) / f(b)));
    check("add.sat.f32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| bits((f(a) + f(b)).clamp(0.0, 1.0)));
    // The exact product has 48 bits, so an f64 holds it, and the neighbours of the nearest f32 bound it.
    let product = |a: u64, b: u64| f64::from(f(a)) * f64::from(f(b));
    let down = |v: f64| if f64::from(v as f32) > v { (v as f32).next_down() } else { v as f32 };
    check("mul.rm.f32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| bits(down(product(a, b))));
    check("mul.rp.f32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| bits(-down(-product(a, b))));
    check("mul.rz.f32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| {
        bits(down(product(a, b).abs()).copysign(product(a, b) as f32))
    });
    check("cvt.rzi.s32.f32 %x3, %x0;", (32, 32), &x, |a, _, _| f(a) as i32 as u64);
    check("cvt.rmi.s32.f32 %x3, %x0;", (32, 32), &x, |a, _, _| f(a).floor() as i32 as u64);
    check("cvt.rni.f32.f32 %x3, %x0;", (32, 32), &x, |a, _, _| bits(f(a).round_ties_even()));
    check("cvt.rn.bf16x2.f32 %x3, %x0, %x1;", (32, 32), &x, |a, b, _| {
        u64::from(bf16::from_f32(f(a)).to_bits()) << 16 | u64::from(bf16::from_f32(f(b)).to_bits())
    });
    check("cvt.rn.f16.f32 %x3, %x0;", (32, 16), &x, |a, _, _| u64::from(f16::from_f32(f(a)).to_bits()));
    check("cvt.rna.tf32.f32 %x3, %x0;", (32, 32), &x, |a, _, _| (a + 0x1000) & !0x1fff);
    let all = [operands(7), operands(8), operands(9)];
    let number = |v: f32| if v.is_nan() { 0 } else { bits(v) };
    let quiet = |code: &str| format!("{code} setp.nan.f32 %p1, %x3, %x3; @%p1 mov.b32 %x3, 0;");
    check(&quiet("add.rn.f32 %x3, %x0, %x1;"), (32, 32), &all, |a, b, _| number(f(a) + f(b)));
    check(&quiet("min.f32 %x3, %x0, %x1;"), (32, 32), &all, |a, b, _| match (f(a), f(b)) {
        (a, b) if a.is_nan() => number(b),
        (a, b) if b.is_nan() => number(a),
        (a, b) if a == b => number(a) | number(b),
        (a, b) => number(if a < b { a } else { b }),
    });
    check(&quiet("mul.ftz.f32 %x3, %x0, %x1;"), (32, 32), &all, |a, b, _| {
        let flush = |v: f32| if v.is_subnormal() { v * 0.0 } else { v };
        number(flush(flush(f(a)) * flush(f(b))))
    });
    check("cvt.rn.f32.s64 %x3, %x0;", (64, 32), &all, |a, _, _| bits(a as i64 as f32));
    check("cvt.sat.u8.s32 %r3, %x0;", (32, 32), &all, |a, _, _| (a as i32).clamp(0, 255) as u64);
    check("cvt.s64.s8 %x3, %x0;", (64, 64), &all, |a, _, _| a as i8 as u64);
}

/// Of the 16-bit numbers around `sum + lost` the nearest, on a tie the even one.
fn nearest(sum: f64, lost: f64, guess: u16, value: impl Fn(u16) -> f64) -> u64 {
    if !sum.is_finite() || !value(guess).is_finite() {
        return if sum.is_nan() { 0x7fff } else { u64::from(guess) };
    }
    let near =
        [guess, guess.wrapping_sub(1), guess.wrapping_add(1)].into_iter().filter(|n| value(*n).is_finite());
    let far = |n: &u16| (((value(*n) - sum) - lost).abs(), n & 1, *n != guess);
    u64::from(near.min_by(|a, b| far(a).partial_cmp(&far(b)).unwrap()).unwrap())
}

/// 16-bit sums, products, and fused products and sums are rounded once.
#[test]
fn halves_round_once() {
    let x = [operands(11), operands(12), operands(13)];
    let half = |v: u64| f16::from_bits(v as u16).to_f64();
    let brain = |v: u64| bf16::from_bits(v as u16).to_f64();
    let near16 = |v: f64| nearest(v, 0.0, f16::from_f32(v as f32).to_bits(), |n| f16::from_bits(n).to_f64());
    let near_b =
        |v: f64, lost| nearest(v, lost, bf16::from_f32(v as f32).to_bits(), |n| bf16::from_bits(n).to_f64());
    check("add.rn.f16 %x3, %x0, %x1;", (16, 16), &x, |a, b, _| near16(half(a) + half(b)));
    check("mul.rn.f16 %x3, %x0, %x1;", (16, 16), &x, |a, b, _| near16(half(a) * half(b)));
    check("mul.rn.bf16 %x3, %x0, %x1;", (16, 16), &x, |a, b, _| near_b(brain(a) * brain(b), 0.0));
    check("fma.rn.bf16x2 %x3, %x0, %x1, %x2;", (32, 32), &x, |a, b, c| {
        let one = |shift: u32| {
            let (p, c) = (brain(a >> shift) * brain(b >> shift), brain(c >> shift));
            // What the f64 sum has lost, exactly: the smaller one less what of it went in.
            let sum = p + c;
            let lost = if p.abs() > c.abs() { c - (sum - p) } else { p - (sum - c) };
            near_b(sum, lost) << shift
        };
        one(0) | one(16)
    });
}

/// The functions of a kernel that nvcc compiled, each within its documented error.
#[test]
fn a_zoo_of_scalars() {
    let x: Vec<f32> = noise(200, 31).iter().map(|v| v * 4.0).collect();
    let args = [Arg::Scratch(200 * 32), Arg::Scratch(200 * 8), Arg::In(bytes_of(&x)), Arg::Int(200)];
    judge_all(BASICS, "scalar_zoo", &line(2, 128), &args, |out| zoo(&x, out));
}

fn zoo(x: &[f32], out: &[Vec<u8>]) {
    let (f, q) = (f32s(&out[0]), out[1].as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)));
    for (i, got) in f.chunks(8).enumerate() {
        let v = f64::from(x[i]);
        let poly = (0..3 + i % 5).rev().fold(0.0, |y, k| y * v + f64::from(x[(i + k * 3) % 200]));
        let small = f64::from(bf16::from_f32(x[i]).to_f32()) + f64::from(f16::from_f32(x[i]).to_f32());
        let want = [
            poly,
            v.exp(),
            (v.abs() + 0.5).ln(),
            1.0 / (v * v + 1.0).sqrt(),
            v.sin() + v.cos(),
            v.tanh(),
            v / (1.0 + v * v),
            small,
        ];
        for (k, (got, want)) in got.iter().zip(want).enumerate() {
            let scale = if k == 0 { 1e4 } else { want.abs().max(1.0) };
            assert!((f64::from(*got) - want).abs() <= 4e-7 * scale, "{i} {k}: {got} {want}");
        }
    }
    for (i, got) in q.enumerate() {
        let u = x[i].to_bits();
        let shift = (i % 40 % 32) as u32;
        let funnel = ((i as u64) << 32 | u64::from(u)) << shift >> 32;
        let mut s = i64::from(u as i32) * 1000003;
        s ^= i64::from(u.count_ones()) << 40;
        s += i64::from(u.leading_zeros()) * 7
            + i64::from(u.reverse_bits() % 1000)
            + i64::from(if u == 0 { 0 } else { u.trailing_zeros() + 1 });
        s -= i64::from((u >> 8 | (i as u32) << 24) / (i as u32 + 1));
        s += funnel as i64;
        let high = (i64::from(u as i32) * 77777) >> 32;
        assert_eq!(got, s / (i as i64 + 3) + s % 17 + high, "{i}");
    }
}
