//! Training: what a run keeps on disk and shows meanwhile.

pub mod checkpoint;
