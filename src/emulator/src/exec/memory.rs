//! Loads, stores and atomics: each byte checked, each request counted.

use super::context::{Context, Done, Run};
use crate::isa::op::MemoryOp;
use crate::isa::operand::{Addr, LANES, Lanes, Order, Rmw, Space, Src, Ty};
use crate::isa::space::PARAM_WINDOW;
use crate::machine::clock::{Clock, Touch, Who};
use crate::machine::flight::Where;
use crate::machine::memory::State;
use crate::machine::shadow::GRAIN;
use crate::machine::warp::{Warp, lanes};
use crate::numbers::rmw::{modify, modify_global};
use crate::report::finding::{Fault, Kind};

const BEYOND: &str = "out of bounds: beyond the parameters";

impl Context<'_> {
    /// Runs one for its lanes.
    #[inline]
    pub fn memory_op(&mut self, warp: &mut Warp, run: &Run<'_>, op: &MemoryOp) -> Done {
        match op {
            MemoryOp::Ld { space, ty, d, n, addr, order } => {
                self.load(warp, run, *space, *ty, &d[..*n as usize], addr, *order)
            }
            MemoryOp::St { space, ty, s, n, addr, order } => {
                self.store(warp, run, *space, *ty, &s[..*n as usize], addr, *order)
            }
            MemoryOp::Atom { space, ty, f, d, addr, s, order } => {
                self.atomic(warp, run, *space, *ty, *f, *d, addr, s, *order)
            }
        }
    }

    /// `ld`
    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        space: Space,
        ty: Ty,
        d: &[u32],
        addr: &Addr,
        order: Order,
    ) -> Done {
        let addresses = self.addresses(warp, run, addr)?;
        let bytes = ty.size() * d.len();
        let mut values = [[0u64; LANES]; 4];
        // A generic address of a parameter is the kernel's own.
        let first = addresses[run.exec.trailing_zeros() as usize & 31];
        let generic = space == Space::Generic && first >> 56 == PARAM_WINDOW >> 56;
        if space == Space::Param || generic {
            let base =
                if generic { 0usize.wrapping_sub(PARAM_WINDOW as usize) } else { run.frame.param as usize };
            for lane in lanes(run.exec) {
                let at = base.wrapping_add(addresses[lane] as usize).min(usize::MAX / 2);
                let Some(from) = warp.param[lane].get(at..at.saturating_add(bytes)) else {
                    return Err(self.fault(Kind::OutOfBounds, warp, lane, run.inst, BEYOND));
                };
                for (i, part) in from.chunks(ty.size()).enumerate() {
                    let mut word = [0; 8];
                    word[..part.len()].copy_from_slice(part);
                    values[i][lane] = u64::from_le_bytes(word);
                }
            }
        } else {
            self.count(space, run, &addresses, bytes);
            for lane in lanes(run.exec) {
                let read = self.read(warp, run, space, lane, addresses[lane], bytes, (order.strong, None));
                let Some((place, at)) = self.reported(read)? else { continue };
                let size = ty.size();
                let region = self.region(&mut warp.local, place);
                for (i, values) in values.iter_mut().enumerate().take(d.len()) {
                    values[lane] = region.get(at + i * size, size);
                }
                if order.strong {
                    self.acquire(warp, place, at, order.acquire);
                }
            }
        }
        for (d, values) in d.iter().zip(&mut values) {
            if ty.signed() {
                let shift = 64 - 8 * ty.size() as u32;
                values.iter_mut().for_each(|v| *v = ((*v << shift) as i64 >> shift) as u64);
            }
            warp.put(run.frame, *d, run.exec, values, run.exec);
        }
        Ok(())
    }

    /// Checks one lane's read and gives its place; it goes on until the agent's time, where there is one.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn read(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        space: Space,
        lane: usize,
        address: u64,
        bytes: usize,
        (strong, agent): (bool, Option<(u32, u32)>),
    ) -> Result<(Where, usize), Box<Fault>> {
        let found = self.find(space, lane, address);
        let (place, offset) = found.map_err(|what| self.bad(warp, lane, run.inst, what))?;
        let region = self.region(&mut warp.local, place);
        let at = match region.plain(offset, bytes, false) {
            Some(at) => at,
            None => {
                let found = region.place(offset, bytes, false);
                let at = found.map_err(|bad| self.misplaced(warp, lane, run.inst, (place, offset), bad))?;
                if let Err(bad) = self.region(&mut warp.local, place).readable(at, bytes) {
                    let fault = self.lacking(warp, lane, run.inst, (place, offset, bytes), bad);
                    self.report(fault)?;
                }
                at
            }
        };
        if matches!(place, Where::Local(_)) {
            return Ok((place, at));
        }
        if self.before.is_some() {
            self.not_before(warp, run, lane, (place, at), bytes, false)?;
        }
        let who = Who { agent, ..warp.who(lane, run.pc, strong) };
        let region = self.region(&mut [], place);
        let race = if region.constant { None } else { region.races.read(at, bytes, &who) };
        if let Some(other) = race {
            region.races.note(at, bytes, &who, false);
            self.report(self.race(warp, lane, run, (place, at), false, other))?;
        }
        Ok((place, at))
    }

    /// Checks the first lanes' reads of 16 bytes while nothing can be wrong with them and they are in one place; gives those
    /// lanes and where they read. The rest are [`Context::read`]'s. `agent` as there, by lane.
    pub fn read_lanes(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        (space, exec): (Space, u32),
        addresses: &Lanes,
        agent: impl Fn(usize) -> Option<(u32, u32)>,
    ) -> (u32, Where, [usize; LANES]) {
        let (mut done, mut places, first) = (0, [0; LANES], exec.trailing_zeros() as usize & 31);
        let Ok((place, offset)) = self.find(space, first, addresses[first]) else {
            return (0, Where::Local(0), places);
        };
        if matches!(place, Where::Local(_)) {
            return (0, place, places);
        }
        let (region, mut harmless) = (self.region(&mut [], place), Touch::default());
        for lane in lanes(exec) {
            // What is within the same place has the same beginning.
            let offset = offset.wrapping_add(addresses[lane].wrapping_sub(addresses[first]) as i64);
            let who = Who { agent: agent(lane), ..warp.who(lane, run.pc, false) };
            let Some(at) = region.plain(offset, GRAIN, false) else { break };
            if region.constant || !region.races.read_lane(at, &who, &mut harmless) {
                break;
            }
            (done, places[lane]) = (done | 1 << lane, at);
        }
        (done, place, places)
    }

    /// Checks one lane's write and gives its place.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn write(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        space: Space,
        lane: usize,
        address: u64,
        new: &[u8],
        strong: bool,
    ) -> Result<(Where, usize), Box<Fault>> {
        let found = self.find(space, lane, address);
        let (place, offset) = found.map_err(|what| self.bad(warp, lane, run.inst, what))?;
        let region = self.region(&mut warp.local, place);
        let bytes = new.len();
        let at = match region.plain(offset, bytes, true) {
            Some(at) => at,
            None => {
                let found = region.place(offset, bytes, true);
                let at = found.map_err(|bad| self.misplaced(warp, lane, run.inst, (place, offset), bad))?;
                if let Err(bad) = self.region(&mut warp.local, place).writable(at, bytes) {
                    self.report(self.bad(warp, lane, run.inst, bad))?;
                }
                at
            }
        };
        if matches!(place, Where::Local(_)) {
            return Ok((place, at));
        }
        if self.before.is_some() {
            self.not_before(warp, run, lane, (place, at), bytes, true)?;
        }
        let who = warp.who(lane, run.pc, strong);
        let region = self.region(&mut [], place);
        let mut race = region.races.write(at, bytes, &who, false);
        // Bytes that keep their values race with no other write of them; few races ask for that.
        if race.is_some() && region.data[at..at + bytes] == *new && region.all(at, bytes, State::Written) {
            race = region.races.write(at, bytes, &who, true);
        }
        if let Some(other) = race {
            region.races.note(at, bytes, &who, true);
            self.report(self.race(warp, lane, run, (place, at), true, other))?;
        }
        Ok((place, at))
    }

    /// `st`
    #[allow(clippy::too_many_arguments)]
    fn store(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        space: Space,
        ty: Ty,
        s: &[Src],
        addr: &Addr,
        order: Order,
    ) -> Done {
        self.known(warp, run, s, "it stores")?;
        let addresses = self.addresses(warp, run, addr)?;
        let (size, bytes) = (ty.size(), ty.size() * s.len());
        let mut values = [[0u64; LANES]; 4];
        for (values, s) in values.iter_mut().zip(s) {
            *values = warp.get(run.frame, *s, &self.module.consts);
        }
        if space != Space::Param {
            self.count(space, run, &addresses, bytes);
        }
        for lane in lanes(run.exec) {
            let mut new = [0u8; 16];
            for (i, values) in values.iter().enumerate().take(s.len()) {
                new[i * size..(i + 1) * size].copy_from_slice(&values[lane].to_le_bytes()[..size]);
            }
            let new = &new[..bytes];
            if space == Space::Param {
                let at = (run.frame.param as usize).saturating_add(addresses[lane] as usize);
                match warp.param[lane].get_mut(at..at.saturating_add(bytes)) {
                    Some(to) => to.copy_from_slice(new),
                    None => return Err(self.fault(Kind::OutOfBounds, warp, lane, run.inst, BEYOND)),
                }
                continue;
            }
            let wrote = self.write(warp, run, space, lane, addresses[lane], new, order.strong);
            let Some((place, at)) = self.reported(wrote)? else { continue };
            let region = self.region(&mut warp.local, place);
            region.data[at..at + bytes].copy_from_slice(new);
            region.state[at..at + bytes].fill(State::Written);
            if order.strong {
                self.release(warp, place, at, order.release);
            }
        }
        Ok(())
    }

    /// `atom` and `red`: lanes in rising order.
    #[allow(clippy::too_many_arguments)]
    fn atomic(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        space: Space,
        ty: Ty,
        f: Rmw,
        d: u32,
        addr: &Addr,
        s: &[Src; 2],
        order: Order,
    ) -> Done {
        self.known(warp, run, s, "it stores")?;
        let addresses = self.addresses(warp, run, addr)?;
        let [b, c] = s.map(|s| warp.get(run.frame, s, &self.module.consts));
        let bytes = ty.size();
        self.count(space, run, &addresses, bytes);
        let mut old = [0; LANES];
        for lane in lanes(run.exec) {
            let read = self.read(warp, run, space, lane, addresses[lane], bytes, (true, None));
            let Some((place, at)) = self.reported(read)? else { continue };
            old[lane] = self.region(&mut warp.local, place).get(at, bytes);
            self.acquire(warp, place, at, order.acquire);
            let modify = if matches!(place, Where::Global(_)) { modify_global } else { modify };
            let new = modify(f, ty, old[lane], b[lane], c[lane]);
            self.write(warp, run, space, lane, addresses[lane], &new.to_le_bytes()[..bytes], true)?;
            self.region(&mut warp.local, place).set(at, bytes, new);
            self.release(warp, place, at, order.release);
        }
        warp.put(run.frame, d, run.exec, &old, run.exec);
        Ok(())
    }

    fn acquire(&mut self, warp: &mut Warp, place: Where, at: usize, now: bool) {
        let region = self.region(&mut warp.local, place);
        let Some(clock) = region.released.get(&at) else { return };
        if now {
            warp.clock.join(clock);
        } else {
            let block = warp.clock.block;
            warp.pending.get_or_insert_with(|| Box::new(Clock::blank(block))).join(clock);
        }
    }

    fn release(&mut self, warp: &mut Warp, place: Where, at: usize, now: bool) {
        warp.share_waits();
        let clock = match (&warp.released, now) {
            (_, true) => warp.clock.clone(),
            (Some(released), false) => (**released).clone(),
            (None, false) => return,
        };
        if now {
            warp.clock.own[warp.index as usize] += 1;
        }
        let region = self.region(&mut warp.local, place);
        region.released.entry(at).or_insert_with(|| clock.clone()).join(&clock);
    }
}
