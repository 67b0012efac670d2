//! The optimiser: one step, and the global norm.

use super::{Case, Level, Normal, Plan, Poison};
use crate::ops::adamw::{AdamW, Clip, adamw_norm, adamw_step};

pub fn adamws() -> Vec<Case> {
    let by = AdamW { rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1, step: 3 };
    let step = |shape: [usize; 2]| Case {
        op: "adamw_step",
        label: format!("{shape:?}"),
        outputs: vec![
            ("p", Normal(shape.to_vec())),
            ("m", Normal(shape.to_vec())),
            ("v", Level(shape.to_vec(), 0.5)),
        ],
        inputs: vec![("g", Normal(shape.to_vec())), ("norm", Level(vec![1], 2.5))],
        flops: 14 * shape[0] * shape[1],
        elements: 7 * shape[0] * shape[1],
        plan: Plan::once(28 * shape[0] * shape[1] + 4),
        run: Box::new(move |d, o, i| {
            let [p, m, v] = o else { unreachable!() };
            adamw_step(d, p, m, v, &i[0], Some(Clip { norm: &i[1], most: 1.0 }), by)
        }),
    };
    // Each of an f64 that is written and read.
    let chunks = |shape: [usize; 2]| (shape[0] * shape[1]).div_ceil(16384);
    let norm = |shape: [usize; 2]| Case {
        op: "adamw_norm",
        label: format!("{shape:?} and 17"),
        outputs: vec![("norm", Poison(vec![1]))],
        inputs: vec![("g", Normal(shape.to_vec())), ("h", Normal(vec![17]))],
        flops: 2 * shape[0] * shape[1],
        elements: shape[0] * shape[1],
        plan: Plan::once(4 * (shape[0] * shape[1] + 17) + 16 * (chunks(shape) + 1) + 4),
        run: Box::new(|d, o, i| adamw_norm(d, &mut o[0], i)),
    };
    [[1, 1], [7, 33], [300, 160]].into_iter().flat_map(|shape| [step(shape), norm(shape)]).collect()
}
