//! Lanes of a warp that have parted at a branch and not come together again where it joins.

/// A branch that lanes took both ways.
#[derive(Clone, Copy, Debug)]
struct Parting {
    /// The branch, and where its ways join.
    at: u32,
    join: u32,
    /// Calls that its lanes stood in.
    depth: usize,
    /// Those of one way and of the other.
    sides: [u32; 2],
    /// Those that have not yet come to the join.
    open: u32,
}

/// What has parted the lanes of a warp.
#[derive(Clone, Debug, Default)]
pub struct Partings {
    list: Vec<Parting>,
}

impl Partings {
    /// Whether nothing has.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// At the branch `at`, some of `all` go one way and the rest another; both join at an instruction of theirs.
    pub fn part(&mut self, (at, join): (u32, u32), depth: usize, some: u32, all: u32) {
        self.list.push(Parting { at, join, depth, sides: [some, all & !some], open: all });
    }

    /// Lanes come to an instruction where branches join.
    pub fn join(&mut self, lanes: u32, pc: u32, depth: usize) {
        self.list.retain_mut(|p| {
            p.open &= if (p.join, p.depth) == (pc, depth) { !lanes } else { !0 };
            p.open != 0
        });
    }

    /// A lane leaves functions, and stands in so many calls.
    pub fn leave(&mut self, lane: usize, depth: usize) {
        self.list.retain_mut(|p| {
            p.open &= if p.depth > depth { !(1 << lane) } else { !0 };
            p.open != 0
        });
    }

    /// All lanes have come together.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// The branch at which lanes parted that have not joined, and they; of those that live, all are meant.
    pub fn apart(&mut self, live: u32) -> Option<(u32, u32)> {
        // Of whom one side is gone, nobody is apart.
        self.list.retain(|p| p.sides.iter().all(|s| s & live != 0));
        self.list.iter().find(|p| p.open & live != 0).map(|p| (p.at, p.open & live))
    }
}
