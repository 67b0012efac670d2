//! The real binary: what it prints, writes, refuses and leaves behind.

#[path = "common/command.rs"]
mod command;
mod common;

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

#[path = "cli/broken.rs"]
mod broken;
#[path = "cli/encode.rs"]
mod encode;
#[path = "cli/folders.rs"]
mod folders;
#[path = "cli/inputs.rs"]
mod inputs;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/lines.rs"]
mod lines;
#[path = "cli/links.rs"]
mod links;
#[path = "cli/merge.rs"]
mod merge;
#[path = "cli/pipes.rs"]
mod pipes;
#[path = "cli/signals.rs"]
mod signals;
