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
