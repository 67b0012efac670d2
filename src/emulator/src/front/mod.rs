//! From PTX text to instructions.

pub mod allocate;
pub mod body;
pub mod common;
pub mod decode;
pub mod decode_async;
pub mod decode_memory;
pub mod decode_mma;
pub mod decode_wgmma;
pub mod function;
pub mod joins;
pub mod lex;
pub mod parse;
pub mod parser;
pub mod shares;
