//! What a PTX file's instructions are once it is read: operations whose operands are slots.

use super::copy::{Bulk, End};
use super::mbarrier::Mbar;
use super::operand::{
    Addr, AluFn, Barrier, CmpFn, Logic, Order, Pred, Proxy, Rmw, Shuffle, Space, Src, Ty, Vote,
};
use super::product::{Mma, Wgmma};

/// Whose denormal numbers become zeros of their sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nobody's.
    None,
    /// A register's f32.
    F32,
    /// A register's f16, or both of a pair.
    F16,
    /// A register's bf16, or both of a pair.
    Bf16,
}

impl Flush {
    /// What `.ftz` means for numbers of this type; `None` where it may not stand.
    pub fn of_type(ty: Ty) -> Option<Flush> {
        match ty {
            Ty::F32 => Some(Flush::F32),
            Ty::F16 | Ty::F16x2 => Some(Flush::F16),
            Ty::Bf16 | Ty::Bf16x2 => Some(Flush::Bf16),
            _ => None,
        }
    }
}

/// `.ftz`: what it does to the numbers that an operation reads, and to those that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ftz {
    /// Of the operands.
    pub reads: Flush,
    /// Of the result.
    pub gives: Flush,
}

impl Ftz {
    /// Without the modifier.
    pub const NONE: Ftz = Ftz::both(Flush::None);

    /// Operands and result of one type.
    pub const fn both(flush: Flush) -> Ftz {
        Ftz { reads: flush, gives: flush }
    }
}

/// One decoded instruction's work, by its family: each is one file of `exec`, whose matches name all of its members.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Register(RegisterOp),
    Memory(MemoryOp),
    Copy(CopyOp),
    Fence(FenceOp),
    Control(ControlOp),
    Warp(WarpOp),
    Barrier(BarrierOp),
    Group(GroupOp),
}

/// What moves bits between registers, each lane for itself.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum RegisterOp {
    /// A function of up to three registers, lane by lane. `sat`: clamped to [0, 1], of f32.
    Alu {
        f: AluFn,
        d: u32,
        s: [Src; 3],
        n: u8,
        ftz: Ftz,
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
        ftz: Flush,
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
    ActiveMask {
        d: u32,
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
}

/// Loads, stores and atomics.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum MemoryOp {
    Ld { space: Space, ty: Ty, d: [u32; 4], n: u8, addr: Addr, order: Order },
    St { space: Space, ty: Ty, s: [Src; 4], n: u8, addr: Addr, order: Order },
    Atom { space: Space, ty: Ty, f: Rmw, d: u32, addr: Addr, s: [Src; 2], order: Order },
}

/// Copies beside the warps, and waits for them.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum CopyOp {
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
    Bulk(Box<Bulk>),
    /// `cp.async.bulk.prefetch`: nothing but its rules.
    Prefetch {
        from: End,
        size: Option<Src>,
    },
    BulkCommit,
    /// Until at most so many groups are pending, or pending to be read.
    BulkWait {
        pending: u32,
        read: bool,
    },
}

/// What orders, and waits for nobody.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum FenceOp {
    Fence,
    /// What precedes is visible to the asynchronous proxy. `release`: it publishes, too.
    ProxyFence {
        proxies: &'static [Proxy],
        release: bool,
    },
    WgmmaFence,
    WgmmaCommit,
}

impl FenceOp {
    /// Whether all lanes of a warp must come to it together.
    pub fn aligned(&self) -> bool {
        match self {
            FenceOp::WgmmaFence | FenceOp::WgmmaCommit => true,
            FenceOp::Fence | FenceOp::ProxyFence { .. } => false,
        }
    }
}

/// What says where lanes go on.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum ControlOp {
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
    /// `griddepcontrol.wait`
    GridWait,
    Nop,
}

/// What lanes of a warp do together.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum WarpOp {
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
    /// `elect.sync`
    Elect {
        d: u32,
        p: u32,
        mask: Src,
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
}

impl WarpOp {
    /// Whether all lanes of a warp must come to it together; of others those that its mask names.
    pub fn aligned(&self) -> bool {
        match self {
            WarpOp::Ldmatrix { .. } | WarpOp::Stmatrix { .. } | WarpOp::Mma(_) => true,
            WarpOp::Shfl { .. } | WarpOp::Vote { .. } | WarpOp::Match { .. } => false,
            WarpOp::Redux { .. } | WarpOp::Elect { .. } => false,
        }
    }
}

/// Where lanes wait: in the warp, the block, the cluster, or at an mbarrier.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum BarrierOp {
    WarpSync { mask: Src },
    Barrier { kind: Barrier, aligned: bool, id: Src, count: Option<Src>, p: Pred, d: u32 },
    ClusterBarrier { wait: bool, aligned: bool, relaxed: bool },
    Mbarrier(Box<Mbar>),
}

/// What the four warps of a warpgroup do together.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum GroupOp {
    Wgmma(Box<Wgmma>),
    WgmmaWait {
        pending: usize,
    },
    /// `setmaxnreg`
    SetRegisters {
        count: u32,
        more: bool,
    },
}
