//! One instruction for the lanes of a group.

use super::access::Run;
use super::alu;
use super::cluster::{Cluster, Dice};
use super::counters::Count;
use super::memory::{Memory, Region};
use super::ptx::{Barrier, Inst, LANES, Lanes, Logic, Module, Op, Src};
use super::race::{Agents, Clock};
use super::report::{At, Fault, Kind};
use super::warp::{Frame, Group, Warp, lanes};
use super::warpgroup::{WARPGROUPS, Warpgroup};

/// What an instruction may reach besides its warp.
pub struct Context<'a> {
    /// The program.
    pub module: &'a Module,
    /// Global memory.
    pub memory: &'a mut Memory,
    /// What the blocks of its cluster share.
    pub cluster: &'a mut Cluster,
    /// The block's rank in its cluster.
    pub rank: usize,
    /// What runs beside the warps.
    pub agents: &'a mut Agents,
    /// The schedule's.
    pub dice: &'a mut Dice,
    /// The block's.
    pub warpgroups: &'a mut [Warpgroup; WARPGROUPS],
    /// Registers that the block has and no warpgroup holds.
    pub spare: u32,
    /// The block's.
    pub barriers: &'a mut [Gate; GATES],
    /// By instruction.
    pub counts: &'a mut [Count],
    /// Extents of the grid and of a block.
    pub extents: ([u32; 3], [u32; 3]),
    /// Asynchronous copies arrive at once, but may not be looked at before their time all the same.
    pub early: bool,
    /// Bulk copies arrive at once or late, each as the dice say.
    pub mixed: bool,
}

/// Named barriers of a block.
pub const GATES: usize = 16;

/// A barrier of a block.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Threads that have come.
    pub arrived: u32,
    /// Threads that must come, where the instruction says so.
    pub expected: Option<u32>,
    /// Who waits: warp, lanes, and where a reduction's result goes.
    pub waits: Vec<(usize, u32, Frame, Barrier, u32)>,
    /// What the arrived know.
    pub clock: Option<Clock>,
    /// Lanes whose predicate was true, and all lanes.
    pub votes: (u32, u32),
    /// A predicate among them has no value.
    pub unknown: bool,
}

/// Where the group goes on.
pub enum Next {
    /// At the next instruction.
    On,
    /// Elsewhere.
    To(u32),
    /// The counters are set; choose again.
    Again,
}

impl Context<'_> {
    /// The block's shared memory.
    pub fn own(&mut self) -> &mut Region {
        &mut self.cluster.shared[self.rank]
    }

    /// A thread of this block.
    pub fn at(&self, thread: u32) -> At {
        At::of(self.extents, self.cluster.blocks[self.rank], thread)
    }

    /// Runs a warp for about `turn` instructions, or until it can do no more; gives the number.
    pub fn turn(&mut self, warp: &mut Warp, turn: u64) -> Result<u64, Box<Fault>> {
        let mut used = 0;
        while used < turn {
            let Some(group) = warp.choose() else { break };
            used += self.group(warp, &group, turn - used)?;
        }
        Ok(used)
    }

    fn group(&mut self, warp: &mut Warp, group: &Group, turn: u64) -> Result<u64, Box<Fault>> {
        let (module, frame, mask) = (self.module, &group.frame, group.mask);
        let (mut pc, mut used) = (group.pc, 0);
        let alone = group.mask == warp.live & !warp.parked & !warp.waiting;
        loop {
            let inst = &module.insts[pc as usize];
            let exec = match inst.guard {
                None => mask,
                Some((p, not)) => {
                    let (value, known) = warp.predicate(frame, super::ptx::Pred::Reg(p, not));
                    if mask & !known != 0 {
                        let lane = (mask & !known).trailing_zeros() as usize;
                        return Err(self.fault(
                            Kind::Uninitialised,
                            warp,
                            lane,
                            inst,
                            "uninitialised: it depends on a predicate that nothing has written",
                        ));
                    }
                    value & mask
                }
            };
            used += 1;
            let count = &mut self.counts[pc as usize];
            count.issued += 1;
            count.lanes += u64::from(exec.count_ones());
            let next = if exec != 0 && exec != mask && splits(&inst.op) {
                warp.go(exec, pc);
                warp.go(mask & !exec, pc + 1);
                Next::Again
            } else if exec == 0 {
                Next::On
            } else {
                if !inst.shares.is_empty() {
                    self.touch(warp, &Run { frame, inst, pc, exec })?;
                }
                self.step(warp, &Run { frame, inst, pc, exec }, mask)?
            };
            match next {
                Next::On => pc += 1,
                Next::To(to) => {
                    warp.impatience += u32::from(to <= pc && !alone);
                    pc = to;
                }
                Next::Again => return Ok(used),
            }
            if pc >= group.stop || used >= turn || warp.impatience >= 64 {
                warp.go(mask, pc);
                return Ok(used);
            }
        }
    }

    fn step(&mut self, warp: &mut Warp, run: &Run<'_>, mask: u32) -> Result<Next, Box<Fault>> {
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        match &run.inst.op {
            Op::Alu { f, d, s, n, ftz: false, sat: false } => {
                let mut o = [0; LANES];
                let known = s[..*n as usize].iter().fold(!0, |k, s| k & warp.known(frame, *s));
                f(
                    warp.look(frame, s[0], consts),
                    warp.look(frame, s[1], consts),
                    warp.look(frame, s[2], consts),
                    &mut o,
                );
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Bra { to } if exec == mask => return Ok(Next::To(*to)),
            Op::Bra { to } => {
                warp.go(exec, *to);
                warp.go(mask & !exec, run.pc + 1);
                return Ok(Next::Again);
            }
            Op::Setp { f, p, q, s, combine, ftz } => {
                let known = warp.known(frame, s[0]) & warp.known(frame, s[1]);
                let value = match ftz {
                    false => f(warp.look(frame, s[0], consts), warp.look(frame, s[1], consts)),
                    true => f(&flush(warp.look(frame, s[0], consts)), &flush(warp.look(frame, s[1], consts))),
                };
                let (other, other_known) = combine.map_or((!0, !0), |(_, c)| warp.predicate(frame, c));
                let with = |v: u32| match combine {
                    None => v,
                    Some((l, _)) => logic(*l, v, other),
                };
                warp.put_predicate(frame, *p, exec, with(value), known & other_known);
                warp.put_predicate(frame, *q, exec, with(!value), known & other_known);
            }
            Op::Ld { space, ty, d, n, addr, order } => {
                self.load(warp, run, *space, *ty, &d[..*n as usize], addr, *order)?;
            }
            Op::St { space, ty, s, n, addr, order } => {
                self.store(warp, run, *space, *ty, &s[..*n as usize], addr, *order)?;
            }
            Op::Atom { space, ty, f, d, addr, s, order } => {
                self.atomic(warp, run, *space, *ty, *f, *d, addr, s, *order)?;
            }
            Op::CpAsync { to, from, size, source } => {
                self.copy_async(warp, run, to, from, *size as usize, *source)?;
            }
            Op::CpCommit => lanes(exec).for_each(|l| warp.copies[l].commit()),
            Op::Bulk(op) => self.bulk(warp, run, op)?,
            Op::BulkCommit => lanes(exec).for_each(|l| warp.beside.bulk[l].commit()),
            Op::BulkWait { pending, read } => self.bulk_wait(warp, run, *pending as usize, *read),
            Op::CpWait { pending, all } => {
                lanes(exec).filter(|_| *all).for_each(|l| warp.copies[l].commit());
                self.copy_wait(warp, run, *pending as usize)?;
            }
            Op::WgmmaFence => warp.products.fence(),
            Op::WgmmaCommit => warp.products.commit(),
            op if splits(op) => return self.meet(warp, run, mask),
            _ => self.plain(warp, run, mask),
        }
        Ok(Next::On)
    }

    /// What moves bits between registers.
    fn plain(&mut self, warp: &mut Warp, run: &Run<'_>, mask: u32) {
        let (frame, exec, consts) = (run.frame, run.exec, &self.module.consts);
        let all = |sources: &[Src]| sources.iter().fold(!0, |k, s| k & warp.known(frame, *s));
        match &run.inst.op {
            Op::Alu { f, d, s, n, ftz, sat } => {
                let mut o = [0; LANES];
                let known = all(&s[..*n as usize]);
                let [a, b, c] =
                    s.map(
                        |s| {
                            if *ftz { flush(warp.look(frame, s, consts)) } else { warp.get(frame, s, consts) }
                        },
                    );
                f(&a, &b, &c, &mut o);
                o = if *ftz { flush(&o) } else { o };
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
                alu::lop3(*table, a, b, c, &mut o);
                warp.put(frame, *d, exec, &o, known);
            }
            Op::Bfi { d, s, bits } => {
                let known = all(s);
                let [a, b, c, n] = s.map(|s| warp.get(frame, s, consts));
                let field = |i: usize| alu::insert(a[i], b[i], c[i] as u32, n[i] as u32, u32::from(*bits));
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

/// Instructions for which the lanes that do not run them go on alone.
fn splits(op: &Op) -> bool {
    let parts = matches!(op, Op::Brx { .. } | Op::Call { .. } | Op::Ret | Op::Exit | Op::Trap);
    let warp = matches!(op, Op::Shfl { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. });
    let waits = matches!(op, Op::Barrier { .. } | Op::ClusterBarrier { .. } | Op::WarpSync { .. });
    let waits = waits || matches!(op, Op::Mbarrier(_) | Op::Ldmatrix { .. } | Op::Mma(_));
    let group = matches!(op, Op::Wgmma(_) | Op::WgmmaWait { .. } | Op::SetRegisters { .. });
    parts || warp || waits || group || matches!(op, Op::Stmatrix { .. } | Op::Elect { .. })
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

/// Denormal f32 become zeros of their sign.
fn flush(values: &Lanes) -> Lanes {
    values.map(|v| if v & 0x7f80_0000 == 0 { v & 0x8000_0000 } else { v })
}

/// What was read with strength before now counts, and what follows publishes all that was before.
pub fn fence(warp: &mut Warp) {
    if let Some(pending) = warp.pending.take() {
        warp.clock.join(&pending);
    }
    warp.released = Some(Box::new(warp.clock.clone()));
    warp.clock.own[warp.index as usize] += 1;
}

/// The instruction's text cannot be had any more; its kind is enough for a message.
pub fn waits_at(inst: &Inst) -> &'static str {
    match inst.op {
        Op::Barrier { .. } => "a barrier of the block",
        Op::ClusterBarrier { .. } => "the cluster's barrier",
        Op::WarpSync { .. } => "a barrier of the warp",
        Op::Shfl { .. } => "a shuffle",
        Op::Mma(_) | Op::Ldmatrix { .. } | Op::Stmatrix { .. } => "a matrix instruction",
        Op::Wgmma(_) => "a wgmma of the whole warpgroup",
        Op::WgmmaWait { .. } => "wgmma.wait_group",
        Op::SetRegisters { .. } => "setmaxnreg of the whole warpgroup, for registers of the block's pool,",
        _ => "an instruction of the whole warp",
    }
}
