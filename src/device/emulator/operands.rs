//! Which registers an instruction names.

use super::ptx::{NONE, Op, Src, Vote};
use std::slice::from_ref;

impl Op {
    /// Calls `f` with every general register that an ordinary instruction reads, and (true) writes. What `wgmma` holds is
    /// its own affair.
    pub fn registers(&self, f: &mut dyn FnMut(u32, bool)) {
        let none: &[Src] = &[];
        let (reads, writes): ([&[Src]; 3], &[u32]) = match self {
            Op::Alu { d, s, n, .. } => ([&s[..*n as usize], none, none], from_ref(d)),
            Op::Lop3 { d, s, .. } => ([s, none, none], from_ref(d)),
            Op::Bfi { d, s, .. } => ([s, none, none], from_ref(d)),
            Op::Carry { d, s, .. } | Op::Selp { d, s, .. } => ([s, none, none], from_ref(d)),
            Op::Pack { d, s, n, .. } => ([&s[..*n as usize], none, none], from_ref(d)),
            Op::Unpack { d, n, s, .. } => ([from_ref(s), none, none], &d[..*n as usize]),
            Op::Setp { s, .. } => ([s, none, none], &[]),
            Op::Ld { d, n, addr, .. } => ([from_ref(&addr.base), none, none], &d[..*n as usize]),
            Op::Ldmatrix { d, n, addr, .. } => ([from_ref(&addr.base), none, none], &d[..*n as usize]),
            Op::St { s, n, addr, .. } => ([&s[..*n as usize], from_ref(&addr.base), none], &[]),
            Op::Stmatrix { s, n, addr, .. } => ([&s[..*n as usize], from_ref(&addr.base), none], &[]),
            Op::Atom { d, addr, s, .. } => ([s, from_ref(&addr.base), none], from_ref(d)),
            Op::Shfl { d, s, mask, .. } => ([s, from_ref(mask), none], from_ref(d)),
            Op::Match { d, a, mask, .. } | Op::Redux { d, a, mask, .. } => {
                ([from_ref(a), from_ref(mask), none], from_ref(d))
            }
            Op::Vote { mode: Vote::Ballot, d, .. } | Op::ActiveMask { d } | Op::Elect { d, .. } => {
                ([none; 3], from_ref(d))
            }
            Op::Mma(mma) => ([&mma.a, &mma.b, &mma.c], &mma.d),
            // Addresses, numbers of barriers and the like: what a product holds gets there only through the above.
            _ => ([none; 3], &[]),
        };
        for s in reads.into_iter().flatten() {
            if let Src::Reg(r) = s {
                f(*r, false);
            }
        }
        writes.iter().filter(|d| **d != NONE).for_each(|d| f(*d, true));
    }
}
