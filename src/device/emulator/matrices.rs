//! `stmatrix`: the reverse of `ldmatrix`.

use super::access::{Done, Run, wavefronts};
use super::memory::State;
use super::ptx::{Addr, LANES, Space, Src};
use super::step::Context;
use super::warp::{Warp, lanes};

impl Context<'_> {
    /// Lane 8 i + r gives the address of row r of matrix i; each lane has two elements of every matrix.
    pub fn store_matrices(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        s: &[Src],
        trans: bool,
        addr: &Addr,
    ) -> Done {
        self.known(warp, run, s)?;
        let addresses = self.addresses(warp, run, addr)?;
        let givers = if s.len() == 4 { !0 } else { (1u32 << (8 * s.len())) - 1 };
        let passes: u64 = (0..s.len()).map(|i| wavefronts(&addresses, 0xff << (8 * i), 16).0).sum();
        let count = &mut self.counts[run.pc as usize];
        count.wavefronts += passes;
        count.conflicts += passes - s.len() as u64;
        let mut rows = [[0u8; 16]; LANES];
        for (i, s) in s.iter().enumerate() {
            for (lane, value) in warp.look(run.frame, *s, &self.module.consts).iter().enumerate() {
                for (e, bytes) in value.to_le_bytes().chunks_exact(2).take(2).enumerate() {
                    let (r, c) = (lane / 4, lane % 4 * 2 + e);
                    let (r, c) = if trans { (c, r) } else { (r, c) };
                    rows[8 * i + r][2 * c..2 * c + 2].copy_from_slice(bytes);
                }
            }
        }
        for lane in lanes(run.exec & givers) {
            let (place, at) =
                self.write(warp, run, Space::Shared, lane, addresses[lane], &rows[lane], false)?;
            let region = self.region(&mut warp.local, place);
            region.data[at..at + 16].copy_from_slice(&rows[lane]);
            region.mark(at, 16, State::Written);
        }
        Ok(())
    }
}
