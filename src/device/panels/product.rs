//! How a product with panels is dealt to the cores: blocks of rows times groups of panels, a depth at a time.

use super::step::{Step, steps_of};
use super::tile::{Lines, Output, Rows, SIDE, WHOLE};
use super::units::Unit;
use super::{PANEL, Packed};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Tasks for each thread, so that one which is late keeps the others waiting for little.
const TASKS: usize = 16;
/// Steps of `x` that are packed at once, if it takes no more to have so many tasks: 16 MiB.
const PACKED: usize = 4 << 20;
/// Rows so many f32 apart, or a multiple, fall into one set of the level-1 cache, which has as many ways as a tile has rows.
const PAGE: usize = 1024;
/// As many rows of a depth are packed by several threads; fewer are packed before another thread has begun.
const FEW: usize = 64;

/// Some steps of a panel of these, in `room` if they do not lie there, and the memory that the next panel is made of.
pub type Panel<P, S> =
    for<'a> fn(&'a Packed<P>, usize, Range<usize>, &'a mut Vec<u32>) -> (&'a [S], &'a [u8]);

/// `y = x w`, added to `y` where `add`, with the panels that `panel` gives, of so many steps, at least 1.
///
/// Panics if the slices are not as long as they say.
pub fn product<P: Step, S: Step, U: Unit<S>>(
    load: fn() -> U,
    y: Rows<&mut [f32]>,
    add: bool,
    x: Rows<&[f32]>,
    (w, panel, steps): (&Packed<P>, Panel<P, S>, usize),
) {
    assert!(x.rows == y.rows && x.data.len() == x.rows * x.cols && steps > 0);
    let (deep, most, tiled) = {
        let unit = load();
        (unit.depth().min(steps), unit.rows(), unit.tiled())
    };
    let (n, m, panels) = (y.rows, y.cols, y.cols.div_ceil(PANEL));
    let tasks = TASKS * rayon::current_num_threads();
    // Blocks of one size, in whole tiles of any unit.
    let block = n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(WHOLE).max(WHOLE);
    let size = block * steps.next_multiple_of(deep);
    let y = Output::new(y);
    let unpacked = S::as_they_lie(x.data).filter(|_| !x.cols.is_multiple_of(PAGE));
    let chunk = match unpacked {
        Some(_) => n.max(1),
        None => block * tasks.div_ceil(panels.max(1)).max(PACKED / (block * steps)),
    };
    let mut room = ROWS.take();
    for chunk in (0..n).step_by(chunk).map(|first| first..n.min(first + chunk)) {
        let blocks = chunk.len().div_ceil(block);
        let groups = tasks.div_ceil(blocks).min(panels);
        let rooms = steps_of(&mut room, if unpacked.is_some() { 0 } else { blocks * size });
        let mut rooms = rooms.chunks_mut(size);
        let work: Vec<_> =
            chunk.step_by(block).map(|first| (first, rooms.next().unwrap_or_default())).collect();
        // Who packs a block begins with its first panels, while its rows are in the cache.
        work.into_par_iter().for_each(|(first, room)| {
            let rows = first..n.min(first + block);
            let lines = match unpacked {
                Some(all) => Source { steps: &all[first * x.cols..], row: x.cols, depth: deep },
                None => pack(room, &x, rows.clone(), (steps, deep), tiled),
            };
            (0..groups).into_par_iter().for_each_init(load, |unit, group| {
                TURNED.with_borrow_mut(|room| {
                    for first in (0..steps).step_by(deep) {
                        let (depth, x) = (first..steps.min(first + deep), lines.depth(first / deep));
                        for p in group * panels / groups..(group + 1) * panels / groups {
                            // SAFETY: tasks have rows and panels of their own, and this is the only tile of this one.
                            let mut y = unsafe { y.tile(rows.clone(), p * PANEL..m.min((p + 1) * PANEL)) };
                            let (w, next) = panel(w, p, depth.clone(), room);
                            unit.product(&mut y, x, w, add || first > 0, next);
                        }
                    }
                });
            });
        });
    }
    ROWS.set(room);
}

thread_local! {
    /// Rows of `x`, packed, of whom a product is asked; made once, or it would be the system that is busy.
    static ROWS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// A thread's panel, turned or widened.
    static TURNED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Rows of `x` in steps.
struct Source<'a, S> {
    steps: &'a [S],
    /// Steps from row to row.
    row: usize,
    /// Steps from one depth of a row to its next.
    depth: usize,
}

impl<'a, S> Source<'a, S> {
    /// So many depths on.
    fn depth(&self, depths: usize) -> Lines<'a, S> {
        Lines { steps: &self.steps[depths * self.depth..], stride: self.row, step: 1 }
    }
}

/// All steps of some rows, depth by depth, each of so many; in tiles, with rows of zeros to whole ones, or each row by itself.
fn pack<'a, S: Step>(
    room: &'a mut [S],
    x: &Rows<&[f32]>,
    rows: Range<usize>,
    (steps, deep): (usize, usize),
    tiled: bool,
) -> Source<'a, S> {
    let padded = if tiled { rows.len().next_multiple_of(WHOLE) } else { rows.len() };
    let to = &mut room[..steps.div_ceil(deep) * padded * deep];
    let put = |to: &mut [S], i: usize| {
        let (first, row) = (i / padded * deep, i % padded);
        let to = &mut to[..deep.min(steps - first)];
        let numbers = |step: usize| (step * S::NUMBERS).min(x.cols);
        match row < rows.len() {
            true => S::row(to, &x.data[(rows.start + row) * x.cols..][numbers(first)..numbers(first + deep)]),
            false => to.fill(S::zeroed()),
        }
    };
    let put_side = |room: &mut Vec<u32>, (i, to): (usize, &mut [S])| {
        if !tiled {
            return to.chunks_exact_mut(deep).zip(i * SIDE..).for_each(|(to, i)| put(to, i));
        }
        let line = steps_of(room, deep);
        for r in 0..SIDE {
            put(line, i * SIDE + r);
            let tiles = to.as_chunks_mut::<{ SIDE * SIDE }>().0.iter_mut();
            tiles
                .zip(line.as_chunks::<SIDE>().0)
                .for_each(|(to, line)| to[r * SIDE..][..SIDE].copy_from_slice(line));
        }
    };
    match to.len() < FEW * deep {
        true => to.chunks_mut(SIDE * deep).enumerate().for_each(|side| put_side(&mut Vec::new(), side)),
        false => to.par_chunks_mut(SIDE * deep).with_min_len(2).enumerate().for_each_init(Vec::new, put_side),
    }
    Source { steps: to, row: deep, depth: padded * deep }
}
