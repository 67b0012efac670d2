//! How lora_linear is spread over a GPU, and what each launch costs there: from sizes alone, so that bits and memory do not
//! depend on which GPU it is.

use super::Lora;
use crate::device::DType;
use crate::kernels::{lora_linear_bwd as bwd, lora_linear_fwd as fwd};
use crate::tensor::workspace_bytes;

/// Sizes of a call: the letters of the op, and its segments; none without low-rank deltas.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Tokens.
    pub n: usize,
    /// Columns of x.
    pub k: usize,
    /// Columns of y.
    pub m: usize,
    /// R.
    pub rank: usize,
    /// Columns of y in each segment, and whether it has an adapter.
    pub segments: Vec<(usize, bool)>,
}

/// Ranks of a k-step.
const RANKS: usize = fwd::STEP as usize;
/// Blocks that nearly fill the largest GPU of today, two on each of its 132 multiprocessors; more would queue.
const BLOCKS: usize = 256;
/// No part of a split sum is shorter.
const SHORTEST: usize = 256;

/// The most parts that `length` is split into, so that `blocks` times as many fill the GPU.
fn parts(length: usize, fill: usize, blocks: usize) -> usize {
    (fill / blocks.max(1)).clamp(1, length.div_ceil(SHORTEST).max(1))
}

/// Parts of `length` and the length of one, a multiple of `unit`.
fn split(length: usize, unit: usize, parts: usize) -> [usize; 2] {
    let part = length.div_ceil(unit).div_ceil(parts).max(1) * unit;
    [length.div_ceil(part), part]
}

/// Tiles of 128 by 128 from which on they are the quicker ones: below, multiprocessors stand idle that four times as many
/// small tiles would keep busy, at half the rate.
const LARGE: usize = 96;

/// The choice of the product's kernel: the side of its tiles.
pub fn tile(rows: usize, columns: usize) -> usize {
    let large = rows.min(columns) > 64 && rows.div_ceil(128) * columns.div_ceil(128) >= LARGE;
    if large { 128 } else { 64 }
}

impl Sizes {
    /// Of a call with these operands' sizes.
    pub fn new([n, k, m, rank]: [usize; 4], lora: Option<&Lora>) -> Sizes {
        let segment = |(&rows, &scale): (&usize, &f64)| (rows, scale != 0.0);
        let segments = lora.map_or(Vec::new(), |l| l.rows.iter().zip(l.scales).map(segment).collect());
        Sizes { n, k, m, rank, segments }
    }

    /// S R.
    fn stacked(&self) -> usize {
        self.segments.len() * self.rank
    }

    /// R in 16s.
    pub fn slices(&self) -> usize {
        self.rank.div_ceil(RANKS)
    }

    /// Blocks that share the ranks of a skinny product.
    pub fn groups(&self) -> usize {
        (self.segments.len() * self.slices()).div_ceil(fwd::SLICES as usize)
    }

    /// Of `lora_linear_xa`: parts of K and the columns of each.
    pub fn xa_splits(&self) -> [usize; 2] {
        let blocks = self.groups() * self.n.div_ceil(fwd::XA_TOKENS as usize);
        split(self.k, fwd::XA_DEPTH as usize, parts(self.k, BLOCKS, blocks))
    }

    /// Of `lora_linear_dxa`: the tiles of each segment's columns.
    pub fn tiles(&self) -> Vec<usize> {
        let of = |&(rows, adapted): &(usize, bool)| {
            if adapted { rows.div_ceil(bwd::DXA_COLUMNS as usize) } else { 0 }
        };
        self.segments.iter().map(of).collect()
    }

    /// Of `lora_linear_dxa`: the most parts of N.
    fn dxa_parts(&self) -> usize {
        parts(self.n, BLOCKS, self.tiles().iter().sum::<usize>() * self.slices())
    }

    /// Of `lora_linear_dxa`: parts of N and the tokens of each.
    pub fn dxa_splits(&self) -> [usize; 2] {
        split(self.n, bwd::TOKENS as usize, self.dxa_parts())
    }

    /// Of `lora_linear_da`, of which three blocks fit: the most parts of N.
    fn da_parts(&self) -> usize {
        parts(self.n, BLOCKS * 3 / 2, self.k.div_ceil(bwd::DA_COLUMNS as usize) * self.groups())
    }

    /// Of `lora_linear_da`: parts of N and the tokens of each.
    pub fn da_splits(&self) -> [usize; 2] {
        split(self.n, bwd::TOKENS as usize, self.da_parts())
    }

    /// Shape of the parts of xa; without elements where nothing is split.
    pub fn fwd_parts(&self) -> [usize; 3] {
        let splits = if self.segments.is_empty() { 0 } else { self.xa_splits()[0] };
        [if splits > 1 { splits } else { 0 }, self.n, self.stacked()]
    }

    /// R, filled up to whole vectors.
    pub fn whole_rank(&self) -> usize {
        self.rank.next_multiple_of(8)
    }

    /// Shape of every segment's B beside the others', zeros between; without elements where there is none.
    pub fn stacked_factors(&self) -> [usize; 2] {
        [if self.segments.is_empty() { 0 } else { self.m }, self.segments.len() * self.whole_rank()]
    }

    /// Shape of xa, or dxa, each segment's ranks filled up to whole vectors; without elements where they are.
    pub fn whole_ranks(&self) -> [usize; 2] {
        [if self.rank == self.whole_rank() { 0 } else { self.n }, self.segments.len() * self.whole_rank()]
    }

    /// Shape of every segment's A, each filled up with zeros to whole k-steps.
    pub fn padded_factors(&self) -> [usize; 2] {
        [self.segments.len() * self.slices() * RANKS, self.k]
    }

    /// Shapes of the parts of dxa, of db and of da.
    pub fn bwd_parts(&self) -> [[usize; 3]; 3] {
        let splits =
            if self.segments.is_empty() { [0; 2] } else { [self.dxa_splits()[0], self.da_splits()[0]] };
        self.bwd_parts_of(splits)
    }

    /// What a backward takes of the workspace: those parts, and room for the factors and for dxa.
    pub fn bwd_room<'a>(parts: &'a [[usize; 3]; 3], bf16: &'a [[usize; 2]; 2]) -> [(DType, &'a [usize]); 5] {
        let [dxa, db, da] = parts.each_ref().map(|shape| (DType::F32, &shape[..]));
        let [padded, whole] = bf16.each_ref().map(|shape| (DType::Bf16, &shape[..]));
        [dxa, db, da, padded, whole]
    }

    fn bwd_parts_of(&self, [db, da]: [usize; 2]) -> [[usize; 3]; 3] {
        let tiles = self.tiles().iter().sum();
        [[tiles, self.n, self.rank], [db, self.m, self.rank], [da, self.stacked(), self.k]]
    }
}

/// Bytes of workspace that the op takes at most, forward or backward, for up to so many tokens.
pub fn lora_linear_workspace(sizes: &Sizes) -> usize {
    if sizes.segments.is_empty() {
        return 0;
    }
    // Fewer tokens may be split more often: so often that they fill the GPU, and no oftener than K can be.
    let rows = (sizes.n * sizes.k.div_ceil(SHORTEST)).min(BLOCKS * fwd::XA_TOKENS as usize / sizes.groups());
    let parts = workspace_bytes(&[(DType::F32, &[rows, sizes.stacked()])]);
    let factors = [sizes.stacked_factors(), sizes.whole_ranks()];
    let fwd = parts.max(workspace_bytes(&factors.each_ref().map(|shape| (DType::Bf16, &shape[..]))));
    let shapes = sizes.bwd_parts_of([sizes.dxa_parts(), sizes.da_parts()]);
    fwd.max(workspace_bytes(&Sizes::bwd_room(&shapes, &[sizes.padded_factors(), sizes.whole_ranks()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pack_takes_more_workspace_than_was_reserved() {
        let wide = vec![(4096, true), (1024, false), (1024, true)];
        for (k, m, rank, segments) in [(4096, 6144, 16, wide), (688, 256, 5, vec![(256, true)])] {
            let sizes = |n| Sizes { n, k, m, rank, segments: segments.clone() };
            let reserved = lora_linear_workspace(&sizes(20_000));
            for n in (1..=20_000).step_by(7) {
                let bytes = |shapes: &[[usize; 3]]| {
                    let parts: Vec<_> = shapes.iter().map(|shape| (DType::F32, &shape[..])).collect();
                    workspace_bytes(&parts)
                };
                let taken = bytes(&[sizes(n).fwd_parts()]).max(bytes(&sizes(n).bwd_parts()));
                assert!(taken <= reserved, "n = {n}: {taken} of {reserved}");
            }
        }
    }
}
