//! Instructions on mbarriers.

use super::operand::{Addr, Space, Src};

/// What is done to one.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum What {
    Init {
        count: Src,
    },
    Inval,
    /// Perhaps with bytes to expect; `last`: may complete the phase; `drop`: later phases count so many less.
    Arrive {
        d: u32,
        count: Option<Src>,
        tx: Option<Src>,
        drop: bool,
        last: bool,
        relaxed: bool,
    },
    Expect {
        tx: Src,
    },
    Complete {
        tx: Src,
    },
    /// For the phase of a state, or of a parity.
    Wait {
        p: u32,
        phase: Src,
        parity: bool,
        relaxed: bool,
    },
    /// `cp.async.mbarrier.arrive`; `counted`: the arrival is one of those that the phase waits for (`.noinc`).
    Copies {
        counted: bool,
    },
}

/// An instruction on mbarriers.
#[derive(Clone, Copy, Debug)]
pub struct Mbar {
    /// What.
    pub what: What,
    /// In which space the address is.
    pub space: Space,
    /// Where.
    pub addr: Addr,
}

impl Mbar {
    /// What must have a value besides its address.
    pub fn values(&self) -> [(Option<Src>, &'static str); 2] {
        let (count, bytes) = ("its number of arrivals is", "its number of bytes is");
        match self.what {
            What::Init { count: n } => [(Some(n), count), (None, bytes)],
            What::Arrive { count: n, tx, .. } => [(n, count), (tx, bytes)],
            What::Expect { tx } | What::Complete { tx } => [(None, count), (Some(tx), bytes)],
            What::Wait { phase, .. } => [(Some(phase), "the phase that it waits for is"), (None, bytes)],
            What::Inval | What::Copies { .. } => [(None, count), (None, bytes)],
        }
    }
}
