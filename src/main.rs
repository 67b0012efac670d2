//! The `llm2vec` command: see `llm2vec --help`.

use llm2vec::cli;
use llm2vec::error::{Error, panics_are_errors};
use std::panic;
use std::process::ExitCode;

/// Says in one line that memory has run out.
#[global_allocator]
static ALLOCATOR: llm2vec::device::system::Allocator =
    llm2vec::device::system::Allocator { hint: cli::LESS_MEMORY };

fn main() -> ExitCode {
    // A panic is a bug, ours or a library's. It ends like any error, in one line, unless a backtrace is asked for.
    let traced = std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0");
    let shown = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if traced && !panics_are_errors() {
            shown(panic);
        }
    }));
    let ended = panic::catch_unwind(|| cli::run(cli::parse()));
    cli::signal::settle();
    let (what, status) = match ended {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        // Said by another rank.
        Ok(Err(Error::Elsewhere { .. })) => return ExitCode::SUCCESS,
        Ok(Err(e)) => (e.message().spelled(cli::FLAGS), e.exit_code()),
        Err(panic) => {
            let what = llm2vec::error::panic_message(&*panic);
            (format!("internal: {what}; this is a bug, RUST_BACKTRACE=1 says where"), 1)
        }
    };
    cli::say(format_args!("error: {what}"));
    ExitCode::from(status)
}
