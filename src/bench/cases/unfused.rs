//! Ops as chains of unfused steps, as one writes them without kernels of one's own: every step's result is rounded to bf16.
//!
//! The error of a chain is what ours may have twice. Sums within a step are f64, which is kinder to the chain than it
//! deserves; what a kernel gives in f32 from exact operands is left exact, so the rule for f32 holds.

use crate::device::Device;
use crate::device::cpu::{Matrix, matmul};
use crate::error::Result;
use crate::ops::attention::{Heads, Mask};
use crate::ops::contrastive::InfoNce;
use crate::ops::dropout::Dropout;
use crate::ops::lora_linear::Lora;
use crate::ops::rope;
use crate::tensor::Tensor;
use half::bf16;

fn round(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

fn rounded(mut x: Vec<f64>) -> Vec<f64> {
    x.iter_mut().for_each(|x| *x = round(*x));
    x
}

/// One product, not rounded.
fn product(a: Matrix<f64>, b: Matrix<f64>) -> Vec<f64> {
    let [m, n] = [a.shape[0], b.shape[1]];
    let mut y = vec![0.0; m * n];
    matmul(&mut y, n, false, 1.0, a, b, false);
    y
}

/// One head of one sequence.
struct Head {
    /// Query head.
    h: usize,
    /// First row of the sequence, its length, the head width.
    at: usize,
    len: usize,
    d: usize,
    mask: Mask,
    dropout: Option<Dropout>,
}

impl Head {
    /// Every query head of every sequence.
    fn all(starts: &[i32], heads: Heads, mask: Mask, dropout: Option<Dropout>) -> Vec<Head> {
        let sequences = starts.windows(2).map(|w| (w[0] as usize, (w[1] - w[0]) as usize));
        let head = move |(at, len)| {
            (0..heads.query).map(move |h| Head { h, at, len, d: heads.width, mask, dropout })
        };
        sequences.flat_map(head).collect()
    }

    /// The sequence's rows of column block `block`.
    fn rows<'a>(&self, x: &'a [f64], columns: usize, block: usize) -> Matrix<'a, f64> {
        Matrix::rows(&x[self.at * columns + block * self.d..], self.len, self.d, columns)
    }

    /// `q kᵀ / sqrt(D)`: product and scale are two steps.
    fn scores(&self, q: Matrix<f64>, k: Matrix<f64>) -> Vec<f64> {
        let scale = 1.0 / (self.d as f64).sqrt();
        rounded(rounded(product(q, k.t())).into_iter().map(|s| s * scale).collect())
    }

    /// Sets what the mask hides to `hidden`.
    fn hide(&self, scores: &mut [f64], hidden: f64) {
        for (i, row) in scores.chunks_mut(self.len).enumerate() {
            let seen = self.mask.keys(i, self.len);
            row.iter_mut().enumerate().filter(|(j, _)| !seen.contains(j)).for_each(|(_, x)| *x = hidden);
        }
    }

    /// Multiplies by the dropout mask.
    fn drop(&self, mut p: Vec<f64>) -> Vec<f64> {
        if let Some(dropout) = self.dropout {
            for (i, row) in p.chunks_mut(self.len).enumerate() {
                dropout.apply(dropout.key(), self.at + i, self.h, 0, row);
            }
        }
        rounded(p)
    }

    /// A square matrix of this sequence.
    fn square<'a>(&self, x: &'a [f64]) -> Matrix<'a, f64> {
        Matrix::rows(x, self.len, self.len, self.len)
    }
}

/// Scores, scale, softmax, dropout, product with v.
pub fn attention_fwd(
    o: &mut [Tensor],
    i: &[Tensor],
    heads: Heads,
    mask: Mask,
    dropout: Option<Dropout>,
) -> Result<()> {
    let ([out, lse], [qkv, starts]) = (o, i) else { unreachable!() };
    let (out, lse) = (out.host_mut::<f64>()?, lse.host_mut::<f64>()?);
    let (qkv, columns) = (qkv.host::<f64>()?, heads.columns());
    for head in Head::all(starts.host()?, heads, mask, dropout) {
        let key = heads.query + head.h / (heads.query / heads.key);
        let [q, k, v] = [head.h, key, key + heads.key].map(|block| head.rows(qkv, columns, block));
        let mut p = head.scores(q, k);
        head.hide(&mut p, f64::NEG_INFINITY);
        p.chunks_mut(head.len).for_each(|row| {
            let most = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f64 = row.iter().map(|s| (s - most).exp()).sum();
            row.iter_mut().for_each(|s| *s = round((*s - most).exp() / sum));
        });
        let y = rounded(product(head.square(&head.drop(p)), v));
        let mut exact = product(q, k.t());
        exact.iter_mut().for_each(|s| *s /= (head.d as f64).sqrt());
        head.hide(&mut exact, f64::NEG_INFINITY);
        for (r, (y, s)) in y.chunks(head.d).zip(exact.chunks(head.len)).enumerate() {
            let row = (head.at + r) * heads.query + head.h;
            out[row * head.d..][..head.d].copy_from_slice(y);
            lse[row] = s.iter().map(|s| s.exp()).sum::<f64>().ln();
        }
    }
    Ok(())
}

/// Upwards through the same steps; the gradients of heads that share keys are summed at the end.
pub fn attention_bwd(
    o: &mut [Tensor],
    i: &[Tensor],
    heads: Heads,
    mask: Mask,
    dropout: Option<Dropout>,
) -> Result<()> {
    let ([dqkv], [dout, out, lse, qkv, starts]) = (o, i) else { unreachable!() };
    let (dqkv, columns, wide) = (dqkv.host_mut::<f64>()?, heads.columns(), heads.query * heads.width);
    let [dout, out, lse, qkv] = [dout.host()?, out.host()?, lse.host()?, qkv.host::<f64>()?];
    dqkv.fill(0.0);
    for head in Head::all(starts.host()?, heads, mask, dropout) {
        let key = heads.query + head.h / (heads.query / heads.key);
        let blocks = [head.h, key, key + heads.key];
        let [q, k, v] = blocks.map(|block| head.rows(qkv, columns, block));
        let (dy, y) = (head.rows(dout, wide, head.h), head.rows(out, wide, head.h));
        let mut p = head.scores(q, k);
        for (r, row) in p.chunks_mut(head.len).enumerate() {
            let lse = lse[(head.at + r) * heads.query + head.h];
            row.iter_mut().for_each(|s| *s = round((*s - lse).exp()));
        }
        head.hide(&mut p, 0.0);
        let mut ds = head.drop(rounded(product(dy, v.t())));
        for (r, (ds, p)) in ds.chunks_mut(head.len).zip(p.chunks(head.len)).enumerate() {
            let dot = |c: usize| dy.data[r * wide + c] * y.data[r * wide + c];
            let delta: f64 = (0..head.d).map(dot).sum();
            ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = round(p * (*ds - delta)));
        }
        let (ds, kept, scale) = (head.square(&ds), head.drop(p), 1.0 / (head.d as f64).sqrt());
        let scaled = |x: Vec<f64>| rounded(rounded(x).into_iter().map(|x| x * scale).collect());
        let parts = [
            scaled(product(ds, k)),
            scaled(product(ds.t(), q)),
            rounded(product(head.square(&kept).t(), dy)),
        ];
        for (block, part) in blocks.into_iter().zip(parts) {
            for (r, part) in part.chunks(head.d).enumerate() {
                let to = &mut dqkv[(head.at + r) * columns + block * head.d..][..head.d];
                to.iter_mut().zip(part).for_each(|(to, x)| *to += x);
            }
        }
    }
    dqkv.iter_mut().for_each(|x| *x = round(*x));
    Ok(())
}

/// The segments of an adapter: index, first row, rows, scale.
fn segments(lora: &Lora) -> Vec<(usize, usize, usize, f64)> {
    let first = |s: usize| lora.rows[..s].iter().sum::<usize>();
    (0..lora.rows.len()).map(|s| (s, first(s), lora.rows[s], lora.scales[s])).collect()
}

/// `drop(x)` of segment `s`.
fn dropped(x: &[f64], k: usize, s: usize, scale: f64, dropout: Option<Dropout>) -> Vec<f64> {
    let mut x = x.to_vec();
    if let Some(dropout) = dropout.filter(|_| scale != 0.0) {
        let rows = x.chunks_mut(k).enumerate();
        rows.for_each(|(row, x)| dropout.apply(dropout.key(), row, s, 0, x));
    }
    rounded(x)
}

/// One step, of a qkv that is rounded already.
pub fn rope_fwd(qkv: &mut Tensor, tables: &[Tensor], heads: Heads) -> Result<()> {
    let [cos, sin, positions] = tables else { unreachable!() };
    rope::rope_fwd(&Device::cpu_f64(), qkv, cos, sin, positions, heads)?;
    qkv.host_mut::<f64>()?.iter_mut().for_each(|x| *x = round(*x));
    Ok(())
}

/// silu, then the product.
pub fn swiglu_fwd(act: &mut Tensor, gate_up: &Tensor) -> Result<()> {
    let f = act.shape()[1];
    let rows = act.host_mut::<f64>()?.chunks_mut(f).zip(gate_up.host::<f64>()?.chunks(2 * f));
    for (act, gate_up) in rows {
        for ((a, &g), &u) in act.iter_mut().zip(gate_up).zip(&gate_up[f..]) {
            *a = round(round(g / (1.0 + (-g).exp())) * u);
        }
    }
    Ok(())
}

/// Product and bias, dropout, the two products of each segment, its scale, their sum, the residual.
pub fn lora_linear_fwd(
    o: &mut [Tensor],
    i: &[Tensor],
    lora: Option<Lora>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    dropout: Option<Dropout>,
) -> Result<()> {
    let (x, w) = (&i[0], &i[1]);
    let ([n, k], m) = ([x.shape()[0], x.shape()[1]], w.shape()[0]);
    let x = x.host::<f64>()?;
    let mut y = product(Matrix::rows(x, n, k, k), Matrix::rows(w.host()?, m, k, k).t());
    if let Some(bias) = bias {
        let bias = bias.host::<f64>()?;
        y.chunks_mut(m).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    }
    let mut y = rounded(y);
    if let Some(lora) = lora {
        let (a, b) = (rounded(lora.a.to_f64()), rounded(lora.b.to_f64()));
        let (rank, stacked) = (lora.b.shape()[1], lora.a.shape()[0]);
        for (s, first, rows, scale) in segments(&lora) {
            let x = dropped(x, k, s, scale, dropout);
            let a = Matrix::rows(&a[s * rank * k..], rank, k, k);
            let xa = rounded(product(Matrix::rows(&x, n, k, k), a.t()));
            let b = Matrix::rows(&b[first * rank..], rows, rank, rank);
            let low = rounded(product(Matrix::rows(&xa, n, rank, rank), b.t()));
            for r in 0..n {
                let to = &mut y[r * m + first..][..rows];
                to.iter_mut().zip(&low[r * rows..]).for_each(|(y, x)| *y = round(*y + round(scale * x)));
                o[1].host_mut::<f64>()?[r * stacked + s * rank..][..rank]
                    .copy_from_slice(&xa[r * rank..][..rank]);
            }
        }
    }
    if let Some(residual) = residual {
        y.iter_mut().zip(residual.host::<f64>()?).for_each(|(y, r)| *y = round(*y + r));
    }
    o[0].host_mut::<f64>()?.copy_from_slice(&y);
    Ok(())
}

/// Operands of the case: dx, da, db, dxa; dy, x, xa, w, a, b.
pub fn lora_linear_bwd(o: &mut [Tensor], i: &[Tensor], lora: Lora, dropout: Option<Dropout>) -> Result<()> {
    let ([dx, da, db, dxa], [dy, x, xa, w, ..]) = (o, i) else { unreachable!() };
    let ([n, k], m) = ([x.shape()[0], x.shape()[1]], w.shape()[0]);
    let (rank, stacked) = (lora.b.shape()[1], lora.a.shape()[0]);
    let [dy, x, xa, w] = [dy.host()?, x.host()?, xa.host()?, w.host::<f64>()?];
    let (a, b) = (rounded(lora.a.to_f64()), rounded(lora.b.to_f64()));
    let mut back = rounded(product(Matrix::rows(dy, n, m, m), Matrix::rows(w, m, k, k)));
    for (s, first, rows, scale) in segments(&lora) {
        let mut low = Vec::new();
        for r in 0..n {
            low.extend(dy[r * m + first..][..rows].iter().map(|dy| round(scale * dy)));
        }
        let (low, b) =
            (Matrix::rows(&low, n, rows, rows), Matrix::rows(&b[first * rank..], rows, rank, rank));
        let d = rounded(product(low, b));
        let dxa = dxa.host_mut::<f64>()?;
        for r in 0..n {
            dxa[r * stacked + s * rank..][..rank].copy_from_slice(&d[r * rank..][..rank]);
        }
        let d = Matrix::rows(&d, n, rank, rank);
        let mut step = rounded(product(d, Matrix::rows(&a[s * rank * k..], rank, k, k)));
        step = dropped(&step, k, s, scale, dropout);
        back.iter_mut().zip(&step).for_each(|(dx, x)| *dx = round(*dx + x));
        let x = dropped(x, k, s, scale, dropout);
        matmul(&mut da.host_mut()?[s * rank * k..], k, true, 1.0, d.t(), Matrix::rows(&x, n, k, k), false);
        let (dy, xa) =
            (Matrix::rows(&dy[first..], n, rows, m), Matrix::rows(&xa[s * rank..], n, rank, stacked));
        matmul(&mut db.host_mut()?[first * rank..], rank, true, scale, dy.t(), xa, false);
    }
    dx.host_mut::<f64>()?.copy_from_slice(&back);
    Ok(())
}

/// The logits' gradient is one step, each product of it another.
pub fn masked_xent_bwd(o: &mut [Tensor], i: &[Tensor], dmean: f64) -> Result<()> {
    let ([dx, dw], [x, w, rows, labels, lse]) = (o, i) else { unreachable!() };
    let (c, v, p) = (x.shape()[1], w.shape()[0], rows.numel());
    let [x, w, lse] = [x.host::<f64>()?, w.host()?, lse.host()?];
    let (rows, labels) = (rows.host::<i32>()?, labels.host::<i32>()?);
    let picked: Vec<f64> = rows.iter().flat_map(|&r| &x[r as usize * c..][..c]).copied().collect();
    let (picked, w) = (Matrix::rows(&picked, p, c, c), Matrix::rows(w, v, c, c));
    let mut dz = product(picked, w.t());
    for (r, z) in dz.chunks_mut(v).enumerate() {
        let gradient = |(j, z): (usize, &mut f64)| {
            let label = f64::from(u8::from(labels[r] as usize == j));
            *z = round(dmean / p as f64 * ((*z - lse[r]).exp() - label));
        };
        z.iter_mut().enumerate().for_each(gradient);
    }
    let dz = Matrix::rows(&dz, p, v, v);
    matmul(dw.host_mut()?, c, true, 1.0, dz.t(), picked, false);
    let (back, dx) = (product(dz, w), dx.host_mut::<f64>()?);
    dx.fill(0.0);
    for (back, &r) in back.chunks(c).zip(rows) {
        dx[r as usize * c..][..c].iter_mut().zip(back).for_each(|(dx, b)| *dx += b);
    }
    dx.iter_mut().for_each(|x| *x = round(*x));
    Ok(())
}

/// Of rounded vectors: the scores' gradient is one step, each product of it another. Operands of the case: dq, dc; q, c, lse and
/// ids where there are some.
pub fn contrastive_bwd(o: &mut [Tensor], i: &[Tensor], rule: InfoNce, dmean: f64) -> Result<()> {
    let ([dq, dc], [q, c, lse, ids @ ..]) = (o, i) else { unreachable!() };
    let (p, m, width) = (q.shape()[0], c.shape()[0], q.shape()[1]);
    let (q, c, lse) = (rounded(q.to_f64()), rounded(c.to_f64()), lse.host::<f64>()?);
    let ids = ids.first().map(Tensor::host::<i32>).transpose()?;
    let (q, c) = (Matrix::rows(&q, p, width, width), Matrix::rows(&c, m, width, width));
    let mut dz = product(q, c.t());
    for (r, z) in dz.chunks_mut(m).enumerate() {
        let limit = rule.margin.map_or(f64::INFINITY, |margin| z[r] + margin);
        for (j, z) in z.iter_mut().enumerate() {
            let counts = j == r || !(ids.is_some_and(|ids| ids[r] == ids[j]) || *z > limit);
            let share = if counts { (rule.scale * *z - lse[r]).exp() } else { 0.0 };
            *z = round(rule.scale * dmean / p as f64 * (share - f64::from(u8::from(j == r))));
        }
    }
    let dz = Matrix::rows(&dz, p, m, m);
    dq.host_mut::<f64>()?.copy_from_slice(&product(dz, c));
    dc.host_mut::<f64>()?.copy_from_slice(&product(dz.t(), q));
    Ok(())
}
