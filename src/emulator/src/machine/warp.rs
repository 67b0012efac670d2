//! A warp: registers, lanes that go their own ways, and the choice of who runs next.
//!
//! Each lane has its program counter. Those at the lowest counter of the deepest call run together until others
//! are met: the compiler lays blocks out so that this reconverges where the sources do, and it needs no analysis
//! that could be wrong. A group that jumps backwards again and again while others of its warp could run is put behind
//! them once: the hardware promises every lane progress.

use super::clock::{Clock, Who};
use super::cluster::Beside;
use super::copies::WarpCopies;
use super::frame::{Frame, Group};
use super::memory::{Region, State};
use super::partings::Partings;
use super::products::Products;
use crate::isa::module::{Function, NOWHERE};
use crate::isa::operand::{LANES, Lanes, NONE, Pred, Src, lanes};
use crate::isa::space::{GUARD, MOST};
use std::cell::RefCell;

/// Bytes of local memory that all functions of a lane may have together: about as many as one of them.
const MOST_LOCAL: u32 = (MOST as u32) + (GUARD as u32);

/// 32 lanes.
#[derive(Clone, Debug)]
pub struct Warp {
    /// Number in the block.
    pub index: u32,
    /// General registers of all frames.
    pub registers: Vec<Lanes>,
    /// Lanes for which they have a value.
    pub defined: Vec<u32>,
    /// Predicates.
    pub predicates: Vec<u32>,
    /// Lanes for which those have a value.
    pub predicates_defined: Vec<u32>,
    /// Addresses of all frames' local variables.
    pub locals: Vec<Lanes>,
    /// Special registers and addresses.
    pub env: Vec<Lanes>,
    /// Program counters.
    pub pc: [u32; LANES],
    /// Call stacks.
    pub frames: Vec<Vec<Frame>>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Lanes that there were.
    pub all: u32,
    /// Lanes that wait for others of their warp.
    pub parked: u32,
    /// Lanes that wait at a barrier of the block.
    pub waiting: u32,
    /// Param space, by lane.
    pub param: Vec<Vec<u8>>,
    /// Local memory, by lane.
    pub local: Vec<Region>,
    /// The carry flag.
    pub carry: u32,
    /// What it knows.
    pub clock: Clock,
    /// Its time at the last warp-wide synchronisation.
    pub floor: u32,
    /// What its last fence released.
    pub released: Option<Box<Clock>>,
    /// What it has read, and the next fence acquires.
    pub pending: Option<Box<Clock>>,
    /// What those of its block had read with strength, without a fence since, who came to a barrier with it.
    pub flags: Option<Box<Clock>>,
    /// `cp.async` that it has not waited for.
    pub copies: WarpCopies,
    /// Its asynchronous matrix products.
    pub products: Products,
    /// Branches that have parted its lanes.
    pub partings: Partings,
    /// Its part in what goes on beside the warps.
    pub beside: Beside,
    /// Backward jumps since others of the warp ran.
    pub impatience: u32,
    /// Whether any lane has ever called a function.
    pub calls: bool,
}

impl Warp {
    /// What these lanes may tell others: all that the warp knows if they are all that is left of it.
    pub fn publishes(&self, lanes: u32) -> std::borrow::Cow<'_, Clock> {
        match lanes == self.live {
            true => std::borrow::Cow::Borrowed(&self.clock),
            false => std::borrow::Cow::Owned(self.clock.part(self.index, lanes, self.floor)),
        }
    }

    /// A lane's thread in the block.
    #[inline]
    pub fn thread(&self, lane: usize) -> u32 {
        self.index * LANES as u32 + lane as u32
    }

    /// Who a lane is that accesses memory by an instruction.
    #[inline]
    pub fn who(&self, lane: usize, pc: u32, strong: bool) -> Who<'_> {
        Who {
            clock: &self.clock,
            waited: &self.beside.waited,
            floor: self.floor,
            thread: self.thread(lane),
            pc,
            strong,
            agent: None,
        }
    }

    /// A lane has waited for an agent, up to this time of it.
    pub fn waited(&mut self, lane: usize, agent: u32, time: u32) {
        if self.live == 1 << lane {
            self.clock.heard(agent, time);
        } else if !self.clock.knows(agent, time) {
            let entry = (self.thread(lane), agent, time);
            self.beside.waited.retain(|w| (w.0, w.1) != (entry.0, agent));
            self.beside.waited.push(entry);
        }
    }

    /// Something orders lanes: what single ones have waited for is known to all.
    pub fn share_waits(&mut self) {
        for (_, agent, time) in std::mem::take(&mut self.beside.waited) {
            self.clock.heard(agent, time);
        }
    }

    /// The values of a source.
    #[inline]
    pub fn get(&self, frame: &Frame, s: Src, consts: &[Lanes]) -> Lanes {
        *self.look(frame, s, consts)
    }

    /// The same, borrowed.
    #[inline]
    pub fn look<'a>(&'a self, frame: &Frame, s: Src, consts: &'a [Lanes]) -> &'a Lanes {
        match s {
            Src::Reg(r) => &self.registers[(frame.registers + r) as usize],
            Src::Const(c) => &consts[c as usize],
            Src::Env(e) => &self.env[e as usize],
            Src::Local(v) => &self.locals[(frame.locals + v) as usize],
        }
    }

    /// Lanes for which a source has a value.
    #[inline]
    pub fn known(&self, frame: &Frame, s: Src) -> u32 {
        match s {
            Src::Reg(r) => self.defined[(frame.registers + r) as usize],
            Src::Const(_) | Src::Env(_) | Src::Local(_) => !0,
        }
    }

    /// Writes the lanes of `mask`.
    #[inline]
    pub fn put(&mut self, frame: &Frame, d: u32, mask: u32, values: &Lanes, known: u32) {
        if d == NONE {
            return;
        }
        let slot = (frame.registers + d) as usize;
        let register = &mut self.registers[slot];
        if mask == !0 {
            *register = *values;
        } else {
            // Of lanes that it has never been written for, an earlier warp's values may be left.
            if self.defined[slot] == 0 {
                *register = [0; LANES];
            }
            for lane in 0..LANES {
                let keep = (mask >> lane & 1).wrapping_sub(1) as i32 as i64 as u64;
                register[lane] = register[lane] & keep | values[lane] & !keep;
            }
        }
        self.defined[slot] = self.defined[slot] & !mask | known & mask;
    }

    /// A predicate's lanes, and those for which it has a value.
    #[inline]
    pub fn predicate(&self, frame: &Frame, p: Pred) -> (u32, u32) {
        match p {
            Pred::Const(true) => (!0, !0),
            Pred::Const(false) => (0, !0),
            Pred::Env(e) => {
                (lanes(!0).filter(|l| self.env[e as usize][*l] != 0).fold(0, |m, l| m | 1 << l), !0)
            }
            Pred::Reg(slot, not) => {
                let slot = (frame.predicates + slot) as usize;
                let value = self.predicates[slot];
                (if not { !value } else { value }, self.predicates_defined[slot])
            }
        }
    }

    /// Writes a predicate.
    #[inline]
    pub fn put_predicate(&mut self, frame: &Frame, p: u32, mask: u32, value: u32, known: u32) {
        if p == NONE {
            return;
        }
        let slot = (frame.predicates + p) as usize;
        self.predicates[slot] = self.predicates[slot] & !mask | value & mask;
        self.predicates_defined[slot] = self.predicates_defined[slot] & !mask | known & mask;
    }

    /// Who runs next, unless all wait.
    pub fn choose(&mut self) -> Option<Group> {
        let runnable = self.live & !self.parked & !self.waiting;
        if runnable == 0 {
            return None;
        }
        // Mostly all of them are at one place.
        let first = runnable.trailing_zeros() as usize;
        let pc = self.pc[first];
        if !self.calls && self.pc.iter().enumerate().all(|(l, at)| runnable >> l & 1 == 0 || *at == pc) {
            self.impatience = if self.impatience < 64 { self.impatience } else { 0 };
            return Some(Group { mask: runnable, pc, stop: u32::MAX, frame: *self.frames[first].last()? });
        }
        let patient = self.impatience < 64;
        // Deeper calls first, so that callers wait for them where they met.
        let key = |lane: usize| (u32::MAX - self.frames[lane].len() as u32, self.pc[lane]);
        let lanes = || lanes(runnable);
        let first = if patient { lanes().min_by_key(|l| key(*l)) } else { lanes().max_by_key(|l| key(*l)) }?;
        let frame = *self.frames[first].last()?;
        let (mut mask, mut stop) = (0, u32::MAX);
        for lane in lanes() {
            if key(lane) == key(first) && self.frames[lane].last() == Some(&frame) {
                mask |= 1 << lane;
            } else if self.frames[lane].len() == self.frames[first].len() {
                stop = stop.min(self.pc[lane]);
            }
        }
        if !patient {
            self.impatience = 0;
            stop = u32::MAX;
        }
        Some(Group { mask, pc: self.pc[first], stop, frame })
    }

    /// Sets the counters of some lanes.
    pub fn go(&mut self, mask: u32, pc: u32) {
        lanes(mask).for_each(|l| self.pc[l] = pc);
    }

    /// Of lanes that are at a branch, some go one way. Of ways that never join nothing is known.
    pub fn part(&mut self, branch: (u32, u32), some: u32, all: u32) {
        if branch.1 == NOWHERE {
            return;
        }
        let depth = self.frames[all.trailing_zeros() as usize & 31].len();
        self.partings.part(branch, depth, some, all);
    }

    /// Lanes come to where branches join.
    pub fn join(&mut self, lanes: u32, pc: u32) {
        let depth = self.frames[lanes.trailing_zeros() as usize & 31].len();
        self.partings.join(lanes, pc, depth);
    }

    /// Makes room for a function above `frame` (or at the bottom) and enters it.
    pub fn enter(
        &mut self,
        mask: u32,
        under: Option<(Frame, &Function)>,
        index: u32,
        to: &Function,
        back: u32,
    ) -> bool {
        let frame = under.map_or(Frame { function: index, back, ..Frame::default() }, |(f, from)| Frame {
            registers: f.registers + from.registers,
            predicates: f.predicates + from.predicates,
            param: f.param + from.param_bytes.next_multiple_of(16),
            local: f.local + from.local_bytes.next_multiple_of(16),
            locals: f.locals + from.locals.len() as u32,
            function: index,
            back,
        });
        let registers = (frame.registers + to.registers) as usize;
        let predicates = (frame.predicates + to.predicates) as usize;
        let (local, locals) = (frame.local + to.local_bytes, frame.locals as usize + to.locals.len());
        if registers > 1 << 17 || local > MOST_LOCAL || lanes(mask).any(|l| self.frames[l].len() > 255) {
            return false;
        }
        self.calls |= under.is_some();
        if self.registers.len() < registers {
            // What they hold from before nobody can tell: nothing is known of them.
            if self.registers.is_empty() {
                self.registers = LEFT.with_borrow_mut(|left| left.take(registers));
            }
            self.registers.resize(registers, [0; LANES]);
            self.defined.resize(registers, 0);
        }
        if self.predicates.len() < predicates {
            self.predicates.resize(predicates, 0);
            self.predicates_defined.resize(predicates, 0);
        }
        if self.locals.len() < locals {
            self.locals.resize(locals, [0; LANES]);
        }
        // A function starts with registers of which nothing is known.
        self.defined[frame.registers as usize..registers].iter_mut().for_each(|d| *d &= !mask);
        self.predicates_defined[frame.predicates as usize..predicates].iter_mut().for_each(|d| *d &= !mask);
        for lane in lanes(mask) {
            self.frames[lane].push(frame);
            self.pc[lane] = to.start;
            let param = (frame.param + to.param_bytes) as usize;
            if self.param[lane].len() < param {
                self.param[lane].resize(param, 0);
            }
            let local = &mut self.local[lane];
            let end = (frame.local + to.local_bytes) as usize;
            if local.data.len() < end {
                local.data.resize(end, 0xa5);
                local.state.resize(end, State::Guard);
            }
            local.mark(frame.local as usize, to.local_bytes as usize, State::Guard);
            for (address, variable) in self.locals[frame.locals as usize..].iter_mut().zip(&to.locals) {
                let at = frame.local as usize + variable.offset;
                address[lane] = at as u64;
                local.mark(at, variable.size, State::Unwritten);
            }
        }
        true
    }
}

/// Registers that warps which have left may pass on, in a thread: 64 MiB.
const PASSED: usize = 1 << 18;

/// Registers of warps that have left, for those that come: the system takes its time to give memory, and zeros to fill it.
struct Left {
    lists: Vec<Vec<Lanes>>,
    sum: usize,
}

thread_local! {
    static LEFT: RefCell<Left> = const { RefCell::new(Left { lists: Vec::new(), sum: 0 }) };
}

impl Left {
    /// A list of at most so many, where there is one.
    fn take(&mut self, most: usize) -> Vec<Lanes> {
        let mut list = self.lists.pop().unwrap_or_default();
        self.sum -= list.len();
        list.truncate(most);
        list
    }

    fn put(&mut self, list: Vec<Lanes>) {
        if !list.is_empty() && self.sum + list.len() <= PASSED {
            self.sum += list.len();
            self.lists.push(list);
        }
    }
}

impl Drop for Warp {
    fn drop(&mut self) {
        let registers = std::mem::take(&mut self.registers);
        // A thread that ends has no list any more.
        let _ = LEFT.try_with(|left| left.borrow_mut().put(registers));
    }
}
