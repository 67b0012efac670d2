//! The two losses. Their labels end in the rule by which they count.

use super::{
    Added, Case, DMEAN, Facts, Ints, Level, Normal, Poison, Scaled, activation, chain, index, single, unfused,
};
use crate::device::Device;
use crate::ops::contrastive::{InfoNce, LossDtype, contrastive_bwd, contrastive_fwd};
use crate::ops::masked_xent::{self as op, Gradient, masked_xent_fwd};
use crate::tensor::Tensor;

pub fn masked_xents() -> Vec<Case> {
    // N, C, V, P. Of a GPU's tiles one of each, one less, all but whole, one more, with logits as models have them; one of
    // each, odd sizes, a vocabulary of more than one tile of the CPU.
    let gpu = [[1, 8, 1, 1], [255, 40, 127, 127], [128, 128, 256, 64], [257, 136, 389, 129]];
    let cpu = [[1, 1, 1, 1], [7, 5, 9, 3], [65, 24, 2051, 33]];
    let sizes = gpu.map(|s| (s, 0.1)).into_iter().chain(cpu.map(|s| (s, 1.0)));
    sizes.flat_map(|(s, x)| [masked_xent(s, x), masked_xent_step(s, x)]).collect()
}

/// Of rows that a GPU takes in more than one wave too, and of more tiles.
pub fn masked_xent_waves() -> Vec<Case> {
    let sizes = [[600, 264, 777, 300], [1101, 8, 40, 1030], [515, 392, 392, 257]];
    sizes.into_iter().map(|sizes| masked_xent_step(sizes, 0.1)).collect()
}

/// Inputs x of this size.
pub(super) fn masked_xent([n, c, v, p]: [usize; 4], x: f64) -> Case {
    let ints = |end: usize, step: usize| Ints(vec![p], (0..p).map(|i| (i * step % end) as i32).collect());
    let (x, w) = (activation("x", Scaled(vec![n, c], x)), activation("w", Normal(vec![v, c])));
    let (rows, labels) = (index("rows", ints(n, 2)), index("labels", ints(v, 1027)));
    let facts = Facts::sizes([("N", n), ("C", c), ("V", v), ("P", p)]);
    Case {
        op: "masked_xent_fwd",
        label: facts.spelled(),
        facts,
        outputs: vec![
            single("total", Poison(vec![2])),
            single("loss", Poison(vec![p])),
            single("lse", Poison(vec![p])),
        ],
        inputs: vec![x, w, rows, labels],
        flops: 2 * p * c * v,
        elements: p * c + v * c,
        unfused: None,
        run: Box::new(|d, o, i| {
            let [total, loss, lse] = o else { unreachable!() };
            masked_xent_fwd(d, total, loss, lse, &i[0], &i[1], &i[2], &i[3])
        }),
    }
}

pub(super) fn masked_xent_step(sizes @ [n, c, v, p]: [usize; 4], x: f64) -> Case {
    let forward = masked_xent(sizes, x);
    let gradient = [activation("dx", Poison(vec![n, c])), single("dw", Added(vec![v, c]))];
    Case {
        op: "masked_xent_step",
        outputs: gradient.into_iter().chain(forward.outputs).collect(),
        flops: 6 * p * c * v,
        elements: p * c + n * c + 3 * v * c,
        unfused: chain(|o, i| {
            let (gradient, [total, loss, lse]) = o.split_at_mut(2) else { unreachable!() };
            masked_xent_fwd(&Device::cpu_f64(), total, loss, lse, &i[0], &i[1], &i[2], &i[3])?;
            let inputs: Vec<Tensor> = i.iter().chain([&*lse]).cloned().collect();
            unfused::masked_xent_bwd(gradient, &inputs, DMEAN)
        }),
        run: Box::new(|d, o, i| {
            let [dx, dw, total, loss, lse] = o else { unreachable!() };
            let gradient = Gradient { dx, dw: Some(dw), dmean: DMEAN };
            op::masked_xent_step(d, total, loss, lse, gradient, &i[0], &i[1], &i[2], &i[3])
        }),
        ..forward
    }
}

pub fn contrastives() -> Vec<Case> {
    // P, M, C; scale and margin; whether candidates have ids. More queries than one block of the CPU in the sixth; then
    // about a GPU's tiles.
    let cases = [
        ([1, 1, 3], 1.0, None, false),
        ([5, 15, 8], 0.5, None, false),
        ([5, 10, 8], 0.5, None, true),
        ([33, 66, 16], 0.5, Some(-0.5), false),
        ([9, 20, 16], 0.5, Some(0.25), true),
        ([259, 300, 16], 1.0, None, true),
        ([1, 3, 16], 0.1, Some(0.25), false),
        ([63, 129, 40], 0.5, Some(-0.5), false),
        ([64, 64, 32], 0.5, None, false),
        ([65, 130, 72], 0.5, Some(0.25), true),
    ];
    let pair = |(sizes, scale, margin, ids)| {
        let rule = InfoNce { scale, margin, dtype: LossDtype::F32 };
        [contrastive(sizes, rule, ids, true), contrastive(sizes, rule, ids, false)]
    };
    cases.into_iter().flat_map(pair).collect()
}

/// Several tiles for each block that is there at a time, and more stages than a ring has.
pub fn contrastive_rings() -> Vec<Case> {
    let rule = InfoNce { scale: 0.5, margin: Some(0.25), dtype: LossDtype::F32 };
    [true, false].map(|forward| contrastive([130, 260, 136], rule, true, forward)).into()
}

/// Of rounded vectors, whose loss has no derivative: one tile, some, and more stages than a ring has.
pub fn contrastives_in_bf16() -> Vec<Case> {
    let cases = [
        ([5, 15, 8], 0.5, None, false),
        ([65, 130, 72], 0.5, Some(0.25), true),
        ([130, 260, 520], 0.25, Some(0.25), true),
    ];
    let pair = |(sizes, scale, margin, ids)| {
        let rule = InfoNce { scale, margin, dtype: LossDtype::Bf16 };
        [contrastive(sizes, rule, ids, true), contrastive(sizes, rule, ids, false)]
    };
    cases.into_iter().flat_map(pair).collect()
}

pub(super) fn contrastive([p, m, c]: [usize; 3], rule: InfoNce, with_ids: bool, forward: bool) -> Case {
    let (q, cand) = (single("q", Normal(vec![p, c])), single("c", Normal(vec![m, c])));
    // Every third id returns.
    let ids =
        index("ids", Ints(vec![m], (0..m).map(|j| (if j % 3 == 0 { j % 6 } else { j }) as i32).collect()));
    let sizes = Facts::sizes([("P", p), ("M", m), ("C", c)]);
    let label = format!("{} {rule:?} ids={with_ids}", sizes.spelled());
    let facts = Facts { margin: rule.margin, rounded: rule.dtype == LossDtype::Bf16, ..sizes };
    let mut inputs = vec![q, cand];
    if !forward {
        inputs.push(single("lse", Level(vec![p], 20.0)));
    }
    inputs.extend(with_ids.then_some(ids));
    if forward {
        return Case {
            op: "contrastive_fwd",
            label,
            facts,
            outputs: vec![
                single("total", Poison(vec![2])),
                single("loss", Poison(vec![p])),
                single("lse", Poison(vec![p])),
            ],
            inputs,
            flops: 2 * p * m * c,
            elements: (p + m) * c,
            unfused: None,
            run: Box::new(move |d, o, i| {
                let [total, loss, lse] = o else { unreachable!() };
                contrastive_fwd(d, total, loss, lse, &i[0], &i[1], i.get(2), rule)
            }),
        };
    }
    Case {
        op: "contrastive_bwd",
        label,
        facts,
        outputs: vec![single("dq", Poison(vec![p, c])), single("dc", Poison(vec![m, c]))],
        inputs,
        flops: 6 * p * m * c,
        elements: 2 * (p + m) * c,
        unfused: match rule.dtype {
            LossDtype::F32 => None,
            LossDtype::Bf16 => chain(move |o, i| unfused::contrastive_bwd(o, i, rule, DMEAN)),
        },
        run: Box::new(move |d, o, i| {
            let [dq, dc] = o else { unreachable!() };
            contrastive_bwd(d, dq, dc, &i[0], &i[1], i.get(3), &i[2], rule, DMEAN)
        }),
    }
}
