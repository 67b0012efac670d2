//! How good the vectors are, by tasks that people have judged.

pub mod correlation;
pub mod sts;
