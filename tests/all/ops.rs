//! Every op against the case table: f32 against f64, poison, contracts; and against formulas written out plainly.

use llm2vec::bench::cases::{self, Case, DROPOUT, Fill, Operand};
use llm2vec::device::{DType, Device};
use llm2vec::ops::attention::{Heads, Mask};
use llm2vec::tensor::Tensor;

fn run(case: &Case, device: &Device) -> Vec<Vec<f64>> {
    let (mut outputs, inputs) = case.operands(device.activation());
    (case.run)(device, &mut outputs, &inputs).unwrap_or_else(|e| panic!("{} {}: {e}", case.op, case.label));
    outputs.iter().map(Tensor::to_f64).collect()
}

/// The poison is gone, and f32 stays within rounding of f64: 1e-5 of the output's root mean square.
#[test]
fn f32_agrees_with_f64_and_every_output_is_overwritten() {
    let cases = cases::all();
    for case in &cases {
        let (exact, got) = (run(case, &Device::cpu_f64()), run(case, &Device::cpu()));
        for (Operand { name, .. }, (exact, got)) in case.outputs.iter().zip(exact.iter().zip(&got)) {
            let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
            for (i, (e, g)) in exact.iter().zip(got).enumerate() {
                let off = (e - g).abs();
                assert!(
                    off <= 1e-5 * rms.max(e.abs()),
                    "{} {}: {name}[{i}] = {g}, exact {e}",
                    case.op,
                    case.label
                );
            }
        }
    }
    assert!(cases.len() > 40);
}

/// Every operand with one more row, and with one more dimension, is refused by the op's name.
#[test]
fn wrong_shapes_are_refused_by_name() {
    let grow = |fill: &Fill, how: usize| -> Fill {
        let mut shape = fill.shape().to_vec();
        match how {
            0 => *shape.last_mut().unwrap() += 1,
            _ => shape.push(1),
        }
        fill.reshaped(shape)
    };
    for case in cases::all() {
        // A norm takes gradients of any shape, and a check any tensor.
        let any = ["adamw_norm", "finite_fwd"].contains(&case.op);
        let inputs = if any { 0 } else { case.inputs.len() };
        for operand in 0..case.outputs.len() + inputs {
            // Its first columns are normalised, however many there are, and as many as there is room for.
            let name = case.outputs.iter().chain(&case.inputs).nth(operand).map_or("", |o| o.name);
            let wide = match case.op {
                "l2norm_fwd" => name == "x" || (name == "y" && case.facts.size("K").is_some()),
                "l2norm_bwd" => name == "dx",
                _ => false,
            };
            for how in usize::from(wide)..2 {
                let (mut outputs, mut inputs) = case.operands(DType::F32);
                let all: Vec<_> = case.outputs.iter().chain(&case.inputs).collect();
                let name = all[operand].name;
                let wrong = grow(&all[operand].fill, how).tensor(DType::F32, name);
                match operand.checked_sub(outputs.len()) {
                    None => outputs[operand] = wrong,
                    Some(i) => inputs[i] = wrong,
                }
                match (case.run)(&Device::cpu(), &mut outputs, &inputs) {
                    Err(e) => assert!(e.to_string().starts_with(case.op), "{e}"),
                    Ok(()) => panic!("{} {} took {name} of a wrong shape", case.op, case.label),
                }
            }
        }
    }
}

/// attention, written as its definition: one query, one head, one key at a time.
#[test]
fn attention_is_its_formula() {
    for case in cases::all().iter().filter(|c| c.op == "attention_fwd") {
        let got = run(case, &Device::cpu_f64());
        let (_, inputs) = case.operands(DType::F64);
        let (qkv, starts) = (inputs[0].to_f64(), inputs[1].to_f64());
        let size = |letter| case.facts.size(letter).unwrap();
        let heads = Heads { query: size("H"), key: size("G"), width: size("D") };
        let sees = |i: usize, j: usize| match case.facts.mask.unwrap() {
            Mask::Full => true,
            Mask::Causal => j <= i,
            Mask::Window(keys) => i.abs_diff(j) < keys,
            Mask::CausalWindow(keys) => j <= i && i - j < keys,
        };
        for sequence in starts.windows(2).map(|w| w[0] as usize..w[1] as usize) {
            for i in sequence.clone() {
                for h in 0..heads.query {
                    let d = heads.width;
                    let row = |n: usize, head: usize| &qkv[n * heads.columns() + head * d..][..d];
                    let key = heads.query + h * heads.key / heads.query;
                    let keys = sequence.clone().filter(|&j| sees(i - sequence.start, j - sequence.start));
                    let score = |j: usize| row(i, h).iter().zip(row(j, key)).map(|(a, b)| a * b).sum::<f64>();
                    let mut p: Vec<(usize, f64)> =
                        keys.map(|j| (j, (score(j) / (d as f64).sqrt()).exp())).collect();
                    let total: f64 = p.iter().map(|(_, p)| p).sum();
                    if case.facts.dropout {
                        let key = DROPOUT.key();
                        p.iter_mut().for_each(|(j, p)| {
                            DROPOUT.apply(key, i, h, *j - sequence.start, std::slice::from_mut(p))
                        });
                    }
                    assert!((got[1][i * heads.query + h] - total.ln()).abs() < 1e-12, "{}", case.label);
                    for c in 0..d {
                        let exact: f64 = p.iter().map(|&(j, p)| p / total * row(j, key + heads.key)[c]).sum();
                        let out = got[0][(i * heads.query + h) * d + c];
                        assert!((out - exact).abs() < 1e-12, "{} row {i}: {out} {exact}", case.label);
                    }
                }
            }
        }
    }
}

/// Refusals that no shape shows: ids and positions out of range, empty spans, starts that do not rise.
#[test]
fn values_out_of_range_are_refused() {
    let case = |op: &str| cases::all().into_iter().rfind(|c| c.op == op).unwrap();
    for (op, input, values) in [
        ("embed_fwd", 1, vec![-1]),
        ("embed_fwd", 1, vec![50]),
        ("rope_fwd", 2, vec![16]),
        ("pool_fwd", 1, vec![5, 5]),
        ("pool_fwd", 1, vec![0, 71]),
        ("pool_bwd", 1, vec![0, 71]),
        ("masked_xent_fwd", 2, vec![65]),
        ("masked_xent_step", 3, vec![-1]),
        ("attention_bwd", 4, vec![0, 0]),
        ("attention_fwd", 1, vec![1]),
        ("attention_fwd", 1, vec![0, 0]),
    ] {
        let case = case(op);
        let (mut outputs, mut inputs) = case.operands(DType::F32);
        inputs[input].host_mut::<i32>().unwrap()[..values.len()].copy_from_slice(&values);
        let error = (case.run)(&Device::cpu(), &mut outputs, &inputs).unwrap_err().to_string();
        assert!(error.starts_with(op), "{error}");
    }
}

#[test]
fn masks_show_what_they_say() {
    assert_eq!(Mask::Full.keys(3, 9), 0..9);
    assert_eq!(Mask::Causal.keys(3, 9), 0..4);
    assert_eq!(Mask::Window(2).keys(3, 9), 2..5);
    assert_eq!(Mask::Window(100).keys(3, 9), 0..9);
    assert_eq!(Mask::CausalWindow(3).keys(8, 9), 6..9);
}

/// A weight gives the same product as it lies, packed, and widened tile by tile.
#[test]
fn storages_agree() {
    use llm2vec::ops::lora_linear::lora_linear_fwd;
    let (n, k, m) = (37, 66, 600);
    // Operands that bf16 holds exactly, so that rounding x changes nothing.
    let small =
        |seed: u64, n: usize| llm2vec::rng::normal(seed, n).into_iter().map(|v| (v * 8.0).round() / 8.0);
    let x = Tensor::from_f64(DType::F32, &[n, k], small(1, n * k));
    let mut weights = [
        Tensor::zeros(DType::F32, &[m, k]),
        Tensor::panels(DType::F32, [m, k]),
        Tensor::zeros(DType::Bf16, &[m, k]),
        Tensor::panels(DType::Bf16, [m, k]),
    ];
    let rows: Vec<f32> = small(2, m * k).map(|v| v as f32).collect();
    for w in &mut weights {
        w.put_rows(0, &rows).unwrap();
    }
    let products = weights.map(|w| {
        let mut y = Tensor::from_f64(DType::F32, &[n, m], std::iter::repeat_n(f64::NAN, n * m));
        lora_linear_fwd(&Device::cpu(), Some(&mut y), None, &x, &w, None, None, None, None).unwrap();
        y.to_f64()
    });
    for other in &products[1..] {
        assert!(products[0].iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
