//! Loads, stores and atomics; what every access goes through: each byte checked, each request counted.

use super::memory::{LOCAL_WINDOW, PARAM_WINDOW, Region, SHARED_WINDOW, State};
use super::ptx::{Addr, Inst, LANES, Lanes, Order, Rmw, Space, Src, Ty};
use super::race::{Touch, Who};
use super::report::{Bad, Fault, Kind, other_access, raced, spelled};
use super::rmw::{modify, modify_global};
use super::step::Context;
use super::warp::{Frame, Warp, lanes};

const BEYOND: &str = "out of bounds: beyond the parameters";

/// Nothing, or a finding.
pub type Done = Result<(), Box<Fault>>;

/// An instruction on its way: where, in whose storage, for which lanes.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The function's storage.
    pub frame: &'a Frame,
    /// The instruction and its number.
    pub inst: &'a Inst,
    /// Its number.
    pub pc: u32,
    /// The lanes that run it.
    pub exec: u32,
}

/// Which region an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// An allocation.
    Global(usize),
    /// A block's, by its rank in the cluster.
    Shared(usize),
    /// A lane's.
    Local(usize),
}

impl Context<'_> {
    /// The region that an address is in, and the place in it.
    pub fn find(&self, space: Space, lane: usize, address: u64) -> Result<(Where, i64), Bad> {
        let offset = (address & 0xffff_ffff) as u32 as i32 as i64;
        match space {
            Space::Shared => self.own_shared(address),
            Space::Cluster => self.any_shared(address),
            Space::Local => Ok((Where::Local(lane), offset)),
            Space::Generic if address >> 56 == SHARED_WINDOW >> 56 => self.any_shared(offset as u32 as u64),
            Space::Generic if address >> 56 == LOCAL_WINDOW >> 56 => Ok((Where::Local(lane), offset)),
            _ => match self.memory.find(address) {
                Some((region, offset)) => Ok((Where::Global(region), offset)),
                None => {
                    Err((Kind::Access, format!("out of bounds: address {address:#x} is in no allocation")))
                }
            },
        }
    }

    /// The region itself.
    pub fn region<'a>(&'a mut self, local: &'a mut [Region], place: Where) -> &'a mut Region {
        match place {
            Where::Global(i) => &mut self.memory.regions[i],
            Where::Shared(rank) => &mut self.cluster.shared[rank],
            Where::Local(lane) => &mut local[lane],
        }
    }

    /// A finding about one lane.
    pub fn fault(
        &self,
        kind: Kind,
        warp: &Warp,
        lane: usize,
        inst: &Inst,
        what: impl Into<String>,
    ) -> Box<Fault> {
        Fault::new(kind, self.module, inst, self.at(warp.index * LANES as u32 + lane as u32), what)
    }

    /// A finding about an access.
    pub fn bad(&self, warp: &Warp, lane: usize, inst: &Inst, (kind, what): Bad) -> Box<Fault> {
        self.fault(kind, warp, lane, inst, what)
    }

    /// A finding about a read, and which byte it found without a value.
    pub fn lacking(
        &mut self,
        warp: &Warp,
        lane: usize,
        inst: &Inst,
        (place, at, bytes): (Where, i64, usize),
        bad: Bad,
    ) -> Box<Fault> {
        let mut fault = self.bad(warp, lane, inst, bad);
        if let (Where::Global(region), Kind::Uninitialised) = (place, fault.kind) {
            fault.lacks = self.memory.regions[region].unwritten(at, bytes).map(|at| (region, at));
        }
        fault
    }

    /// A finding with two sides.
    pub fn race(
        &self,
        warp: &Warp,
        lane: usize,
        run: &Run<'_>,
        place: (Where, usize),
        write: bool,
        other: Touch,
    ) -> Box<Fault> {
        let name = match place.0 {
            Where::Global(i) => &self.memory.regions[i].name,
            Where::Shared(rank) => &self.cluster.shared[rank].name,
            Where::Local(_) => "local memory",
        };
        self.fault(Kind::Race, warp, lane, run.inst, raced(write, name, place.1))
            .and(other_access(&self.spelled(other)))
    }

    /// Where an access was, and whose.
    pub fn spelled(&self, touch: Touch) -> String {
        spelled(self.module, self.extents, self.agents, touch)
    }

    /// The lanes' addresses, which must have values.
    pub fn addresses(&self, warp: &Warp, run: &Run<'_>, addr: &Addr) -> Result<Lanes, Box<Fault>> {
        self.known(warp, run, &[addr.base], "the address is")?;
        Ok(warp.get(run.frame, addr.base, &self.module.consts).map(|a| a.wrapping_add(addr.offset as u64)))
    }

    /// The lanes' values of what must have some: the words say for what.
    pub fn known(&self, warp: &Warp, run: &Run<'_>, sources: &[Src], what: &str) -> Done {
        for s in sources {
            let unknown = run.exec & !warp.known(run.frame, *s);
            if unknown != 0 {
                let lane = unknown.trailing_zeros() as usize;
                let what = format!("uninitialised: {what} a register that nothing has written");
                return Err(self.fault(Kind::Uninitialised, warp, lane, run.inst, what));
            }
        }
        Ok(())
    }

    /// Counts one warp request: `bytes` for each lane of `exec`.
    pub fn count(&mut self, space: Space, run: &Run<'_>, addresses: &Lanes, bytes: usize) {
        let first = addresses[run.exec.trailing_zeros() as usize & 31];
        let window = first >> 56;
        let shared = matches!(space, Space::Shared | Space::Cluster)
            || space == Space::Generic && window == SHARED_WINDOW >> 56;
        let global =
            matches!(space, Space::Global | Space::Generic) && !shared && window != LOCAL_WINDOW >> 56;
        let count = &mut self.counts[run.pc as usize];
        if global {
            let mut sectors = [0; LANES];
            let mut n = 0;
            for lane in lanes(run.exec) {
                sectors[n] = addresses[lane] >> 5;
                n += 1;
            }
            if !sectors[..n].is_sorted() {
                sectors[..n].sort_unstable();
            }
            let distinct = 1 + sectors[..n].windows(2).filter(|w| w[0] != w[1]).count() as u64;
            count.requests += 1;
            count.sectors += distinct;
            count.bytes += (n * bytes) as u64;
        } else if shared {
            let (passes, least) = wavefronts(addresses, run.exec, bytes);
            count.wavefronts += passes;
            count.conflicts += passes - least;
        }
    }

    /// `ld`
    #[allow(clippy::too_many_arguments)]
    pub fn load(
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
                    return Err(self.fault(Kind::Access, warp, lane, run.inst, BEYOND));
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
                let (place, at) =
                    self.read(warp, run, space, lane, addresses[lane], bytes, (order.strong, None))?;
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
            Some(at) => Ok(at),
            None => region.place(offset, bytes, false).and_then(|at| region.readable(at, bytes).map(|()| at)),
        };
        let at = at.map_err(|bad| self.lacking(warp, lane, run.inst, (place, offset, bytes), bad))?;
        if matches!(place, Where::Local(_)) {
            return Ok((place, at));
        }
        let who = Who { agent, ..warp.who(lane, run.pc, strong) };
        let region = self.region(&mut [], place);
        let race = if region.constant { None } else { region.races.read(at, bytes, &who) };
        match race {
            Some(other) => Err(self.race(warp, lane, run, (place, at), false, other)),
            None => Ok((place, at)),
        }
    }

    /// Checks one lane's write and gives its place.
    #[allow(clippy::too_many_arguments)]
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
            Some(at) => Ok(at),
            None => region.place(offset, bytes, true).and_then(|at| region.writable(at, bytes).map(|()| at)),
        };
        let at = at.map_err(|bad| self.bad(warp, lane, run.inst, bad))?;
        if matches!(place, Where::Local(_)) {
            return Ok((place, at));
        }
        let who = warp.who(lane, run.pc, strong);
        let region = self.region(&mut [], place);
        let same = region.data[at..at + bytes] == *new && region.all(at, bytes, State::Written);
        match region.races.write(at, bytes, &who, same) {
            Some(other) => Err(self.race(warp, lane, run, (place, at), true, other)),
            None => Ok((place, at)),
        }
    }

    /// `st`
    #[allow(clippy::too_many_arguments)]
    pub fn store(
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
                    None => return Err(self.fault(Kind::Access, warp, lane, run.inst, BEYOND)),
                }
                continue;
            }
            let (place, at) = self.write(warp, run, space, lane, addresses[lane], new, order.strong)?;
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
    pub fn atomic(
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
            let (place, at) = self.read(warp, run, space, lane, addresses[lane], bytes, (true, None))?;
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
            warp.pending.get_or_insert_with(|| Box::new(super::race::Clock::blank(block))).join(clock);
        }
    }

    fn release(&mut self, warp: &mut Warp, place: Where, at: usize, now: bool) {
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

/// Passes through the 32 banks of 4 bytes, and the least for this width: 8-byte accesses go by halves of a warp,
/// 16-byte ones by quarters. Lanes that ask for the same word share it.
pub fn wavefronts(addresses: &Lanes, exec: u32, bytes: usize) -> (u64, u64) {
    let share = LANES / (bytes / 4).max(1);
    let (mut passes, mut least) = (0, 0);
    for part in 0..LANES / share {
        let members = exec & (((1u64 << share) - 1) << (part * share)) as u32;
        if members != 0 {
            passes += passes_of(addresses, members, bytes.div_ceil(4) as u32);
            least += 1;
        }
    }
    (passes, least)
}

/// Passes for lanes that ask for so many words each: different words of a bank take one each.
fn passes_of(addresses: &Lanes, members: u32, each: u32) -> u64 {
    let words =
        || lanes(members).flat_map(|l| (0..each).map(move |i| (addresses[l] as u32 >> 2).wrapping_add(i)));
    // Mostly no bank is asked for a second word.
    let mut first = [None; 32];
    if words().all(|w| *first[w as usize % 32].get_or_insert(w) == w) {
        return 1;
    }
    let mut words: Vec<u32> = words().collect();
    words.sort_unstable();
    words.dedup();
    let mut banks = [0; 32];
    words.iter().for_each(|w| banks[*w as usize % 32] += 1);
    banks.into_iter().max().unwrap_or(0)
}
