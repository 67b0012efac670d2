//! The graph, written once: configuration, weights, LoRA, state, and the Llama forward. Knows no files and no text.

pub mod config;
pub mod finite;
pub mod grads;
pub mod llama;
pub mod lora;
pub mod plan;
pub mod rope;
pub mod state;
pub mod weights;
