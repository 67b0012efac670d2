//! What moves bits between registers.

use super::context::{Context, Run};
use super::fence::fence;
use crate::isa::op::{Flush, Op};
use crate::isa::operand::{LANES, Lanes, Logic, Src};
use crate::machine::warp::{Warp, lanes};
use crate::numbers::alu::{insert, lop3};

impl Context<'_> {
    /// What moves bits between registers.
    pub fn plain(&mut self, warp: &mut Warp, run: &Run<'_>, mask: u32) {
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        let all = |sources: &[Src]| sources.iter().fold(!0, |k, s| k & warp.known(frame, *s));
        match &run.inst.op {
            Op::Alu { f, d, s, n, ftz, sat } => {
                let mut o = [0; LANES];
                let known = all(&s[..*n as usize]);
                let [a, b, c] = s.map(|s| flush(ftz.reads, warp.look(frame, s, consts)));
                f(&a, &b, &c, &mut o);
                o = flush(ftz.gives, &o);
                if *sat {
                    // NaN becomes zero too.
                    let clamp = |x: f32| if x > 0.0 { x.min(1.0) } else { 0.0 };
                    o = o.map(|v| u64::from(clamp(f32::from_bits(v as u32)).to_bits()));
                }
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Lop3 { d, s, table } => {
                let (known, mut o) = (all(s), [0; LANES]);
                let [a, b, c] = s.map(|s| warp.look(frame, s, consts));
                lop3(*table, a, b, c, &mut o);
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Bfi { d, s, bits } => {
                let known = all(s);
                let [a, b, c, n] = s.map(|s| warp.get(frame, s, consts));
                let field = |i: usize| insert(a[i], b[i], c[i] as u32, n[i] as u32, u32::from(*bits));
                warp.put(frame, *d, exec, &std::array::from_fn(field), known);
            }
            Op::Selp { d, s, p, bits } => {
                let (pick, pick_known) = warp.predicate(frame, *p);
                let known = pick_known & (warp.known(frame, s[0]) & pick | warp.known(frame, s[1]) & !pick);
                let (a, b) = (warp.look(frame, s[0], consts), warp.look(frame, s[1], consts));
                let cut = u64::MAX >> (64 - *bits);
                let o = std::array::from_fn(|i| cut & if pick >> i & 1 == 1 { a[i] } else { b[i] });
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Logic { f, d, a, b } => {
                let ((a, a_known), (b, b_known)) = (warp.predicate(frame, *a), warp.predicate(frame, *b));
                warp.put_predicate(frame, *d, exec, logic(*f, a, b), a_known & b_known);
            }
            Op::ActiveMask { d } => warp.put(frame, *d, exec, &[u64::from(mask); LANES], !0),
            Op::Fence => fence(warp),
            Op::ProxyFence { .. } | Op::Mapa { .. } | Op::Rank { .. } => self.cluster_plain(warp, run),
            _ => self.parts(warp, run),
        }
    }

    /// What takes registers apart and together, and sums with carry.
    fn parts(&mut self, warp: &mut Warp, run: &Run<'_>) {
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        let all = |sources: &[Src]| sources.iter().fold(!0, |k, s| k & warp.known(frame, *s));
        match &run.inst.op {
            Op::Carry { wide, subtract, takes, gives, d, s } => {
                let known = all(s);
                let [a, b] = s.map(|s| warp.get(frame, s, consts));
                let (mut o, mut carry) = ([0; LANES], warp.carry);
                let bits = if *wide { 64 } else { 32 };
                for lane in lanes(exec) {
                    let b = if *subtract { !b[lane] } else { b[lane] };
                    // A borrow is the missing carry.
                    let into = if *takes {
                        warp.carry >> lane & 1 ^ u32::from(*subtract)
                    } else {
                        u32::from(*subtract)
                    };
                    let cut = |v: u64| u128::from(if *wide { v } else { v & 0xffff_ffff });
                    let sum = cut(a[lane]) + cut(b) + u128::from(into);
                    o[lane] = cut(sum as u64) as u64;
                    let out = (sum >> bits) as u32 & 1 ^ u32::from(*subtract);
                    carry = carry & !(1 << lane) | out << lane;
                }
                warp.carry = if *gives { carry } else { warp.carry };
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Pack { d, s, n, bits } => {
                let s = &s[..*n as usize];
                let (known, mut o) = (all(s), [0; LANES]);
                for (i, s) in s.iter().enumerate() {
                    let part = warp.look(frame, *s, consts);
                    let shift = i as u32 * u32::from(*bits);
                    o.iter_mut()
                        .zip(part)
                        .for_each(|(o, v)| *o |= (v & (1u64 << bits).wrapping_sub(1)) << shift);
                }
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Unpack { d, n, s, bits } => {
                let (known, v) = (warp.known(frame, *s), warp.get(frame, *s, consts));
                for (i, d) in d[..*n as usize].iter().enumerate() {
                    let part = v.map(|v| v >> (i as u32 * u32::from(*bits)) & (1u64 << bits).wrapping_sub(1));
                    warp.put(frame, *d, exec, &part, known);
                }
            }
            _ => {}
        }
    }
}

pub fn logic(f: Logic, a: u32, b: u32) -> u32 {
    match f {
        Logic::Mov => a,
        Logic::Not => !a,
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// Denormal numbers become zeros of their sign.
pub fn flush(of: Flush, values: &Lanes) -> Lanes {
    let halves = |exponent: u64| {
        let half = move |h: u64| if h & exponent == 0 { h & 0x8000 } else { h };
        values.map(|v| half(v & 0xffff) | half(v >> 16 & 0xffff) << 16)
    };
    match of {
        Flush::None => *values,
        Flush::F32 => values.map(|v| if v & 0x7f80_0000 == 0 { v & 0x8000_0000 } else { v }),
        Flush::F16 => halves(0x7c00),
        Flush::Bf16 => halves(0x7f80),
    }
}
