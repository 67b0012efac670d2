//! The `llm2vec` command: see `llm2vec --help`.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match llm2vec::cli::run(llm2vec::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // One line, whatever a file or a library put into the message.
            llm2vec::cli::say(format_args!("error: {}", e.to_string().replace(['\n', '\r'], " ")));
            ExitCode::from(e.exit_code())
        }
    }
}
