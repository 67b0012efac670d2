//! Training: what a run keeps on disk and shows meanwhile.

pub mod checkpoint;
pub mod log;
pub mod plot;
pub mod tensorboard;
