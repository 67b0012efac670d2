//! Happens-before: vector clocks of warps and what is known of an access. The last accesses to every byte: `shadow`.
//!
//! Barriers of a block and of a warp order what is before them with what is behind. Across blocks, and through
//! shared memory without a barrier, a fence, an atomic (or volatile) write, a read of it, and a fence do; a fence
//! counts for its whole warp. Lanes of one warp are ordered by `bar.warp.sync` and block barriers alone: the
//! hardware may run them one after the other. Within one warp an mbarrier orders like a warp barrier.
//!
//! What runs beside the warps (bulk copies, `wgmma`) acts as an *agent*: one for each thing that its completion is
//! awaited by, that is an mbarrier (time: its phases), a thread's bulk groups or its `cp.async` (time: their number; one
//! agent for a warp that copies as one). Only who has waited for that, or has heard of it from one who did, is behind the
//! agent's accesses.
//!
//! A clock also holds which writes a proxy fence has made visible to the asynchronous proxy: a fence does so for all
//! that its thread knows of, whoever wrote it, as the ISA's causality order says (a fence anywhere on the way counts).

use crate::isa::module::Module;
use crate::isa::operand::Proxy;
use crate::report::finding::At;
use std::collections::HashMap;
use std::sync::Arc;

/// Warps of a block, at most.
pub const WARPS: usize = 32;

/// What a warp knows of the others: up to which time of theirs everything is done.
#[derive(Debug, Default)]
pub struct Clock {
    /// Of its own block.
    pub own: [u32; WARPS],
    /// Of other blocks, rising.
    pub others: Vec<(u32, [u32; WARPS])>,
    /// Which block `own` is about.
    pub block: u32,
    /// Of some lanes of a warp only: (block and warp, lanes, up to which time).
    pub lanes: Vec<(u32, u32, u32)>,
    /// Of agents: (which, up to which time), rising.
    pub agents: Vec<(u32, u32)>,
    /// Of what a proxy fence came behind, by [`Proxy`]. Those who have heard of one fence share it.
    pub fenced: [Option<Arc<Clock>>; 3],
}

impl Clone for Clock {
    fn clone(&self) -> Clock {
        Clock {
            own: self.own,
            others: self.others.clone(),
            block: self.block,
            lanes: self.lanes.clone(),
            agents: self.agents.clone(),
            fenced: self.fenced.clone(),
        }
    }

    /// Into the lists that are there.
    fn clone_from(&mut self, other: &Clock) {
        (self.own, self.block) = (other.own, other.block);
        self.others.clone_from(&other.others);
        self.lanes.clone_from(&other.lanes);
        self.agents.clone_from(&other.agents);
        self.fenced.clone_from(&other.fenced);
    }
}

impl Clock {
    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Clock) {
        self.join_warps(other);
        let alike = self.agents.len() == other.agents.len();
        match alike && self.agents.iter().zip(&other.agents).all(|(a, b)| a.0 == b.0) {
            true => self.agents.iter_mut().zip(&other.agents).for_each(|(a, b)| a.1 = a.1.max(b.1)),
            false => other.agents.iter().for_each(|(agent, time)| self.heard(*agent, *time)),
        }
        for (to, from) in self.fenced.iter_mut().zip(&other.fenced) {
            let Some(from) = from else { continue };
            match to {
                Some(to) if Arc::ptr_eq(to, from) => {}
                Some(to) => Arc::make_mut(to).join(from),
                None => *to = Some(from.clone()),
            }
        }
    }

    /// The same of what it knows of warps.
    fn join_warps(&mut self, other: &Clock) {
        let merge = |to: &mut [u32; WARPS], from: &[u32; WARPS]| {
            to.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).max(*b));
        };
        if other.block == self.block {
            merge(&mut self.own, &other.own);
        } else {
            merge(self.other(other.block), &other.own);
        }
        for (block, times) in &other.others {
            match *block == self.block {
                true => merge(&mut self.own, times),
                false => merge(self.other(*block), times),
            }
        }
        for (warp, lanes, time) in &other.lanes {
            if *time > self.some(*warp, *lanes) {
                self.lanes.retain(|l| (l.0, l.1) != (*warp, *lanes));
                self.lanes.push((*warp, *lanes, *time));
            }
        }
    }

    fn other(&mut self, block: u32) -> &mut [u32; WARPS] {
        let at = self.others.binary_search_by_key(&block, |o| o.0).unwrap_or_else(|at| {
            self.others.insert(at, (block, [0; WARPS]));
            at
        });
        &mut self.others[at].1
    }

    /// Forgets all that `other` does not know.
    pub fn meet(&mut self, other: &Clock) {
        let both = |(warp, lanes, time): &(u32, u32, u32)| {
            let time = self.some(*warp, *lanes).min(other.some(*warp, *lanes)).min(*time);
            (time > 0).then_some((*warp, *lanes, time))
        };
        self.lanes = self.lanes.iter().chain(&other.lanes).filter_map(both).collect();
        match other.block == self.block {
            true => self.own.iter_mut().zip(&other.own).for_each(|(time, other)| *time = (*time).min(*other)),
            false => {
                let block = self.block;
                self.own.iter_mut().enumerate().for_each(|(w, time)| *time = (*time).min(other.of(block, w)));
            }
        }
        for (block, times) in &mut self.others {
            times.iter_mut().enumerate().for_each(|(w, time)| *time = (*time).min(other.of(*block, w)));
        }
        let alike = self.agents.len() == other.agents.len();
        if alike && self.agents.iter().zip(&other.agents).all(|(a, b)| a.0 == b.0) {
            self.agents.iter_mut().zip(&other.agents).for_each(|(a, b)| a.1 = a.1.min(b.1));
            self.agents.retain(|a| a.1 > 0);
        } else {
            self.agents.retain_mut(|(agent, time)| {
                let found = other.agents.binary_search_by_key(agent, |a| a.0);
                *time = found.map_or(0, |i| other.agents[i].1.min(*time));
                *time > 0
            });
        }
        for (mine, theirs) in self.fenced.iter_mut().zip(&other.fenced) {
            match (mine.as_mut(), theirs) {
                (Some(mine), Some(theirs)) if Arc::ptr_eq(mine, theirs) => {}
                (Some(mine), Some(theirs)) => Arc::make_mut(mine).meet(theirs),
                _ => *mine = None,
            }
        }
    }

    /// Up to which time everything of some lanes of a warp is done.
    fn some(&self, warp: u32, lanes: u32) -> u32 {
        let known = self.lanes.iter().filter(|l| l.0 == warp && l.1 & lanes == lanes).map(|l| l.2);
        known.fold(self.of(warp / WARPS as u32, warp as usize % WARPS), u32::max)
    }

    /// Up to which time everything of a thread is done.
    pub fn thread(&self, block: u32, thread: u32) -> u32 {
        let known = self.lanes.iter().filter(|l| names(l, block, thread)).map(|l| l.2);
        known.fold(self.of(block, thread as usize / 32), u32::max)
    }

    /// A clock of this block that knows nothing.
    pub fn blank(block: u32) -> Clock {
        Clock { block, ..Clock::default() }
    }

    /// What some lanes of a warp publish: what they have done, what all of it did before it last came together at
    /// `floor`, and all that the warp knows of others.
    pub fn part(&self, warp: u32, lanes: u32, floor: u32) -> Clock {
        let mut part = self.clone();
        let time = std::mem::replace(&mut part.own[warp as usize], floor - 1);
        part.lanes.retain(|l| (l.0, l.1) != (self.block * WARPS as u32 + warp, lanes));
        part.lanes.push((self.block * WARPS as u32 + warp, lanes, time));
        part
    }

    /// An agent's accesses up to this time are over.
    pub fn heard(&mut self, agent: u32, time: u32) {
        match self.agents.binary_search_by_key(&agent, |a| a.0) {
            Ok(i) => self.agents[i].1 = self.agents[i].1.max(time),
            Err(i) => self.agents.insert(i, (agent, time)),
        }
    }

    /// Whether they are.
    pub fn knows(&self, agent: u32, time: u32) -> bool {
        self.agents.binary_search_by_key(&agent, |a| a.0).is_ok_and(|i| time <= self.agents[i].1)
    }

    /// What it knows so far is visible to the asynchronous proxy.
    pub fn fence(&mut self, proxies: &[Proxy]) {
        let (own, block) = (self.own, self.block);
        let (others, lanes) = (self.others.clone(), self.lanes.clone());
        let bare = Arc::new(Clock { own, others, block, lanes, ..Clock::default() });
        for proxy in proxies {
            match &mut self.fenced[*proxy as usize] {
                Some(fenced) => Arc::make_mut(fenced).join_warps(&bare),
                none => *none = Some(bare.clone()),
            }
        }
    }

    /// Up to which time everything of a warp is done.
    pub fn of(&self, block: u32, warp: usize) -> u32 {
        match block == self.block {
            true => self.own[warp],
            false => self.others.binary_search_by_key(&block, |o| o.0).map_or(0, |i| self.others[i].1[warp]),
        }
    }
}

/// Whether what is known of some lanes of a warp is about this thread.
fn names(of: &(u32, u32, u32), block: u32, thread: u32) -> bool {
    of.0 == block * WARPS as u32 + thread / 32 && of.1 >> (thread % 32) & 1 == 1
}

/// What an agent's completion is awaited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agent {
    /// The mbarrier at an offset of a block's shared memory.
    Mbarrier(u32, u32),
    /// The reads of a thread's bulk groups: block, thread.
    BulkReads(u32, u32),
    /// Their writes.
    BulkWrites(u32, u32),
    /// A warp's groups of `wgmma`: block, warp.
    Wgmma(u32, u32),
    /// The kernel before, which may still run: see [`super::predecessor`].
    Predecessor,
    /// The reads of a thread's `cp.async`, or of its warp's, whose first it is: block, thread.
    CopyReads(u32, u32),
}

/// The agents of a launch, by number.
#[derive(Debug, Default)]
pub struct Agents {
    list: Vec<Agent>,
    numbers: HashMap<Agent, u32>,
}

impl Agents {
    /// The number of an agent.
    pub fn number(&mut self, agent: Agent) -> u32 {
        let next = self.list.len() as u32;
        let number = *self.numbers.entry(agent).or_insert(next);
        if number == next {
            self.list.push(agent);
        }
        number
    }

    /// The numbers that the agents of another list have in this one.
    pub fn adopt(&mut self, others: &Agents) -> Vec<u32> {
        others.list.iter().map(|agent| self.number(*agent)).collect()
    }

    /// Block and thread of which an agent is one.
    pub fn owner(&self, number: u32) -> (u32, u32) {
        match self.list[number as usize] {
            Agent::Mbarrier(block, _) => (block, 0),
            Agent::BulkReads(block, thread)
            | Agent::BulkWrites(block, thread)
            | Agent::CopyReads(block, thread) => (block, thread),
            Agent::Wgmma(block, warp) => (block, warp * 32),
            Agent::Predecessor => (0, 0),
        }
    }

    /// Whether nothing beside the warps has touched shared memory: `cp.async` reads the global one.
    pub fn none_in_shared(&self) -> bool {
        self.list.iter().all(|agent| matches!(agent, Agent::CopyReads(..) | Agent::Predecessor))
    }

    /// What an agent is called in a report.
    pub fn name(&self, number: u32) -> String {
        match self.list.get(number as usize) {
            Some(Agent::Mbarrier(block, at)) => {
                format!("asynchronous, awaited by the mbarrier at shared memory+{at} of block {block}")
            }
            Some(Agent::BulkReads(block, thread) | Agent::BulkWrites(block, thread)) => {
                format!("asynchronous, in a bulk group of block {block}, thread {thread}")
            }
            Some(Agent::Wgmma(block, warp)) => {
                format!("asynchronous, in a wgmma group of block {block}, warp {warp}")
            }
            Some(Agent::CopyReads(block, thread)) => {
                format!("asynchronous, a cp.async of block {block}, warp {}", thread / 32)
            }
            Some(Agent::Predecessor) | None => "asynchronous".to_string(),
        }
    }
}

/// A lane that accesses memory.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// What its warp knows.
    pub clock: &'a Clock,
    /// What single threads of its warp know besides: thread, agent, time.
    pub waited: &'a [(u32, u32, u32)],
    /// Its warp's time at the last warp-wide synchronisation.
    pub floor: u32,
    /// Thread in the block.
    pub thread: u32,
    /// Instruction.
    pub pc: u32,
    /// Atomic or volatile.
    pub strong: bool,
    /// The agent that does it on the lane's behalf, and its time.
    pub agent: Option<(u32, u32)>,
}

/// One access, remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Touch {
    /// `block * 1024 + thread`, plus one; zero for none. The agent plus one where an agent did it.
    who: u32,
    time: u32,
    /// The instruction, doubled; odd when it was strong. The top bit: an agent did it.
    pc: u32,
}

const AGENT: u32 = 1 << 31;

impl Touch {
    /// Of an access that is made now.
    pub fn of(who: &Who<'_>) -> Touch {
        let pc = who.pc * 2 + u32::from(who.strong);
        match who.agent {
            Some((agent, time)) => Touch { who: agent + 1, time, pc: pc | AGENT },
            None => {
                let time = who.clock.own[who.thread as usize / 32];
                Touch { who: who.clock.block * 1024 + who.thread + 1, time, pc }
            }
        }
    }

    /// Of an agent's that was checked before: agent and time, instruction and strength.
    pub fn agent((agent, time): (u32, u32), (pc, strong): (u32, bool)) -> Touch {
        Touch { who: agent + 1, time, pc: (pc * 2 + u32::from(strong)) | AGENT }
    }

    /// The same of a lane so many behind this one.
    #[inline]
    pub fn behind(self, lanes: u32) -> Touch {
        Touch { who: self.who + if self.pc & AGENT == 0 { lanes } else { 0 }, ..self }
    }

    /// The same by an agent's new number.
    pub fn renumbered(self, numbers: &[u32]) -> Touch {
        match self.by() {
            Err(agent) => Touch { who: numbers[agent as usize] + 1, ..self },
            Ok(_) => self,
        }
    }

    /// Whether there is one.
    pub fn is_some(self) -> bool {
        self.who != 0
    }

    /// Whether both are a lane's, or both an agent's, of the same number.
    pub fn same_lane(self, other: Touch) -> bool {
        self.who == other.who
    }

    /// The warp's time, or the agent's.
    pub fn time(self) -> u32 {
        self.time
    }

    /// Block and thread, or the agent.
    pub fn by(self) -> Result<(u32, u32), u32> {
        match self.pc & AGENT {
            0 => Ok((self.who.wrapping_sub(1) / 1024, self.who.wrapping_sub(1) % 1024)),
            _ => Err(self.who - 1),
        }
    }

    /// Instruction.
    pub fn pc(self) -> u32 {
        (self.pc & !AGENT) / 2
    }

    /// Warps of the grid, and agents, by one number each.
    pub fn warp(self) -> u64 {
        match self.pc & AGENT {
            0 => u64::from(self.who.wrapping_sub(1) / 32),
            _ => 1 << 32 | u64::from(self.who),
        }
    }

    /// Whether both are of one warp, or of one agent.
    #[inline]
    pub fn same_warp(self, other: Touch) -> bool {
        let lanes = if self.pc & AGENT == 0 { 5 } else { 0 };
        let whole = |who: u32| who.wrapping_sub(1) >> lanes;
        (self.pc ^ other.pc) & AGENT == 0 && whole(self.who) == whole(other.who)
    }

    /// Whether both are one agent's, and this one is no later.
    #[inline]
    pub fn no_later(self, other: Touch) -> bool {
        self.pc & other.pc & AGENT != 0 && self.who == other.who && self.time <= other.time
    }

    /// Whether a lane of that warp did it.
    pub fn within(self, who: &Who<'_>) -> bool {
        self.by().is_ok_and(|(block, thread)| block == who.clock.block && thread / 32 == who.thread / 32)
    }

    /// Whether it may happen at the same time as what `who` does now.
    #[inline]
    pub fn races(self, who: &Who<'_>, many: bool) -> bool {
        if self.who == 0 || self.pc & 1 == 1 && who.strong {
            return false;
        }
        // Mostly another warp of the block did it, or the same thread.
        let (block, thread) = ((self.who - 1) / 1024, (self.who - 1) % 1024);
        if self.pc & AGENT == 0 && block == who.clock.block {
            if thread == who.thread && !many {
                return false;
            }
            if thread / 32 != who.thread / 32 && who.clock.lanes.is_empty() {
                return self.time > who.clock.own[thread as usize / 32];
            }
        }
        self.meets(who, many)
    }

    fn meets(self, who: &Who<'_>, many: bool) -> bool {
        let (block, thread) = match self.by() {
            Ok(by) => by,
            Err(agent) => {
                let own = |w: &(u32, u32, u32)| (w.0, w.1) == (who.thread, agent) && self.time <= w.2;
                return !who.clock.knows(agent, self.time) && !who.waited.iter().any(own);
            }
        };
        let warp = thread as usize / 32;
        if block == who.clock.block && warp == who.thread as usize / 32 {
            let other = self.time >= who.floor && (thread != who.thread || many);
            // The warp's own time says nothing about its other lanes.
            let heard = !many && who.clock.lanes.iter().any(|l| names(l, block, thread) && self.time <= l.2);
            return other && !heard;
        }
        self.time > if many { who.clock.of(block, warp) } else { who.clock.thread(block, thread) }
    }

    /// Whether what one lane of a warp knows of it is known to all of them.
    pub fn common(self, who: &Who<'_>) -> bool {
        // What is before the warp's last barrier is over for all of them.
        let over = self.time < who.floor || !self.within(who);
        over && who.clock.lanes.is_empty() && who.waited.is_empty()
    }

    /// Whether it is a warp's access that no proxy fence has come behind, as far as `clock` knows.
    pub fn unfenced(self, clock: &Clock, proxy: Proxy) -> bool {
        let (true, Ok((block, thread))) = (self.who != 0, self.by()) else { return false };
        let fenced = clock.fenced[proxy as usize].as_ref();
        fenced.is_none_or(|f| self.time > f.thread(block, thread))
    }
}

/// Where an access was, and whose.
pub fn spelled(module: &Module, extents: ([u32; 3], [u32; 3]), agents: &Agents, touch: Touch) -> String {
    let there = module.place(&module.insts[touch.pc() as usize]);
    match touch.by() {
        Ok((block, thread)) => {
            let At { block: [bx, by, bz], thread: [tx, ty, tz] } = At::of(extents, block, thread);
            format!("{there}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})")
        }
        Err(agent) => format!("{there}, {}", agents.name(agent)),
    }
}
