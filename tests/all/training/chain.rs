//! The stages one after the other, each on the adapters of those before; and what the last one is worth to others.

use super::{Data, common, log, train, values};
use crate::command::{Tiny, failed, folder, good, llm2vec, names, off, prose, str, vectors};
use llm2vec::format::hf::{Checkpoint, read_json};
use llm2vec::format::peft::Adapter;
use llm2vec::pretrained::files::ModelFiles;
use llm2vec::pretrained::names::Located;
use llm2vec::pretrained::settings::Settings;
use safetensors::Dtype;
use serde_json::json;
use std::path::Path;

const FLAGS: [&str; 12] =
    ["--steps", "4", "--batch", "6", "--max-length", "24", "--lr", "1e-2", "--warmup", "0", "--rank", "4"];

/// What the names of the layers below an adapter are recorded as.
fn below(dir: &Path) -> Vec<String> {
    let links = Settings::read(dir).unwrap().unwrap().adapters.unwrap_or_default();
    links.into_iter().map(|link| link.name).collect()
}

fn with<'a>(adapters: &[&'a Path]) -> Vec<&'a str> {
    adapters.iter().flat_map(|a| ["--adapter", str(a)]).collect()
}

/// The paper's two ways: supervised training of a new adapter, and of SimCSE's on.
#[test]
fn the_stages_make_a_chain() {
    let (tiny, data, out) = (Tiny::new(), Data::new(60), folder());
    let model = tiny.dir.path();
    let [mntp, simcse, merged, continued] =
        ["mntp", "simcse", "merged", "continued"].map(|name| out.path().join(name));
    let run =
        |stage, to: &Path, more: &[&str]| good(train(stage, model, &data, to, &[&FLAGS, more].concat()));
    let (m, s) = (str(&mntp), str(&simcse));
    run("mntp", &mntp, &[]);
    run("simcse", &simcse, &["--adapter", m]);
    run("supervised", &merged, &["--adapter", m, "--adapter", s]);
    run("supervised", &continued, &["--adapter", m, "--adapter", s, "--continue"]);
    assert_eq!(below(&mntp), Vec::<String>::new());
    assert_eq!(below(&simcse), ["mntp"]);
    assert_eq!(below(&merged), ["mntp", "simcse"]);
    assert_eq!(below(&continued), ["mntp"]);

    let encode = ["encode", "-m", str(model), "-i", prose()];
    let rows = |adapters: &[&Path]| vectors(&[&encode[1..], &with(adapters)].concat());
    // Each layer does something.
    let all = [
        rows(&[]),
        rows(&[&mntp]),
        rows(&[&mntp, &simcse]),
        rows(&[&mntp, &simcse, &merged]),
        rows(&[&mntp, &continued]),
    ];
    for (i, a) in all.iter().enumerate() {
        all[..i].iter().for_each(|b| assert!(off(a, b) > 1e-3));
    }
    // A layer too few, in the wrong order, or too many, is an error in `encode` and in `train`.
    let npy = out.path().join("v.npy");
    let wrong: [(&[&Path], &str); 6] = [
        (&[&simcse], "mntp"),
        (&[&merged], "mntp"),
        (&[&mntp, &merged], "simcse"),
        (&[&simcse, &mntp], "mntp"),
        (&[&continued], "mntp"),
        (&[&mntp, &simcse, &continued], "continued"),
    ];
    for (adapters, word) in wrong {
        let args = [&encode[..], &with(adapters), &["-o", str(&npy)]].concat();
        failed(llm2vec(&args).output().unwrap(), 1, &["was trained on top of", word]);
        assert!(!npy.exists());
        let refused = out.path().join("refused");
        let mut train = train("supervised", model, &data, &refused, &[&FLAGS[..], &with(adapters)].concat());
        failed(train.output().unwrap(), 1, &["was trained on top of", word]);
        assert!(!refused.exists());
    }
    // So is a layer to train on without those below it.
    let refused = out.path().join("refused");
    let alone = [&FLAGS[..], &["--adapter", s, "--continue"]].concat();
    let mut alone = train("supervised", model, &data, &refused, &alone);
    failed(alone.output().unwrap(), 1, &["simcse", "was trained on top of mntp"]);
    assert!(!refused.exists());
}

/// Training on starts where the other run has ended: the first loss is that of the adapter as it was.
#[test]
fn training_on_starts_from_the_adapter() {
    let (tiny, data, out) = (Tiny::new(), Data::new(60), folder());
    let first = out.path().join("first");
    let loss = |name: &str, flags: &[&str]| {
        let (dir, common) =
            (out.path().join(name), ["--max-length", "24", "--warmup", "0", "--lora-dropout", "0"]);
        good(train("supervised", tiny.dir.path(), &data, &dir, &[&common, flags].concat()));
        values(&log(&dir), "train", "loss")
    };
    // The batch is all there is, so that every step sees the same rows.
    let taught = loss("first", &["--steps", "8", "--batch", "60", "--lr", "3e-2"]);
    let on_it = ["--steps", "1", "--batch", "60", "--adapter", str(&first)];
    let merged = loss("merged", &on_it)[0];
    let on = loss("on", &[&on_it[..], &["--continue"]].concat())[0];
    // One is merged into the weights, the other lies beside them: the same function.
    assert!((merged - on).abs() < 1e-4 * on, "{merged} {on}");
    assert!(on < 0.8 * taught[0], "{taught:?}, then {on}");
}

/// What is written is PEFT's format: names, shapes, types and keys, read back by the reader of `encode`.
#[test]
fn a_trained_adapter_is_pefts() {
    let (tiny, data, out) = (Tiny::new(), Data::new(60), folder());
    let dir = out.path().join("run");
    let flags = ["--modules", "q_proj,v_proj,down_proj", "--alpha", "6", "--lora-dropout", "0.1"];
    good(train("simcse", tiny.dir.path(), &data, &dir, &[&FLAGS[..], &flags].concat()));
    let config = common::config(tiny.dir.path());
    let modules = ["q_proj", "v_proj", "down_proj"];
    let file = Checkpoint::open_file(&dir.join("adapter_model.safetensors")).unwrap();
    let mut wanted = Vec::new();
    for layer in 0..config.layers {
        for p in config.projections().iter().filter(|p| modules.contains(&p.module)) {
            for (side, shape) in [("A", [4, p.cols]), ("B", [p.rows, 4])] {
                let name =
                    format!("base_model.model.layers.{layer}.{}.{}.lora_{side}.weight", p.group, p.module);
                let tensor = file.get(&name).unwrap_or_else(|| panic!("no {name}"));
                assert_eq!((tensor.dtype, tensor.shape.as_slice()), (Dtype::F32, &shape[..]));
                wanted.push(name);
            }
        }
    }
    let mut got: Vec<&str> = file.names().collect();
    got.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(got, wanted);
    let json = read_json(&dir.join("adapter_config.json")).unwrap();
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("r", json!(4)),
        ("lora_alpha", json!(6.0)),
        ("lora_dropout", json!(0.1)),
        ("bias", json!("none")),
        ("target_modules", json!(modules)),
    ] {
        let same = json[key] == value || json[key].as_f64().is_some_and(|x| Some(x) == value.as_f64());
        assert!(same, "{key}: {} instead of {value}", json[key]);
    }
    let adapter = Adapter::open(&dir).unwrap();
    assert_eq!(adapter.pairs.len(), 3 * config.layers);
    assert!(adapter.pairs.iter().all(|p| p.scale == 1.5 && p.b.iter().any(|&b| b != 0.0)));
    ModelFiles::open(&Located::folder(tiny.dir.path()), &config, &[Located::folder(&dir)]).unwrap();
    // The folder is a whole one: what `encode` needs beside the base.
    let have = names(&dir);
    for file in
        ["llm2vec_config.json", "tokenizer.json", "tokenizer_config.json", "train_config.json", "log.jsonl"]
    {
        assert!(have.iter().any(|name| name == file), "no {file} in {have:?}");
    }
    assert!(
        off(
            &vectors(&["-m", tiny.path(), "-i", prose(), "--adapter", str(&dir)]),
            &vectors(&["-m", tiny.path(), "-i", prose()])
        ) > 1e-4
    );
}
