//! One table of cases for every op: shapes, inputs, cost, and how to run it on any device.

use crate::device::{DType, Device};
use crate::error::Result;
use crate::ops::attention::{Heads, Mask, attention_fwd};
use crate::ops::embed::embed_fwd;
use crate::ops::l2norm::l2norm_fwd;
use crate::ops::lora_linear::{Lora, lora_linear_fwd};
use crate::ops::pool::{Pooling, pool_fwd};
use crate::ops::rmsnorm::rmsnorm_fwd;
use crate::ops::rope::rope_fwd;
use crate::ops::swiglu::swiglu_fwd;
use crate::rng::normal;
use crate::tensor::Tensor;

/// What an operand starts as.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Standard normal numbers in the device's float.
    Normal(Vec<usize>),
    /// These integers.
    Ints(Vec<usize>, Vec<i32>),
    /// NaN: an output that must be overwritten everywhere.
    Poison(Vec<usize>),
}

impl Fill {
    /// The operand on a CPU that computes in `real`; operand `index` has its own random stream.
    pub fn tensor(&self, real: DType, index: usize) -> Tensor {
        let numel = |shape: &[usize]| shape.iter().product();
        match self {
            Fill::Normal(s) => Tensor::from_f64(real, s, normal(index as u64 + 1, numel(s))),
            Fill::Poison(s) => Tensor::from_f64(real, s, std::iter::repeat_n(f64::NAN, numel(s))),
            Fill::Ints(s, v) => {
                let mut t = Tensor::zeros(DType::I32, s);
                if let Ok(to) = t.host_mut::<i32>() {
                    to.copy_from_slice(v);
                }
                t
            }
        }
    }
}

/// How a case calls its op: device, outputs, inputs.
pub type Run = Box<dyn Fn(&Device, &mut [Tensor], &[Tensor]) -> Result<()> + Send + Sync>;

/// One call of one op.
pub struct Case {
    /// The op's name.
    pub op: &'static str,
    /// Its sizes.
    pub label: String,
    /// Named operands that are written.
    pub outputs: Vec<(&'static str, Fill)>,
    /// Named operands that are read.
    pub inputs: Vec<(&'static str, Fill)>,
    /// Floating-point operations, a multiply and an add being two.
    pub flops: usize,
    /// Elements that must at least be moved between memory and the op.
    pub elements: usize,
    /// The call.
    pub run: Run,
}

impl Case {
    /// Outputs and inputs on a CPU that computes in `real`.
    pub fn operands(&self, real: DType) -> (Vec<Tensor>, Vec<Tensor>) {
        let make = |list: &[(&str, Fill)], base: usize| -> Vec<Tensor> {
            list.iter().enumerate().map(|(i, (_, f))| f.tensor(real, base + i)).collect()
        };
        (make(&self.outputs, 100), make(&self.inputs, 0))
    }
}

/// Every case of every op.
pub fn all() -> Vec<Case> {
    let lists = [embeds(), rmsnorms(), ropes(), attentions(), lora_linears(), swiglus(), pools(), l2norms()];
    lists.into_iter().flatten().collect()
}

use Fill::{Ints, Normal, Poison};

/// One row, odd sizes, a width that fills no vector, a real width.
const ROWS: &[[usize; 2]] = &[[1, 8], [3, 17], [65, 40], [256, 768]];

fn embeds() -> Vec<Case> {
    let case = |&[n, c]: &[usize; 2]| Case {
        op: "embed_fwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("x", Poison(vec![n, c]))],
        inputs: vec![
            ("table", Normal(vec![50, c])),
            ("ids", Ints(vec![n], (0..n).map(|i| (i * 7 % 50) as i32).collect())),
        ],
        flops: 0,
        elements: 2 * n * c,
        run: Box::new(|d, o, i| embed_fwd(d, &mut o[0], &i[0], &i[1])),
    };
    ROWS.iter().map(case).collect()
}

fn rmsnorms() -> Vec<Case> {
    let case = |&[n, c]: &[usize; 2]| Case {
        op: "rmsnorm_fwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("y", Poison(vec![n, c])), ("rstd", Poison(vec![n]))],
        inputs: vec![("x", Normal(vec![n, c])), ("w", Normal(vec![c]))],
        flops: 4 * n * c,
        elements: 2 * n * c + c + n,
        run: Box::new(|d, o, i| {
            let [y, rstd] = o else { unreachable!() };
            rmsnorm_fwd(d, y, rstd, &i[0], &i[1], 1e-5)
        }),
    };
    ROWS.iter().map(case).collect()
}

fn ropes() -> Vec<Case> {
    let shapes = [(1, Heads { query: 1, key: 1, width: 2 }), (65, Heads { query: 6, key: 2, width: 32 })];
    let case = |&(n, heads): &(usize, Heads)| Case {
        op: "rope_fwd",
        label: format!("N={n} H={} G={} D={}", heads.query, heads.key, heads.width),
        outputs: vec![("qkv", Normal(vec![n, heads.columns()]))],
        inputs: vec![
            ("cos", Normal(vec![16, heads.width / 2])),
            ("sin", Normal(vec![16, heads.width / 2])),
            ("positions", Ints(vec![n], (0..n).map(|i| (i * 5 % 16) as i32).collect())),
        ],
        flops: 3 * n * (heads.query + heads.key) * heads.width,
        elements: 2 * n * (heads.query + heads.key) * heads.width,
        run: Box::new(move |d, o, i| rope_fwd(d, &mut o[0], &i[0], &i[1], &i[2], heads)),
    };
    shapes.iter().map(case).collect()
}

/// Lengths of one pack: ones, the row block of the CPU and its neighbours, one long among tiny ones.
const PACKS: &[&[usize]] = &[&[1], &[1, 63, 64, 65, 1], &[2, 3, 150, 1, 5], &[128, 128, 128, 128]];

fn attentions() -> Vec<Case> {
    let heads = [(1, 1, 8), (4, 4, 32), (6, 2, 16), (8, 1, 64)];
    let heads = heads.map(|(query, key, width)| Heads { query, key, width });
    let masks = [Mask::Full, Mask::Causal, Mask::Window(7), Mask::CausalWindow(70)];
    let mut list = Vec::new();
    for (&lengths, heads) in PACKS.iter().zip(heads) {
        for mask in masks {
            list.push(attention(lengths, heads, mask));
        }
    }
    list
}

fn attention(lengths: &[usize], heads: Heads, mask: Mask) -> Case {
    let n: usize = lengths.iter().sum();
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |at, &len| {
        *at += len as i32;
        Some(*at)
    }));
    let pairs = |&len: &usize| (0..len).map(|i| mask.keys(i, len).len()).sum::<usize>();
    let (h, d) = (heads.query, heads.width);
    Case {
        op: "attention_fwd",
        label: format!("{lengths:?} H={h} G={} D={d} {mask:?}", heads.key),
        outputs: vec![("out", Poison(vec![n, h * d])), ("lse", Poison(vec![n, h]))],
        inputs: vec![
            ("qkv", Normal(vec![n, heads.columns()])),
            ("starts", Ints(vec![lengths.len() + 1], starts)),
        ],
        flops: 4 * h * d * lengths.iter().map(pairs).sum::<usize>(),
        elements: n * (heads.columns() + h * d + h),
        run: Box::new(move |dev, o, i| {
            let [out, lse] = o else { unreachable!() };
            attention_fwd(dev, out, Some(lse), &i[0], &i[1], heads, mask, None)
        }),
    }
}

fn lora_linears() -> Vec<Case> {
    let plain = [[1, 1, 1], [3, 5, 7], [65, 48, 40], [256, 768, 768]].map(|[n, k, m]| Case {
        op: "lora_linear_fwd",
        label: format!("N={n} K={k} M={m}"),
        outputs: vec![("y", Poison(vec![n, m]))],
        inputs: vec![("x", Normal(vec![n, k])), ("w", Normal(vec![m, k]))],
        flops: 2 * n * k * m,
        elements: n * k + k * m + n * m,
        run: Box::new(|d, o, i| lora_linear_fwd(d, &mut o[0], None, &i[0], &i[1], None, None, None, None)),
    });
    let lora =
        [([3, 5, 8], [4usize, 4], 2), ([65, 40, 100], [60, 40], 16)].map(|([n, k, m], rows, r)| Case {
            op: "lora_linear_fwd",
            label: format!("N={n} K={k} M={m} R={r} bias residual"),
            outputs: vec![("y", Poison(vec![n, m])), ("xa", Poison(vec![n, 2 * r]))],
            inputs: vec![
                ("x", Normal(vec![n, k])),
                ("w", Normal(vec![m, k])),
                ("bias", Normal(vec![m])),
                ("a", Normal(vec![2 * r, k])),
                ("b", Normal(vec![m, r])),
                ("residual", Normal(vec![n, m])),
            ],
            flops: 2 * n * (k * m + 2 * r * k + m * r),
            elements: n * k + k * m + 2 * n * m + 2 * r * k + m * r + m,
            run: Box::new(move |d, o, i| {
                let ([y, xa], [x, w, bias, a, b, residual]) = (o, i) else { unreachable!() };
                let lora = Lora { a, b, rows: &rows, scales: &[2.0, 0.5] };
                lora_linear_fwd(d, y, Some(xa), x, w, Some(bias), Some(lora), Some(residual), None)
            }),
        });
    plain.into_iter().chain(lora).collect()
}

fn swiglus() -> Vec<Case> {
    let case = |&[n, f]: &[usize; 2]| Case {
        op: "swiglu_fwd",
        label: format!("N={n} F={f}"),
        outputs: vec![("a", Poison(vec![n, f]))],
        inputs: vec![("gate_up", Normal(vec![n, 2 * f]))],
        flops: 5 * n * f,
        elements: 3 * n * f,
        run: Box::new(|d, o, i| swiglu_fwd(d, &mut o[0], &i[0])),
    };
    ROWS.iter().map(case).collect()
}

fn pools() -> Vec<Case> {
    let modes = [Pooling::Mean, Pooling::WeightedMean, Pooling::Last, Pooling::First];
    let case = |pooling: Pooling| Case {
        op: "pool_fwd",
        label: format!("N=70 B=3 C=40 {pooling:?}"),
        outputs: vec![("y", Poison(vec![3, 40]))],
        inputs: vec![("x", Normal(vec![70, 40])), ("spans", Ints(vec![3, 2], vec![0, 1, 3, 70, 69, 70]))],
        flops: 2 * 69 * 40,
        elements: 69 * 40 + 3 * 40,
        run: Box::new(move |d, o, i| pool_fwd(d, &mut o[0], &i[0], &i[1], pooling)),
    };
    modes.into_iter().map(case).collect()
}

fn l2norms() -> Vec<Case> {
    let case = |&[b, c]: &[usize; 2]| Case {
        op: "l2norm_fwd",
        label: format!("B={b} C={c}"),
        outputs: vec![("y", Poison(vec![b, c])), ("norm", Poison(vec![b]))],
        inputs: vec![("x", Normal(vec![b, c]))],
        flops: 3 * b * c,
        elements: 2 * b * c + b,
        run: Box::new(|d, o, i| {
            let [y, norm] = o else { unreachable!() };
            l2norm_fwd(d, y, norm, &i[0], 1e-12)
        }),
    };
    ROWS.iter().map(case).collect()
}
