//! What a PTX file's instructions are once it is read: operations whose operands are slots.

use super::alu::{AluFn, CmpFn};
use super::bulk::Bulk;
use super::mbarrier::Mbar;
use super::race::Proxy;
use super::tensor::Mma;
use super::wgmma::Wgmma;

pub use super::module::{Function, Inst, Loc, Module, Variable};

/// The lanes of a warp.
pub const LANES: usize = 32;
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

/// One decoded instruction's work.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    /// A function of up to three registers, lane by lane. `ftz`: denormal f32 are zeros; `sat`: clamped to [0, 1].
    Alu {
        f: AluFn,
        d: u32,
        s: [Src; 3],
        n: u8,
        ftz: bool,
        sat: bool,
    },
    Lop3 {
        d: u32,
        s: [Src; 3],
        table: u8,
    },
    /// `bfi`, with its bits.
    Bfi {
        d: u32,
        s: [Src; 4],
        bits: u8,
    },
    /// `add.cc`, `addc`, `sub.cc`, `subc`.
    Carry {
        wide: bool,
        subtract: bool,
        takes: bool,
        gives: bool,
        d: u32,
        s: [Src; 2],
    },
    /// Several registers into one, `bits` each.
    Pack {
        d: u32,
        s: [Src; 4],
        n: u8,
        bits: u8,
    },
    /// One register into several.
    Unpack {
        d: [u32; 4],
        n: u8,
        s: Src,
        bits: u8,
    },
    Setp {
        f: CmpFn,
        p: u32,
        q: u32,
        s: [Src; 2],
        combine: Option<(Logic, Pred)>,
        ftz: bool,
    },
    Selp {
        d: u32,
        s: [Src; 2],
        p: Pred,
        bits: u8,
    },
    Logic {
        f: Logic,
        d: u32,
        a: Pred,
        b: Pred,
    },
    Ld {
        space: Space,
        ty: Ty,
        d: [u32; 4],
        n: u8,
        addr: Addr,
        order: Order,
    },
    St {
        space: Space,
        ty: Ty,
        s: [Src; 4],
        n: u8,
        addr: Addr,
        order: Order,
    },
    Atom {
        space: Space,
        ty: Ty,
        f: Rmw,
        d: u32,
        addr: Addr,
        s: [Src; 2],
        order: Order,
    },
    Bra {
        to: u32,
    },
    Brx {
        table: u32,
        index: Src,
    },
    Call {
        function: u32,
        args: Vec<(u32, u32, u32)>,
        results: Vec<(u32, u32, u32)>,
    },
    Ret,
    Exit,
    Trap,
    Nop,
    Barrier {
        kind: Barrier,
        aligned: bool,
        id: Src,
        count: Option<Src>,
        p: Pred,
        d: u32,
    },
    WarpSync {
        mask: Src,
    },
    Mbarrier(Box<Mbar>),
    Bulk(Box<Bulk>),
    BulkCommit,
    /// Until at most so many groups are pending, or pending to be read.
    BulkWait {
        pending: u32,
        read: bool,
    },
    /// `mapa`: a rank's address of shared memory.
    Mapa {
        d: u32,
        s: [Src; 2],
    },
    /// `getctarank`
    Rank {
        d: u32,
        s: Src,
    },
    /// What precedes is visible to the asynchronous proxy. `release`: it publishes, too.
    ProxyFence {
        proxies: &'static [Proxy],
        release: bool,
    },
    ClusterBarrier {
        wait: bool,
        aligned: bool,
        relaxed: bool,
    },
    Shfl {
        mode: Shuffle,
        d: u32,
        p: u32,
        s: [Src; 3],
        mask: Src,
    },
    Vote {
        mode: Vote,
        d: u32,
        a: Pred,
        mask: Src,
    },
    Match {
        all: bool,
        bits: u8,
        d: u32,
        p: u32,
        a: Src,
        mask: Src,
    },
    Redux {
        f: Rmw,
        signed: bool,
        d: u32,
        a: Src,
        mask: Src,
    },
    ActiveMask {
        d: u32,
    },
    Fence,
    CpAsync {
        to: Addr,
        from: Addr,
        size: u8,
        source: Option<Src>,
    },
    CpCommit,
    /// Waits until at most so many groups are pending; `all`: of what is not committed, too.
    CpWait {
        pending: u32,
        all: bool,
    },
    /// `n` matrices of 8 x 8 b16.
    Ldmatrix {
        d: [u32; 4],
        n: u8,
        trans: bool,
        addr: Addr,
    },
    /// The reverse.
    Stmatrix {
        s: [Src; 4],
        n: u8,
        trans: bool,
        addr: Addr,
    },
    Mma(Box<Mma>),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        pending: usize,
    },
    /// `setmaxnreg`
    SetRegisters {
        count: u32,
        more: bool,
    },
    /// `elect.sync`
    Elect {
        d: u32,
        p: u32,
        mask: Src,
    },
}
