//! What the paper asks of states without anybody's judgement: how far they are the same under a causal and under full
//! attention ([`similarity`]), whether a prefix knows what follows ([`prefix`]), how narrow a cone they fill
//! ([`anisotropy`]).
//!
//! Rows are those of a text's own tokens, of all layers in one pass; cosines are f64. The mask is whatever the encoder has:
//! who calls sets it and calls again.

pub mod anisotropy;
#[cfg(feature = "cli")]
pub mod plot;
pub mod prefix;
pub mod similarity;
