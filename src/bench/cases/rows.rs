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
use std::collections::BTreeSet;
use std::ops::Range;

/// One row, odd sizes, a width that fills no vector, a real width.
const ROWS: &[[usize; 2]] = &[[1, 8], [3, 17], [65, 40], [256, 768]];

/// Both directions of an op over [`ROWS`].
fn both(of: impl Fn([usize; 2], bool) -> Case) -> Vec<Case> {
    ROWS.iter().flat_map(|&shape| [of(shape, true), of(shape, false)]).collect()
}

pub fn embeds() -> Vec<Case> {
    ROWS.iter().map(|&shape| embed(shape, 50, 7)).collect()
}

/// Ids of V that are `step` apart, which V is no multiple of.
pub fn embed([n, c]: [usize; 2], v: usize, step: usize) -> Case {
    Case {
        op: "embed_fwd",
        label: format!("N={n} C={c} V={v}"),
        outputs: vec![("x", Poison(vec![n, c]))],
        inputs: vec![
            ("table", Normal(vec![v, c])),
            ("ids", Ints(vec![n], (0..n).map(|i| (i * step % v) as i32).collect())),
        ],
        flops: 0,
        elements: 2 * n * c,
        plan: Plan::once(2 * n * c + 2 * n.min(v) * c + 4 * n),
        run: Box::new(|d, o, i| embed_fwd(d, &mut o[0], &i[0], &i[1])),
    }
}

pub fn rmsnorms() -> Vec<Case> {
    both(|shape, forward| if forward { rmsnorm_forward(shape) } else { rmsnorm_backward(shape, false) })
}

pub fn rmsnorm_forward([n, c]: [usize; 2]) -> Case {
    Case {
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
    }
}

/// With `skip` the gradient that goes round the norm is added.
pub fn rmsnorm_backward([n, c]: [usize; 2], skip: bool) -> Case {
    let added = if skip { n * c } else { 0 };
    let operands = [("dy", Normal(vec![n, c]))].into_iter().chain(skip.then(|| ("skip", Normal(vec![n, c]))));
    let norm = [("x", Normal(vec![n, c])), ("w", Normal(vec![c])), ("rstd", Level(vec![n], 0.8))];
    Case {
        op: "rmsnorm_bwd",
        label: format!("N={n} C={c}"),
        outputs: vec![("dx", Poison(vec![n, c]))],
        inputs: operands.chain(norm).collect(),
        flops: 7 * n * c + added,
        elements: 3 * n * c + added + c + n,
        plan: Plan::once(6 * n * c + 2 * added + 4 * n + 2 * c),
        run: Box::new(move |d, o, i| {
            let (gradients, [x, w, rstd]) = i.split_at(i.len() - 3) else { unreachable!() };
            rmsnorm_bwd(d, &mut o[0], &gradients[0], gradients.get(1), x, w, rstd)
        }),
    }
}

pub fn ropes() -> Vec<Case> {
    let shapes = [(1, Heads { query: 1, key: 1, width: 2 }), (65, Heads { query: 6, key: 2, width: 32 })];
    shapes.into_iter().flat_map(|(n, heads)| [true, false].map(|f| rope(n, heads, 16, 5, f))).collect()
}

/// Tokens at positions that are `step` apart, of so many, which are no multiple of it.
pub fn rope(n: usize, heads: Heads, positions: usize, step: usize, forward: bool) -> Case {
    let (turned, half) = (n * (heads.query + heads.key) * heads.width, heads.width / 2);
    Case {
        op: if forward { "rope_fwd" } else { "rope_bwd" },
        label: format!("N={n} H={} G={} D={}", heads.query, heads.key, heads.width),
        outputs: vec![(if forward { "qkv" } else { "dqkv" }, Normal(vec![n, heads.columns()]))],
        inputs: vec![
            ("cos", Normal(vec![positions, half])),
            ("sin", Normal(vec![positions, half])),
            ("positions", Ints(vec![n], (0..n).map(|i| (i * step % positions) as i32).collect())),
        ],
        flops: 3 * turned,
        elements: 2 * turned,
        plan: Plan::once(4 * turned + 4 * n + 8 * n.min(positions) * half),
        run: match forward {
            true => Box::new(move |d, o, i| rope_fwd(d, &mut o[0], &i[0], &i[1], &i[2], heads)),
            false => Box::new(move |d, o, i| rope_bwd(d, &mut o[0], &i[0], &i[1], &i[2], heads)),
        },
    }
}

pub fn swiglus() -> Vec<Case> {
    both(swiglu)
}

pub fn swiglu([n, f]: [usize; 2], forward: bool) -> Case {
    let (label, gate_up) = (format!("N={n} F={f}"), ("gate_up", Normal(vec![n, 2 * f])));
    match forward {
        true => Case {
            op: "swiglu_fwd",
            label,
            outputs: vec![("a", Poison(vec![n, f]))],
            inputs: vec![gate_up],
            flops: 5 * n * f,
            elements: 3 * n * f,
            plan: Plan::once(6 * n * f),
            run: Box::new(|d, o, i| swiglu_fwd(d, &mut o[0], &i[0])),
        },
        false => Case {
            op: "swiglu_bwd",
            label,
            outputs: vec![("dgate_up", Poison(vec![n, 2 * f]))],
            inputs: vec![("da", Normal(vec![n, f])), gate_up],
            flops: 12 * n * f,
            elements: 5 * n * f,
            plan: Plan::once(10 * n * f),
            run: Box::new(|d, o, i| swiglu_bwd(d, &mut o[0], &i[0], &i[1])),
        },
    }
}

pub fn pools() -> Vec<Case> {
    let modes = [Pooling::Mean, Pooling::WeightedMean, Pooling::Last, Pooling::First];
    // The last lies in the one before.
    let case = |pooling: Pooling, forward: bool| pool([70, 40], &[0..1, 3..70, 69..70], pooling, forward);
    modes.into_iter().flat_map(|pooling| [case(pooling, true), case(pooling, false)]).collect()
}

pub fn pool([n, c]: [usize; 2], spans: &[Range<usize>], pooling: Pooling, forward: bool) -> Case {
    let (b, taken) = (spans.len(), spans.iter().map(ExactSizeIterator::len).sum::<usize>());
    let of_span = |span: &Range<usize>| match pooling {
        Pooling::Mean | Pooling::WeightedMean => span.clone(),
        Pooling::Last => span.end - 1..span.end,
        Pooling::First => span.start..span.start + 1,
    };
    let rows = if forward { spans.iter().flat_map(of_span).collect::<BTreeSet<usize>>().len() } else { n };
    let (x, y) = (vec![n, c], vec![b, c]);
    let ends = spans.iter().flat_map(|span| [span.start as i32, span.end as i32]).collect();
    Case {
        op: if forward { "pool_fwd" } else { "pool_bwd" },
        label: format!("N={n} B={b} C={c} {pooling:?}"),
        outputs: vec![if forward { ("y", Poison(y.clone())) } else { ("dx", Poison(x.clone())) }],
        inputs: vec![
            if forward { ("x", Normal(x)) } else { ("dy", Normal(y)) },
            ("spans", Ints(vec![b, 2], ends)),
        ],
        flops: 2 * taken * c,
        elements: taken * c + b * c,
        plan: Plan::once(2 * rows * c + 4 * b * c + 8 * b),
        run: match forward {
            true => Box::new(move |d, o, i| pool_fwd(d, &mut o[0], &i[0], &i[1], pooling)),
            false => Box::new(move |d, o, i| pool_bwd(d, &mut o[0], &i[0], &i[1], pooling)),
        },
    }
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
    let plain = ROWS.iter().map(|&shape| (shape, 1e-12));
    // Rows shorter than eps: only divided by it.
    let cases = plain.chain([([3, 17], 100.0)]);
    cases.flat_map(|(shape, eps)| [l2norm(shape, eps, true), l2norm(shape, eps, false)]).collect()
}

pub fn l2norm([b, c]: [usize; 2], eps: f64, forward: bool) -> Case {
    let label = format!("B={b} C={c} eps={eps}");
    match forward {
        true => Case {
            op: "l2norm_fwd",
            label,
            outputs: vec![("y", Poison(vec![b, c])), ("norm", Poison(vec![b]))],
            inputs: vec![("x", Normal(vec![b, c]))],
            flops: 3 * b * c,
            elements: 2 * b * c + b,
            plan: Plan::once(8 * b * c + 4 * b),
            run: Box::new(move |d, o, i| {
                let [y, norm] = o else { unreachable!() };
                l2norm_fwd(d, y, norm, &i[0], eps)
            }),
        },
        false => Case {
            op: "l2norm_bwd",
            label,
            outputs: vec![("dx", Poison(vec![b, c]))],
            inputs: vec![
                ("dy", Normal(vec![b, c])),
                ("y", Normal(vec![b, c])),
                ("norm", Level(vec![b], 1.3)),
            ],
            flops: 5 * b * c,
            elements: 3 * b * c + b,
            plan: Plan::once(12 * b * c + 4 * b),
            run: Box::new(move |d, o, i| l2norm_bwd(d, &mut o[0], &i[0], &i[1], &i[2], eps)),
        },
    }
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
