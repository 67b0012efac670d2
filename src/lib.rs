//! LLM2Vec: a decoder-only LLM as a text encoder.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod encode;
pub mod error;
pub mod eval;
pub mod format;
#[allow(unsafe_code)]
pub mod kernels;
pub mod memory;
pub mod model;
pub mod ops;
pub mod pretrained;
pub mod rng;
pub mod tensor;
pub mod text;
pub mod train;
