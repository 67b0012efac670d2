//! `cvt`: every pair of types, with and without `.ftz` and `.sat`, in every rounding: accepted where the PTX ISA allows it,
//! and then the number that a rounding by whole numbers gives, written down a second time.

use super::*;

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("u16", 16, false),
    ("u32", 32, false),
    ("u64", 64, false),
    ("s8", 8, true),
    ("s16", 16, true),
    ("s32", 32, true),
    ("s64", 64, true),
];

/// Name, bits, bits of the exponent, stored bits of the fraction.
const FLOATS: [(&str, u32, u32, u32); 4] =
    [("f16", 16, 5, 10), ("bf16", 16, 8, 7), ("f32", 32, 8, 23), ("f64", 64, 11, 52)];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    Int { bits: u32, signed: bool },
    Float { bits: u32, exponent: u32, fraction: u32 },
}

fn types() -> Vec<(&'static str, Type)> {
    let ints = INTEGERS.map(|(name, bits, signed)| (name, Type::Int { bits, signed }));
    let floats =
        FLOATS.map(|(name, bits, exponent, fraction)| (name, Type::Float { bits, exponent, fraction }));
    ints.into_iter().chain(floats).collect()
}

impl Type {
    fn bits(self) -> u32 {
        match self {
            Type::Int { bits, .. } | Type::Float { bits, .. } => bits,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Type::Float { .. })
    }
}

/// A number as (-1)^negative * mantissa * 2^exponent, or none.
#[derive(Clone, Copy, Debug)]
enum Number {
    Finite { negative: bool, mantissa: u128, exponent: i32 },
    Infinite { negative: bool },
    Nan,
}

fn read(ty: Type, bits: u64) -> Number {
    match ty {
        Type::Int { bits: n, signed } => {
            let value = bits & (u64::MAX >> (64 - n));
            let negative = signed && value >> (n - 1) == 1;
            let mantissa = if negative { (1u128 << n) - u128::from(value) } else { value.into() };
            Number::Finite { negative, mantissa, exponent: 0 }
        }
        Type::Float { bits: n, exponent: e, fraction: f } => {
            let negative = bits >> (n - 1) & 1 == 1;
            let (biased, rest) = (bits >> f & ((1 << e) - 1), bits & ((1 << f) - 1));
            let bias = (1 << (e - 1)) - 1;
            match biased {
                0 => Number::Finite { negative, mantissa: rest.into(), exponent: 1 - bias - f as i32 },
                b if b == (1 << e) - 1 && rest == 0 => Number::Infinite { negative },
                b if b == (1 << e) - 1 => Number::Nan,
                b => Number::Finite {
                    negative,
                    mantissa: u128::from(rest | 1 << f),
                    exponent: b as i32 - bias - f as i32,
                },
            }
        }
    }
}

/// `mantissa / 2^shift` as a whole number by the rounding of `mode`: n, z, m or p.
fn shifted(negative: bool, mantissa: u128, shift: u32, mode: char) -> u128 {
    let (whole, rest, half) = match shift {
        0 => return mantissa,
        1..128 => (mantissa >> shift, mantissa & ((1 << shift) - 1), 1u128 << (shift - 1)),
        _ => (0, mantissa, u128::MAX),
    };
    let up = match mode {
        'n' => rest > half || rest == half && whole & 1 == 1,
        'z' => false,
        'm' => negative && rest > 0,
        _ => !negative && rest > 0,
    };
    whole + u128::from(up)
}

fn to_integer(bits: u32, signed: bool, x: Number, mode: char) -> u64 {
    let (least, most) = match signed {
        true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
        false => (0, (1i128 << bits) - 1),
    };
    let value = match x {
        Number::Nan => 0,
        Number::Infinite { negative } => {
            if negative {
                least
            } else {
                most
            }
        }
        Number::Finite { negative, mantissa, exponent } => {
            let size = match exponent {
                e if e > 70 && mantissa > 0 => u128::MAX >> 2,
                e if e >= 0 => (mantissa << e.min(70)).min(u128::MAX >> 2),
                e => shifted(negative, mantissa, e.unsigned_abs(), mode),
            };
            if negative { -(size as i128) } else { size as i128 }
        }
    };
    value.clamp(least, most) as u64
}

fn to_float(e: u32, f: u32, x: Number, mode: char) -> u64 {
    let sign = |negative: bool| u64::from(negative) << (e + f);
    let infinity = ((1u64 << e) - 1) << f;
    let (negative, mantissa, exponent) = match x {
        Number::Nan => return infinity | 1, // any: compared as such
        Number::Infinite { negative } => return sign(negative) | infinity,
        Number::Finite { negative, mantissa: 0, .. } => return sign(negative),
        Number::Finite { negative, mantissa, exponent } => (negative, mantissa, exponent),
    };
    let bias = (1i32 << (e - 1)) - 1;
    // The exponent of the last place: of a normal number by its first bit, of a denormal one the least there is.
    let first = exponent + 127 - mantissa.leading_zeros() as i32;
    let last = (first - f as i32).max(1 - bias - f as i32);
    let mut size = match exponent - last {
        s if s >= 0 => mantissa << s,
        s => shifted(negative, mantissa, s.unsigned_abs(), mode),
    };
    let mut last = last;
    if size >> (f + 1) != 0 {
        (size, last) = (size >> 1, last + 1);
    }
    let biased = if size >> f == 0 { 0 } else { last + bias + f as i32 };
    if biased >= (1 << e) - 1 {
        let stays = mode == 'z' || mode == 'm' && !negative || mode == 'p' && negative;
        return sign(negative) | if stays { infinity - 1 } else { infinity };
    }
    sign(negative) | (biased as u64) << f | (size as u64 & ((1 << f) - 1))
}

/// Denormal numbers of an f32 are zeros of their sign.
fn flushed(ty: Type, bits: u64) -> u64 {
    let f32s = ty == Type::Float { bits: 32, exponent: 8, fraction: 23 };
    if f32s && bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Whether the ISA has `cvt` with this rounding, `.ftz` and `.sat`; saturation of 16-bit and f64 results aside, which is
/// refused by name.
fn allowed(to: Type, from: Type, mode: &str, ftz: bool, sat: bool) -> bool {
    let f32s = |ty: Type| ty.is_float() && ty.bits() == 32;
    let widens = to == from || to.bits() > from.bits();
    let rounding = match (from.is_float(), to.is_float()) {
        (false, false) => mode.is_empty(),
        (false, true) => ["rn", "rz", "rm", "rp"].contains(&mode),
        (true, false) => ["rni", "rzi", "rmi", "rpi"].contains(&mode),
        (true, true) if mode.ends_with('i') => to == from,
        (true, true) => mode.is_empty() == widens,
    };
    let only_nearest = !from.is_float() && to.is_float() && to.bits() != 32 && mode != "rn";
    rounding && !only_nearest && (!ftz || f32s(from) || f32s(to)) && (!sat || !to.is_float() || f32s(to))
}

fn wanted(to: Type, from: Type, mode: &str, ftz: bool, sat: bool, bits: u64) -> u64 {
    let bits = if ftz { flushed(from, bits) } else { bits };
    let rounding = mode.chars().nth(1).unwrap_or('n');
    let mut x = read(from, bits);
    match to {
        // Without saturation an integer is cut to its bits.
        Type::Int { bits: n, signed } if !from.is_float() && !sat => {
            let Number::Finite { negative, mantissa, .. } = x else { unreachable!() };
            let value = if negative { (mantissa as u64).wrapping_neg() } else { mantissa as u64 };
            let low = value << (64 - n);
            if signed { (low as i64 >> (64 - n)) as u64 } else { low >> (64 - n) }
        }
        Type::Int { bits, signed } => to_integer(bits, signed, x, rounding),
        Type::Float { exponent: e, fraction: f, bits: n } => {
            if let (true, Number::Finite { negative, mantissa, exponent }) = (mode.ends_with('i'), x) {
                let whole = match exponent {
                    e if e >= 0 => (mantissa, exponent),
                    e => (shifted(negative, mantissa, e.unsigned_abs(), rounding), 0),
                };
                x = Number::Finite { negative, mantissa: whole.0, exponent: whole.1 };
            }
            let mut y = to_float(e, f, x, rounding);
            y = if ftz { flushed(to, y) } else { y };
            if sat {
                let nan = y << (64 - n) << 1 > u64::from(infinity32()) << 33;
                let negative = y >> (n - 1) == 1;
                y = if nan || negative { 0 } else { y.min(u64::from(1.0f32.to_bits())) };
            }
            y
        }
    }
}

fn infinity32() -> u32 {
    f32::INFINITY.to_bits()
}

/// The edges of every type, and what lies around the edges of the others; floats from the least denormal to past the most.
fn inputs(ty: Type) -> Vec<u64> {
    let mut state = 7u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state ^ state >> 31
    };
    let mut list: Vec<u64> = (0..24).map(|_| noise()).collect();
    match ty {
        Type::Int { .. } => {
            for at in [0, 7, 8, 11, 15, 16, 24, 31, 32, 53, 63] {
                list.extend([
                    (1u64 << at).wrapping_sub(1),
                    1 << at,
                    (1u64 << at) + 1,
                    (1u64 << at).wrapping_neg(),
                ]);
            }
        }
        Type::Float { bits, exponent: e, fraction: f } => {
            let one = ((1u64 << (e - 1)) - 1) << f;
            let top = ((1u64 << e) - 1) << f;
            // Denormals, the least normal, around 0.5, 1, 1.5, 2.5, 100, the largest, infinity, NaN.
            list.extend([
                0,
                1,
                3,
                (1 << f) - 1,
                1 << f,
                (1 << f) + 1,
                one - (1 << f),
                one,
                one | 1,
                top - 1,
                top,
                top | 1 << (f - 1),
            ]);
            list.extend([
                one | 1 << (f - 1),
                (one + (1 << f)) | 1 << (f - 2),
                (one + (6 << f)) | 9 << (f - 4),
            ]);
            // 2^k and its neighbours, for edges of integers and of narrower floats.
            for k in [7i64, 8, 15, 16, 31, 32, 63, 64, -14, -15, -24, -25, -126, -127, -149, -150] {
                let biased = (one >> f) as i64 + k;
                if (1..(1 << e) - 1).contains(&biased) {
                    list.extend([-1i64, 0, 1].map(|d| (((biased as u64) << f) as i64 + d) as u64));
                }
            }
            let sign = 1u64 << (bits - 1);
            list.extend(list.clone().iter().map(|v| v ^ sign));
            list.extend((0..16).map(|_| one.wrapping_add(noise() % (8 << f))));
        }
    }
    list.iter().map(|v| v & (u64::MAX >> (64 - ty.bits()))).collect()
}

fn register(bits: u32) -> &'static str {
    match bits {
        16 => "%h",
        64 => "%d",
        _ => "%r",
    }
}

/// A kernel that converts the 64-bit word of its thread.
fn kernel(code: &str, from: Type, to: Type) -> String {
    let (source, result) = (register(from.bits()), register(to.bits()));
    let width = |ty: Type| ty.bits().max(16).max(if ty.bits() == 8 { 32 } else { 0 });
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q)\n{{\n.reg .b16 %h<3>; \
         .reg .b32 %r<4>; .reg .b64 %d<6>;\nld.param.u64 %d3, [p];\nld.param.u64 %d4, [q];\nmov.u32 %r3, %tid.x;\n\
         mul.wide.u32 %d5, %r3, 8;\nadd.s64 %d3, %d3, %d5;\nadd.s64 %d4, %d4, %d5;\nld.global.b{} {source}1, [%d3];\n\
         {code} {result}2, {source}1;\nst.global.b{} [%d4], {result}2;\nret;\n}}\n",
        width(from),
        width(to)
    )
}

#[test]
fn every_conversion_is_the_isas() {
    let (mut run_count, mut refused) = (0, 0);
    for (from_name, from) in types() {
        let values = inputs(from);
        let bytes = bytes_of(&values);
        for (to_name, to) in types() {
            for mode in ["", "rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"] {
                for (ftz, sat) in [(false, false), (true, false), (false, true), (true, true)] {
                    let words = [
                        mode,
                        if ftz { "ftz" } else { "" },
                        if sat { "sat" } else { "" },
                        to_name,
                        from_name,
                    ];
                    let words: Vec<&str> = words.into_iter().filter(|w| !w.is_empty()).collect();
                    let code = format!("cvt.{}", words.join("."));
                    let text = kernel(&code, from, to);
                    if !allowed(to, from, mode, ftz, sat) {
                        let why = Module::parse("cvt.ptx", &text).err().map(|e| e.to_string());
                        assert!(why.as_ref().is_some_and(|e| e.contains("cvt")), "{code} was taken: {why:?}");
                        refused += 1;
                        continue;
                    }
                    run_count += 1;
                    let args = [Arg::In(bytes), Arg::In(&vec![0; bytes.len()])];
                    let launch = line(1, values.len() as u32);
                    let (out, _) = super::run(&text, "k", &launch, &args).unwrap();
                    for (v, got) in values.iter().zip(out[1].as_chunks().0) {
                        let (got, want) = (u64::from_le_bytes(*got), wanted(to, from, mode, ftz, sat, *v));
                        compared(&code, to, *v, got, want);
                    }
                }
            }
        }
    }
    assert_eq!((run_count + refused, run_count > 300), (12 * 12 * 9 * 4, true));
}

/// Equal, or both NaN.
fn compared(code: &str, to: Type, v: u64, got: u64, want: u64) {
    let cut = u64::MAX >> (64 - to.bits());
    let (got, want) = (got & cut, want & cut);
    let nan = |y: u64| to.is_float() && matches!(read(to, y), Number::Nan);
    assert!(got == want || nan(got) && nan(want), "{code} of {v:#x}: {got:#x}, wanted {want:#x}");
}

/// `.ftz` where the type has none is no instruction, and not one without it.
#[test]
fn modifiers_stand_where_their_type_has_them() {
    let file = |body: &str| {
        format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n.reg .b16 %h<4>; .reg .b32 %r<4>; \
             .reg .b64 %d<4>; .reg .pred %p<2>;\n{body}\nret;\n}}\n"
        )
    };
    for body in [
        "add.ftz.s32 %r0, %r1, %r2;",
        "add.ftz.f64 %d0, %d1, %d2;",
        "fma.rn.ftz.bf16 %h0, %h1, %h2, %h3;",
        "add.ftz.bf16x2 %r0, %r1, %r2;",
        "tanh.approx.ftz.bf16 %h0, %h1;",
        "ex2.approx.ftz.f16 %h0, %h1;",
        "mov.ftz.f32 %r0, %r1;",
        "setp.lt.ftz.s32 %p0, %r0, %r1;",
        "setp.lt.ftz.f64 %p0, %d0, %d1;",
        "setp.lt.ftz.bf16 %p0, %h0, %h1;",
        "cvt.rn.ftz.f16x2.f32 %r0, %r1, %r2;",
        "cvt.rna.ftz.tf32.f32 %r0, %r1;",
        "cvt.rna.bf16.f32 %h0, %r1;",
    ] {
        assert!(Module::parse("bad.ptx", &file(body)).is_err(), "{body}");
    }
    for body in [
        "add.ftz.f16x2 %r0, %r1, %r2;",
        "fma.rn.ftz.f16 %h0, %h1, %h2, %h3;",
        "ex2.approx.ftz.bf16x2 %r0, %r1;",
        "setp.lt.ftz.f16 %p0, %h0, %h1;",
    ] {
        Module::parse("good.ptx", &file(body)).unwrap_or_else(|e| panic!("{body}: {e}"));
    }
}
