//! GradCache: a batch in chunks has the gradient of the whole, with the same dropout.

use crate::common::MODULES;
use crate::common::{distance, learner, models, relative};
use llm2vec::device::Device;
use llm2vec::model::llama::Noise;
use llm2vec::model::state::Keep;
use llm2vec::ops::attention::Mask;
use llm2vec::ops::contrastive::{InfoNce, LossDtype};
use llm2vec::ops::pool::Pooling;
use llm2vec::rng::philox;
use llm2vec::train::contrastive::{Batch, Contrastive, Rule, Sequence};
use llm2vec::train::mntp::Outcome;
use std::path::Path;

const NOISE: Noise = Noise { attention: 0.3, lora: 0.2, seed: 5, step: 2, first: 77 };
pub const QUERIES: usize = 5;
pub const ALL: usize = 13;

/// Texts of 2 to 11 tokens, pooled over the second on; candidates 1 and 6 are the same text.
pub fn batch(vocab: usize, same: bool) -> Batch {
    let draw = |s: usize, t: usize| philox([s as u32, t as u32, 1, 0], [8, 0])[0];
    let sequence = |s: usize| {
        let s = if s == QUERIES + 6 { QUERIES + 1 } else { s };
        let n = 2 + draw(s, 1000) as usize % 10;
        Sequence { ids: (0..n).map(|t| draw(s, t) % vocab as u32).collect(), span: 1..n }
    };
    let numbers = || (0..(ALL - QUERIES) as i32).map(|i| if i == 6 { 1 } else { i }).collect();
    Batch { sequences: (0..ALL).map(sequence).collect(), queries: QUERIES, same: same.then(numbers) }
}

/// Outcome, and the gradients of two batches added up.
fn gradients(dir: &Path, device: &Device, keep: Keep, rule: Rule, same: bool) -> (Outcome, Vec<Vec<f64>>) {
    let batch = batch(crate::common::config(dir).vocab, same);
    let tokens: usize = batch.sequences.iter().map(|s| s.ids.len()).sum();
    let (mut learner, mut arena) = learner(dir, device, &MODULES, Mask::Full, keep, tokens);
    let mut loss = Contrastive::new(&mut arena, learner.model.config.width, QUERIES, ALL - QUERIES, ALL, &[]);
    loss.learn(&mut learner, &batch, rule, Some(&NOISE), 0.5).unwrap();
    let second = Noise { first: NOISE.first + tokens as u64, ..NOISE };
    let outcome = loss.learn(&mut learner, &batch, rule, Some(&second), 0.5).unwrap();
    assert_eq!((outcome.rows, outcome.tokens), (QUERIES, tokens));
    (outcome, learner.grads().map(|g| g.to_f64()).collect())
}

fn off(got: &[Vec<f64>], wanted: &[Vec<f64>]) -> f64 {
    got.iter().zip(wanted).map(|(a, b)| relative(a, b)).fold(0.0, f64::max)
}

/// Chunks of every size: with and without a rest, within the queries, across the border, in one piece.
#[test]
fn a_batch_in_chunks_has_the_gradient_of_the_whole() {
    let mut worst = [0.0f64; 2];
    for dir in &models()[..5] {
        for (pooling, same, margin) in [
            (Pooling::Mean, false, None),
            (Pooling::Mean, true, Some(0.1)),
            (Pooling::WeightedMean, true, None),
            (Pooling::Last, false, Some(0.0)),
            (Pooling::First, false, None),
        ] {
            let rule =
                |chunk| Rule { pooling, loss: InfoNce { scale: 5.0, margin, dtype: LossDtype::F32 }, chunk };
            for (d, (device, most)) in [(Device::cpu_f64(), 1e-11), (Device::cpu(), 2e-4)].iter().enumerate()
            {
                let (whole, wanted) = gradients(dir, device, Keep::All, rule(0), same);
                assert!(whole.loss > 0.1, "nothing to learn: {whole:?}");
                for chunk in 1..=ALL + 1 {
                    let keep = if chunk % 2 == 0 { Keep::Streams } else { Keep::All };
                    let (outcome, got) = gradients(dir, device, keep, rule(chunk), same);
                    let what = format!("{} {device:?} {pooling:?} chunks of {chunk}", dir.display());
                    assert!(
                        (outcome.loss - whole.loss).abs() <= most * whole.loss,
                        "{what}: {outcome:?} {whole:?}"
                    );
                    let off = off(&got, &wanted);
                    assert!(off <= *most, "{what}: off by {off:e}");
                    worst[d] = worst[d].max(off);
                }
            }
        }
    }
    println!("worst: {:.1e} at f64, {:.1e} at f32", worst[0], worst[1]);
}

/// What the test above rests on: other masks give other gradients, and so does every part of the rule.
#[test]
fn masks_and_rules_show_in_the_gradient() {
    let (dir, device) = (models().remove(0), Device::cpu_f64());
    let of = |pooling, margin, same| {
        let rule = Rule { pooling, loss: InfoNce { scale: 5.0, margin, dtype: LossDtype::F32 }, chunk: 3 };
        gradients(&dir, &device, Keep::All, rule, same).1.concat()
    };
    let seen = [
        of(Pooling::Mean, None, false),
        of(Pooling::Mean, None, true),
        of(Pooling::Mean, Some(0.0), false),
        of(Pooling::WeightedMean, None, false),
        of(Pooling::Last, None, false),
        of(Pooling::First, None, false),
    ];
    for (i, a) in seen.iter().enumerate() {
        seen[..i].iter().for_each(|b| assert!(distance(a, b) > 1e-3));
    }
}
