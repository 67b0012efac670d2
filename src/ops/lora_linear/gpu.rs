//! The launches of lora_linear.

use super::plan::{Sizes, tile};
use super::{Lora, LoraGrads, Rotary, hopper};
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::lora_linear_bwd::{
    self as bwd, LoraLinearAdd, LoraLinearDa, LoraLinearDx, LoraLinearDxa,
};
use crate::kernels::lora_linear_fwd::{self as fwd, LoraLinearFwd, LoraLinearRound, LoraLinearXa};
use crate::kernels::{Draw, Segments};
use crate::ops::dropout::Dropout;
use crate::tensor::{Tensor, int, limited, whole_vectors};

impl Segments {
    /// Refuses sizes that no kernel takes. Segments that are not there are empty.
    fn new(op: &'static str, sizes: &Sizes, lora: Option<&Lora>) -> Result<Segments> {
        whole_vectors(op, "K", sizes.k, 8)?;
        whole_vectors(op, "M", sizes.m, 8)?;
        // Kernels number x, w and y in 64 bits; elements of the factors and of what has their ranks in 32.
        let Sizes { n, k, m, rank, .. } = *sizes;
        let stacked = sizes.segments.len() * rank;
        [n * stacked, m * rank, stacked * k].into_iter().try_for_each(|count| int(op, count).map(drop))?;
        let (mut ends, mut scales) = ([int(op, sizes.m)?; 3], [0.0; 3]);
        if let Some(lora) = lora {
            if lora.rows.len() > 3 {
                return limited(op, format!("{} segments", lora.rows.len()), "at most 3");
            }
            for (s, first, rows, scale) in lora.segments() {
                whole_vectors(op, "rows of a segment", rows, 8)?;
                (ends[s], scales[s]) = (int(op, first + rows)?, scale as f32);
            }
        }
        Ok(Segments {
            scale0: scales[0],
            scale1: scales[1],
            scale2: scales[2],
            ..Segments::ending(int(op, sizes.segments.len())?, ends)
        })
    }

    /// So many that end here, without adapters.
    fn ending(count: i32, [end0, end1, end2]: [i32; 3]) -> Segments {
        Segments { count, end0, end1, end2, scale0: 0.0, scale1: 0.0, scale2: 0.0 }
    }
}

/// The sum of `parts` [end of the last segment's, N, R] into `out` [N, S R].
fn round(gpu: &Gpu, out: &mut Tensor, parts: &Tensor, rank: usize, ends: &[usize]) -> Result<()> {
    const OP: &str = "lora_linear";
    let end = |s: usize| int(OP, ends[s.min(ends.len() - 1)]);
    let launch = Launch::line(out.numel().div_ceil(fwd::ROUND_THREADS as usize), fwd::ROUND_THREADS as usize);
    let segments = Segments::ending(int(OP, ends.len())?, [end(0)?, end(1)?, end(2)?]);
    let [n, r] = [int(OP, out.shape()[0])?, int(OP, rank)?];
    let arguments = LoraLinearRound { out, parts, n, r, segments };
    // SAFETY: out is [n, r] for each of the segments, parts one more for each of their parts, all of them written.
    unsafe { fwd::lora_linear_round(gpu, launch, arguments) }
}

const FWD: &str = "lora_linear_fwd";

/// xa, with the B that it is multiplied by, where there is low rank.
fn low_rank<'a>(
    gpu: &Gpu,
    xa: Option<&'a mut Tensor>,
    x: &Tensor,
    lora: Option<Lora<'a>>,
    dropout: Option<Dropout>,
    sizes: &Sizes,
    segments: Segments,
) -> Result<Option<(&'a Tensor, &'a Tensor)>> {
    let (Some(lora), Some(xa)) = (lora, xa) else { return Ok(None) };
    let [mut parts] = Tensor::workspace(gpu, [(DType::F32, &sizes.fwd_parts()[..])])?;
    let [splits, depth] = sizes.xa_splits();
    let blocks = sizes.n.div_ceil(fwd::XA_TOKENS as usize);
    let launch = Launch::cube([sizes.groups(), blocks, splits], fwd::XA_THREADS as usize);
    let arguments = LoraLinearXa {
        xa: &mut *xa,
        parts: (splits > 1).then_some(&mut parts),
        x,
        a: lora.a,
        n: int(FWD, sizes.n)?,
        k: int(FWD, sizes.k)?,
        r: int(FWD, sizes.rank)?,
        segments,
        depth: int(FWD, depth)?,
        dropout: Draw::new(dropout),
    };
    // SAFETY: the op's contract holds xa, x and a to the sizes, of which `Segments::new` has refused what is no
    // whole vector; parts is of as many parts as there are blocks along z.
    unsafe { fwd::lora_linear_xa(gpu, launch, arguments) }?;
    if splits > 1 {
        round(gpu, xa, &parts, sizes.segments.len() * sizes.rank, &[splits])?;
    }
    Ok(Some((&*xa, lora.b)))
}

/// Both products of a gated layer and its activation in one launch; false, and nothing done, where no kernel takes them.
#[allow(clippy::too_many_arguments)]
pub fn swiglu(
    gpu: &Gpu,
    act: &mut Tensor,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    lora: Option<Lora>,
    dropout: Option<Dropout>,
    sizes: &Sizes,
) -> Result<bool> {
    if !hopper::takes(gpu) {
        return Ok(false);
    }
    let segments = Segments::new(FWD, sizes, lora.as_ref())?;
    whole_vectors(FWD, "F", sizes.m / 2, 8)?;
    let low = low_rank(gpu, xa, x, lora, dropout, sizes, segments)?;
    hopper::swiglu(gpu, act, x, w, low, sizes, segments)?;
    Ok(true)
}

/// A product and the rotation of its heads in one launch; false, and nothing done, where no kernel does it.
#[allow(clippy::too_many_arguments)]
pub fn rope(
    gpu: &Gpu,
    qkv: &mut Tensor,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    lora: Option<Lora>,
    dropout: Option<Dropout>,
    rotary: Rotary,
    sizes: &Sizes,
) -> Result<bool> {
    if !hopper::takes(gpu) || !hopper::rotates(gpu, sizes, rotary) {
        return Ok(false);
    }
    let segments = Segments::new(FWD, sizes, lora.as_ref())?;
    let low = low_rank(gpu, xa, x, lora, dropout, sizes, segments)?;
    hopper::rope(gpu, qkv, x, w, bias, low, rotary, sizes, segments)?;
    Ok(true)
}

#[allow(clippy::too_many_arguments)]
pub fn forward(
    gpu: &Gpu,
    y: Option<&mut Tensor>,
    xa: Option<&mut Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    lora: Option<Lora>,
    residual: Option<&Tensor>,
    dropout: Option<Dropout>,
    sizes: &Sizes,
) -> Result<()> {
    let segments = Segments::new(FWD, sizes, lora.as_ref())?;
    let low = low_rank(gpu, xa, x, lora, dropout, sizes, segments)?;
    let Some(y) = y else { return Ok(()) };
    if hopper::takes(gpu) {
        return hopper::Forward { y, x, w, bias, residual, low }.run(gpu, sizes, segments);
    }
    let [n, k, m, r] = [int(FWD, sizes.n)?, int(FWD, sizes.k)?, int(FWD, sizes.m)?, int(FWD, sizes.rank)?];
    let side = tile(sizes.n, sizes.m);
    let tiles = sizes.n.div_ceil(side) * sizes.m.div_ceil(side);
    let launch = Launch::line(tiles, fwd::PRODUCT_THREADS as usize);
    let ((xa, b), side) = (low.unzip(), int(FWD, side)?);
    let arguments = LoraLinearFwd { side, y, x, w, bias, residual, xa, b, n, k, m, r, segments };
    // SAFETY: the op's contract holds the arrays to the sizes, of which `Segments::new` has refused what is no whole
    // vector, and the segments end within m; there is a block for each tile.
    unsafe { fwd::lora_linear_fwd(gpu, launch, arguments) }
}

/// The operands of a backward.
pub struct Backward<'a> {
    pub dx: Option<&'a mut Tensor>,
    pub grads: Option<LoraGrads<'a>>,
    pub dxa: Option<&'a mut Tensor>,
    pub dy: &'a Tensor,
    pub x: &'a Tensor,
    pub xa: Option<&'a Tensor>,
    pub w: &'a Tensor,
    pub lora: Option<Lora<'a>>,
    pub dropout: Option<Dropout>,
}

const BWD: &str = "lora_linear_bwd";

impl Backward<'_> {
    pub fn run(mut self, gpu: &Gpu, sizes: &Sizes) -> Result<()> {
        let segments = Segments::new(BWD, sizes, self.lora.as_ref())?;
        if self.lora.is_none() {
            return self.dx(gpu, sizes, &segments, None);
        }
        let (shapes, bf16) = (sizes.bwd_parts(), [sizes.padded_factors(), sizes.whole_ranks()]);
        let [dxa, db, da, padded, whole] = Tensor::workspace(gpu, Sizes::bwd_room(&shapes, &bf16))?;
        let mut parts = [dxa, db, da];
        self.dxa(gpu, sizes, &segments, &mut parts)?;
        self.dx(gpu, sizes, &segments, Some([padded, whole]))?;
        if sizes.segments.iter().any(|s| s.1) {
            self.da(gpu, sizes, &segments, &mut parts[2])?;
        }
        Ok(())
    }

    /// dxa and db.
    fn dxa(&mut self, gpu: &Gpu, sizes: &Sizes, of: &Segments, parts: &mut [Tensor; 3]) -> Result<()> {
        let (Some(lora), Some(dxa)) = (self.lora, &mut self.dxa) else { return Ok(()) };
        let [n, m, r] = [int(BWD, sizes.n)?, int(BWD, sizes.m)?, int(BWD, sizes.rank)?];
        let [splits, run] = sizes.dxa_splits();
        let mut tiles = sizes.tiles();
        (1..tiles.len()).for_each(|s| tiles[s] += tiles[s - 1]);
        let all = tiles.last().copied().unwrap_or(0);
        let [dxa_parts, db_parts, _] = parts;
        if all > 0 {
            let launch = Launch::cube([sizes.slices(), all, splits], bwd::THREADS as usize);
            let end = |s: usize| int(BWD, tiles.get(s).copied().unwrap_or(all));
            let arguments = LoraLinearDxa {
                dxa_parts: &mut *dxa_parts,
                db_parts: self.grads.is_some().then_some(&mut *db_parts),
                dy: self.dy,
                xa: self.xa.filter(|_| self.grads.is_some()),
                b: lora.b,
                n,
                m,
                r,
                segments: *of,
                tiles0: end(0)?,
                tiles1: end(1)?,
                run: int(BWD, run)?,
            };
            // SAFETY: the op's contract holds dy, xa and b to the sizes, which `Segments::new` has looked at; the
            // parts are of the shapes that `Sizes` gives them, for the tiles and splits of this launch.
            unsafe { bwd::lora_linear_dxa(gpu, launch, arguments) }?;
        }
        round(gpu, dxa, dxa_parts, sizes.rank, &tiles)?;
        match &mut self.grads {
            Some(grads) if all > 0 => add(gpu, grads.b, db_parts, splits, *of),
            _ => Ok(()),
        }
    }

    /// dx; with room for the factors and dxa.
    fn dx(&mut self, gpu: &Gpu, sizes: &Sizes, of: &Segments, room: Option<[Tensor; 2]>) -> Result<()> {
        let Some(dx) = &mut self.dx else { return Ok(()) };
        if hopper::takes(gpu) {
            let low = room.zip(self.dxa.as_deref()).zip(self.lora.map(|l| l.a));
            let low = low.map(|((room, dxa), a)| (room, dxa, a));
            let backward = hopper::Backward { dx, dy: self.dy, w: self.w, low, dropout: self.dropout };
            return backward.run(gpu, sizes, *of);
        }
        let [n, k, m, r] =
            [int(BWD, sizes.n)?, int(BWD, sizes.k)?, int(BWD, sizes.m)?, int(BWD, sizes.rank)?];
        let (segments, side) = (*of, tile(sizes.n, sizes.k));
        let launch =
            Launch::line(sizes.n.div_ceil(side) * sizes.k.div_ceil(side), bwd::PRODUCT_THREADS as usize);
        let (dy, w, dxa, a) = (self.dy, self.w, self.dxa.as_deref(), self.lora.map(|l| l.a));
        let (dropout, side) = (Draw::new(self.dropout), int(BWD, side)?);
        let arguments = LoraLinearDx { side, dx, dy, w, dxa, a, n, k, m, r, segments, dropout };
        // SAFETY: the op's contract holds the arrays to the sizes, of which `Segments::new` has refused what is no
        // whole vector; there is a block for each tile.
        unsafe { bwd::lora_linear_dx(gpu, launch, arguments) }
    }

    fn da(&mut self, gpu: &Gpu, sizes: &Sizes, of: &Segments, parts: &mut Tensor) -> Result<()> {
        let (Some(grads), Some(dxa)) = (&mut self.grads, &self.dxa) else { return Ok(()) };
        let [n, k, r] = [int(BWD, sizes.n)?, int(BWD, sizes.k)?, int(BWD, sizes.rank)?];
        let (dropout, [splits, run]) = (Draw::new(self.dropout), sizes.da_splits());
        let launch = Launch::cube(
            [sizes.groups(), sizes.k.div_ceil(bwd::DA_COLUMNS as usize), splits],
            bwd::THREADS as usize,
        );
        let (x, segments, run) = (self.x, *of, int(BWD, run)?);
        let arguments = LoraLinearDa { parts: &mut *parts, dxa, x, n, k, r, segments, run, dropout };
        // SAFETY: the op's contract holds dxa and x to the sizes, which `Segments::new` has looked at; parts is of
        // the shape that `Sizes` gives it, for the splits of this launch.
        unsafe { bwd::lora_linear_da(gpu, launch, arguments) }?;
        let ranks = Segments { end0: r, end1: 2 * r, end2: 3 * r, ..segments };
        add(gpu, grads.a, parts, splits, ranks)
    }
}

/// `to += parts`, for the rows of segments that have an adapter.
fn add(gpu: &Gpu, to: &mut Tensor, parts: &Tensor, splits: usize, segments: Segments) -> Result<()> {
    let at_once = bwd::ADD_THREADS as usize * 4;
    let launch = Launch::line(to.numel().div_ceil(at_once), bwd::ADD_THREADS as usize);
    let [rows, width, splits] = [int(BWD, to.shape()[0])?, int(BWD, to.shape()[1])?, int(BWD, splits)?];
    let arguments = LoraLinearAdd { to, parts, rows, width, splits, segments };
    // SAFETY: to is [rows, width], a multiple of 4, and parts as many of it as there are splits; a thread has four.
    unsafe { bwd::lora_linear_add(gpu, launch, arguments) }
}
