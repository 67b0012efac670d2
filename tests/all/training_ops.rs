//! The ops of training against formulas written out plainly, against torch, and in the corners that the case table
//! leaves out: frozen operands, bf16 weights, chunks of a batch.

use crate::common;

use half::bf16;
use llm2vec::device::{DType, Device};
use llm2vec::ops::adamw::{AdamW, Clip, adamw_norm, adamw_step};
use llm2vec::ops::attention::{Heads, Mask, attention_bwd, attention_fwd};
use llm2vec::ops::contrastive::{InfoNce, LossDtype, contrastive_bwd, contrastive_fwd};
use llm2vec::ops::dropout::Dropout;
use llm2vec::ops::lora_linear::{Lora, LoraGrads, lora_linear_bwd, lora_linear_fwd};
use llm2vec::ops::masked_xent::{Gradient, masked_xent_fwd, masked_xent_step};
use llm2vec::ops::rmsnorm::rmsnorm_bwd;
use llm2vec::rng::normal;
use llm2vec::tensor::Tensor;

const F64: Device = Device::cpu_f64();

fn random(name: u64, shape: &[usize]) -> Tensor {
    Tensor::from_f64(DType::F64, shape, normal(name, shape.iter().product()))
}

fn poison(shape: &[usize]) -> Tensor {
    Tensor::from_f64(DType::F64, shape, std::iter::repeat_n(f64::NAN, shape.iter().product()))
}

fn level(shape: &[usize], x: f64) -> Tensor {
    Tensor::from_f64(DType::F64, shape, std::iter::repeat_n(x, shape.iter().product()))
}

fn near(got: &[f64], wanted: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(wanted).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{what}[{i}] = {g}, expected {w}");
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn masked_xent_is_its_formula() {
    let ([n, c, v], rows, labels) = ([6, 5, 1500], [4, 0, 3], [1499, 7, 1024]);
    let (x, w) = (random(1, &[n, c]), random(2, &[v, c]));
    let [mut total, mut loss, mut lse] = [poison(&[2]), poison(&[3]), poison(&[3])];
    // The label of row 3 gets the largest logit.
    let mut weights = w.to_f64();
    let row = x.to_f64()[3 * c..4 * c].to_vec();
    weights[1024 * c..1025 * c].iter_mut().zip(&row).for_each(|(w, x)| *w = 20.0 * x);
    let w = Tensor::from_f64(DType::F64, &[v, c], weights.clone());
    let (r, l) = (Tensor::from_i32(&rows), Tensor::from_i32(&labels));
    masked_xent_fwd(&F64, &mut total, &mut loss, &mut lse, &x, &w, &r, &l).unwrap();
    let exact: Vec<f64> = rows
        .iter()
        .zip(labels)
        .map(|(&row, label)| {
            let x = &x.to_f64()[row as usize * c..][..c];
            let z: Vec<f64> = weights.chunks(c).map(|w| dot(x, w)).collect();
            z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[label as usize]
        })
        .collect();
    near(&loss.to_f64(), &exact, 1e-12, "loss");
    near(&total.to_f64(), &[exact.iter().sum::<f64>() / 3.0, 1.0], 1e-12, "total");
    let none = Tensor::from_i32(&[]);
    let [mut loss, mut lse] = [poison(&[0]), poison(&[0])];
    let refused = masked_xent_fwd(&F64, &mut total, &mut loss, &mut lse, &x, &w, &none, &none).unwrap_err();
    assert_eq!(refused.to_string(), "masked_xent_fwd: no row has a label, so there is no mean loss");
}

#[test]
fn contrastive_is_its_formula() {
    let [p, m, c] = [4, 9, 6];
    let (q, cand) = (random(1, &[p, c]), random(2, &[m, c]));
    let ids = [0, 1, 0, 3, 4, 5, 1, 7, 8];
    let tensor = Tensor::from_i32(&ids);
    for (margin, with_ids) in [(None, false), (None, true), (Some(0.0), false), (Some(1.0), true)] {
        let rule = InfoNce { scale: 3.0, margin, dtype: LossDtype::F32 };
        let [mut total, mut loss, mut lse] = [poison(&[2]), poison(&[p]), poison(&[p])];
        let given = with_ids.then_some(&tensor);
        contrastive_fwd(&F64, &mut total, &mut loss, &mut lse, &q, &cand, given, rule).unwrap();
        let (q, cand, mut won) = (q.to_f64(), cand.to_f64(), 0.0);
        let row = |i: usize| -> f64 {
            let cos = |j: usize| dot(&q[i * c..][..c], &cand[j * c..][..c]);
            let own = cos(i);
            let negatives = (0..m).filter(|&j| j != i && !(with_ids && ids[i] == ids[j]));
            let negatives: Vec<f64> =
                negatives.map(cos).filter(|&z| margin.is_none_or(|m| z <= own + m)).collect();
            won += f64::from(u8::from(negatives.iter().all(|&z| z < own)));
            let sum: f64 = negatives.iter().map(|z| (3.0 * z).exp()).sum();
            ((3.0 * own).exp() + sum).ln() - 3.0 * own
        };
        let exact: Vec<f64> = (0..p).map(row).collect();
        near(&loss.to_f64(), &exact, 1e-12, "loss");
        near(&total.to_f64(), &[exact.iter().sum::<f64>() / p as f64, won], 1e-12, "total");
    }
    let [mut total, mut loss, mut lse] = [poison(&[2]), poison(&[m]), poison(&[m])];
    let rule = InfoNce { scale: 1.0, margin: None, dtype: LossDtype::F32 };
    let refused = contrastive_fwd(&F64, &mut total, &mut loss, &mut lse, &cand, &q, None, rule).unwrap_err();
    assert!(refused.to_string().contains("4 candidates for 9 queries"), "{refused}");
}

/// In bf16 the loss and its gradient are those of the rounded vectors, at f32 and at f64; and other than the exact ones.
#[test]
fn contrastive_in_bf16_is_the_loss_of_rounded_vectors() {
    let [p, m, c] = [5, 12, 24];
    let (q, cand) = (random(1, &[p, c]), random(2, &[m, c]));
    for real in [DType::F32, DType::F64] {
        let device = Device::Cpu(real);
        let each = |t: &Tensor, f: fn(f32) -> f64| {
            Tensor::from_f64(real, t.shape(), t.to_f64().into_iter().map(|x| f(x as f32)))
        };
        let held = |t: &Tensor| each(t, f64::from);
        let rounded = |t: &Tensor| each(t, |x| f64::from(bf16::from_f32(x)));
        let run = |q: &Tensor, cand: &Tensor, dtype: LossDtype| {
            let rule = InfoNce { scale: 3.0, margin: Some(0.5), dtype };
            let poison = |shape: &[usize]| {
                Tensor::from_f64(real, shape, std::iter::repeat_n(f64::NAN, shape.iter().product()))
            };
            let [mut total, mut loss, mut lse] = [poison(&[2]), poison(&[p]), poison(&[p])];
            let [mut dq, mut dc] = [poison(&[p, c]), poison(&[m, c])];
            contrastive_fwd(&device, &mut total, &mut loss, &mut lse, q, cand, None, rule).unwrap();
            contrastive_bwd(&device, &mut dq, &mut dc, q, cand, None, &lse, rule, 0.7).unwrap();
            [total, loss, lse, dq, dc].map(|t| t.to_f64())
        };
        let got = run(&held(&q), &held(&cand), LossDtype::Bf16);
        assert_eq!(got, run(&rounded(&q), &rounded(&cand), LossDtype::F32), "{real:?}");
        let exact = run(&held(&q), &held(&cand), LossDtype::F32);
        for (got, exact) in got.iter().zip(&exact).skip(1) {
            let size = exact.iter().map(|x| x.abs()).fold(0.0, f64::max);
            let off = got.iter().zip(exact).map(|(g, e)| (g - e).abs()).fold(0.0, f64::max);
            assert!(off > 0.0 && off < 0.05 * size, "{real:?}: off by {off} of {size}");
        }
    }
}

/// What passes by the norm is added to what passes through it.
#[test]
fn rmsnorm_adds_the_skip() {
    let [dy, x, skip] = [1, 2, 3].map(|i| random(i, &[5, 7]));
    let (w, rstd) = (random(4, &[7]), level(&[5], 0.9));
    let run = |skip: Option<&Tensor>| {
        let mut dx = poison(&[5, 7]);
        rmsnorm_bwd(&F64, &mut dx, &dy, skip, &x, &w, &rstd).unwrap();
        dx.to_f64()
    };
    let sum: Vec<f64> = run(None).iter().zip(skip.to_f64()).map(|(a, b)| a + b).collect();
    assert_eq!(run(Some(&skip)), sum);
}

/// Without dx the gradients of the adapter are the same, without grads dx is; what lacks its partner is refused.
#[test]
fn lora_linear_leaves_out_what_is_frozen() {
    let [n, k, m, r] = [9, 6, 8, 2];
    let [x, w, a, b, dy] =
        [[n, k], [m, k], [2 * r, k], [m, r], [n, m]].map(|s| random((s[0] * 100 + s[1]) as u64, &s));
    let lora = Lora { a: &a, b: &b, rows: &[5, 3], scales: &[2.0, 0.5] };
    let dropout = Some(Dropout { rate: 0.2, seed: 1, step: 2, site: 3, first: 0 });
    let [mut y, mut xa] = [poison(&[n, m]), poison(&[n, 2 * r])];
    lora_linear_fwd(&F64, Some(&mut y), Some(&mut xa), &x, &w, None, Some(lora), None, dropout).unwrap();
    let run = |with_dx: bool, with_grads: bool| {
        let [mut dx, mut dxa] = [poison(&[n, k]), poison(&[n, 2 * r])];
        let [mut da, mut db] = [level(&[2 * r, k], 7.0), level(&[m, r], 7.0)];
        let grads = with_grads.then_some(LoraGrads { a: &mut da, b: &mut db });
        let dx_out = with_dx.then_some(&mut dx);
        let xa = with_grads.then_some(&xa);
        lora_linear_bwd(&F64, dx_out, grads, Some(&mut dxa), &dy, &x, xa, &w, Some(lora), dropout).unwrap();
        [dx, da, db].map(|t| t.to_f64())
    };
    let [dx, da, db] = run(true, true);
    assert_eq!(run(false, true)[1..], [da, db]);
    assert_eq!(run(true, false)[0], dx);
    let refused = lora_linear_bwd(&F64, None, None, None, &dy, &x, None, &w, Some(lora), None).unwrap_err();
    assert!(refused.to_string().contains("lora and dxa go together"), "{refused}");
}

/// A bf16 weight, plain or packed, gives the gradients of its rounded values.
#[test]
fn bf16_weights_give_the_gradients_of_their_values() {
    let [n, k, m] = [5, 33, 1100];
    let rows: Vec<f32> = normal(1, m * k).into_iter().map(|v| (v * 8.0).round() as f32 / 8.0).collect();
    let mut weights = [
        Tensor::zeros(DType::F32, &[m, k]),
        Tensor::panels(DType::F32, [m, k]),
        Tensor::zeros(DType::Bf16, &[m, k]),
        Tensor::panels(DType::Bf16, [m, k]),
    ];
    for w in &mut weights {
        w.put_rows(0, &rows).unwrap();
    }
    let small = |name: u64, shape: &[usize]| {
        let n = shape.iter().product();
        // Numbers that bf16 holds, or its panels would round dy.
        Tensor::from_f64(DType::F32, shape, normal(name, n).into_iter().map(|x| (6.4 * x).round() / 32.0))
    };
    let (x, dy) = (small(2, &[n, k]), small(3, &[n, m]));
    let (picked, labels) = (Tensor::from_i32(&[0, 3]), Tensor::from_i32(&[1099, 512]));
    let results = weights.map(|w| {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        let [mut dx, mut dx2, mut total, mut loss, mut lse, mut dw] =
            [zeros(&[n, k]), zeros(&[n, k]), zeros(&[2]), zeros(&[2]), zeros(&[2]), zeros(&[m, k])];
        let device = Device::cpu();
        lora_linear_bwd(&device, Some(&mut dx), None, None, &dy, &x, None, &w, None, None).unwrap();
        let gradient = Gradient { dx: &mut dx2, dw: Some(&mut dw), dmean: 1.0 };
        let (total, lse) = (&mut total, &mut lse);
        masked_xent_step(&device, total, &mut loss, lse, gradient, &x, &w, &picked, &labels).unwrap();
        [dx, dx2, loss, dw].map(|t| t.to_f64())
    });
    for other in &results[1..] {
        for (i, (got, wanted)) in other.iter().zip(&results[0]).enumerate() {
            near(got, wanted, 2e-6, ["dx of linear", "dx of xent", "loss", "dw"][i]);
        }
    }
}

/// A pack in two chunks, each told how many rows stand before it, has the masks, outputs and gradients of the whole.
#[test]
fn chunks_of_a_pack_have_the_masks_of_the_whole() {
    let heads = Heads { query: 4, key: 2, width: 8 };
    let (lengths, cut) = ([3, 40, 17, 70], 2);
    let n = lengths.iter().sum::<usize>();
    let rows = |t: &Tensor, from: usize, to: usize| {
        let c = t.shape()[1];
        Tensor::from_f64(DType::F64, &[to - from, c], t.to_f64()[from * c..to * c].iter().copied())
    };
    let (qkv, dout) = (random(1, &[n, heads.columns()]), random(2, &[n, 32]));
    let run = |lengths: &[usize], from: usize| {
        let n = lengths.iter().sum::<usize>();
        let mut starts = vec![0];
        lengths.iter().for_each(|&len| starts.push(starts[starts.len() - 1] + len as i32));
        let (starts, qkv) = (Tensor::from_i32(&starts), rows(&qkv, from, from + n));
        let dout = rows(&dout, from, from + n);
        let dropout = Some(Dropout { rate: 0.3, seed: 1, step: 2, site: 3, first: from as u64 });
        let [mut out, mut lse, mut dqkv] = [poison(&[n, 32]), poison(&[n, 4]), poison(qkv.shape())];
        attention_fwd(&F64, &mut out, Some(&mut lse), &qkv, &starts, heads, Mask::Full, dropout).unwrap();
        attention_bwd(&F64, &mut dqkv, &dout, &out, &lse, &qkv, &starts, heads, Mask::Full, dropout).unwrap();
        let mut alone = poison(&[n, 32]);
        attention_fwd(&F64, &mut alone, None, &qkv, &starts, heads, Mask::Full, dropout).unwrap();
        assert_eq!(alone.to_f64(), out.to_f64(), "lse is only kept when asked for");
        [out, dqkv].map(|t| t.to_f64())
    };
    let whole = run(&lengths, 0);
    let parts = [run(&lengths[..cut], 0), run(&lengths[cut..], lengths[..cut].iter().sum())];
    for (i, whole) in whole.iter().enumerate() {
        assert_eq!(&[&parts[0][i][..], &parts[1][i][..]].concat(), whole);
    }
}

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Five clipped steps on two tensors, against torch at both precisions (tests/golden/make_adamw.py).
#[test]
fn adamw_is_torchs() {
    let text = std::fs::read_to_string(common::here("tests/golden/adamw.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, real, tolerance) in [("f64", DType::F64, 1e-14), ("f32", DType::F32, 2e-7)] {
        let (device, torch) = (Device::Cpu(real), &golden[name]);
        let shapes: [&[usize]; 2] = [&[3, 5], &[7]];
        let make =
            |i: usize, values: &serde_json::Value| Tensor::from_f64(real, shapes[i], numbers(&values[i]));
        let mut p = [0, 1].map(|i| make(i, &torch["start"]));
        let [mut m, mut v] = [0, 1].map(|_| shapes.map(|s| Tensor::zeros(real, s)));
        for (step, (rate, norm)) in
            numbers(&golden["rates"]).into_iter().zip(numbers(&torch["norms"])).enumerate()
        {
            let g = [0, 1].map(|i| make(i, &torch["grads"][step]));
            let mut total = Tensor::zeros(real, &[1]);
            adamw_norm(&device, &mut total, &g).unwrap();
            near(&total.to_f64(), &[norm], tolerance, "norm");
            let by = AdamW { rate, beta1: 0.9, beta2: 0.98, eps: 1e-6, decay: 0.1, step: step as u64 + 1 };
            for i in 0..2 {
                let clip = Some(Clip { norm: &total, most: 1.0 });
                adamw_step(&device, &mut p[i], &mut m[i], &mut v[i], &g[i], clip, by).unwrap();
            }
        }
        for i in 0..2 {
            for (what, got) in [("p", &p[i]), ("m", &m[i]), ("v", &v[i])] {
                near(&got.to_f64(), &numbers(&torch[what][i]), tolerance, &format!("{name} {what}"));
            }
        }
    }
}

/// By the formula, step by step in f64: no decay leaves p to the gradient alone, no gradient to the decay alone.
#[test]
fn adamw_is_its_formula() {
    let plain = AdamW { rate: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, step: 1 };
    let run = |by: AdamW, g: f64, clip: Option<f64>| {
        let [mut p, mut m, mut v] = [level(&[1], 2.0), level(&[1], 0.0), level(&[1], 0.0)];
        let norm = level(&[1], g.abs());
        let clip = clip.map(|most| Clip { norm: &norm, most });
        adamw_step(&F64, &mut p, &mut m, &mut v, &level(&[1], g), clip, by).map(|()| p.to_f64()[0])
    };
    // The first step moves by the rate, whatever the size of the gradient.
    near(&[run(plain, 3.0, None).unwrap()], &[2.0 - 0.1 * 3.0 / (3.0 + 1e-8)], 1e-15, "p");
    near(&[run(AdamW { decay: 0.5, ..plain }, 0.0, None).unwrap()], &[2.0 * 0.95], 1e-15, "p");
    let eps = AdamW { eps: 1.0, ..plain };
    let clipped = 3.0 * (1.0 / (3.0 + 1e-6));
    near(&[run(eps, 3.0, Some(1.0)).unwrap()], &[2.0 - 0.1 * clipped / (clipped + 1.0)], 1e-13, "p");
    near(&[run(eps, 0.5, Some(1.0)).unwrap()], &[2.0 - 0.1 * 0.5 / 1.5], 1e-13, "p");
    assert!(run(eps, f64::NAN, Some(1.0)).unwrap().is_nan(), "a NaN must not be clipped away");
    let refused = run(AdamW { step: 0, ..plain }, 1.0, None).unwrap_err().to_string();
    assert_eq!(refused, "adamw_step: step 0, expected 1 for the first");
}
