//! The launches of lora_linear's large products on Hopper: which sizes they take, and how their operands become maps.

use super::plan::Sizes;
use crate::device::DType;
use crate::device::choice::Tile;
use crate::device::gpu::{Gpu, Launch, TensorMap};
use crate::error::Result;
use crate::kernels::lora_linear_sm90::{
    self as kernels, LoraLinearDxSm90, LoraLinearFwdSm90, LoraLinearPadSm90, LoraLinearStackSm90,
    LoraLinearSwigluSm90,
};
use crate::kernels::{Draw, Segments};
use crate::ops::dropout::Dropout;
use crate::tensor::{Tensor, int};

/// Whether the kernels are asked for and take these sizes; else the portable ones do.
pub fn takes(gpu: &Gpu, sizes: &Sizes) -> bool {
    let stacked = sizes.segments.len() * sizes.rank;
    gpu.hopper("lora_linear") && sizes.rank <= kernels::MOST_RANKS as usize && stacked.is_multiple_of(8)
}

/// Columns of a tile, blocks of its cluster, and the launch for as many as `rows` by `columns` take. Wide ones where they
/// fill the GPU, else narrow ones, that keep more multiprocessors busy, unless a table knows better; the bits are the same.
fn tile(gpu: &Gpu, op: &str, rows: usize, columns: usize, sizes: &Sizes) -> (i32, i32, Launch) {
    let high = (kernels::ROWS * kernels::WIDE_CLUSTER) as usize;
    let clusters = rows.div_ceil(high) * columns.div_ceil(kernels::WIDE as usize);
    let threads = kernels::THREADS as usize;
    // Without adapters there is no low-rank stage.
    let op = if sizes.segments.is_empty() { format!("{op} plain") } else { op.into() };
    let fills = clusters * kernels::WIDE_CLUSTER as usize >= gpu.processors();
    if gpu.tile(&op, &[sizes.n, sizes.k, sizes.m]).map_or(fills, |tile| tile == Tile::Wide) {
        let cluster = kernels::WIDE_CLUSTER;
        let launch = Launch::clusters(clusters, cluster as usize, threads, kernels::WIDE_SHARED);
        return (kernels::WIDE, cluster, launch);
    }
    let narrow = kernels::WIDE / 2;
    let tiles = rows.div_ceil(kernels::ROWS as usize) * columns.div_ceil(narrow as usize);
    (narrow, 1, Launch::clusters(tiles, 1, threads, kernels::NARROW_SHARED))
}

/// A launch of a thread for every eight elements.
fn factors(of: &Tensor) -> Launch {
    let threads = kernels::FACTOR_THREADS as usize;
    Launch::line((of.numel() / 8).div_ceil(threads), threads)
}

/// The operands of a forward; `low` are xa and b.
pub struct Forward<'a> {
    pub y: &'a mut Tensor,
    pub x: &'a Tensor,
    pub w: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
    pub low: Option<(&'a Tensor, &'a Tensor)>,
}

impl Forward<'_> {
    pub fn run(self, gpu: &Gpu, sizes: &Sizes, segments: Segments) -> Result<()> {
        const OP: &str = "lora_linear_fwd";
        let [n, k, m, r] = [int(OP, sizes.n)?, int(OP, sizes.k)?, int(OP, sizes.m)?, int(OP, sizes.rank)?];
        let (columns, cluster, launch) = tile(gpu, OP, sizes.n, sizes.m, sizes);
        let (low, of) = stack(gpu, self.low, sizes, segments)?;
        let x = self.x.tiles(gpu, "x", kernels::ROWS)?;
        let y = self.y.tiles(gpu, "y", kernels::PANEL)?;
        let w = self.w.tiles(gpu, "w", columns / cluster)?;
        let residual = self.residual.map(|t| t.tiles(gpu, "residual", kernels::PANEL)).transpose()?;
        let (xa, stacked) = ranks(gpu, &low, columns / cluster)?.unzip();
        let arguments = LoraLinearFwdSm90 {
            columns,
            y: &y,
            x: &x,
            w: &w,
            residual: residual.as_ref().unwrap_or(&y),
            xa: xa.as_ref().unwrap_or(&x),
            stacked: stacked.as_ref().unwrap_or(&w),
            bias: self.bias,
            adds_residual: i32::from(residual.is_some()),
            n,
            k,
            m,
            r,
            segments: of,
        };
        // SAFETY: the op's contract holds the arrays to the sizes, of which `Segments::new` and `takes` have refused what is
        // no whole vector; maps are of the boxes that the file's head gives, and the arrays behind them outlive the call.
        unsafe { kernels::lora_linear_fwd_sm90(gpu, launch, arguments) }
    }
}

/// xa, and every segment's B beside the others'; and the segments, none where there is no low rank.
fn stack<'a>(
    gpu: &Gpu,
    low: Option<(&'a Tensor, &Tensor)>,
    sizes: &Sizes,
    segments: Segments,
) -> Result<(Option<(&'a Tensor, Tensor)>, Segments)> {
    const OP: &str = "lora_linear_fwd";
    let Some((xa, b)) = low else { return Ok((None, Segments { count: 0, ..segments })) };
    let [mut stacked] = Tensor::workspace(gpu, [(DType::Bf16, &sizes.stacked_factors()[..])])?;
    let [m, r] = [int(OP, sizes.m)?, int(OP, sizes.rank)?];
    let launch = factors(&stacked);
    let arguments = LoraLinearStackSm90 { stacked: &mut stacked, b, m, r, segments };
    // SAFETY: stacked is [m, count r], a multiple of 8 by `takes`, of which every thread has 8; b is [m, r].
    unsafe { kernels::lora_linear_stack_sm90(gpu, launch, arguments) }?;
    Ok((Some((xa, stacked)), segments))
}

/// Maps of xa and of the stacked B, whose boxes have so many rows.
fn ranks(gpu: &Gpu, low: &Option<(&Tensor, Tensor)>, rows: i32) -> Result<Option<(TensorMap, TensorMap)>> {
    let Some((xa, stacked)) = low else { return Ok(None) };
    Ok(Some((xa.tiles(gpu, "xa", kernels::ROWS)?, stacked.tiles(gpu, "stacked", rows)?)))
}

/// act of gate and up, in wide tiles whatever the sizes.
pub fn swiglu(
    gpu: &Gpu,
    act: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    low: Option<(&Tensor, &Tensor)>,
    sizes: &Sizes,
    segments: Segments,
) -> Result<()> {
    const OP: &str = "lora_linear_swiglu_fwd";
    let [n, k, f, r] = [int(OP, sizes.n)?, int(OP, sizes.k)?, int(OP, sizes.m / 2)?, int(OP, sizes.rank)?];
    let (low, segments) = stack(gpu, low, sizes, segments)?;
    let half = kernels::WIDE / kernels::WIDE_CLUSTER;
    let high = (kernels::ROWS * kernels::WIDE_CLUSTER) as usize;
    let clusters = sizes.n.div_ceil(high) * (sizes.m / 2).div_ceil(half as usize);
    let (cluster, threads) = (kernels::WIDE_CLUSTER as usize, kernels::THREADS as usize);
    let launch = Launch::clusters(clusters, cluster, threads, kernels::WIDE_SHARED);
    let x = x.tiles(gpu, "x", kernels::ROWS)?;
    let w = w.tiles(gpu, "w", half)?;
    let act = act.tiles(gpu, "act", kernels::PANEL)?;
    let (xa, stacked) = ranks(gpu, &low, half)?.unzip();
    let arguments = LoraLinearSwigluSm90 {
        act: &act,
        x: &x,
        w: &w,
        xa: xa.as_ref().unwrap_or(&x),
        stacked: stacked.as_ref().unwrap_or(&w),
        n,
        k,
        f,
        r,
        segments,
    };
    // SAFETY: as in the forward; w has 2 f rows.
    unsafe { kernels::lora_linear_swiglu_sm90(gpu, launch, arguments) }
}

/// The operands of dx; `low` are room for the factors, dxa and a.
pub struct Backward<'a> {
    pub dx: &'a mut Tensor,
    pub dy: &'a Tensor,
    pub w: &'a Tensor,
    pub low: Option<(&'a mut Tensor, &'a Tensor, &'a Tensor)>,
    pub dropout: Option<Dropout>,
}

impl Backward<'_> {
    pub fn run(self, gpu: &Gpu, sizes: &Sizes, segments: Segments) -> Result<()> {
        const OP: &str = "lora_linear_bwd";
        let [n, k, m, r] = [int(OP, sizes.n)?, int(OP, sizes.k)?, int(OP, sizes.m)?, int(OP, sizes.rank)?];
        let (columns, cluster, launch) = tile(gpu, OP, sizes.n, sizes.k, sizes);
        let deep = kernels::DEPTH / cluster;
        let (mut of, mut low) = (Segments { count: 0, ..segments }, None);
        if let Some((padded, dxa, a)) = self.low {
            let launch = factors(padded);
            let arguments = LoraLinearPadSm90 { padded: &mut *padded, a, k, r, count: segments.count };
            // SAFETY: padded is count times r, rounded up to 16, by k, a multiple of 8, of which every thread has 8; a is
            // [count r, k].
            unsafe { kernels::lora_linear_pad_sm90(gpu, launch, arguments) }?;
            low = Some((dxa.tiles(gpu, "dxa", kernels::ROWS)?, padded.tiles(gpu, "padded", deep)?));
            of = segments;
        }
        let (dxa, padded) = low.as_ref().map(|(dxa, padded)| (dxa, padded)).unzip();
        let dx = self.dx.tiles(gpu, "dx", kernels::PANEL)?;
        let dy = self.dy.tiles(gpu, "dy", kernels::ROWS)?;
        let w = self.w.tiles(gpu, "w", deep)?;
        let dropout = Draw::new(self.dropout);
        let arguments = LoraLinearDxSm90 {
            columns,
            dx: &dx,
            dy: &dy,
            w: &w,
            dxa: dxa.unwrap_or(&dy),
            padded: padded.unwrap_or(&w),
            n,
            k,
            m,
            r,
            segments: of,
            dropout,
        };
        // SAFETY: as in the forward.
        unsafe { kernels::lora_linear_dx_sm90(gpu, launch, arguments) }
    }
}
