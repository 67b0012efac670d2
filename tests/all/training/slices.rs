//! A step in slices: the gradient of the whole with the dropout of the whole, and sums whose order is a tree's.

use super::{Data, STAGES, chunks, log, train};
use crate::command::{Tiny, failed, folder, good, str};
use crate::common::{MODULES, learner, learner_with, models, relative};
use llm2vec::device::Device;
use llm2vec::model::llama::Noise;
use llm2vec::model::state::Keep;
use llm2vec::ops::attention::Mask;
use llm2vec::ops::contrastive::{InfoNce, LossDtype};
use llm2vec::ops::pool::Pooling;
use llm2vec::train::contrastive::{Contrastive, Rule};
use llm2vec::train::learner::Head;
use llm2vec::train::mask::Masked;
use llm2vec::train::mntp::{Mntp, Outcome};
use llm2vec::train::ranks::{Reduce, Share};
use std::path::Path;

const NOISE: Noise = Noise { attention: 0.3, lora: 0.2, seed: 5, step: 2, first: 77 };

/// Outcome and gradient of a step of `turns` equal batches in slices.
fn contrastive(
    dir: &Path,
    device: &Device,
    share: Share,
    chunk: usize,
    turns: usize,
) -> (Outcome, Vec<Vec<f64>>) {
    let (queries, all) = (chunks::QUERIES, chunks::ALL);
    let batch = chunks::batch(crate::common::config(dir).vocab, true);
    let tokens: usize = batch.sequences.iter().map(|s| s.ids.len()).sum();
    let (mut learner, mut arena) = learner(dir, device, &MODULES, Mask::Full, Keep::All, tokens);
    learner.divide(&mut arena, share, turns);
    let mut loss = Contrastive::new(&mut arena, learner.model.config.width, queries, all - queries, all, &[]);
    let rule = Rule {
        pooling: Pooling::Mean,
        loss: InfoNce { scale: 5.0, margin: None, dtype: LossDtype::F32 },
        chunk,
    };
    let mut outcome = Outcome::default();
    for turn in 0..turns {
        let noise = Noise { first: NOISE.first + (turn * tokens) as u64, ..NOISE };
        outcome = loss.learn(&mut learner, &batch, rule, Some(&noise), 1.0 / turns as f64).unwrap();
        assert_eq!(outcome.tokens, tokens);
    }
    learner.sum().unwrap();
    (outcome, learner.grads().map(|g| g.to_f64()).collect())
}

fn tree(slices: usize) -> Share {
    Share { slices, ..Share::default() }
}

fn off(got: &[Vec<f64>], wanted: &[Vec<f64>]) -> f64 {
    got.iter().zip(wanted).map(|(a, b)| relative(a, b)).fold(0.0, f64::max)
}

/// More slices than texts too, whose last ones are empty; in chunks; over several batches.
#[test]
fn a_contrastive_step_in_slices_has_the_gradient_of_the_whole() {
    for dir in &models()[..3] {
        for (device, most) in [(Device::cpu_f64(), 1e-11), (Device::cpu(), 2e-4)] {
            for turns in [1, 3] {
                let (whole, wanted) = contrastive(dir, &device, tree(1), 0, turns);
                for (slices, chunk) in [(2, 0), (4, 3), (8, 1), (32, 0)] {
                    for reduce in [Reduce::Tree, Reduce::Fast] {
                        let share = Share { reduce, ..tree(slices) };
                        let (outcome, got) = contrastive(dir, &device, share, chunk, turns);
                        let what =
                            format!("{} {device:?} {slices} {reduce:?} {chunk} {turns}", dir.display());
                        assert!((outcome.loss - whole.loss).abs() <= most * whole.loss, "{what}");
                        let off = off(&got, &wanted);
                        assert!(off <= most, "{what}: off by {off:e}");
                    }
                }
            }
        }
    }
}

/// The sums of the slices are added as a tree, whether they are added as they come or kept until the step's end.
#[test]
fn sums_of_slices_are_a_tree() {
    let (dir, device) = (&models()[0], Device::cpu());
    let share = || tree(8);
    let (_, once) = contrastive(dir, &device, share(), 0, 1);
    // Each slice for itself, beside seven of nothing.
    let (queries, all) = (chunks::QUERIES, chunks::ALL);
    let batch = chunks::batch(crate::common::config(dir).vocab, true);
    let tokens: usize = batch.sequences.iter().map(|s| s.ids.len()).sum();
    let (mut learner, mut arena) = learner(dir, &device, &MODULES, Mask::Full, Keep::All, tokens);
    // Two batches, of which there is one: every slice keeps its own.
    learner.divide(&mut arena, share(), 2);
    let mut loss = Contrastive::new(&mut arena, learner.model.config.width, queries, all - queries, all, &[]);
    let rule = Rule {
        pooling: Pooling::Mean,
        loss: InfoNce { scale: 5.0, margin: None, dtype: LossDtype::F32 },
        chunk: 0,
    };
    loss.learn(&mut learner, &batch, rule, Some(&NOISE), 1.0).unwrap();
    let mut slices: Vec<Vec<Vec<f64>>> = Vec::new();
    for slice in 0..8 {
        learner.begin_slice(slice);
        slices.push(learner.grads().map(|g| g.to_f64()).collect());
        learner.end_slice(slice).unwrap();
    }
    assert!(slices.iter().filter(|slice| slice.concat().iter().any(|g| *g != 0.0)).count() > 4);
    learner.sum().unwrap();
    let kept: Vec<Vec<f64>> = learner.grads().map(|g| g.to_f64()).collect();
    assert!(kept == once, "kept until the end, the sum is another");
    let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| f64::from(*a as f32 + *b as f32)).collect();
    while slices.len() > 1 {
        let pair = |pair: &[Vec<Vec<f64>>]| pair[0].iter().zip(&pair[1]).map(|(a, b)| add(a, b)).collect();
        slices = slices.chunks(2).map(pair).collect();
    }
    assert!(slices[0] == once, "the sum is not the tree's");
    let (_, fast) = contrastive(dir, &device, Share { reduce: Reduce::Fast, ..share() }, 0, 1);
    assert!(fast != once, "another order would not show");
}

/// The mean is over the labels of all slices, also of those that have none.
#[test]
fn a_masked_step_in_slices_has_the_gradient_of_the_whole() {
    for (device, most) in [(Device::cpu_f64(), 1e-11), (Device::cpu(), 2e-4)] {
        let of = |cuts: &[usize], whole: usize| {
            let dir = &models()[0];
            let config = crate::common::config(dir);
            let (mut learner, mut arena) =
                learner_with(dir, &device, &MODULES, Mask::Full, Keep::All, 48, Head::Frozen);
            learner.divide(&mut arena, tree(cuts.len() - 1), 1);
            let mut loss = Mntp::new(&mut arena, &config, whole);
            let packs: Vec<Masked> = cuts.windows(2).map(|c| pack(c[0], c[1], config.vocab)).collect();
            let outcome = loss.learn_slices(&mut learner, &packs, &NOISE, 0.5).unwrap();
            learner.sum().unwrap();
            (outcome, learner.grads().map(|g| g.to_f64()).collect::<Vec<_>>())
        };
        let (whole, wanted) = of(&[0, 6], 48);
        assert!(whole.rows > 6 && whole.loss > 0.1);
        for cuts in [vec![0, 2, 6], vec![0, 1, 1, 4, 6], vec![0, 1, 2, 3, 4, 5, 6, 6, 6]] {
            let (outcome, got) = of(&cuts, 48);
            assert_eq!((outcome.rows, outcome.hits, outcome.tokens), (whole.rows, whole.hits, whole.tokens));
            assert!((outcome.loss - whole.loss).abs() <= most * whole.loss, "{cuts:?}");
            let off = off(&got, &wanted);
            assert!(off <= most, "{device:?} {cuts:?}: off by {off:e}");
        }
    }
}

/// Sequences of 8 tokens; that of number 1 has no label.
fn pack(from: usize, to: usize, vocab: usize) -> Masked {
    let mut masked = Masked { starts: vec![0], ..Masked::default() };
    for sequence in from..to {
        let first = masked.ids.len();
        masked.ids.extend((0..8).map(|t| ((sequence * 31 + t * 7 + 3) % vocab) as i32));
        if sequence != 1 {
            masked.rows.extend([2, 5].map(|t| (first + t) as i32));
            masked.labels.extend([sequence, sequence + 9].map(|id| (id % vocab) as i32));
        }
        masked.starts.push(masked.ids.len() as i32);
    }
    masked
}

/// Losses near those of one slice; a resumed run has the slices that it began with, whatever it is told but others.
#[test]
fn a_run_keeps_its_slices() {
    let (tiny, data, dir) = (Tiny::new(), Data::new(45), folder());
    for stage in STAGES {
        let flags = |out: &str, more: &[&str]| {
            let own = [
                "--batch",
                "6",
                "--accumulation",
                "2",
                "--max-length",
                "24",
                "--steps",
                "6",
                "--save-steps",
                "3",
            ];
            train(
                stage,
                tiny.dir.path(),
                &data,
                &dir.path().join(format!("{stage}-{out}")),
                &[&own[..], more].concat(),
            )
        };
        good(flags("one", &[]));
        good(flags("four", &["--slices", "4"]));
        let at = |out: &str| dir.path().join(format!("{stage}-{out}"));
        let losses = |out: &str| -> Vec<f64> {
            log(&at(out)).iter().filter_map(|line| line["loss"].as_f64()).collect()
        };
        let (one, four) = (losses("one"), losses("four"));
        assert_eq!(one.len(), four.len());
        one.iter().zip(&four).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * a, "{stage}: {a} {b}"));
        let adapter = |out: &str| std::fs::read(at(out).join("adapter_model.safetensors")).unwrap();
        assert!(adapter("one") != adapter("four"), "{stage}: slices show in the last bits");
        std::fs::remove_dir_all(at("four").join("checkpoint-6")).unwrap();
        let kept = adapter("four");
        std::fs::remove_file(at("four").join("adapter_model.safetensors")).unwrap();
        let other = flags("four", &["--slices", "2", "--resume"]).output().unwrap();
        failed(other, 1, &["slices 4 there, 2 here"]);
        good(flags("four", &["--resume"]));
        assert!(adapter("four") == kept, "{stage}");
    }
    let out = dir.path().join("none");
    let refused = |more: &[&str]| train("simcse", tiny.dir.path(), &data, &out, more).output().unwrap();
    failed(refused(&["--slices", "3"]), 2, &["--slices is 3, a power of two was wanted"]);
    assert!(!out.exists(), "{}", str(&out));
}

/// What was started as one of several, and cannot know of the others.
#[cfg(not(feature = "mpi"))]
#[test]
fn a_rank_of_a_build_without_mpi_is_refused() {
    let (tiny, data, dir) = (Tiny::new(), Data::new(8), folder());
    let out = dir.path().join("run");
    let run = |set: &[(&str, &str)]| {
        let mut command = train("simcse", tiny.dir.path(), &data, &out, &["--steps", "1", "--batch", "4"]);
        command.envs(set.iter().copied()).output().unwrap()
    };
    let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
    for set in [
        &[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")][..],
        &[("PMI_RANK", "0"), ("PMI_SIZE", "2")],
        &[slurm[0], slurm[1], ("SLURM_STEP_ID", "0")],
    ] {
        failed(run(set), 1, &["one of ", "--features mpi"]);
    }
    failed(run(&[("RANK", "0"), ("WORLD_SIZE", "2")]), 2, &["mpirun -n 2 llm2vec train"]);
    assert!(!out.exists());
    // A script of four tasks that runs one process.
    crate::command::passed(run(&slurm));
}
