//! Every test that needs no process of its own and no GPU, a module for each subject: `cargo test --release --test all cli::`
//! runs one.

#[path = "../common/answers.rs"]
mod answers;
#[path = "../common/command.rs"]
mod command;
#[path = "../common/mod.rs"]
mod common;

mod ablate;
mod analyze;
mod attention;
mod backward;
mod bench;
mod cli;
mod emulated;
mod eval;
mod eval_probes;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod faults;
mod formats;
mod golden;
mod gradients;
mod house;
mod kernels;
mod machine_code;
mod mine;
mod model;
mod ops;
mod shards;
mod suite;
mod tasks;
mod text;
mod tokens;
mod train_cli;
mod training;
mod training_data;
mod training_files;
mod training_ops;
mod whole;
mod words;
