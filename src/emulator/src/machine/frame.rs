//! A function's storage in a warp, and the lanes that run it together.

/// A function's storage within its warp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// First register.
    pub registers: u32,
    /// First predicate.
    pub predicates: u32,
    /// First byte of param space.
    pub param: u32,
    /// First byte of local memory.
    pub local: u32,
    /// First of the addresses of local variables.
    pub locals: u32,
    /// Which function.
    pub function: u32,
    /// Where to go on at its end.
    pub back: u32,
}

/// Lanes that run the same instruction.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Who.
    pub mask: u32,
    /// Where.
    pub pc: u32,
    /// The first counter at which others wait to be joined.
    pub stop: u32,
    /// Their function's storage.
    pub frame: Frame,
}
