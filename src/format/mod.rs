//! What other tools read and write.

mod answer;
pub(crate) mod atomic;
pub mod hf;
pub mod input;
pub mod instruction;
pub(crate) mod jsonl;
pub(crate) mod keys;
pub(crate) mod lines;
pub mod npy;
mod number;
pub mod output;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod parts;
pub mod peft;
#[cfg(feature = "cli")]
pub(crate) mod svg;
pub(crate) mod table;
pub(crate) mod unpack;
pub mod vectors;
