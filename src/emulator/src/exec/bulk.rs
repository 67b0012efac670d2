//! Bulk copies: what they move, when it arrives, and who hears of it. Also `st.async` and `red.async`.
//!
//! A copy is checked when it is issued. It arrives then ("early") or, late, when somebody waits for it: a load when its
//! mbarrier's phase would be over with it, a store's reads at `wait_group.read`, its writes at `wait_group` or at the
//! end of the launch.

use super::context::{Context, Run};
use super::proxy::Behalf;
use crate::isa::copy::{Bulk, End};
use crate::isa::operand::{LANES, Lanes, Space, Src, Ty, lanes};
use crate::machine::clock::Agent;
use crate::machine::flight::{Flight, Piece, Where, runs, write};
use crate::machine::memory::State;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

impl End {
    fn space(&self) -> Space {
        if let End::Shared(_) = self { Space::Cluster } else { Space::Global }
    }
}

impl Context<'_> {
    /// Runs a bulk copy for its lanes.
    pub fn bulk(&mut self, warp: &mut Warp, run: &Run<'_>, op: &Bulk) -> Result<(), Box<Fault>> {
        self.known(warp, run, op.size.as_slice(), "its size is")?;
        self.known(warp, run, op.mask.as_slice(), "its mask of ranks is")?;
        let size = op.size.map(|s| warp.get(run.frame, s, &self.module.consts));
        let mask = op.mask.map(|s| warp.get(run.frame, s, &self.module.consts));
        let address = |this: &Self, warp: &Warp, end: &End| match end {
            End::Global(addr) | End::Shared(addr) | End::Box(addr, _) => this.addresses(warp, run, addr),
            End::Registers(s, _) => this.known(warp, run, s, "it stores").map(|()| [0; LANES]),
        };
        let (from, to) = (address(self, warp, &op.from)?, address(self, warp, &op.to)?);
        let bar = op.mbarrier.map(|m| self.addresses(warp, run, &m)).transpose()?;
        for lane in lanes(run.exec) {
            let at = |l: &Option<Lanes>| l.as_ref().map(|l| l[lane]);
            let ends = (from[lane], to[lane]);
            let mut flight = self.flight(warp, run, lane, op, ends, at(&size).map(|s| s as u32 as usize))?;
            if let Some(mask) = at(&mask) {
                flight.to = self.ranks(warp, run, lane, mask as u16)?;
            }
            self.send(warp, run, lane, op, flight, at(&bar))?;
        }
        warp.clock.own[warp.index as usize] += 1;
        Ok(())
    }

    /// A finding about a copy.
    pub fn wrong(&self, warp: &Warp, run: &Run<'_>, lane: usize, what: String) -> Box<Fault> {
        self.bad(warp, lane, run.inst, (Kind::Access, what))
    }

    /// The ranks of a multicast.
    fn ranks(&self, warp: &Warp, run: &Run<'_>, lane: usize, mask: u16) -> Result<Vec<Where>, Box<Fault>> {
        let there = self.cluster.left.len();
        let ranks: Vec<usize> = (0..16).filter(|r| mask >> r & 1 == 1).collect();
        if ranks.is_empty() || ranks.iter().any(|r| *r >= there) {
            let what = format!("multicast to ranks {ranks:?} of a cluster of {there} blocks");
            return Err(self.wrong(warp, run, lane, what));
        }
        if let Some(rank) = ranks.iter().find(|r| self.cluster.left[**r]) {
            let what = format!("multicast to rank {rank} of the cluster, whose block has left");
            return Err(self.wrong(warp, run, lane, what));
        }
        Ok(ranks.into_iter().map(Where::Shared).collect())
    }

    /// What an instruction moves for a lane.
    fn flight(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        op: &Bulk,
        (from, to): (u64, u64),
        size: Option<usize>,
    ) -> Result<Flight, Box<Fault>> {
        let (pc, block, thread) = (run.pc, warp.clock.block, warp.index * LANES as u32 + lane as u32);
        let none = Where::Local(0);
        let reduce = op.reduce.map(|(f, ty)| (f, ty.unwrap_or(Ty::U32)));
        let mut flight = Flight {
            pc,
            block,
            thread,
            from: none,
            to: vec![none],
            pieces: Vec::new(),
            runs: Vec::new(),
            data: None,
            reduce,
            mbarrier: None,
            bytes: size.unwrap_or(0),
            arrivals: 0,
            copy: 0,
            reads: (0, 0),
        };
        match (&op.from, &op.to) {
            (End::Box(_, coords), _) => {
                self.boxed(warp, run, lane, (from, to, coords), (&mut flight, false))?
            }
            (_, End::Box(_, coords)) => {
                self.boxed(warp, run, lane, (to, from, coords), (&mut flight, true))?
            }
            (End::Registers(s, ty), _) => {
                let value = |s: &Src| warp.look(run.frame, *s, &self.module.consts)[lane].to_le_bytes();
                let data: Vec<u8> = s.iter().flat_map(|s| value(s)[..ty.size()].to_vec()).collect();
                let bytes = data.len();
                (flight.bytes, flight.data) = (bytes, Some(data));
                let (place, at) = self.end(warp, run, lane, op.to.space(), to, bytes.next_power_of_two())?;
                (flight.to, flight.pieces) = (vec![place], vec![Piece { from: None, to: at, bytes }]);
            }
            _ => {
                let bytes = flight.bytes;
                if bytes == 0 || !bytes.is_multiple_of(16) {
                    let what =
                        format!("misaligned: a bulk copy of {bytes} bytes, a multiple of 16 was expected");
                    return Err(self.bad(warp, lane, run.inst, (Kind::Misaligned, what)));
                }
                let ((a, x), (b, y)) = (
                    self.end(warp, run, lane, op.from.space(), from, 16)?,
                    self.end(warp, run, lane, op.to.space(), to, 16)?,
                );
                (flight.from, flight.to) = (a, vec![b]);
                flight.pieces = vec![Piece { from: Some(x), to: y, bytes }];
                self.counts_global(run, op.from.space(), from, bytes);
                self.counts_global(run, op.to.space(), to, bytes);
            }
        }
        Ok(flight)
    }

    /// Counts a contiguous part in global memory.
    pub fn counts_global(&mut self, run: &Run<'_>, space: Space, address: u64, bytes: usize) {
        if bytes > 0 && space == Space::Global {
            let count = &mut self.counts[run.pc as usize];
            count.requests += 1;
            count.bytes += bytes as u64;
            count.sectors += ((address + bytes as u64 - 1) >> 5) - (address >> 5) + 1;
        }
    }

    /// A place in global memory or in the cluster's shared memory, aligned.
    pub fn end(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        space: Space,
        address: u64,
        align: usize,
    ) -> Result<(Where, usize), Box<Fault>> {
        let (place, at) = self.find(space, lane, address).map_err(|w| self.bad(warp, lane, run.inst, w))?;
        if let Where::Local(_) = place {
            return Err(self.wrong(warp, run, lane, "a bulk copy of local memory".into()));
        }
        let at =
            self.region(&mut [], place).range(at, 1, false).map_err(|w| self.bad(warp, lane, run.inst, w))?;
        if !at.is_multiple_of(align) {
            let name = &self.region(&mut [], place).name;
            let what = format!("misaligned: a bulk copy at {name}+{at}, a multiple of {align} was expected");
            return Err(self.bad(warp, lane, run.inst, (Kind::Misaligned, what)));
        }
        Ok((place, at))
    }

    /// Checks a copy, and sends it on its way.
    fn send(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        lane: usize,
        op: &Bulk,
        mut flight: Flight,
        bar: Option<u64>,
    ) -> Result<(), Box<Fault>> {
        let ranks: Vec<usize> =
            flight.to.iter().filter_map(|w| if let Where::Shared(r) = w { Some(*r) } else { None }).collect();
        let proxied = !matches!(op.from, End::Registers(..));
        if let Some(address) = bar {
            let how = (&ranks[..], op.mask.is_some(), proxied);
            flight.mbarrier = Some(self.signals(warp, run, lane, address, how)?);
        }
        let (reads, writes) = match flight.mbarrier.and_then(|at| self.cluster.current(ranks[0], at)) {
            Some(agent) => (agent, None),
            None => {
                let (block, number) = (flight.block, warp.beside.bulk[lane].number());
                let of = |agent: Agent, this: &mut Self| (this.agents.number(agent), number);
                let reads = of(Agent::BulkReads(block, flight.thread), self);
                (reads, Some(of(Agent::BulkWrites(block, flight.thread), self)))
            }
        };
        let behalf = |(agent, time): (u32, u32)| Behalf { warp, lane, agent, time };
        for (from, bytes) in runs(flight.pieces.iter().filter_map(|p| Some((p.from?, p.bytes)))) {
            self.proxy_reads(run, &behalf(reads), (flight.from, from), bytes)?;
        }
        flight.runs = runs(flight.pieces.iter().map(|p| (p.to, p.bytes)));
        for place in &flight.to {
            let agent = match (place, flight.mbarrier, writes) {
                (Where::Shared(rank), Some(at), _) => self.cluster.current(*rank, at).unwrap_or(reads),
                (_, _, Some(writes)) => writes,
                _ => reads,
            };
            let strong = flight.reduce.is_some() || !proxied;
            for (to, bytes) in flight.runs.iter().copied() {
                self.proxy_writes(run, &behalf(agent), (*place, to), bytes, (strong, proxied))?;
                let region = self.region(&mut [], *place);
                if flight.reduce.is_some() {
                    region.readable(to, bytes).map_err(|what| self.bad(warp, lane, run.inst, what))?;
                } else if let Where::Shared(_) = place {
                    region.mark(to, bytes, State::Bulk);
                }
            }
        }
        self.cluster.progress += 1;
        let early = if self.mixed { self.dice.roll(2) == 0 } else { self.early };
        match flight.mbarrier {
            Some(_) if early => self.arrive_bulk(flight),
            Some(at) => {
                self.cluster.flights.push(flight);
                ranks.iter().for_each(|rank| self.cluster.changed(*rank, at));
            }
            None => {
                if early {
                    self.read_bulk(&mut flight);
                    flight.clone().flush(self.memory);
                    flight.pieces.clear();
                }
                warp.beside.bulk[lane].open.push(flight);
            }
        }
        Ok(())
    }

    /// The source is read.
    fn read_bulk(&mut self, flight: &mut Flight) {
        if flight.data.is_some() {
            return;
        }
        let mut data = Vec::with_capacity(flight.pieces.iter().map(|piece| piece.bytes).sum());
        let follows = |a: &Piece, b: &Piece| a.from.is_some_and(|at| b.from == Some(at + a.bytes));
        for pieces in flight.pieces.chunk_by(follows) {
            let bytes = pieces.iter().map(|piece| piece.bytes).sum::<usize>();
            match pieces[0].from {
                Some(at) => data.extend(&self.region(&mut [], flight.from).data[at..at + bytes]),
                None => data.resize(data.len() + bytes, 0),
            }
        }
        flight.data = Some(data);
    }

    /// A copy that an mbarrier awaits arrives.
    pub fn arrive_bulk(&mut self, mut flight: Flight) {
        self.read_bulk(&mut flight);
        let runs = match flight.runs.is_empty() {
            true => runs(flight.pieces.iter().map(|p| (p.to, p.bytes))),
            false => std::mem::take(&mut flight.runs),
        };
        let (data, strong) = (flight.data.take().unwrap_or_default(), flight.reduce.is_some());
        for place in &flight.to {
            let (Where::Shared(rank), Some(bar)) = (*place, flight.mbarrier) else { continue };
            let region = &mut self.cluster.shared[rank];
            write(&mut region.data, &flight.pieces, &data, flight.reduce);
            runs.iter().for_each(|(to, bytes)| region.mark(*to, *bytes, State::Written));
            if let Some(agent) = self.cluster.current(rank, bar) {
                let races = &mut self.cluster.shared[rank].races;
                runs.iter().for_each(|(to, bytes)| races.stamp(*to, *bytes, agent, (flight.pc, strong)));
            }
            if flight.copy > 0 {
                self.landed(&flight, rank, bar);
            }
            self.cluster.arrives(rank, bar, flight.bytes, flight.arrivals);
        }
    }

    /// The first `n` copies under way to an mbarrier arrive.
    pub fn land(&mut self, rank: usize, at: usize, n: usize) {
        for _ in 0..n {
            let first = self.cluster.under_way(rank, at).map(|u| u.0).next();
            let Some(flight) = first.map(|i| self.cluster.flights.remove(i)) else { return };
            self.arrive_bulk(flight);
        }
    }

    /// `cp.async.bulk.wait_group`: all but the last `pending` groups of each lane are over, or have read their sources.
    /// That is known to that lane, and to the others once something orders them behind it.
    pub fn bulk_wait(&mut self, warp: &mut Warp, run: &Run<'_>, pending: usize, read: bool) {
        for lane in lanes(run.exec) {
            let mut groups = std::mem::take(&mut warp.beside.bulk[lane]);
            let done = groups.closed.len().saturating_sub(pending);
            groups.closed[..done].iter_mut().flatten().for_each(|f| self.read_bulk(f));
            let (block, thread) = (warp.clock.block, warp.index * LANES as u32 + lane as u32);
            let number = groups.over + done as u32;
            // Of threads that have committed none, nothing is known.
            if number > 0 {
                let reads = self.agents.number(Agent::BulkReads(block, thread));
                warp.waited(lane, reads, number);
            }
            if !read {
                groups.closed.drain(..done).flatten().for_each(|mut f| f.flush(self.memory));
                groups.over = number;
            }
            if !read && number > 0 {
                let writes = self.agents.number(Agent::BulkWrites(block, thread));
                warp.waited(lane, writes, number);
            }
            warp.beside.bulk[lane] = groups;
        }
    }
}
