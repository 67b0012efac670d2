//! The asynchronous proxy: what bulk copies and `wgmma` see of memory, and what they may not touch.
//!
//! An ordinary write is invisible to it until a proxy fence comes behind the write and before the operation.

use super::context::{Context, Done, Run};
use crate::isa::operand::Proxy;
use crate::machine::clock::{Touch, Who};
use crate::machine::flight::Where;
use crate::machine::shadow::parts;
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

/// On whose behalf the asynchronous proxy acts: a lane of a warp, an agent, and the agent's time at which it is done.
#[derive(Clone, Copy)]
pub struct Behalf<'a> {
    /// The warp.
    pub warp: &'a Warp,
    /// The lane that a report names.
    pub lane: usize,
    /// [`Agents::number`](crate::machine::clock::Agents::number) of what its completion is awaited by.
    pub agent: u32,
    /// Who has heard of this time of the agent's is behind the access.
    pub time: u32,
}

impl Context<'_> {
    fn who<'a>(behalf: &Behalf<'a>, run: &Run<'_>, strong: bool) -> Who<'a> {
        let Behalf { warp, lane, agent, time } = *behalf;
        Who { agent: Some((agent, time)), ..warp.who(lane, run.pc, strong) }
    }

    /// The asynchronous proxy reads `bytes` of global or shared memory at `at`, on behalf of a warp at `run`'s line.
    /// Reports bytes that are out of bounds, that nothing has written, that another copy is still writing, that are
    /// written without an order before this, or whose last ordinary write no proxy fence has followed. A write that
    /// does not know of the agent's time is a race from now on. Alignment and the data are the caller's matter.
    pub fn proxy_reads(
        &mut self,
        run: &Run<'_>,
        behalf: &Behalf<'_>,
        (place, at): (Where, usize),
        bytes: usize,
    ) -> Done {
        let Behalf { warp, lane, .. } = *behalf;
        let region = self.region(&mut [], place);
        if region.plain_run(at as i64, (bytes, 1), false).is_none() {
            let found = region.range(at as i64, bytes, false);
            let at = found.map_err(|bad| self.bad(warp, lane, run.inst, bad))?;
            if let Err(bad) = self.region(&mut [], place).readable(at, bytes) {
                let fault = self.lacking(warp, lane, run.inst, (place, at as i64, bytes), bad);
                self.report(fault)?;
            }
        }
        self.not_before(warp, run, lane, (place, at), bytes, false)?;
        let (who, proxy) = (Self::who(behalf, run, false), proxy(place));
        for (from, n) in parts(at, bytes) {
            let other = match self.region(&mut [], place).races.read_beside(from, n, &who, proxy) {
                None => None,
                Some((write, true)) => {
                    self.report(self.unfenced(run, (warp, lane), place, from, write))?;
                    self.region(&mut [], place).races.read(from, n, &who)
                }
                Some((other, false)) => {
                    // A missing fence is said first, wherever.
                    self.seen(run, behalf, place, from, at + bytes - from)?;
                    Some(other)
                }
            };
            if let Some(other) = other {
                self.region(&mut [], place).races.note(from, n, &who, false);
                self.report(self.race(warp, lane, run, (place, from), false, other))?;
            }
        }
        Ok(())
    }

    /// The same for a write: besides, nobody may be reading the bytes. `strong`: it is an atomic addition or the like.
    /// `proxied`: it sees no more than the asynchronous proxy does.
    pub fn proxy_writes(
        &mut self,
        run: &Run<'_>,
        behalf: &Behalf<'_>,
        (place, at): (Where, usize),
        bytes: usize,
        (strong, proxied): (bool, bool),
    ) -> Done {
        let Behalf { warp, lane, .. } = *behalf;
        let region = self.region(&mut [], place);
        if region.plain_run(at as i64, (bytes, 1), true).is_none() {
            let found = region.range(at as i64, bytes, true);
            let at = found.map_err(|bad| self.bad(warp, lane, run.inst, bad))?;
            if let Err(bad) = self.region(&mut [], place).writable(at, bytes) {
                self.report(self.bad(warp, lane, run.inst, bad))?;
            }
        }
        self.not_before(warp, run, lane, (place, at), bytes, true)?;
        let (who, proxy) = (Self::who(behalf, run, strong), proxied.then(|| proxy(place)));
        for (from, n) in parts(at, bytes) {
            let other = match self.region(&mut [], place).races.write_beside(from, n, &who, proxy) {
                None => None,
                Some((write, true)) => {
                    self.report(self.unfenced(run, (warp, lane), place, from, write))?;
                    self.region(&mut [], place).races.write(from, n, &who, false)
                }
                Some((other, false)) => {
                    if proxied {
                        self.seen(run, behalf, place, from, at + bytes - from)?;
                    }
                    Some(other)
                }
            };
            if let Some(other) = other {
                self.region(&mut [], place).races.note(from, n, &who, true);
                self.report(self.race(warp, lane, run, (place, from), true, other))?;
            }
        }
        Ok(())
    }

    /// Reports bytes whose last ordinary write is invisible to the asynchronous proxy.
    fn seen(&mut self, run: &Run<'_>, behalf: &Behalf<'_>, place: Where, at: usize, bytes: usize) -> Done {
        for (from, n) in parts(at, bytes) {
            let races = &mut self.region(&mut [], place).races;
            if let Some(write) = races.unfenced(from, n, &behalf.warp.clock, proxy(place)) {
                self.report(self.unfenced(run, (behalf.warp, behalf.lane), place, from, write))?;
            }
        }
        Ok(())
    }

    /// The report of that.
    pub fn unfenced(
        &self,
        run: &Run<'_>,
        (warp, lane): (&Warp, usize),
        place: Where,
        at: usize,
        write: Touch,
    ) -> Box<Fault> {
        let (name, space) = match place {
            Where::Global(i) => (&*self.memory.regions[i].name, "global"),
            Where::Shared(rank) => (&*self.cluster.shared[rank].name, "shared::cta"),
            Where::Local(_) => ("local memory", "local"),
        };
        let what = format!(
            "fence: an ordinary write to {name}+{at} is invisible to the asynchronous proxy; \
             fence.proxy.async.{space} is missing behind it"
        );
        self.fault(Kind::Fence, warp, lane, run.inst, what).and(format!("the write: {}", self.spelled(write)))
    }
}

/// The one that sees memory of a place.
fn proxy(place: Where) -> Proxy {
    match place {
        Where::Shared(_) => Proxy::Shared,
        Where::Global(_) | Where::Local(_) => Proxy::Global,
    }
}
