//! The emulator beside a GPU: its own kernels are run on one too, where one answers, and `llm2vec emulate` from file to file.

#[path = "common/answers.rs"]
mod answers;
#[path = "emulator/command.rs"]
mod command;
#[path = "../src/emulator/tests/conformance/ptx.rs"]
mod ptx;
#[path = "emulator/real.rs"]
mod real;
#[path = "../src/emulator/tests/conformance/suite.rs"]
mod suite;

use suite::*;

/// The emulator's own tests run more schedules.
const SEEDS: std::ops::Range<u64> = 0..4;
