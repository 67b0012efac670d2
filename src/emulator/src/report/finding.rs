//! What the emulator reports: one block of text with everything that one needs to find the bug.

pub use crate::error::Kind;
use crate::isa::module::{Inst, Module};

/// What breaks a rule of the ISA but stands in NVIDIA's own headers and samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Habit {
    /// A plain read of the value that a loop of `atom.cas` starts from.
    FirstRead,
    /// Behind an atomic operation that has seen another block's fence and flag, and a barrier: no fence of one's own.
    LastBlock,
    /// A barrier of the block behind `mbarrier.init`, without a cluster, in place of `fence.mbarrier_init`.
    InitAndBarrier,
}

impl Habit {
    /// What a report says of it.
    pub fn words(self) -> &'static str {
        match self {
            Habit::FirstRead => "a plain first read before a loop of atom.cas, as in NVIDIA's headers",
            Habit::LastBlock => {
                "behind a flag that was read without a fence, and a barrier, as in NVIDIA's samples of last-block reductions"
            }
            Habit::InitAndBarrier => {
                "a barrier within one block in place of fence.mbarrier_init, as in NVIDIA's samples"
            }
        }
    }
}

/// What is wrong with an access, and of which kind that is.
pub type Bad = (Kind, String);

/// Where a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Block in the grid.
    pub block: [u32; 3],
    /// Thread in the block.
    pub thread: [u32; 3],
}

impl At {
    /// A thread of a block by their numbers, in a grid of blocks of these extents.
    pub fn of((grid, block): ([u32; 3], [u32; 3]), b: u32, thread: u32) -> At {
        At { block: coordinates(b, grid), thread: coordinates(thread, block) }
    }
}

/// A number's place in these extents, along x first.
pub fn coordinates(i: u32, [x, y, _]: [u32; 3]) -> [u32; 3] {
    [i % x, i / x % y, i / x / y]
}

/// The words of a race, for one of its sides and the other.
pub fn raced(write: bool, name: &str, at: usize) -> String {
    let act = if write { "writes" } else { "reads" };
    format!("race: it {act} {name}+{at} without an order to another access")
}

/// [`spelled`] as the other side.
pub fn other_access(spelled: &str) -> String {
    format!("the other access: {spelled}")
}

/// A finding.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Of which kind.
    pub kind: Kind,
    /// What happened.
    pub what: String,
    /// The kernel launched.
    pub kernel: String,
    /// `file.cu:line`.
    pub place: String,
    /// The instruction's line in the PTX.
    pub line: u32,
    /// Who.
    pub at: At,
    /// The other side of a race, who waits where, and the like.
    pub also: Vec<String>,
    /// The allocation and its byte that it found without a value.
    pub lacks: Option<(usize, usize)>,
    /// The habit of NVIDIA's that it is.
    pub habit: Option<Habit>,
}

impl Fault {
    /// A finding at an instruction; the machine adds the kernel.
    pub fn new(kind: Kind, module: &Module, inst: &Inst, at: At, what: impl Into<String>) -> Box<Fault> {
        let (what, place, line) = (what.into(), module.place(inst), inst.line);
        let (kernel, also, lacks, habit) = (String::new(), Vec::new(), None, None);
        Box::new(Fault { kind, what, kernel, place, line, at, also, lacks, habit })
    }

    /// Adds a line.
    pub fn and(mut self: Box<Fault>, also: impl Into<String>) -> Box<Fault> {
        self.also.push(also.into());
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.at.block, self.at.thread);
        write!(f, "{} in {} at {} (PTX line {})", self.kind, self.kernel, self.place, self.line)?;
        write!(f, "\n  {}\n  block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})", self.what)?;
        self.also.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        self.habit.iter().try_for_each(|habit| write!(f, "\n  {}", habit.words()))
    }
}
