//! `cvt`: between all integer and float types, with rounding and saturation.

use super::alu::alu;
use super::float::{Round, nearest_bf16, sum_to_odd, to_bf16, to_f16, to_f32};
use crate::isa::operand::{AluFn, Ty};
use half::{bf16, f16};

/// Rounds to an integral value: `rni`, `rzi`, `rmi`, `rpi`.
fn integral(x: f64, mode: Round) -> f64 {
    match mode {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn rounding(mode: &str) -> Option<Round> {
    Some(match mode {
        "rn" => Round::Nearest,
        "rz" => Round::Zero,
        "rm" => Round::Down,
        "rp" => Round::Up,
        _ => return None,
    })
}

/// The function for `cvt.mode.to.from`, where the mode is one that these types may have: to whole numbers (`rni` …) from
/// a float to an integer or to its own type, to representable ones (`rn` …) where digits may be lost, else none.
pub fn function(to: Ty, from: Ty, mode: &str, sat: bool) -> Option<AluFn> {
    let float = |ty| matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64);
    let whole = mode.strip_suffix('i').map(rounding);
    match (float(from), float(to)) {
        (false, false) if mode.is_empty() => integer_to_integer(to, from, sat),
        (false, true) => integer_to_float(to, from, rounding(mode)?),
        (true, false) => float_to_integer(to, from, whole??),
        (true, true) if whole.is_some() => float_to_integral(to, from, whole??),
        (true, true) if widens(to, from) && mode.is_empty() => float_to_float(to, from, Round::Nearest),
        (true, true) if !widens(to, from) => float_to_float(to, from, rounding(mode)?),
        _ => None,
    }
}

/// Whether every number of `from` is one of `to`.
fn widens(to: Ty, from: Ty) -> bool {
    let size = |ty: Ty| ty.size();
    to == from || size(to) > size(from)
}

macro_rules! pick {
    ($ty:expr, $with:ident) => {
        match $ty {
            Ty::U8 => $with!(u8),
            Ty::U16 => $with!(u16),
            Ty::U32 => $with!(u32),
            Ty::U64 => $with!(u64),
            Ty::S8 => $with!(i8),
            Ty::S16 => $with!(i16),
            Ty::S32 => $with!(i32),
            Ty::S64 => $with!(i64),
            _ => None,
        }
    };
}

macro_rules! pick_float {
    ($ty:expr, $with:ident) => {
        match $ty {
            Ty::F16 => $with!(f16),
            Ty::Bf16 => $with!(bf16),
            Ty::F32 => $with!(f32),
            Ty::F64 => $with!(f64),
            _ => None,
        }
    };
}

/// A narrow result is extended to the register by its own sign: `cvt.s32.s8` and `cvt.s16.s8` alike.
fn integer_to_integer(to: Ty, from: Ty, sat: bool) -> Option<AluFn> {
    macro_rules! from_type {
        ($f:ty) => {{
            macro_rules! to_type {
                ($t:ty) => {
                    Some(if sat {
                        alu!($f => $t: |a, _, _| (a as i128).clamp(<$t>::MIN as i128, <$t>::MAX as i128) as $t)
                    } else {
                        alu!($f => $t: |a, _, _| a as $t)
                    })
                };
            }
            pick!(to, to_type)
        }};
    }
    pick!(from, from_type)
}

/// Into f32 and f64 the compiler's conversion rounds to nearest; other ways go through the exact halves.
fn integer_to_float(to: Ty, from: Ty, round: Round) -> Option<AluFn> {
    macro_rules! from_type {
        ($f:ty) => {
            Some(match (to, round) {
                (Ty::F32, Round::Nearest) => alu!($f => f32: |a, _, _| a as f32),
                (Ty::F64, Round::Nearest) => alu!($f => f64: |a, _, _| a as f64),
                (Ty::F32, Round::Zero) => alu!($f => f32: |a, _, _| to_f32(exact(a as i128), Round::Zero)),
                (Ty::F32, Round::Down) => alu!($f => f32: |a, _, _| to_f32(exact(a as i128), Round::Down)),
                (Ty::F32, Round::Up) => alu!($f => f32: |a, _, _| to_f32(exact(a as i128), Round::Up)),
                (Ty::F16, Round::Nearest) => alu!($f => f16: |a, _, _| to_f16(exact(a as i128), Round::Nearest)),
                (Ty::Bf16, Round::Nearest) => alu!($f => bf16: |a, _, _| to_bf16(exact(a as i128), Round::Nearest)),
                _ => return None,
            })
        };
    }
    pick!(from, from_type)
}

/// An integer of up to 64 bits as an f64, rounded to odd.
fn exact(a: i128) -> f64 {
    let high = (a >> 32) as f64 * 4294967296.0;
    sum_to_odd(high, (a & 0xffff_ffff) as f64)
}

trait Wide {
    fn wide(self) -> f64;
}

macro_rules! wides { ($($t:ty),*) => {$( impl Wide for $t { fn wide(self) -> f64 { self.into() } } )*}; }

wides!(f16, bf16, f32, f64);

/// Out of range goes to the nearest end and NaN to zero, as `as` does; only f64 to 32 bits and wider differs on NaN.
fn float_to_integer(to: Ty, from: Ty, round: Round) -> Option<AluFn> {
    macro_rules! from_type {
        ($f:ty) => {{
            macro_rules! to_type {
                ($t:ty) => {
                    Some(match round {
                        Round::Nearest => alu!($f => $t: |a, _, _| integral(a.wide(), Round::Nearest) as $t),
                        Round::Zero => alu!($f => $t: |a, _, _| integral(a.wide(), Round::Zero) as $t),
                        Round::Down => alu!($f => $t: |a, _, _| integral(a.wide(), Round::Down) as $t),
                        Round::Up => alu!($f => $t: |a, _, _| integral(a.wide(), Round::Up) as $t),
                    })
                };
            }
            pick!(to, to_type)
        }};
    }
    pick_float!(from, from_type)
}

fn float_to_integral(to: Ty, from: Ty, round: Round) -> Option<AluFn> {
    macro_rules! by_round {
        ($t:ty, $back:expr) => {
            Some(match round {
                Round::Nearest => alu!($t: |a, _, _| $back(integral(a.wide(), Round::Nearest))),
                Round::Zero => alu!($t: |a, _, _| $back(integral(a.wide(), Round::Zero))),
                Round::Down => alu!($t: |a, _, _| $back(integral(a.wide(), Round::Down))),
                Round::Up => alu!($t: |a, _, _| $back(integral(a.wide(), Round::Up))),
            })
        };
    }
    match (to, from) {
        (Ty::F32, Ty::F32) => by_round!(f32, |x| x as f32),
        (Ty::F64, Ty::F64) => by_round!(f64, |x| x),
        (Ty::F16, Ty::F16) => by_round!(f16, |x| to_f16(x, Round::Nearest)),
        (Ty::Bf16, Ty::Bf16) => by_round!(bf16, |x| to_bf16(x, Round::Nearest)),
        _ => None,
    }
}

fn float_to_float(to: Ty, from: Ty, round: Round) -> Option<AluFn> {
    macro_rules! from_type {
        ($f:ty) => {{
            macro_rules! rounded {
                ($t:ty, $fit:ident) => {
                    match round {
                        Round::Nearest => alu!($f => $t: |a, _, _| $fit(a.wide(), Round::Nearest)),
                        Round::Zero => alu!($f => $t: |a, _, _| $fit(a.wide(), Round::Zero)),
                        Round::Down => alu!($f => $t: |a, _, _| $fit(a.wide(), Round::Down)),
                        Round::Up => alu!($f => $t: |a, _, _| $fit(a.wide(), Round::Up)),
                    }
                };
            }
            Some(match to {
                Ty::F64 => alu!($f => f64: |a, _, _| a.wide()),
                Ty::F32 => rounded!(f32, to_f32),
                Ty::F16 => rounded!(f16, to_f16),
                _ => rounded!(bf16, to_bf16),
            })
        }};
    }
    match (to, from, round) {
        (Ty::Bf16, Ty::F32, Round::Nearest) => Some(alu!(f32 => u16: |a, _, _| nearest_bf16(a) as u16)),
        _ => pick_float!(from, from_type),
    }
}

/// `cvt.rn.bf16x2.f32 d, a, b`: `a` into the upper half.
pub fn pair(to: Ty, mode: &str) -> Option<AluFn> {
    macro_rules! two {
        ($fit:ident, $round:expr, $relu:expr) => {
            alu!(f32 => u32: |a, b, _| {
                let one = |x: f32| u32::from($fit(if $relu && x <= 0.0 { 0.0 } else { f64::from(x) }, $round).to_bits());
                one(a) << 16 | one(b)
            })
        };
    }
    macro_rules! two_nearest {
        ($relu:expr) => {
            alu!(f32 => u32: |a, b, _| {
                let one = |x: f32| nearest_bf16(if $relu && x <= 0.0 { 0.0 } else { x });
                one(a) << 16 | one(b)
            })
        };
    }
    Some(match (to, mode) {
        (Ty::F16x2, "rn") => two!(to_f16, Round::Nearest, false),
        (Ty::F16x2, "rz") => two!(to_f16, Round::Zero, false),
        (Ty::F16x2, "rn.relu") => two!(to_f16, Round::Nearest, true),
        (Ty::Bf16x2, "rn") => two_nearest!(false),
        (Ty::Bf16x2, "rz") => two!(to_bf16, Round::Zero, false),
        (Ty::Bf16x2, "rn.relu") => two_nearest!(true),
        _ => return None,
    })
}

/// `cvt.rna.tf32.f32`: the last 13 bits rounded away, ties away from zero.
pub fn tf32() -> AluFn {
    alu!(u32: |a, _, _| if a & 0x7f80_0000 == 0x7f80_0000 { a } else { a.wrapping_add(0x1000) & !0x1fff })
}
