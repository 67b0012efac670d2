//! contrastive on Hopper, where there are many scores: a wave of queries at a time against all candidates.

use super::InfoNce;
use crate::device::DType;
use crate::device::gpu::{Gpu, Launch, TensorMap};
use crate::error::Result;
use crate::kernels::contrastive::{self as portable, ContrastiveTotal};
use crate::kernels::contrastive_sm90::{
    self as kernels, ContrastiveBwdSm90, ContrastiveDcSm90, ContrastiveDqSm90, ContrastiveFoldSm90,
    ContrastiveFwdSm90, ContrastiveLimitSm90, ContrastiveSplitSm90,
};
use crate::tensor::{Tensor, int, whole_vectors, workspace_bytes};

const OP: &str = "contrastive";
const TILE: usize = kernels::TILE as usize;
/// Rows of a cluster.
const HIGH: usize = (kernels::ROWS * kernels::CLUSTER) as usize;
/// Bytes that the gradient of a wave's scores may take.
const WAVE: usize = 256 << 20;
/// Scores from which on tiles of this size fill the GPU.
const LEAST: usize = 1 << 21;

/// Whether the kernels are asked for, and have enough to do; else the portable ones run.
pub fn takes(gpu: &Gpu, [p, m, _]: [usize; 3]) -> bool {
    gpu.hopper(OP) && (p * m >= LEAST || !gpu.chooses())
}

/// Planes of an exact number; a rounded one has one.
const MOST_PLANES: usize = 3;

/// Queries that are held at a time; whole clusters of them, or all.
pub fn wave([p, m, _]: [usize; 3]) -> usize {
    let rows = WAVE / (2 * MOST_PLANES * m.next_multiple_of(8)) / HIGH * HIGH;
    rows.max(HIGH).min(p)
}

/// Shapes of what is taken of the workspace.
struct Room {
    /// Planes of all candidates, and of a wave of queries.
    planes: [[usize; 2]; 2],
    /// What the tiles of a wave come to, forward; backward the planes of their gradient.
    tiles: [usize; 2],
    dz: [usize; 2],
    row: [usize; 1],
}

impl Room {
    fn new([p, m, c]: [usize; 3], wave: usize, planes: usize) -> Room {
        Room {
            planes: [[planes * m, c], [planes * wave, c]],
            tiles: [m.div_ceil(TILE), wave],
            dz: [planes * pitch(wave), m.next_multiple_of(8)],
            row: [p],
        }
    }

    fn forward(&self) -> [(DType, &[usize]); 10] {
        let Room { planes: [candidates, queries], tiles, row, .. } = self;
        let ([tiles, row], planes) = ([&tiles[..], row].map(|s| (DType::F32, s)), DType::Bf16);
        [(planes, candidates), (planes, queries), tiles, tiles, tiles, row, row, row, row, row]
    }

    fn backward(&self) -> [(DType, &[usize]); 4] {
        let Room { planes: [candidates, queries], dz, row, .. } = self;
        [(DType::Bf16, candidates), (DType::Bf16, queries), (DType::Bf16, dz), (DType::F32, row)]
    }
}

/// Rows between the planes of a wave's gradient.
fn pitch(rows: usize) -> usize {
    rows.next_multiple_of(kernels::DEPTH as usize)
}

/// Bytes of workspace for at most so many queries and candidates of so many columns, exact or rounded.
pub fn workspace(sizes: [usize; 3]) -> usize {
    let room = Room::new(sizes, wave(sizes), MOST_PLANES);
    workspace_bytes(&room.forward()).max(workspace_bytes(&room.backward()))
}

/// A launch for the tiles of a product of numbers of so many planes.
fn product(rows: usize, columns: usize, planes: i32) -> Launch {
    launch(rows.div_ceil(HIGH) * columns.div_ceil(TILE), kernels::CLUSTER as usize, planes)
}

fn launch(clusters: usize, blocks: usize, planes: i32) -> Launch {
    let shared = if planes == 1 { kernels::SHARED_OF_ONE } else { kernels::SHARED };
    Launch::clusters(clusters, blocks, kernels::THREADS as usize, shared)
}

/// Operands that both directions read.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub q: &'a Tensor,
    pub candidates: &'a Tensor,
    pub ids: Option<&'a Tensor>,
    pub rule: InfoNce,
    /// P, M, C.
    pub sizes: [usize; 3],
}

/// A wave of queries against all candidates, both in planes.
struct Wave<'a> {
    gpu: &'a Gpu,
    of: Operands<'a>,
    candidates: &'a Tensor,
    queries: &'a mut Tensor,
    limit: &'a mut Tensor,
    /// first, rows
    at: [usize; 2],
}

impl<'a> Operands<'a> {
    fn planes(&self) -> i32 {
        self.rule.dtype.terms()
    }

    /// Calls `use_wave` for every so many queries.
    fn waves(
        self,
        gpu: &Gpu,
        wave: usize,
        [candidates, queries, limit]: [&mut Tensor; 3],
        mut use_wave: impl FnMut(Wave) -> Result<()>,
    ) -> Result<()> {
        let [p, m, c] = self.sizes;
        whole_vectors(OP, "C", c, 8)?;
        let planes = self.planes();
        split(gpu, candidates, self.candidates, [0, m], planes)?;
        for first in (0..p).step_by(wave) {
            let rows = wave.min(p - first);
            queries.set_rows(planes as usize * rows)?;
            split(gpu, queries, self.q, [first, rows], planes)?;
            let (candidates, queries, limit) = (&*candidates, &mut *queries, &mut *limit);
            let mut wave = Wave { gpu, of: self, candidates, queries, limit, at: [first, rows] };
            wave.limits()?;
            use_wave(wave)?;
        }
        Ok(())
    }
}

/// `rows` rows of x from `first` on, as so many planes.
fn split(gpu: &Gpu, to: &mut Tensor, x: &Tensor, [first, rows]: [usize; 2], planes: i32) -> Result<()> {
    let threads = kernels::ROW_THREADS as usize;
    let c = x.shape()[1];
    let launch = Launch::line((rows * c / 8).div_ceil(threads), threads);
    let [first, rows, c] = [int(OP, first)?, int(OP, rows)?, int(OP, c)?];
    let arguments = ContrastiveSplitSm90 { to, x, first, rows, c, planes };
    // SAFETY: the planes are of `rows` rows of c, a multiple of 8, which lie within x; a thread has eight numbers.
    unsafe { kernels::contrastive_split_sm90(gpu, launch, arguments) }
}

impl Wave<'_> {
    fn numbers(&self) -> Result<[i32; 4]> {
        let ([first, rows], [_, m, c]) = (self.at, self.of.sizes);
        Ok([int(OP, first)?, int(OP, rows)?, int(OP, m)?, int(OP, c)?])
    }

    /// Maps of both by what a product of scores reads at a time; `columns` candidates.
    fn maps(&self, columns: i32) -> Result<[TensorMap; 2]> {
        let queries = self.queries.tiles(self.gpu, "queries", kernels::ROWS)?;
        Ok([queries, self.candidates.tiles(self.gpu, "candidates", columns)?])
    }

    /// The highest cosines that count, where there is a margin.
    fn limits(&mut self) -> Result<()> {
        let Some(margin) = self.of.rule.margin else { return Ok(()) };
        let [first, rows, m, c] = self.numbers()?;
        let [q, candidates] = &self.maps(kernels::TILE)?;
        let tiles = self.at[1].div_ceil(kernels::ROWS as usize);
        let (gpu, planes) = (self.gpu, self.of.planes());
        let launch = launch(tiles, 1, planes);
        let arguments = ContrastiveLimitSm90 {
            q,
            candidates,
            limit: &mut *self.limit,
            first,
            rows,
            m,
            c,
            margin: margin as f32,
            planes,
        };
        // SAFETY: the maps are those that the file's head gives, of arrays that outlive the call; limit has P elements, and
        // the wave's rows lie below P.
        unsafe { kernels::contrastive_limit_sm90(gpu, launch, arguments) }
    }
}

/// total, loss and lse.
pub fn forward(gpu: &Gpu, [total, loss, lse]: [&mut Tensor; 3], of: Operands, wave: usize) -> Result<()> {
    let ([p, m, _], scale, planes) = (of.sizes, of.rule.scale as f32, of.planes());
    let room = Room::new(of.sizes, wave, planes as usize);
    let [
        mut candidates,
        mut queries,
        mut most,
        mut sum,
        mut rival,
        mut top,
        mut mass,
        mut highest,
        mut positive,
        mut limit,
    ] = Tensor::workspace(gpu, room.forward())?;
    of.waves(gpu, wave, [&mut candidates, &mut queries, &mut limit], |wave| {
        let ([first, rows, m_, c], ids) = (wave.numbers()?, wave.of.ids);
        let [q, candidates] = &wave.maps(kernels::TILE / kernels::CLUSTER)?;
        let limit = of.rule.margin.map(|_| &*wave.limit);
        let launch = product(wave.at[1], m, planes);
        let arguments = ContrastiveFwdSm90 {
            q,
            candidates,
            most: &mut most,
            sum: &mut sum,
            rival: &mut rival,
            positive: &mut positive,
            ids,
            limit,
            first,
            rows,
            m: m_,
            c,
            scale,
            planes,
        };
        // SAFETY: as for the limits; the parts are of as many rows as there are tiles of candidates, of a wave's queries each,
        // positive and ids of P and M.
        unsafe { kernels::contrastive_fwd_sm90(gpu, launch, arguments) }?;
        let (most, sum, rival) = (&most, &sum, &rival);
        let (top, mass, highest) = (&mut top, &mut mass, &mut highest);
        let threads = kernels::ROW_THREADS as usize;
        let launch = Launch::line(wave.at[1].div_ceil(threads / 32), threads);
        let tiles = int(OP, m.div_ceil(TILE))?;
        let arguments = ContrastiveFoldSm90 { top, mass, highest, most, sum, rival, first, rows, tiles };
        // SAFETY: the parts are those that the launch above has written; a warp has a row, and there are P.
        unsafe { kernels::contrastive_fold_sm90(gpu, launch, arguments) }
    })?;
    let (launch, p) = (Launch::line(1, portable::TOTAL_THREADS as usize), int(OP, p)?);
    let (most, sum, rival, positive) = (&top, &mass, &highest, &positive);
    let arguments = ContrastiveTotal { total, loss, lse, most, sum, rival, positive, p, splits: 1, scale };
    // SAFETY: all are of P elements, total of 2; the waves have written every row.
    unsafe { portable::contrastive_total(gpu, launch, arguments) }
}

/// dq and dc.
pub fn backward(
    gpu: &Gpu,
    [dq, dc]: [&mut Tensor; 2],
    lse: &Tensor,
    of: Operands,
    dmean: f64,
    wave: usize,
) -> Result<()> {
    let ([p, m, c], planes) = (of.sizes, of.planes());
    let (scale, weight) = (of.rule.scale as f32, (of.rule.scale * dmean / p as f64) as f32);
    let room = Room::new(of.sizes, wave, planes as usize);
    let [mut candidates, mut queries, mut dz, mut limit] = Tensor::workspace(gpu, room.backward())?;
    let stride = int(OP, room.dz[1])?;
    of.waves(gpu, wave, [&mut candidates, &mut queries, &mut limit], |wave| {
        let ([first, rows, m_, c_], ids, count) = (wave.numbers()?, wave.of.ids, wave.at[1]);
        let limit = of.rule.margin.map(|_| &*wave.limit);
        dz.set_rows(planes as usize * pitch(count))?;
        let [q, candidates] = &wave.maps(kernels::TILE / kernels::CLUSTER)?;
        let launch = product(count, m, planes);
        let arguments = ContrastiveBwdSm90 {
            q,
            candidates,
            dz: &mut dz,
            ids,
            limit,
            lse,
            first,
            rows,
            m: m_,
            c: c_,
            stride,
            scale,
            weight,
            planes,
        };
        // SAFETY: as in the forward; dz is of planes of pitch rows of stride.
        unsafe { kernels::contrastive_bwd_sm90(gpu, launch, arguments) }?;
        let deep = kernels::DEPTH / kernels::CLUSTER;
        let map = &dz.tiles(gpu, "dz", kernels::ROWS)?;
        let candidates = &wave.candidates.tiles(gpu, "candidates", deep)?;
        let launch = product(count, c, planes);
        let dq = &mut *dq;
        let arguments = ContrastiveDqSm90 { dz: map, candidates, dq, first, rows, m: m_, c: c_, planes };
        // SAFETY: dz is what the launch above has written; dq is like q.
        unsafe { kernels::contrastive_dq_sm90(gpu, launch, arguments) }?;
        let map = &dz.tiles(gpu, "dz", kernels::DEPTH)?;
        let q = &wave.queries.tiles(gpu, "queries", deep)?;
        let launch = product(m, c, planes);
        let arguments = ContrastiveDcSm90 { dz: map, q, dc: &mut *dc, first, rows, m: m_, c: c_, planes };
        // SAFETY: likewise; dc is like candidates.
        unsafe { kernels::contrastive_dc_sm90(gpu, launch, arguments) }
    })
}
