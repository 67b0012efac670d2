//! Taking a run up where a checkpoint left it: what is in the checkpoint, and whether it is this run's.

use crate::error::{Error, Result};
use crate::pretrained::open::Setup;
use crate::train::adapter;
use crate::train::checkpoint::{Checkpoint, State};
use crate::train::config::TrainConfig;
use crate::train::data::Position;
use crate::train::identity::Identity;
use crate::train::learner::Learner;
use crate::train::stage::Feed;
use serde::Deserialize;
use std::path::Path;

/// The name of the trained head in a checkpoint.
pub const HEAD: &str = "lm_head.weight";

/// The checkpoint in `dir`, if it is this run's.
pub fn resumed(dir: &Path, identity: &Identity, setup: &Setup) -> Result<Checkpoint> {
    let saved = Checkpoint::load(dir, identity)?;
    adapter::on_its_layers(dir, &setup.files.chain)?;
    Ok(saved)
}

/// Takes the data to where the checkpoint left it, which must be where its step leaves it.
pub fn go_on(feed: &mut Feed, state: &State, config: &TrainConfig) -> Result<()> {
    let position = Position::deserialize(&state.position)
        .map_err(|e| Error::unsupported(format!("the checkpoint's data position cannot be read: {e}")))?;
    feed.seek(position)?;
    // A step ends with its epoch.
    let (size, turns) = (feed.per_epoch() as u64, config.gradient_accumulation_steps as u64);
    let steps = size.div_ceil(turns);
    let wanted = match state.step.checked_sub(1) {
        Some(before) => (before / steps, ((before % steps + 1) * turns).min(size)),
        None => (0, 0),
    };
    if (position.epoch, position.batch) != wanted {
        let Position { epoch, batch, .. } = position;
        let what = format!("the checkpoint stands at batch {batch} of epoch {epoch} of its data");
        let (step, (epoch, batch)) = (state.step, wanted);
        return Err(Error::unsupported(format!(
            "{what}, after step {step} it is batch {batch} of epoch {epoch}; delete this checkpoint to resume from the \
             one before it"
        )));
    }
    Ok(())
}

/// Puts back what the optimiser knew, and a trained head.
pub fn restore(learner: &mut Learner, saved: Checkpoint) -> Result<()> {
    let wrong =
        |name: &str| Error::unsupported(format!("the checkpoint has no {name} of the learner's shape"));
    for (i, name) in learner.names().iter().enumerate() {
        let found = saved.moments.iter().find(|s| s.name == *name);
        let [m, v] = &mut learner.moments_mut()[i];
        let found = found.filter(|s| s.shape == m.shape()).ok_or_else(|| wrong(name))?;
        m.write(&found.m)?;
        v.write(&found.v)?;
    }
    if learner.head().1.is_some() {
        let head = saved.extra.iter().find(|t| t.name == HEAD).ok_or_else(|| wrong(HEAD))?;
        let own = learner.model.weights.trained_mut().last().filter(|t| t.shape() == head.shape);
        own.ok_or_else(|| wrong(HEAD))?.write(&head.values)?;
        learner.model.weights.round_head(&learner.model.device)?;
    }
    Ok(())
}
