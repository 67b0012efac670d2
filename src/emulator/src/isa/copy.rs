//! Bulk copies as instructions.

use super::operand::{Addr, Rmw, Src, Ty};

/// One end of a bulk copy.
#[derive(Clone, Debug)]
pub enum End {
    /// Global memory.
    Global(Addr),
    /// Shared memory of the cluster.
    Shared(Addr),
    /// A box of a tensor: the map's address, and coordinates.
    Box(Addr, Vec<Src>),
    /// Registers of a type.
    Registers(Vec<Src>, Ty),
}

/// A bulk copy as an instruction.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// From where.
    pub from: End,
    /// To where.
    pub to: End,
    /// Bytes, unless the other operands say it.
    pub size: Option<Src>,
    /// The mbarrier that is told; none: the thread's bulk group is.
    pub mbarrier: Option<Addr>,
    /// Ranks that get it, a bit for each.
    pub mask: Option<Src>,
    /// Added, or the like, to what is there. A tensor's elements have their own type.
    pub reduce: Option<(Rmw, Option<Ty>)>,
}
