//! What other tools read and write.

pub(crate) mod atomic;
pub mod chain;
pub mod hf;
pub mod input;
pub mod npy;
pub mod output;
pub mod peft;
pub mod settings;
