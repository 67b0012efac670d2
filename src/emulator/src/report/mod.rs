//! What is found and what is counted.

pub mod checks;
pub mod counters;
pub mod finding;
