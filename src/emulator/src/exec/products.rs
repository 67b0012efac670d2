//! What asynchronous matrix products hold: registers that nobody may touch, and operands in shared memory that nobody may
//! write, from the instruction to the wait that covers it.
//!
//! Operands in shared memory are read by the warpgroup's own agent, who knows what all four warps know, and whose reading
//! a warp knows to be over when a `wgmma.wait_group` covers it. The product itself is done as late as that, or at once.

use super::context::{Context, Done, Run};
use crate::isa::module::Inst;
use crate::isa::op::{GroupOp, Op};
use crate::isa::operand::{LANES, Lanes, Proxy, Src};
use crate::isa::product::{Left, Wgmma};
use crate::machine::clock::{Agent, Clock, Touch, Who};
use crate::machine::flight::Where;
use crate::machine::frame::Frame;
use crate::machine::warp::Warp;
use crate::machine::warpgroup::{GROUP, Product, Warpgroup};
use crate::numbers::descriptor::{CHUNK, Descriptor};
use crate::numbers::wgmma::{M, multiply};
use crate::report::finding::{Fault, Kind};

/// Products that wait to be done, at most.
const DEEP: usize = 64;

impl Context<'_> {
    /// Who reads operands for the warpgroup.
    fn agent(&mut self, warp: &Warp) -> u32 {
        let first = warp.index / GROUP as u32 * GROUP as u32;
        self.agents.number(Agent::Wgmma(warp.clock.block, first))
    }

    /// All four warps are at `wgmma.mma_async`.
    pub fn begin(&mut self, group: &mut Warpgroup, warps: &mut [Warp], pc: u32, op: &Wgmma) -> Done {
        let inst = &self.module.insts[pc as usize];
        let mut frames = [Frame::default(); GROUP];
        group.come.iter().for_each(|(w, _, frame)| frames[w % GROUP] = *frame);
        let scale = self.scale(warps, &frames, inst, op.scale)?;
        for (warp, frame) in warps.iter_mut().zip(&frames) {
            self.claim(warp, frame, pc, op)?;
        }
        group.issued += 1;
        let clock = common(warps);
        let agent = Some((self.agent(&warps[0]), group.issued as u32));
        let operand = |this: &mut Self, s: Src, side: usize, rows: usize| -> Result<Vec<u32>, Box<Fault>> {
            let what = ["A's descriptor", "B's descriptor"][side];
            let bits = this.shared_value(warps, &frames, inst, s, what)?;
            let bad = |what: String| this.fault(Kind::Warpgroup, &warps[0], 0, inst, what);
            let descriptor = Descriptor::read(bits).map_err(|e| bad(format!("{}: {e}", ["A", "B"][side])))?;
            let chunks = op.chunks(&descriptor, op.across[side], rows);
            this.operand_reads(
                &warps[0],
                inst,
                &Who {
                    clock: &clock,
                    waited: &[],
                    floor: warps[0].floor,
                    thread: warps[0].index * LANES as u32,
                    pc,
                    strong: false,
                    agent,
                },
                &chunks,
            )
            .map_err(|f| f.and(format!("through {}'s descriptor {bits:#018x}", ["A", "B"][side])))?;
            Ok(chunks)
        };
        let a = match op.a {
            Left::Shared(s) => operand(self, s, 0, M)?,
            Left::Registers(_) => Vec::new(),
        };
        let b = operand(self, op.b, 1, op.n)?;
        self.counts[pc as usize].flops += op.flops();
        let flight = Product { number: group.issued, pc, frames, a, b, scale };
        for (warp, frame) in warps.iter_mut().zip(&frames) {
            warp.products.issued = group.issued;
            warp.products.flying.push_back((group.issued, pc, frame.registers));
        }
        match self.early {
            true => self.perform(&[flight], warps),
            false => group.flights.push_back(flight),
        }
        // Its reader cannot hold any number of them; the first may be done by now.
        if group.flights.len() > DEEP
            && let Some(flight) = group.flights.pop_front()
        {
            self.perform(&[flight], warps);
        }
        Ok(())
    }

    /// The product takes the warp's registers, if they are free and fenced.
    fn claim(&self, warp: &mut Warp, frame: &Frame, pc: u32, op: &Wgmma) -> Done {
        let inst = &self.module.insts[pc as usize];
        let wrong = |warp: &Warp, what: &str| Err(self.fault(Kind::Warpgroup, warp, 0, inst, what));
        if warp.products.fences == 0 {
            return wrong(warp, "no wgmma.fence stands before the first wgmma");
        }
        let fences = warp.products.fences;
        let other_shape = warp.products.flying.iter().any(|(_, other, base)| {
            let Op::Group(GroupOp::Wgmma(other)) = &self.module.insts[*other as usize].op else {
                return false;
            };
            let same = (other.n, other.half, other.element.size()) == (op.n, op.half, op.element.size());
            !same && other.d.iter().any(|r| op.d.iter().any(|d| r + base == d + frame.registers))
        });
        if other_shape {
            return wrong(
                warp,
                "its accumulator belongs to a wgmma of another shape that no wait has covered",
            );
        }
        let registers = op.d.iter().map(|d| (*d, true)).chain(op.left().map(|a| (a, false)));
        for (register, write) in registers {
            let mark = *warp.products.mark(frame.registers + register);
            let kind = if write { "an accumulator" } else { "a register of A" };
            if mark.touched.0 == fences + 1 {
                let other = &self.module.insts[mark.touched.1 as usize];
                let what = format!("{kind} was accessed since the last wgmma.fence; another one is missing");
                let fault = self.fault(Kind::Warpgroup, warp, 0, inst, what);
                return Err(fault.and(format!("the access: {}", self.module.place(other))));
            }
            let (writes, reads) = mark.flying;
            if write && reads > 0 || !write && writes > 0 {
                return wrong(warp, &format!("{kind} belongs to another wgmma that no wait has covered"));
            }
        }
        for d in &op.d {
            warp.products.mark(frame.registers + d).flying.0 += 1;
        }
        for a in op.left() {
            warp.products.mark(frame.registers + a).flying.1 += 1;
        }
        Ok(())
    }

    /// The asynchronous proxy reads chunks of the block's shared memory for a warpgroup that knows `who.clock`.
    fn operand_reads(&mut self, warp: &Warp, inst: &Inst, who: &Who<'_>, chunks: &[u32]) -> Done {
        let run = Run { frame: &Frame::default(), inst, pc: who.pc, exec: 1 };
        let place = Where::Shared(self.rank);
        let mut harmless = Touch::default();
        let mut rest = chunks;
        loop {
            let shared = self.own();
            rest = &rest[shared.grains(rest, who, Proxy::Shared, &mut harmless)..];
            let Some((at, behind)) = rest.split_first() else { return Ok(()) };
            rest = behind;
            let found = shared.place((*at).into(), CHUNK, false);
            let found = found.and_then(|at| shared.readable(at, CHUNK).map(|()| at));
            match found.map(|at| (at, shared.races.read_beside(at, CHUNK, who, Proxy::Shared))) {
                Ok((_, None)) => {}
                Ok((at, Some((other, true)))) => {
                    self.report(self.unfenced(&run, (warp, 0), place, at, other))?;
                }
                Ok((at, Some((other, false)))) => {
                    self.report(self.race(warp, 0, &run, (place, at), false, other))?;
                }
                Err(what) => return Err(self.bad(warp, 0, inst, what)),
            }
        }
    }

    /// The products themselves, one after the other: those that continue the sums of the one before are one with it.
    fn perform(&mut self, flights: &[Product], warps: &mut [Warp]) {
        let insts = &self.module.insts;
        let product = |flight: &Product| {
            let Op::Group(GroupOp::Wgmma(op)) = &insts[flight.pc as usize].op else { return None };
            Some(&**op)
        };
        let continues = |first: &Product, next: &Product| {
            let (Some(a), Some(b)) = (product(first), product(next)) else { return false };
            // Sums in f16 are rounded after each.
            next.scale && !a.half && !b.half && first.frames == next.frames && a.d == b.d
        };
        for flights in flights.chunk_by(continues) {
            if let Some(op) = product(&flights[0]) {
                self.sum(op, flights, &product, warps);
            }
        }
    }

    /// Products that add to one another's sums, the first of which is `op`.
    fn sum<'a>(
        &self,
        op: &Wgmma,
        flights: &[Product],
        product: &impl Fn(&Product) -> Option<&'a Wgmma>,
        warps: &mut [Warp],
    ) {
        let (memory, consts) = (&self.cluster.shared[self.rank].data, &self.module.consts);
        let (mut a, mut b, mut known) = (Vec::new(), Vec::new(), true);
        for flight in flights {
            let Some(op) = product(flight) else { continue };
            match &op.a {
                Left::Shared(_) => op.read(&flight.a, memory, (op.across[0], M, op.negate[0]), &mut a),
                Left::Registers(list) => {
                    let all = |(w, f): (&Warp, &Frame)| list.iter().all(|s| w.known(f, *s) == !0);
                    known &= warps.iter().zip(&flight.frames).all(all);
                    a.extend(op.fragments(list, warps, &flight.frames, consts));
                }
            }
            op.read(&flight.b, memory, (op.across[1], op.n, op.negate[1]), &mut b);
        }
        let (mut sums, frames) = (vec![0f32; M * op.n], &flights[0].frames);
        for (w, (warp, frame)) in warps.iter().zip(frames).enumerate().filter(|_| flights[0].scale) {
            known &= op.d.iter().all(|d| warp.known(frame, Src::Reg(*d)) == !0);
            let d: Vec<&Lanes> = op.d.iter().map(|d| warp.look(frame, Src::Reg(*d), consts)).collect();
            op.load(w, &d, &mut sums);
        }
        multiply(&a, &b, &mut sums, op.n);
        // One undefined element spoils rows and columns: all or nothing is close enough.
        let known = if known { !0 } else { 0 };
        for (w, (warp, frame)) in warps.iter_mut().zip(frames).enumerate() {
            for (r, d) in op.d.chunks(if op.half { 1 } else { 2 }).enumerate() {
                let values = op.store(w, r, &mut sums);
                d.iter().zip(&values).for_each(|(d, values)| warp.put(frame, *d, !0, values, known));
            }
        }
    }

    /// `wgmma.wait_group`: all but the last `pending` groups of this warp are done.
    pub fn finish(&mut self, group: &mut Warpgroup, warps: &mut [Warp], w: usize, pending: usize) {
        let products = &mut warps[w].products;
        let over = products.groups.len().saturating_sub(pending);
        let last = products.groups.drain(..over).next_back().unwrap_or(0);
        let done = group.flights.iter().take_while(|f| f.number <= last).count();
        self.perform(&group.flights.drain(..done).collect::<Vec<_>>(), warps);
        let warp = &mut warps[w];
        while let Some((_, pc, base)) = warp.products.flying.front().copied().filter(|f| f.0 <= last) {
            warp.products.flying.pop_front();
            if let Op::Group(GroupOp::Wgmma(op)) = &self.module.insts[pc as usize].op {
                op.d.iter().for_each(|d| warp.products.mark(base + d).flying.0 -= 1);
                op.left().for_each(|a| warp.products.mark(base + a).flying.1 -= 1);
            }
        }
        let agent = self.agent(warp);
        warp.clock.heard(agent, last as u32);
        let pc = warp.pc[0];
        warp.waiting = 0;
        warp.go(!0, pc + 1);
    }

    /// An ordinary instruction that names registers of some wgmma.
    pub fn touch(&mut self, warp: &mut Warp, run: &Run<'_>) -> Done {
        let (mut bad, products) = (None, &mut warp.products);
        let fences = products.fences;
        for (register, write) in &run.inst.shares {
            let mark = products.mark(run.frame.registers + register);
            mark.touched = (fences + 1, run.pc);
            if mark.flying != (0, 0) {
                bad = Some((*register, *write, mark.flying.0 > 0));
            }
        }
        let Some((register, write, accumulator)) = bad else { return Ok(()) };
        let uses = |pc: u32, base: u32| {
            let Op::Group(GroupOp::Wgmma(op)) = &self.module.insts[pc as usize].op else { return false };
            op.d.iter().copied().chain(op.left()).any(|r| r + base == run.frame.registers + register)
        };
        let flight = warp.products.flying.iter().find(|(_, pc, base)| uses(*pc, *base)).copied();
        let lane = run.exec.trailing_zeros() as usize;
        let act = if write { "writes" } else { "reads" };
        let kind = if accumulator { "an accumulator" } else { "a register of A" };
        let committed = flight.is_some_and(|f| warp.products.groups.back().is_some_and(|last| f.0 <= *last));
        let missing = if committed { "wgmma.wait_group" } else { "wgmma.commit_group or its wait" };
        let what = format!("it {act} {kind} of a wgmma that is under way; a {missing} is missing");
        let fault = self.fault(Kind::Warpgroup, warp, lane, run.inst, what);
        Err(match flight {
            Some((_, pc, _)) => {
                fault.and(format!("the wgmma: {}", self.module.place(&self.module.insts[pc as usize])))
            }
            None => fault,
        })
    }
}

impl Wgmma {
    /// A from the warps' registers, [k][m].
    pub fn fragments(
        &self,
        registers: &[Src; 4],
        warps: &[Warp],
        frames: &[Frame],
        consts: &[Lanes],
    ) -> Vec<f32> {
        let k = self.element.depth();
        let (pack, sign) = (4 / self.element.size(), if self.negate[0] { -1.0 } else { 1.0 });
        let mut numbers = vec![0f32; k * M];
        for (w, warp) in warps.iter().enumerate() {
            for (r, s) in registers.iter().enumerate() {
                let values = warp.look(&frames[w], *s, consts);
                for (lane, value) in values.iter().enumerate() {
                    for i in 0..pack {
                        let column = lane % 4 * pack + i + r / 2 * 4 * pack;
                        let row = 16 * w + lane / 4 + r % 2 * 8;
                        numbers[column * M + row] = sign * self.element.at(*value, i);
                    }
                }
            }
        }
        numbers
    }
}

/// What all four warps know.
fn common(warps: &[Warp]) -> Clock {
    let mut clock = warps[0].clock.clone();
    warps[1..].iter().for_each(|w| clock.meet(&w.clock));
    clock
}
