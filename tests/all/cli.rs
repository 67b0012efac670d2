//! The real binary: what it prints, writes, refuses and leaves behind.

use crate::command;
use crate::common;

use command::*;
use common::random_adapter;
use llm2vec::format::{hf, npy};
use llm2vec::model::config::Config;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod broken;
mod encode;
mod folders;
mod inputs;
mod levels;
mod limits;
mod lines;
mod links;
mod merge;
mod peer;
mod pipes;
mod signals;

/// Every subcommand and flag is in the completions and in the manual, whose pages are one a subcommand.
#[test]
fn completions_and_manual_know_every_flag() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = good(llm2vec(&["completions", shell]));
        assert!(["matryoshka", "dimensions", "reranking"].iter().all(|word| text.contains(word)), "{shell}");
    }
    let (text, dir) = (good(llm2vec(&["man"])), folder());
    assert!(text.contains(".TH llm2vec 1") && text.contains("llm2vec\\-encode(1)"));
    good(llm2vec(&["man", "-o", str(dir.path())]));
    let page = fs::read_to_string(dir.path().join("llm2vec-train-simcse.1")).unwrap();
    assert!(page.contains("\\-\\-matryoshka"));
    failed(llm2vec(&["man", "-o", "/no/such/folder"]).output().unwrap(), 1, &["/no/such/folder"]);
    failed(llm2vec(&["completions", "tcsh"]).output().unwrap(), 2, &["tcsh"]);
}

/// A comma is a folder's as long as the folder is there; behind the comma of a list there may be a space.
#[test]
fn commas_in_paths_and_spaces_in_lists() {
    let (model, dir) = (str(&common::novel5m()).to_string(), folder());
    let inside = dir.path().join("one, two");
    fs::create_dir(&inside).unwrap();
    let (sts, vectors) = (inside.join("sts.tsv"), inside.join("v.npy"));
    fs::write(&sts, "subset\tscore\tsentence1\tsentence2\na\t1\tx\ty z\na\t2\tx y\tx y\na\t3\tz\tz z\n")
        .unwrap();
    let whole = good(llm2vec(&["eval", "sts", "-m", &model, "--data", str(&sts), "-q"]));
    let texts = inside.join("texts.txt");
    fs::write(&texts, "x\ny z\nx y\nx y\nz\nz z\n").unwrap();
    good(llm2vec(&["encode", "-m", &model, "-i", str(&texts), "-o", str(&vectors), "-q"]));
    assert_eq!(good(llm2vec(&["eval", "sts", "--vectors", str(&vectors), "--data", str(&sts)])), whole);
    let plain = dir.path().join("sts.tsv");
    fs::copy(&sts, &plain).unwrap();
    let two = format!("{0} , {0}", str(&plain));
    assert!(good(llm2vec(&["eval", "sts", "-m", &model, "--data", &two, "-q"])).contains("(all pairs)"));
    let run = inside.join("run");
    let train =
        ["train", "simcse", "-m", &model, "--data", str(&texts), "-o", str(&run), "--steps", "1", "-q"];
    let lists = ["--batch", "4", "--modules", "q_proj, v_proj", "--matryoshka", "64, 32", "-v"];
    let output = llm2vec(&[&train[..], &lists].concat()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.lines().any(|line| line == r#"lora_modules: ["q_proj","v_proj"]"#), "{said}");
}

/// What `info` says, before the work.
#[test]
fn verbose_says_what_runs() {
    let (model, dir) = (str(&common::novel5m()).to_string(), folder());
    let out = dir.path().join("v.npy");
    let run = llm2vec(&["encode", "-v", "-m", &model, "-i", prose(), "-o", str(&out)]).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    let info = good(llm2vec(&["info", "-m", &model]));
    let plan = |more: &[&str]| {
        let info = good(llm2vec(&[&["info", "-m", &model, "--train", "simcse"], more].concat()));
        let lines: Vec<String> = info
            .lines()
            .filter(|l| l.starts_with("simcse"))
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines
    };
    let (one, four) = (plan(&[]), plan(&["--ranks", "4"]));
    assert!(one.len() == 1 && one[0].starts_with("simcse memory: at most "), "{one:?}");
    assert!(four.len() == 2 && four[0] == "simcse slices: 4, on 4 ranks" && four[1] != one[0], "{four:?}");
    assert!(run.status.success() && info.lines().filter(|line| said.contains(line)).count() >= 10, "{said}");
}

/// Packed data are unpacked into the folder of temporary files, which is named as what it is where it is not there.
#[test]
fn a_missing_folder_of_temporary_files() {
    let (model, dir) = (str(&common::novel5m()).to_string(), folder());
    let (data, out) = (common::here("tests/texts/triplets.jsonl.gz"), dir.path().join("run"));
    let command =
        ["train", "supervised", "-m", &model, "--data", str(&data), "-o", str(&out), "--steps", "1"];
    let output = llm2vec(&command).env("TMPDIR", "/no/such").output().unwrap();
    failed(output, 1, &["/no/such", "folder of temporary files (TMPDIR)"]);
}
