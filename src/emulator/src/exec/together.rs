//! Where the lanes of a warp come together: shuffles, votes, matrix instructions.

use super::context::{Context, Done, Next, Run};
use crate::isa::op::WarpOp;
use crate::isa::operand::{LANES, Lanes, Shuffle, Src, Ty, Vote, lanes};
use crate::isa::product::Mma;
use crate::machine::warp::Warp;
use crate::numbers::rmw::modify;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// Runs one for those sets of its lanes, of those of `mask` that are at it, that are complete.
    pub fn warp_op(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        mask: u32,
        op: &WarpOp,
    ) -> Result<Next, Box<Fault>> {
        // Of a whole warp at once, as it mostly is, there is nothing to ask.
        if op.aligned() && run.exec == mask && run.exec == warp.live {
            return self.exchange(warp, run, op).map(|()| Next::On);
        }
        let members = match op {
            WarpOp::Shfl { mask, .. }
            | WarpOp::Vote { mask, .. }
            | WarpOp::Match { mask, .. }
            | WarpOp::Redux { mask, .. }
            | WarpOp::Elect { mask, .. } => {
                self.known(warp, run, &[*mask], "its mask of lanes is")?;
                warp.get(run.frame, *mask, &self.module.consts)
            }
            WarpOp::Ldmatrix { .. } | WarpOp::Stmatrix { .. } | WarpOp::Mma(_) => {
                [u64::from(warp.all); LANES]
            }
        };
        self.together(warp, run, mask, &members, op)
    }

    /// Lanes at this very instruction, the parked ones too.
    pub fn here(&self, warp: &Warp, run: &Run<'_>) -> u32 {
        let at = |l: usize| warp.pc[l] == run.pc && warp.frames[l].last() == Some(run.frame);
        lanes(warp.parked).filter(|l| at(*l)).fold(run.exec, |m, l| m | 1 << l)
    }

    /// Runs the instruction for every set of lanes that is complete; the others wait.
    fn together(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        mask: u32,
        members: &Lanes,
        op: &WarpOp,
    ) -> Result<Next, Box<Fault>> {
        // All that are left of the warp come together and say so, as they mostly do.
        let member = members[run.exec.trailing_zeros() as usize] as u32;
        let whole = run.exec == mask && run.exec == warp.live && member & warp.live == warp.live;
        if whole && lanes(run.exec).all(|l| members[l] as u32 == member) {
            self.exchange(warp, run, op)?;
            return Ok(Next::On);
        }
        warp.go(run.exec, run.pc);
        let here = self.here(warp, run);
        let (mut rest, mut done) = (here, 0);
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let member = members[first] as u32;
            let set = lanes(here).filter(|l| members[*l] as u32 == member).fold(0, |m, l| m | 1 << l);
            rest &= !set;
            if set & !member != 0 {
                let lane = (set & !member).trailing_zeros() as usize;
                let what = format!("a lane that its own mask {member:#x} does not name");
                return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
            }
            if set & member & warp.live == member & warp.live {
                self.exchange(warp, &Run { exec: set, ..*run }, op)?;
                done |= set;
            } else {
                warp.parked |= set;
            }
        }
        warp.parked &= !done;
        if done == mask {
            return Ok(Next::On);
        }
        warp.go(done, run.pc + 1);
        Ok(Next::Again)
    }

    fn exchange(&mut self, warp: &mut Warp, run: &Run<'_>, op: &WarpOp) -> Done {
        if op.aligned() {
            self.not_apart(warp, run)?;
        }
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        match op {
            WarpOp::Ldmatrix { d, n, trans, addr } => {
                return self.load_matrices(warp, run, &d[..*n as usize], *trans, addr);
            }
            WarpOp::Stmatrix { s, n, trans, addr } => {
                return self.store_matrices(warp, run, &s[..*n as usize], *trans, addr);
            }
            WarpOp::Elect { d, p, .. } => {
                // Any lane, but always the same of the same lanes.
                let lane = if self.early { 31 - exec.leading_zeros() } else { exec.trailing_zeros() };
                warp.put(frame, *d, exec, &[u64::from(lane); LANES], !0);
                warp.put_predicate(frame, *p, exec, 1 << lane, !0);
            }
            WarpOp::Mma(mma) => self.multiply(warp, run, mma),
            WarpOp::Shfl { mode, d, p, s, .. } => {
                let (known, to) =
                    (warp.known(frame, s[0]), warp.known(frame, s[1]) & warp.known(frame, s[2]));
                let [a, b, c] = s.map(|s| warp.get(frame, s, consts));
                let (mut o, mut o_known, mut inside) = ([0; LANES], 0, 0);
                for lane in lanes(exec) {
                    let (from, within) = source_lane(*mode, lane as u32, b[lane] as u32, c[lane] as u32);
                    o[lane] = a[from as usize] & 0xffff_ffff;
                    inside |= u32::from(within) << lane;
                    // A lane that does not take part has no value to give.
                    o_known |= (known & exec) >> from << lane & 1 << lane;
                }
                warp.put(frame, *d, exec, &o, o_known & to);
                warp.put_predicate(frame, *p, exec, inside, to);
            }
            WarpOp::Vote { mode, d, a, .. } => {
                let (value, known) = warp.predicate(frame, *a);
                let (yes, known) = (value & exec, if known & exec == exec { !0 } else { 0 });
                let all = |b: bool| if b { !0 } else { 0 };
                match mode {
                    Vote::All => warp.put_predicate(frame, *d, exec, all(yes == exec), known),
                    Vote::Any => warp.put_predicate(frame, *d, exec, all(yes != 0), known),
                    Vote::Uni => warp.put_predicate(frame, *d, exec, all(yes == exec || yes == 0), known),
                    Vote::Ballot => warp.put(frame, *d, exec, &[u64::from(yes); LANES], known),
                }
            }
            WarpOp::Match { all, bits, d, p, a, .. } => {
                let known = if warp.known(frame, *a) & exec == exec { !0 } else { 0 };
                let a = warp.get(frame, *a, consts).map(|v| v & u64::MAX >> (64 - bits));
                let same = |i: usize| lanes(exec).filter(|l| a[*l] == a[i]).fold(0u32, |m, l| m | 1 << l);
                let mut o: Lanes = std::array::from_fn(|i| u64::from(same(i)));
                if *all {
                    let equal = same(exec.trailing_zeros() as usize) == exec;
                    o = [if equal { u64::from(exec) } else { 0 }; LANES];
                    warp.put_predicate(frame, *p, exec, if equal { !0 } else { 0 }, known);
                }
                warp.put(frame, *d, exec, &o, known);
            }
            WarpOp::Redux { f, signed, d, a, .. } => {
                let known = if warp.known(frame, *a) & exec == exec { !0 } else { 0 };
                let a = warp.get(frame, *a, consts);
                let ty = if *signed { Ty::S32 } else { Ty::U32 };
                let value = lanes(exec).map(|l| a[l]).reduce(|x, y| modify(*f, ty, x, y, 0)).unwrap_or(0);
                warp.put(frame, *d, exec, &[value & 0xffff_ffff; LANES], known);
            }
        }
        Ok(())
    }

    /// `mma`
    fn multiply(&mut self, warp: &mut Warp, run: &Run<'_>, mma: &Mma) {
        let (frame, consts) = (run.frame, &self.module.consts);
        let sources = mma.a.iter().chain(&mma.b).chain(&mma.c);
        let known = sources.fold(!0, |k, s| k & warp.known(frame, *s));
        let look = |list: &[Src]| -> [&Lanes; 4] {
            std::array::from_fn(|i| warp.look(frame, list[i.min(list.len() - 1)], consts))
        };
        let (a, b, c) = (look(&mma.a), look(&mma.b), look(&mma.c));
        let d = mma.product(&a[..mma.a.len()], &b[..mma.b.len()], &c[..mma.c.len()]);
        // One undefined element spoils rows and columns: all or nothing is close enough.
        let known = if known == !0 { !0 } else { 0 };
        self.counts[run.pc as usize].flops += mma.flops();
        mma.d.iter().zip(&d).for_each(|(d, v)| warp.put(frame, *d, run.exec, v, known));
    }
}

/// The lane that a shuffle reads, and whether it is within the segment: the ISA's table for `shfl`.
fn source_lane(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let (most, least) = (lane & segment | clamp & !segment, lane & segment);
    let (from, within) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= most as i32),
        Shuffle::Down => (lane + b, lane + b <= most),
        Shuffle::Bfly => (lane ^ b, (lane ^ b) <= most),
        Shuffle::Idx => (least | b & !segment, (least | b & !segment) <= most),
    };
    (if within { from } else { lane }, within)
}
