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
