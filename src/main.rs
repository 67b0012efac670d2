//! The `llm2vec` command: see `llm2vec --help`.

use clap::Parser;
use llm2vec::cli::{self, Cli};
use std::panic;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a bug, ours or a library's. It ends like any error, in one line, unless a backtrace is asked for.
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|v| v == "0") {
        panic::set_hook(Box::new(|_| {}));
    }
    let (what, status) = match panic::catch_unwind(|| cli::run(Cli::parse())) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(e)) => (e.to_string(), e.exit_code()),
        Err(panic) => {
            let what = llm2vec::error::panic_message(&*panic);
            (format!("internal: {what}; this is a bug, RUST_BACKTRACE=1 says where"), 1)
        }
    };
    // One line, whatever a file or a library put into the message.
    cli::say(format_args!("error: {}", what.replace(['\n', '\r'], " ")));
    ExitCode::from(status)
}
