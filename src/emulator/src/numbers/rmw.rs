//! Reads that modify and write: what comes out.

use super::float;
use crate::isa::operand::{Rmw, Ty};
use half::{bf16, f16};

/// The same in global memory, where f32 sums take and give zeros for subnormal numbers, as the ISA says of `atom`, `red`
/// and `cp.reduce.async.bulk`.
pub fn modify_global(f: Rmw, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    if (f, ty) != (Rmw::Add, Ty::F32) {
        return modify(f, ty, old, b, c);
    }
    let flush = |v: u64| if f32::from_bits(v as u32).is_subnormal() { v & 1 << 31 } else { v };
    flush(modify(f, ty, flush(old), flush(b), c))
}

/// A read-modify-write's new value.
pub fn modify(f: Rmw, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let bits = 8 * ty.size() as u32;
    let signed = |v: u64| ((v << (64 - bits)) as i64) >> (64 - bits);
    let unsigned = |v: u64| v << (64 - bits) >> (64 - bits);
    let (old, b, c) = (unsigned(old), unsigned(b), unsigned(c));
    let half = |x: u64, y: u64, shift: u32| {
        let (x, y) = (f16::from_bits((x >> shift) as u16), f16::from_bits((y >> shift) as u16));
        u64::from(float::to_f16(x.to_f64() + y.to_f64(), float::Round::Nearest).to_bits()) << shift
    };
    let brain = |x: u64, y: u64, shift: u32| {
        let (x, y) = (bf16::from_bits((x >> shift) as u16), bf16::from_bits((y >> shift) as u16));
        u64::from(float::to_bf16(float::sum_to_odd(x.to_f64(), y.to_f64()), float::Round::Nearest).to_bits())
            << shift
    };
    let new = match (f, ty) {
        (Rmw::Min | Rmw::Max, Ty::F16 | Ty::Bf16) => {
            let value = |x: u64| match ty {
                Ty::F16 => f16::from_bits(x as u16).to_f32(),
                _ => bf16::from_bits(x as u16).to_f32(),
            };
            // A NaN gives way to a number.
            let (x, y) = (value(old), value(b));
            let keeps = if f == Rmw::Min { x <= y } else { x >= y };
            if keeps || y.is_nan() { old } else { b }
        }
        (Rmw::Add, Ty::F32) => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
        (Rmw::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Rmw::Add, Ty::F16) => half(old, b, 0),
        (Rmw::Add, Ty::F16x2) => half(old, b, 0) | half(old, b, 16),
        (Rmw::Add, Ty::Bf16) => brain(old, b, 0),
        (Rmw::Add, Ty::Bf16x2) => brain(old, b, 0) | brain(old, b, 16),
        (Rmw::Add, _) => old.wrapping_add(b),
        (Rmw::Min, ty) if ty.signed() => signed(old).min(signed(b)) as u64,
        (Rmw::Max, ty) if ty.signed() => signed(old).max(signed(b)) as u64,
        (Rmw::Min, _) => old.min(b),
        (Rmw::Max, _) => old.max(b),
        (Rmw::And, _) => old & b,
        (Rmw::Or, _) => old | b,
        (Rmw::Xor, _) => old ^ b,
        (Rmw::Exch, _) => b,
        (Rmw::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Rmw::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Rmw::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    };
    unsigned(new)
}
