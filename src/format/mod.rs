//! What other tools read and write.

pub(crate) mod atomic;
pub mod hf;
pub mod input;
pub mod npy;
pub mod output;
pub mod peft;
