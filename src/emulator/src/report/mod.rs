//! What is found and what is counted.

pub mod counters;
pub mod finding;
