//! `cp.async`, whose bytes arrive when they like, and `ldmatrix`.

use super::access::{Done, Run, Where, wavefronts};
use super::memory::State;
use super::ptx::{Addr, LANES, Lanes, Space, Src};
use super::race::Who;
use super::step::Context;
use super::warp::{Copy, Warp, lanes};

impl Context<'_> {
    /// `cp.async`: from now on the bytes are on their way, until a wait covers them.
    pub fn copy_async(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        to: &Addr,
        from: &Addr,
        size: usize,
        source: Option<Src>,
    ) -> Done {
        let (to, from) = (self.addresses(warp, run, to)?, self.addresses(warp, run, from)?);
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
        for lane in lanes(run.exec) {
            let reads = used.as_ref().map_or(size, |u| (u[lane] as u32 as usize).min(size));
            if reads > 0 {
                let start = from[lane] & (size as u64 - 1);
                if start != 0 {
                    return Err(self.bad(
                        warp,
                        lane,
                        run.inst,
                        format!("misaligned: cp.async of {size} bytes from {:#x}", from[lane]),
                    ));
                }
                // A part of the bytes may be all that is there.
                let step = if reads == size { size } else { 1 };
                for i in (0..reads).step_by(step) {
                    self.read(warp, run, Space::Global, lane, from[lane] + i as u64, step, false)?;
                }
            }
            let (_, at) = self.write(warp, run, Space::Shared, lane, to[lane], &[0; 16][..size], false)?;
            let copy = Copy { to: at, from: from[lane], bytes: (size, reads), pc: run.pc };
            self.own().mark(at, size, State::Flying);
            warp.open[lane].push(copy);
            if self.early {
                self.arrive(&copy, State::Flying);
            }
        }
        Ok(())
    }

    /// The bytes of a copy arrive.
    fn arrive(&mut self, copy: &Copy, state: State) {
        let (size, reads) = copy.bytes;
        let mut bytes = [0; 16];
        if let Some((region, at)) = self.memory.find(copy.from).filter(|_| reads > 0) {
            let from = at as usize;
            bytes[..reads].copy_from_slice(&self.memory.regions[region].data[from..from + reads]);
        }
        let shared = self.own();
        shared.data[copy.to..copy.to + size].copy_from_slice(&bytes[..size]);
        shared.mark(copy.to, size, state);
    }

    /// `cp.async.wait_group`: all but the last `pending` groups of each lane have arrived.
    pub fn copy_wait(&mut self, warp: &mut Warp, run: &Run<'_>, pending: usize) -> Done {
        for lane in lanes(run.exec) {
            self.land_copies(warp, lane);
            let done = warp.groups[lane].len().saturating_sub(pending);
            let copies: Vec<Copy> = warp.groups[lane].drain(..done).flatten().collect();
            for copy in copies {
                let thread = warp.index * LANES as u32 + lane as u32;
                let (clock, floor) = (&warp.clock, warp.floor);
                let who = Who { clock, floor, thread, pc: copy.pc, strong: false, agent: None };
                let race = self.own().races.write(copy.to, copy.bytes.0, &who, false);
                if let Some(other) = race {
                    return Err(self.race(warp, lane, run, (Where::Shared(self.rank), copy.to), true, other));
                }
                self.arrive(&copy, State::Written);
            }
        }
        Ok(())
    }

    /// `ldmatrix`: lane 8 i + r gives the address of row r of matrix i; each lane gets two elements of every matrix.
    pub fn load_matrices(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        d: &[u32],
        trans: bool,
        addr: &Addr,
    ) -> Done {
        let addresses = self.addresses(warp, run, addr)?;
        let givers = if d.len() == 4 { !0 } else { (1u32 << (8 * d.len())) - 1 };
        let (mut passes, mut rows) = (0, [[0u8; 16]; LANES]);
        for i in 0..d.len() {
            passes += wavefronts(&addresses, 0xff << (8 * i), 16).0;
        }
        let count = &mut self.counts[run.pc as usize];
        count.wavefronts += passes;
        count.conflicts += passes - d.len() as u64;
        for lane in lanes(run.exec & givers) {
            let (place, at) = self.read(warp, run, Space::Shared, lane, addresses[lane], 16, false)?;
            rows[lane].copy_from_slice(&self.region(&mut warp.local, place).data[at..at + 16]);
        }
        for (i, d) in d.iter().enumerate() {
            let element = |row: usize, column: usize| {
                u64::from(u16::from_le_bytes([
                    rows[8 * i + row][2 * column],
                    rows[8 * i + row][2 * column + 1],
                ]))
            };
            let values: Lanes = std::array::from_fn(|lane| {
                let (r, c) = (lane / 4, lane % 4 * 2);
                match trans {
                    false => element(r, c) | element(r, c + 1) << 16,
                    true => element(c, r) | element(c + 1, r) << 16,
                }
            });
            warp.put(run.frame, *d, run.exec, &values, run.exec);
        }
        Ok(())
    }
}
