//! What instructions work on: registers, predicates, addresses, and the words that say how.

/// The lanes of a warp.
pub const LANES: usize = 32;

/// The lanes of a mask.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros();
        (rest != 0).then(|| {
            rest &= rest - 1;
            lane as usize
        })
    })
}

/// One register of a whole warp: 32 lanes of up to 64 bits, zero-extended.
pub type Lanes = [u64; LANES];

/// A slot that is written nowhere (`_`), or a predicate that is not there.
pub const NONE: u32 = u32::MAX;

/// The fundamental types, by what an instruction does with the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Ty {
    Pred,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

impl Ty {
    /// Reads a type as it is spelled after the dot; untyped bits are unsigned.
    pub fn parse(text: &str) -> Option<Ty> {
        Some(match text {
            "pred" => Ty::Pred,
            "b8" | "u8" => Ty::U8,
            "b16" | "u16" => Ty::U16,
            "b32" | "u32" | "tf32" => Ty::U32,
            "b64" | "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub fn size(self) -> usize {
        match self {
            Ty::Pred | Ty::U8 | Ty::S8 => 1,
            Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::U32 | Ty::S32 | Ty::F16x2 | Ty::Bf16x2 | Ty::F32 => 4,
            Ty::U64 | Ty::S64 | Ty::F64 => 8,
        }
    }

    /// Whether the sign extends it.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Src {
    /// A register of the running function.
    Reg(u32),
    /// A constant of the module.
    Const(u32),
    /// A value of the launch: special registers, then addresses of variables.
    Env(u32),
    /// The address of a local variable of the running function.
    Local(u32),
}

/// A predicate operand: a slot, perhaps negated, or a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pred {
    /// Slot and negation.
    Reg(u32, bool),
    /// Always so.
    Const(bool),
    /// A value of the launch: true where it is not zero.
    Env(u32),
}

/// `[base + offset]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Addr {
    /// The register or variable.
    pub base: Src,
    /// Bytes.
    pub offset: i64,
}

/// State spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Generic,
    Global,
    Const,
    Shared,
    /// Any block's of the cluster.
    Cluster,
    Local,
    Param,
}

/// How an access takes part in the memory model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Not torn and not a race with others of its kind: volatile, relaxed, atomics.
    pub strong: bool,
    /// What follows stays behind it.
    pub acquire: bool,
    /// What precedes stays before it.
    pub release: bool,
}

/// Read-modify-write operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rmw {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// Logic on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Logic {
    Mov,
    Not,
    And,
    Or,
    Xor,
}

/// `shfl` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `vote` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// What a block barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Barrier {
    Sync,
    Arrive,
    RedAnd,
    RedOr,
    RedPopc,
}

/// What a proxy fence is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// Bytes of shared memory.
    Shared,
    /// Bytes of global memory.
    Global,
    /// The initial state of mbarriers.
    Mbarriers,
}

/// Three source registers to one. Lanes that are masked off are computed and thrown away, so nothing may trap.
pub type AluFn = fn(&Lanes, &Lanes, &Lanes, &mut Lanes);

/// Two source registers to a mask of lanes.
pub type CmpFn = fn(&Lanes, &Lanes) -> u32;
