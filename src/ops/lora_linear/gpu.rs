//! The launches of lora_linear.

use super::plan::{Sizes, tile};
use super::{Lora, LoraGrads};
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch};
use crate::error::Result;
use crate::kernels::{lora_linear_bwd as bwd, lora_linear_fwd as fwd};
use crate::ops::dropout::{Draw, Dropout};
use crate::tensor::{Tensor, int, refuse, whole_vectors};

/// Segments as kernels take them: where they end and their scales. Those that are not there are empty.
#[derive(Clone, Copy)]
struct Segments {
    count: i32,
    ends: [i32; 3],
    scales: [f32; 3],
}

impl Segments {
    /// Refuses sizes that no kernel takes.
    fn new(op: &'static str, sizes: &Sizes, lora: Option<&Lora>) -> Result<Segments> {
        whole_vectors(op, "K", sizes.k, 8)?;
        whole_vectors(op, "M", sizes.m, 8)?;
        // Kernels number x, w and y in 64 bits; elements of the factors and of what has their ranks in 32.
        let Sizes { n, k, m, rank, .. } = *sizes;
        let stacked = sizes.segments.len() * rank;
        [n * stacked, m * rank, stacked * k].into_iter().try_for_each(|count| int(op, count).map(drop))?;
        let mut segments = Segments {
            count: int(op, sizes.segments.len())?,
            ends: [int(op, sizes.m)?; 3],
            scales: [0.0; 3],
        };
        let Some(lora) = lora else { return Ok(segments) };
        if lora.rows.len() > 3 {
            return refuse(op, format!("{} segments, a GPU takes at most 3", lora.rows.len()));
        }
        for (s, first, rows, scale) in lora.segments() {
            whole_vectors(op, "rows of a segment", rows, 8)?;
            segments.ends[s] = int(op, first + rows)?;
            segments.scales[s] = scale as f32;
        }
        Ok(segments)
    }
}

/// The sum of `parts` [end of the last segment's, N, R] into `out` [N, S R].
fn round(gpu: &Gpu, out: &mut Tensor, parts: &Tensor, rank: usize, ends: &[usize]) -> Result<()> {
    const OP: &str = "lora_linear";
    let end = |s: usize| int(OP, ends[s.min(ends.len() - 1)]);
    let launch = Launch::line(out.numel().div_ceil(fwd::ROUND_THREADS as usize), fwd::ROUND_THREADS as usize);
    let [n, rank, count] = [int(OP, out.shape()[0])?, int(OP, rank)?, int(OP, ends.len())?];
    fwd::lora_linear_round(gpu, launch, out, parts, n, rank, count, end(0)?, end(1)?, end(2)?)
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
    const OP: &str = "lora_linear_fwd";
    let Segments { count, ends: [e0, e1, e2], scales: [s0, s1, s2] } =
        Segments::new(OP, sizes, lora.as_ref())?;
    let [n, k, m, rank] = [int(OP, sizes.n)?, int(OP, sizes.k)?, int(OP, sizes.m)?, int(OP, sizes.rank)?];
    let mut low = None;
    if let (Some(lora), Some(xa)) = (lora, xa) {
        let [mut parts] = Tensor::workspace(gpu, [(DType::F32, &sizes.fwd_parts()[..])])?;
        let ([splits, depth], Draw { key: [k0, k1], least, scale, first }) =
            (sizes.xa_splits(), Draw::new(dropout));
        let blocks = sizes.n.div_ceil(fwd::XA_TOKENS as usize);
        let launch = Launch::cube([sizes.groups(), blocks, splits], fwd::XA_THREADS as usize);
        let (to, depth) = ((splits > 1).then_some(&mut parts), int(OP, depth)?);
        fwd::lora_linear_xa(
            gpu, launch, xa, to, x, lora.a, n, k, rank, count, depth, s0, s1, s2, k0, k1, least, scale, first,
        )?;
        if splits > 1 {
            round(gpu, xa, &parts, sizes.segments.len() * sizes.rank, &[splits])?;
        }
        low = Some((&*xa, lora.b));
    }
    let Some(y) = y else { return Ok(()) };
    let side = tile(sizes.n, sizes.m);
    let tiles = sizes.n.div_ceil(side) * sizes.m.div_ceil(side);
    let launch = Launch::line(tiles, fwd::PRODUCT_THREADS as usize);
    let product = match side {
        128 => fwd::lora_linear_fwd_128,
        _ => fwd::lora_linear_fwd_64,
    };
    let (xa, b) = low.unzip();
    product(gpu, launch, y, x, w, bias, residual, xa, b, n, k, m, rank, count, e0, e1, e2, s0, s1, s2)
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
            return self.dx(gpu, sizes, &segments);
        }
        let shapes = sizes.bwd_parts();
        let mut parts = Tensor::workspace(gpu, shapes.each_ref().map(|shape| (DType::F32, &shape[..])))?;
        self.dxa(gpu, sizes, &segments, &mut parts)?;
        self.dx(gpu, sizes, &segments)?;
        if sizes.segments.iter().any(|s| s.1) {
            self.da(gpu, sizes, &segments, &mut parts[2])?;
        }
        Ok(())
    }

    /// dxa and db.
    fn dxa(&mut self, gpu: &Gpu, sizes: &Sizes, of: &Segments, parts: &mut [Tensor; 3]) -> Result<()> {
        let (Some(lora), Some(dxa)) = (self.lora, &mut self.dxa) else { return Ok(()) };
        let [n, m, rank] = [int(BWD, sizes.n)?, int(BWD, sizes.m)?, int(BWD, sizes.rank)?];
        let (Segments { count, ends: [e0, e1, e2], scales: [s0, s1, s2] }, [splits, run]) =
            (*of, sizes.dxa_splits());
        let mut tiles = sizes.tiles();
        (1..tiles.len()).for_each(|s| tiles[s] += tiles[s - 1]);
        let all = tiles.last().copied().unwrap_or(0);
        let [dxa_parts, db_parts, _] = parts;
        if all > 0 {
            let launch = Launch::cube([sizes.slices(), all, splits], bwd::THREADS as usize);
            let end = |s: usize| int(BWD, tiles.get(s).copied().unwrap_or(all));
            let (t0, t1, run) = (end(0)?, end(1)?, int(BWD, run)?);
            let db = self.grads.is_some().then_some(&mut *db_parts);
            let xa = self.xa.filter(|_| self.grads.is_some());
            bwd::lora_linear_dxa(
                gpu, launch, dxa_parts, db, self.dy, xa, lora.b, n, m, rank, count, e0, e1, e2, t0, t1, run,
                s0, s1, s2,
            )?;
        }
        round(gpu, dxa, dxa_parts, sizes.rank, &tiles)?;
        match &mut self.grads {
            Some(grads) if all > 0 => add(gpu, grads.b, db_parts, splits, [e0, e1], of.scales),
            _ => Ok(()),
        }
    }

    fn dx(&mut self, gpu: &Gpu, sizes: &Sizes, of: &Segments) -> Result<()> {
        let Some(dx) = &mut self.dx else { return Ok(()) };
        let [n, k, m, rank] =
            [int(BWD, sizes.n)?, int(BWD, sizes.k)?, int(BWD, sizes.m)?, int(BWD, sizes.rank)?];
        let (Segments { count, scales: [s0, s1, s2], .. }, side) = (*of, tile(sizes.n, sizes.k));
        let Draw { key: [k0, k1], least, scale, first } = Draw::new(self.dropout);
        let launch =
            Launch::line(sizes.n.div_ceil(side) * sizes.k.div_ceil(side), bwd::PRODUCT_THREADS as usize);
        let product = match side {
            128 => bwd::lora_linear_dx_128,
            _ => bwd::lora_linear_dx_64,
        };
        let (dxa, a) = (self.dxa.as_deref(), self.lora.map(|l| l.a));
        product(
            gpu, launch, dx, self.dy, self.w, dxa, a, n, k, m, rank, count, s0, s1, s2, k0, k1, least, scale,
            first,
        )
    }

    fn da(&mut self, gpu: &Gpu, sizes: &Sizes, of: &Segments, parts: &mut Tensor) -> Result<()> {
        let (Some(grads), Some(dxa)) = (&mut self.grads, &self.dxa) else { return Ok(()) };
        let [n, k, rank] = [int(BWD, sizes.n)?, int(BWD, sizes.k)?, int(BWD, sizes.rank)?];
        let (Segments { count, scales: [s0, s1, s2], .. }, [splits, run]) = (*of, sizes.da_splits());
        let Draw { key: [k0, k1], least, scale, first } = Draw::new(self.dropout);
        let launch = Launch::cube(
            [sizes.groups(), sizes.k.div_ceil(bwd::DA_COLUMNS as usize), splits],
            bwd::THREADS as usize,
        );
        let run = int(BWD, run)?;
        bwd::lora_linear_da(
            gpu, launch, parts, dxa, self.x, n, k, rank, count, run, s0, s1, s2, k0, k1, least, scale, first,
        )?;
        add(gpu, grads.a, parts, splits, [rank, 2 * rank], of.scales)
    }
}

/// `to += parts`, for the rows of segments that have an adapter; those of the first two end at `ends`.
fn add(
    gpu: &Gpu,
    to: &mut Tensor,
    parts: &Tensor,
    splits: usize,
    ends: [i32; 2],
    scales: [f32; 3],
) -> Result<()> {
    let at_once = bwd::ADD_THREADS as usize * 4;
    let launch = Launch::line(to.numel().div_ceil(at_once), bwd::ADD_THREADS as usize);
    let ([rows, width], [e0, e1], [s0, s1, s2]) = ([to.shape()[0], to.shape()[1]], ends, scales);
    bwd::lora_linear_add(
        gpu,
        launch,
        to,
        parts,
        int(BWD, rows)?,
        int(BWD, width)?,
        int(BWD, splits)?,
        e0,
        e1,
        s0,
        s1,
        s2,
    )
}
