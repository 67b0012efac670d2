//! Training: what it reads ([`data`], [`blocks`]), what it hides ([`mask`]), how it is set up ([`config`], [`schedule`]),
//! and what it keeps on disk ([`checkpoint`]).

pub mod blocks;
pub mod checkpoint;
pub mod config;
pub mod contrastive;
pub mod data;
pub mod instructions;
pub mod learner;
pub mod mask;
pub mod mntp;
pub mod rows;
pub mod schedule;
