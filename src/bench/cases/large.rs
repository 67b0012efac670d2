//! Every op of a layer at the sizes of real models, to be timed; too large to be tested against f64.

use super::{
    Added, Case, DMEAN, DROPOUT, Facts, Normal, Poison, activation, adamw, attention, linear, losses, rows,
    single,
};
use crate::model::config::Config;
use crate::ops::attention::{Heads, Mask};
use crate::ops::contrastive::{InfoNce, LossDtype};
use crate::ops::dropout::Dropout;
use crate::ops::lora_linear::{Lora, LoraGrads, lora_linear_bwd, lora_linear_fwd};
use crate::ops::masked_xent::{self as op, Gradient};
use crate::ops::pool::Pooling;

/// The dimensions of a decoder's layer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// As `--shape` has it.
    pub name: &'static str,
    /// C.
    pub width: usize,
    /// L.
    pub layers: usize,
    /// H, G, D.
    pub heads: Heads,
    /// F.
    pub feed_forward: usize,
    /// V.
    pub vocab: usize,
}

/// By their `config.json`.
pub const SHAPES: [Shape; 4] = [
    Shape {
        name: "S-LLaMA-1.3B",
        width: 2048,
        layers: 24,
        heads: Heads { query: 16, key: 16, width: 128 },
        feed_forward: 5504,
        vocab: 32000,
    },
    Shape {
        name: "Llama-2-7B",
        width: 4096,
        layers: 32,
        heads: Heads { query: 32, key: 32, width: 128 },
        feed_forward: 11008,
        vocab: 32000,
    },
    Shape {
        name: "Mistral-7B",
        width: 4096,
        layers: 32,
        heads: Heads { query: 32, key: 8, width: 128 },
        feed_forward: 14336,
        vocab: 32000,
    },
    Shape {
        name: "Llama-3-8B",
        width: 4096,
        layers: 32,
        heads: Heads { query: 32, key: 8, width: 128 },
        feed_forward: 14336,
        vocab: 128256,
    },
];

/// Likewise, of whole models alone: as large as a CPU is likely to run.
pub const SMALL: Shape = Shape {
    name: "Llama-3.2-1B",
    width: 2048,
    layers: 16,
    heads: Heads { query: 32, key: 8, width: 64 },
    feed_forward: 8192,
    vocab: 128256,
};

/// Lengths of the sequences in a pack.
const LENGTHS: [usize; 3] = [128, 512, 4096];
/// Rank and dropout of the recipe's adapters.
const RANK: usize = 16;
const LORA_DROPOUT: Dropout = Dropout { rate: 0.05, ..DROPOUT };

/// A model's.
pub fn shape_of(config: &Config) -> Shape {
    let &Config { width, layers, heads, feed_forward, vocab, .. } = config;
    Shape { name: "the model", width, layers, heads, feed_forward, vocab }
}

/// [`large_of`] all shapes.
pub fn large(tokens: usize) -> Vec<Case> {
    large_of(&SHAPES, tokens)
}

/// Every op of a layer of these shapes, in packs of `tokens`; a case that several shapes share is there once and names them.
pub fn large_of(shapes: &[Shape], tokens: usize) -> Vec<Case> {
    let mut list: Vec<(Case, Vec<&str>)> = Vec::new();
    for &shape in shapes {
        for case in layer(shape, tokens) {
            match list.iter_mut().find(|(c, _)| (c.op, &c.label) == (case.op, &case.label)) {
                // A short pack makes sizes of one shape equal, too.
                Some((_, names)) if names.last() == Some(&shape.name) => {}
                Some((_, names)) => names.push(shape.name),
                None => list.push((case, vec![shape.name])),
            }
        }
    }
    let named = |(case, names): (Case, Vec<&str>)| Case {
        label: format!("{} of {}", case.label, names.join(", ")),
        ..case
    };
    list.into_iter().map(named).collect()
}

/// What the roof is measured by, both ops of the table: a copy of so many rows of 4096, and a plain product of so many.
pub fn roofs(copied: usize, multiplied: usize) -> [Case; 2] {
    let sizes = [multiplied, 4096, 4096];
    let product = Projection { name: "plain", sizes, rows: &[], residual: false, lora: false };
    [rows::embed([copied, 4096], copied, 1), product.forward()]
}

fn layer(shape: Shape, n: usize) -> Vec<Case> {
    let Shape { width: c, heads, feed_forward: f, vocab, .. } = shape;
    let (q, kv) = (heads.query * heads.width, heads.key * heads.width);
    let mut list = vec![
        rows::embed([n, c], vocab, 7919),
        rows::rmsnorm_forward([n, c]),
        rows::rmsnorm_backward([n, c], true),
    ];
    for forward in [true, false] {
        list.extend([rows::rope(n, heads, LENGTHS[2].min(n), 1, forward), rows::swiglu([n, f], forward)]);
        for (name, k, rows, residual) in [
            ("qkv", c, &[q, kv, kv][..], false),
            ("o", q, &[c], true),
            ("gate_up", c, &[f, f], false),
            ("down", f, &[c], true),
        ] {
            let m = rows.iter().sum();
            // Adapters are merged where a model encodes, and live where a backward follows.
            let adapted = Projection { name, sizes: [n, k, m], rows, residual, lora: true };
            list.extend(forward.then(|| Projection { rows: &[], lora: false, ..adapted }.forward()));
            list.push(if forward { adapted.forward() } else { adapted.backward() });
        }
        for length in LENGTHS.map(|t| t.min(n)) {
            let pack = vec![length; (n / length).max(1)];
            list.extend([false, true].map(|drop| attention_of(&pack, heads, drop, forward)));
        }
        list.extend(forward.then(|| linear::swiglu([n, c, f], 0, false)));
        list.extend(forward.then(|| linear::rotary([n, c], heads, 0)));
        list.push(pool(n, c, forward));
        list.push(rows::l2norm([(n / 128).max(1), c], 1e-12, forward));
        let queries = (n / 32).max(1);
        list.extend([LossDtype::F32, LossDtype::Bf16].map(|dtype| contrastive(queries, c, dtype, forward)));
    }
    let head = [n, c, vocab, (n / 5).max(1)];
    list.extend([losses::masked_xent(head, 0.1), masked_xent_step(head)]);
    // All that one layer's adapters learn.
    let linears = [(c, q + 2 * kv, 3), (q, c, 1), (c, 2 * f, 2), (f, c, 1)];
    let learned = linears.iter().map(|(k, m, s)| RANK * (k * s + m)).sum::<usize>();
    list.extend([adamw::step(&[learned]), adamw::norm(&[("g", &[learned])]), adamw::add(&[learned])]);
    list
}

/// The label of a pack of equal lengths names them once.
fn attention_of(pack: &[usize], heads: Heads, drop: bool, forward: bool) -> Case {
    let case = attention::attention(pack, heads, Mask::Full, drop, forward);
    let (length, Heads { query, key, width }) = (pack[0], heads);
    let name = if drop { " drop" } else { "" };
    let label = format!("{}xT={length} H={query} G={key} D={width}{name} Full", pack.len());
    Case { label, ..case }
}

/// A projection, whose segments have `rows`; with adapters, dropped, where `lora` says so.
#[derive(Clone, Copy)]
struct Projection<'a> {
    name: &'a str,
    /// N, K, M.
    sizes: [usize; 3],
    rows: &'a [usize],
    residual: bool,
    lora: bool,
}

impl Projection<'_> {
    fn label(&self, facts: &Facts, residual: bool) -> String {
        let adapters = if self.lora { format!(" rows={:?} drop", self.rows) } else { String::new() };
        let added = if residual { " residual" } else { "" };
        format!("{} {}{adapters}{added}", self.name, facts.spelled())
    }

    fn facts(&self) -> Facts {
        let [n, k, m] = self.sizes;
        let mut facts = Facts::sizes([("N", n), ("K", k), ("M", m)]);
        if self.lora {
            facts.sizes.push(("R", RANK));
            (facts.segments, facts.dropout) = (self.rows.to_vec(), true);
        }
        facts
    }

    /// Elements of both factors of all adapters.
    fn learned(&self) -> usize {
        let [_, k, m] = self.sizes;
        if self.lora { RANK * (self.rows.len() * k + m) } else { 0 }
    }

    fn forward(self) -> Case {
        let Projection { sizes: [n, k, m], residual, lora, .. } = self;
        let (facts, rows, stacked) = (self.facts(), self.rows.to_vec(), self.rows.len() * RANK);
        let mut inputs = vec![activation("x", Normal(vec![n, k])), activation("w", Normal(vec![m, k]))];
        let mut outputs = vec![activation("y", Poison(vec![n, m]))];
        if lora {
            inputs.extend([single("a", Normal(vec![stacked, k])), single("b", Normal(vec![m, RANK]))]);
            outputs.push(activation("xa", Poison(vec![n, stacked])));
        }
        inputs.extend(residual.then(|| activation("residual", Normal(vec![n, m]))));
        let added = if residual { n * m } else { 0 };
        Case {
            op: "lora_linear_fwd",
            label: self.label(&facts, residual),
            facts,
            outputs,
            inputs,
            flops: 2 * n * (k * m + self.learned()),
            elements: n * k + k * m + n * m + self.learned() + n * stacked + added,
            unfused: None,
            run: Box::new(move |d, o, i| {
                let (y, xa) = o.split_at_mut(1);
                let (y, xa) = (y.first_mut(), xa.first_mut());
                let scales = vec![1.0; rows.len()];
                let adapters = lora.then(|| Lora { a: &i[2], b: &i[3], rows: &rows, scales: &scales });
                let skip = residual.then(|| &i[i.len() - 1]);
                let dropout = lora.then_some(LORA_DROPOUT);
                lora_linear_fwd(d, y, xa, &i[0], &i[1], None, adapters, skip, dropout)
            }),
        }
    }

    /// Of a projection with adapters.
    fn backward(self) -> Case {
        let [n, k, m] = self.sizes;
        let (facts, rows, stacked) = (self.facts(), self.rows.to_vec(), self.rows.len() * RANK);
        Case {
            op: "lora_linear_bwd",
            label: self.label(&facts, false),
            facts,
            outputs: vec![
                activation("dx", Poison(vec![n, k])),
                single("da", Added(vec![stacked, k])),
                single("db", Added(vec![m, RANK])),
                activation("dxa", Poison(vec![n, stacked])),
            ],
            inputs: vec![
                activation("dy", Normal(vec![n, m])),
                activation("x", Normal(vec![n, k])),
                activation("xa", Normal(vec![n, stacked])),
                activation("w", Normal(vec![m, k])),
                single("a", Normal(vec![stacked, k])),
                single("b", Normal(vec![m, RANK])),
            ],
            flops: 2 * n * (k * m + 2 * self.learned()),
            elements: n * k + k * m + n * m + n * k + 3 * self.learned() + 2 * n * stacked,
            unfused: None,
            run: Box::new(move |d, o, i| {
                let ([dx, da, db, dxa], [dy, x, xa, w, a, b]) = (o, i) else { unreachable!() };
                let scales = vec![1.0; rows.len()];
                let adapters = Lora { a, b, rows: &rows, scales: &scales };
                let (grads, dropout) = (LoraGrads { a: da, b: db }, Some(LORA_DROPOUT));
                lora_linear_bwd(
                    d,
                    Some(dx),
                    Some(grads),
                    Some(dxa),
                    dy,
                    x,
                    Some(xa),
                    w,
                    Some(adapters),
                    dropout,
                )
            }),
        }
    }
}

/// With a hard negative for each query; the scale makes scores of normal vectors as large as 20 makes those of unit vectors.
fn contrastive(p: usize, c: usize, dtype: LossDtype, forward: bool) -> Case {
    let rule = InfoNce { scale: 20.0 / c as f64, margin: None, dtype };
    let case = losses::contrastive([p, 2 * p, c], rule, false, forward);
    let name = if dtype == LossDtype::Bf16 { " bf16" } else { "" };
    Case { label: format!("P={p} M={} C={c}{name}", 2 * p), ..case }
}

/// Forward and backward in one call; the head is frozen, as in the recipe: two products where the logits are kept.
fn masked_xent_step(sizes: [usize; 4]) -> Case {
    let case = losses::masked_xent_step(sizes, 0.1);
    let [n, c, v, p] = sizes;
    Case {
        outputs: case.outputs.into_iter().filter(|operand| operand.name != "dw").collect(),
        flops: 4 * p * c * v,
        elements: p * c + n * c + v * c,
        unfused: None,
        run: Box::new(|d, o, i| {
            let [dx, total, loss, lse] = o else { unreachable!() };
            let gradient = Gradient { dx, dw: None, dmean: DMEAN };
            op::masked_xent_step(d, total, loss, lse, gradient, &i[0], &i[1], &i[2], &i[3])
        }),
        ..case
    }
}

/// Equal spans one after the other.
fn pool(n: usize, c: usize, forward: bool) -> Case {
    let length = LENGTHS[0].min(n);
    let spans: Vec<_> = (0..(n / length).max(1)).map(|i| i * length..(i + 1) * length).collect();
    rows::pool([n, c], &spans, Pooling::Mean, forward)
}
