//! The launches of lora_linear's large products on Hopper, and how their operands become maps.

use super::Rotary;
use super::plan::Sizes;
use crate::device::DType;
use crate::device::choice::Tile;
use crate::device::gpu::{Gpu, Launch, TensorMap};
use crate::error::Result;
use crate::kernels::lora_linear_sm90::{
    self as kernels, LoraLinearDxSm90, LoraLinearFwdSm90, LoraLinearPadSm90, LoraLinearRopeSm90,
    LoraLinearStackSm90, LoraLinearSwigluSm90, LoraLinearWholeSm90,
};
use crate::kernels::{Draw, RotarySizes, Segments};
use crate::ops::dropout::Dropout;
use crate::tensor::{Tensor, int};

/// Whether the kernels are asked for; they take all sizes that the portable ones take.
pub fn takes(gpu: &Gpu) -> bool {
    gpu.hopper("lora_linear")
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

impl Sizes {
    /// N, K, M and Q, as the products have them.
    fn products(&self, op: &'static str) -> Result<[i32; 4]> {
        Ok([int(op, self.n)?, int(op, self.k)?, int(op, self.m)?, int(op, self.whole_rank())?])
    }
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
        let [n, k, m, q] = sizes.products(OP)?;
        let (columns, cluster, launch) = tile(gpu, OP, sizes.n, sizes.m, sizes);
        let (xa, stacked, of) = low_rank(gpu, self.low, columns / cluster, sizes, segments)?;
        let x = self.x.tiles(gpu, "x", kernels::ROWS)?;
        let y = self.y.tiles(gpu, "y", kernels::PANEL)?;
        let w = self.w.tiles(gpu, "w", columns / cluster)?;
        let residual = self.residual.map(|t| t.tiles(gpu, "residual", kernels::PANEL)).transpose()?;
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
            q,
            segments: of,
        };
        // SAFETY: the op's contract holds the arrays to the sizes, of which `Segments::new` and `takes` have refused what is
        // no whole vector; maps are of the boxes that the file's head gives, and the arrays behind them outlive the call.
        unsafe { kernels::lora_linear_fwd_sm90(gpu, launch, arguments) }
    }
}

/// xa or dxa with each segment's ranks in whole vectors, as a map reads them: itself, or its copy in `room`.
fn whole<'a>(gpu: &Gpu, ranks: &'a Tensor, room: &'a mut Tensor, sizes: &Sizes) -> Result<&'a Tensor> {
    const OP: &str = "lora_linear";
    if room.numel() == 0 {
        return Ok(ranks);
    }
    let [n, r, count] = [int(OP, sizes.n)?, int(OP, sizes.rank)?, int(OP, sizes.segments.len())?];
    let launch = factors(room);
    let arguments = LoraLinearWholeSm90 { whole: &mut *room, ranks, n, r, count };
    // SAFETY: ranks is [n, count r], room the same of r rounded up to 8, of which every thread has 8.
    unsafe { kernels::lora_linear_whole_sm90(gpu, launch, arguments) }?;
    Ok(room)
}

/// Maps of xa and of every segment's B beside the others', whose boxes have so many rows; and the segments, none where there is
/// no low rank.
fn low_rank(
    gpu: &Gpu,
    low: Option<(&Tensor, &Tensor)>,
    rows: i32,
    sizes: &Sizes,
    segments: Segments,
) -> Result<(Option<TensorMap>, Option<TensorMap>, Segments)> {
    const OP: &str = "lora_linear_fwd";
    let Some((xa, b)) = low else { return Ok((None, None, Segments { count: 0, ..segments })) };
    let shapes = [sizes.stacked_factors(), sizes.whole_ranks()];
    let [mut stacked, mut room] =
        Tensor::workspace(gpu, shapes.each_ref().map(|shape| (DType::Bf16, &shape[..])))?;
    let [m, r] = [int(OP, sizes.m)?, int(OP, sizes.rank)?];
    let launch = factors(&stacked);
    let arguments = LoraLinearStackSm90 { stacked: &mut stacked, b, m, r, segments };
    // SAFETY: stacked is [m, count r], r rounded up to 8, of which every thread has 8; b is [m, r].
    unsafe { kernels::lora_linear_stack_sm90(gpu, launch, arguments) }?;
    let xa = whole(gpu, xa, &mut room, sizes)?.tiles(gpu, "xa", kernels::ROWS)?;
    Ok((Some(xa), Some(stacked.tiles(gpu, "stacked", rows)?), segments))
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
    let [n, k, m, q] = sizes.products(OP)?;
    let f = m / 2;
    let half = kernels::WIDE / kernels::WIDE_CLUSTER;
    let (xa, stacked, segments) = low_rank(gpu, low, half, sizes, segments)?;
    let high = (kernels::ROWS * kernels::WIDE_CLUSTER) as usize;
    let clusters = sizes.n.div_ceil(high) * (sizes.m / 2).div_ceil(half as usize);
    let (cluster, threads) = (kernels::WIDE_CLUSTER as usize, kernels::THREADS as usize);
    let launch = Launch::clusters(clusters, cluster, threads, kernels::WIDE_SHARED);
    let x = x.tiles(gpu, "x", kernels::ROWS)?;
    let w = w.tiles(gpu, "w", half)?;
    let act = act.tiles(gpu, "act", kernels::PANEL)?;
    let arguments = LoraLinearSwigluSm90 {
        act: &act,
        x: &x,
        w: &w,
        xa: xa.as_ref().unwrap_or(&x),
        stacked: stacked.as_ref().unwrap_or(&w),
        n,
        k,
        f,
        q,
        segments,
    };
    // SAFETY: as in the forward; w has 2 f rows.
    unsafe { kernels::lora_linear_swiglu_sm90(gpu, launch, arguments) }
}

/// Whether the kernels turn such heads, and their wide tiles are what the product of these sizes takes.
pub fn rotates(gpu: &Gpu, sizes: &Sizes, rotary: Rotary) -> bool {
    let wide = || tile(gpu, "lora_linear_fwd", sizes.n, sizes.m, sizes).0 == kernels::WIDE;
    [64, 128].contains(&rotary.heads.width) && rotary.cos.shape()[0] > 0 && wide()
}

/// qkv with its queries and keys turned.
#[allow(clippy::too_many_arguments)]
pub fn rope(
    gpu: &Gpu,
    qkv: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    low: Option<(&Tensor, &Tensor)>,
    rotary: Rotary,
    sizes: &Sizes,
    segments: Segments,
) -> Result<()> {
    const OP: &str = "lora_linear_rope_fwd";
    let Rotary { cos, sin, positions, heads } = rotary;
    let [n, k, m, q] = sizes.products(OP)?;
    let (columns, cluster, launch) = tile(gpu, "lora_linear_fwd", sizes.n, sizes.m, sizes);
    let (xa, stacked, segments) = low_rank(gpu, low, columns / cluster, sizes, segments)?;
    let x = x.tiles(gpu, "x", kernels::ROWS)?;
    let w = w.tiles(gpu, "w", columns / cluster)?;
    let qkv = qkv.tiles(gpu, "qkv", kernels::PANEL)?;
    let rotated = int(OP, (heads.query + heads.key) * heads.width)?;
    let arguments = LoraLinearRopeSm90 {
        d: int(OP, heads.width)?,
        qkv: &qkv,
        x: &x,
        w: &w,
        xa: xa.as_ref().unwrap_or(&x),
        stacked: stacked.as_ref().unwrap_or(&w),
        bias,
        cos,
        sin,
        positions,
        sizes: RotarySizes { n, k, m, q, positions: int(OP, cos.shape()[0])?, rotated },
        segments,
    };
    // SAFETY: as in the forward; the op's contract holds the tables to half a head's columns and positions to n, of which one
    // outside the tables reads their first row.
    unsafe { kernels::lora_linear_rope_sm90(gpu, launch, arguments) }
}

/// The operands of dx; `low` are room for the factors and for dxa, dxa and a.
pub struct Backward<'a> {
    pub dx: &'a mut Tensor,
    pub dy: &'a Tensor,
    pub w: &'a Tensor,
    pub low: Option<([Tensor; 2], &'a Tensor, &'a Tensor)>,
    pub dropout: Option<Dropout>,
}

impl Backward<'_> {
    pub fn run(self, gpu: &Gpu, sizes: &Sizes, segments: Segments) -> Result<()> {
        const OP: &str = "lora_linear_bwd";
        let [n, k, m, q] = sizes.products(OP)?;
        let (columns, cluster, launch) = tile(gpu, OP, sizes.n, sizes.k, sizes);
        let deep = kernels::DEPTH / cluster;
        let (mut of, mut low) = (Segments { count: 0, ..segments }, None);
        if let Some(([mut padded, mut room], dxa, a)) = self.low {
            let launch = factors(&padded);
            let r = int(OP, sizes.rank)?;
            let arguments = LoraLinearPadSm90 { padded: &mut padded, a, k, r, count: segments.count };
            // SAFETY: padded is count times r, rounded up to 16, by k, a multiple of 8, of which every thread has 8; a is
            // [count r, k].
            unsafe { kernels::lora_linear_pad_sm90(gpu, launch, arguments) }?;
            let dxa = whole(gpu, dxa, &mut room, sizes)?.tiles(gpu, "dxa", kernels::ROWS)?;
            low = Some((dxa, padded.tiles(gpu, "padded", deep)?));
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
            q,
            segments: of,
            dropout,
        };
        // SAFETY: as in the forward.
        unsafe { kernels::lora_linear_dx_sm90(gpu, launch, arguments) }
    }
}
