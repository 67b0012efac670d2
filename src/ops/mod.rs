//! One file per op: its contract, its dispatch, its CPU function. An op never calls another op.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod clock;
pub mod contrastive;
pub mod dropout;
pub mod embed;
pub mod finite;
pub mod l2norm;
pub mod lora_linear;
pub mod masked_xent;
pub mod narrow;
pub mod pool;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;
