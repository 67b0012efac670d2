//! How good the vectors are, by tasks that people have judged: MTEB's types, on files.

pub mod bitext;
pub mod classification;
pub mod clustering;
pub mod correlation;
pub mod instructions;
pub mod kmeans;
pub mod labelled;
pub mod lbfgs;
pub mod line_search;
pub mod logistic;
pub mod mersenne;
pub mod metrics;
pub mod nearest;
pub mod pairs;
pub mod probe;
pub mod ranking;
pub mod reranking;
pub mod retrieval;
pub mod rows;
pub mod sampling;
pub mod scores;
pub mod similarity;
pub mod source;
pub mod sts;
pub mod suite;
pub mod summary;
