//! Bytes with a shadow: what is allocated, what is written, who touched it last.

use super::clock::{Clock, Touch, Who};
use super::shadow::{GRAIN, Races};
use crate::isa::operand::{LANES, Proxy, lanes};
use crate::report::finding::{Bad, Kind};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Each global allocation is alone in the middle of so many addresses, so every stray access has an owner.
const SPREAD: u32 = 36;

/// What a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not allocated.
    Guard,
    /// Nothing has been written.
    Unwritten,
    /// Has a value.
    Written,
    /// An asynchronous copy is on its way.
    Flying,
    /// A bulk copy is on its way.
    Bulk,
    /// Of an mbarrier.
    Barrier,
}

/// A list that several may read; who writes to it gets his own.
#[derive(Clone, Debug)]
pub enum Shared<T> {
    /// One's own.
    Own(Vec<T>),
    /// Of several.
    Lent(Arc<Vec<T>>),
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared::Own(Vec::new())
    }
}

impl<T> From<Vec<T>> for Shared<T> {
    fn from(list: Vec<T>) -> Shared<T> {
        Shared::Own(list)
    }
}

impl<T> Shared<T> {
    /// From now on clones share it.
    fn lend(&mut self) {
        if let Shared::Own(list) = self {
            *self = Shared::Lent(Arc::new(std::mem::take(list)));
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = Vec<T>;

    #[inline]
    fn deref(&self) -> &Vec<T> {
        match self {
            Shared::Own(list) => list,
            Shared::Lent(list) => list,
        }
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vec<T> {
        if let Shared::Lent(list) = self {
            *self = Shared::Own(Arc::try_unwrap(std::mem::take(list)).unwrap_or_else(|list| (*list).clone()));
        }
        match self {
            Shared::Own(list) => list,
            Shared::Lent(_) => unreachable!("it is one's own by now"),
        }
    }
}

/// Some memory with its shadow.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// For messages.
    pub name: Arc<str>,
    /// The bytes.
    pub data: Shared<u8>,
    /// What each is.
    pub state: Shared<State>,
    /// Last accesses.
    pub races: Races,
    /// Those of the kernel before, where it may still run.
    pub before: Option<Arc<Races>>,
    /// What strong writes have released, by offset.
    pub released: HashMap<usize, Clock>,
    /// Kernels may not write.
    pub constant: bool,
    /// Given back.
    pub freed: bool,
}

impl Region {
    /// Bytes that nothing has written.
    pub fn new(name: &str, bytes: usize) -> Region {
        let (data, state) = (vec![0xa5; bytes], vec![State::Unwritten; bytes]);
        Region { name: name.into(), data: data.into(), state: state.into(), ..Region::default() }
    }

    /// Bytes of which parts are allocated later.
    pub fn guarded(name: &str, bytes: usize) -> Region {
        Region { state: vec![State::Guard; bytes].into(), ..Region::new(name, bytes) }
    }

    /// Sets the state of some bytes.
    pub fn mark(&mut self, from: usize, bytes: usize, state: State) {
        self.state[from..from + bytes].fill(state);
    }

    /// Whether so many bytes are all alike.
    #[inline]
    pub fn all(&self, at: usize, bytes: usize, state: State) -> bool {
        #[inline(always)]
        fn each<const N: usize>(list: &[State], state: State) -> bool {
            list.first_chunk::<N>().is_some_and(|list| alike(list, state))
        }
        let list = &self.state[at..at + bytes];
        match bytes {
            2 => each::<2>(list, state),
            4 => each::<4>(list, state),
            8 => each::<8>(list, state),
            16 => each::<16>(list, state),
            _ => {
                let (whole, rest) = list.as_chunks::<64>();
                let (parts, rest) = rest.as_chunks::<8>();
                whole.iter().all(|s| each::<64>(s, state))
                    && parts.iter().all(|s| each::<8>(s, state))
                    && rest.iter().all(|s| *s == state)
            }
        }
    }

    /// The place of an aligned read of bytes that have values, or a write to such or to those that have none: nothing is
    /// wrong with it. None: look closer. `bytes` is a power of two.
    #[inline]
    pub fn plain(&self, offset: i64, bytes: usize, write: bool) -> Option<usize> {
        self.plain_run(offset, (1, bytes), write)
    }

    /// The same for so many of them, one behind the other.
    #[inline]
    pub fn plain_run(&self, offset: i64, (n, bytes): (usize, usize), write: bool) -> Option<usize> {
        let at = usize::try_from(offset).ok()?;
        let aligned = at & (bytes - 1) == 0;
        let bytes = n * bytes;
        let inside = aligned && at + bytes <= self.data.len();
        let sound = inside && !(write && self.constant);
        let valid =
            sound && (self.all(at, bytes, State::Written) || write && self.all(at, bytes, State::Unwritten));
        valid.then_some(at)
    }

    /// How many of these grains, from the first on, the asynchronous proxy may read for `who`: nothing is wrong with them,
    /// and it is noted. `harmless`: a write that the reader is known to see, or none.
    pub fn grains(&mut self, grains: &[u32], who: &Who<'_>, proxy: Proxy, harmless: &mut Touch) -> usize {
        let (touch, state) = (Touch::of(who), &self.state[..]);
        let good = grains.iter().position(|at| {
            let at = *at as usize;
            let sound = grain(state, at).is_some_and(|list| alike(list, State::Written));
            !(sound && self.races.read_grain(at, (who, touch), proxy, harmless))
        });
        good.unwrap_or(grains.len())
    }

    /// Reads of a grain each by the lanes of `exec`, at `places`, while nothing is wrong with them; gives those lanes. `who`:
    /// lane 0.
    pub fn read_by_lanes(&mut self, exec: u32, places: &[usize; LANES], mut who: Who<'_>) -> u32 {
        let (mut done, mut harmless, state) = (0, Touch::default(), &self.state[..]);
        let (first, touch) = (who.thread, Touch::of(&who));
        for lane in lanes(exec) {
            let at = places[lane];
            let sound = grain(state, at).is_some_and(|list| alike(list, State::Written));
            who.thread = first + lane as u32;
            let whose = (&who, touch.behind(lane as u32));
            if !sound || !self.constant && !self.races.read_whole(at, whose, &mut harmless) {
                break;
            }
            done |= 1 << lane;
        }
        done
    }

    /// The same for writes, whose bytes are in that state from then on.
    pub fn write_by_lanes(&mut self, exec: u32, places: &[usize; LANES], mut who: Who<'_>, to: State) -> u32 {
        let (mut done, state) = (0, &mut self.state[..]);
        let (first, touch) = (who.thread, Touch::of(&who));
        for lane in lanes(if self.constant { 0 } else { exec }) {
            let at = places[lane];
            let free = |list: &[State; GRAIN]| alike(list, State::Written) || alike(list, State::Unwritten);
            who.thread = first + lane as u32;
            let sound = grain(state, at).is_some_and(free);
            if !sound || !self.races.write_whole(at, (&who, touch.behind(lane as u32))) {
                break;
            }
            state[at..at + GRAIN].fill(to);
            done |= 1 << lane;
        }
        done
    }

    /// Whether all lanes' copies to these grains may arrive: none has before, and nothing is wrong with any. `who`: lane 0.
    pub fn settles(&mut self, to: &[usize; LANES], mut who: Who<'_>) -> bool {
        let (state, first) = (&mut self.state[..], who.thread);
        to.iter().enumerate().all(|(lane, at)| {
            who.thread = first + lane as u32;
            let flying = grain(state, *at).is_some_and(|list| alike(list, State::Flying));
            // A second one to the same bytes does not find that any more.
            state[*at..*at + GRAIN].fill(State::Written);
            flying && self.races.free_whole(*at, &who)
        })
    }

    /// They do. `touch`: lane 0's.
    pub fn settle(&mut self, to: &[usize; LANES], touch: Touch) {
        for (lane, at) in to.iter().enumerate() {
            self.races.stamp_whole(*at, touch.behind(lane as u32));
        }
    }

    /// The place of an access, or what is wrong with it.
    pub fn place(&self, offset: i64, bytes: usize, write: bool) -> Result<usize, Bad> {
        let inside = offset >= 0 && offset + bytes as i64 <= self.data.len() as i64 && !self.freed;
        if inside && offset as usize & (bytes - 1) != 0 {
            let kind = if write { "write" } else { "read" };
            let what = format!("misaligned: {kind} of {bytes} bytes at offset {offset} of {}", self.name);
            return Err((Kind::Misaligned, what));
        }
        self.range(offset, bytes, write)
    }

    /// The same, however aligned.
    pub fn range(&self, offset: i64, bytes: usize, write: bool) -> Result<usize, Bad> {
        // Mostly all of it has values.
        if let Ok(at) = usize::try_from(offset)
            && at + bytes <= self.data.len()
            && !(self.freed || self.constant && write)
            && self.all(at, bytes, State::Written)
        {
            return Ok(at);
        }
        let (kind, name, size) = (if write { "write" } else { "read" }, &self.name, self.data.len() as i64);
        let bad = |what: String| Err((Kind::OutOfBounds, what));
        if self.freed {
            return Err((Kind::Access, format!("{kind} of {bytes} bytes in {name}, which was freed")));
        }
        if offset < 0 {
            return bad(format!("out of bounds: {kind} of {bytes} bytes, {} bytes before {name}", -offset));
        }
        if offset + bytes as i64 > size {
            let past = offset - size;
            let at =
                if past < 0 { "across the end of".into() } else { format!("{past} bytes past the end of") };
            return bad(format!("out of bounds: {kind} of {bytes} bytes, {at} {name} ({size} bytes)"));
        }
        let at = offset as usize;
        if self.constant && write {
            return Err((Kind::Access, format!("write of {bytes} bytes into {name}, which is constant")));
        }
        if self.state[at..at + bytes].contains(&State::Guard) {
            return bad(format!(
                "out of bounds: {kind} of {bytes} bytes at {name}+{at}, between its variables"
            ));
        }
        Ok(at)
    }

    /// What hinders a read of these bytes.
    pub fn readable(&self, at: usize, bytes: usize) -> Result<(), Bad> {
        if self.all(at, bytes, State::Written) {
            return Ok(());
        }
        let Some(i) = self.state[at..at + bytes].iter().position(|s| *s != State::Written) else {
            return Ok(());
        };
        let place = format!("{}+{}", self.name, at + i);
        Err(match self.state[at + i] {
            State::Flying => (
                Kind::Uninitialised,
                format!(
                    "read of {place} while cp.async is still copying to it; a cp.async.wait_group is missing"
                ),
            ),
            State::Bulk => (
                Kind::Race,
                format!("read of {place} while a bulk copy to it is under way; wait for its mbarrier first"),
            ),
            State::Barrier => {
                (Kind::Access, format!("read of {place}, which is an mbarrier: nobody may look inside"))
            }
            _ => (Kind::Uninitialised, format!("uninitialised: read of {place}, which nothing has written")),
        })
    }

    /// What hinders a write to these bytes.
    pub fn writable(&self, at: usize, bytes: usize) -> Result<(), Bad> {
        if self.all(at, bytes, State::Written) || self.all(at, bytes, State::Unwritten) {
            return Ok(());
        }
        let range = &self.state[at..at + bytes];
        let held = |s: &State| matches!(s, State::Flying | State::Bulk | State::Barrier);
        let Some(i) = range.iter().position(held) else { return Ok(()) };
        let place = format!("{}+{}", self.name, at + i);
        Err(match range[i] {
            State::Barrier => {
                (Kind::Access, format!("write to {place}, which is an mbarrier; mbarrier.inval first"))
            }
            State::Bulk => (Kind::Race, format!("write to {place} while a bulk copy to it is under way")),
            _ => (Kind::Race, format!("write to {place} while cp.async is still copying to it")),
        })
    }

    /// The first of some bytes that nothing has written.
    pub fn unwritten(&self, at: i64, bytes: usize) -> Option<usize> {
        let at = usize::try_from(at).ok()?;
        self.state.get(at..at + bytes)?.iter().position(|s| *s == State::Unwritten).map(|i| at + i)
    }

    /// Up to 8 bytes as a number.
    pub fn get(&self, at: usize, bytes: usize) -> u64 {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.data[at..at + bytes]);
        u64::from_le_bytes(value)
    }

    /// The reverse.
    pub fn set(&mut self, at: usize, bytes: usize, value: u64) {
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.state[at..at + bytes].fill(State::Written);
    }
}

/// The states of an aligned grain, if it is inside.
#[inline(always)]
fn grain(state: &[State], at: usize) -> Option<&[State; GRAIN]> {
    state.get(at..)?.first_chunk().filter(|_| at.is_multiple_of(GRAIN))
}

/// Whether all of these are the same.
#[inline(always)]
fn alike<const N: usize>(list: &[State; N], state: State) -> bool {
    list.iter().fold(true, |all, s| all & (*s == state))
}

/// All global allocations.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// By number.
    pub regions: Vec<Region>,
}

impl Memory {
    /// Adds an allocation and gives its address.
    pub fn add(&mut self, region: Region) -> u64 {
        self.regions.push(region);
        ((self.regions.len() as u64) << SPREAD) + (1 << (SPREAD - 1))
    }

    /// A copy that shares with this what neither writes.
    pub fn share(&mut self) -> Memory {
        for region in &mut self.regions {
            region.data.lend();
            region.state.lend();
        }
        self.clone()
    }

    /// The allocation whose neighbourhood holds the address, and the place relative to its start.
    pub fn find(&self, address: u64) -> Option<(usize, i64)> {
        let region = (address >> SPREAD).checked_sub(1).filter(|r| *r < self.regions.len() as u64)? as usize;
        let offset = (address & ((1 << SPREAD) - 1)) as i64 - (1 << (SPREAD - 1));
        Some((region, offset))
    }
}
