//! Every backward against central differences of its forward at f64, through the case table; and the properties that
//! training rests on: bits do not depend on the threads, masks are what their rate says.

use llm2vec::bench::cases::{self, Case, DMEAN, DROPOUT, Fill, Operand};
use llm2vec::device::{DType, Device};
use llm2vec::ops::dropout::Dropout;
use llm2vec::rng::{normal, philox_wide};
use llm2vec::tensor::Tensor;
use std::collections::HashMap;

type Named = HashMap<&'static str, Tensor>;

/// A forward with its variables: inputs, and values that it updates.
struct Forward<'a> {
    case: &'a Case,
    variables: Named,
}

impl<'a> Forward<'a> {
    fn new(case: &'a Case) -> Forward<'a> {
        let (outputs, inputs) = case.operands(DType::F64);
        let mut variables: Named = case.inputs.iter().map(|i| i.name).zip(inputs).collect();
        for (Operand { name, fill, .. }, tensor) in case.outputs.iter().zip(outputs) {
            if let Fill::Normal(_) = fill {
                variables.insert(name, tensor);
            }
        }
        Forward { case, variables }
    }

    /// The outputs, with variable `moved` displaced by `by`.
    fn run(&self, moved: &str, by: &[f64]) -> Named {
        let place = |operand: &Operand| match self.variables.get(operand.name) {
            Some(t) if operand.name == moved => displaced(t, by),
            Some(t) => t.clone(),
            None => operand.tensor(DType::F64),
        };
        let mut outputs: Vec<_> = self.case.outputs.iter().map(place).collect();
        let inputs: Vec<_> = self.case.inputs.iter().map(place).collect();
        (self.case.run)(&Device::cpu_f64(), &mut outputs, &inputs).unwrap();
        self.case.outputs.iter().map(|o| o.name).zip(outputs).collect()
    }
}

fn displaced(t: &Tensor, by: &[f64]) -> Tensor {
    Tensor::from_f64(DType::F64, t.shape(), t.to_f64().iter().zip(by).map(|(x, d)| x + d))
}

/// What a backward computes: the upstream gradients by the output that they belong to, and its own outputs.
fn backward(case: &Case, forward: &Forward) -> (HashMap<&'static str, Vec<f64>>, Named) {
    let (mut outputs, mut inputs) = case.operands(DType::F64);
    let results = forward.run("", &[]);
    let mut upstream = HashMap::new();
    for (Operand { name, .. }, tensor) in case.inputs.iter().zip(&mut inputs) {
        let of = name.strip_prefix('d').filter(|n| results.contains_key(n));
        match (results.get(name), forward.variables.get(name), of) {
            (Some(t), ..) | (_, Some(t), _) => *tensor = t.clone(),
            (.., Some(of)) => drop(upstream.insert(of, tensor.to_f64())),
            _ => panic!("{} {}: {name} is nothing of the forward's", case.op, case.label),
        }
    }
    for (Operand { name, fill, .. }, tensor) in case.outputs.iter().zip(&outputs) {
        if let Fill::Normal(_) = fill {
            upstream.insert(&name[1..], tensor.to_f64());
        }
    }
    if results.contains_key("total") {
        upstream.insert("total", vec![DMEAN, 0.0]);
    }
    (case.run)(&Device::cpu_f64(), &mut outputs, &inputs).unwrap();
    (upstream, case.outputs.iter().map(|o| o.name).zip(outputs).collect())
}

/// Directions in which a variable is moved: all elements at random, thrice, and some one by one.
fn directions(n: usize) -> Vec<Vec<f64>> {
    let one = |i: usize| (0..n).map(|j| f64::from(u8::from(i == j))).collect();
    let singles = (0..n).step_by(n.div_ceil(12)).map(one);
    (0..3).map(|seed| normal(900 + seed, n)).chain(singles).collect()
}

/// `<gradient, u>` is the derivative along u, within 1e-6 of the gradient's norm times u's (and far better).
#[test]
fn every_backward_is_the_derivative_of_its_forward() {
    let cases = cases::all();
    let (mut checked, mut worst) = (0, (0.0, String::new()));
    let backward_of = |c: &&Case| c.op.ends_with("_bwd") || c.op == "masked_xent_step";
    for case in cases.iter().filter(backward_of) {
        let op = case.op.replace("_bwd", "_fwd").replace("xent_step", "xent_fwd");
        let forward = cases.iter().find(|c| c.op == op && c.label == case.label);
        let forward =
            Forward::new(forward.unwrap_or_else(|| panic!("{} {} has no forward", case.op, case.label)));
        let (upstream, gradients) = backward(case, &forward);
        for Operand { name, fill, .. } in &case.outputs {
            let Some(variable) = forward.variables.get(&name[1..]) else { continue };
            let offset = if let Fill::Added(_) = fill { 7.0 } else { 0.0 };
            let gradient: Vec<f64> = gradients[name].to_f64().iter().map(|g| g - offset).collect();
            let size = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            for u in directions(variable.numel()) {
                let step = 1e-5;
                let [up, down] = [step, -step]
                    .map(|s| forward.run(&name[1..], &u.iter().map(|u| u * s).collect::<Vec<_>>()));
                let slope = |(of, d): (&&str, &Vec<f64>)| -> f64 {
                    let (up, down) = (up[of].to_f64(), down[of].to_f64());
                    d.iter().zip(up.iter().zip(&down)).map(|(d, (a, b))| d * (a - b)).sum()
                };
                let numeric = upstream.iter().map(slope).sum::<f64>() / (2.0 * step);
                let exact: f64 = gradient.iter().zip(&u).map(|(g, u)| g * u).sum();
                let length = u.iter().map(|u| u * u).sum::<f64>().sqrt();
                let off = (numeric - exact).abs() / (size * length / (u.len() as f64).sqrt()).max(1e-3);
                let what =
                    format!("{} {}: {name} {exact}, difference quotient {numeric}", case.op, case.label);
                assert!(off <= 1e-6, "{what}");
                checked += 1;
                if off > worst.0 {
                    worst = (off, what);
                }
            }
        }
    }
    println!("{checked} derivatives, the worst off by {:.1e}: {}", worst.0, worst.1);
    assert!(checked > 1000);
}

/// Over 10⁶ elements the share kept is within 4 standard deviations of its expectation, kept ones are scaled so that the
/// mean is 1, and the masks of other rows, columns, planes, sites, steps and seeds are independent of the first.
#[test]
fn dropout_masks_have_their_rate_and_are_independent() {
    let (rows, columns) = (1000, 1003);
    let mask = |dropout: Dropout, plane: usize, row0: usize| -> Vec<f64> {
        let mut x = vec![1.0; rows * columns];
        let key = dropout.key();
        x.chunks_mut(columns).enumerate().for_each(|(r, x)| dropout.apply(key, row0 + r, plane, 0, x));
        x
    };
    for rate in [0.05, 0.1, 0.3, 0.5] {
        let base = Dropout { rate, ..DROPOUT };
        let first = mask(base, 0, 0);
        // What is drawn is the nearest multiple of 2^-16.
        let drawn = (rate * 65536.0).round() / 65536.0;
        let (n, keep) = (first.len() as f64, 1.0 - drawn);
        assert!(first.iter().all(|&x| x == 0.0 || x == 1.0 / keep) && (drawn - rate).abs() <= 0.5 / 65536.0);
        let kept = |x: &f64| if *x == 0.0 { 0.0 } else { 1.0 };
        let share = first.iter().map(kept).sum::<f64>() / n;
        assert!((share - keep).abs() < 4.0 * (keep * drawn / n).sqrt(), "rate {rate}: kept {share}");
        let along = |by: usize| first[by..].iter().chain(&first[..by]).copied().collect();
        let others = [
            along(1),
            along(columns),
            along(columns + 1),
            mask(base, 1, 0),
            mask(base, 0, rows),
            mask(Dropout { site: base.site + 1, ..base }, 0, 0),
            mask(Dropout { step: base.step + 1, ..base }, 0, 0),
            mask(Dropout { seed: base.seed + 1, ..base }, 0, 0),
        ];
        // The normalised covariance of independent masks is normal with deviation 1 / sqrt(n).
        let independent = |what: String, pairs: &mut dyn Iterator<Item = (f64, f64)>| {
            let (mut sum, mut n) = (0.0, 0.0);
            pairs.for_each(|(a, b)| (sum, n) = (sum + (a - 1.0) * (b - 1.0), n + 1.0));
            let correlation: f64 = sum / n / (1.0 / keep - 1.0);
            assert!(correlation.abs() < 4.5 / f64::sqrt(n), "rate {rate}, {what}: {correlation}");
        };
        for (i, other) in others.iter().enumerate() {
            independent(format!("other {i}"), &mut first.iter().copied().zip(other.iter().copied()));
        }
        // The eight draws of a call: each has the rate, and no two have to do with each other.
        let calls = || first.chunks(columns).flat_map(|row| row.as_chunks::<8>().0);
        let count = calls().count() as f64;
        for i in 0..8 {
            let share = calls().map(|call| kept(&call[i])).sum::<f64>() / count;
            let deviation = (keep * drawn / count).sqrt();
            assert!((share - keep).abs() < 4.5 * deviation, "rate {rate}, draw {i} of a call: kept {share}");
            for j in 0..i {
                independent(format!("draws {j} and {i}"), &mut calls().map(|call| (call[i], call[j])));
            }
        }
    }
}

/// A rate is drawn as the nearest multiple of 2^-16 that neither drops nothing nor keeps nothing, and the scale is its own.
#[test]
fn dropout_rates_are_those_really_drawn() {
    let dropout = |rate| Dropout { rate, ..DROPOUT };
    for (rate, threshold) in [
        (0.0, 0),
        (f64::MIN_POSITIVE, 1),
        (1e-9, 1),
        (1.4 / 65536.0, 1),
        (0.05, 3277),
        (0.1, 6554),
        (0.3, 19661),
        (0.5, 32768),
        (65534.6 / 65536.0, 65535),
        (1.0 - f64::EPSILON, 65535),
    ] {
        let dropout = dropout(rate);
        assert_eq!(
            (dropout.threshold(), dropout.scale()),
            (threshold, 65536.0 / (65536.0 - f64::from(threshold)))
        );
        Dropout::check(Some(dropout), "op").unwrap();
    }
    // In expectation nothing changes, at the smallest and the largest rate as well: of 2^16 draws these drop 1 and keep 1.
    for rate in [1e-9, 1.0 - 1e-9] {
        let (mut x, count) = (vec![1.0f64; 1 << 20], f64::from(1 << 20));
        dropout(rate).apply(DROPOUT.key(), 0, 0, 0, &mut x);
        let dropped = x.iter().filter(|&&x| x == 0.0).count() as f64;
        let expected = f64::from(dropout(rate).threshold()) / 65536.0 * count;
        assert!(
            (dropped - expected).abs() < 4.5 * 4.0 && dropped > 0.0 && dropped < count,
            "{rate}: {dropped}"
        );
    }
}

/// A mask begun in the middle of a row, or by a pack that starts later, is the same mask: what chunks of a batch rest on.
#[test]
fn dropout_masks_do_not_depend_on_the_cut() {
    let key = DROPOUT.key();
    let mut whole = vec![1.0f32; 300];
    DROPOUT.apply(key, 5, 2, 0, &mut whole);
    for (from, to) in [(1, 2), (3, 70), (63, 65), (64, 300), (127, 129), (299, 300)] {
        let mut part = vec![1.0f32; to - from];
        let later = Dropout { first: DROPOUT.first + 3, ..DROPOUT };
        later.apply(key, 2, 2, from, &mut part);
        assert_eq!(part, whole[from..to]);
    }
    // Draw by draw, by the definition.
    for (column, x) in whole.iter().enumerate() {
        let mut lanes = [column as u32 / 8, 2, 5 + DROPOUT.first as u32, 0].map(|word| [u64::from(word)]);
        philox_wide::<7, 1>(&mut lanes, key);
        let draw = lanes[column % 8 / 2][0] as u32 >> (column % 2 * 16) & 0xffff;
        assert_eq!(*x != 0.0, f64::from(draw) >= (DROPOUT.rate * 65536.0).round());
    }
    let refused = Dropout::check(Some(Dropout { rate: 1.0, ..DROPOUT }), "attention_fwd").unwrap_err();
    assert_eq!(refused.to_string(), "attention_fwd: dropout rate 1, expected at least 0 and below 1");
}

/// Every op gives the same bits on 1, 2 and 3 threads.
#[test]
fn bits_do_not_depend_on_the_threads() {
    let bits = |threads: usize| -> Vec<Vec<u64>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = |case: &Case| {
            let (mut outputs, inputs) = case.operands(DType::F32);
            (case.run)(&Device::cpu(), &mut outputs, &inputs).unwrap();
            outputs.iter().flat_map(|t| t.to_f64()).map(f64::to_bits).collect()
        };
        pool.install(|| cases::all().iter().map(run).collect())
    };
    let one = bits(1);
    for threads in [2, 3] {
        for ((case, a), b) in cases::all().iter().zip(&one).zip(&bits(threads)) {
            assert!(a == b, "{} {} on {threads} threads", case.op, case.label);
        }
    }
}
