//! `ldmatrix` and `stmatrix`: matrices of 8 x 8 halves between shared memory and registers.

use super::context::{Context, Done, Run, passes_of};
use crate::isa::operand::{Addr, LANES, Lanes, Space, Src, lanes};
use crate::machine::memory::State;
use crate::machine::warp::Warp;
use crate::report::finding::Fault;

impl Context<'_> {
    /// The lanes that give addresses for `n` matrices, and what they give; counted.
    fn rows(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        addr: &Addr,
        n: usize,
    ) -> Result<(u32, Lanes), Box<Fault>> {
        let addresses = self.addresses(warp, run, addr)?;
        let passes: u64 = (0..n).map(|i| passes_of(&addresses, 0xff << (8 * i), 4)).sum();
        let count = &mut self.counts[run.pc as usize];
        count.wavefronts += passes;
        count.conflicts += passes - n as u64;
        Ok((run.exec & if n == 4 { !0 } else { (1 << (8 * n)) - 1 }, addresses))
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
        let (givers, addresses) = self.rows(warp, run, addr, d.len())?;
        // Words of each row.
        let mut rows = [[0; 4]; LANES];
        let words = |to: &mut [u32; 4], from: &[u8]| {
            to.iter_mut().zip(from.as_chunks().0).for_each(|(to, word)| *to = u32::from_le_bytes(*word));
        };
        let (done, place, places) =
            self.read_lanes(warp, run, (Space::Shared, givers), (&addresses, 16), None);
        if done != 0 {
            let data = &self.region(&mut [], place).data[..];
            lanes(done).for_each(|lane| words(&mut rows[lane], &data[places[lane]..][..16]));
        }
        for lane in lanes(givers & !done) {
            let (place, at) =
                self.read(warp, run, Space::Shared, lane, addresses[lane], 16, (false, None))?;
            words(&mut rows[lane], &self.region(&mut warp.local, place).data[at..at + 16]);
        }
        for (d, matrix) in d.iter().zip(rows.as_chunks::<8>().0) {
            let mut values = [0; LANES];
            match trans {
                false => values.iter_mut().zip(matrix.as_flattened()).for_each(|(v, w)| *v = u64::from(*w)),
                true => {
                    let half = |r: usize, c: usize| u64::from(matrix[r][c / 2] >> (16 * (c % 2)) & 0xffff);
                    for (lane, value) in values.iter_mut().enumerate() {
                        let (r, c) = (lane / 4, lane % 4 * 2);
                        *value = half(c, r) | half(c + 1, r) << 16;
                    }
                }
            }
            warp.put(run.frame, *d, run.exec, &values, run.exec);
        }
        Ok(())
    }

    /// Lane 8 i + r gives the address of row r of matrix i; each lane has two elements of every matrix.
    pub fn store_matrices(
        &mut self,
        warp: &mut Warp,
        run: &Run<'_>,
        s: &[Src],
        trans: bool,
        addr: &Addr,
    ) -> Done {
        self.known(warp, run, s, "it stores")?;
        let (givers, addresses) = self.rows(warp, run, addr, s.len())?;
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
        for lane in lanes(givers) {
            let (place, at) =
                self.write(warp, run, Space::Shared, lane, addresses[lane], &rows[lane], false)?;
            let region = self.region(&mut warp.local, place);
            region.data[at..at + 16].copy_from_slice(&rows[lane]);
            region.mark(at, 16, State::Written);
        }
        Ok(())
    }
}
