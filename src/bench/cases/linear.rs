//! The linear op: plain, and with low-rank segments, one of them without an adapter.

use super::{
    Added, Case, DROPOUT, Facts, Ints, Normal, Poison, activation, chain, index, room, single, unfused,
};
use crate::ops::attention::Heads;
use crate::ops::lora_linear::{
    Lora, LoraGrads, Rotary, lora_linear_bwd, lora_linear_fwd, lora_linear_rope_fwd, lora_linear_swiglu_fwd,
};
use crate::ops::rope::rope_fwd;
use crate::ops::swiglu::swiglu_fwd;

pub fn lora_linears() -> Vec<Case> {
    let plain = [[1, 1, 1], [3, 5, 7], [65, 48, 40], [256, 768, 768]];
    let small = ([3, 5, 8], vec![4, 4], 2);
    let stacked = ([65, 40, 100], vec![60, 10, 30], 16);
    // More rows than are dropped at a time.
    let long = ([515, 24, 12], vec![4, 8], 4);
    let lora = [(small, false), (stacked.clone(), false), (stacked, true), (long, true)];
    // Sizes that a GPU takes: one token, one short of a tile, a tile, one more; depths that are no whole stage; segments
    // that end within a tile; ranks below, at and above a k-step, odd ones too; K and N that are split.
    let tiles = [[1, 64, 72], [63, 32, 64], [64, 688, 56], [129, 72, 136]];
    let segments = [
        (([1, 40, 24], vec![8, 8, 8], 4), false),
        (([1, 40, 24], vec![8, 8, 8], 4), true),
        (([33, 136, 64], vec![64], 16), true),
        (([64, 64, 96], vec![48, 32, 16], 16), false),
        (([65, 552, 104], vec![40, 64], 8), true),
        (([129, 72, 80], vec![24, 40, 16], 64), true),
        (([40, 72, 344], vec![328, 8, 8], 5), true),
        (([300, 48, 1096], vec![552, 536, 8], 8), false),
    ];
    let plain = plain.iter().chain(&tiles).flat_map(|&sizes| [plain_fwd(sizes), plain_bwd(sizes)]);
    let lora = lora.iter().chain(&segments);
    plain.chain(lora.flat_map(|(case, drop)| [lora_fwd(case, *drop), lora_bwd(case, *drop)])).collect()
}

/// Sizes that a GPU multiplies in large tiles, forward and backward: too many elements for finite differences.
pub fn large_tiles() -> Vec<Case> {
    let (across, deep) = (([129, 40, 6024], vec![3000, 3016, 8], 16), ([129, 6024, 40], vec![16, 24], 16));
    let plain = [plain_fwd([129, 136, 6024]), plain_bwd([129, 6032, 136])];
    // Several tiles for each block that is there at a time, more stages than a ring has, ranks of more than one.
    let narrow = (([200, 520, 200], vec![104, 96], 64), ([200, 200, 520], vec![264, 256], 64));
    let wide = (([260, 504, 776], vec![392, 384], 64), ([260, 776, 504], vec![256, 248], 64));
    let rings =
        [narrow, wide].into_iter().flat_map(|(fwd, bwd)| [lora_fwd(&fwd, false), lora_bwd(&bwd, true)]);
    // More ranks than a stage has, and some that are no whole vector.
    let many = [([130, 72, 88], vec![48, 40], 80), ([70, 136, 40], vec![40], 132)];
    let many = many.iter().flat_map(|sizes| [lora_fwd(sizes, true), lora_bwd(sizes, true)]);
    let plain = plain.into_iter().chain([plain_fwd([256, 584, 256])]);
    plain.chain([lora_fwd(&across, true), lora_bwd(&deep, true)]).chain(rings).chain(many).collect()
}

/// Gate and up that end within a tile, in segments with adapters and without; tiles in plenty, more stages than a ring has.
pub fn lora_linear_swiglus() -> Vec<Case> {
    let plain = [[1, 8, 8], [129, 72, 136], [300, 592, 328]].map(|sizes| swiglu(sizes, 0, false));
    let adapted = [([33, 136, 40], 4, true), ([257, 72, 264], 16, false), ([130, 264, 520], 64, true)];
    plain.into_iter().chain(adapted.map(|(sizes, rank, drop)| swiglu(sizes, rank, drop))).collect()
}

/// Of N, K and F; without adapters at rank 0.
pub(super) fn swiglu([n, k, f]: [usize; 3], rank: usize, drop: bool) -> Case {
    let (dropout, rows, adapted) = (drop.then_some(DROPOUT), [f, f], rank > 0);
    let mut facts = Facts::sizes([("N", n), ("K", k), ("F", f)]);
    let mut outputs = vec![activation("act", Poison(vec![n, f])), room("room", vec![n, 2 * f])];
    let mut inputs = vec![activation("x", Normal(vec![n, k])), activation("w", Normal(vec![2 * f, k]))];
    if adapted {
        facts.sizes.push(("R", rank));
        facts = Facts { segments: rows.into(), dropout: drop, ..facts };
        outputs.push(activation("xa", Poison(vec![n, 2 * rank])));
        inputs.extend([single("a", Normal(vec![2 * rank, k])), single("b", Normal(vec![2 * f, rank]))]);
    }
    Case {
        op: "lora_linear_swiglu_fwd",
        label: format!("{}{}", facts.spelled(), if drop { " drop" } else { "" }),
        facts,
        outputs,
        inputs,
        flops: 2 * n * (2 * k * f + 2 * rank * (k + f)) + 5 * n * f,
        elements: n * (k + f + 2 * rank) + 2 * f * k + 2 * rank * (k + f),
        unfused: chain(move |o, i| {
            let lora = adapted.then(|| Lora { a: &i[2], b: &i[3], rows: &rows, scales: &SCALES[..2] });
            let Some((act, y)) = o.split_first_mut() else { unreachable!() };
            unfused::lora_linear_fwd(y, i, lora, None, None, dropout)?;
            unfused::swiglu_fwd(act, &y[0])
        }),
        run: Box::new(move |d, o, i| {
            let [act, room, xa @ ..] = o else { unreachable!() };
            let lora = adapted.then(|| Lora { a: &i[2], b: &i[3], rows: &rows, scales: &SCALES[..2] });
            if lora_linear_swiglu_fwd(d, act, xa.first_mut(), &i[0], &i[1], lora, dropout)? {
                return Ok(());
            }
            lora_linear_fwd(d, Some(room), xa.first_mut(), &i[0], &i[1], None, lora, None, dropout)?;
            swiglu_fwd(d, act, room)
        }),
    }
}

/// Queries, keys and values whose heads end within a tile, some of them turned; a bias and adapters or not, whose ranks are
/// more than a stage has.
pub fn lora_linear_ropes() -> Vec<Case> {
    let heads = |query, key, width| Heads { query, key, width };
    let plain = [([1, 8], heads(1, 1, 64)), ([300, 136], heads(6, 3, 64)), ([130, 520], heads(3, 1, 128))];
    let adapted = [
        ([257, 264], heads(6, 2, 64), 36),
        ([257, 264], heads(3, 1, 128), 64),
        ([20, 40], heads(2, 1, 32), 8),
    ];
    let plain = plain.map(|(sizes, heads)| rotary(sizes, heads, 0));
    plain.into_iter().chain(adapted.map(|(sizes, heads, rank)| rotary(sizes, heads, rank))).collect()
}

/// Of N, K and heads, at 16 positions; without bias, adapters and dropout at rank 0.
pub(super) fn rotary([n, k]: [usize; 2], heads: Heads, rank: usize) -> Case {
    let (m, half, adapted) = (heads.columns(), heads.width / 2, rank > 0);
    let rows = [heads.query, heads.key, heads.key].map(|count| count * heads.width);
    let dropout = adapted.then_some(DROPOUT);
    let mut facts =
        Facts::sizes([("N", n), ("K", k), ("H", heads.query), ("G", heads.key), ("D", heads.width)]);
    let mut outputs = vec![activation("qkv", Poison(vec![n, m]))];
    let mut inputs = vec![
        activation("x", Normal(vec![n, k])),
        activation("w", Normal(vec![m, k])),
        single("cos", Normal(vec![16, half])),
        single("sin", Normal(vec![16, half])),
        index("positions", Ints(vec![n], (0..n).map(|i| (i * 5 % 16) as i32).collect())),
    ];
    if adapted {
        facts.sizes.push(("R", rank));
        facts = Facts { segments: rows.into(), dropout: true, ..facts };
        outputs.push(activation("xa", Poison(vec![n, 3 * rank])));
        inputs.extend([single("a", Normal(vec![3 * rank, k])), single("b", Normal(vec![m, rank]))]);
        inputs.push(activation("bias", Normal(vec![m])));
    }
    Case {
        op: "lora_linear_rope_fwd",
        label: format!("{}{}", facts.spelled(), if adapted { " drop bias" } else { "" }),
        facts,
        outputs,
        inputs,
        flops: 2 * n * (k * m + 3 * rank * k + rank * m) + 3 * n * (rows[0] + rows[1]),
        elements: n * (k + m + 3 * rank) + m * k + 3 * rank * k + rank * m,
        unfused: chain(move |o, i| {
            let lora = adapted.then(|| Lora { a: &i[5], b: &i[6], rows: &rows, scales: &SCALES });
            unfused::lora_linear_fwd(o, i, lora, i.get(7), None, dropout)?;
            unfused::rope_fwd(&mut o[0], &i[2..5], heads)
        }),
        run: Box::new(move |d, o, i| {
            let Some((qkv, xa)) = o.split_first_mut() else { unreachable!() };
            let lora = adapted.then(|| Lora { a: &i[5], b: &i[6], rows: &rows, scales: &SCALES });
            let (bias, turn) = (i.get(7), Rotary { cos: &i[2], sin: &i[3], positions: &i[4], heads });
            if lora_linear_rope_fwd(d, qkv, xa.first_mut(), &i[0], &i[1], bias, lora, dropout, turn)? {
                return Ok(());
            }
            lora_linear_fwd(d, Some(qkv), xa.first_mut(), &i[0], &i[1], bias, lora, None, dropout)?;
            rope_fwd(d, qkv, turn.cos, turn.sin, turn.positions, heads)
        }),
    }
}

/// One product, one rounding: no chain.
fn plain_fwd([n, k, m]: [usize; 3]) -> Case {
    let facts = Facts::sizes([("N", n), ("K", k), ("M", m)]);
    Case {
        op: "lora_linear_fwd",
        label: facts.spelled(),
        facts,
        outputs: vec![activation("y", Poison(vec![n, m]))],
        inputs: vec![activation("x", Normal(vec![n, k])), activation("w", Normal(vec![m, k]))],
        flops: 2 * n * k * m,
        elements: n * k + k * m + n * m,
        unfused: None,
        run: Box::new(|d, o, i| {
            lora_linear_fwd(d, Some(&mut o[0]), None, &i[0], &i[1], None, None, None, None)
        }),
    }
}

fn plain_bwd([n, k, m]: [usize; 3]) -> Case {
    let facts = Facts::sizes([("N", n), ("K", k), ("M", m)]);
    Case {
        op: "lora_linear_bwd",
        label: facts.spelled(),
        facts,
        outputs: vec![activation("dx", Poison(vec![n, k]))],
        inputs: vec![
            activation("dy", Normal(vec![n, m])),
            activation("x", Normal(vec![n, k])),
            activation("w", Normal(vec![m, k])),
        ],
        flops: 2 * n * k * m,
        elements: n * k + k * m + n * m,
        unfused: None,
        run: Box::new(|d, o, i| {
            lora_linear_bwd(d, Some(&mut o[0]), None, None, &i[0], &i[1], None, &i[2], None, None)
        }),
    }
}

/// Sizes N, K, M; rows of each segment; rank.
type Segmented = ([usize; 3], Vec<usize>, usize);

/// Of the segments, in order.
const SCALES: [f64; 3] = [2.0, 0.5, 0.0];

fn facts(&([n, k, m], ref rows, r): &Segmented, dropout: bool) -> Facts {
    let sizes = Facts::sizes([("N", n), ("K", k), ("M", m), ("R", r)]);
    Facts { segments: rows.clone(), dropout, ..sizes }
}

fn label(facts: &Facts) -> String {
    let name = if facts.dropout { "drop" } else { "bias residual" };
    format!("{} rows={:?} {name}", facts.spelled(), facts.segments)
}

fn lora_fwd(sizes: &Segmented, drop: bool) -> Case {
    let (&([n, k, m], ref rows, r), dropout) = (sizes, drop.then_some(DROPOUT));
    let (rows, s, facts) = (rows.clone(), rows.len(), facts(sizes, drop));
    let steps = rows.clone();
    Case {
        op: "lora_linear_fwd",
        label: label(&facts),
        facts,
        outputs: vec![activation("y", Poison(vec![n, m])), activation("xa", Poison(vec![n, s * r]))],
        inputs: vec![
            activation("x", Normal(vec![n, k])),
            activation("w", Normal(vec![m, k])),
            activation("bias", Normal(vec![m])),
            single("a", Normal(vec![s * r, k])),
            single("b", Normal(vec![m, r])),
            activation("residual", Normal(vec![n, m])),
        ],
        flops: 2 * n * (k * m + s * r * k + m * r),
        elements: n * k + k * m + 2 * n * m + s * r * k + m * r + m,
        unfused: chain(move |o, i| {
            let lora = Lora { a: &i[3], b: &i[4], rows: &steps, scales: &SCALES[..steps.len()] };
            unfused::lora_linear_fwd(o, i, Some(lora), Some(&i[2]), Some(&i[5]), dropout)
        }),
        run: Box::new(move |d, o, i| {
            let ([y, xa], [x, w, bias, a, b, residual]) = (o, i) else { unreachable!() };
            let lora = Lora { a, b, rows: &rows, scales: &SCALES[..rows.len()] };
            lora_linear_fwd(d, Some(y), Some(xa), x, w, Some(bias), Some(lora), Some(residual), dropout)
        }),
    }
}

fn lora_bwd(sizes: &Segmented, drop: bool) -> Case {
    let (&([n, k, m], ref rows, r), dropout) = (sizes, drop.then_some(DROPOUT));
    let (rows, s, facts) = (rows.clone(), rows.len(), facts(sizes, drop));
    let steps = rows.clone();
    Case {
        op: "lora_linear_bwd",
        label: label(&facts),
        facts,
        outputs: vec![
            activation("dx", Poison(vec![n, k])),
            single("da", Added(vec![s * r, k])),
            single("db", Added(vec![m, r])),
            activation("dxa", Poison(vec![n, s * r])),
        ],
        inputs: vec![
            activation("dy", Normal(vec![n, m])),
            activation("x", Normal(vec![n, k])),
            activation("xa", Normal(vec![n, s * r])),
            activation("w", Normal(vec![m, k])),
            single("a", Normal(vec![s * r, k])),
            single("b", Normal(vec![m, r])),
        ],
        flops: 2 * n * (k * m + 2 * s * r * k + 2 * m * r),
        elements: 2 * n * k + k * m + n * m + 2 * (s * r * k + m * r),
        unfused: chain(move |o, i| {
            let lora = Lora { a: &i[4], b: &i[5], rows: &steps, scales: &SCALES[..steps.len()] };
            unfused::lora_linear_bwd(o, i, lora, dropout)
        }),
        run: Box::new(move |d, o, i| {
            let ([dx, da, db, dxa], [dy, x, xa, w, a, b]) = (o, i) else { unreachable!() };
            let lora = Lora { a, b, rows: &rows, scales: &SCALES[..rows.len()] };
            let grads = LoraGrads { a: da, b: db };
            lora_linear_bwd(d, Some(dx), Some(grads), Some(dxa), dy, x, Some(xa), w, Some(lora), dropout)
        }),
    }
}
