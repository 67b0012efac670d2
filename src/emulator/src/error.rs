//! What can go wrong: the words say what was got and what was wanted.

/// Everything that the emulator refuses or reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A launch, or a module, that makes no sense.
    Usage(String),
    /// PTX that cannot be read.
    Ptx {
        /// The name that the file was given.
        file: String,
        /// What is wrong with it, in which line.
        what: String,
    },
    /// What a kernel did wrong, or the host with the emulator's memory.
    Finding(String),
}

/// `Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A file that cannot be read.
    pub(crate) fn ptx(file: &str, what: impl Into<String>) -> Error {
        Error::Ptx { file: file.into(), what: what.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Usage(what) | Error::Finding(what) => f.write_str(what),
            Error::Ptx { file, what } => write!(f, "{file}: {what}"),
        }
    }
}

impl std::error::Error for Error {}
