//! An mbarrier: phases, arrivals, bytes.

use super::clock::Clock;

/// Arrivals or bytes that a phase can count: what the ISA gives.
pub const MOST: i64 = (1 << 20) - 1;

/// An mbarrier.
#[derive(Clone, Debug)]
pub struct Mbarrier {
    /// Arrivals of a phase.
    pub count: u32,
    /// Of them those that the current phase still lacks.
    pub pending: u32,
    /// Bytes expected less bytes arrived.
    pub tx: i64,
    /// Phases that are over: counted on from an earlier mbarrier at this place, which had `base`.
    pub phases: u32,
    pub base: u32,
    /// Its number among the agents.
    pub agent: u32,
    /// What those know who have arrived, and what they knew when the last phase ended.
    pub arrived: Clock,
    pub done: Clock,
}

impl Mbarrier {
    /// Who waits for the phase that is under way hears of an agent's time.
    pub fn hears(&mut self, (agent, time): (u32, u32)) {
        self.arrived.heard(agent, time);
    }
}
