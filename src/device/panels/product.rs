//! How a product with panels is dealt to the cores: blocks of rows times groups of panels, a depth at a time.

use super::tile::{Lines, Output, Rows};
use super::units::Unit;
use super::{DEPTH, PANEL, Packed, Step};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a task: a panel is fetched once for so many, backward also turned.
const BLOCK: usize = 512;
/// Tasks for each thread, so that one which is late keeps the others waiting for little.
const TASKS: usize = 4;
/// Rows so many f32 apart, or a multiple, fall into one set of the level-1 cache, which has as many ways as a tile has rows.
const PAGE: usize = 1024;

/// Some steps of a panel of these, in `room` if they do not lie there.
pub type Panel<S> = for<'a> fn(&'a Packed<S>, usize, Range<usize>, &'a mut Vec<u32>) -> &'a [S];

/// `y = x w`, added to `y` where `add`, with the panels that `panel` gives, of so many steps, at least 1.
///
/// Panics if the slices are not as long as they say.
pub fn product<S: Step, U: Unit<S>>(
    load: fn() -> U,
    y: Rows<&mut [f32]>,
    add: bool,
    x: Rows<&[f32]>,
    (w, panel, steps): (&Packed<S>, Panel<S>, usize),
) {
    assert!(x.rows == y.rows && x.data.len() == x.rows * x.cols && steps > 0);
    let (panels, blocks) = (y.cols.div_ceil(PANEL), x.rows.div_ceil(BLOCK));
    let groups = (TASKS * rayon::current_num_threads()).div_ceil(blocks.max(1)).clamp(1, panels.max(1));
    let (n, m) = (y.rows, y.cols);
    let y = Output::new(y);
    let unpacked = S::as_they_lie(x.data).filter(|_| !x.cols.is_multiple_of(PAGE));
    (0..groups * blocks).into_par_iter().for_each_init(load, |unit, task| {
        ROOM.with_borrow_mut(|[packed, room]| {
            let (group, block) = (task / blocks, task % blocks);
            let columns = group * panels / groups..(group + 1) * panels / groups;
            let rows = block * BLOCK..n.min((block + 1) * BLOCK);
            for first in (0..steps).step_by(DEPTH) {
                let last = steps.min(first + DEPTH);
                let x = match unpacked {
                    Some(all) => {
                        Lines { steps: &all[rows.start * x.cols + first..], stride: x.cols, step: 1 }
                    }
                    None => pack(packed, &x, rows.clone(), first..last, U::ROWS),
                };
                for p in columns.clone() {
                    // SAFETY: tasks have rows and panels of their own, and this is the only tile of this one.
                    let mut y = unsafe { y.tile(rows.clone(), p * PANEL..m.min((p + 1) * PANEL)) };
                    unit.product(&mut y, x, panel(w, p, first..last, room), add || first > 0);
                }
            }
        });
    });
}

thread_local! {
    /// A thread's rows of `x`, packed, and its panel, turned: made once, or it would be the system that is busy.
    static ROOM: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// So many steps of one of these; what is in them is not said.
pub fn steps_of<S: Step>(room: &mut Vec<u32>, steps: usize) -> &mut [S] {
    room.resize(room.len().max(steps), 0);
    bytemuck::cast_slice_mut(&mut room[..steps])
}

/// Some steps of some rows, [`DEPTH`] apart, and rows of zeros to a multiple of `whole`.
fn pack<'a, S: Step>(
    room: &'a mut Vec<u32>,
    x: &Rows<&[f32]>,
    rows: Range<usize>,
    steps: Range<usize>,
    whole: usize,
) -> Lines<'a, S> {
    let numbers = (steps.start * S::NUMBERS).min(x.cols)..(steps.end * S::NUMBERS).min(x.cols);
    let to = steps_of(room, rows.len().next_multiple_of(whole) * DEPTH);
    let (taken, beyond) = to.split_at_mut(rows.len() * DEPTH);
    for (to, row) in taken.chunks_exact_mut(DEPTH).zip(rows) {
        S::row(&mut to[..steps.len()], &x.data[row * x.cols..][numbers.clone()]);
    }
    beyond.fill(S::zeroed());
    Lines { steps: to, stride: DEPTH, step: 1 }
}
