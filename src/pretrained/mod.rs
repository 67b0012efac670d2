//! What a model folder and its adapters say: where they are, what they weigh, how they want to be used.

pub mod chain;
pub mod export;
pub mod files;
pub mod fingerprint;
pub mod loading;
pub mod names;
pub mod open;
pub mod pooling;
pub mod sentence_transformers;
pub mod settings;
