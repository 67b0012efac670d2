//! What can go wrong: the words say what was got and what was wanted.

/// The kinds of finding, each with a word of its own: [`Kind::word`] gives it, `str::parse` reads it, and a report begins
/// with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Outside every allocation, or of shared memory that the cluster does not have.
    OutOfBounds,
    /// At no multiple of what the instruction takes.
    Misaligned,
    /// Memory that is freed, constant, or an mbarrier, or that the instruction does not take.
    Access,
    /// Memory or a register that nothing has written.
    Uninitialised,
    /// Two accesses without an order, one of them a write.
    Race,
    /// A write that the asynchronous proxy cannot see yet.
    Fence,
    /// A barrier or a warp-wide instruction that not all come to, or an mbarrier that is misused.
    Barrier,
    /// Nobody can go on.
    Deadlock,
    /// What a warpgroup did wrong: `wgmma`, `setmaxnreg`.
    Warpgroup,
    /// More instructions than allowed.
    Budget,
    /// `assert` has failed.
    Assert,
    /// `trap`, or something that is not modelled.
    Trap,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
        Kind::OutOfBounds,
        Kind::Misaligned,
        Kind::Access,
        Kind::Uninitialised,
        Kind::Race,
        Kind::Fence,
        Kind::Barrier,
        Kind::Deadlock,
        Kind::Warpgroup,
        Kind::Budget,
        Kind::Assert,
        Kind::Trap,
    ];

    /// Its word, which stays.
    pub fn word(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out-of-bounds",
            Kind::Misaligned => "misaligned",
            Kind::Access => "access",
            Kind::Uninitialised => "uninitialised",
            Kind::Race => "race",
            Kind::Fence => "fence",
            Kind::Barrier => "barrier",
            Kind::Deadlock => "deadlock",
            Kind::Warpgroup => "warpgroup",
            Kind::Budget => "budget",
            Kind::Assert => "assert",
            Kind::Trap => "trap",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.word())
    }
}

impl std::str::FromStr for Kind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Kind> {
        let found = Kind::ALL.into_iter().find(|kind| kind.word() == word);
        let words = Kind::ALL.map(Kind::word).join(", ");
        found.ok_or_else(|| Error::Usage(format!("{word}: no kind of finding; there are: {words}")))
    }
}

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
    Finding {
        /// Of which kind.
        kind: Kind,
        /// The report.
        what: String,
    },
}

/// `Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A file that cannot be read.
    pub(crate) fn ptx(file: &str, what: impl Into<String>) -> Error {
        Error::Ptx { file: file.into(), what: what.into() }
    }

    /// A finding's kind.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Error::Finding { kind, .. } => Some(*kind),
            Error::Usage(_) | Error::Ptx { .. } => None,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Usage(what) | Error::Finding { what, .. } => f.write_str(what),
            Error::Ptx { file, what } => write!(f, "{file}: {what}"),
        }
    }
}

impl std::error::Error for Error {}
