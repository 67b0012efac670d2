//! The tasks as the command runs them: on sets made here, and on real ones against scikit-learn's figures.

use crate::common::{here, novel5m};
use llm2vec::eval::{classification, clustering};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn eval(task: &str, data: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm2vec"));
    command.env("LLM2VEC_DEVICE", "cpu").args(["eval", task, "--quiet", "--data"]).arg(data);
    command.arg("--model").arg(novel5m()).args(flags).output().unwrap()
}

fn scores(task: &str, data: &Path, flags: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scores.json");
    let output = eval(task, data, &[flags, &["--output", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["scores"].clone()
}

fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
    dir
}

const TRAIN: &str = r#"{"text": "Rain fell upon the roof.", "label": 1}
{"text": "A storm of rain came down.", "label": 1}
{"text": "He dined on bread and cheese.", "label": 0}
{"text": "She ate an apple.", "label": 0}
"#;
const TEST: &str = r#"{"text": "The rain was heavy.", "label": 1, "set": "b"}
{"text": "They ate their supper.", "label": 0, "set": "b"}
{"text": "Clouds and rain.", "label": 1, "set": "a"}
"#;

#[test]
fn small_sets_by_the_command() {
    let dir = written(&[("train.jsonl", TRAIN), ("test.jsonl", TEST)]);
    let got = scores("classification", dir.path(), &[]);
    assert_eq!(
        (got["train"].as_u64(), got["test"].as_u64(), got["labels"].as_u64()),
        (Some(4), Some(3), Some(2))
    );
    assert_eq!(got["main_score"], got["accuracy"]);
    assert!(got["ap"].is_f64() && got["f1_weighted"].is_f64(), "{got}");
    // One row each of two labels in part b, and one label in part a: both are told apart without an error.
    let got = scores("clustering", dir.path(), &["--repeats", "2"]);
    assert_eq!((got["v_measure"].as_f64(), got["rows"].as_u64()), (Some(1.0), Some(3)));
    assert_eq!(got["subsets"]["a"]["labels"], 1);
}

/// Features that say the label, and features that say nothing.
#[test]
fn figures_of_known_features() {
    let train: Vec<String> = (0..40).map(|i| format!(r#"{{"text": "t", "label": "l{}"}}"#, i % 4)).collect();
    let test: Vec<String> = (0..30).map(|i| format!(r#"{{"text": "t", "label": "l{}"}}"#, i % 3)).collect();
    let dir = written(&[("train.jsonl", &train.join("\n")), ("test.jsonl", &test.join("\n"))]);
    let data = classification::DataSet::read(dir.path()).unwrap();
    let known = |n: usize, k: usize| -> Vec<f32> {
        (0..n).flat_map(|i| (0..4).map(move |c| if c == i % k { 10.0 } else { 0.0 })).collect()
    };
    let options = classification::Options::default();
    let good = classification::evaluate(&data, [&known(40, 4), &known(30, 3)], 4, options).unwrap();
    assert_eq!((good.mean.accuracy, good.mean.f1, good.labels), (1.0, 1.0, 4));
    assert_eq!((good.scores_per_experiment.len(), good.mean.ap), (10, None));
    let bad = classification::evaluate(&data, [&[1.0; 160], &[1.0; 120]], 4, options).unwrap();
    assert!((bad.mean.accuracy - 1.0 / 3.0).abs() < 1e-12, "{bad:?}");

    let data = clustering::DataSet::read(dir.path()).unwrap();
    let good = clustering::evaluate(&data, &known(30, 3), 4, clustering::Options::default()).unwrap();
    assert_eq!((good.v_measure, good.v_measures.len(), good.sets[0].v_measures.len()), (1.0, 1, 10));
    let bad = clustering::evaluate(&data, &[1.0; 120], 4, clustering::Options::default()).unwrap();
    assert_eq!(bad.v_measure, 0.0);
}

#[test]
fn what_is_no_set_is_refused() {
    let one = TRAIN.replace(": 0}", ": 1}");
    for (task, files, flags, words) in [
        ("classification", vec![("test.jsonl", TEST)], vec![], vec!["train.jsonl"]),
        ("classification", vec![("train.jsonl", &*one), ("test.jsonl", TEST)], vec![], vec!["one label"]),
        ("clustering", vec![("train.jsonl", TRAIN)], vec![], vec!["test.jsonl"]),
        ("clustering", vec![("test.jsonl", "{\"text\": \"a\"}\n")], vec![], vec!["line 1", "label"]),
        ("clustering", vec![("test.jsonl", TEST)], vec!["--repeats", "0"], vec!["at least 1"]),
    ] {
        let dir = written(&files);
        let output = eval(task, dir.path(), &flags);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{task} {words:?}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

/// Figures x 100 by scikit-learn on vectors of the same model: what stops at 100 steps within 0.5, what converges within 0.1.
#[test]
fn figures_equal_scikit_learn() {
    let dir = here("../shared/data");
    if !dir.is_dir() {
        println!("skipped: no ../shared");
        return;
    }
    let model = ["--attention", "full", "--pool-over", "all"];
    for (set, samples, figures) in [
        ("banking77", "8", vec![("accuracy", 50.56, 0.5), ("f1", 50.45, 0.5)]),
        ("banking77", "16", vec![("accuracy", 62.26, 0.5), ("f1", 62.32, 0.5)]),
        (
            "sms-spam",
            "8",
            vec![
                ("accuracy", 90.62, 0.1),
                ("f1", 83.22, 0.1),
                ("ap", 56.13, 0.1),
                ("ap_of_scores", 80.96, 0.1),
            ],
        ),
        (
            "sms-spam",
            "16",
            vec![
                ("accuracy", 91.47, 0.1),
                ("f1", 84.51, 0.1),
                ("ap", 58.78, 0.1),
                ("ap_of_scores", 86.15, 0.1),
            ],
        ),
    ] {
        let flags = [&model[..], &["--samples-per-label", samples]].concat();
        let got = scores("classification", &dir.join("classification").join(set), &flags);
        for (name, wanted, tolerance) in figures {
            let got = 100.0 * got[name].as_f64().unwrap();
            println!("{set}, {samples} per label: {name} {got:.3}, {wanted} was wanted");
            assert!((got - wanted).abs() <= tolerance, "{set}, {samples}: {name} {got}, {wanted} was wanted");
        }
    }
    let got = scores("clustering", &dir.join("clustering/stackoverflow"), &model);
    // The draws are scikit-learn's, so the figures are closer than its seeds are to one another (0.5 to 0.8).
    for (part, wanted) in [("so-0", 13.78), ("so-1", 7.90), ("so-2", 11.53)] {
        let got = 100.0 * got["subsets"][part]["v_measure"].as_f64().unwrap();
        println!("{part}: {got:.3}, {wanted} was wanted");
        assert!((got - wanted).abs() <= 0.3, "{part}: {got}, {wanted} was wanted");
    }
}
