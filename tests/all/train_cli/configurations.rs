//! The reference's train_configs, and what a configuration asks for that a stage does not do.

use super::{Place, SMALL, STAGES, reference, shipped};
use crate::command::{failed, good, llm2vec, names, str};
use crate::common;
use llm2vec::train::config::{Stage, TrainConfig};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Stage and family of each file, with the model that it names, and an adapter below.
const FILES: [(&str, &str, &str, &str); 14] = [
    ("mntp", "Sheared-Llama", "princeton-nlp/Sheared-LLaMA-1.3B", ""),
    ("mntp", "Llama2", "meta-llama/Llama-2-7b-chat-hf", ""),
    ("mntp", "Mistral", "mistralai/Mistral-7B-Instruct-v0.2", ""),
    ("mntp", "MetaLlama3", "meta-llama/Meta-Llama-3-8B-Instruct", ""),
    ("mntp", "MetaLlama3.1", "meta-llama/Meta-Llama-3.1-8B-Instruct", ""),
    ("simcse", "Sheared-Llama", "princeton-nlp/Sheared-LLaMA-1.3B", "LLM2Vec-Sheared-LLaMA-mntp"),
    ("simcse", "Llama2", "meta-llama/Llama-2-7b-chat-hf", "LLM2Vec-Llama-2-7b-chat-hf-mntp"),
    ("simcse", "Mistral", "mistralai/Mistral-7B-Instruct-v0.2", "LLM2Vec-Mistral-7B-Instruct-v2-mntp"),
    ("simcse", "MetaLlama3", "meta-llama/Meta-Llama-3-8B-Instruct", "LLM2Vec-Meta-Llama-3-8B-Instruct-mntp"),
    ("supervised", "Sheared-Llama", "princeton-nlp/Sheared-LLaMA-1.3B", "LLM2Vec-Sheared-LLaMA-mntp"),
    ("supervised", "Llama2", "meta-llama/Llama-2-7b-chat-hf", "LLM2Vec-Llama-2-7b-chat-hf-mntp"),
    ("supervised", "Mistral", "mistralai/Mistral-7B-Instruct-v0.2", "LLM2Vec-Mistral-7B-Instruct-v2-mntp"),
    (
        "supervised",
        "MetaLlama3",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "LLM2Vec-Meta-Llama-3-8B-Instruct-mntp",
    ),
    (
        "supervised",
        "MetaLlama3.1",
        "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "output/mntp/Meta-Llama-3.1-8B-Instruct",
    ),
];

/// What the file of a stage and family holds, to the digit.
fn file(place: &Place, (stage, family, model, below): (&str, &str, &str, &str)) -> Value {
    let mut json = reference(stage, place);
    json["model_name_or_path"] = json!(model);
    json["output_dir"] = json!(format!("output/{stage}/{family}"));
    match stage {
        "mntp" if family == "Mistral" => {
            json["mlm_probability"] = json!(0.8);
            json["data_collator_type"] = json!("all_mask");
        }
        "mntp" => {}
        "simcse" => json["dataset_file_path"] = json!("cache/wiki1m_for_simcse.txt"),
        _ => json["dataset_file_path"] = json!("cache/echo-data"),
    }
    if !below.is_empty() {
        let hub = if below.contains('/') { below.into() } else { format!("McGill-NLP/{below}") };
        json["peft_model_name_or_path"] = json!(hub);
    }
    json
}

/// A folder of this content under a hub's name in the cache of `place`, or at a path below it.
fn cached(place: &Place, name: &str, fill: impl Fn(&Path)) {
    let at = match name.matches('/').count() {
        1 => {
            let root = place.path("hf/hub").join(format!("models--{}", name.replace('/', "--")));
            fs::create_dir_all(root.join("refs")).unwrap();
            fs::write(root.join("refs/main"), "0123456789").unwrap();
            root.join("snapshots/0123456789")
        }
        _ => place.path(name),
    };
    if !at.exists() {
        fs::create_dir_all(&at).unwrap();
        fill(&at);
    }
}

/// Every one is taken as it stands, and starts on the models and adapters that it names, which are in the cache.
#[test]
fn the_references_files_are_taken_unchanged_and_start() {
    let place = Place::new();
    place.write("train.txt", &shipped("persuasion.train.txt.gz", 1000));
    fs::create_dir(place.path("echo")).unwrap();
    place.write("echo/nq.jsonl", &shipped("triplets.jsonl.gz", 16));
    for case in FILES {
        let (stage, family, model, _) = case;
        let json = file(&place, case);
        let path = place.write("reference.json", &json.to_string());
        let kind = match stage {
            "mntp" => Stage::Mntp,
            "simcse" => Stage::Simcse,
            _ => Stage::Supervised,
        };
        let (config, ignored) = TrainConfig::read(&path, kind).unwrap();
        let read = json!(config);
        for (key, value) in json.as_object().unwrap() {
            let same = match (&read[key], value) {
                (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
                (Value::Array(a), b) => a == std::slice::from_ref(b),
                (a, b) => a == b,
            };
            assert!(same || ignored.contains(key), "{stage}/{family}: {key} {value}");
        }
        let data = place.path(if stage == "supervised" { "echo" } else { "train.txt" });
        let tiny = place.tiny.dir.path();
        cached(&place, model, |at| {
            for name in names(tiny) {
                fs::copy(tiny.join(&name), at.join(&name)).unwrap();
            }
        });
        if let Some(name) = json["peft_model_name_or_path"].as_str() {
            cached(&place, name, |at| common::random_adapter(at, &common::config(tiny), 1));
        }
        let run = place.path("run");
        let mut args = vec!["train", stage, "--config", str(&path), "-o", str(&run)];
        // Room for the template, which follows the name, and for E5's instructions.
        let small = SMALL.map(|flag| if flag == "24" { "64" } else { flag });
        args.extend(["--data", str(&data)].iter().chain(&small));
        let mut command = llm2vec(&args);
        command.current_dir(place.path(".")).env("HF_HOME", place.path("hf"));
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stage}/{family}: {stderr}");
        assert_eq!(place.log().len(), 3);
        // The data that it names is another's, which is said once.
        let said = stderr.matches("\"wikitext\" is not downloaded").count();
        assert_eq!(said, usize::from(stage == "mntp"), "{stderr}");
    }
}

/// What a stage cannot do is refused, not dropped.
#[test]
fn settings_of_another_stage() {
    let place = Place::new();
    let with = |stage: &str, fields: Value, flags: &[&str]| -> Command {
        let config = place.write("config.json", &fields.to_string());
        place.train(stage, &place.data(stage), &[&SMALL[..], &["--config", str(&config)], flags].concat())
    };
    let refused = |stage: &str, fields: Value, words: &[&str]| {
        failed(with(stage, fields, &[]).output().unwrap(), 1, &[&["config.json"], words].concat());
    };
    for stage in ["mntp", "simcse"] {
        refused(
            stage,
            json!({"template": "llama2"}),
            &["\"template\" is \"llama2\"", "only supervised", "remove"],
        );
        let run = with(stage, json!({"template": "none"}), &["--grouping", "lines", "--overwrite"]);
        good(run);
    }
    fs::remove_dir_all(place.path("run")).unwrap();
    for stage in STAGES {
        place.refused(
            stage,
            &place.data(stage),
            &["--keep-best"],
            2,
            &["--keep-best goes by", "--validation"],
        );
        place.refused(
            stage,
            &place.data(stage),
            &["--early-stopping", "2"],
            2,
            &["--early-stopping goes by"],
        );
    }
    refused(
        "simcse",
        json!({"dataset_name": "E5"}),
        &["\"dataset_name\" is \"E5\"", "\"Wiki1M\", a text a line"],
    );
    refused(
        "supervised",
        json!({"dataset_name": "Wiki1M"}),
        &["\"Wiki1M\"", "this one's is \"E5\", rows of JSON"],
    );
    refused("supervised", json!({"template": 5}), &["\"template\" is 5"]);
    refused("supervised", json!({"template": "nobody"}), &["\"template\" is \"nobody\"", "llama2"]);
    refused("simcse", json!({"pooling_mode": "max"}), &["\"pooling_mode\" is \"max\"", "weighted-mean"]);
    // A name alone is no data.
    for (stage, name) in [("mntp", "wikitext"), ("simcse", "cc"), ("supervised", "mine")] {
        let config = place.write("config.json", &json!({"dataset_name": name}).to_string());
        let run = place.path("run");
        let args = ["train", stage, "-m", place.tiny.path(), "-o", str(&run), "--config", str(&config)];
        failed(llm2vec(&args).output().unwrap(), 2, &[name, "is not downloaded", "--data"]);
    }
}

/// A template in the configuration is the one that is trained with, and recorded.
#[test]
fn a_supervised_template_is_used() {
    let place = Place::new();
    let adapter = |fields: Value| {
        let config = place.write("config.json", &fields.to_string());
        let flags = [&SMALL[..], &["--warmup", "0", "--overwrite", "--config", str(&config)]].concat();
        good(place.train("supervised", &place.data("supervised"), &flags));
        let settings = fs::read(place.path("run/llm2vec_encoder.json")).unwrap();
        let settings: Value = serde_json::from_slice(&settings).unwrap();
        (settings["template"].clone(), fs::read(place.path("run/adapter_model.safetensors")).unwrap())
    };
    let plain = adapter(json!({}));
    let changed = adapter(json!({"template": "llama2"}));
    assert_eq!((plain.0, changed.0), (json!("none"), json!("llama2")));
    assert!(changed.1 != plain.1);
}
