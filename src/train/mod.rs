//! Training ([`run`], by `stage`): what it reads ([`data`], [`blocks`]), what it hides ([`mask`]), how it is set up ([`config`], [`schedule`]),
//! what learns ([`learner`], [`adapter`]) and from which loss ([`mntp`], [`contrastive`]), in slices ([`partials`]) that processes share ([`ranks`], gradients from GPU to GPU by [`cards`]), by what it is measured (`validation`, [`best`]), what it keeps on disk ([`checkpoint`] in a [`folder`]
//! under a [`lock`], apart from what it reads by `paths`; [`identity`] tells one run from another) and what it shows meanwhile ([`log`], `tensorboard`, and with feature `cli` a bar and a plot).
//! Before it, hard negatives for its rows by a model ([`mine`]).

pub mod adapter;
pub mod best;
pub mod blocks;
pub mod cards;
pub mod checkpoint;
pub mod config;
pub mod contrastive;
pub mod data;
pub mod folder;
pub(crate) mod forms;
pub mod identity;
pub mod instructions;
pub mod learner;
pub mod lock;
pub mod log;
pub mod mask;
pub mod mine;
pub mod mntp;
pub mod partials;
pub(crate) mod paths;
#[cfg(feature = "cli")]
pub mod plot;
pub mod prepare;
pub(crate) mod progress;
pub mod ranks;
pub(crate) mod resume;
pub(crate) mod rows;
pub mod run;
pub mod schedule;
pub(crate) mod stage;
pub(crate) mod tensorboard;
pub(crate) mod validation;
