//! One file per op: its contract, its dispatch, its CPU function. An op never calls another op.

pub mod attention;
pub mod embed;
pub mod l2norm;
pub mod lora_linear;
pub mod pool;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;
