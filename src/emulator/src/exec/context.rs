//! What an instruction may reach, and what every family of them needs: addresses, checks, findings, counts.

use crate::isa::module::{Inst, Module, Variable};
use crate::isa::operand::{Addr, LANES, Lanes, Space, Src, lanes};
use crate::isa::space::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::machine::clock::{Agents, Touch, spelled};
use crate::machine::cluster::{Cluster, RANK_SHIFT, rank_of};
use crate::machine::dice::Dice;
use crate::machine::flight::Where;
use crate::machine::frame::Frame;
use crate::machine::gate::{GATES, Gate};
use crate::machine::memory::{Memory, Region};
use crate::machine::predecessor::Predecessor;
use crate::machine::warp::Warp;
use crate::machine::warpgroup::{WARPGROUPS, Warpgroup};
use crate::report::checks::Collected;
use crate::report::counters::Count;
use crate::report::finding::{At, Bad, Fault, Kind, other_access, raced};
use std::cell::RefCell;

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
    /// The kernel before, where it may still run.
    pub before: Option<&'a Predecessor>,
    /// What has been found so far.
    pub found: &'a RefCell<Collected>,
    /// Extents of the grid and of a block.
    pub extents: ([u32; 3], [u32; 3]),
    /// Asynchronous copies arrive at once, but may not be looked at before their time all the same.
    pub early: bool,
    /// Bulk copies arrive at once or late, each as the dice say.
    pub mixed: bool,
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

impl Context<'_> {
    /// The block's shared memory.
    pub fn own(&mut self) -> &mut Region {
        &mut self.cluster.shared[self.rank]
    }

    /// A thread of this block.
    pub fn at(&self, thread: u32) -> At {
        At::of(self.extents, self.cluster.blocks[self.rank], thread)
    }

    /// The region that an address is in, and the place in it.
    pub fn find(&self, space: Space, lane: usize, address: u64) -> Result<(Where, i64), Bad> {
        let offset = (address & 0xffff_ffff) as u32 as i32 as i64;
        match space {
            Space::Shared => self.own_shared(address),
            Space::Cluster => self.any_shared(address),
            Space::Local => Ok((Where::Local(lane), offset)),
            Space::Generic if address >> 56 == SHARED_WINDOW >> 56 => self.any_shared(offset as u32 as u64),
            Space::Generic if address >> 56 == LOCAL_WINDOW >> 56 => Ok((Where::Local(lane), offset)),
            Space::Generic | Space::Global | Space::Const | Space::Param => match self.memory.find(address) {
                Some((region, offset)) => Ok((Where::Global(region), offset)),
                None => Err((
                    Kind::OutOfBounds,
                    format!("out of bounds: address {address:#x} is in no allocation"),
                )),
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

    /// A finding about an access that is misaligned or outside, and how what is there was declared.
    pub fn misplaced(
        &self,
        warp: &Warp,
        lane: usize,
        inst: &Inst,
        (place, at): (Where, i64),
        bad: Bad,
    ) -> Box<Fault> {
        let fault = self.bad(warp, lane, inst, bad);
        let (Where::Shared(_), Kind::Misaligned) = (place, fault.kind) else { return fault };
        let kernel = warp.frames[lane].first().map(|f| &self.module.functions[f.function as usize]);
        let mut variables = self.module.shared.iter().chain(kernel.iter().flat_map(|k| &k.shared));
        let there = |v: &&Variable| (v.offset as i64..(v.offset + v.size) as i64).contains(&at);
        fault.and(match variables.find(there) {
            Some(v) => format!(
                "it is byte {} of {}, which is declared .align {}: ptxas may place it at any multiple of that",
                at - v.offset as i64,
                v.name,
                v.align
            ),
            None => "it is in dynamic shared memory, which begins at a multiple of 1024 here; ptxas may place it at any \
                     multiple of its declared .align"
                .to_string(),
        })
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
        let fault = self.fault(Kind::Race, warp, lane, run.inst, raced(write, name, place.1));
        // Of several lanes that have read only the last is known, which may be this one.
        let one = other.by() == Ok((warp.clock.block, warp.thread(lane)));
        let there = match one {
            true => format!(
                "{}, another lane of its warp",
                self.module.place(&self.module.insts[other.pc() as usize])
            ),
            false => self.spelled(other),
        };
        let mut fault = fault.and(other_access(&there));
        fault.habit = self.habit(warp, run.pc, place.0, other);
        fault
    }

    /// Notes a finding; gives it back if it ends the launch.
    pub fn report(&self, fault: Box<Fault>) -> Done {
        self.found.borrow_mut().add(fault)
    }

    /// What was done for a lane; nothing where it was wrong, and that is reported.
    pub fn reported<T>(&self, done: Result<T, Box<Fault>>) -> Result<Option<T>, Box<Fault>> {
        done.map_or_else(|fault| self.report(fault).map(|()| None), |done| Ok(Some(done)))
    }

    /// Where an access was, and whose.
    pub fn spelled(&self, touch: Touch) -> String {
        spelled(self.module, self.extents, self.agents, touch)
    }

    /// The lanes' addresses, which must have values.
    #[inline(always)]
    pub fn addresses(&self, warp: &Warp, run: &Run<'_>, addr: &Addr) -> Result<Lanes, Box<Fault>> {
        self.known(warp, run, &[addr.base], "the address is")?;
        let (base, mut addresses) = (warp.look(run.frame, addr.base, &self.module.consts), [0; LANES]);
        addresses.iter_mut().zip(base).for_each(|(a, base)| *a = base.wrapping_add(addr.offset as u64));
        Ok(addresses)
    }

    /// The lanes' values of what must have some: the words say for what.
    #[inline(always)]
    pub fn known(&self, warp: &Warp, run: &Run<'_>, sources: &[Src], what: &str) -> Done {
        for s in sources {
            let unknown = run.exec & !warp.known(run.frame, *s);
            if unknown != 0 {
                self.unknown(warp, run, unknown, what)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn unknown(&self, warp: &Warp, run: &Run<'_>, lanes: u32, what: &str) -> Done {
        let what = format!("uninitialised: {what} a register that nothing has written");
        self.report(self.fault(Kind::Uninitialised, warp, lanes.trailing_zeros() as usize, run.inst, what))
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

    /// A place in the block's own shared memory.
    pub fn own_shared(&self, address: u64) -> Result<(Where, i64), Bad> {
        if let Some(rank) = rank_of(address)
            && rank as usize != self.rank
        {
            let what = format!("out of bounds: address of rank {rank} of the cluster, used as one's own");
            return Err((Kind::OutOfBounds, what));
        }
        self.any_shared(address)
    }

    /// A place in the shared memory of the cluster.
    pub fn any_shared(&self, address: u64) -> Result<(Where, i64), Bad> {
        let bad = |what: String| Err((Kind::OutOfBounds, what));
        if !matches!(address >> 32, 0 | 0xffff_ffff) {
            return bad(format!("out of bounds: {address:#x} in shared memory; is it a generic address?"));
        }
        let Some(rank) = rank_of(address) else {
            return Ok((Where::Shared(self.rank), i64::from(address as i32)));
        };
        match self.cluster.left.get(rank as usize) {
            None => {
                bad(format!("out of bounds: shared memory of rank {rank}, which the cluster does not have"))
            }
            Some(true) => {
                let what = format!("shared memory of rank {rank} of the cluster, whose block has left");
                Err((Kind::Access, what))
            }
            Some(false) => Ok((Where::Shared(rank as usize), (address & ((1 << RANK_SHIFT) - 1)) as i64)),
        }
    }
}

/// The places of addresses near to that of a lane, whose own is known.
pub fn near(offset: i64, (addresses, lane): (&Lanes, usize), places: &mut [usize; LANES]) {
    let start = (offset as u64).wrapping_sub(addresses[lane]);
    places.iter_mut().zip(addresses).for_each(|(place, a)| *place = a.wrapping_add(start) as usize);
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
pub fn passes_of(addresses: &Lanes, members: u32, each: u32) -> u64 {
    // Lanes whose words are aligned ask for one group of banks each, mostly for different ones.
    if each.is_power_of_two() {
        let (mut groups, mut odd, shift) = (0u32, 0, each.trailing_zeros());
        for lane in lanes(members) {
            let word = addresses[lane] as u32 >> 2;
            (groups, odd) = (groups | 1 << (word >> shift & (31 >> shift)), odd | word & (each - 1));
        }
        if odd == 0 && groups.count_ones() == members.count_ones() {
            return 1;
        }
    }
    // Lanes and their words make up 32 at most.
    let (mut words, mut n) = ([0; 32], 0);
    let (mut first, mut asked, mut alone) = ([0; 32], 0u32, true);
    for word in
        lanes(members).flat_map(|l| (0..each).map(move |i| (addresses[l] as u32 >> 2).wrapping_add(i)))
    {
        let bank = word as usize % 32;
        if asked >> bank & 1 == 0 {
            (first[bank], asked) = (word, asked | 1 << bank);
        }
        alone &= first[bank] == word;
        (words[n], n) = (word, n + 1);
    }
    // Mostly no bank is asked for a second word.
    if alone {
        return 1;
    }
    let words = &mut words[..n];
    words.sort_unstable();
    let mut banks = [0; 32];
    let distinct = words.iter().enumerate().filter(|(i, w)| *i == 0 || words[i - 1] != **w);
    distinct.for_each(|(_, w)| banks[*w as usize % 32] += 1);
    banks.into_iter().max().unwrap_or(0)
}
