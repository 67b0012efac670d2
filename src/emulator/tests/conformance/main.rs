//! Kernels in styles of many people run clean and right under many schedules, planted bugs are found at their lines, and
//! no file makes the emulator panic.

mod calls;
mod chunks;
mod copies;
mod counted;
mod distant;
mod exact;
mod hostile;
mod ptx;
mod refused;
mod removal;
mod reports;
mod severity;
#[path = "suite.rs"]
mod suite;
mod undefined;

use suite::*;

/// Schedules that every correct kernel is run under.
const SEEDS: std::ops::Range<u64> = 0..20;

/// Here is no GPU.
mod real {
    use super::{Arg, Launch};

    pub fn also(_: &str, _: &str, _: &Launch, _: &[Arg<'_>], _: impl Fn(&[Vec<u8>])) {}
}
