//! Floating point: rounding as the modifier says, `.approx` functions rounded from f64.

use super::alu::alu;
use crate::isa::operand::{AluFn, Ty};
use half::{bf16, f16};

/// Where a value between two representable ones goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A sum that is rounded to odd: rounding it again to a format at least two bits shorter, in any direction, gives
/// what rounding the exact sum once gives.
pub fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let back = sum - a;
    let error = (a - (sum - back)) + (b - back);
    toward_odd(sum, error)
}

/// `value` plus something smaller than its last bit, rounded to odd.
fn toward_odd(value: f64, rest: f64) -> f64 {
    let bits = value.to_bits();
    if rest == 0.0 || bits & 1 == 1 {
        value
    } else if (rest > 0.0) == (value > 0.0) {
        f64::from_bits(bits + 1)
    } else {
        f64::from_bits(bits - 1)
    }
}

/// An f64 to an f32 in any direction.
pub fn to_f32(x: f64, round: Round) -> f32 {
    let near = x as f32;
    let wide = f64::from(near);
    let past = match round {
        Round::Nearest => return near,
        _ if x.is_nan() || wide == x || x.is_infinite() => return near,
        Round::Down => wide > x,
        Round::Up => wide < x,
        Round::Zero => wide.abs() > x.abs(),
    };
    match (past, round) {
        (false, _) => near,
        (true, Round::Down) => near.next_down(),
        (true, Round::Up) => near.next_up(),
        (true, _) if x > 0.0 => near.next_down(),
        (true, _) => near.next_up(),
    }
}

/// An f64 to an f32 rounded to odd, from where it may be rounded to 16 bits.
fn to_f32_odd(x: f64) -> f32 {
    let zero = to_f32(x, Round::Zero);
    if f64::from(zero) == x || !zero.is_finite() || zero.to_bits() & 1 == 1 {
        return zero;
    }
    f32::from_bits(zero.to_bits() + 1)
}

/// An f64 to 16 bits.
pub fn to_f16(x: f64, round: Round) -> f16 {
    let near = f16::from_f32(if x.is_nan() { f32::NAN } else { to_f32_odd(x) });
    if near.is_nan() {
        return f16::from_bits(0x7fff);
    }
    f16::from_bits(directed(near.to_bits(), near.to_f64(), x, round))
}

/// An f64 to bfloat16.
pub fn to_bf16(x: f64, round: Round) -> bf16 {
    let near = bf16::from_f32(if x.is_nan() { f32::NAN } else { to_f32_odd(x) });
    if near.is_nan() {
        return bf16::from_bits(0x7fff);
    }
    bf16::from_bits(directed(near.to_bits(), near.to_f64(), x, round))
}

/// An f32 to the nearest bfloat16, as [`to_bf16`] gives it: by whole numbers alone, so that lanes go side by side.
#[inline(always)]
pub fn nearest_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let near = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { near }
}

/// Steps back from the nearest value where that lies beyond `x`; both formats order their magnitudes by bits.
fn directed(bits: u16, near: f64, x: f64, round: Round) -> u16 {
    let away = near.abs() > x.abs();
    let grows = |up: bool| (x > 0.0) == up;
    match round {
        Round::Zero if away => bits - 1,
        Round::Down | Round::Up if near != x => match (grows(round == Round::Up), away) {
            (true, false) => bits + 1,
            (false, true) => bits - 1,
            _ => bits,
        },
        _ => bits,
    }
}

/// The minimum that PTX means: a NaN loses to a number, -0 is less than +0.
fn least(a: f64, b: f64) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => a.min(b),
    }
}

fn most(a: f64, b: f64) -> f64 {
    -least(-a, -b)
}

/// The same of f32, without a branch: `most`, or else the minimum.
#[inline(always)]
fn extreme(a: f32, b: f32, most: bool) -> f32 {
    let (x, y) = (a.to_bits(), b.to_bits());
    let first = if most { a > b } else { a < b };
    let zeros = if most { x & y } else { x | y };
    let number = if a == b {
        zeros
    } else if first {
        x
    } else {
        y
    };
    // Of two NaNs the second, quiet.
    let other = if a.is_nan() & b.is_nan() { y | 1 << 22 } else { number };
    f32::from_bits(if b.is_nan() & !a.is_nan() { x } else { other })
}

/// With `.NaN`, a NaN wins.
fn with_nan(a: f64, b: f64, of: fn(f64, f64) -> f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { of(a, b) }
}

/// The function for an operation, its rounding and its type.
pub fn function(name: &str, mode: &str, ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::F32 => single(name, mode),
        Ty::F64 => double(name, mode),
        Ty::F16 => half_function(name, mode),
        Ty::Bf16 => brain_function(name, mode),
        Ty::F16x2 => pairs_f16(name, mode),
        Ty::Bf16x2 => pairs_bf16(name, mode),
        _ => None,
    }
}

fn single(name: &str, mode: &str) -> Option<AluFn> {
    macro_rules! f64ly {
        (|$a:ident| $e:expr) => { alu!(f32: |x, _, _| { let $a = f64::from(x); ($e) as f32 }) };
    }
    macro_rules! directed {
        (|$a:ident, $b:ident, $c:ident| $e:expr) => {
            match mode {
                "rz" => alu!(f32: |x, y, z| { let ($a, $b, $c) = (x as f64, y as f64, z as f64); to_f32($e, Round::Zero) }),
                "rm" => alu!(f32: |x, y, z| { let ($a, $b, $c) = (x as f64, y as f64, z as f64); to_f32($e, Round::Down) }),
                "rp" => alu!(f32: |x, y, z| { let ($a, $b, $c) = (x as f64, y as f64, z as f64); to_f32($e, Round::Up) }),
                _ => return None,
            }
        };
    }
    Some(match (name, mode) {
        ("mov", "") => alu!(u32: |a, _, _| a),
        ("add", "" | "rn") => alu!(f32: |a, b, _| a + b),
        ("sub", "" | "rn") => alu!(f32: |a, b, _| a - b),
        ("mul", "" | "rn") => alu!(f32: |a, b, _| a * b),
        ("fma" | "mad", "" | "rn") => {
            alu!(f32: |a, b, c| to_f32(sum_to_odd(a as f64 * b as f64, c as f64), Round::Nearest))
        }
        ("add", _) => directed!(|a, b, _c| sum_to_odd(a, b)),
        ("sub", _) => directed!(|a, b, _c| sum_to_odd(a, -b)),
        ("mul", _) => directed!(|a, b, _c| a * b),
        ("fma" | "mad", _) => directed!(|a, b, c| sum_to_odd(a * b, c)),
        ("div", "rn" | "approx" | "full") => alu!(f32: |a, b, _| a / b),
        ("rcp", "rn" | "approx") => alu!(f32: |a, _, _| 1.0 / a),
        ("sqrt", "rn" | "approx") => alu!(f32: |a, _, _| a.sqrt()),
        ("rsqrt", "approx") => f64ly!(|a| 1.0 / a.sqrt()),
        ("sin", "approx") => f64ly!(|a| a.sin()),
        ("cos", "approx") => f64ly!(|a| a.cos()),
        ("lg2", "approx") => f64ly!(|a| a.log2()),
        ("ex2", "approx") => f64ly!(|a| a.exp2()),
        ("tanh", "approx") => f64ly!(|a| a.tanh()),
        ("abs", "") => alu!(f32: |a, _, _| a.abs()),
        ("neg", "") => alu!(u32: |a, _, _| a ^ 1 << 31),
        ("min", "") => alu!(f32: |a, b, _| extreme(a, b, false)),
        ("max", "") => alu!(f32: |a, b, _| extreme(a, b, true)),
        ("min", "NaN") => alu!(f32: |a, b, _| with_nan(a as f64, b as f64, least) as f32),
        ("max", "NaN") => alu!(f32: |a, b, _| with_nan(a as f64, b as f64, most) as f32),
        ("copysign", "") => alu!(f32: |a, b, _| b.copysign(a)),
        _ => return None,
    })
}

fn double(name: &str, mode: &str) -> Option<AluFn> {
    Some(match (name, mode) {
        ("mov", "") => alu!(u64: |a, _, _| a),
        ("add", "" | "rn") => alu!(f64: |a, b, _| a + b),
        ("sub", "" | "rn") => alu!(f64: |a, b, _| a - b),
        ("mul", "" | "rn") => alu!(f64: |a, b, _| a * b),
        ("fma" | "mad", "rn") => alu!(f64: |a, b, c| a.mul_add(b, c)),
        ("div", "rn") => alu!(f64: |a, b, _| a / b),
        ("rcp", "rn" | "approx") => alu!(f64: |a, _, _| 1.0 / a),
        ("sqrt", "rn") => alu!(f64: |a, _, _| a.sqrt()),
        ("rsqrt", "approx") => alu!(f64: |a, _, _| 1.0 / a.sqrt()),
        ("abs", "") => alu!(f64: |a, _, _| a.abs()),
        ("neg", "") => alu!(u64: |a, _, _| a ^ 1 << 63),
        ("min", "") => alu!(f64: |a, b, _| least(a, b)),
        ("max", "") => alu!(f64: |a, b, _| most(a, b)),
        ("copysign", "") => alu!(f64: |a, b, _| b.copysign(a)),
        _ => return None,
    })
}

/// The 16-bit operations, once for each format and once for its pairs: computed in f64 and rounded once.
macro_rules! sixteen_bits {
    ($one:ident, $two:ident, $t:ty, $round:ident) => {
        fn $one(name: &str, mode: &str) -> Option<AluFn> {
            macro_rules! op {
                (|$a:ident, $b:ident, $c:ident| $e:expr) => {
                    Some(alu!($t: |x, y, z| {
                        let ($a, $b, $c) = (x.to_f64(), y.to_f64(), z.to_f64());
                        let _ = ($b, $c);
                        $round($e, Round::Nearest)
                    }))
                };
            }
            sixteen_bits!(@table name, mode, op, u16, 0x8000u16)
        }
        fn $two(name: &str, mode: &str) -> Option<AluFn> {
            macro_rules! op {
                (|$a:ident, $b:ident, $c:ident| $e:expr) => {
                    Some(alu!(u32: |x, y, z| {
                        let half = |shift: u32| {
                            let of = |w: u32| <$t>::from_bits((w >> shift) as u16).to_f64();
                            let ($a, $b, $c) = (of(x), of(y), of(z));
                            let _ = ($b, $c);
                            u32::from($round($e, Round::Nearest).to_bits()) << shift
                        };
                        half(0) | half(16)
                    }))
                };
            }
            sixteen_bits!(@table name, mode, op, u32, 0x8000_8000u32)
        }
    };
    (@table $name:ident, $mode:ident, $op:ident, $bits:ty, $sign:expr) => {
        match ($name, $mode) {
            ("add", "" | "rn") => $op!(|a, b, c| sum_to_odd(a, b)),
            ("sub", "" | "rn") => $op!(|a, b, c| sum_to_odd(a, -b)),
            ("mul", "" | "rn") => $op!(|a, b, c| a * b),
            ("fma", "rn") => $op!(|a, b, c| sum_to_odd(a * b, c)),
            ("fma", "rn.relu") => $op!(|a, b, c| most(sum_to_odd(a * b, c), 0.0)),
            ("min", "") => $op!(|a, b, c| least(a, b)),
            ("max", "") => $op!(|a, b, c| most(a, b)),
            ("min", "NaN") => $op!(|a, b, c| with_nan(a, b, least)),
            ("max", "NaN") => $op!(|a, b, c| with_nan(a, b, most)),
            ("ex2", "approx") => $op!(|a, b, c| a.exp2()),
            ("tanh", "approx") => $op!(|a, b, c| a.tanh()),
            ("neg", "") => Some(alu!($bits: |a, _, _| a ^ $sign)),
            ("abs", "") => Some(alu!($bits: |a, _, _| a & !$sign)),
            ("mov", "") => Some(alu!($bits: |a, _, _| a)),
            _ => None,
        }
    };
}

sixteen_bits!(half_function, pairs_f16, f16, to_f16);

sixteen_bits!(brain_function, pairs_bf16, bf16, to_bf16);
