//! Whole models on a device, against the f64 CPU: passes, steps of each stage, runs, and the commands. The device is the
//! emulator, and a GPU as well where one answers (REQUIRE_GPU=1 makes its absence an error).

mod commands;
mod company;
mod pass;
mod scales;
mod stages;
mod tiny;

use llm2vec::device::Device;
use llm2vec::model::state::Keep;
use llm2vec::rng::{normal, philox};
use llm2vec::tensor::Tensor;
use pass::{Numbers, Pass};
use tiny::{devices, models};

/// A pack of sequences of these lengths, and a gradient of its hidden states that bf16 holds.
fn pack(lengths: &[usize]) -> (Vec<i32>, Vec<i32>, Vec<f32>) {
    let tokens: usize = lengths.iter().sum();
    let id = |t: usize| (philox([t as u32, 0, 0, 0], [3, 1])[0] % 128) as i32;
    let starts = (0..=lengths.len()).map(|i| lengths[..i].iter().sum::<usize>() as i32).collect();
    let dh = normal(77, tokens * 64).iter().map(|&x| half::bf16::from_f64(x).to_f32()).collect();
    ((0..tokens).map(id).collect(), starts, dh)
}

/// Root-mean-square difference over the root-mean-square value.
fn off(got: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(got.len(), exact.len());
    let square = |list: &mut dyn Iterator<Item = f64>| list.map(|x| x * x).sum::<f64>();
    let apart = square(&mut got.iter().zip(exact).map(|(g, e)| g - e));
    (apart / square(&mut exact.iter().copied())).sqrt()
}

/// What the chain is off at most, in a pass or a step of these models: a wrong chain would allow anything.
const CHAIN: f64 = 4e-2;

/// Another schedule of the emulator from here on: what is compared next is not the same run.
fn reschedule(device: &Device) {
    if let Device::Gpu(gpu) = device {
        gpu.seed(1);
    }
}

const LENGTHS: [usize; 5] = [5, 1, 33, 12, 20];

/// Hidden states and every gradient are at most twice as far off as a chain of unfused ops that rounds to bf16 after each.
#[test]
fn a_pass_is_as_exact_as_bf16_allows() {
    let (ids, starts, dh) = pack(&LENGTHS);
    for device in devices() {
        for tiny in &models() {
            let run = |device: &Device| Pass::new(tiny, device, Keep::All, ids.len() + 3);
            let put = |_: &Tensor, h: &mut Tensor| h.put_rows(0, &dh).unwrap();
            let exact = run(&Device::cpu_f64()).graph(&ids, &starts, put);
            let chain = run(&Device::cpu()).chain(&ids, &starts, put);
            let got = run(&device).graph(&ids, &starts, put);
            let flat = |n: &Numbers| std::iter::once(n.0.clone()).chain(n.1.clone()).collect::<Vec<_>>();
            let (exact, chain, got) = (flat(&exact), flat(&chain), flat(&got));
            let mut worst = [0.0f64; 3];
            for (i, ((got, exact), chain)) in got.iter().zip(&exact).zip(&chain).enumerate() {
                let (got, chain) = (off(got, exact), off(chain, exact));
                let what = format!(
                    "{:?} tensor {i}: off by {got:.2e}, the chain by {chain:.2e}",
                    tiny.config.family
                );
                assert!(got <= 2.0 * chain && chain <= CHAIN, "{what}");
                for (worst, new) in worst.iter_mut().zip([got, chain, got / chain]) {
                    *worst = worst.max(new);
                }
            }
            println!(
                "{:?}: worst {:.2e}, the chain's {:.2e}, ratio {:.2}",
                tiny.config.family, worst[0], worst[1], worst[2]
            );
        }
    }
}

/// Keeping block inputs alone, and doing it all again, change no bit.
#[test]
fn recomputing_and_repeating_change_no_bit() {
    let (ids, starts, dh) = pack(&LENGTHS);
    for device in devices() {
        for tiny in &models()[..2] {
            let put = |_: &Tensor, h: &mut Tensor| h.put_rows(0, &dh).unwrap();
            let run = |keep| Pass::new(tiny, &device, keep, ids.len()).graph(&ids, &starts, put);
            let plain = run(Keep::All);
            reschedule(&device);
            assert!(plain == run(Keep::All), "two runs differ");
            assert!(plain == run(Keep::Streams), "recomputing differs");
        }
    }
}

/// The setting `check_finite` names the first layer and tensor that a planted NaN reaches, in both directions.
#[test]
fn a_planted_nan_is_found_where_it_stands() {
    let (ids, starts, dh) = pack(&[5, 3]);
    let tiny = &models()[0];
    for device in devices().into_iter().chain([Device::cpu()]) {
        let mut pass = Pass::new(tiny, &device, Keep::All, ids.len());
        assert_eq!(pass.checked(&ids, &starts, &dh), "nothing");
        let mut bad = dh.clone();
        (bad[2 * 64 + 5], bad[7 * 64]) = (f32::INFINITY, f32::NAN);
        let says = "check_finite: gradient of the loss: hidden has 2 of 512 numbers NaN or infinite, the first in row 2";
        assert_eq!(pass.checked(&ids, &starts, &bad), says);
        pass.model.weights.layers[1].mlp_norm.put_rows(0, &[3e38; 64]).unwrap();
        let says = pass.checked(&ids, &starts, &dh);
        assert!(says.starts_with("check_finite: layer 1: "), "{says}");
        pass.model.weights.layers[0].linears.down.w.put_rows(9, &[f32::NAN; 96]).unwrap();
        let says = "check_finite: layer 0: stream has 8 of 512 numbers NaN or infinite, the first in row 0";
        assert_eq!(pass.checked(&ids, &starts, &dh), says);
        pass.model.weights.embed.put_rows(ids[4] as usize, &[f32::NAN; 64]).unwrap();
        let says = pass.checked(&ids, &starts, &dh);
        assert!(says.starts_with("check_finite: embedding: stream has "), "{says}");
    }
}
