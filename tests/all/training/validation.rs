//! What contrastive stages are measured by while they run, and what follows from it.

use super::{Data, log, train, values};
use crate::command::{folder, good, llm2vec, str};
use crate::common;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const COMMON: [&str; 8] = ["--batch", "8", "--max-length", "96", "--eval-steps", "2", "--warmup", "0"];

fn steps(out: &Path) -> Vec<f64> {
    values(&log(out), "eval", "step")
}

/// The last evaluation is what `eval sts` says of the adapter.
#[test]
fn pairs_are_judged_as_eval_does_of_the_adapter() {
    let (data, dir) = (Data::new(60), folder());
    let pairs = data.pairs();
    for stage in ["simcse", "supervised"] {
        let out = dir.path().join(stage);
        let flags = [&COMMON[..], &["--steps", "4", "--lr", "1e-3", "--validation", str(&pairs)]].concat();
        good(train(stage, &common::novel5m(), &data, &out, &flags));
        assert_eq!(steps(&out), [0.0, 2.0, 4.0]);
        let file = dir.path().join(format!("{stage}.json"));
        let (model, adapter) = (common::novel5m(), str(&out));
        good(llm2vec(&[
            "eval",
            "sts",
            "-m",
            str(&model),
            "--adapter",
            adapter,
            "--data",
            str(&pairs),
            "-o",
            str(&file),
            "--quiet",
        ]));
        let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for (name, wanted) in [("spearman", "cosine_spearman"), ("pearson", "cosine_pearson")] {
            let (got, wanted) =
                (values(&log(&out), "eval", name), report["scores"][wanted].as_f64().unwrap());
            assert!((got[2] - wanted).abs() < 1e-4, "{stage}: {name} {} in training, {wanted} after", got[2]);
            // Ranks of few pairs may stand.
            assert!(name != "pearson" || got[0] != got[2], "{stage}: nothing was learned");
        }
    }
}

/// Whatever table they stand in.
#[test]
fn pairs_of_any_table_are_judged_alike() {
    let (data, dir) = (Data::new(60), folder());
    let tsv = data.pairs();
    let jsonl = dir.path().join("pairs.jsonl");
    let text = fs::read_to_string(&tsv).unwrap();
    let row = |line: &str| {
        let [_, score, one, two] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let score: f64 = score.parse().unwrap();
        json!({"sentence1": one, "sentence2": two, "score": score}).to_string() + "\n"
    };
    fs::write(&jsonl, text.lines().skip(1).map(row).collect::<String>()).unwrap();
    let figures = [&tsv, &jsonl].map(|pairs| {
        let out = dir.path().join(pairs.extension().unwrap());
        let flags = [&COMMON[..], &["--steps", "2", "--validation", str(pairs)]].concat();
        good(train("simcse", &common::novel5m(), &data, &out, &flags));
        values(&log(&out), "eval", "pearson")
    });
    assert_eq!(figures[0], figures[1]);
}

/// Held-out rows of a model that has learned them score higher than of one that has not.
#[test]
fn held_out_rows_have_a_loss_and_an_accuracy() {
    let (data, dir) = (Data::new(40), folder());
    let out = dir.path().join("run");
    let rows = data.of("supervised");
    let flags = [&COMMON[..], &["--steps", "8", "--lr", "1e-3", "--validation", str(&rows)]].concat();
    good(train("supervised", &common::novel5m(), &data, &out, &flags));
    let (losses, hits) = (values(&log(&out), "eval", "loss"), values(&log(&out), "eval", "accuracy"));
    assert_eq!(steps(&out), [0.0, 2.0, 4.0, 6.0, 8.0]);
    assert!(losses[4] < losses[0] && hits[4] >= hits[0], "{losses:?} {hits:?}");
    assert!(hits.iter().all(|share| (0.0..=1.0).contains(share)), "{hits:?}");
}

/// With a rate that ruins the model the run ends early, and with the adapter of its best step.
#[test]
fn the_best_adapter_is_kept_and_patience_ends() {
    let (data, dir) = (Data::new(40), folder());
    let (out, rows) = (dir.path().join("run"), data.of("supervised"));
    let flags = [
        "--steps",
        "40",
        "--lr",
        "3e-2",
        "--decay",
        "epochs",
        "--epochs",
        "1000",
        "--validation",
        str(&rows),
    ];
    let flags = [&COMMON[..], &flags, &["--keep-best", "--early-stopping", "3"]].concat();
    good(train("supervised", &common::novel5m(), &data, &out, &flags));
    let losses = values(&log(&out), "eval", "loss");
    let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
    assert_eq!(losses.len(), best + 4, "three more than the best, and no more: {losses:?}");
    assert!(losses.len() < 21, "{losses:?}");
    let adapter = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&out) == adapter(&out.join("best")));
    let last = steps(&out).last().map(|step| out.join(format!("checkpoint-{step}"))).unwrap();
    assert!(adapter(&out) != adapter(&last), "the last step is not the best");
    // And the best one's evaluation is what evaluating it gives: going on from it begins there.
    let again = dir.path().join("again");
    let flags =
        [&COMMON[..], &["--steps", "1", "--validation", str(&rows), "--adapter", str(&out), "--continue"]];
    good(train("supervised", &common::novel5m(), &data, &again, &flags.concat()));
    let first = values(&log(&again), "eval", "loss")[0];
    assert!((first - losses[best]).abs() < 1e-5, "{first}, {}", losses[best]);
}
