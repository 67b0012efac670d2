//! Every setting of a training: what it changes, and the three ways to give it.

use super::{Place, STAGES, shipped};
use crate::command::{Raw, Tiny, failed, good, llm2vec, names, str};
use crate::common;
use clap::{Arg, ArgAction, Args};
use llm2vec::train::config::{Stage, TrainConfig};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// Key, stage, a value that is no default, and what else both runs are given.
type Row = (&'static str, &'static str, Value, Value);

fn files(place: &Place) -> Vec<Row> {
    let path = |name: &str| json!(str(&place.path(name)));
    let e5 = |more: Value| merged(&json!({"dataset_file_path": path("echo"), "max_seq_length": 96}), &more);
    // The plan is told in tenths of a GiB.
    let large = json!({"per_device_train_batch_size": 64, "max_seq_length": 512});
    vec![
        ("model_name_or_path", "simcse", path("model"), json!({})),
        ("peft_model_name_or_path", "simcse", json!([path("below")]), json!({})),
        ("continue_adapter", "simcse", json!(true), json!({"peft_model_name_or_path": path("below")})),
        ("train_file", "mntp", path("other.txt"), json!({})),
        ("dataset_file_path", "simcse", path("other.txt"), json!({})),
        ("dataset_name", "supervised", json!("E5"), e5(json!({}))),
        ("validation_file", "mntp", path("other.txt"), json!({})),
        ("instructions", "supervised", path("instructions.json"), e5(json!({}))),
        ("document_instructions", "supervised", json!(false), e5(json!({"dataset_name": "E5"}))),
        ("text_column", "simcse", json!("body"), json!({"dataset_file_path": path("columns.csv")})),
        ("strict", "supervised", json!(true), json!({"dataset_file_path": path("holes.jsonl")})),
        ("output_dir", "simcse", path("elsewhere"), json!({})),
        ("overwrite_output_dir", "simcse", json!(true), json!({})),
        ("save_steps", "simcse", json!(1), json!({})),
        ("save_total_limit", "simcse", json!(1), json!({"save_steps": 1})),
        ("eval_steps", "mntp", json!(1), json!({"validation_file": path("other.txt")})),
        (
            "load_best_model_at_end",
            "mntp",
            json!(true),
            json!({"validation_file": path("other.txt"), "eval_steps": 1}),
        ),
        (
            "early_stopping_patience",
            "mntp",
            json!(1),
            json!({"validation_file": path("other.txt"), "eval_steps": 1, "learning_rate": 1e-30}),
        ),
        // Too many for any machine, which the plan finds.
        ("per_device_eval_batch_size", "mntp", json!(1 << 24), json!({"validation_file": path("other.txt")})),
        ("logging_steps", "simcse", json!(1), json!({})),
        ("dataloader_drop_last", "simcse", json!(true), json!({"dataset_file_path": path("six.txt")})),
        ("grad_cache", "simcse", json!(2), large.clone()),
        ("gradient_checkpointing", "simcse", json!(true), large),
        (
            "mask_false_negatives",
            "supervised",
            json!(true),
            json!({"dataset_file_path": path("equal.jsonl")}),
        ),
    ]
}

fn recipe() -> Vec<Row> {
    let plain = [
        ("stop_after_n_steps", "simcse", json!(2)),
        ("max_steps", "simcse", json!(2)),
        ("num_train_epochs", "simcse", json!(0.2)),
        ("per_device_train_batch_size", "simcse", json!(5)),
        ("gradient_accumulation_steps", "simcse", json!(2)),
        ("max_seq_length", "simcse", json!(12)),
        ("learning_rate", "simcse", json!(1e-3)),
        ("warmup_steps", "simcse", json!(2)),
        ("warmup_ratio", "simcse", json!(0.5)),
        ("decay", "simcse", json!("steps")),
        ("lr_scheduler_type", "simcse", json!("cosine")),
        ("optim", "simcse", json!("adafactor")),
        ("weight_decay", "simcse", json!(0.5)),
        ("adam_beta1", "simcse", json!(0.5)),
        ("adam_beta2", "simcse", json!(0.5)),
        ("adam_epsilon", "simcse", json!(1.0)),
        ("max_grad_norm", "simcse", json!(1e-3)),
        ("seed", "simcse", json!(7)),
        ("lora_r", "simcse", json!(8)),
        ("lora_alpha", "simcse", json!(8.5)),
        ("lora_dropout", "simcse", json!(0.5)),
        ("lora_modules", "simcse", json!(["q_proj", "v_proj"])),
        ("bidirectional", "simcse", json!(false)),
        ("mlm_probability", "mntp", json!(0.5)),
        ("data_collator_type", "mntp", json!("all_mask")),
        ("mask_token_type", "mntp", json!("eos")),
        ("grouping", "mntp", json!("lines")),
        ("line_by_line", "mntp", json!(true)),
        ("train_head", "mntp", json!(true)),
        ("pooling_mode", "simcse", json!("weighted-mean")),
        ("template", "supervised", json!("llama2")),
        ("loss_class", "supervised", json!("Triplet")),
        ("loss_scale", "supervised", json!(10.0)),
        ("loss_dtype", "supervised", json!("bf16")),
        ("simcse_dropout", "simcse", json!(0.5)),
        ("hard_negatives", "supervised", json!(0)),
        ("false_negative_margin", "supervised", json!(0.0)),
        ("matryoshka_dims", "simcse", json!([32, 8])),
        ("slices", "simcse", json!(2)),
    ];
    let plain = plain.map(|(key, stage, value)| (key, stage, value, json!({})));
    let reduce = ("reduce", "simcse", json!("fast"), json!({"slices": 4}));
    let weights = ("matryoshka_weights", "simcse", json!([1.0, 0.5]), json!({"matryoshka_dims": [32, 8]}));
    plain.into_iter().chain([weights, reduce]).collect()
}

fn merged(fields: &Value, more: &Value) -> Value {
    let both = [fields, more].into_iter().flat_map(|v| v.as_object().unwrap().clone());
    both.collect::<Map<_, _>>().into()
}

fn kind(stage: &str) -> Stage {
    serde_json::from_value(json!(stage)).unwrap()
}

fn flags() -> Vec<Arg> {
    let command = TrainConfig::augment_args_for_update(clap::Command::new("train"));
    command.get_arguments().cloned().collect()
}

/// What the rows name.
fn prepared() -> Place {
    let place = Place::new();
    let mut other = Tiny::new();
    *other.tensor("model.layers.0.self_attn.q_proj.weight") = Raw::random(&[32, 32], 99);
    other.write();
    for dir in ["model", "below", "echo"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(other.file(file), place.path("model").join(file)).unwrap();
    }
    common::random_adapter(&place.path("below"), &common::config(place.tiny.dir.path()), 1);
    let rows = shipped("triplets.jsonl.gz", 16);
    place.write("echo/allnli.jsonl", &rows);
    place.write("instructions.json", &json!({"allnli": "Find what follows"}).to_string());
    place.write("holes.jsonl", &format!("{rows}nonsense\n"));
    let equal = (0..8).map(|i| format!("{}\n", json!({"query": format!("question {i}"), "positive": "yes"})));
    place.write("equal.jsonl", &equal.collect::<String>());
    let columns = (0..16).map(|i| format!("word {i},\"a body, of {i} words\"\n"));
    place.write("columns.csv", &format!("text,body\n{}", columns.collect::<String>()));
    let text = shipped("persuasion.train.txt.gz", 80);
    place.write("other.txt", &text.split_inclusive('\n').skip(40).collect::<String>());
    place.write("six.txt", &text.split_inclusive('\n').filter(|l| l.len() > 1).take(6).collect::<String>());
    place
}

/// What a run leaves to be seen: its numbers, its files, what it says of its plan, and its effective configuration.
#[derive(PartialEq)]
struct Outcome {
    seen: String,
    adapter: Option<Vec<u8>>,
    config: Option<Value>,
}

/// Runs the stage by this file, with this change of the command.
fn outcome(place: &Place, key: &str, stage: &str, file: &Value, change: impl Fn(&mut Command)) -> Outcome {
    for dir in ["run", "elsewhere"] {
        let _ = fs::remove_dir_all(place.path(dir));
    }
    let path = place.write("settings.json", &file.to_string());
    let run = || {
        let mut command = llm2vec(&["train", stage, "--config", str(&path)]);
        change(&mut command);
        command.output().unwrap()
    };
    if key == "overwrite_output_dir" {
        run();
    }
    let output = run();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let plan = stderr.lines().filter(|line| line.starts_with("memory:") || line.starts_with("error:"));
    let plan: Vec<&str> = plan.map(|line| line.split("), ").next().unwrap()).collect();
    let dir = ["run", "elsewhere"].map(|dir| place.path(dir)).into_iter().find(|dir| dir.exists());
    let Some(dir) = dir else { return Outcome { seen: format!("{plan:?}"), adapter: None, config: None } };
    let log = fs::read_to_string(dir.join("log.jsonl")).unwrap_or_default();
    let log = log.lines().map(|line| {
        let mut step: Map<String, Value> = serde_json::from_str(line).unwrap();
        step.retain(|key, _| !["tokens_per_second", "memory_mib"].contains(&key.as_str()));
        json!(step)
    });
    let mut found = names(&dir);
    found.push(dir.file_name().unwrap().to_string_lossy().into_owned());
    let log: Vec<Value> = log.collect();
    let config = fs::read(dir.join("train_config.json")).ok();
    Outcome {
        seen: format!("{plan:?} {} lines {found:?} {log:?}", stderr.lines().count()),
        adapter: fs::read(dir.join("adapter_model.safetensors")).ok(),
        config: config.map(|bytes| serde_json::from_slice(&bytes).unwrap()),
    }
}

/// A value as a flag and the environment have it.
fn spelled(value: &Value) -> String {
    match value {
        Value::Bool(false) => "causal".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(spelled).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn check(place: &Place, (key, stage, value, around): &Row) {
    let data = if *stage == "supervised" { "triplets.jsonl" } else { "train.txt" };
    let base = json!({
        "model_name_or_path": place.tiny.path(), "output_dir": str(&place.path("run")),
        "dataset_file_path": str(&place.path(data)), "per_device_train_batch_size": 4, "max_seq_length": 24,
        "stop_after_n_steps": 3, "warmup_steps": 0,
    });
    let base = merged(&base, around);
    assert_ne!(json!(TrainConfig::new(kind(stage)))[key], *value, "{key}: this is the default");
    let plain = outcome(place, key, stage, &base, |_| {});
    let by_file = outcome(place, key, stage, &merged(&base, &json!({*key: value})), |_| {});
    assert!(
        plain.adapter != by_file.adapter || plain.seen != by_file.seen,
        "{key} changes nothing: {}",
        by_file.seen
    );
    let Some(flag) = flags().into_iter().find(|arg| arg.get_id() == *key) else { return };
    let (name, text) = (format!("--{}", flag.get_long().unwrap()), spelled(value));
    let by_flag = outcome(place, key, stage, &base, |command| {
        command.arg(&name);
        if !matches!(flag.get_action(), ArgAction::SetTrue) {
            command.arg(&text);
        }
    });
    let by_variable = outcome(place, key, stage, &base, |command| {
        command.env(flag.get_env().unwrap(), &text);
    });
    for (what, got) in [("flag", by_flag), ("variable", by_variable)] {
        assert!(got.config == by_file.config, "{key} by {what}: {:?}, not {:?}", got.config, by_file.config);
        assert!(got == by_file, "{key} by {what}: {}, not {}", got.seen, by_file.seen);
    }
}

/// No setting is lost on its way, whichever way it came.
#[test]
fn every_setting_arrives() {
    let rows: BTreeSet<String> =
        [files(&Place::new()), recipe()].concat().iter().map(|r| r.0.into()).collect();
    let Value::Object(mut fields) = json!(TrainConfig::new(Stage::Mntp)) else { panic!() };
    fields.remove("stage");
    assert_eq!(rows, fields.keys().cloned().collect(), "a row for every setting");
    std::thread::scope(|s| {
        for stage in STAGES {
            s.spawn(move || {
                let place = prepared();
                let rows = [files(&place), recipe()].concat();
                rows.iter().filter(|row| row.1 == stage).for_each(|row| check(&place, row));
            });
        }
    });
}

/// The numbers in a flag's help are the defaults.
#[test]
fn help_tells_the_defaults() {
    let defaults = STAGES.map(|stage| json!(TrainConfig::new(kind(stage))));
    let mut told = 0;
    for flag in flags() {
        let help = flag.get_help().unwrap().to_string();
        let Some((_, text)) = help.split_once("[default: ") else { continue };
        let numbers = text.split([' ', ',', ']']).filter_map(|word| word.parse::<f64>().ok());
        for number in numbers {
            let key = flag.get_id().as_str();
            let real: Vec<_> = defaults.iter().filter_map(|d| d[key].as_f64()).collect();
            assert!(real.contains(&number), "{key}: {help}, but {real:?}");
            told += 1;
        }
    }
    assert!(told > 20, "{told}");
}

/// Scripts leave variables empty: that is no value. A flag goes over a variable, a variable over a file, and `false`
/// unsets what a file sets.
#[test]
fn what_goes_over_what() {
    let place = Place::new();
    let run = place.path("run");
    let config =
        place.write("config.json", &json!({"lora_r": 4, "strict": true, "decay": "steps"}).to_string());
    let saved = |flags: &[&str], variables: &[(&str, &str)]| {
        let flags = [&super::SMALL[..], &["--overwrite", "--config", str(&config)], flags].concat();
        let mut command = place.train("simcse", &place.data("simcse"), &flags);
        command.envs(variables.iter().copied());
        good(command);
        let saved: Value = serde_json::from_slice(&fs::read(run.join("train_config.json")).unwrap()).unwrap();
        (saved["lora_r"].clone(), saved["strict"].clone(), saved["decay"].clone())
    };
    assert_eq!(saved(&[], &[]), (json!(4), json!(true), json!("steps")));
    let empty =
        [("LLM2VEC_RANK", ""), ("LLM2VEC_STRICT", ""), ("LLM2VEC_DECAY", ""), ("LLM2VEC_THREADS", "")];
    assert_eq!(saved(&[], &empty), (json!(4), json!(true), json!("steps")));
    let given = [("LLM2VEC_RANK", "8"), ("LLM2VEC_STRICT", "no"), ("LLM2VEC_DECAY", "epochs")];
    assert_eq!(saved(&[], &given), (json!(8), json!(false), json!("epochs")));
    assert_eq!(saved(&["--rank", "2", "--strict"], &given), (json!(2), json!(true), json!("epochs")));
    // A mistake is told under the name that it came by.
    let mut wrong = place.train("simcse", &place.data("simcse"), &["--overwrite"]);
    wrong.env("LLM2VEC_RANK", "0");
    failed(wrong.output().unwrap(), 2, &["error: LLM2VEC_RANK is 0, at least 1 was wanted"]);
}
