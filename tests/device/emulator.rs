//! The emulator beside a GPU: its own kernels are run on one too, where one answers, and `llm2vec emulate` from file to file.

use crate::ptx;

mod command;
mod real;
#[path = "../../src/emulator/tests/conformance/suite.rs"]
mod suite;

use suite::*;

/// The emulator's own tests run more schedules.
const SEEDS: std::ops::Range<u64> = 0..4;
