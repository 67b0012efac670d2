//! A lane's `cp.async` that it has not waited for.

/// A copy that has begun.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// Offset in shared memory.
    pub to: usize,
    /// Allocation and offset; none where nothing is read.
    pub from: Option<(usize, usize)>,
    /// Bytes written, and those of them that are read; zeros fill the rest.
    pub bytes: (usize, usize),
    /// The instruction.
    pub pc: u32,
    /// Of its thread's, from 1.
    pub number: u32,
    /// The agent that reads for it, and its time.
    pub reads: (u32, u32),
    /// By an mbarrier.
    pub tracked: bool,
}

/// A lane's copies that it has not waited for.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    pub open: Vec<Copy>,
    /// Committed, oldest first.
    pub closed: Vec<Vec<Copy>>,
    pub issued: u32,
    /// The agent that reads for them.
    pub agent: Option<u32>,
}

impl Copies {
    /// `cp.async.commit_group`
    pub fn commit(&mut self) {
        self.closed.push(std::mem::take(&mut self.open));
    }
}
