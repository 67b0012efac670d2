//! Matrix products of a warpgroup: `wgmma`. They run asynchronously: what they read and write may not be touched
//! between the instruction and the wait that covers it.
//!
//! Numbers: products are exact, and each element's sum runs in f32 from the accumulator over rising k; sums in f16 are
//! rounded once an instruction.
//!
//! The four warps of a warpgroup meet at `wgmma.mma_async` (no order of their other accesses follows from that). Its
//! operands in shared memory are read by the warpgroup's own agent, who knows what all four warps know, and whose reading
//! a warp knows to be over when a `wgmma.wait_group` covers it.

use super::access::{Done, Run, Where};
use super::body::{Body, Operand};
use super::decode::unknown;
use super::descriptor::{CHUNK, Descriptor};
use super::parse::Parsed;
use super::ptx::{Function, Inst, LANES, Lanes, Op, Pred, Src};
use super::race::{Agent, Clock, Proxy, WARPS, Who};
use super::report::{Fault, Kind};
use super::step::{Context, Next};
use super::tensor::Element;
use super::warp::{Frame, Warp};
use half::f16;
use std::collections::{HashSet, VecDeque};

/// Rows of a product.
const M: usize = 64;
/// Warps of a warpgroup.
pub const GROUP: usize = 4;
/// Warpgroups of a block, at most.
pub const WARPGROUPS: usize = WARPS / GROUP;

/// Where A comes from.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// Each warp's 16 rows, laid out as for `mma.sync`.
    Registers([Src; 4]),
    /// A descriptor.
    Shared(Src),
}

/// D = A B + D on tiles of 64 x k by k x n.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Of A and B.
    pub element: Element,
    /// 8 to 256.
    pub n: usize,
    /// Sums are f16, two in a register.
    pub half: bool,
    /// The accumulator.
    pub d: Vec<u32>,
    /// The left operand.
    pub a: Left,
    /// B's descriptor.
    pub b: Src,
    /// False: D is not read.
    pub scale: Pred,
    /// A's and B's elements change their sign.
    pub negate: [bool; 2],
    /// A and B lie along m and n.
    pub across: [bool; 2],
}

/// `wgmma.mma_async.sync.aligned.m64nNkK.f32.T.T` and its companions.
pub fn decode<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match (&parts[1..], operands) {
        ([act @ ("inc" | "dec"), "sync", "aligned", "u32"], [Operand::Word { word, .. }]) => {
            match super::lex::number(word) {
                Some(n) if (24..=256).contains(&n) && n % 8 == 0 => {
                    Ok(Op::SetRegisters { count: n as u32, more: *act == "inc" })
                }
                _ => body.parser.wrong("a multiple of 8 registers from 24 to 256 was expected"),
            }
        }
        (["fence", "sync", "aligned"], []) => Ok(Op::WgmmaFence),
        (["commit_group", "sync", "aligned"], []) => Ok(Op::WgmmaCommit),
        (["wait_group", "sync", "aligned"], [Operand::Word { word, .. }]) => match super::lex::number(word) {
            Some(n) if n < 1 << 16 => Ok(Op::WgmmaWait { pending: n as usize }),
            _ => body.parser.wrong("expected a number of groups"),
        },
        (["mma_async", "sp", ..], _) => body.parser.wrong("sparse operands are not modelled"),
        (["mma_async", "sync", "aligned", shape, sum, a, b], _) => {
            product(body, [shape, sum, a, b], operands)
        }
        _ => unknown(body),
    }
}

fn product<'a>(
    body: &mut Body<'_, 'a>,
    [shape, sum, a, b]: [&str; 4],
    operands: &[Operand<'a>],
) -> Parsed<Op> {
    let element = match (a, b, sum) {
        ("f16", "f16", "f16" | "f32") => Element::F16,
        ("bf16", "bf16", "f32") => Element::Bf16,
        ("tf32", "tf32", "f32") => Element::Tf32,
        _ => return body.parser.wrong(format!("sums in {sum} of {a} by {b} are not modelled")),
    };
    let k = element.depth();
    let n = shape.strip_prefix("m64n").and_then(|s| s.strip_suffix(&format!("k{k}")));
    let n = n.and_then(|n| n.parse::<usize>().ok()).filter(|n| (8..=256).contains(n) && n % 8 == 0);
    let Some(n) = n else { return body.parser.wrong(format!("`{shape}` is no shape for {a}")) };
    let half = sum == "f16";
    let registers = if half { n / 4 } else { n / 2 };
    let [Operand::Vector(d), a, b, scale, rest @ ..] = operands else {
        return body.parser.wrong("expected registers in braces, A, B and a predicate");
    };
    if d.len() != registers {
        return body.parser.wrong(format!("{} registers, {registers} were expected", d.len()));
    }
    let left = match a {
        Operand::Vector(a) if a.len() == 4 => {
            let mut s = [Src::Const(0); 4];
            for (s, o) in s.iter_mut().zip(a) {
                *s = body.source(o)?;
            }
            Left::Registers(s)
        }
        Operand::Vector(a) => return body.parser.wrong(format!("A has {} registers, 4 are due", a.len())),
        a => Left::Shared(body.source(a)?),
    };
    let mut flags = [false; 4];
    let majors = if element == Element::Tf32 { 0 } else { 2 };
    let majors = if matches!(left, Left::Registers(_)) { majors / 2 } else { majors };
    if rest.len() != 2 + majors {
        return body.parser.wrong(format!("{} immediate operands, {} were expected", rest.len(), 2 + majors));
    }
    for (i, (flag, o)) in flags.iter_mut().zip(rest).enumerate() {
        *flag = match (i, o) {
            (0 | 1, Operand::Word { word: "1", minus, .. }) => *minus,
            (2 | 3, Operand::Word { word: "0", minus: false, .. }) => false,
            (2 | 3, Operand::Word { word: "1", minus: false, .. }) => true,
            _ => return body.parser.wrong("scales are 1 and -1, transpositions 0 and 1"),
        };
    }
    // With A in registers the one transposition is B's.
    let across = if majors == 1 { [false, flags[2]] } else { [flags[2], flags[3]] };
    let d = d.iter().map(|o| body.target(o)).collect::<Parsed<_>>()?;
    let (b, scale) = (body.source(b)?, body.predicate(scale)?);
    let negate = [flags[0], flags[1]];
    Ok(Op::Wgmma(Box::new(Wgmma { element, n, half, d, a: left, b, scale, negate, across })))
}

impl Wgmma {
    /// Registers that A takes.
    fn left(&self) -> impl Iterator<Item = u32> {
        let list = match self.a {
            Left::Registers(list) => list.map(Some),
            Left::Shared(_) => [None; 4],
        };
        list.into_iter().filter_map(|s| if let Some(Src::Reg(r)) = s { Some(r) } else { None })
    }

    /// Multiplications and additions.
    fn flops(&self) -> u64 {
        (2 * M * self.n * self.element.depth()) as u64
    }

    /// Row and column of element `i` of register `r` in a lane of warp `w`.
    fn place(&self, w: usize, lane: usize, r: usize, i: usize) -> (usize, usize) {
        let (r, i) = if self.half { (r, i) } else { (r / 2, r % 2) };
        (16 * w + lane / 4 + r % 2 * 8, r / 2 * 8 + lane % 4 * 2 + i)
    }

    /// Addresses of an operand's chunks, row by row: `rows` of A or columns of B.
    fn chunks(&self, descriptor: &Descriptor, across: bool, rows: usize) -> Vec<u32> {
        let (rows, k) = (rows as u32, self.element.depth() as u32);
        match across {
            false => (0..rows).flat_map(|r| (0..2).map(move |c| descriptor.along_k(r, c))).collect(),
            true => (0..k).flat_map(|k| (0..rows / 8).map(move |c| descriptor.across_k(k, c))).collect(),
        }
    }

    /// Those chunks as numbers, [k][rows].
    fn numbers(&self, chunks: &[u32], memory: &[u8], across: bool, rows: usize, negate: bool) -> Vec<f32> {
        let (k, size) = (self.element.depth(), self.element.size());
        let sign = if negate { -1.0 } else { 1.0 };
        let mut numbers = vec![0f32; k * rows];
        for (i, at) in chunks.iter().enumerate() {
            let bytes = &memory[*at as usize..*at as usize + CHUNK];
            for (e, part) in bytes.chunks_exact(size).enumerate() {
                let at = match across {
                    false => (i % 2 * (CHUNK / size) + e) * rows + i / 2,
                    true => i / (rows / 8) * rows + i % (rows / 8) * 8 + e,
                };
                numbers[at] = sign * self.element.of_bytes(part);
            }
        }
        numbers
    }

    /// A from the warps' registers, [k][m].
    fn fragments(&self, registers: &[Src; 4], warps: &[Warp], flight: &Flight, consts: &[Lanes]) -> Vec<f32> {
        let k = self.element.depth();
        let (pack, sign) = (4 / self.element.size(), if self.negate[0] { -1.0 } else { 1.0 });
        let mut numbers = vec![0f32; k * M];
        for (w, warp) in warps.iter().enumerate() {
            for (r, s) in registers.iter().enumerate() {
                let values = warp.look(&flight.frames[w], *s, consts);
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

    /// sums[m][n] += A B
    fn multiply(&self, a: &[f32], b: &[f32], sums: &mut [f32]) {
        for (m, sums) in sums.chunks_exact_mut(self.n).enumerate() {
            for (k, line) in b.chunks_exact(self.n).enumerate() {
                let x = a[k * M + m];
                sums.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * y);
            }
        }
    }
}

/// A product under way.
#[derive(Clone, Debug)]
pub struct Flight {
    number: u64,
    pc: u32,
    frames: [Frame; GROUP],
    a: Vec<u32>,
    b: Vec<u32>,
    scale: bool,
}

/// A warpgroup.
#[derive(Clone, Debug, Default)]
pub struct Warpgroup {
    /// Warps that wait for the others: number, instruction, storage.
    come: Vec<(usize, u32, Frame)>,
    /// Not yet done, oldest first.
    flights: VecDeque<Flight>,
    issued: u64,
    /// Registers of each of its threads.
    registers: u32,
}

impl Warpgroup {
    /// With so many registers a thread.
    pub fn new(registers: u32) -> Warpgroup {
        Warpgroup { registers, ..Warpgroup::default() }
    }

    /// Somebody has come.
    pub fn waits(&self) -> bool {
        !self.come.is_empty()
    }

    /// Registers that warpgroups have given back to their block's pool, which started with `each` a thread.
    pub fn spare(groups: &[Warpgroup], each: u32) -> u32 {
        let given: i64 = groups.iter().map(|g| i64::from(each) - i64::from(g.registers)).sum();
        (given * (GROUP * LANES) as i64) as u32
    }
}

/// What ordinary instructions and products did to a register.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// The fences before the last ordinary access, and one, and that instruction; zeros before the first.
    touched: (u32, u32),
    /// Products under way that write it, and that read it.
    flying: (u16, u16),
}

/// What a warp knows of its products.
#[derive(Clone, Debug, Default)]
pub struct Products {
    marks: Vec<Mark>,
    /// `wgmma.fence` so far.
    fences: u32,
    /// (number, instruction, first register, agent's time), oldest first.
    flying: VecDeque<(u64, u32, u32)>,
    issued: u64,
    /// The last product of each group that nobody has waited for.
    groups: VecDeque<u64>,
}

impl Products {
    /// `wgmma.fence`: what was done to registers is over.
    pub fn fence(&mut self) {
        self.fences += 1;
    }

    /// `wgmma.commit_group`
    pub fn commit(&mut self) {
        self.groups.push_back(self.issued);
    }

    fn mark(&mut self, register: u32) -> &mut Mark {
        let at = register as usize;
        if self.marks.len() <= at {
            self.marks.resize(at + 1, Mark::default());
        }
        &mut self.marks[at]
    }
}

impl Context<'_> {
    /// A warp comes to an instruction of its warpgroup.
    pub fn come(&mut self, warp: &mut Warp, run: &Run<'_>, here: u32) -> Result<Next, Box<Fault>> {
        warp.go(run.exec, run.pc);
        if here != warp.live {
            warp.parked |= here;
            return Ok(Next::Again);
        }
        let lane = here.trailing_zeros() as usize;
        if here != !0 {
            let what = format!("{} with {} of 32 lanes", name(run.inst), here.count_ones());
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        warp.parked = 0;
        warp.waiting = here;
        self.warpgroups[warp.index as usize / GROUP].come.push((warp.index as usize, run.pc, *run.frame));
        Ok(Next::Again)
    }

    /// Whatever a warpgroup's warps have come for, once they are all there.
    pub fn warpgroup(&mut self, g: usize, warps: &mut [Warp]) -> Done {
        let mut group = std::mem::take(&mut self.warpgroups[g]);
        let mut done = Ok(());
        for i in (0..group.come.len()).rev() {
            let (w, pc, _) = group.come[i];
            if let Op::WgmmaWait { pending } = self.module.insts[pc as usize].op {
                group.come.remove(i);
                done = done.and(self.wait(&mut group, warps, w % GROUP, pending));
            }
        }
        if let (Ok(()), Some((w, pc, _))) = (&done, group.come.first().copied()) {
            done = match self.absent(&group, warps, g, w % GROUP, pc) {
                Ok(true) => self.meet_all(&mut group, warps, pc),
                Ok(false) => Ok(()),
                Err(fault) => Err(fault),
            };
        }
        self.warpgroups[g] = group;
        done
    }

    /// Whether all four are there; an error if they never will be.
    fn absent(
        &self,
        group: &Warpgroup,
        warps: &[Warp],
        g: usize,
        w: usize,
        pc: u32,
    ) -> Result<bool, Box<Fault>> {
        let inst = &self.module.insts[pc as usize];
        let wrong = |what: String| Err(self.fault(Kind::Barrier, &warps[w], 0, inst, what));
        if warps.len() < GROUP {
            let there = GROUP * g + warps.len();
            return wrong(format!(
                "{} of warpgroup {g}, whose four warps are not there: the block has {there}",
                name(inst)
            ));
        }
        if let Some(gone) = warps.iter().find(|w| w.live == 0) {
            return wrong(format!(
                "{} that warp {} of the warpgroup never comes to: it has exited",
                name(inst),
                gone.index
            ));
        }
        if let Some((w, other, _)) = group.come.iter().find(|c| c.1 != pc) {
            let what = format!("{}, while warp {w} of the same warpgroup is elsewhere", name(inst));
            let other = &self.module.insts[*other as usize];
            let fault = self.fault(Kind::Barrier, &warps[w % GROUP], 0, inst, what);
            return Err(fault.and(format!("warp {w} is at {}, {}", name(other), self.module.place(other))));
        }
        Ok(group.come.len() == GROUP)
    }

    fn meet_all(&mut self, group: &mut Warpgroup, warps: &mut [Warp], pc: u32) -> Done {
        let inst = &self.module.insts[pc as usize];
        match &inst.op {
            Op::Wgmma(op) => self.begin(group, warps, pc, op)?,
            Op::SetRegisters { count, .. } if !self.resize(group, &warps[0], inst, *count)? => return Ok(()),
            _ => {}
        }
        for (w, ..) in group.come.drain(..) {
            warps[w % GROUP].waiting = 0;
            warps[w % GROUP].go(!0, pc + 1);
        }
        Ok(())
    }

    /// A value that all threads of the warpgroup must share.
    fn shared_value(
        &self,
        warps: &[Warp],
        frames: &[Frame; GROUP],
        inst: &Inst,
        s: Src,
        what: &str,
    ) -> Result<u64, Box<Fault>> {
        let first = warps[0].look(&frames[0], s, &self.module.consts)[0];
        for (warp, frame) in warps.iter().zip(frames) {
            let unknown = !warp.known(frame, s);
            if unknown != 0 {
                let lane = unknown.trailing_zeros() as usize;
                let text = format!("uninitialised: {what} is a register that nothing has written");
                return Err(self.fault(Kind::Uninitialised, warp, lane, inst, text));
            }
            let values = warp.look(frame, s, &self.module.consts);
            if let Some(lane) = values.iter().position(|v| *v != first) {
                let text = format!(
                    "{what} is {:#x} here and {first:#x} in the warpgroup's first thread",
                    values[lane]
                );
                return Err(self.fault(Kind::Warpgroup, warp, lane, inst, text));
            }
        }
        Ok(first)
    }

    /// All four warps are at `wgmma.mma_async`.
    fn begin(&mut self, group: &mut Warpgroup, warps: &mut [Warp], pc: u32, op: &Wgmma) -> Done {
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
        let flight = Flight { number: group.issued, pc, frames, a, b, scale };
        for (warp, frame) in warps.iter_mut().zip(&frames) {
            warp.products.issued = group.issued;
            warp.products.flying.push_back((group.issued, pc, frame.registers));
        }
        match self.early {
            true => self.perform(&flight, warps),
            false => group.flights.push_back(flight),
        }
        Ok(())
    }

    fn scale(
        &self,
        warps: &[Warp],
        frames: &[Frame; GROUP],
        inst: &Inst,
        p: Pred,
    ) -> Result<bool, Box<Fault>> {
        let first = warps[0].predicate(&frames[0], p).0 & 1;
        for (warp, frame) in warps.iter().zip(frames) {
            let (value, known) = warp.predicate(frame, p);
            if known != !0 {
                let what = "uninitialised: scale-d is a predicate that nothing has written";
                return Err(self.fault(
                    Kind::Uninitialised,
                    warp,
                    known.trailing_ones() as usize,
                    inst,
                    what,
                ));
            }
            let odd = value ^ first.wrapping_neg();
            if odd != 0 {
                let what = "scale-d differs from that of the warpgroup's first thread";
                return Err(self.fault(Kind::Warpgroup, warp, odd.trailing_zeros() as usize, inst, what));
            }
        }
        Ok(first == 1)
    }

    /// Who reads operands for the warpgroup.
    fn agent(&mut self, warp: &Warp) -> u32 {
        let first = warp.index / GROUP as u32 * GROUP as u32;
        self.agents.number(Agent::Wgmma(warp.clock.block, first))
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
            match &self.module.insts[*other as usize].op {
                Op::Wgmma(other) => {
                    let same =
                        (other.n, other.half, other.element.size()) == (op.n, op.half, op.element.size());
                    !same && other.d.iter().any(|r| op.d.iter().any(|d| r + base == d + frame.registers))
                }
                _ => false,
            }
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

    /// The product itself.
    fn perform(&mut self, flight: &Flight, warps: &mut [Warp]) {
        let Op::Wgmma(op) = &self.module.insts[flight.pc as usize].op else { return };
        let (memory, consts) = (&self.cluster.shared[self.rank].data, &self.module.consts);
        let (a, mut known) = match &op.a {
            Left::Shared(_) => (op.numbers(&flight.a, memory, op.across[0], M, op.negate[0]), true),
            Left::Registers(list) => {
                let known = |(w, f): (&Warp, &Frame)| list.iter().all(|s| w.known(f, *s) == !0);
                (op.fragments(list, warps, flight, consts), warps.iter().zip(&flight.frames).all(known))
            }
        };
        let b = op.numbers(&flight.b, memory, op.across[1], op.n, op.negate[1]);
        let pack = if op.half { 2 } else { 1 };
        let mut sums = vec![0f32; M * op.n];
        if flight.scale {
            for (w, (warp, frame)) in warps.iter().zip(&flight.frames).enumerate() {
                for (r, d) in op.d.iter().enumerate() {
                    known &= warp.known(frame, Src::Reg(*d)) == !0;
                    let values = warp.look(frame, Src::Reg(*d), consts);
                    for (lane, i) in (0..LANES).flat_map(|l| (0..pack).map(move |i| (l, i))) {
                        let (m, n) = op.place(w, lane, r, i);
                        sums[m * op.n + n] = match op.half {
                            true => f16::from_bits((values[lane] >> (16 * i)) as u16).to_f32(),
                            false => f32::from_bits(values[lane] as u32),
                        };
                    }
                }
            }
        }
        op.multiply(&a, &b, &mut sums);
        for (w, (warp, frame)) in warps.iter_mut().zip(&flight.frames).enumerate() {
            for (r, d) in op.d.iter().enumerate() {
                let mut values = [0; LANES];
                for (lane, i) in (0..LANES).flat_map(|l| (0..pack).map(move |i| (l, i))) {
                    let (m, n) = op.place(w, lane, r, i);
                    let sum = sums[m * op.n + n];
                    values[lane] |= match op.half {
                        true => u64::from(f16::from_f32(sum).to_bits()) << (16 * i),
                        false => u64::from(sum.to_bits()),
                    };
                }
                // One undefined element spoils rows and columns: all or nothing is close enough.
                warp.put(frame, *d, !0, &values, if known { !0 } else { 0 });
            }
        }
    }

    /// `wgmma.wait_group`: all but the last `pending` groups of this warp are done.
    fn wait(&mut self, group: &mut Warpgroup, warps: &mut [Warp], w: usize, pending: usize) -> Done {
        let products = &mut warps[w].products;
        let over = products.groups.len().saturating_sub(pending);
        let last = products.groups.drain(..over).next_back().unwrap_or(0);
        while group.flights.front().is_some_and(|f| f.number <= last) {
            if let Some(flight) = group.flights.pop_front() {
                self.perform(&flight, warps);
            }
        }
        let warp = &mut warps[w];
        while let Some((_, pc, base)) = warp.products.flying.front().copied().filter(|f| f.0 <= last) {
            warp.products.flying.pop_front();
            if let Op::Wgmma(op) = &self.module.insts[pc as usize].op {
                op.d.iter().for_each(|d| warp.products.mark(base + d).flying.0 -= 1);
                op.left().for_each(|a| warp.products.mark(base + a).flying.1 -= 1);
            }
        }
        let agent = self.agent(warp);
        warp.clock.heard(agent, last as u32);
        let pc = warp.pc[0];
        warp.waiting = 0;
        warp.go(!0, pc + 1);
        Ok(())
    }

    /// An ordinary instruction that names registers of some wgmma.
    pub fn touch(&mut self, warp: &mut Warp, run: &Run<'_>) -> Done {
        let (mut bad, products) = (None, &mut warp.products);
        let fences = products.fences;
        run.inst.op.registers(&mut |register, write| {
            let mark = products.mark(run.frame.registers + register);
            mark.touched = (fences + 1, run.pc);
            if mark.flying != (0, 0) {
                bad = Some((register, write, mark.flying.0 > 0));
            }
        });
        let Some((register, write, accumulator)) = bad else { return Ok(()) };
        let uses = |pc: u32, base: u32| match &self.module.insts[pc as usize].op {
            Op::Wgmma(op) => {
                op.d.iter().copied().chain(op.left()).any(|r| r + base == run.frame.registers + register)
            }
            _ => false,
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

    /// The asynchronous proxy reads chunks of the block's shared memory for a warpgroup that knows `who.clock`.
    fn operand_reads(&mut self, warp: &Warp, inst: &Inst, who: &Who<'_>, chunks: &[u32]) -> Done {
        let run = Run { frame: &Frame::default(), inst, pc: who.pc, exec: 1 };
        let place = Where::Shared(self.rank);
        for at in chunks {
            let shared = self.own();
            let found = shared.place((*at).into(), CHUNK, false);
            let found = found.and_then(|at| shared.readable(at, CHUNK).map(|()| at));
            let at = found.map_err(|what| self.bad(warp, 0, inst, what))?;
            let races = &mut self.own().races;
            if let Some(write) = races.unfenced(at, CHUNK, who.clock, Proxy::Shared) {
                return Err(self.unfenced(&run, (warp, 0), place, at, write));
            }
            if let Some(other) = self.own().races.read(at, CHUNK, who) {
                return Err(self.race(warp, 0, &run, (place, at), false, other));
            }
        }
        Ok(())
    }

    /// `setmaxnreg`: whether the pool has what is asked for.
    fn resize(
        &mut self,
        group: &mut Warpgroup,
        warp: &Warp,
        inst: &Inst,
        count: u32,
    ) -> Result<bool, Box<Fault>> {
        let Op::SetRegisters { more, .. } = inst.op else { return Ok(true) };
        let had = group.registers;
        let wrong = |what: String| Err(self.fault(Kind::Warpgroup, warp, 0, inst, what));
        if had == 0 {
            return wrong(
                "setmaxnreg in a kernel whose registers are not bounded: .maxnreg or .maxntid is needed"
                    .into(),
            );
        }
        if more && count < had || !more && count > had {
            let act = if more { "raises" } else { "lowers" };
            return wrong(format!("setmaxnreg {act} {had} registers to {count}"));
        }
        if count > had && (count - had) * (GROUP * LANES) as u32 > self.spare {
            return Ok(false);
        }
        group.registers = count;
        Ok(true)
    }
}

/// What all four warps know.
fn common(warps: &[Warp]) -> Clock {
    let mut clock = warps[0].clock.clone();
    warps[1..].iter().for_each(|w| clock.meet(&w.clock));
    clock
}

/// Registers of each thread when a kernel starts, where its bounds say so: the compiler hands out all that they allow.
pub fn registers(kernel: &Function) -> u32 {
    let share = |threads: u32| {
        let threads = threads.next_multiple_of(LANES as u32) * kernel.least_blocks.max(1);
        ((1 << 16) / threads).min(256)
    };
    kernel.most_registers.or(kernel.most_threads.map(share)).unwrap_or(0) & !7
}

/// Marks the instructions of a function that name registers which its `wgmma` hold.
pub fn mark_shared(insts: &mut [Inst]) {
    let mut held = HashSet::new();
    for inst in insts.iter() {
        if let Op::Wgmma(op) = &inst.op {
            held.extend(op.d.iter().copied().chain(op.left()));
        }
    }
    if held.is_empty() {
        return;
    }
    for inst in insts {
        let mut shares = false;
        inst.op.registers(&mut |r, _| shares |= held.contains(&r));
        inst.shares = shares;
    }
}

/// As a message calls it.
pub fn name(inst: &Inst) -> &'static str {
    match inst.op {
        Op::SetRegisters { .. } => "setmaxnreg",
        Op::WgmmaWait { .. } => "wgmma.wait_group",
        _ => "a wgmma",
    }
}
