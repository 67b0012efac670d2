//! Matrix products of a warpgroup: `wgmma.mma_async`, as an instruction and as arithmetic. What they hold while they run
//! is in `products`, how four warps come to them in `warpgroup`.
//!
//! Numbers: products are exact, and each element's sum runs in f32 from the accumulator over rising k; sums in f16 are
//! rounded once an instruction.

use super::body::{Body, Operand};
use super::decode::unknown;
use super::descriptor::{CHUNK, Descriptor};
use super::parse::Parsed;
use super::ptx::{LANES, Lanes, NONE, Op, Pred, Src};
use super::tensor::Element;
use super::warp::{Frame, Warp};
use half::{bf16, f16};

/// Rows of a product.
pub const M: usize = 64;

/// Where A comes from.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// Each warp's 16 rows, laid out as for `mma.sync`.
    Registers([Src; 4]),
    /// A descriptor.
    Shared(Src),
}

/// D = A B + D on tiles of 64 x k by k x n.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Of A and B.
    pub element: Element,
    /// 8 to 256.
    pub n: usize,
    /// Sums are f16, two in a register.
    pub half: bool,
    /// The accumulator.
    pub d: Vec<u32>,
    /// The left operand.
    pub a: Left,
    /// B's descriptor.
    pub b: Src,
    /// False: D is not read.
    pub scale: Pred,
    /// A's and B's elements change their sign.
    pub negate: [bool; 2],
    /// A and B lie along m and n.
    pub across: [bool; 2],
}

/// `wgmma.mma_async.sync.aligned.m64nNkK.f32.T.T` and its companions.
pub fn decode<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match (&parts[1..], operands) {
        ([act @ ("inc" | "dec"), "sync", "aligned", "u32"], [Operand::Word { word, .. }]) => {
            match super::lex::number(word) {
                Some(n) if (24..=256).contains(&n) && n % 8 == 0 => {
                    Ok(Op::SetRegisters { count: n as u32, more: *act == "inc" })
                }
                _ => body.parser.wrong("a multiple of 8 registers from 24 to 256 was expected"),
            }
        }
        (["fence", "sync", "aligned"], []) => Ok(Op::WgmmaFence),
        (["commit_group", "sync", "aligned"], []) => Ok(Op::WgmmaCommit),
        (["wait_group", "sync", "aligned"], [Operand::Word { word, .. }]) => match super::lex::number(word) {
            Some(n) if n < 1 << 16 => Ok(Op::WgmmaWait { pending: n as usize }),
            _ => body.parser.wrong("expected a number of groups"),
        },
        (["mma_async", "sp", ..], _) => body.parser.wrong("sparse operands are not modelled"),
        (["mma_async", "sync", "aligned", shape, sum, a, b], _) => {
            product(body, [shape, sum, a, b], operands)
        }
        _ => unknown(body),
    }
}

fn product<'a>(
    body: &mut Body<'_, 'a>,
    [shape, sum, a, b]: [&str; 4],
    operands: &[Operand<'a>],
) -> Parsed<Op> {
    let element = match (a, b, sum) {
        ("f16", "f16", "f16" | "f32") => Element::F16,
        ("bf16", "bf16", "f32") => Element::Bf16,
        ("tf32", "tf32", "f32") => Element::Tf32,
        _ => return body.parser.wrong(format!("sums in {sum} of {a} by {b} are not modelled")),
    };
    let k = element.depth();
    let n = shape.strip_prefix("m64n").and_then(|s| s.strip_suffix(&format!("k{k}")));
    let n = n.and_then(|n| n.parse::<usize>().ok()).filter(|n| (8..=256).contains(n) && n % 8 == 0);
    let Some(n) = n else { return body.parser.wrong(format!("`{shape}` is no shape for {a}")) };
    let half = sum == "f16";
    let registers = if half { n / 4 } else { n / 2 };
    let [Operand::Vector(d), a, b, scale, rest @ ..] = operands else {
        return body.parser.wrong("expected registers in braces, A, B and a predicate");
    };
    if d.len() != registers {
        return body.parser.wrong(format!("{} registers, {registers} were expected", d.len()));
    }
    let left = match a {
        Operand::Vector(a) if a.len() == 4 => {
            let mut s = [Src::Const(0); 4];
            for (s, o) in s.iter_mut().zip(a) {
                *s = body.source(o)?;
            }
            Left::Registers(s)
        }
        Operand::Vector(a) => return body.parser.wrong(format!("A has {} registers, 4 are due", a.len())),
        a => Left::Shared(body.source(a)?),
    };
    let mut flags = [false; 4];
    let majors = if element == Element::Tf32 { 0 } else { 2 };
    let majors = if matches!(left, Left::Registers(_)) { majors / 2 } else { majors };
    if rest.len() != 2 + majors {
        return body.parser.wrong(format!("{} immediate operands, {} were expected", rest.len(), 2 + majors));
    }
    for (i, (flag, o)) in flags.iter_mut().zip(rest).enumerate() {
        *flag = match (i, o) {
            (0 | 1, Operand::Word { word: "1", minus, .. }) => *minus,
            (2 | 3, Operand::Word { word: "0", minus: false, .. }) => false,
            (2 | 3, Operand::Word { word: "1", minus: false, .. }) => true,
            _ => return body.parser.wrong("scales are 1 and -1, transpositions 0 and 1"),
        };
    }
    // With A in registers the one transposition is B's.
    let across = if majors == 1 { [false, flags[2]] } else { [flags[2], flags[3]] };
    let d = d.iter().map(|o| body.target(o)).collect::<Parsed<Vec<u32>>>()?;
    if d.contains(&NONE) {
        return body.parser.wrong("`_` is no accumulator");
    }
    let (b, scale) = (body.source(b)?, body.predicate(scale)?);
    let negate = [flags[0], flags[1]];
    Ok(Op::Wgmma(Box::new(Wgmma { element, n, half, d, a: left, b, scale, negate, across })))
}

impl Wgmma {
    /// Registers that A takes.
    pub fn left(&self) -> impl Iterator<Item = u32> {
        let list = match self.a {
            Left::Registers(list) => list.map(Some),
            Left::Shared(_) => [None; 4],
        };
        list.into_iter().filter_map(|s| if let Some(Src::Reg(r)) = s { Some(r) } else { None })
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        (2 * M * self.n * self.element.depth()) as u64
    }

    /// Addresses of an operand's chunks, row by row: `rows` of A or columns of B.
    pub fn chunks(&self, descriptor: &Descriptor, across: bool, rows: usize) -> Vec<u32> {
        let (rows, k) = (rows as u32, self.element.depth() as u32);
        match across {
            false => (0..rows).flat_map(|r| (0..2).map(move |c| descriptor.along_k(r, c))).collect(),
            true => (0..k).flat_map(|k| (0..rows / 8).map(move |c| descriptor.across_k(k, c))).collect(),
        }
    }

    /// Those chunks as numbers, [k][rows].
    pub fn numbers(
        &self,
        chunks: &[u32],
        memory: &[u8],
        across: bool,
        rows: usize,
        negate: bool,
    ) -> Vec<f32> {
        let sign = if negate { -1.0 } else { 1.0 };
        match self.element {
            Element::Bf16 => gather(chunks, memory, across, rows, |b| sign * bf16::from_le_bytes(b).to_f32()),
            Element::F16 => gather(chunks, memory, across, rows, |b| sign * f16::from_le_bytes(b).to_f32()),
            // The decoder lets no other through.
            _ => gather(chunks, memory, across, rows, |b: [u8; 4]| {
                sign * Element::Tf32.at(u32::from_le_bytes(b).into(), 0)
            }),
        }
    }

    /// A from the warps' registers, [k][m].
    pub fn fragments(
        &self,
        registers: &[Src; 4],
        warps: &[Warp],
        frames: &[Frame],
        consts: &[Lanes],
    ) -> Vec<f32> {
        let k = self.element.depth();
        let (pack, sign) = (4 / self.element.size(), if self.negate[0] { -1.0 } else { 1.0 });
        let mut numbers = vec![0f32; k * M];
        for (w, warp) in warps.iter().enumerate() {
            for (r, s) in registers.iter().enumerate() {
                let values = warp.look(&frames[w], *s, consts);
                for (lane, value) in values.iter().enumerate() {
                    for i in 0..pack {
                        let column = lane % 4 * pack + i + r / 2 * 4 * pack;
                        let row = 16 * w + lane / 4 + r % 2 * 8;
                        numbers[column * M + row] = sign * self.element.at(*value, i);
                    }
                }
            }
        }
        numbers
    }

    /// sums[m][n] += A B: four steps of k at a time, added one after the other.
    pub fn multiply(&self, a: &[f32], b: &[f32], sums: &mut [f32]) {
        let n = self.n;
        for (m, sums) in sums.chunks_exact_mut(n).enumerate() {
            for (a, b) in a.chunks_exact(4 * M).zip(b.chunks_exact(4 * n)) {
                let x = [a[m], a[M + m], a[2 * M + m], a[3 * M + m]];
                let ((y0, y1), (y2, y3)) = (b[..2 * n].split_at(n), b[2 * n..].split_at(n));
                for (sum, (((y0, y1), y2), y3)) in sums.iter_mut().zip(y0.iter().zip(y1).zip(y2).zip(y3)) {
                    *sum = *sum + x[0] * y0 + x[1] * y1 + x[2] * y2 + x[3] * y3;
                }
            }
        }
    }

    /// Where the elements of D's register `r` of warp `w` stand among the sums: of lane 0, and of every lane from there;
    /// the second of two stands behind the first.
    pub fn place(&self, w: usize, r: usize) -> (usize, [usize; LANES]) {
        let (row, column) = match self.half {
            true => (r % 2 * 8, r / 2 * 8),
            false => (r / 2 % 2 * 8, r / 4 * 8 + r % 2),
        };
        let lanes = std::array::from_fn(|lane| lane / 4 * self.n + lane % 4 * 2);
        ((16 * w + row) * self.n + column, lanes)
    }
}

/// Elements of S bytes from chunks, [k][rows].
fn gather<const S: usize>(
    chunks: &[u32],
    memory: &[u8],
    across: bool,
    rows: usize,
    number: impl Fn([u8; S]) -> f32,
) -> Vec<f32> {
    let wide = CHUNK / S;
    let mut numbers = vec![0f32; 2 * wide * rows];
    for (i, at) in chunks.iter().enumerate() {
        let elements = memory[*at as usize..*at as usize + CHUNK].as_chunks::<S>().0;
        // Along k the chunk's elements go to rows of their own.
        let (first, step) = if across { (i * wide, 1) } else { (i % 2 * wide * rows + i / 2, rows) };
        numbers[first..].iter_mut().step_by(step).zip(elements).for_each(|(to, e)| *to = number(*e));
    }
    numbers
}
