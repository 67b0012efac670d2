//! What a run opens, checks and allocates before its first step.

use crate::device::Device;
use crate::error::{Error, Message, Result, Setting, message};
use crate::format::peft::Adapter;
use crate::memory::{Arena, amount};
use crate::model::config::Attention;
use crate::model::state::Keep;
use crate::pretrained::files::fitting;
use crate::pretrained::names;
use crate::pretrained::open::{self, Compute, Setup};
use crate::text::template::NONE;
use crate::train::adapter;
use crate::train::checkpoint;
use crate::train::config::{Stage, TrainConfig};
use crate::train::folder::{self, Existing};
use crate::train::learner::{Head, Learner, Size};
use crate::train::log;
use crate::train::paths::{Outputs, inputs};
use crate::train::ranks::{Ranks, Share, Transport};
use crate::train::stage::{self, Loss, tokens};
use crate::train::validation;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// What a run is asked to do.
pub struct Options {
    /// What to train and how.
    pub config: TrainConfig,
    /// Where to compute.
    pub device: Device,
    /// How a CPU keeps frozen weights and multiplies.
    pub dtype: Compute,
    /// Stop at the first NaN or infinity in an activation or its gradient, and say where.
    pub check_finite: bool,
    /// On a GPU: queue what lies between two copies as one graph.
    pub graph: bool,
    /// What to do about a run that is there already.
    pub existing: Existing,
    /// The file that the configuration came from, which the run must leave as it is.
    pub source: Option<PathBuf>,
    /// Where the log goes; its steps are filled in here.
    pub log: log::Options,
    /// Draw loss and learning rate at the end: an SVG file, for which feature `cli` is needed.
    pub plot: Option<PathBuf>,
    /// The number of a signal that asks to stop, 0 before it comes.
    pub stop: Arc<AtomicUsize>,
    /// The processes that share the run.
    pub ranks: Rc<Ranks>,
    /// How their gradients go.
    pub transport: Transport,
}

impl Options {
    /// On the CPU in f32, into a new folder, nothing on stderr, no picture.
    pub fn new(config: TrainConfig) -> Options {
        Options {
            config,
            device: Device::cpu(),
            dtype: Compute::F32,
            check_finite: false,
            graph: true,
            existing: Existing::Refuse,
            source: None,
            log: log::Options { quiet: true, ..log::Options::default() },
            plot: None,
            stop: Arc::default(),
            ranks: Rc::default(),
            transport: Transport::default(),
        }
    }
}

/// The model with the adapters below the trained one, and the adapter to train on and its folder, if there is one.
pub(super) fn opened(options: &mut Options) -> Result<(Setup, Option<(Adapter, PathBuf)>)> {
    if cfg!(not(feature = "cli")) && options.plot.is_some() {
        let what = ": this build draws none; leave it out, or build with feature `cli`";
        return Err(Error::unsupported(message![Setting::Plot, what]));
    }
    let config = &mut options.config;
    let Some(model) = config.model_name_or_path.clone() else {
        return Err(Error::usage(message!["training needs a ", Setting::TrainModel]));
    };
    let mut below = names::split(&config.peft_model_name_or_path);
    let start = match config.continue_adapter.then(|| below.pop()) {
        Some(None) => {
            return Err({
                let (adapter, rest) = (Setting::TrainAdapters, " to train on");
                Error::usage(message![Setting::ContinueAdapter, " needs an ", adapter, rest])
            });
        }
        Some(Some(name)) => {
            let dir = names::locate(&name)?.dir;
            Some((adapter::continued(&dir, config)?, dir))
        }
        None => None,
    };
    config.validate().map_err(|invalid| Error::usage(invalid.message()))?;
    validation::check(config)?;
    let setup = Setup::open(&open::Options {
        adapters: below,
        pooling: Some(config.pooling_mode),
        attention: Some(if config.bidirectional { Attention::Full } else { Attention::Causal }),
        template: if config.stage == Stage::Simcse { Some(NONE) } else { config.template },
        max_length: Some(config.max_seq_length),
        doc_max_length: Some(config.max_seq_length),
        dtype: options.dtype,
        check_finite: options.check_finite,
        device: options.device.clone(),
        ..open::Options::new(model)
    })?;
    if !setup.steps.is_empty() {
        let what = "has modules after its pooling (Dense, truncate_dim) that training would pass over; train its base";
        return Err(Error::unsupported(format!("{}: {what}", setup.dir.display())));
    }
    stage::check_levels(config, &setup)?;
    if let Some((_, dir)) = &start {
        adapter::on_its_layers(dir, &setup.files.chain)?;
    }
    Ok((setup, start))
}

/// What a run would allocate, if there is room for it.
pub(super) fn plan(
    config: &TrainConfig,
    setup: &Setup,
    start: Option<Adapter>,
    share: Share,
) -> Result<Arena> {
    let (length, recompute) = (Setting::MaxSeqLength, Setting::GradientCheckpointing);
    let hint = match config.stage {
        Stage::Mntp => {
            let (batch, more, accumulation) = (Setting::Batch, " with more ", Setting::Accumulation);
            message!["a smaller ", batch, more, accumulation, ", a smaller ", length, ", or ", recompute]
        }
        _ => {
            let (cache, batch) = (Setting::GradCache, Setting::Batch);
            message![cache, " 32, a smaller ", batch, " or ", length, ", or ", recompute]
        }
    };
    let tokens = tokens(config);
    if tokens > i32::MAX as usize {
        return Err(Error::device(message![
            format!("the plan is for {tokens} tokens, {} is the limit; try ", i32::MAX),
            hint
        ]));
    }
    let mut arena = Arena::planning(&setup.device);
    let start = start.unwrap_or_else(|| adapter::fresh(&setup.config, config, &setup.base_reference()));
    build(&mut arena, config, setup, start, share)?;
    arena.check(hint)?;
    Ok(arena)
}

/// Everything of a run that is allocated.
pub(super) fn build(
    arena: &mut Arena,
    config: &TrainConfig,
    setup: &Setup,
    start: Adapter,
    share: Share,
) -> Result<(Learner, Loss)> {
    let deltas = fitting(&setup.config, start)?;
    let delta = |layer: usize, module: &str| deltas.get(&(layer, module.to_string()));
    let mut learner = Learner::new(arena, &setup.config, setup.mask, size(config, setup), delta);
    learner.divide(arena, share, config.gradient_accumulation_steps);
    if setup.check_finite {
        learner.state.watch(arena, &setup.config);
    }
    let loss = Loss::new(arena, config, &setup.config);
    arena.finish()?;
    Ok((learner, loss))
}

fn size(config: &TrainConfig, setup: &Setup) -> Size {
    let head = match (config.stage, config.train_head) {
        (Stage::Mntp, true) => Head::Trained,
        (Stage::Mntp, false) => Head::Frozen,
        _ => Head::None,
    };
    Size {
        tokens: tokens(config),
        positions: config.max_seq_length,
        rank: config.lora_r,
        keep: if config.gradient_checkpointing { Keep::Streams } else { Keep::All },
        storage: setup.storage,
        head,
    }
}

/// Refuses outputs that would cost an input or cannot be written. Touches nothing: a mistake must not cost the old run
/// either.
pub(super) fn check_outputs(
    options: &Options,
    setup: &Setup,
    output: &Path,
    start: Option<&Path>,
) -> Result<()> {
    folder::holds_no_model(output)?;
    let outputs = Outputs {
        folder: output,
        existing: options.existing,
        log: options.log.jsonl.as_deref(),
        plot: options.plot.as_deref(),
        tensorboard: options.log.tensorboard.as_deref(),
    };
    outputs.spare(&inputs(&options.config, setup, start, options.source.as_deref()))?;
    outputs.probe()
}

/// The line of a rank's plan, and of its slices, for a run by `config` on so many ranks. Allocates nothing.
pub fn rank_plan(config: TrainConfig, setup: &Setup, ranks: usize) -> Result<Vec<Message>> {
    let mut options = Options { ranks: Rc::new(Ranks::of(ranks)), ..Options::new(config) };
    let share = share(&mut options, Path::new(""))?;
    let plan = plan(&options.config, setup, None, share.clone())?;
    Ok(shared(&share).into_iter().chain([plan_line(&plan).into()]).collect())
}

/// How a step is shared, where it is.
pub(super) fn shared(share: &Share) -> Option<Message> {
    let Share { slices, ranks, .. } = share;
    let line = match ranks.size {
        1 if *slices == 1 => return None,
        1 => format!("slices: {slices}"),
        size => format!("slices: {slices}, on {size} ranks"),
    };
    Some(line.into())
}

pub(super) fn plan_line(plan: &Arena) -> String {
    let parts: Vec<_> =
        plan.used().iter().map(|(group, bytes)| format!("{group} {}", amount(*bytes))).collect();
    let free = plan.device.available().map_or(String::new(), |b| format!(", {} available", amount(b)));
    format!("memory: at most {} ({}){free}", amount(plan.total()), parts.join(", "))
}

/// The slices of a run that are this process's: as many in all as the configuration says, or the run that is to go on, or as
/// there are ranks; the configuration has their number from now on. Only the first rank tells.
pub(super) fn share(options: &mut Options, output: &Path) -> Result<Share> {
    let Options { config, ranks, existing, log, plot, .. } = options;
    if !ranks.is_first() {
        *log = log::Options { quiet: true, ..log::Options::default() };
        *plot = None;
    }
    let recorded = match (ranks.is_first(), *existing) {
        (true, Existing::Resume) => checkpoint::slices(output),
        _ => None,
    };
    let recorded = ranks.tell(&recorded.map_or(String::new(), |slices: usize| slices.to_string()))?;
    let slices = config.slices.or(recorded.parse().ok()).unwrap_or(ranks.size);
    if !slices.is_power_of_two() || !slices.is_multiple_of(ranks.size) {
        let what = format!(
            ": {} ranks cannot share {slices} slices alike; take 1, 2, 4, 8 ... ranks, no more than slices",
            ranks.size
        );
        return Err(Error::usage(message![Setting::Slices, what]));
    }
    config.slices = Some(slices);
    Ok(Share { slices, reduce: config.reduce, ranks: Rc::clone(ranks) })
}
