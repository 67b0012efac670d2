//! How good the vectors are, by tasks that people have judged: MTEB's types, on files.

pub mod bitext;
pub mod correlation;
pub mod instructions;
pub mod nearest;
pub mod pairs;
pub mod ranking;
pub mod reranking;
pub mod retrieval;
pub mod rows;
pub mod scores;
pub mod similarity;
pub mod source;
pub mod sts;
pub mod summary;
