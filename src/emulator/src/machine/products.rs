//! What a warp knows of its `wgmma`: registers that nobody may touch until a wait covers them.

use std::collections::VecDeque;

/// What ordinary instructions and products did to a register.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// The fences before the last ordinary access, and one, and that instruction; zeros before the first.
    pub touched: (u32, u32),
    /// Products under way that write it, and that read it.
    pub flying: (u32, u32),
}

/// What a warp knows of its products.
#[derive(Clone, Debug, Default)]
pub struct Products {
    pub marks: Vec<Mark>,
    /// `wgmma.fence` so far.
    pub fences: u32,
    /// (number, instruction, first register), oldest first.
    pub flying: VecDeque<(u64, u32, u32)>,
    pub issued: u64,
    /// The last product of each group that nobody has waited for.
    pub groups: VecDeque<u64>,
}

impl Products {
    /// `wgmma.fence`: what was done to registers is over.
    pub fn fence(&mut self) {
        self.fences += 1;
    }

    /// `wgmma.commit_group`
    pub fn commit(&mut self) {
        self.groups.push_back(self.issued);
    }

    pub fn mark(&mut self, register: u32) -> &mut Mark {
        let at = register as usize;
        if self.marks.len() <= at {
            self.marks.resize(at + 1, Mark::default());
        }
        &mut self.marks[at]
    }
}
