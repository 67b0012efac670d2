//! The commands with `--device emulated`.

use super::tiny::devices;
use crate::command::{Tiny, failed, folder, good, llm2vec, names, str, vectors};
use crate::common::novel5m;
use flate2::read::GzDecoder;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Lines of the texts that ship with the repository, none longer than `most` bytes.
fn lines(from: &str, count: usize, most: usize) -> Vec<String> {
    let file = fs::File::open(crate::common::here("tests/texts").join(from)).unwrap();
    let lines = BufReader::new(GzDecoder::new(file)).lines().map(Result::unwrap);
    lines.filter(|l| (1..=most).contains(&l.len())).take(count).collect()
}

#[test]
fn fifty_sentences_have_the_vectors_of_the_cpu() {
    if devices().is_empty() {
        return;
    }
    let dir = folder();
    let input = dir.path().join("texts.txt");
    fs::write(&input, lines("persuasion.valid.txt.gz", 50, usize::MAX).join("\n")).unwrap();
    let model = novel5m();
    let encode =
        |device| vectors(&["-m", str(&model), "-i", str(&input), "--tokens", "512", "--device", device]);
    let (cpu, got) = (encode("cpu"), encode("emulated"));
    let c = cpu.len() / 50;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    assert_eq!(got.len(), cpu.len());
    let mut lowest = 1.0;
    for (i, (a, b)) in got.chunks(c).zip(cpu.chunks(c)).enumerate() {
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine >= 0.9995, "sentence {i}: cosine {cosine}");
        lowest = cosine.min(lowest);
    }
    println!("50 sentences: lowest cosine {lowest:.6}");
}

/// A run of each stage, whole and in two halves, leaves the same adapter, optimiser and head, bit for bit; one of them also
/// with `--recompute`.
#[test]
fn a_resumed_run_ends_as_a_straight_one() {
    if devices().is_empty() {
        return;
    }
    let (tiny, dir) = (Tiny::wide(64), folder());
    let texts = dir.path().join("texts.txt");
    fs::write(&texts, lines("persuasion.train.txt.gz", 20, 60).join("\n")).unwrap();
    let triplets = dir.path().join("triplets.jsonl");
    fs::write(&triplets, lines("triplets.jsonl.gz", 12, 400).join("\n")).unwrap();
    for (stage, own) in [
        ("mntp", &["--train-head", "--grouping", "lines"][..]),
        ("simcse", &["--grad-cache", "3"]),
        ("supervised", &["--recompute"]),
    ] {
        let data = if stage == "supervised" { &triplets } else { &texts };
        let run = |out: &Path, steps: &str, more: &[&str]| {
            let common = ["train", stage, "-m", tiny.path(), "--data", str(data), "-o", str(out), "--quiet"];
            let sizes =
                ["--batch", "3", "--max-length", "12", "--rank", "8", "--lr", "1e-2", "--epochs", "50"];
            let place = ["--steps", steps, "--save-steps", "1", "--device", "emulated"];
            good(llm2vec(&[&common[..], &sizes, &place, own, more].concat()));
        };
        let [straight, halves, plain] =
            ["straight", "halves", "plain"].map(|s| dir.path().join(format!("{stage}-{s}")));
        run(&straight, "3", &[]);
        run(&halves, "1", &[]);
        run(&halves, "3", &["--resume"]);
        same(&straight, &halves);
        if stage == "mntp" {
            run(&plain, "3", &["--recompute"]);
            same(&straight, &plain);
        }
    }
}

/// All tensors of the last checkpoint.
fn same(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(|dir| dir.join("checkpoint-3"));
    assert_eq!(names(&a), names(&b));
    for file in names(&a).iter().filter(|f| f.ends_with(".safetensors")) {
        assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file} differs");
    }
}

/// What no kernel takes, and what does not fit, is refused in one line before a weight is read.
#[test]
fn refusals_come_first_and_say_what_to_do() {
    if devices().is_empty() {
        return;
    }
    let (narrow, wide) = (Tiny::new(), Tiny::wide(64));
    let run = |tiny: &Tiny, more: &[&str]| {
        let own =
            ["encode", "-m", tiny.path(), "-i", crate::command::prose(), "-o", "-", "--device", "emulated"];
        llm2vec(&[&own[..], more].concat()).output().unwrap()
    };
    failed(
        run(&narrow, &[]),
        1,
        &["heads are 8 wide, a GPU takes [16, 32, 64, 80, 96, 128]", "--device cpu"],
    );
    let much = run(&wide, &["--tokens", "16777216", "--max-length", "16777216"]);
    failed(much, 1, &["the plan needs", "GiB (weights ", "the device has", "a smaller --tokens"]);
    let info = good(llm2vec(&["info", "-m", wide.path(), "--device", "emulated:90"]));
    for words in ["emulated (sm_90)", "bf16 on the device", "packs of 16384 tokens"] {
        assert!(info.contains(words), "{words}: {info}");
    }
}
