//! What runs on a device, and what drives one: on the emulator, and on a GPU where one answers (REQUIRE_GPU=1 makes its
//! absence an error). A module for each subject: `cargo test --release --test device cases::` runs one.

#[path = "../common/answers.rs"]
mod answers;
#[path = "../common/command.rs"]
mod command;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../src/emulator/tests/conformance/ptx.rs"]
mod ptx;

mod cases;
mod driver;
mod emulator;
mod masks;
mod model;
mod nccl;
mod nvtx;
mod removals;
mod run;
mod selfcheck;
mod tuned;
