//! Sums of gradients by slice: a step's work is cut into slices, each of which is summed by itself from zero, and the sums
//! are added as one binary tree over the slices' numbers. So the sum of all has the same bits however many processes
//! share the slices.

use crate::device::Device;
use crate::error::Result;
use crate::memory::Arena;
use crate::model::grads::Grads;
use crate::model::weights::Weights;
use crate::ops::add::add_fwd;
use std::mem::swap;

/// Where the sums of a process's slices lie until they are one.
#[derive(Default)]
pub struct Partials {
    /// Slices of this process, a power of two; 0 or 1 need no room.
    slices: usize,
    /// In steps of one batch: of 2^i slices, each zero or their sum.
    sums: Vec<Grads>,
    /// In steps of several: of every slice but the first.
    held: Vec<Grads>,
    /// Slices that are in `sums`.
    done: usize,
}

impl Partials {
    /// Room for `slices` of this process in steps of `turns` batches: log2 of them gradients, or one for each but the first.
    pub fn new(arena: &mut Arena, weights: &Weights, slices: usize, turns: usize) -> Partials {
        let mut room = |n: usize| (0..n).map(|_| Grads::new(arena, weights)).collect();
        let (sums, held) = match turns {
            1 => (room(slices.ilog2() as usize), Vec::new()),
            _ => (Vec::new(), room(slices - 1)),
        };
        Partials { slices, sums, held, done: 0 }
    }

    /// Before a slice's backward, by its number among this process's: leaves its own sum so far in `grads`.
    pub fn begin(&mut self, grads: &mut Grads, slice: usize) {
        if slice > 0
            && let Some(own) = self.held.get_mut(slice - 1)
        {
            swap(grads, own);
        }
    }

    /// After it. The slices of a step of one batch come in their order or the reverse.
    pub fn end(&mut self, device: &Device, grads: &mut Grads, slice: usize) -> Result<()> {
        if self.sums.is_empty() {
            self.begin(grads, slice);
            return Ok(());
        }
        self.done += 1;
        let level = self.done.trailing_zeros() as usize;
        for sum in &mut self.sums[..level] {
            take(device, grads, sum)?;
        }
        match self.sums.get_mut(level) {
            Some(sum) if self.done < self.slices => swap(grads, sum),
            _ => self.done = 0,
        }
        Ok(())
    }

    /// At the end of a step: leaves the sum of all slices in `grads`.
    pub fn sum(&mut self, device: &Device, grads: &mut Grads) -> Result<()> {
        let mut all: Vec<&mut Grads> = std::iter::once(grads).chain(&mut self.held).collect();
        let mut apart = 1;
        while apart < all.len() {
            for pair in all.chunks_mut(2 * apart) {
                let (left, right) = pair.split_at_mut(apart);
                take(device, left[0], right[0])?;
            }
            apart *= 2;
        }
        Ok(())
    }
}

/// `to += from`, and zeros in `from`.
fn take(device: &Device, to: &mut Grads, from: &mut Grads) -> Result<()> {
    to.all_mut().zip(from.all()).try_for_each(|(to, from)| add_fwd(device, to, from))?;
    from.clear()
}
