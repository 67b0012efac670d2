//! Training: what it reads ([`data`], [`blocks`]), what it hides ([`mask`]), how it is set up ([`config`], [`schedule`]),
//! what learns ([`learner`]) and from which loss ([`mntp`], [`contrastive`]), what it keeps on disk ([`checkpoint`]) and
//! what it shows meanwhile ([`log`], [`plot`], [`tensorboard`]).

pub mod blocks;
pub mod checkpoint;
pub mod config;
pub mod contrastive;
pub mod data;
pub mod instructions;
pub mod learner;
pub mod log;
pub mod mask;
pub mod mntp;
pub mod plot;
pub mod rows;
pub mod schedule;
pub mod tensorboard;
