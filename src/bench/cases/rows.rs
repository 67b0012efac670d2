//! Ops that work row by row.

use super::{
    Case, DROPOUT, Facts, Fill, Ints, Level, Normal, Operand, Poison, Role, activation, index, single,
};
use crate::ops::attention::Heads;
use crate::ops::clock::clock_fwd;
use crate::ops::dropout::dropout_fwd;
use crate::ops::embed::embed_fwd;
use crate::ops::finite::finite_fwd;
use crate::ops::l2norm::{l2norm_bwd, l2norm_fwd};
use crate::ops::narrow::narrow_fwd;
use crate::ops::pool::{Pooling, pool_bwd, pool_fwd};
use crate::ops::rmsnorm::{rmsnorm_bwd, rmsnorm_fwd};
use crate::ops::rope::{rope_bwd, rope_fwd};
use crate::ops::swiglu::{swiglu_bwd, swiglu_fwd};
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
    let facts = Facts::sizes([("N", n), ("C", c), ("V", v)]);
    Case {
        op: "embed_fwd",
        label: facts.spelled(),
        facts,
        outputs: vec![activation("x", Poison(vec![n, c]))],
        inputs: vec![
            activation("table", Normal(vec![v, c])),
            index("ids", Ints(vec![n], (0..n).map(|i| (i * step % v) as i32).collect())),
        ],
        flops: 0,
        elements: 2 * n * c,
        unfused: None,
        run: Box::new(|d, o, i| embed_fwd(d, &mut o[0], &i[0], &i[1])),
    }
}

pub fn rmsnorms() -> Vec<Case> {
    both(|shape, forward| if forward { rmsnorm_forward(shape) } else { rmsnorm_backward(shape, false) })
}

pub fn rmsnorm_forward([n, c]: [usize; 2]) -> Case {
    let facts = Facts::sizes([("N", n), ("C", c)]);
    Case {
        op: "rmsnorm_fwd",
        label: facts.spelled(),
        facts,
        outputs: vec![activation("y", Poison(vec![n, c])), single("rstd", Poison(vec![n]))],
        inputs: vec![activation("x", Normal(vec![n, c])), activation("w", Normal(vec![c]))],
        flops: 4 * n * c,
        elements: 2 * n * c + c + n,
        unfused: None,
        run: Box::new(|d, o, i| {
            let [y, rstd] = o else { unreachable!() };
            rmsnorm_fwd(d, y, rstd, &i[0], &i[1], 1e-5)
        }),
    }
}

/// With `skip` the gradient that goes round the norm is added.
pub fn rmsnorm_backward([n, c]: [usize; 2], skip: bool) -> Case {
    let added = if skip { n * c } else { 0 };
    let round = skip.then(|| activation("skip", Normal(vec![n, c])));
    let operands = [activation("dy", Normal(vec![n, c]))].into_iter().chain(round);
    let norm = [
        activation("x", Normal(vec![n, c])),
        activation("w", Normal(vec![c])),
        single("rstd", Level(vec![n], 0.8)),
    ];
    let facts = Facts::sizes([("N", n), ("C", c)]);
    Case {
        op: "rmsnorm_bwd",
        label: facts.spelled(),
        facts,
        outputs: vec![activation("dx", Poison(vec![n, c]))],
        inputs: operands.chain(norm).collect(),
        flops: 7 * n * c + added,
        elements: 3 * n * c + added + c + n,
        unfused: None,
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
    let facts = Facts::sizes([("N", n), ("H", heads.query), ("G", heads.key), ("D", heads.width)]);
    Case {
        op: if forward { "rope_fwd" } else { "rope_bwd" },
        label: facts.spelled(),
        facts,
        outputs: vec![activation(if forward { "qkv" } else { "dqkv" }, Normal(vec![n, heads.columns()]))],
        inputs: vec![
            single("cos", Normal(vec![positions, half])),
            single("sin", Normal(vec![positions, half])),
            index("positions", Ints(vec![n], (0..n).map(|i| (i * step % positions) as i32).collect())),
        ],
        flops: 3 * turned,
        elements: 2 * turned,
        unfused: None,
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
    let facts = Facts::sizes([("N", n), ("F", f)]);
    let (label, gate_up) = (facts.spelled(), activation("gate_up", Normal(vec![n, 2 * f])));
    match forward {
        true => Case {
            op: "swiglu_fwd",
            label,
            facts,
            outputs: vec![activation("a", Poison(vec![n, f]))],
            inputs: vec![gate_up],
            flops: 5 * n * f,
            elements: 3 * n * f,
            unfused: None,
            run: Box::new(|d, o, i| swiglu_fwd(d, &mut o[0], &i[0])),
        },
        false => Case {
            op: "swiglu_bwd",
            label,
            facts,
            outputs: vec![activation("dgate_up", Poison(vec![n, 2 * f]))],
            inputs: vec![activation("da", Normal(vec![n, f])), gate_up],
            flops: 12 * n * f,
            elements: 5 * n * f,
            unfused: None,
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
    let (x, y) = (vec![n, c], vec![b, c]);
    let sizes = Facts::sizes([("N", n), ("B", b), ("C", c)]);
    let ends = spans.iter().flat_map(|span| [span.start as i32, span.end as i32]).collect();
    Case {
        op: if forward { "pool_fwd" } else { "pool_bwd" },
        label: format!("{} {pooling:?}", sizes.spelled()),
        facts: Facts { pooling: Some(pooling), ..sizes },
        outputs: vec![if forward {
            single("y", Poison(y.clone()))
        } else {
            activation("dx", Poison(x.clone()))
        }],
        inputs: vec![
            if forward { activation("x", Normal(x)) } else { single("dy", Normal(y)) },
            index("spans", Ints(vec![b, 2], ends)),
        ],
        flops: 2 * taken * c,
        elements: taken * c + b * c,
        unfused: None,
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
        facts: Facts { dropout: true, ..Facts::sizes([("N", n), ("C", c)]) },
        outputs: vec![activation("y", Poison(vec![n, c]))],
        inputs: vec![activation("x", Normal(vec![n, c]))],
        flops: n * c,
        elements: 2 * n * c,
        unfused: None,
        run: Box::new(|d, o, i| dropout_fwd(d, &mut o[0], &i[0], 2, DROPOUT)),
    };
    ROWS.iter().map(case).collect()
}

pub fn l2norms() -> Vec<Case> {
    let plain = ROWS.iter().map(|&shape| (shape, 1e-12));
    // Rows shorter than eps: only divided by it.
    let whole = plain.chain([([3, 17], 100.0)]);
    let whole = whole.flat_map(|(shape, eps)| [l2norm(shape, eps, true), l2norm(shape, eps, false)]);
    // The first columns of wider rows, as Matryoshka losses take them.
    let cut = [([5, 24], 88), ([3, 256], 1024)];
    whole
        .chain(
            cut.into_iter()
                .flat_map(|(shape, k)| [true, false].map(|forward| first_columns(shape, k, forward))),
        )
        .collect()
}

/// l2norm of the first C of K columns, whose gradient is added to that of all.
fn first_columns([b, c]: [usize; 2], k: usize, forward: bool) -> Case {
    let facts = Facts::sizes([("B", b), ("C", c), ("K", k)]);
    let whole = l2norm([b, c], 1e-12, forward);
    let (label, elements) = (facts.spelled(), whole.elements);
    match forward {
        true => Case { label, facts, inputs: vec![single("x", Normal(vec![b, k]))], ..whole },
        false => Case {
            label,
            facts,
            outputs: vec![single("dx", Fill::Added(vec![b, k]))],
            flops: 6 * b * c,
            elements: elements + b * c,
            run: Box::new(move |d, o, i| l2norm_bwd(d, &mut o[0], &i[0], &i[1], &i[2], 1e-12, true)),
            ..whole
        },
    }
}

pub fn l2norm([b, c]: [usize; 2], eps: f64, forward: bool) -> Case {
    let facts = Facts::sizes([("B", b), ("C", c)]);
    let label = format!("{} eps={eps}", facts.spelled());
    match forward {
        true => Case {
            op: "l2norm_fwd",
            label,
            facts,
            outputs: vec![single("y", Poison(vec![b, c])), single("norm", Poison(vec![b]))],
            inputs: vec![single("x", Normal(vec![b, c]))],
            flops: 3 * b * c,
            elements: 2 * b * c + b,
            unfused: None,
            run: Box::new(move |d, o, i| {
                let [y, norm] = o else { unreachable!() };
                l2norm_fwd(d, y, norm, &i[0], eps)
            }),
        },
        false => Case {
            op: "l2norm_bwd",
            label,
            facts,
            outputs: vec![single("dx", Poison(vec![b, c]))],
            inputs: vec![
                single("dy", Normal(vec![b, c])),
                single("y", Normal(vec![b, c])),
                single("norm", Level(vec![b], 1.3)),
            ],
            flops: 5 * b * c,
            elements: 3 * b * c + b,
            unfused: None,
            run: Box::new(move |d, o, i| l2norm_bwd(d, &mut o[0], &i[0], &i[1], &i[2], eps, false)),
        },
    }
}

pub fn narrows() -> Vec<Case> {
    let case = |&[n, c]: &[usize; 2]| Case {
        op: "narrow_fwd",
        label: format!("N={n} C={c}"),
        facts: Facts::sizes([("N", n), ("C", c)]),
        outputs: vec![activation("y", Poison(vec![n, c]))],
        inputs: vec![single("x", Normal(vec![n, c]))],
        flops: 0,
        elements: 2 * n * c,
        unfused: None,
        run: Box::new(|d, o, i| narrow_fwd(d, &mut o[0], &i[0])),
    };
    ROWS.iter().map(case).collect()
}

/// Of good numbers and of infinite ones.
pub fn finites() -> Vec<Case> {
    let case = |[n, c]: [usize; 2], x: Fill, what: &str| Case {
        op: "finite_fwd",
        label: format!("N={n} C={c} {what}"),
        facts: Facts::sizes([("N", n), ("C", c)]),
        outputs: vec![index("found", Ints(vec![3, 2], vec![0, i32::MAX, 1, 5, 0, i32::MAX]))],
        inputs: vec![activation("x", x)],
        flops: 0,
        elements: n * c,
        unfused: None,
        run: Box::new(|d, o, i| finite_fwd(d, &mut o[0], &i[0], 1)),
    };
    let both = |&[n, c]: &[usize; 2]| {
        let level = Level(vec![n, c], f64::INFINITY);
        [case([n, c], Normal(vec![n, c]), "finite"), case([n, c], level, "infinite")]
    };
    ROWS.iter().flat_map(both).collect()
}

/// A thread that reads its clock beside the timer, for no longer than tests have.
pub fn clocks() -> Vec<Case> {
    vec![Case {
        op: "clock_fwd",
        label: "turns=8".into(),
        facts: Facts::default(),
        outputs: vec![Operand { name: "read", role: Role::Reading, fill: Ints(vec![2], vec![7, 7]) }],
        inputs: Vec::new(),
        flops: 0,
        elements: 2,
        unfused: None,
        run: Box::new(|d, o, _| clock_fwd(d, &mut o[0], 8, 1000)),
    }]
}
