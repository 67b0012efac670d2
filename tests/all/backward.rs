//! The backward of whole models at f64: every adapter tensor against central differences, dropout on, under all masks.

use crate::common;

use crate::common::MODULES;
use common::{learner, models, relative};
use llm2vec::device::Device;
use llm2vec::model::llama::Noise;
use llm2vec::model::state::Keep;
use llm2vec::ops::adamw::AdamW;
use llm2vec::ops::attention::Mask;
use llm2vec::rng::{normal, philox};
use llm2vec::train::learner::Learner;
use std::path::Path;

const MASKS: [Mask; 4] = [Mask::Full, Mask::Causal, Mask::Window(3), Mask::CausalWindow(3)];
const NOISE: Noise = Noise { attention: 0.3, lora: 0.2, seed: 11, step: 5, first: 1000 };

/// A model with a random adapter on all seven projections, and a pack to run through it.
struct Run {
    learner: Learner,
    ids: Vec<i32>,
    starts: Vec<i32>,
    /// The scalar is the sum of the hidden states times these.
    weights: Vec<f64>,
}

impl Run {
    fn new(dir: &Path, device: Device, modules: &[&str], mask: Mask, keep: Keep, lengths: &[usize]) -> Run {
        let tokens: usize = lengths.iter().sum();
        // Room for more than the pack has, so that no buffer is full.
        let (learner, _) = learner(dir, &device, modules, mask, keep, tokens + 3);
        let config = learner.model.config.clone();
        let id = |t| (philox([t as u32, 0, 0, 0], [3, 1])[0] as usize % config.vocab) as i32;
        let starts = (0..=lengths.len()).map(|i| lengths[..i].iter().sum::<usize>() as i32).collect();
        let weights = normal(77, tokens * config.width);
        Run { learner, ids: (0..tokens).map(id).collect(), starts, weights }
    }

    fn scalar(&mut self) -> f64 {
        self.learner.take(&self.ids, &self.starts).unwrap();
        self.learner.forward(Some(&NOISE)).unwrap();
        self.learner.state.hidden.to_f64().iter().zip(&self.weights).map(|(h, w)| h * w).sum()
    }

    /// The gradients of `turns` passes, added up, in the order of the learner's names.
    fn gradients(&mut self, turns: usize) -> Vec<Vec<f64>> {
        for _ in 0..turns {
            self.scalar();
            let h = &mut self.learner.scratch.h;
            for (t, row) in self.weights.chunks(h.shape()[1]).enumerate() {
                match h.host_mut::<f64>() {
                    Ok(h) => h[t * row.len()..][..row.len()].copy_from_slice(row),
                    Err(_) => h.put_rows(t, &row.iter().map(|&w| w as f32).collect::<Vec<_>>()).unwrap(),
                }
            }
            self.learner.backward(Some(&NOISE)).unwrap();
        }
        self.learner.grads().map(|g| g.to_f64()).collect()
    }

    /// The derivative by element `i` of trained tensor `which`: five points, an error of the order of h^4.
    fn difference(&mut self, which: usize, i: usize) -> f64 {
        const H: f64 = 1e-3;
        let mut at = |offset: f64| {
            let place = |run: &mut Run, x: f64| {
                let tensor = run.learner.model.weights.trained_mut().nth(which).unwrap();
                std::mem::replace(&mut tensor.host_mut::<f64>().unwrap()[i], x)
            };
            let x = place(self, 0.0);
            place(self, x + offset);
            let y = self.scalar();
            place(self, x);
            y
        };
        (8.0 * (at(H) - at(-H)) - (at(2.0 * H) - at(-2.0 * H))) / (12.0 * H)
    }
}

fn golden() -> Vec<std::path::PathBuf> {
    models().into_iter().filter(|dir| dir.parent().unwrap().parent().unwrap().ends_with("golden")).collect()
}

/// Each tensor's gradient at every fourth element, from `first` on, against differences; the largest error.
fn check(run: &mut Run, first: usize, what: &str) -> f64 {
    let (gradients, names) = (run.gradients(1), run.learner.names());
    assert_eq!(gradients.len(), names.len());
    let mut worst = 0.0f64;
    for (which, (gradient, name)) in gradients.iter().zip(&names).enumerate() {
        let places: Vec<usize> = (first..gradient.len()).step_by(4).collect();
        let got: Vec<f64> = places.iter().map(|&i| gradient[i]).collect();
        let wanted: Vec<f64> = places.iter().map(|&i| run.difference(which, i)).collect();
        let off = relative(&got, &wanted);
        assert!(off <= 1e-6, "{what}: {name} is off by {off:e}");
        worst = worst.max(off);
    }
    worst
}

/// Two blocks, groups of query heads, each family's rope and biases; sequences of odd lengths, one of a single token.
/// Every element is checked under one mask or another.
#[test]
fn every_adapter_gradient_equals_central_differences() {
    let mut worst = 0.0f64;
    for dir in golden() {
        for (first, mask) in MASKS.into_iter().enumerate() {
            let mut run = Run::new(&dir, Device::cpu_f64(), &MODULES, mask, Keep::All, &[5, 1, 7, 3]);
            worst = worst.max(check(&mut run, first, &format!("{} {mask:?}", dir.display())));
        }
    }
    println!("worst: {worst:.1e}");
}

/// Projections without an adapter, alone and beside one that has it, pass the gradient on.
#[test]
fn so_does_every_gradient_of_an_adapter_on_some_projections() {
    let dir = golden().remove(0);
    let some: [&[&str]; 6] = [
        &["q_proj"],
        &["v_proj", "down_proj"],
        &["k_proj", "o_proj"],
        &["gate_proj"],
        &["up_proj", "q_proj"],
        &["o_proj", "gate_proj", "up_proj"],
    ];
    for modules in some {
        let mut run = Run::new(&dir, Device::cpu_f64(), modules, Mask::Full, Keep::Streams, &[5, 1, 7]);
        check(&mut run, 0, &format!("{modules:?}"));
    }
}

/// Bits, for devices of both kinds; gradients of two passes, so that what a pass leaves behind would show.
#[test]
fn recomputing_and_threads_change_no_bit() {
    let lengths = [33, 1, 64, 7, 129, 2, 31];
    let bits = |threads: usize, dir: &Path, device: &Device, mask, keep| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let all = pool.install(|| Run::new(dir, device.clone(), &MODULES, mask, keep, &lengths).gradients(2));
        assert!(all.iter().all(|g| g.iter().any(|&x| x != 0.0) && g.iter().all(|x| x.is_finite())));
        all.concat().iter().map(|x| x.to_bits()).collect::<Vec<u64>>()
    };
    for dir in models() {
        for mask in MASKS {
            for device in [Device::cpu(), Device::cpu_f64()] {
                let plain = bits(1, &dir, &device, mask, Keep::All);
                for (threads, keep) in [(1, Keep::Streams), (2, Keep::All), (3, Keep::Streams)] {
                    let same = bits(threads, &dir, &device, mask, keep) == plain;
                    assert!(same, "{} {mask:?} {device:?}: {threads} threads, {keep:?}", dir.display());
                }
            }
        }
    }
}

/// Another noise gives other gradients, and no noise gives others again: the masks above are really drawn.
#[test]
fn dropout_takes_part() {
    let dir = golden().remove(0);
    let with = |noise: Option<Noise>| {
        let mut run = Run::new(&dir, Device::cpu_f64(), &MODULES, Mask::Full, Keep::All, &[5, 9]);
        run.learner.take(&run.ids, &run.starts).unwrap();
        run.learner.forward(noise.as_ref()).unwrap();
        run.learner.state.hidden.to_f64()
    };
    let seen = [
        None,
        Some(NOISE),
        Some(Noise { attention: 0.0, ..NOISE }),
        Some(Noise { lora: 0.0, ..NOISE }),
        Some(Noise { step: 6, ..NOISE }),
        Some(Noise { seed: 12, ..NOISE }),
        Some(Noise { first: 1001, ..NOISE }),
    ]
    .map(with);
    for (i, a) in seen.iter().enumerate() {
        seen[..i].iter().for_each(|b| assert!(relative(a, b) > 1e-3));
    }
}

/// Clipping would turn such a gradient into zeros or NaN: the step is refused by the tensor's name, and changes nothing.
#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let mut run =
        Run::new(&golden()[0], Device::cpu(), &["o_proj", "up_proj"], Mask::Full, Keep::All, &[5, 9]);
    let by = AdamW { rate: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, step: 7 };
    run.gradients(1);
    run.learner.update(by, 1.0).unwrap();
    let all = |learner: &mut Learner| {
        let masters: Vec<_> = learner.model.weights.trained_mut().map(|t| t.to_f64()).collect();
        let moments = learner.moments().iter().flatten().map(|t| t.to_f64());
        [masters, moments.collect()].concat()
    };
    let before = all(&mut run.learner);
    for poison in [f64::INFINITY, f64::NAN] {
        run.weights[3] = poison;
        run.gradients(1);
        let error = run.learner.update(AdamW { step: 8, ..by }, 1.0).unwrap_err().to_string();
        assert!(error.starts_with("step 8: the gradient of layers.0.o.lora_A is not finite"), "{error}");
        assert_eq!(all(&mut run.learner), before);
    }
}
