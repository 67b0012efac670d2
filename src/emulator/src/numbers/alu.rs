//! Arithmetic: one function per operation and type, each a loop over the lanes that the compiler vectorises.

use crate::isa::operand::{AluFn, CmpFn, LANES, Lanes, Ty};
use half::{bf16, f16};
use std::cmp::Ordering;

/// A value as the low bits of a register.
pub trait Word: Copy {
    /// Of the register.
    fn of(bits: u64) -> Self;
    /// To the register, zero-extended.
    fn bits(self) -> u64;
}

macro_rules! integer_words {
    ($($t:ty as $u:ty),*) => {$(
        impl Word for $t {
            fn of(bits: u64) -> $t { bits as $t }
            fn bits(self) -> u64 { self as $u as u64 }
        }
    )*};
}

integer_words!(u8 as u8, u16 as u16, u32 as u32, u64 as u64, i8 as u8, i16 as u16, i32 as u32, i64 as u64);

macro_rules! float_words {
    ($($t:ty, $u:ty);*) => {$(
        impl Word for $t {
            fn of(bits: u64) -> $t { <$t>::from_bits(bits as $u) }
            fn bits(self) -> u64 { self.to_bits() as u64 }
        }
    )*};
}

float_words!(f32, u32; f64, u64; f16, u16; bf16, u16);

/// The function over lanes of an expression over one lane: `alu!(u32 => u64: |a, b, _| …)`.
macro_rules! alu {
    ($t:ty => $r:ty : |$a:tt, $b:tt, $c:tt| $e:expr) => {{
        fn lanes(
            a: &$crate::isa::operand::Lanes,
            b: &$crate::isa::operand::Lanes,
            c: &$crate::isa::operand::Lanes,
            o: &mut $crate::isa::operand::Lanes,
        ) {
            use $crate::numbers::alu::Word;
            for i in 0..$crate::isa::operand::LANES {
                let ($a, $b, $c) = (<$t as Word>::of(a[i]), <$t as Word>::of(b[i]), <$t as Word>::of(c[i]));
                let result: $r = $e;
                o[i] = result.bits();
            }
        }
        lanes as $crate::isa::operand::AluFn
    }};
    ($t:ty : |$a:tt, $b:tt, $c:tt| $e:expr) => { $crate::numbers::alu::alu!($t => $t : |$a, $b, $c| $e) };
}

pub(crate) use alu;

/// The same for each of the integer types that PTX computes in.
macro_rules! integers {
    ($ty:expr, |$a:tt, $b:tt, $c:tt| $e:expr) => {
        match $ty {
            Ty::U16 => Some(alu!(u16: |$a, $b, $c| $e)),
            Ty::U32 => Some(alu!(u32: |$a, $b, $c| $e)),
            Ty::U64 => Some(alu!(u64: |$a, $b, $c| $e)),
            Ty::S16 => Some(alu!(i16: |$a, $b, $c| $e)),
            Ty::S32 => Some(alu!(i32: |$a, $b, $c| $e)),
            Ty::S64 => Some(alu!(i64: |$a, $b, $c| $e)),
            _ => None,
        }
    };
}

/// Bits of any width.
macro_rules! unsigned {
    ($ty:expr, |$a:tt, $b:tt, $c:tt| $e:expr) => {
        match $ty.size() {
            2 => Some(alu!(u16: |$a, $b, $c| $e)),
            4 => Some(alu!(u32: |$a, $b, $c| $e)),
            8 => Some(alu!(u64: |$a, $b, $c| $e)),
            _ => None,
        }
    };
}

/// Integer operations by name; `None` where there is no such instruction here.
pub fn integer(name: &str, mode: &str, ty: Ty) -> Option<AluFn> {
    match (name, mode) {
        ("add", "") => integers!(ty, |a, b, _| a.wrapping_add(b)),
        ("sub", "") => integers!(ty, |a, b, _| a.wrapping_sub(b)),
        ("mul", "lo") => integers!(ty, |a, b, _| a.wrapping_mul(b)),
        ("mad", "lo") => integers!(ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mul" | "mad", _) => wide(name, mode, ty),
        // Division by zero gives all ones on the hardware; the quotient of the least number by -1 wraps.
        ("div", "") => integers!(ty, |a, b, _| if b == 0 { !0 } else { a.wrapping_div(b) }),
        ("rem", "") => integers!(ty, |a, b, _| if b == 0 { a } else { a.wrapping_rem(b) }),
        ("min", "") => integers!(ty, |a, b, _| a.min(b)),
        ("max", "") => integers!(ty, |a, b, _| a.max(b)),
        ("abs", "") => match ty {
            Ty::S16 => Some(alu!(i16: |a, _, _| a.wrapping_abs())),
            Ty::S32 => Some(alu!(i32: |a, _, _| a.wrapping_abs())),
            Ty::S64 => Some(alu!(i64: |a, _, _| a.wrapping_abs())),
            _ => None,
        },
        ("neg", "") => integers!(ty, |a, _, _| a.wrapping_neg_or_sub()),
        ("sad", "") => integers!(ty, |a, b, c| c.wrapping_add(a.max(b).wrapping_sub(a.min(b)))),
        _ => bits(name, mode, ty),
    }
}

/// `0 - x`, for signed and unsigned alike.
trait Negate {
    fn wrapping_neg_or_sub(self) -> Self;
}

macro_rules! negate { ($($t:ty),*) => {$(
    impl Negate for $t { fn wrapping_neg_or_sub(self) -> $t { (0 as $t).wrapping_sub(self) } }
)*}; }

negate!(u16, u32, u64, i16, i32, i64);

fn wide(name: &str, mode: &str, ty: Ty) -> Option<AluFn> {
    Some(match (name, mode, ty) {
        ("mul", "wide", Ty::U16) => alu!(u16 => u32: |a, b, _| a as u32 * b as u32),
        ("mul", "wide", Ty::S16) => alu!(i16 => i32: |a, b, _| a as i32 * b as i32),
        ("mul", "wide", Ty::U32) => alu!(u32 => u64: |a, b, _| a as u64 * b as u64),
        ("mul", "wide", Ty::S32) => alu!(i32 => i64: |a, b, _| a as i64 * b as i64),
        // The sum's operand is as wide as the result, so it is read as the wide type.
        ("mad", "wide", Ty::U16) => {
            alu!(u32: |a, b, c| ((a as u16 as u32) * (b as u16 as u32)).wrapping_add(c))
        }
        ("mad", "wide", Ty::S16) => {
            alu!(i32: |a, b, c| ((a as i16 as i32) * (b as i16 as i32)).wrapping_add(c))
        }
        ("mad", "wide", Ty::U32) => {
            alu!(u64: |a, b, c| ((a as u32 as u64) * (b as u32 as u64)).wrapping_add(c))
        }
        ("mad", "wide", Ty::S32) => {
            alu!(i64: |a, b, c| ((a as i32 as i64) * (b as i32 as i64)).wrapping_add(c))
        }
        ("mul", "hi", Ty::U16) => alu!(u16: |a, b, _| ((a as u32 * b as u32) >> 16) as u16),
        ("mul", "hi", Ty::S16) => alu!(i16: |a, b, _| ((a as i32 * b as i32) >> 16) as i16),
        ("mul", "hi", Ty::U32) => alu!(u32: |a, b, _| ((a as u64 * b as u64) >> 32) as u32),
        ("mul", "hi", Ty::S32) => alu!(i32: |a, b, _| ((a as i64 * b as i64) >> 32) as i32),
        ("mul", "hi", Ty::U64) => alu!(u64: |a, b, _| ((a as u128 * b as u128) >> 64) as u64),
        ("mul", "hi", Ty::S64) => alu!(i64: |a, b, _| ((a as i128 * b as i128) >> 64) as i64),
        ("mad", "hi", Ty::U32) => alu!(u32: |a, b, c| (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c)),
        ("mad", "hi", Ty::S32) => alu!(i32: |a, b, c| (((a as i64 * b as i64) >> 32) as i32).wrapping_add(c)),
        ("mad", "hi", Ty::U64) => {
            alu!(u64: |a, b, c| (((a as u128 * b as u128) >> 64) as u64).wrapping_add(c))
        }
        ("mad", "hi", Ty::S64) => {
            alu!(i64: |a, b, c| (((a as i128 * b as i128) >> 64) as i64).wrapping_add(c))
        }
        _ => return None,
    })
}

/// Shifts beyond the width give zeros, or signs.
fn bits(name: &str, mode: &str, ty: Ty) -> Option<AluFn> {
    Some(match (name, mode, ty) {
        ("mov", "", _) => return unsigned!(ty, |a, _, _| a),
        ("and", "", _) => return unsigned!(ty, |a, b, _| a & b),
        ("or", "", _) => return unsigned!(ty, |a, b, _| a | b),
        ("xor", "", _) => return unsigned!(ty, |a, b, _| a ^ b),
        ("not", "", _) => return unsigned!(ty, |a, _, _| !a),
        ("cnot", "", _) => return unsigned!(ty, |a, _, _| (a == 0).into()),
        ("shl", "", _) if ty.size() == 2 => {
            alu!(u32 => u16: |a, b, _| if b > 15 { 0 } else { (a << b) as u16 })
        }
        ("shl", "", _) if ty.size() == 4 => alu!(u32: |a, b, _| if b > 31 { 0 } else { a << b }),
        ("shl", "", _) => alu!(u64: |a, b, _| if b as u32 > 63 { 0 } else { a << (b as u32) }),
        ("shr", "", Ty::U16) => alu!(u32 => u16: |a, b, _| if b > 15 { 0 } else { a as u16 >> b }),
        ("shr", "", Ty::U32) => alu!(u32: |a, b, _| if b > 31 { 0 } else { a >> b }),
        ("shr", "", Ty::U64) => alu!(u64: |a, b, _| if b as u32 > 63 { 0 } else { a >> (b as u32) }),
        ("shr", "", Ty::S16) => alu!(u32 => i16: |a, b, _| a as i16 >> b.min(15)),
        ("shr", "", Ty::S32) => alu!(u32 => i32: |a, b, _| a as i32 >> b.min(31)),
        ("shr", "", Ty::S64) => alu!(u64 => i64: |a, b, _| a as i64 >> (b as u32).min(63)),
        ("shf", "l.wrap", _) => alu!(u32: |a, b, c| (((b as u64) << 32 | a as u64) << (c & 31) >> 32) as u32),
        ("shf", "l.clamp", _) => {
            alu!(u32: |a, b, c| (((b as u64) << 32 | a as u64) << c.min(32) >> 32) as u32)
        }
        ("shf", "r.wrap", _) => alu!(u32: |a, b, c| (((b as u64) << 32 | a as u64) >> (c & 31)) as u32),
        ("shf", "r.clamp", _) => alu!(u32: |a, b, c| (((b as u64) << 32 | a as u64) >> c.min(32)) as u32),
        _ => return fields(name, mode, ty),
    })
}

/// Bits counted, found, moved in fields and bytes.
fn fields(name: &str, mode: &str, ty: Ty) -> Option<AluFn> {
    Some(match (name, mode, ty) {
        ("popc", "", _) if ty.size() == 4 => alu!(u32: |a, _, _| a.count_ones()),
        ("popc", "", _) => alu!(u64 => u32: |a, _, _| a.count_ones()),
        ("clz", "", _) if ty.size() == 4 => alu!(u32: |a, _, _| a.leading_zeros()),
        ("clz", "", _) => alu!(u64 => u32: |a, _, _| a.leading_zeros()),
        ("brev", "", _) => return unsigned!(ty, |a, _, _| a.reverse_bits()),
        ("bfind", "", Ty::U32) => alu!(u32: |a, _, _| 31u32.wrapping_sub(a.leading_zeros())),
        ("bfind", "shiftamt", Ty::U32) => alu!(u32: |a, _, _| if a == 0 { !0 } else { a.leading_zeros() }),
        ("bfind", "", Ty::S32) => {
            alu!(i32 => u32: |a, _, _| 31u32.wrapping_sub((a ^ (a >> 31)).leading_zeros()))
        }
        ("bfind", "", Ty::U64) => alu!(u64 => u32: |a, _, _| 63u32.wrapping_sub(a.leading_zeros())),
        ("bfe", "", Ty::U32) => alu!(u32: |a, b, c| extract(a as u64, b, c, 32, false) as u32),
        ("bfe", "", Ty::S32) => alu!(u32: |a, b, c| extract(a as i32 as u64, b, c, 32, true) as u32),
        ("bfe", "", Ty::U64) => alu!(u64: |a, b, c| extract(a, b as u32, c as u32, 64, false)),
        ("bfe", "", Ty::S64) => alu!(u64: |a, b, c| extract(a, b as u32, c as u32, 64, true)),
        ("prmt", "", _) => alu!(u32: |a, b, c| permute(a, b, c)),
        ("dp4a", "u32", Ty::U32) => alu!(u32: |a, b, c| (0..4).fold(c, |s, i| {
            s.wrapping_add((a >> (8 * i) & 255) * (b >> (8 * i) & 255))
        })),
        ("dp4a", "s32", Ty::S32) => alu!(i32: |a, b, c| (0..4).fold(c, |s, i| {
            s.wrapping_add((a >> (8 * i)) as i8 as i32 * (b >> (8 * i)) as i8 as i32)
        })),
        _ => return None,
    })
}

/// `bfe`: `len` bits of `a` from `pos` on, filled up with the field's sign.
fn extract(a: u64, pos: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    if len == 0 {
        return 0;
    }
    let top = (pos + len - 1).min(width - 1);
    let sign = signed && a >> top & 1 == 1;
    let field = if pos > 63 { 0 } else { a >> pos };
    let kept = if pos >= width { 0 } else { (width - pos).min(len) };
    let mask = if kept >= 64 { !0 } else { (1u64 << kept) - 1 };
    if sign { field | !mask } else { field & mask }
}

/// `bfi`: the low `len` bits of `a` put into `b` at `pos`.
pub fn insert(a: u64, b: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    if pos >= width || len == 0 {
        return b;
    }
    let len = len.min(width - pos);
    let mask = if len >= 64 { !0 } else { ((1u64 << len) - 1) << pos };
    b & !mask | a << pos & mask
}

/// `prmt` in its default mode: each nibble of `c` picks a byte of `b:a`, or that byte's sign eight times.
fn permute(a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |word, i| {
        let pick = c >> (4 * i) & 15;
        let byte = (bytes >> (8 * (pick & 7))) as u8;
        let byte = if pick & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        word | u32::from(byte) << (8 * i)
    })
}

/// `lop3`: bit `4a + 2b + c` of the table is the result where the operands' bits are a, b, c.
pub fn lop3(table: u8, a: &Lanes, b: &Lanes, c: &Lanes, o: &mut Lanes) {
    *o = [0; LANES];
    for term in (0..8).filter(|t| table >> t & 1 == 1) {
        let flip = |bit: u32| if term >> bit & 1 == 1 { 0 } else { 0xffff_ffff };
        let (fa, fb, fc) = (flip(2), flip(1), flip(0));
        for i in 0..LANES {
            o[i] |= (a[i] ^ fa) & (b[i] ^ fb) & (c[i] ^ fc) & 0xffff_ffff;
        }
    }
}

/// Comparisons: integer, float ordered (`lt`) and unordered (`ltu`), `num` and `nan`.
pub fn compare(name: &str, ty: Ty) -> Option<CmpFn> {
    macro_rules! mask {
        ($t:ty, |$a:ident, $b:ident| $e:expr) => {{
            fn lanes(a: &Lanes, b: &Lanes) -> u32 {
                (0..LANES).fold(0, |mask, i| {
                    let ($a, $b) = (<$t as Word>::of(a[i]), <$t as Word>::of(b[i]));
                    mask | u32::from($e) << i
                })
            }
            Some(lanes as CmpFn)
        }};
    }
    macro_rules! by_type {
        (|$a:ident, $b:ident| $e:expr) => {
            match ty {
                Ty::U16 => mask!(u16, |$a, $b| $e),
                Ty::U32 => mask!(u32, |$a, $b| $e),
                Ty::U64 => mask!(u64, |$a, $b| $e),
                Ty::S16 => mask!(i16, |$a, $b| $e),
                Ty::S32 => mask!(i32, |$a, $b| $e),
                Ty::S64 => mask!(i64, |$a, $b| $e),
                Ty::F16 => mask!(f16, |$a, $b| $e),
                Ty::Bf16 => mask!(bf16, |$a, $b| $e),
                Ty::F32 => mask!(f32, |$a, $b| $e),
                Ty::F64 => mask!(f64, |$a, $b| $e),
                _ => None,
            }
        };
    }
    let float = matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64);
    match name {
        "eq" => by_type!(|a, b| a == b),
        // Ordered: false for NaN.
        "ne" if float => by_type!(|a, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
        "ne" => by_type!(|a, b| a != b),
        "lt" => by_type!(|a, b| a < b),
        "le" => by_type!(|a, b| a <= b),
        "gt" => by_type!(|a, b| a > b),
        "ge" => by_type!(|a, b| a >= b),
        "lo" => by_type!(|a, b| a < b),
        "ls" => by_type!(|a, b| a <= b),
        "hi" => by_type!(|a, b| a > b),
        "hs" => by_type!(|a, b| a >= b),
        "equ" if float => by_type!(|a, b| a.partial_cmp(&b).is_none_or(Ordering::is_eq)),
        "neu" if float => by_type!(|a, b| a != b),
        "ltu" if float => by_type!(|a, b| a.partial_cmp(&b).is_none_or(Ordering::is_lt)),
        "leu" if float => by_type!(|a, b| a.partial_cmp(&b).is_none_or(Ordering::is_le)),
        "gtu" if float => by_type!(|a, b| a.partial_cmp(&b).is_none_or(Ordering::is_gt)),
        "geu" if float => by_type!(|a, b| a.partial_cmp(&b).is_none_or(Ordering::is_ge)),
        "num" if float => by_type!(|a, b| a.partial_cmp(&b).is_some()),
        "nan" if float => by_type!(|a, b| a.partial_cmp(&b).is_none()),
        _ => None,
    }
}
