//! Loads, stores and atomics: each byte checked, each request counted.

use super::context::{Context, Done, Run, near};
use crate::isa::op::MemoryOp;
use crate::isa::operand::{Addr, LANES, Lanes, Order, Rmw, Space, Src, Ty, lanes};
use crate::isa::space::PARAM_WINDOW;
use crate::machine::clock::{Clock, Touch, Who};
use crate::machine::flight::Where;
use crate::machine::memory::State;
use crate::machine::predecessor::PREDECESSOR;
use crate::machine::shadow::{GRAIN, PAGE};
use crate::machine::warp::Warp;
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
        // A generic address of a parameter is the kernel's own.
        let first = addresses[run.exec.trailing_zeros() as usize & 31];
        let generic = space == Space::Generic && first >> 56 == PARAM_WINDOW >> 56;
        let mut checked = (0, Where::Local(0), [0; LANES]);
        if space != Space::Param && !generic {
            self.count(space, run, &addresses, bytes);
            if !order.strong {
                checked = self.read_lanes(warp, run, (space, run.exec), (&addresses, bytes), None);
            }
        }
        let (done, place, places) = checked;
        if done == run.exec {
            // Mostly nothing is wrong with any of them.
            for (i, d) in d.iter().enumerate() {
                let mut values = [0; LANES];
                let data = &self.region(&mut [], place).data;
                gather(data, (done, &places), (i * ty.size(), ty.size()), &mut values);
                extend(ty, &mut values);
                warp.put(run.frame, *d, run.exec, &values, run.exec);
            }
            return Ok(());
        }
        let mut values = [[0u64; LANES]; 4];
        if space == Space::Param || generic {
            let base =
                if generic { 0usize.wrapping_sub(PARAM_WINDOW as usize) } else { run.frame.param as usize };
            self.parameters(warp, run, (base, &addresses), (ty.size(), bytes), &mut values)?;
        } else {
            if done != 0 {
                let data = &self.region(&mut [], place).data;
                for (i, values) in values.iter_mut().enumerate().take(d.len()) {
                    gather(data, (done, &places), (i * ty.size(), ty.size()), values);
                }
            }
            for lane in lanes(run.exec & !done) {
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
            extend(ty, values);
            warp.put(run.frame, *d, run.exec, values, run.exec);
        }
        Ok(())
    }

    /// Numbers of `size` bytes out of the param space.
    fn parameters(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        (base, addresses): (usize, &Lanes),
        (size, bytes): (usize, usize),
        values: &mut [Lanes; 4],
    ) -> Done {
        for lane in lanes(run.exec) {
            let at = base.wrapping_add(addresses[lane] as usize).min(usize::MAX / 2);
            let Some(from) = warp.param[lane].get(at..at.saturating_add(bytes)) else {
                return Err(self.fault(Kind::OutOfBounds, warp, lane, run.inst, BEYOND));
            };
            for (i, part) in from.chunks(size).enumerate() {
                let mut word = [0; 8];
                word[..part.len()].copy_from_slice(part);
                values[i][lane] = u64::from_le_bytes(word);
            }
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

    /// Checks the first lanes' reads of so many bytes, a power of two up to 16, while nothing can be wrong with them and they
    /// are in one place; gives those lanes and where they read. The rest are [`Context::read`]'s. `agent` as there.
    pub fn read_lanes(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        (space, exec): (Space, u32),
        (addresses, bytes): (&Lanes, usize),
        agent: Option<(u32, u32)>,
    ) -> (u32, Where, [usize; LANES]) {
        let (mut done, mut places, first) = (0, [0; LANES], exec.trailing_zeros() as usize & 31);
        let Some((place, offset)) = self.one_place(warp, space, (first, addresses[first])) else {
            return (0, Where::Local(0), places);
        };
        let (region, mut harmless) = (self.region(&mut [], place), Touch::default());
        if bytes == GRAIN {
            near(offset, (addresses, first), &mut places);
            let who = Who { agent, ..warp.who(0, run.pc, false) };
            return (region.read_by_lanes(exec, &places, who), place, places);
        }
        for (lane, n) in runs(exec, (addresses, bytes), offset) {
            // What is within the same place has the same beginning.
            let offset = offset.wrapping_add(addresses[lane].wrapping_sub(addresses[first]) as i64);
            let who = Who { agent, ..warp.who(lane, run.pc, false) };
            let Some(at) = region.plain_run(offset, (n, bytes), false) else { break };
            let good = match region.constant {
                true => n,
                false => region.races.read_lanes(at, (n, bytes), who, &mut harmless),
            };
            for i in 0..good {
                (done, places[lane + i]) = (done | 1 << (lane + i), at + i * bytes);
            }
            if good < n {
                break;
            }
        }
        (done, place, places)
    }

    /// The same for writes, whose bytes are in that state from then on; the rest are [`Context::write`]'s.
    pub fn write_lanes(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        space: Space,
        (addresses, bytes): (&Lanes, usize),
        state: State,
    ) -> (u32, Where, [usize; LANES]) {
        let (mut done, mut places, first) = (0, [0; LANES], run.exec.trailing_zeros() as usize & 31);
        let Some((place, offset)) = self.one_place(warp, space, (first, addresses[first])) else {
            return (0, Where::Local(0), places);
        };
        let region = self.region(&mut [], place);
        if bytes == GRAIN {
            near(offset, (addresses, first), &mut places);
            let who = warp.who(0, run.pc, false);
            return (region.write_by_lanes(run.exec, &places, who, state), place, places);
        }
        for (lane, n) in runs(run.exec, (addresses, bytes), offset) {
            let offset = offset.wrapping_add(addresses[lane].wrapping_sub(addresses[first]) as i64);
            let Some(at) = region.plain_run(offset, (n, bytes), true) else { break };
            let good = region.races.write_lanes(at, (n, bytes), warp.who(lane, run.pc, false));
            region.mark(at, good * bytes, state);
            for i in 0..good {
                (done, places[lane + i]) = (done | 1 << (lane + i), at + i * bytes);
            }
            if good < n {
                break;
            }
        }
        (done, place, places)
    }

    /// The place of a lane's address, where others of its warp are mostly near to it; none where each is looked at by itself.
    fn one_place(&self, warp: &Warp, space: Space, (lane, address): (usize, u64)) -> Option<(Where, i64)> {
        let (place, offset) = self.find(space, lane, address).ok()?;
        let apart = match place {
            Where::Local(_) => true,
            Where::Global(_) => self.before.is_some() && !warp.clock.knows(PREDECESSOR, 1),
            Where::Shared(_) => false,
        };
        (!apart).then_some((place, offset))
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
        if space != Space::Param {
            self.count(space, run, &addresses, bytes);
        }
        let (done, place, places) = match space == Space::Param || order.strong {
            true => (0, Where::Local(0), [0; LANES]),
            false => self.write_lanes(warp, run, space, (&addresses, bytes), State::Written),
        };
        if done != 0 {
            let consts = &self.module.consts;
            let data = &mut self.region(&mut [], place).data;
            for (i, s) in s.iter().enumerate() {
                scatter(data, (done, &places), (i * size, size), warp.look(run.frame, *s, consts));
            }
        }
        if done == run.exec {
            return Ok(());
        }
        let mut values = [[0u64; LANES]; 4];
        for (values, s) in values.iter_mut().zip(s) {
            *values = warp.get(run.frame, *s, &self.module.consts);
        }
        for lane in lanes(run.exec & !done) {
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

/// The lanes of a mask as neighbours whose bytes lie one behind the other in a page, where the first one's place is `offset`:
/// the first of them and their number.
fn runs(exec: u32, (addresses, bytes): (&Lanes, usize), offset: i64) -> impl Iterator<Item = (usize, usize)> {
    let start = addresses[exec.trailing_zeros() as usize & 31];
    let mut rest = exec;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros() as usize;
        if rest == 0 {
            return None;
        }
        let at = offset.wrapping_add(addresses[lane].wrapping_sub(start) as i64) as usize;
        let room = (PAGE - at % PAGE) >> bytes.trailing_zeros();
        let (mut n, mut next) = (1, addresses[lane].wrapping_add(bytes as u64));
        while n < room
            && rest.checked_shr((lane + n) as u32).is_some_and(|r| r & 1 == 1)
            && addresses[lane + n] == next
        {
            (n, next) = (n + 1, next.wrapping_add(bytes as u64));
        }
        rest &= !((((1u64 << n) - 1) << lane) as u32);
        Some((lane, n))
    })
}

/// Signs go up to a register's end.
fn extend(ty: Ty, values: &mut Lanes) {
    if ty.signed() {
        let shift = 64 - 8 * ty.size() as u32;
        values.iter_mut().for_each(|v| *v = ((*v << shift) as i64 >> shift) as u64);
    }
}

/// Lanes' numbers of `size` bytes, so far behind their places.
fn gather(
    data: &[u8],
    (lanes_of, places): (u32, &[usize; LANES]),
    (from, size): (usize, usize),
    to: &mut Lanes,
) {
    fn each<const N: usize>(data: &[u8], of: (u32, &[usize; LANES]), from: usize, to: &mut Lanes) {
        for lane in lanes(of.0) {
            let mut word = [0; 8];
            word[..N].copy_from_slice(&data[of.1[lane] + from..][..N]);
            to[lane] = u64::from_le_bytes(word);
        }
    }
    match size {
        1 => each::<1>(data, (lanes_of, places), from, to),
        2 => each::<2>(data, (lanes_of, places), from, to),
        4 => each::<4>(data, (lanes_of, places), from, to),
        _ => each::<8>(data, (lanes_of, places), from, to),
    }
}

/// The reverse.
fn scatter(
    data: &mut [u8],
    (lanes_of, places): (u32, &[usize; LANES]),
    (from, size): (usize, usize),
    of: &Lanes,
) {
    fn each<const N: usize>(data: &mut [u8], to: (u32, &[usize; LANES]), from: usize, of: &Lanes) {
        for lane in lanes(to.0) {
            data[to.1[lane] + from..][..N].copy_from_slice(&of[lane].to_le_bytes()[..N]);
        }
    }
    match size {
        1 => each::<1>(data, (lanes_of, places), from, of),
        2 => each::<2>(data, (lanes_of, places), from, of),
        4 => each::<4>(data, (lanes_of, places), from, of),
        _ => each::<8>(data, (lanes_of, places), from, of),
    }
}
