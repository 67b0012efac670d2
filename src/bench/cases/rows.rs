//! Ops that work row by row.

use super::{Case, DROPOUT, Fill, Ints, Level, Normal, Plan, Poison};
use crate::ops::attention::Heads;
use crate::ops::dropout::dropout_fwd;
use crate::ops::embed::embed_fwd;
use crate::ops::finite::finite_fwd;
use crate::ops::l2norm::{l2norm_bwd, l2norm_fwd};
use crate::ops::narrow::narrow_fwd;
use crate::ops::pool::{Pooling, pool_bwd, pool_fwd};
use crate::ops::rmsnorm::{rmsnorm_bwd, rmsnorm_fwd};
use crate::ops::rope::{rope_bwd, rope_fwd};
use crate::ops::swiglu::{swiglu_bwd, swiglu_fwd};

/// One row, odd sizes, a width that fills no vector, a real width.
const ROWS: &[[usize; 2]] = &[[1, 8], [3, 17], [65, 40], [256, 768]];

pub fn embeds() -> Vec<Case> {
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
        plan: Plan::once(2 * n * c + 2 * n.min(50) * c + 4 * n),
        run: Box::new(|d, o, i| embed_fwd(d, &mut o[0], &i[0], &i[1])),
    };
    ROWS.iter().map(case).collect()
}

pub fn rmsnorms() -> Vec<Case> {
    let forward = |&[n, c]: &[usize; 2]| Case {
        op: "rmsnorm_fwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("y", Poison(vec![n, c])), ("rstd", Poison(vec![n]))],
        inputs: vec![("x", Normal(vec![n, c])), ("w", Normal(vec![c]))],
        flops: 4 * n * c,
        elements: 2 * n * c + c + n,
        plan: Plan::once(4 * n * c + 4 * n + 2 * c),
        run: Box::new(|d, o, i| {
            let [y, rstd] = o else { unreachable!() };
            rmsnorm_fwd(d, y, rstd, &i[0], &i[1], 1e-5)
        }),
    };
    let backward = |&[n, c]: &[usize; 2]| Case {
        op: "rmsnorm_bwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("dx", Poison(vec![n, c]))],
        inputs: vec![
            ("dy", Normal(vec![n, c])),
            ("x", Normal(vec![n, c])),
            ("w", Normal(vec![c])),
            ("rstd", Level(vec![n], 0.8)),
        ],
        flops: 7 * n * c,
        elements: 3 * n * c + c + n,
        plan: Plan::once(6 * n * c + 4 * n + 2 * c),
        run: Box::new(|d, o, i| rmsnorm_bwd(d, &mut o[0], &i[0], None, &i[1], &i[2], &i[3])),
    };
    ROWS.iter().flat_map(|shape| [forward(shape), backward(shape)]).collect()
}

pub fn ropes() -> Vec<Case> {
    let shapes = [(1, Heads { query: 1, key: 1, width: 2 }), (65, Heads { query: 6, key: 2, width: 32 })];
    let case = |(n, heads): (usize, Heads), forward: bool| Case {
        op: if forward { "rope_fwd" } else { "rope_bwd" },
        label: format!("N={n} H={} G={} D={}", heads.query, heads.key, heads.width),
        outputs: vec![(if forward { "qkv" } else { "dqkv" }, Normal(vec![n, heads.columns()]))],
        inputs: vec![
            ("cos", Normal(vec![16, heads.width / 2])),
            ("sin", Normal(vec![16, heads.width / 2])),
            ("positions", Ints(vec![n], (0..n).map(|i| (i * 5 % 16) as i32).collect())),
        ],
        flops: 3 * n * (heads.query + heads.key) * heads.width,
        elements: 2 * n * (heads.query + heads.key) * heads.width,
        plan: Plan::once(
            4 * n * (heads.query + heads.key) * heads.width + 4 * n + 4 * n.min(16) * heads.width,
        ),
        run: match forward {
            true => Box::new(move |d, o, i| rope_fwd(d, &mut o[0], &i[0], &i[1], &i[2], heads)),
            false => Box::new(move |d, o, i| rope_bwd(d, &mut o[0], &i[0], &i[1], &i[2], heads)),
        },
    };
    shapes.into_iter().flat_map(|shape| [case(shape, true), case(shape, false)]).collect()
}

pub fn swiglus() -> Vec<Case> {
    let forward = |&[n, f]: &[usize; 2]| Case {
        op: "swiglu_fwd",
        label: format!("N={n} F={f}"),
        outputs: vec![("a", Poison(vec![n, f]))],
        inputs: vec![("gate_up", Normal(vec![n, 2 * f]))],
        flops: 5 * n * f,
        elements: 3 * n * f,
        plan: Plan::once(6 * n * f),
        run: Box::new(|d, o, i| swiglu_fwd(d, &mut o[0], &i[0])),
    };
    let backward = |&[n, f]: &[usize; 2]| Case {
        op: "swiglu_bwd",
        label: format!("N={n} F={f}"),
        outputs: vec![("dgate_up", Poison(vec![n, 2 * f]))],
        inputs: vec![("da", Normal(vec![n, f])), ("gate_up", Normal(vec![n, 2 * f]))],
        flops: 12 * n * f,
        elements: 5 * n * f,
        plan: Plan::once(10 * n * f),
        run: Box::new(|d, o, i| swiglu_bwd(d, &mut o[0], &i[0], &i[1])),
    };
    ROWS.iter().flat_map(|shape| [forward(shape), backward(shape)]).collect()
}

pub fn pools() -> Vec<Case> {
    let modes = [Pooling::Mean, Pooling::WeightedMean, Pooling::Last, Pooling::First];
    let spans = || ("spans", Ints(vec![3, 2], vec![0, 1, 3, 70, 69, 70]));
    // Of x, that some span takes: the last lies in the one before.
    let rows = |pooling| match pooling {
        Pooling::Mean | Pooling::WeightedMean => 68,
        Pooling::Last => 2,
        Pooling::First => 3,
    };
    let forward = |pooling: Pooling| Case {
        op: "pool_fwd",
        label: format!("N=70 B=3 C=40 {pooling:?}"),
        outputs: vec![("y", Poison(vec![3, 40]))],
        inputs: vec![("x", Normal(vec![70, 40])), spans()],
        flops: 2 * 69 * 40,
        elements: 69 * 40 + 3 * 40,
        plan: Plan::once(2 * 40 * rows(pooling) + 4 * 3 * 40 + 8 * 3),
        run: Box::new(move |d, o, i| pool_fwd(d, &mut o[0], &i[0], &i[1], pooling)),
    };
    let backward = |pooling: Pooling| Case {
        op: "pool_bwd",
        label: format!("N=70 B=3 C=40 {pooling:?}"),
        outputs: vec![("dx", Poison(vec![70, 40]))],
        inputs: vec![("dy", Normal(vec![3, 40])), spans()],
        flops: 2 * 69 * 40,
        elements: 69 * 40 + 3 * 40,
        plan: Plan::once(2 * 70 * 40 + 4 * 3 * 40 + 8 * 3),
        run: Box::new(move |d, o, i| pool_bwd(d, &mut o[0], &i[0], &i[1], pooling)),
    };
    modes.into_iter().flat_map(|pooling| [forward(pooling), backward(pooling)]).collect()
}

pub fn dropouts() -> Vec<Case> {
    let case = |&[n, c]: &[usize; 2]| Case {
        op: "dropout_fwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("y", Poison(vec![n, c]))],
        inputs: vec![("x", Normal(vec![n, c]))],
        flops: n * c,
        elements: 2 * n * c,
        plan: Plan::once(4 * n * c),
        run: Box::new(|d, o, i| dropout_fwd(d, &mut o[0], &i[0], 2, DROPOUT)),
    };
    ROWS.iter().map(case).collect()
}

pub fn l2norms() -> Vec<Case> {
    let forward = |&[b, c]: &[usize; 2], eps: f64| Case {
        op: "l2norm_fwd",
        label: format!("B={b} C={c} eps={eps}"),
        outputs: vec![("y", Poison(vec![b, c])), ("norm", Poison(vec![b]))],
        inputs: vec![("x", Normal(vec![b, c]))],
        flops: 3 * b * c,
        elements: 2 * b * c + b,
        plan: Plan::once(8 * b * c + 4 * b),
        run: Box::new(move |d, o, i| {
            let [y, norm] = o else { unreachable!() };
            l2norm_fwd(d, y, norm, &i[0], eps)
        }),
    };
    let backward = |&[b, c]: &[usize; 2], eps: f64| Case {
        op: "l2norm_bwd",
        label: format!("B={b} C={c} eps={eps}"),
        outputs: vec![("dx", Poison(vec![b, c]))],
        inputs: vec![("dy", Normal(vec![b, c])), ("y", Normal(vec![b, c])), ("norm", Level(vec![b], 1.3))],
        flops: 5 * b * c,
        elements: 3 * b * c + b,
        plan: Plan::once(12 * b * c + 4 * b),
        run: Box::new(move |d, o, i| l2norm_bwd(d, &mut o[0], &i[0], &i[1], &i[2], eps)),
    };
    let plain = ROWS.iter().map(|shape| (shape, 1e-12));
    // Rows shorter than eps: only divided by it.
    let cases = plain.chain([(&[3, 17], 100.0)]);
    cases.flat_map(|(shape, eps)| [forward(shape, eps), backward(shape, eps)]).collect()
}

pub fn narrows() -> Vec<Case> {
    let case = |&[n, c]: &[usize; 2]| Case {
        op: "narrow_fwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("y", Poison(vec![n, c]))],
        inputs: vec![("x", Normal(vec![n, c]))],
        flops: 0,
        elements: 2 * n * c,
        plan: Plan { bytes: Some(6 * n * c), ..Plan::default() },
        run: Box::new(|d, o, i| narrow_fwd(d, &mut o[0], &i[0])),
    };
    ROWS.iter().map(case).collect()
}

/// Of good numbers and of infinite ones.
pub fn finites() -> Vec<Case> {
    let case = |[n, c]: [usize; 2], x: Fill, what: &str| Case {
        op: "finite_fwd",
        label: format!("N={n} C={c} {what}"),
        outputs: vec![("found", Ints(vec![3, 2], vec![0, i32::MAX, 1, 5, 0, i32::MAX]))],
        inputs: vec![("x", x)],
        flops: 0,
        elements: n * c,
        plan: Plan::default(),
        run: Box::new(|d, o, i| finite_fwd(d, &mut o[0], &i[0], 1)),
    };
    let both = |&[n, c]: &[usize; 2]| {
        let level = Level(vec![n, c], f64::INFINITY);
        [case([n, c], Normal(vec![n, c]), "finite"), case([n, c], level, "infinite")]
    };
    ROWS.iter().flat_map(both).collect()
}
