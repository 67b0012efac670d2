//! Text to packed token ids.
