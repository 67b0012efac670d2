//! One error type for the whole crate: what was got, what was wanted, what to try.

mod guard;
mod message;

pub(crate) use guard::guarded;
pub use guard::panics_are_errors;
pub(crate) use message::message;
pub use message::{Message, Setting, Spelling};

use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that can go wrong, each variant one line when displayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line (or the caller's options) makes no sense; exit status 2.
    Usage(Message),
    /// The operating system refused a file operation.
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is there, but its content is not what it should be.
    File {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        what: Message,
    },
    /// Operands of an op do not fit its contract.
    Shape {
        /// The op, as it is spelled in `ops/`.
        op: &'static str,
        /// The operand and the two shapes.
        what: String,
    },
    /// Right operands of an op that no kernel takes; the CPU does.
    Limit {
        /// The op.
        op: &'static str,
        /// The size that is too much, or fits no kernel.
        got: String,
        /// What the kernels take.
        takes: String,
    },
    /// A model, adapter or setting that this crate does not run, by name.
    Unsupported(Message),
    /// The device is missing, too small, or failed.
    Device(Message),
    /// The emulator has found a kernel, or the host, doing something wrong.
    Finding {
        /// Of which kind.
        kind: ptx_emulator::Kind,
        /// The report.
        what: String,
    },
    /// `check_finite` has found NaN or infinity.
    NotFinite(String),
    /// Training has left the finite numbers.
    Diverged {
        /// The optimiser's step, from 1.
        step: u64,
        /// The loss, or the tensor.
        what: String,
    },
    /// A signal asked the run to stop, and it did so in good order; exit status 128 + its number.
    Stopped {
        /// SIGINT, SIGTERM or SIGHUP.
        signal: u8,
        /// What was saved, and how to go on.
        what: Message,
    },
    /// An error of one of several ranks, which ends them all.
    Rank {
        /// The first to fail.
        rank: usize,
        /// Why.
        error: Box<Error>,
    },
    /// Another rank has ended the run, says why and has the exit status: one with another would be the first to be noticed
    /// by whoever started them, who then ends the rest before they have spoken.
    Elsewhere {
        /// Which.
        rank: usize,
    },
}

/// `Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An operating-system error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// What the system said of a file in the folder for temporary ones.
    pub(crate) fn temporary(e: std::io::Error) -> Error {
        let what = format!("is the folder of temporary files (TMPDIR): {e}; name one that can be written");
        Error::file(std::env::temp_dir(), what)
    }

    /// A file whose content is wrong.
    pub fn file(path: impl AsRef<Path>, what: impl Into<Message>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// Options that make no sense.
    pub fn usage(what: impl Into<Message>) -> Error {
        Error::Usage(what.into())
    }

    /// What this crate does not run.
    pub fn unsupported(what: impl Into<Message>) -> Error {
        Error::Unsupported(what.into())
    }

    /// A device that is missing, too small, or failed.
    pub fn device(what: impl Into<Message>) -> Error {
        Error::Device(what.into())
    }

    /// What it says, the settings in it still apart: for an error around it, and for whoever spells them otherwise.
    pub fn message(&self) -> Message {
        match self {
            Error::Usage(what) | Error::Unsupported(what) | Error::Device(what) => what.clone(),
            Error::Io { path, source } => format!("{}: {source}", path.display()).into(),
            Error::File { path, what } => message![format!("{}: ", path.display()), what.clone()],
            Error::Shape { op, what } => format!("{op}: {what}").into(),
            Error::Limit { op, got, takes } => format!("{op}: {got}, a GPU takes {takes}").into(),
            Error::Finding { what, .. } => what.clone().into(),
            Error::NotFinite(what) => message![Setting::CheckFinite, format!(": {what}")],
            Error::Diverged { step, what } => {
                let rest = "is not finite; the last checkpoint is kept; try a lower learning rate";
                format!("step {step}: {what} {rest}").into()
            }
            Error::Stopped { signal, what } => {
                message![format!("stopped by {}: ", signal_name(*signal)), what.clone()]
            }
            Error::Rank { rank, error } => message![format!("rank {rank}: "), error.message()],
            Error::Elsewhere { rank } => format!("ended by rank {rank}").into(),
        }
    }

    /// The process exit status this error asks for: 2 for the command line, 128 + N for signal N, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Stopped { signal, .. } => 128 + signal,
            Error::Rank { error, .. } => error.exit_code(),
            Error::Elsewhere { .. } => 0,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.message().fmt(f)
    }
}

fn signal_name(signal: u8) -> String {
    match signal {
        1 => "SIGHUP".into(),
        2 => "SIGINT".into(),
        15 => "SIGTERM".into(),
        other => format!("signal {other}"),
    }
}

/// No line to a person is longer, in characters.
const LINE_CHARS: usize = 2000;

/// What a message says, as one line that a terminal shows as it is: names of files and their contents can hold anything.
///
/// Line ends become spaces, other control characters and those that turn the direction of writing their escapes, and
/// the middle of a very long line is left out.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => line.push(' '),
            c if c.is_control() || is_invisible(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    let chars = line.chars().count();
    if chars <= LINE_CHARS {
        return line;
    }
    // The start says where, the end what to try.
    let (start, end) = (LINE_CHARS / 2, LINE_CHARS / 4);
    let head: String = line.chars().take(start).collect();
    let tail: String = line.chars().skip(chars - end).collect();
    format!("{head} [{} characters left out] {tail}", chars - start - end)
}

/// Unicode's marks of direction, its line and paragraph ends, and others without a shape of their own.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// What a caught panic said.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}
