//! dropout: masks that every device computes anew from a counter, so that none is ever stored.

use crate::device::Device;
use crate::device::cpu::{Real, simd};
use crate::device::gpu::Launch;
use crate::error::Result;
use crate::kernels::Draw;
use crate::kernels::dropout::{self as kernels, DropoutFwd};
use crate::rng::{philox, philox_wide};
use crate::tensor::{Tensor, dims, int, refuse, whole_vectors, with_real};
use rayon::prelude::*;

/// How masks are drawn, as training state records it: 1 was four columns a call of ten rounds, 32 bits each.
pub const FORMAT: u32 = 2;

/// A dropout layer at one place of one training step: each element is zeroed with probability `rate`, the rest are
/// scaled so that the mean stays.
///
/// Element (row, plane, column) draws 16 bits: half-word `column % 8` of seven rounds of Philox on `[column / 8, plane, row]`,
/// the low half of a word before its high one, under the key `philox([step, site, 0, 0], seed)`, cut to 64 bits. It is
/// dropped where they are below [`Dropout::threshold`], so the rate really drawn is a multiple of 2⁻¹⁶, and the scale is that
/// of this rate. One call draws for eight columns, so three masks over one x cost about what one of 32 bits by ten rounds did;
/// kernels/philox.cuh has the reasons for eight columns, seven rounds and whole rows.
///
/// A row is a token, counted over all packs of a step: `first` is that of this pack's first token, so a batch in chunks has
/// the masks of the whole. The plane is the segment of a merged projection (each has its own mask, as in PEFT), or the
/// head of an attention probability, whose column is the position of the key *in its sequence*: no mask depends on what
/// stands elsewhere in the pack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// In [0, 1).
    pub rate: f64,
    /// Of the run.
    pub seed: u64,
    /// Of the optimiser.
    pub step: u32,
    /// Numbers layer and place in the layer; each must have its own.
    pub site: u32,
    /// Tokens of this step before this pack.
    pub first: u64,
}

/// Rounds of Philox that draw a mask.
const ROUNDS: usize = 7;

/// Columns that one call serves.
const COLUMNS: usize = 8;

/// Calls that [`Dropout::apply`] computes side by side.
const WIDE: usize = 16;

/// The values of a draw.
const VALUES: f64 = 65536.0;

impl Dropout {
    /// Refuses a rate that is no probability below 1.
    pub fn check(dropout: Option<Dropout>, op: &'static str) -> Result<()> {
        match dropout {
            Some(d) if !(0.0..1.0).contains(&d.rate) => {
                refuse(op, format!("dropout rate {}, expected at least 0 and below 1", d.rate))
            }
            _ => Ok(()),
        }
    }

    /// The generator's key at this place: computed once per call of an op.
    pub fn key(&self) -> [u32; 2] {
        let [a, b, ..] = philox([self.step, self.site, 0, 0], [self.seed as u32, (self.seed >> 32) as u32]);
        [a, b]
    }

    /// The least draw that keeps its element: the rate in units of 2⁻¹⁶, rounded. A rate above 0 is at least one unit, and the
    /// largest leaves one: a tiny rate still drops, a rate below 1 still keeps, and the scale fits either.
    pub fn threshold(&self) -> u16 {
        let least = if self.rate > 0.0 { 1.0 } else { 0.0 };
        (self.rate * VALUES).round().clamp(least, VALUES - 1.0) as u16
    }

    /// What multiplies an element that is kept: 1 / (1 - rate), of the rate that is really drawn.
    pub fn scale(&self) -> f64 {
        VALUES / (VALUES - f64::from(self.threshold()))
    }

    /// Multiplies `x`, the columns from `column` on of row `row` of this pack, by the mask: 0 or [`Dropout::scale`].
    pub fn apply<R: Real>(&self, key: [u32; 2], row: usize, plane: usize, column: usize, x: &mut [R]) {
        let (threshold, scale) = (self.threshold(), R::of(self.scale()));
        let row = self.first + row as u64;
        simd(
            #[inline(always)]
            || {
                // Whole groups of WIDE calls, in place of a tail of single ones: the cost is the same.
                let (mut at, end) = (column / COLUMNS * COLUMNS, column + x.len());
                while at < end {
                    let draws = wide((at / COLUMNS) as u32, plane as u32, row, key);
                    let (from, to) = (at.max(column), end.min(at + COLUMNS * WIDE));
                    for (x, &draw) in x[from - column..to - column].iter_mut().zip(&draws[from - at..]) {
                        *x = if draw < threshold { R::ZERO } else { *x * scale };
                    }
                    at += COLUMNS * WIDE;
                }
            },
        );
    }
}

impl Draw {
    /// A dropout as kernels take it, of an op that may have none: then nothing is drawn, as a threshold of 0 keeps everything.
    pub fn new(dropout: Option<Dropout>) -> Draw {
        let Some(d) = dropout else { return Draw { key0: 0, key1: 0, least: 0, scale: 1.0, first: 0 } };
        let ([key0, key1], scale) = (d.key(), d.scale() as f32);
        // In both halves of a word, as kernels compare two draws at a time.
        Draw { key0, key1, least: u32::from(d.threshold()) * 0x1_0001, scale, first: d.first }
    }
}

/// `y[n,c] = x[n,c] mask(n, plane, c)`, the mask being 0 or [`Dropout::scale`]; the backward is the same on the gradients.
///
/// | operand | shape  | dtype      | role        |
/// |---------|--------|------------|-------------|
/// | `y`     | [N, C] | activation | overwritten |
/// | `x`     | [N, C] | activation | read        |
///
/// Errors if a shape does not fit or the rate is no probability below 1. Source: Srivastava et al. 2014.
pub fn dropout_fwd(
    device: &Device,
    y: &mut Tensor,
    x: &Tensor,
    plane: usize,
    dropout: Dropout,
) -> Result<()> {
    let op = "dropout_fwd";
    let [n, c] = dims(op, ["N", "C"], &[("x", x, "N C"), ("y", &*y, "N C")])?;
    Dropout::check(Some(dropout), op)?;
    match device {
        Device::Cpu(real) => with_real!(*real, R => {
            let key = dropout.key();
            let rows = y.host_mut::<R>()?.par_chunks_mut(c).zip(x.host::<R>()?.par_chunks(c)).enumerate();
            rows.with_min_len(16).for_each(|(row, (y, x))| {
                y.copy_from_slice(x);
                dropout.apply(key, row, plane, 0, y);
            });
        }),
        Device::Gpu(gpu) => {
            whole_vectors(op, "C", c, 8)?;
            let threads = kernels::THREADS as usize;
            let launch = Launch::line((int(op, n * (c / 8))? as usize).div_ceil(threads), threads);
            let ([n, c, plane], dropout) =
                ([int(op, n)?, int(op, c)?, int(op, plane)?], Draw::new(Some(dropout)));
            let arguments = DropoutFwd { y, x, n, c, plane, dropout };
            // SAFETY: `dims` holds y and x to n and c, a multiple of 8, of which every thread has 8.
            unsafe { kernels::dropout_fwd(gpu, launch, arguments) }?;
        }
    }
    Ok(())
}

/// The draws of the counters `[block .. block + WIDE, plane, row]`, in the order of columns.
#[inline(always)]
fn wide(block: u32, plane: u32, row: u64, key: [u32; 2]) -> [u16; COLUMNS * WIDE] {
    let first = std::array::from_fn(|l| u64::from(block) + l as u64);
    let mut lanes = [first, [u64::from(plane); WIDE], [row; WIDE], [row >> 32; WIDE]];
    philox_wide::<ROUNDS, WIDE>(&mut lanes, key);
    let mut draws = [0; COLUMNS * WIDE];
    for (l, draws) in draws.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
        for (pair, lane) in draws.as_chunks_mut::<2>().0.iter_mut().zip(&lanes) {
            *pair = [lane[l] as u16, (lane[l] >> 16) as u16];
        }
    }
    draws
}
