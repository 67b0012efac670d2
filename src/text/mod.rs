//! Text to packed token ids: tokenizer, templates, the span to pool, packs. Knows no model and no device.

pub mod pack;
pub mod prompt;
pub mod reference;
pub mod template;
pub mod tokenizer;
