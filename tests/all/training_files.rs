//! What a training run writes: checkpoints, the chain of adapters, logs; and how a signal stops it.

mod chain;
mod checkpoints;
mod locks;
mod logs;
mod signals;

use llm2vec::error::Result;
use llm2vec::format::peft::{Adapter, AdapterConfig, Pair};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The error's line, after a check that it has all these words.
#[track_caller]
fn refused<T>(result: Result<T>, words: &[&str]) -> String {
    let line = result.err().expect("an error was wanted").to_string();
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
    line
}

/// An adapter of rank 2 on the first layer of the shipped model, its numbers made from `seed`.
fn adapter(seed: u64) -> Adapter {
    let config = AdapterConfig {
        r: 2,
        lora_alpha: 4.0,
        use_rslora: false,
        target_modules: vec!["q_proj".into()],
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        base_model_name_or_path: None,
        lora_dropout: 0.05,
    };
    let (rank, inputs, outputs) = (2, 256, 256);
    let numbers = |seed| normal(seed, rank * inputs);
    let (a, b) = (numbers(seed), numbers(seed + 1000));
    let pair = Pair { layer: 0, module: "q_proj".into(), rank, scale: 2.0, a, b, inputs, outputs };
    Adapter { config, dir: Default::default(), pairs: vec![pair] }
}

fn normal(seed: u64, n: usize) -> Vec<f32> {
    llm2vec::rng::normal(seed, n).into_iter().map(|v| v as f32).collect()
}

/// Runs one ignored test of this file in a process of its own, which may be killed or exit as it likes.
fn child(test: &str, folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("TRAINING_FILES_FOLDER", folder);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Where a [`child`] works; `None` if the test was started by hand.
fn child_folder() -> Option<std::path::PathBuf> {
    std::env::var_os("TRAINING_FILES_FOLDER").map(Into::into)
}
