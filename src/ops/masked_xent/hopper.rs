//! masked_xent on Hopper: loss and gradient of a wave of rows at a time, from logits that are computed once.

use super::Gradient;
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::masked_xent::{self as portable, MaskedXentDw, MaskedXentTotal, MaskedXentZero};
use crate::kernels::masked_xent_sm90::{
    self as kernels, MaskedXentDxSm90, MaskedXentLogitsSm90, MaskedXentMergeSm90, MaskedXentPickSm90,
    MaskedXentScaleSm90, MaskedXentSendSm90,
};
use crate::tensor::{Tensor, int, whole_vectors, workspace_bytes};

const OP: &str = "masked_xent";
const TILE: usize = kernels::TILE as usize;
/// Rows of a cluster.
const HIGH: usize = (kernels::ROWS * kernels::CLUSTER) as usize;
/// Bytes that the exponentials of a wave may take, and rows that fill the GPU when they are multiplied by w.
const WAVE: usize = 128 << 20;
const FULL: usize = 1024;

/// Rows that are held at a time; whole clusters of them, or all.
fn wave(p: usize, v: usize) -> usize {
    let rows = WAVE / 2 / v.next_multiple_of(8) / HIGH * HIGH;
    rows.max(FULL).min(p)
}

/// Shapes of what is taken of the workspace: the tiles' (most, sum, best) of a wave, the same of all rows, the exponentials of a
/// wave, its rows of x and dx.
struct Room {
    tiles: [usize; 2],
    all: [usize; 1],
    exponentials: [usize; 2],
    rows: [usize; 2],
}

impl Room {
    fn new(p: usize, v: usize, c: usize) -> Room {
        let wave = wave(p, v);
        Room {
            tiles: [v.div_ceil(TILE), wave],
            all: [p],
            exponentials: [wave, v.next_multiple_of(8)],
            rows: [wave, c],
        }
    }

    fn parts(&self) -> [(DType, &[usize]); 10] {
        let Room { tiles, all, exponentials, rows, .. } = self;
        let float = |shape| (DType::F32, shape);
        [
            float(&tiles[..]),
            float(tiles),
            (DType::I32, tiles),
            float(all),
            float(all),
            (DType::I32, all),
            float(all),
            (DType::Bf16, exponentials),
            (DType::Bf16, rows),
            (DType::Bf16, rows),
        ]
    }
}

/// Bytes of workspace for at most so many rows.
pub fn workspace(p: usize, v: usize, c: usize) -> usize {
    workspace_bytes(&Room::new(p, v, c).parts())
}

/// A launch of a thread for every eight of so many elements.
fn eights(elements: usize) -> Launch {
    let threads = kernels::ROW_THREADS as usize;
    Launch::line((elements / 8).div_ceil(threads), threads)
}

fn product(rows: usize, columns: usize) -> Launch {
    let clusters = rows.div_ceil(HIGH) * columns.div_ceil(TILE);
    Launch::clusters(clusters, kernels::CLUSTER as usize, kernels::THREADS as usize, kernels::SHARED)
}

/// total, loss and lse, and what is wanted of the gradient.
pub fn run(
    gpu: &Gpu,
    [total, loss, lse]: [&mut Tensor; 3],
    mut gradient: Option<Gradient>,
    [x, w, rows, labels]: [&Tensor; 4],
    [n, c, v, p]: [usize; 4],
) -> Result<()> {
    whole_vectors(OP, "C", c, 8)?;
    if let Some(Gradient { dx, .. }) = &mut gradient {
        let [n, c] = [int(OP, n)?, int(OP, c)?];
        let threads = portable::THREADS as usize;
        let blocks = (dx.numel() / 8).div_ceil(threads).min(16 * gpu.processors());
        let (launch, arguments) = (Launch::line(blocks, threads), MaskedXentZero { dx, n, c });
        // SAFETY: the op's contract holds dx to n and c, a multiple of 8.
        unsafe { portable::masked_xent_zero(gpu, launch, arguments) }?;
    }
    let room = Room::new(p, v, c);
    let [most, sum, best, top, mass, first_best, label, dz, picked, sent] =
        Tensor::workspace(gpu, room.parts())?;
    let (v, c) = (int(OP, v)?, int(OP, c)?);
    let step = wave(p, v as usize);
    let mut waves = Waves {
        gpu,
        x,
        w,
        rows,
        labels,
        most,
        sum,
        best,
        top,
        mass,
        first_best,
        label,
        dz,
        picked,
        sent,
        v,
        c,
    };
    for from in (0..p).step_by(step) {
        let height = step.min(p - from);
        waves.logits(from, height, gradient.is_some())?;
        waves.merge(from, height)?;
        if let Some(gradient) = &mut gradient {
            waves.gradient(from, height, gradient, (gradient.dmean / p as f64) as f32)?;
        }
    }
    let Waves { top: most, mass: sum, first_best: best, label, .. } = &waves;
    let (launch, p) = (Launch::line(1, portable::TOTAL_THREADS as usize), int(OP, p)?);
    let arguments = MaskedXentTotal { total, loss, lse, most, sum, best, label, labels, p, splits: 1 };
    // SAFETY: loss, lse and labels are of p rows, total of 2; the rows' parts are those that the launches above have written.
    unsafe { portable::masked_xent_total(gpu, launch, arguments) }
}

/// The operands, and the workspace as [`Room`] divides it.
struct Waves<'a> {
    gpu: &'a Gpu,
    x: &'a Tensor,
    w: &'a Tensor,
    rows: &'a Tensor,
    labels: &'a Tensor,
    most: Tensor,
    sum: Tensor,
    best: Tensor,
    top: Tensor,
    mass: Tensor,
    first_best: Tensor,
    label: Tensor,
    dz: Tensor,
    picked: Tensor,
    sent: Tensor,
    v: i32,
    c: i32,
}

impl Waves<'_> {
    /// The tiles of `height` rows from `from` on; their exponentials too where they are kept.
    fn logits(&mut self, from: usize, height: usize, keeps: bool) -> Result<()> {
        let Waves { gpu, x, w, rows, labels, most, sum, best, label, dz, picked, sent, v, c, .. } = self;
        let ([first, count], keeps) = ([int(OP, from)?, int(OP, height)?], i32::from(keeps));
        let (labels, v, c) = (*labels, *v, *c);
        [&mut *dz, picked, sent].into_iter().try_for_each(|t| t.set_rows(height))?;
        let (launch, arguments) =
            (eights(picked.numel()), MaskedXentPickSm90 { picked, x, rows, first, count, c });
        // SAFETY: picked is count by c, a multiple of 8, of which every thread has 8; that rows lie within x the caller answers
        // for.
        unsafe { kernels::masked_xent_pick_sm90(gpu, launch, arguments) }?;
        let q = &dz.tiles(gpu, "dz", kernels::PANEL)?;
        let picked = &self.picked.tiles(gpu, "picked", kernels::ROWS)?;
        let launch = product(height, w.shape()[0]);
        let w = &w.tiles(gpu, "w", kernels::TILE / kernels::CLUSTER)?;
        let arguments =
            MaskedXentLogitsSm90 { q, picked, w, most, sum, best, label, labels, first, count, v, c, keeps };
        // SAFETY: the maps are those that the file's head gives, of arrays that outlive the call; the parts are tiles by
        // count, label and labels as long as all rows.
        unsafe { kernels::masked_xent_logits_sm90(gpu, launch, arguments) }
    }

    /// Of each row, all of its tiles, and what each of them weighs.
    fn merge(&mut self, from: usize, height: usize) -> Result<()> {
        let Waves { gpu, most, sum, best, top, mass, first_best, .. } = self;
        let [first, count, tiles] = [int(OP, from)?, int(OP, height)?, int(OP, most.shape()[0])?];
        let threads = kernels::ROW_THREADS as usize;
        let launch = Launch::line(height.div_ceil(threads / 32), threads);
        let arguments = MaskedXentMergeSm90 { most, top, mass, first_best, sum, best, first, count, tiles };
        // SAFETY: most, sum and best are tiles by count, the others as long as all rows; a warp has a row.
        unsafe { kernels::masked_xent_merge_sm90(gpu, launch, arguments) }
    }

    /// dx of the rows, and what they add to dw, `scale` being the gradient of a row's loss.
    fn gradient(&mut self, from: usize, height: usize, to: &mut Gradient, scale: f32) -> Result<()> {
        let Waves { gpu, x, w, rows, labels, most, top, mass, label, dz, sent, v, c, .. } = self;
        let ([first, count], stride) = ([int(OP, from)?, int(OP, height)?], int(OP, dz.shape()[1])?);
        let (rows, labels, v, c) = (*rows, *labels, *v, *c);
        let launch = eights(dz.numel());
        let arguments =
            MaskedXentScaleSm90 { dz: &mut *dz, most, top, mass, label, labels, first, count, stride, scale };
        // SAFETY: dz is count by stride, a multiple of 8, of which every thread has 8; most is tiles by count.
        unsafe { kernels::masked_xent_scale_sm90(gpu, launch, arguments) }?;
        let [down, across] = [w.shape()[0], w.shape()[1]].map(|side| side.div_ceil(super::ACROSS));
        if let Some(dw) = to.dw.as_deref_mut() {
            let arguments = MaskedXentDw { dw, dz, x, rows, first, count, v, c, stride };
            let launch = super::grid(down, across);
            // SAFETY: dw is like w; dz is what was written of these rows.
            unsafe { portable::masked_xent_dw(gpu, launch, arguments) }?;
        }
        let launch = product(height, w.shape()[1]);
        let dz = &dz.tiles(gpu, "dz", kernels::ROWS)?;
        let w = &w.tiles(gpu, "w", kernels::DEPTH / kernels::CLUSTER)?;
        let map = &sent.tiles(gpu, "sent", kernels::PANEL)?;
        let arguments = MaskedXentDxSm90 { sent: map, dz, w, count, v, c };
        // SAFETY: as the product of the logits; sent is count by c.
        unsafe { kernels::masked_xent_dx_sm90(gpu, launch, arguments) }?;
        let (launch, dx) = (eights(sent.numel()), &mut *to.dx);
        let arguments = MaskedXentSendSm90 { dx, sent, rows, first, count, c };
        // SAFETY: as the pick; dx is like x, and no row of it is picked twice.
        unsafe { kernels::masked_xent_send_sm90(gpu, launch, arguments) }
    }
}
