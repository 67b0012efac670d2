//! `cp.async`, whose bytes arrive when they like: at once, or at the wait that covers them. Until then nobody may look at
//! them, or write to their source. An mbarrier may be told when they are there.

use super::context::{Context, Done, Run};
use crate::isa::op::CopyOp;
use crate::isa::operand::{Addr, LANES, Space, Src, lanes};
use crate::machine::clock::{Agent, Touch};
use crate::machine::copies::{Copy, Pack};
use crate::machine::flight::{Flight, Piece, Where};
use crate::machine::memory::State;
use crate::machine::shadow::GRAIN;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl Context<'_> {
    /// Runs one for its lanes.
    pub fn copy_op(&mut self, warp: &mut Warp, run: &Run<'_>, op: &CopyOp) -> Done {
        match op {
            CopyOp::CpAsync { to, from, size, source } => {
                self.copy_async(warp, run, to, from, *size as usize, *source)?;
            }
            CopyOp::CpCommit => warp.copies.commit(run.exec),
            CopyOp::CpWait { pending, all } => {
                if *all {
                    warp.copies.commit(run.exec);
                }
                self.copy_wait(warp, run, *pending as usize)?;
            }
            CopyOp::Bulk(op) => self.bulk(warp, run, op)?,
            CopyOp::Prefetch { from, size } => self.prefetch(warp, run, from, *size)?,
            CopyOp::BulkCommit => lanes(run.exec).for_each(|l| warp.beside.bulk[l].commit()),
            CopyOp::BulkWait { pending, read } => self.bulk_wait(warp, run, *pending as usize, *read),
        }
        Ok(())
    }

    /// `cp.async`: from now on the bytes are on their way, until a wait covers them.
    fn copy_async(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        to: &Addr,
        from: &Addr,
        size: usize,
        source: Option<Src>,
    ) -> Done {
        let (to, from) = (self.addresses(warp, run, to)?, self.addresses(warp, run, from)?);
        self.known(warp, run, source.as_slice(), "the size of its source is")?;
        let used = source.map(|s| warp.get(run.frame, s, &self.module.consts));
        let reading = match &used {
            Some(used) => {
                lanes(run.exec).filter(|&lane| used[lane] as u32 != 0).fold(0, |m, lane| m | 1 << lane)
            }
            None => run.exec,
        };
        if reading != 0 {
            self.count(Space::Global, &Run { exec: reading, ..*run }, &from, size);
        }
        self.count(Space::Shared, run, &to, size);
        lanes(run.exec).for_each(|lane| warp.copies.lanes[lane].issued += 1);
        let (first, agents) = self.readers(warp, run.exec);
        // Those that read all of their bytes, as they mostly do.
        let full = used.as_ref().is_none_or(|u| lanes(run.exec).all(|lane| u[lane] as u32 as usize >= size));
        let (done, place, places) = match (first, full) {
            (Some(first), true) => {
                self.read_lanes(warp, run, (Space::Global, run.exec), (&from, size), Some(agents[first]))
            }
            _ => (0, Where::Local(0), [0; LANES]),
        };
        let (written, _, ends) = self.write_lanes(warp, run, Space::Shared, (&to, size), State::Flying);
        if let (Where::Global(region), u32::MAX, GRAIN) = (place, done & written, size)
            && !warp.copies.apart
        {
            let (number, reads) = (warp.copies.lanes[0].issued, agents[0]);
            self.copy_together(warp, Pack { to: ends, from: (region, places), pc: run.pc, number, reads });
            return Ok(());
        }
        warp.copies.part();
        for lane in lanes(run.exec) {
            let reads = used.as_ref().map_or(size, |u| (u[lane] as u32 as usize).min(size));
            let (agent, number, mut source) = (agents[lane], warp.copies.lanes[lane].issued, None);
            if done >> lane & 1 == 1 {
                source = if let Where::Global(region) = place { Some((region, places[lane])) } else { None };
            } else if reads > 0 {
                source = self.source(warp, run, lane, from[lane], (size, reads), agent)?;
            }
            let at = match written >> lane & 1 {
                1 => ends[lane],
                _ => {
                    let new = &[0; 16][..size];
                    let at = self.write(warp, run, Space::Shared, lane, to[lane], new, false)?.1;
                    self.own().mark(at, size, State::Flying);
                    at
                }
            };
            let bytes = (size, reads);
            let copy = Copy { to: at, from: source, bytes, pc: run.pc, number, reads: agent, tracked: false };
            warp.copies.lanes[lane].open.push(copy);
            if self.early {
                self.arrive(&copy);
            }
        }
        Ok(())
    }

    /// All lanes copy as one, and nothing is wrong with any.
    fn copy_together(&mut self, warp: &mut Warp, pack: Pack) {
        if self.early {
            self.arrive_all(&pack);
        }
        warp.copies.open.push(pack);
    }

    /// The agents that read for lanes' copies, with their times; the lane whose agent it is where one reads for all: a warp
    /// that copies as one waits as one.
    fn readers(&mut self, warp: &mut Warp, exec: u32) -> (Option<usize>, [(u32, u32); LANES]) {
        if exec == warp.live {
            let first = exec.trailing_zeros() as usize;
            return (Some(first), [self.reader(warp, first); LANES]);
        }
        let agent = |l: usize| if exec >> l & 1 == 1 { self.reader(warp, l) } else { (0, 0) };
        (None, std::array::from_fn(agent))
    }

    /// Checks a lane's read of `reads` of the `size` bytes of a copy; gives the allocation and the place.
    fn source(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        lane: usize,
        from: u64,
        (size, reads): (usize, usize),
        agent: (u32, u32),
    ) -> Result<Option<(usize, usize)>, Box<Fault>> {
        if from & (size as u64 - 1) != 0 {
            let what = format!("misaligned: cp.async of {size} bytes from {from:#x}");
            return Err(self.fault(Kind::Misaligned, warp, lane, run.inst, what));
        }
        let mut source = None;
        // A part of the bytes may be all that is there.
        let step = if reads == size { size } else { 1 };
        for i in (0..reads).step_by(step) {
            let address = from + i as u64;
            let place = self.read(warp, run, Space::Global, lane, address, step, (false, Some(agent)))?;
            if let ((Where::Global(region), at), None) = (place, source) {
                source = Some((region, at));
            }
        }
        Ok(source)
    }

    /// The agent that reads for a lane's copies, and its time at the last of them.
    fn reader(&mut self, warp: &mut Warp, lane: usize) -> (u32, u32) {
        let agent = Agent::CopyReads(warp.clock.block, warp.thread(lane));
        let copies = &mut warp.copies.lanes[lane];
        (*copies.agent.get_or_insert_with(|| self.agents.number(agent)), copies.issued)
    }

    /// The bytes of a copy arrive.
    fn arrive(&mut self, copy: &Copy) {
        let (size, reads) = copy.bytes;
        let mut bytes = [0; 16];
        if let Some((region, at)) = copy.from {
            let from = &self.memory.regions[region].data[at..at + reads];
            match from.first_chunk() {
                Some(all) => bytes = *all,
                None => bytes[..reads].copy_from_slice(from),
            }
        }
        let to = &mut self.own().data[copy.to..copy.to + size];
        match to.first_chunk_mut() {
            Some(all) => *all = bytes,
            None => to.copy_from_slice(&bytes[..size]),
        }
    }

    /// `cp.async.wait_group`: all but the last `pending` groups of each lane have arrived.
    fn copy_wait(&mut self, warp: &mut Warp, run: &Run<'_>, pending: usize) -> Done {
        if run.exec == !0 && !warp.copies.apart && self.wait_together(warp, pending) {
            return Ok(());
        }
        warp.copies.part();
        for lane in lanes(run.exec) {
            let groups = &mut warp.copies.lanes[lane].closed;
            let done = groups.len().saturating_sub(pending);
            let mut copies: Vec<Copy> = match done {
                0 => continue,
                1 => groups.remove(0),
                _ => groups.drain(..done).flatten().collect(),
            };
            let (block, thread) = (warp.clock.block, warp.thread(lane));
            for copy in &copies {
                if copy.tracked {
                    self.land_tracked(warp, (block, thread, copy.number));
                    continue;
                }
                let race = {
                    let who = warp.who(lane, copy.pc, false);
                    let races = &mut self.own().races;
                    match races.write_lanes(copy.to, (1, copy.bytes.0), who) {
                        0 => races.write(copy.to, copy.bytes.0, &who, false),
                        _ => None,
                    }
                };
                if let Some(other) = race {
                    self.report(self.race(
                        warp,
                        lane,
                        run,
                        (Where::Shared(self.rank), copy.to),
                        true,
                        other,
                    ))?;
                }
                if !self.early {
                    self.arrive(copy);
                }
                self.own().mark(copy.to, copy.bytes.0, State::Written);
            }
            let of_agents = copies.chunk_by(|a, b| a.reads.0 == b.reads.0).filter_map(<[Copy]>::last);
            of_agents.for_each(|last| warp.clock.heard(last.reads.0, last.reads.1));
            if !copies.is_empty() {
                self.land_arrivals(block, thread);
            }
            let open = &mut warp.copies.lanes[lane].open;
            if open.capacity() == 0 {
                copies.clear();
                *open = copies;
            }
        }
        warp.copies.join();
        Ok(())
    }

    /// The same for all lanes at once, where nothing is wrong with any copy; whether that was so.
    fn wait_together(&mut self, warp: &mut Warp, pending: usize) -> bool {
        let groups = &warp.copies.closed;
        let done = groups.len().saturating_sub(pending);
        if done == 0 {
            return true;
        }
        // Arrivals that come behind a lane's copies are its own affair.
        if self.cluster.flights.iter().any(|flight| flight.arrivals > 0) {
            return false;
        }
        let shared = &mut self.cluster.shared[self.rank];
        let who = |pack: &Pack| warp.who(0, pack.pc, false);
        if !groups[..done].iter().flatten().all(|pack| shared.settles(&pack.to, who(pack))) {
            return false;
        }
        for pack in groups[..done].iter().flatten() {
            self.own().settle(&pack.to, Touch::of(&who(pack)));
            if !self.early {
                self.arrive_all(pack);
            }
        }
        let mut groups = warp.copies.closed.drain(..done);
        let last = groups.rfind(|group| !group.is_empty());
        drop(groups);
        if let Some(mut packs) = last {
            packs.last().into_iter().for_each(|pack| warp.clock.heard(pack.reads.0, pack.reads.1));
            packs.clear();
            if warp.copies.open.capacity() == 0 {
                warp.copies.open = packs;
            }
        }
        true
    }

    /// The bytes of all lanes' copies arrive.
    fn arrive_all(&mut self, pack: &Pack) {
        let from = &self.memory.regions[pack.from.0].data[..];
        let to = &mut self.cluster.shared[self.rank].data[..];
        for (to_at, from_at) in pack.to.iter().zip(&pack.from.1) {
            to[*to_at..][..GRAIN].copy_from_slice(&from[*from_at..][..GRAIN]);
        }
    }

    /// `cp.async.mbarrier.arrive`: the lane's copies arrive, and then it does; `counted`: as one of those awaited.
    pub fn track_copies(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        lane: usize,
        (rank, at): (usize, usize),
        counted: bool,
    ) -> Done {
        let (block, thread) = (warp.clock.block, warp.thread(lane));
        let mut clock = warp.publishes(run.exec).into_owned();
        let key = |number: u32| (block, thread, number);
        let flight = |pc: u32, from: Where, pieces: Vec<Piece>, copy: Option<&Copy>| Flight {
            pc,
            block,
            thread,
            from,
            to: vec![Where::Shared(rank)],
            pieces,
            runs: Vec::new(),
            data: None,
            reduce: None,
            mbarrier: Some(at),
            bytes: 0,
            arrivals: u32::from(copy.is_none()),
            copy: copy.map_or(0, |c| c.number),
            reads: copy.map_or((0, 0), |c| c.reads),
        };
        let (mut flights, mut copies) = (Vec::new(), std::mem::take(warp.copies.of(lane)));
        for group in copies.closed.iter_mut().chain([&mut copies.open]) {
            // What it knows to have arrived needs no wait any more.
            group.retain(|copy| {
                let there = self.cluster.landed.get(&key(copy.number)).copied();
                let known = there.is_some_and(|(agent, time)| warp.clock.knows(agent, time));
                if known {
                    self.cluster.landed.remove(&key(copy.number));
                }
                !known
            });
            for copy in group {
                if let Some((agent, time)) = self.cluster.landed.get(&key(copy.number)) {
                    clock.heard(*agent, *time);
                    continue;
                }
                let mine = |f: &Flight| (f.block, f.thread, f.copy) == key(copy.number);
                if self.cluster.flights.iter().any(|f| mine(f) && f.mbarrier == Some(at)) {
                    continue;
                }
                copy.tracked = true;
                let ((size, reads), (region, from)) = (copy.bytes, copy.from.unwrap_or((0, 0)));
                let read = Piece { from: Some(from), to: copy.to, bytes: reads };
                let rest = Piece { from: None, to: copy.to + reads, bytes: size - reads };
                let pieces = [read, rest].into_iter().filter(|p| p.bytes > 0).collect();
                flights.push(flight(copy.pc, Where::Global(region), pieces, Some(copy)));
            }
        }
        warp.copies.lanes[lane] = copies;
        flights.push(flight(run.pc, Where::Local(0), Vec::new(), None));
        if !self.cluster.joins(rank, at, &clock, !counted) {
            let what = format!("mbarrier: {}+{at} lacks no arrival in this phase", self.own().name);
            return Err(self.fault(Kind::Barrier, warp, lane, run.inst, what));
        }
        match self.early {
            true => flights.into_iter().for_each(|f| self.arrive_bulk(f)),
            false => {
                self.cluster.flights.extend(flights);
                self.cluster.changed(rank, at);
            }
        }
        Ok(())
    }

    /// A copy has arrived that mbarriers track: who waits for any of them is behind it.
    pub fn landed(&mut self, flight: &Flight, rank: usize, at: usize) {
        let Some(writes) = self.cluster.current(rank, at) else { return };
        let key = (flight.block, flight.thread, flight.copy);
        let same = |f: &Flight| (f.block, f.thread, f.copy) == key;
        let others = self.cluster.flights.iter().filter(|f| same(f)).filter_map(|f| f.mbarrier);
        for at in others.chain([at]).collect::<Vec<_>>() {
            if let Some(bar) = self.cluster.mbarriers[rank].get_mut(&at) {
                bar.hears(flight.reads);
                bar.hears(writes);
            }
        }
        self.cluster.flights.retain(|f| !same(f));
        self.cluster.landed.insert(key, writes);
    }

    /// A lane has waited for a copy that an mbarrier tracks.
    fn land_tracked(&mut self, warp: &mut Warp, key: (u32, u32, u32)) {
        let first = self.cluster.flights.iter().position(|f| (f.block, f.thread, f.copy) == key);
        if let Some(flight) = first.map(|i| self.cluster.flights.remove(i)) {
            self.arrive_bulk(flight);
        }
        if let Some((agent, time)) = self.cluster.landed.remove(&key) {
            warp.clock.heard(agent, time);
        }
    }

    /// A thread's arrivals come whose copies are all there.
    fn land_arrivals(&mut self, block: u32, thread: u32) {
        let ours = |f: &Flight| f.block == block && f.thread == thread;
        let flights = &self.cluster.flights;
        let ready = |i: usize| {
            let before = |f: &Flight| ours(f) && f.copy > 0 && f.mbarrier == flights[i].mbarrier;
            ours(&flights[i]) && flights[i].arrivals > 0 && !flights[..i].iter().any(before)
        };
        let ready: Vec<usize> = (0..flights.len()).filter(|i| ready(*i)).collect();
        for (gone, i) in ready.into_iter().enumerate() {
            let flight = self.cluster.flights.remove(i - gone);
            self.arrive_bulk(flight);
        }
    }
}
