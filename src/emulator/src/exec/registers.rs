//! What moves bits between registers, each lane for itself.

use super::context::{Context, Run};
use crate::isa::op::{Flush, Ftz, RegisterOp};
use crate::isa::operand::{AluFn, CmpFn, LANES, Lanes, Logic, Pred, Src, lanes};
use crate::machine::cluster::{MOST_BLOCKS, mapped, rank_of};
use crate::machine::warp::Warp;
use crate::numbers::alu::{insert, lop3};

impl Context<'_> {
    /// Runs one for its lanes; `mask`: all that are at it.
    #[inline]
    pub fn register_op(&self, warp: &mut Warp, run: &Run<'_>, mask: u32, op: &RegisterOp) {
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        match op {
            RegisterOp::Alu { f, d, s, n, ftz: Ftz::NONE, sat: false } => {
                let mut o = [0; LANES];
                let known = all_known(warp, run, &s[..*n as usize]);
                f(
                    warp.look(frame, s[0], consts),
                    warp.look(frame, s[1], consts),
                    warp.look(frame, s[2], consts),
                    &mut o,
                );
                warp.put(frame, *d, exec, &o, known);
            }
            RegisterOp::Alu { f, d, s, n, ftz, sat } => {
                let known = all_known(warp, run, &s[..*n as usize]);
                let o = self.modified(warp, run, *f, s, (*ftz, *sat));
                warp.put(frame, *d, exec, &o, known);
            }
            RegisterOp::Setp { f, p, q, s, combine, ftz } => {
                self.compare(warp, run, *f, s, (*p, *q), combine.as_ref(), *ftz);
            }
            RegisterOp::Lop3 { d, s, table } => {
                let (known, mut o) = (all_known(warp, run, s), [0; LANES]);
                let [a, b, c] = s.map(|s| warp.look(frame, s, consts));
                lop3(*table, a, b, c, &mut o);
                warp.put(frame, *d, exec, &o, known);
            }
            RegisterOp::Bfi { d, s, bits } => {
                let known = all_known(warp, run, s);
                let [a, b, c, n] = s.map(|s| warp.get(frame, s, consts));
                let field = |i: usize| insert(a[i], b[i], c[i] as u32, n[i] as u32, u32::from(*bits));
                warp.put(frame, *d, exec, &std::array::from_fn(field), known);
            }
            RegisterOp::Selp { d, s, p, bits } => self.select(warp, run, *d, s, *p, *bits),
            RegisterOp::Logic { f, d, a, b } => {
                let ((a, a_known), (b, b_known)) = (warp.predicate(frame, *a), warp.predicate(frame, *b));
                warp.put_predicate(frame, *d, exec, logic(*f, a, b), a_known & b_known);
            }
            RegisterOp::ActiveMask { d } => warp.put(frame, *d, exec, &[u64::from(mask); LANES], !0),
            RegisterOp::Carry { wide, subtract, takes, gives, d, s } => {
                let known = all_known(warp, run, s);
                let (o, carry) = self.carried(warp, run, s, (*wide, *subtract, *takes));
                warp.carry = if *gives { carry } else { warp.carry };
                warp.put(frame, *d, exec, &o, known);
            }
            RegisterOp::Pack { d, s, n, bits } => self.pack(warp, run, *d, &s[..*n as usize], *bits),
            RegisterOp::Unpack { d, n, s, bits } => self.unpack(warp, run, &d[..*n as usize], *s, *bits),
            RegisterOp::Mapa { d, s } => {
                let known = all_known(warp, run, s);
                let [a, rank] = s.map(|s| warp.get(frame, s, consts));
                // A rank that is too large stays too large.
                let map = |l: usize| mapped(a[l], (rank[l] as u32).min(MOST_BLOCKS as u32));
                warp.put(frame, *d, exec, &std::array::from_fn(map), known);
            }
            RegisterOp::Rank { d, s } => {
                let (known, a) = (warp.known(frame, *s), warp.get(frame, *s, consts));
                let rank = a.map(|a| rank_of(a).map_or(self.rank as u64, u64::from));
                warp.put(frame, *d, exec, &rank, known);
            }
        }
    }

    /// `.ftz` and `.sat`
    fn modified(&self, warp: &Warp, run: &Run<'_>, f: AluFn, s: &[Src; 3], (ftz, sat): (Ftz, bool)) -> Lanes {
        let (mut o, consts) = ([0; LANES], &self.module.consts);
        let [a, b, c] = s.map(|s| flush(ftz.reads, warp.look(run.frame, s, consts)));
        f(&a, &b, &c, &mut o);
        o = flush(ftz.gives, &o);
        if sat {
            // NaN becomes zero too.
            let clamp = |x: f32| if x > 0.0 { x.min(1.0) } else { 0.0 };
            o = o.map(|v| u64::from(clamp(f32::from_bits(v as u32)).to_bits()));
        }
        o
    }

    /// `setp`
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn compare(
        &self,
        warp: &mut Warp,
        run: &Run<'_>,
        f: CmpFn,
        s: &[Src; 2],
        (p, q): (u32, u32),
        combine: Option<&(Logic, Pred)>,
        ftz: Flush,
    ) {
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        let known = all_known(warp, run, s);
        let [a, b] = s.map(|s| warp.look(frame, s, consts));
        let value = match ftz {
            Flush::None => f(a, b),
            of => f(&flush(of, a), &flush(of, b)),
        };
        let (other, other_known) = combine.map_or((!0, !0), |(_, c)| warp.predicate(frame, *c));
        let with = |v: u32| match combine {
            None => v,
            Some((l, _)) => logic(*l, v, other),
        };
        warp.put_predicate(frame, p, exec, with(value), known & other_known);
        warp.put_predicate(frame, q, exec, with(!value), known & other_known);
    }

    /// `selp`
    fn select(&self, warp: &mut Warp, run: &Run<'_>, d: u32, s: &[Src; 2], p: Pred, bits: u8) {
        let (frame, consts) = (run.frame, &self.module.consts);
        let (pick, pick_known) = warp.predicate(frame, p);
        let known = pick_known & (warp.known(frame, s[0]) & pick | warp.known(frame, s[1]) & !pick);
        let (a, b) = (warp.look(frame, s[0], consts), warp.look(frame, s[1], consts));
        let cut = u64::MAX >> (64 - bits);
        let o = std::array::from_fn(|i| cut & if pick >> i & 1 == 1 { a[i] } else { b[i] });
        warp.put(frame, d, run.exec, &o, known);
    }

    /// Sums and differences with carry, and the carries out of them.
    fn carried(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        s: &[Src; 2],
        (wide, subtract, takes): (bool, bool, bool),
    ) -> (Lanes, u32) {
        let [a, b] = s.map(|s| warp.get(run.frame, s, &self.module.consts));
        let (mut o, mut carry) = ([0; LANES], warp.carry);
        let bits = if wide { 64 } else { 32 };
        for lane in lanes(run.exec) {
            let b = if subtract { !b[lane] } else { b[lane] };
            // A borrow is the missing carry.
            let into = if takes { warp.carry >> lane & 1 ^ u32::from(subtract) } else { u32::from(subtract) };
            let cut = |v: u64| u128::from(if wide { v } else { v & 0xffff_ffff });
            let sum = cut(a[lane]) + cut(b) + u128::from(into);
            o[lane] = cut(sum as u64) as u64;
            let out = (sum >> bits) as u32 & 1 ^ u32::from(subtract);
            carry = carry & !(1 << lane) | out << lane;
        }
        (o, carry)
    }

    /// Several registers into one.
    fn pack(&self, warp: &mut Warp, run: &Run<'_>, d: u32, s: &[Src], bits: u8) {
        let (known, mut o) = (all_known(warp, run, s), [0; LANES]);
        for (i, s) in s.iter().enumerate() {
            let part = warp.look(run.frame, *s, &self.module.consts);
            let shift = i as u32 * u32::from(bits);
            o.iter_mut().zip(part).for_each(|(o, v)| *o |= (v & (1u64 << bits).wrapping_sub(1)) << shift);
        }
        warp.put(run.frame, d, run.exec, &o, known);
    }

    /// One register into several.
    fn unpack(&self, warp: &mut Warp, run: &Run<'_>, d: &[u32], s: Src, bits: u8) {
        let (known, v) = (warp.known(run.frame, s), warp.get(run.frame, s, &self.module.consts));
        for (i, d) in d.iter().enumerate() {
            let part = v.map(|v| v >> (i as u32 * u32::from(bits)) & (1u64 << bits).wrapping_sub(1));
            warp.put(run.frame, *d, run.exec, &part, known);
        }
    }
}

/// Lanes for which all of these have values.
#[inline]
fn all_known(warp: &Warp, run: &Run<'_>, sources: &[Src]) -> u32 {
    sources.iter().fold(!0, |k, s| k & warp.known(run.frame, *s))
}

fn logic(f: Logic, a: u32, b: u32) -> u32 {
    match f {
        Logic::Mov => a,
        Logic::Not => !a,
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// Denormal numbers become zeros of their sign.
fn flush(of: Flush, values: &Lanes) -> Lanes {
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
