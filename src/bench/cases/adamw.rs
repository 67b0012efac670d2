//! The optimiser: one step, and the global norm; sums of gradients.

use super::{Case, Facts, Level, Normal, Poison, single};
use crate::ops::adamw::{AdamW, Clip, adamw_norm, adamw_step};
use crate::ops::add::add_fwd;

pub fn adamws() -> Vec<Case> {
    let shapes = [[1, 1], [7, 33], [300, 160]];
    shapes.iter().flat_map(|shape| [step(shape), norm(&[("g", shape), ("h", &[17])])]).collect()
}

/// A step that is clipped.
pub fn step(shape: &[usize]) -> Case {
    let by = AdamW { rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1, step: 3 };
    let (n, normal) = (shape.iter().product::<usize>(), Normal(shape.to_vec()));
    Case {
        op: "adamw_step",
        label: format!("{shape:?}"),
        facts: Facts::sizes([("N", n)]),
        outputs: vec![
            single("p", normal.clone()),
            single("m", normal.clone()),
            single("v", Level(shape.to_vec(), 0.5)),
        ],
        inputs: vec![single("g", normal), single("norm", Level(vec![1], 2.5))],
        flops: 14 * n,
        elements: 7 * n,
        unfused: None,
        run: Box::new(move |d, o, i| {
            let [p, m, v] = o else { unreachable!() };
            adamw_step(d, p, m, v, &i[0], Some(Clip { norm: &i[1], most: 1.0 }), by)
        }),
    }
}

/// Of all these gradients.
pub fn norm(gradients: &[(&'static str, &[usize])]) -> Case {
    let shapes: Vec<String> = gradients.iter().map(|(_, shape)| format!("{shape:?}")).collect();
    let n = gradients.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    Case {
        op: "adamw_norm",
        label: shapes.join(" and "),
        facts: Facts::sizes([("N", n)]),
        outputs: vec![single("norm", Poison(vec![1]))],
        inputs: gradients.iter().map(|(name, shape)| single(name, Normal(shape.to_vec()))).collect(),
        flops: 2 * n,
        elements: n,
        unfused: None,
        run: Box::new(|d, o, i| adamw_norm(d, &mut o[0], i)),
    }
}

/// Numbers that fill vectors and numbers that do not.
pub fn adds() -> Vec<Case> {
    [vec![1, 1], vec![7, 33], vec![64, 16], vec![300, 160]].map(|shape| add(&shape)).into()
}

pub fn add(shape: &[usize]) -> Case {
    let (n, normal) = (shape.iter().product::<usize>(), Normal(shape.to_vec()));
    Case {
        op: "add_fwd",
        label: format!("{shape:?}"),
        facts: Facts::sizes([("N", n)]),
        outputs: vec![single("y", normal.clone())],
        inputs: vec![single("x", normal)],
        flops: n,
        elements: 3 * n,
        unfused: None,
        run: Box::new(|d, o, i| add_fwd(d, &mut o[0], &i[0])),
    }
}
