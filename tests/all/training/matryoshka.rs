//! Matryoshka losses: what they sum up, their gradient, and what is refused.

use super::{Data, chunks};
use crate::command::{failed, folder, llm2vec, str};
use crate::common::{MODULES, distance, learner, models, relative};
use llm2vec::device::Device;
use llm2vec::model::llama::Noise;
use llm2vec::model::state::Keep;
use llm2vec::ops::attention::Mask;
use llm2vec::ops::contrastive::{InfoNce, LossDtype};
use llm2vec::ops::pool::Pooling;
use llm2vec::train::contrastive::{Contrastive, Rule};
use llm2vec::train::learner::Learner;

const NOISE: Noise = Noise { attention: 0.3, lora: 0.2, seed: 5, step: 2, first: 0 };
const SCALE: f64 = 5.0;
const SHARE: f64 = 0.7;

fn rule(chunk: usize) -> Rule {
    Rule {
        pooling: Pooling::Mean,
        loss: InfoNce { scale: SCALE, margin: None, dtype: LossDtype::F32 },
        chunk,
    }
}

/// A learner at f64, and its loss over these levels, of which the first is as wide as the model.
fn run(levels: &[(usize, f64)]) -> (Learner, Contrastive) {
    let (mut learner, mut arena) =
        learner(&models()[0], &Device::cpu_f64(), &MODULES, Mask::Full, Keep::All, 200);
    learner.graphs = Default::default();
    let width = learner.model.config.width;
    let loss = Contrastive::new(
        &mut arena,
        width,
        chunks::QUERIES,
        chunks::ALL - chunks::QUERIES,
        chunks::ALL,
        levels,
    );
    (learner, loss)
}

/// Cross-entropy of each query's cosines over the first `d` columns, as sentence-transformers' MatryoshkaLoss has it around
/// MultipleNegativesRankingLoss.
fn info_nce(vectors: &[Vec<f64>; 2], width: usize, d: usize) -> f64 {
    let cosine = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
    };
    let rows = |i: usize| vectors[i].chunks(width).map(|row| &row[..d]);
    let of_query = |(i, q)| {
        let scores: Vec<f64> = rows(1).map(|c| SCALE * cosine(q, c)).collect();
        scores.iter().map(|s| s.exp()).sum::<f64>().ln() - scores[i]
    };
    rows(0).enumerate().map(of_query).sum::<f64>() / chunks::QUERIES as f64
}

#[test]
fn the_loss_is_the_weighted_sum_and_the_gradient_is_its() {
    let width = crate::common::config(&models()[0]).width;
    let levels = [(width, 1.0), (width / 2, 0.5), (4, 2.0)];
    let (mut learner, mut loss) = run(&levels);
    let batch = chunks::batch(learner.model.config.vocab, false);
    let outcome = loss.learn(&mut learner, &batch, rule(0), Some(&NOISE), SHARE).unwrap();
    let vectors = loss.vectors().each_ref().map(|t| t.to_f64());
    let wanted: f64 = levels.iter().map(|&(d, weight)| weight * info_nce(&vectors, width, d)).sum();
    assert!((outcome.loss - wanted).abs() <= 1e-12 * wanted, "{} is not {wanted}", outcome.loss);

    // In chunks too.
    let grads: Vec<Vec<f64>> = learner.grads().map(|g| g.to_f64()).collect();
    let (mut again, mut loss_again) = run(&levels);
    loss_again.learn(&mut again, &batch, rule(3), Some(&NOISE), SHARE).unwrap();
    let again: Vec<Vec<f64>> = again.grads().map(|g| g.to_f64()).collect();
    assert!(grads.iter().zip(&again).all(|(a, b)| relative(a, b) <= 1e-11));

    // Every trained matrix, at one of its numbers.
    for (number, grad) in grads.iter().enumerate() {
        let i = (0..grad.len()).max_by(|&a, &b| grad[a].abs().total_cmp(&grad[b].abs())).unwrap();
        let mut at = |by: f64| {
            let mut weights = learner.model.weights.trained_mut();
            weights.nth(number).unwrap().host_mut::<f64>().unwrap()[i] += by;
            drop(weights);
            loss.learn(&mut learner, &batch, rule(0), Some(&NOISE), SHARE).unwrap().loss
        };
        let h = 1e-5;
        let [up, down, _] = [at(h), at(-2.0 * h), at(h)];
        let slope = SHARE * (up - down) / (2.0 * h);
        assert!(
            (slope - grad[i]).abs() <= 1e-7 * (1.0 + grad[i].abs()),
            "{number}: {} is not {slope}",
            grad[i]
        );
    }

    // One level as wide as the vectors is no level.
    let alone = |levels: &[(usize, f64)]| {
        let (mut learner, mut loss) = run(levels);
        let outcome = loss.learn(&mut learner, &batch, rule(0), Some(&NOISE), 1.0).unwrap();
        (outcome, learner.grads().flat_map(|g| g.to_f64()).collect::<Vec<f64>>())
    };
    let ((plain, a), (level, b)) = (alone(&[]), alone(&[(width, 1.0)]));
    assert!(
        (plain.loss - level.loss).abs() <= 1e-12 && plain.hits == level.hits && distance(&a, &b) <= 1e-12
    );
}

#[test]
fn dimensions_that_the_model_has_not_are_refused() {
    let (data, out, model) = (Data::new(20), folder(), crate::common::here("tests/models/novel5m"));
    let run = |more: &[&str]| {
        let path = data.of("simcse");
        let base = [
            "train",
            "simcse",
            "-m",
            str(&model),
            "--data",
            str(&path),
            "-o",
            str(out.path()),
            "--overwrite",
        ];
        llm2vec(&[&base[..], &["--steps", "1", "--batch", "4"], more].concat()).output().unwrap()
    };
    failed(run(&["--matryoshka", "64,100000"]), 2, &["--matryoshka has 100000, the model's vectors have"]);
    failed(run(&["--matryoshka", "64,64"]), 2, &["--matryoshka", "64 twice"]);
}
