//! `llm2vec eval words`.

use super::set;
use crate::command::{failed, folder, good, llm2vec, str};
use crate::common::{config, novel5m, random_adapter};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Sentences whose names are entities; the same words stand in both files.
fn sentences(seed: usize, count: usize) -> String {
    let people = ["Anne", "Elizabeth", "Walter", "Charles", "Mary"];
    let rest = ["walked", "to", "the", "house", "and", "would", "not", "speak", "of", "it"];
    let mut text = String::new();
    for i in 0..count {
        for j in 0..6 {
            let n = (i * 7 + j * 3 + seed) % 10;
            if j % 3 == i % 3 {
                text += &format!("{} B-PER\n", people[n % 5]);
            } else {
                text += &format!("{} O\n", rest[n]);
            }
        }
        text.push('\n');
    }
    text
}

fn data() -> (tempfile::TempDir, std::path::PathBuf) {
    set(&[("train.txt", &sentences(0, 60)), ("test.txt", &sentences(4, 20))])
}

fn run(data: &Path, more: &[&str]) -> Output {
    let model = novel5m();
    let args = ["eval", "words", "-m", str(&model), "--data", str(data), "--lr", "0.01", "--steps", "60"];
    llm2vec(&[&args[..], more].concat()).output().unwrap()
}

/// The report, and what was said.
#[track_caller]
fn report(data: &Path, more: &[&str]) -> (Value, String) {
    let dir = folder();
    let out = dir.path().join("o.json");
    let output = run(data, &[more, &["-o", str(&out)]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    (serde_json::from_slice(&fs::read(out).unwrap()).unwrap(), said)
}

#[test]
fn words_are_learnt_and_reported() {
    let (_dir, path) = data();
    let (json, said) = report(&path, &[]);
    let test = &json["report"]["layers"][0]["test"];
    assert!(test["f1"].as_f64().unwrap() > 0.95, "{test}");
    assert_eq!((test["words"].as_u64(), test["by_class"]["PER"]["support"].as_u64()), (Some(120), Some(40)));
    assert_eq!(json["report"]["classes"], serde_json::json!(["B-PER", "O"]));
    assert_eq!((&json["label_position"], &json["report"]["spans"]), (&"same".into(), &true.into()));
    assert!(said.contains("label position: same, no adapter is known to be MNTP's"), "{said}");
    assert_eq!(report(&path, &[]).0, json, "a run is not deterministic");
    assert_ne!(report(&path, &["--seed", "7"]).0["report"], json["report"]);
    for other in [["--attention", "causal"], ["--word-pooling", "first"], ["--label-position", "before"]] {
        assert_ne!(report(&path, &other).0["report"], json["report"], "{other:?}");
    }
    let stdout = String::from_utf8(run(&path, &[]).stdout).unwrap();
    let first: Vec<&str> = stdout.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(first, ["set", "accuracy", "precision", "recall", "f1", "words"]);
    assert!(stdout.lines().any(|line| line.starts_with("PER ")), "{stdout}");
}

#[test]
fn an_adapter_by_mntp_is_read_one_token_earlier() {
    let ((_dir, path), adapter) = (data(), folder());
    random_adapter(adapter.path(), &config(&novel5m()), 5);
    let stacked = ["--adapter", str(adapter.path())];
    assert_eq!(report(&path, &stacked).0["label_position"], "same");
    fs::write(adapter.path().join("train_config.json"), "{\"stage\": \"mntp\"}").unwrap();
    let (json, said) = report(&path, &stacked);
    assert_eq!(json["label_position"], "before");
    assert!(said.contains("label position: before") && said.contains("--label-position same"), "{said}");
    let asked = [&stacked[..], &["--label-position", "same"]].concat();
    assert_eq!(report(&path, &asked).0["label_position"], "same");
}

/// The keys of the reference's files for training (`true`) and for testing.
fn reference_config(training: bool, model: &str, adapter: &str, out: &str) -> Value {
    let mut all = serde_json::json!({
        "model_name_or_path": model, "peft_addr": adapter, "model_class": "custom", "bidirectional": false,
        "classifier_dropout": 0.2, "torch_dtype": "bfloat16", "attn_implementation": "flash_attention_2",
        "merge_subwords": false, "retroactive_labels": "next_token", "output_dir": out,
        "dataset_name": "conll2003", "task": "ner_tags",
    });
    let more = match training {
        true => serde_json::json!({
            "num_train_epochs": 10, "learning_rate": 0.01, "do_train": true, "save_steps": 250, "logging_steps": 50,
            "save_strategy": "steps", "do_eval": true, "eval_steps": 500, "evaluation_strategy": "steps",
            "overwrite_output_dir": true, "stop_after_n_steps": 60, "remove_unused_columns": false,
        }),
        false => serde_json::json!({ "cls_addr": "some/checkpoint-3000", "max_seq_length": 512 }),
    };
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

/// The same figures as by flags; flags win; what has no meaning is said, what is not known is refused.
#[test]
fn configurations_of_the_reference_run_as_they_are() {
    let ((_dir, data), adapter, place) = (data(), folder(), folder());
    random_adapter(adapter.path(), &config(&novel5m()), 5);
    let (file, out) = (place.path().join("config.json"), place.path().join("output/ner/bi-mntp"));
    let (model, adapter) = (novel5m(), str(adapter.path()).to_string());
    let written = |json: &Value| fs::write(&file, json.to_string()).unwrap();
    let command = ["eval", "words", "--config", str(&file)];
    let run = |more: &[&str]| llm2vec(&[&command[..], more].concat()).output().unwrap();
    let result =
        || -> Value { serde_json::from_slice(&fs::read(out.join("result_summary.json")).unwrap()).unwrap() };
    for training in [true, false] {
        let json = reference_config(training, str(&model), &adapter, str(&out));
        written(&json);
        let steps = ["--lr", "0.01", "--steps", "60"];
        let more = if training { &[][..] } else { &steps };
        let output = run(&[&["--data", str(&data)], more].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let ignored = said.lines().find(|l| l.contains("no meaning here")).unwrap();
        assert!(ignored.contains("torch_dtype") && !ignored.contains("learning_rate"), "{ignored}");
        assert!(ignored.contains(if training { "evaluation_strategy" } else { "cls_addr" }), "{ignored}");
        let by = format!("label position: before, by \"retroactive_labels\" of {}", str(&file));
        assert!(said.lines().any(|line| line == by), "{said}");
        let by_flags =
            ["--adapter", &adapter, "--attention", "causal", "--dropout", "0.2", "--word-pooling", "first"];
        let wanted =
            report(&data, &[&by_flags[..], &["--label-position", "before", "--label", "ner"]].concat()).0;
        assert_eq!(result()["report"], wanted["report"]);
        assert_eq!((&result()["label"], &result()["label_position"]), (&"ner".into(), &"before".into()));
    }
    let output =
        run(&["--data", str(&data), "--steps", "7", "--label-position", "same", "--attention", "full"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().any(|line| line == "label position: same, by --label-position"), "{said}");
    assert_eq!((&result()["probe"]["stop_after"], &result()["label_position"]), (&7.into(), &"same".into()));
    assert_eq!(
        (&result()["probe"]["dropout"], &result()["settings"]["attention"]),
        (&0.2.into(), &"full".into())
    );

    failed(run(&[]), 1, &["no data in place of \"conll2003\": give --data FOLDER"]);
    for (key, value, words) in [
        ("lerning_rate", 1.into(), &["unknown key \"lerning_rate\"", "\"learning_rate\" meant"][..]),
        ("model_class", "auto".into(), &["\"model_class\" is \"auto\"", "only \"custom\""]),
        ("num_train_epochs", 2.5.into(), &["\"num_train_epochs\" is 2.5"]),
        ("task", "pos".into(), &["\"task\" is \"pos\"", "pos_tags"]),
    ] {
        let mut json = reference_config(true, str(&model), &adapter, str(&out));
        json[key] = value;
        written(&json);
        failed(run(&["--data", str(&data)]), 1, words);
    }
}

/// Features are found again, also for other tags and by a single layer of a sweep; damaged ones are made anew.
#[test]
fn features_are_kept() {
    let ((_dir, path), cache) = (data(), folder());
    let kept = ["--cache", str(cache.path())];
    let alone = report(&path, &[]).0;
    let (first, said) = report(&path, &[&kept[..], &["--layers", "2,-1"]].concat());
    assert!(said.contains("encoded 80 texts") && !said.contains("in the cache"), "{said}");
    assert_eq!(first["report"]["layers"][1], alone["report"]["layers"][0]);
    let (again, said) = report(&path, &kept);
    assert!(said.contains("all features were in the cache"), "{said}");
    assert_eq!(again, alone);
    let (inner, said) = report(&path, &[&kept[..], &["--layer", "2"]].concat());
    assert!(said.contains("all features were in the cache"), "{said}");
    assert_eq!(inner["report"]["layers"][0], first["report"]["layers"][0]);
    assert!(report(&path, &[&kept[..], &["--attention", "causal"]].concat()).1.contains("encoded 80 texts"));

    let files = || fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().path());
    assert_eq!(files().filter(|f| f.extension().is_some_and(|e| e == "npy")).count(), 6);
    let damages: [fn(&mut Vec<u8>); 3] = [|b| b[400] ^= 1, |b| b.truncate(b.len() - 4), |b| b.clear()];
    for damage in damages {
        for file in files() {
            let mut bytes = fs::read(&file).unwrap();
            if file.extension().is_some_and(|e| e == "npy") {
                damage(&mut bytes);
                fs::write(&file, bytes).unwrap();
            }
        }
        let (again, said) = report(&path, &kept);
        assert!(said.contains("computed anew") && said.contains("encoded 80 texts"), "{said}");
        assert_eq!(again, alone);
    }
    // Of a killed run there is no second file, and of a foreign one there is nothing to read.
    for file in files().filter(|f| f.extension().is_some_and(|e| e == "json")) {
        fs::write(file, "{}").unwrap();
    }
    assert_eq!(report(&path, &kept).0, alone);
}

#[test]
fn layers_are_swept_and_drawn() {
    let ((_dir, path), out) = (data(), folder());
    let svg = out.path().join("layers.svg");
    let more = ["--layers", "0-2,-1", "--plot", str(&svg)];
    let model = novel5m();
    let args = ["eval", "words", "-q", "-m", str(&model), "--data", str(&path), "--steps", "20"];
    let stdout = good(llm2vec(&[&args[..], &more].concat()));
    let layers: Vec<&str> = stdout.lines().skip(1).map(|l| l.split_whitespace().next().unwrap()).collect();
    assert_eq!(layers, ["0", "1", "2", "6"]);
    assert!(fs::read_to_string(svg).unwrap().contains("<polyline"));
}

/// One number a word that tells everything.
#[test]
fn features_of_another_program() {
    let ((_dir, path), out) = (data(), folder());
    let rows = |name: &str, file: &str, drop: usize| {
        let text = fs::read_to_string(path.join(file)).unwrap();
        let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty()).skip(drop).collect();
        let mut bytes = llm2vec::format::npy::header("<f4", &[lines.len() as u64, 1]);
        lines.iter().for_each(|l| bytes.extend((if l.ends_with('O') { -1f32 } else { 1.0 }).to_le_bytes()));
        let path = out.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let (train, test) = (rows("train.npy", "train.txt", 0), rows("test.npy", "test.txt", 0));
    let args = ["eval", "words", "--data", str(&path), "--lr", "0.05", "--vectors", str(&train), "--vectors"];
    let stdout = good(llm2vec(&[&args[..], &[str(&test)]].concat()));
    assert!(stdout.lines().nth(1).unwrap().contains("100.00"), "{stdout}");
    let short = rows("short.npy", "test.txt", 1);
    let output = llm2vec(&[&args[..], &[str(&short)]].concat()).output().unwrap();
    failed(output, 1, &["479 rows of features, 480 were wanted", "360 of", "120 of"]);
}

#[test]
fn mistakes_are_told_in_one_line() {
    let ((_dir, path), model) = (data(), novel5m());
    let train = path.join("train.txt");
    let tell = |more: &[&str], status, words: &[&str]| {
        let output = llm2vec(&[&["eval", "words"], more].concat()).output().unwrap();
        failed(output, status, words);
    };
    let (m, data, train) = (str(&model), str(&path), str(&train));
    tell(&["--data", data], 2, &["give a model (--model DIR) or --vectors FILE"]);
    tell(&["-m", m], 2, &["--data"]);
    tell(&["-m", m, "--train", train], 2, &["--test"]);
    tell(&["-m", m, "--data", data, "-o", train], 2, &["is one of the files read"]);
    tell(&["-m", m, "--data", data, "--layers", "0-9"], 2, &["--layers 0-9", "0-6"]);
    tell(&["-m", m, "--data", data, "--layer", "9"], 2, &["--layer 9"]);
    tell(&["-m", m, "--data", data, "--label", "4"], 1, &["train.txt: line 1: there is no label \"4\"", "2"]);
    tell(&["-m", m, "--data", data, "--lr=-1"], 2, &["a rate"]);
    tell(&["-m", m, "--data", data, "--dropout", "1.5"], 1, &["dropout rate 1.5"]);
    tell(&["-m", m, "--data", data, "--batch", "0"], 2, &["at least 1"]);
}
