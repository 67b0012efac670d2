//! masked_xent on a GPU: loss and gradient of a wave of rows at a time, from logits that are computed once. The two large
//! products are those of the kernel set that the GPU runs, all else is the same.

use super::Gradient;
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::masked_xent::{
    self as kernels, MaskedXentDw, MaskedXentDx, MaskedXentLogits, MaskedXentMerge, MaskedXentPick,
    MaskedXentScale, MaskedXentSend, MaskedXentTotal, MaskedXentZero,
};
use crate::kernels::masked_xent_sm90::{self as sm90, MaskedXentDxSm90, MaskedXentLogitsSm90};
use crate::tensor::{Tensor, int, whole_vectors, workspace_bytes};

const OP: &str = "masked_xent";
/// Rows of a cluster of Hopper's, two tiles of the others'.
const HIGH: usize = (sm90::ROWS * sm90::CLUSTER) as usize;
/// Bytes that the exponentials of a wave may take, and rows that fill the GPU when they are multiplied by w.
const WAVE: usize = 128 << 20;
const FULL: usize = 1024;

/// Rows that are held at a time; whole clusters of them, or all.
pub fn wave(p: usize, v: usize) -> usize {
    let rows = WAVE / 2 / v.next_multiple_of(8) / HIGH * HIGH;
    rows.max(FULL).min(p)
}

/// Columns of a row's span.
fn span(hopper: bool) -> usize {
    (if hopper { sm90::TILE } else { kernels::SPAN }) as usize
}

/// Shapes of what is taken of the workspace: the spans' (most, sum, best) of a wave, the same of all rows, the exponentials of a
/// wave, its rows of x and dx.
struct Room {
    spans: [usize; 2],
    all: [usize; 1],
    exponentials: [usize; 2],
    rows: [usize; 2],
}

impl Room {
    fn new([p, v, c]: [usize; 3], wave: usize, span: usize) -> Room {
        let (spans, exponentials) = ([v.div_ceil(span), wave], [wave, v.next_multiple_of(8)]);
        Room { spans, all: [p], exponentials, rows: [wave, c] }
    }

    fn parts(&self) -> [(DType, &[usize]); 10] {
        let Room { spans, all, exponentials, rows } = self;
        let float = |shape| (DType::F32, shape);
        [
            float(&spans[..]),
            float(spans),
            (DType::I32, spans),
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
pub fn workspace(hopper: bool, p: usize, v: usize, c: usize) -> usize {
    workspace_bytes(&Room::new([p, v, c], wave(p, v), span(hopper)).parts())
}

/// A launch of a thread for every eight of so many elements.
fn eights(elements: usize) -> Launch {
    let threads = kernels::ROW_THREADS as usize;
    Launch::line((elements / 8).div_ceil(threads), threads)
}

/// A launch for the tiles of a product.
fn product(rows: usize, columns: usize) -> Launch {
    let tile = kernels::TILE as usize;
    Launch::line(rows.div_ceil(tile) * columns.div_ceil(tile), kernels::THREADS as usize)
}

fn product_sm90(rows: usize, columns: usize) -> Launch {
    let clusters = rows.div_ceil(HIGH) * columns.div_ceil(sm90::TILE as usize);
    Launch::clusters(clusters, sm90::CLUSTER as usize, sm90::THREADS as usize, sm90::SHARED)
}

/// total, loss and lse, and what is wanted of the gradient, by waves of so many rows.
pub fn run(
    gpu: &Gpu,
    [total, loss, lse]: [&mut Tensor; 3],
    mut gradient: Option<Gradient>,
    [x, w, rows, labels]: [&Tensor; 4],
    [n, c, v, p]: [usize; 4],
    wave: usize,
) -> Result<()> {
    whole_vectors(OP, "C", c, 8)?;
    if let Some(Gradient { dx, .. }) = &mut gradient {
        let [n, c] = [int(OP, n)?, int(OP, c)?];
        let threads = kernels::ROW_THREADS as usize;
        let blocks = (dx.numel() / 8).div_ceil(threads).min(16 * gpu.processors());
        let (launch, arguments) = (Launch::line(blocks, threads), MaskedXentZero { dx, n, c });
        // SAFETY: the op's contract holds dx to n and c, a multiple of 8.
        unsafe { kernels::masked_xent_zero(gpu, launch, arguments) }?;
    }
    let hopper = gpu.hopper(OP);
    let room = Room::new([p, v, c], wave, span(hopper));
    let [most, sum, best, top, mass, first_best, label, dz, picked, sent] =
        Tensor::workspace(gpu, room.parts())?;
    let [v, c] = [int(OP, v)?, int(OP, c)?];
    let tiles = Parts { most, sum, best, top, mass, first_best, label };
    let mut waves = Waves { gpu, hopper, x, w, rows, labels, parts: tiles, dz, picked, sent, v, c };
    for from in (0..p).step_by(wave) {
        let height = wave.min(p - from);
        waves.logits(from, height, gradient.is_some())?;
        waves.merge(from, height)?;
        if let Some(gradient) = &mut gradient {
            waves.gradient(from, height, gradient, (gradient.dmean / p as f64) as f32)?;
        }
    }
    let Parts { top, mass, first_best, label, .. } = &waves.parts;
    let (launch, p) = (Launch::line(1, kernels::TOTAL_THREADS as usize), int(OP, p)?);
    let arguments = MaskedXentTotal { total, loss, lse, top, mass, first_best, label, labels, p };
    // SAFETY: loss, lse and labels are of p rows, total of 2; the rows' parts are those that the launches above have written.
    unsafe { kernels::masked_xent_total(gpu, launch, arguments) }
}

/// What is known of the logits: of a wave's spans, and of all rows.
struct Parts {
    most: Tensor,
    sum: Tensor,
    best: Tensor,
    top: Tensor,
    mass: Tensor,
    first_best: Tensor,
    label: Tensor,
}

/// The operands, and the workspace as [`Room`] divides it.
struct Waves<'a> {
    gpu: &'a Gpu,
    hopper: bool,
    x: &'a Tensor,
    w: &'a Tensor,
    rows: &'a Tensor,
    labels: &'a Tensor,
    parts: Parts,
    dz: Tensor,
    picked: Tensor,
    sent: Tensor,
    v: i32,
    c: i32,
}

impl Waves<'_> {
    /// The spans of `height` rows from `from` on; their exponentials too where they are kept.
    fn logits(&mut self, from: usize, height: usize, keeps: bool) -> Result<()> {
        let Waves { gpu, hopper, x, w, rows, labels, parts, dz, picked, sent, v, c } = self;
        let ([first, count], keeps) = ([int(OP, from)?, int(OP, height)?], i32::from(keeps));
        let (labels, v, c) = (*labels, *v, *c);
        [&mut *dz, picked, sent].into_iter().try_for_each(|t| t.set_rows(height))?;
        let launch = eights(picked.numel());
        let arguments = MaskedXentPick { picked: &mut *picked, x, rows, first, count, c };
        // SAFETY: picked is count by c, a multiple of 8, of which every thread has 8; that rows lie within x the caller answers
        // for.
        unsafe { kernels::masked_xent_pick(gpu, launch, arguments) }?;
        let Parts { most, sum, best, label, .. } = parts;
        if !*hopper {
            let launch = product(height, w.shape()[0]);
            let arguments = MaskedXentLogits {
                q: dz,
                most,
                sum,
                best,
                label,
                picked,
                w,
                labels,
                first,
                count,
                v,
                c,
                keeps,
            };
            // SAFETY: dz is count by v rounded up to 8, picked count by c, w v by c; the parts are spans by count, label and
            // labels as long as all rows.
            return unsafe { kernels::masked_xent_logits(gpu, launch, arguments) };
        }
        let q = &dz.tiles(gpu, "dz", sm90::PANEL)?;
        let picked = &picked.tiles(gpu, "picked", sm90::ROWS)?;
        let launch = product_sm90(height, w.shape()[0]);
        let w = &w.tiles(gpu, "w", sm90::TILE / sm90::CLUSTER)?;
        let arguments =
            MaskedXentLogitsSm90 { q, picked, w, most, sum, best, label, labels, first, count, v, c, keeps };
        // SAFETY: as the other; the maps are those that the file's head gives, of arrays that outlive the call.
        unsafe { sm90::masked_xent_logits_sm90(gpu, launch, arguments) }
    }

    /// Of each row, all of its spans, and what each of them weighs.
    fn merge(&mut self, from: usize, height: usize) -> Result<()> {
        let (gpu, Parts { most, sum, best, top, mass, first_best, .. }) = (self.gpu, &mut self.parts);
        let [first, count, spans] = [int(OP, from)?, int(OP, height)?, int(OP, most.shape()[0])?];
        let threads = kernels::ROW_THREADS as usize;
        let launch = Launch::line(height.div_ceil(threads / 32), threads);
        let arguments = MaskedXentMerge { most, top, mass, first_best, sum, best, first, count, spans };
        // SAFETY: most, sum and best are spans by count, the others as long as all rows; a warp has a row.
        unsafe { kernels::masked_xent_merge(gpu, launch, arguments) }
    }

    /// dx of the rows, and what they add to dw, `scale` being the gradient of a row's loss.
    fn gradient(&mut self, from: usize, height: usize, to: &mut Gradient, scale: f32) -> Result<()> {
        let Waves { gpu, hopper, w, rows, labels, parts, dz, picked, sent, v, c, .. } = self;
        let Parts { most: weights, top, mass, label, .. } = &*parts;
        let ([first, count], stride) = ([int(OP, from)?, int(OP, height)?], int(OP, dz.shape()[1])?);
        let (rows, labels, v, c, span) = (*rows, *labels, *v, *c, int(OP, span(*hopper))?);
        let launch = eights(dz.numel());
        let arguments =
            MaskedXentScale { dz, weights, top, mass, label, labels, first, count, stride, span, scale };
        // SAFETY: dz is count by stride, a multiple of 8, of which every thread has 8; weights is spans by count.
        unsafe { kernels::masked_xent_scale(gpu, launch, arguments) }?;
        let [vocabulary, width] = [w.shape()[0], w.shape()[1]];
        if let Some(dw) = to.dw.as_deref_mut() {
            let (launch, dz) = (product(vocabulary, width), &*dz);
            let arguments = MaskedXentDw { dw, dz, picked, count, v, c, stride };
            // SAFETY: dw is like w; dz and picked are what was written of these rows.
            unsafe { kernels::masked_xent_dw(gpu, launch, arguments) }?;
        }
        if *hopper {
            let launch = product_sm90(height, width);
            let dz = &dz.tiles(gpu, "dz", sm90::ROWS)?;
            let w = &w.tiles(gpu, "w", sm90::DEPTH / sm90::CLUSTER)?;
            let map = &sent.tiles(gpu, "sent", sm90::PANEL)?;
            let arguments = MaskedXentDxSm90 { sent: map, dz, w, count, v, c };
            // SAFETY: as the product of the logits; sent is count by c.
            unsafe { sm90::masked_xent_dx_sm90(gpu, launch, arguments) }?;
        } else {
            let launch = product(height, width);
            let arguments = MaskedXentDx { sent: &mut *sent, dz, w, count, v, c, stride };
            // SAFETY: likewise.
            unsafe { kernels::masked_xent_dx(gpu, launch, arguments) }?;
        }
        let (launch, dx) = (eights(sent.numel()), &mut *to.dx);
        let arguments = MaskedXentSend { dx, sent, rows, first, count, c };
        // SAFETY: as the pick; dx is like x, and no row of it is picked twice.
        unsafe { kernels::masked_xent_send(gpu, launch, arguments) }
    }
}
