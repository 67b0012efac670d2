//! A run from its configuration to its adapter: prepare, plan, step, save, stop and go on.

use crate::device::Device;
use crate::device::gpu::Graphs;
use crate::error::{Error, Message, Result, Setting, message};
use crate::format::hf::copy_side_files;
use crate::format::peft::Adapter;
use crate::memory::{Arena, amount};
use crate::model::config::Attention;
use crate::model::llama::Noise;
use crate::model::state::Keep;
use crate::ops::adamw::AdamW;
use crate::ops::dropout;
use crate::pretrained::files::fitting;
use crate::pretrained::names;
use crate::pretrained::open::{self, Compute, Setup};
use crate::pretrained::settings::Settings;
use crate::tensor::Tensor;
use crate::text::template::NONE;
use crate::train::adapter;
use crate::train::best::Best;
use crate::train::checkpoint::{self, Checkpoint, Losses, Moments, Named, State};
use crate::train::config::{Stage, TrainConfig};
use crate::train::folder::{self, Existing, Folder};
use crate::train::identity::Identity;
use crate::train::learner::{Head, Learner, Size};
use crate::train::log::{self, Log, Step};
use crate::train::mntp::Outcome;
use crate::train::paths::{Outputs, inputs};
#[cfg(feature = "cli")]
use crate::train::plot;
use crate::train::resume::{HEAD, go_on, restore, resumed};
use crate::train::schedule::Schedule;
use crate::train::stage::{self, Feed, Loss, tokens};
use crate::train::validation::{self, Validation};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

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
        }
    }
}

/// A run that is ready for its next step.
pub struct Trainer {
    config: TrainConfig,
    setup: Setup,
    folder: Folder,
    identity: Identity,
    feed: Feed,
    schedule: Schedule,
    learner: Learner,
    loss: Loss,
    losses: Losses,
    validation: Option<Validation>,
    best: Option<Best>,
    /// Steps done.
    step: u64,
    log: Log,
    #[cfg(feature = "cli")]
    plot: Option<PathBuf>,
    stop: Arc<AtomicUsize>,
}

impl Trainer {
    /// Trains, or trains on, until the last step or a signal; gives the losses of the whole run.
    ///
    /// Errors before the first step leave no trace but the output folder; later ones keep the last checkpoint.
    pub fn run(mut self) -> Result<Losses> {
        if self.step == 0 {
            self.evaluate()?;
        }
        while !self.is_over() {
            self.one_step()?;
            self.folder.check()?;
            let signal = self.stop.load(Ordering::Relaxed) as u8;
            let (due, over) = (self.step.is_multiple_of(self.config.save_steps as u64), self.is_over());
            if signal != 0 || due || over {
                self.save()?;
            }
            if signal != 0 && !over {
                self.log.finish();
                let what = message![format!("step {} is saved; ", self.step), Setting::Resume, " goes on"];
                return Err(Error::Stopped { signal, what });
            }
        }
        self.finish()
    }

    /// Whether the last step is done, or no evaluation has been better for long enough.
    fn is_over(&self) -> bool {
        let patience = self.config.early_stopping_patience;
        let stale = self.best.is_some_and(|best| patience > 0 && best.since >= patience);
        stale || self.step >= self.schedule.steps as u64
    }

    /// Prepares a run: opens and checks all that it reads and writes, plans its memory, and resumes where it is to.
    pub fn open(mut options: Options) -> Result<Trainer> {
        let options = &mut options;
        let Some(output) = options.config.output_dir.as_ref().map(PathBuf::from) else {
            return Err(Error::usage(message!["training needs an ", Setting::OutputDir, " folder"]));
        };
        let (setup, start) = opened(options)?;
        check_outputs(options, &setup, &output, start.as_ref().map(|(_, dir)| dir.as_path()))?;
        let config = &options.config;
        let (mut feed, mut lines) = Feed::open(config, &setup)?;
        let validation = Validation::open(config, &setup, &feed, &mut lines)?;
        let schedule = Schedule::new(config.learning_rate, &config.plan(feed.per_epoch()))?;
        let plan = plan(config, &setup, start.as_ref().map(|(adapter, _)| adapter.clone()))?;
        lines.push(plan_line(&plan).into());

        let identity = Identity::new(config, &setup, start.as_ref().map(|(adapter, _)| adapter))?;
        let folder = Folder::claim(&output, options.existing)?;
        lines.extend(folder.warning.iter().map(|w| format!("warning: {w}").into()));
        let saved = match &folder.resume {
            Some(dir) => {
                lines.push(format!("resuming from {}", dir.display()).into());
                Some(resumed(dir, &identity, &setup)?)
            }
            None => None,
        };
        let start = match (&saved, start) {
            (Some(saved), _) => saved.adapter.clone(),
            (None, Some((adapter, dir))) => {
                lines.push(format!("training on from {}", dir.display()).into());
                adapter
            }
            (None, None) => adapter::fresh(&setup.config, config, &setup.base_reference()),
        };
        let (mut learner, loss) = build(&mut Arena::new(&setup.device), config, &setup, start)?;
        learner.load(&setup.files)?;
        if !options.graph {
            learner.graphs = Graphs::default();
        }
        let (mut step, mut losses, mut best) = (0, Losses::default(), None);
        if let Some(saved) = saved {
            (step, losses, best) = (saved.state.step, saved.state.losses, saved.state.best);
            go_on(&mut feed, &saved.state, config)?;
            restore(&mut learner, saved)?;
        }
        options.log.steps = schedule.steps as u64;
        options.log.every = config.logging_steps as u64;
        let log = Log::open(&options.log, step)?;
        folder.clear()?;
        tell(&log, &setup, &lines);
        let config = config.clone();
        config.save(&output)?;
        Ok(Trainer {
            config,
            setup,
            folder,
            identity,
            feed,
            schedule,
            learner,
            loss,
            losses,
            validation,
            best,
            step,
            log,
            #[cfg(feature = "cli")]
            plot: options.plot.take(),
            stop: options.stop.clone(),
        })
    }

    /// One step of the optimiser: every batch of it, the update, the log, and the evaluation if it is due.
    fn one_step(&mut self) -> Result<()> {
        let (started, step) = (Instant::now(), self.step + 1);
        // A step ends with its epoch.
        let turns = self.config.gradient_accumulation_steps.min(self.feed.left());
        let (mut sum, mut with_rows, mut tokens) = (0.0, 0usize, 0);
        for turn in 0..turns {
            let noise = self.noise(step, tokens);
            let Trainer { config, setup, feed, learner, loss, .. } = self;
            let Outcome { loss, rows, tokens: n, .. } =
                feed.learn(learner, loss, (config, setup), &noise, turn, 1.0 / turns as f64)?;
            tokens += n as u64;
            sum += loss;
            with_rows += usize::from(rows > 0);
            if !loss.is_finite() {
                return Err(Error::Diverged { step, what: format!("the loss ({loss})") });
            }
        }
        let c = &self.config;
        let (rate, beta1, beta2) = (self.schedule.rate(step as usize - 1), c.adam_beta1, c.adam_beta2);
        let by = AdamW { rate, beta1, beta2, eps: c.adam_epsilon, decay: c.weight_decay, step };
        let grad_norm = self.learner.update(by, c.max_grad_norm)?;
        let loss = sum / with_rows.max(1) as f64;
        self.step = step;
        self.losses.add(loss);
        self.log.step(&Step { step, loss, grad_norm, lr: rate, tokens, time: started.elapsed() })?;
        if step.is_multiple_of(self.config.eval_steps as u64) || step == self.schedule.steps as u64 {
            self.evaluate()?;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let Trainer { config, setup, validation, learner, loss, .. } = self;
        let Some(validation) = validation else { return Ok(()) };
        let (figures, rises) = (validation.evaluate(learner, loss, config, setup)?, validation.rises());
        self.log.evaluation(self.step, &figures)?;
        let first = figures.first().map_or(f64::NAN, |figure| figure.1);
        if Best::judge(&mut self.best, self.step, first, rises) && self.config.load_best_model_at_end {
            self.folder.keep_best(&self.adapter()?, &self.settings())?;
        }
        Ok(())
    }

    fn noise(&self, step: u64, first: u64) -> Noise {
        let c = &self.config;
        let attention = if c.stage == Stage::Simcse { c.simcse_dropout } else { 0.0 };
        Noise { attention, lora: c.lora_dropout, seed: c.seed, step: step as u32, first }
    }

    fn adapter(&self) -> Result<Adapter> {
        adapter::trained(
            &self.setup.config,
            &self.config,
            &self.setup.base_reference(),
            &self.learner.model.weights,
        )
    }

    /// How the adapter wants to be used. The training's lengths are none of it (Q-S2: the reference records them, and
    /// what was trained on 128 tokens silently encodes 128).
    fn settings(&self) -> Settings {
        let template = (self.config.stage == Stage::Supervised).then(|| self.setup.template.to_string());
        Settings {
            max_length: None,
            doc_max_length: None,
            normalize: None,
            template,
            ..self.setup.settings()
        }
    }

    fn save(&mut self) -> Result<()> {
        self.log.sync()?;
        let f32s = |t: &Tensor| Ok(t.read_f32()?.into_owned());
        let names = self.learner.names();
        let moments = names.iter().zip(self.learner.moments()).map(|(name, [m, v])| {
            Ok(Moments { name: name.clone(), shape: m.shape().to_vec(), m: f32s(m)?, v: f32s(v)? })
        });
        let head =
            self.learner.model.weights.trained_head().map(|head| {
                Ok(Named { name: HEAD.into(), shape: head.shape().to_vec(), values: f32s(head)? })
            });
        let saved = Checkpoint {
            state: State {
                step: self.step,
                seed: self.config.seed,
                masks: dropout::FORMAT,
                position: json!(self.feed.position()),
                configuration: self.identity.configuration.clone(),
                inputs: self.identity.inputs.clone(),
                losses: self.losses,
                best: self.best,
            },
            adapter: self.adapter()?,
            settings: self.settings(),
            extra: head.into_iter().collect::<Result<_>>()?,
            moments: moments.collect::<Result<_>>()?,
        };
        match saved.not_finite() {
            Some(what) => Err(Error::Diverged { step: self.step, what }),
            None => saved.save(&self.folder.path, self.keep()).map(|_| ()),
        }
    }

    /// Checkpoints to keep.
    fn keep(&self) -> usize {
        self.config.save_total_limit.unwrap_or(usize::MAX)
    }

    /// The adapter, the tokenizer's files and the picture.
    fn finish(self) -> Result<Losses> {
        // A run that was killed within its last save and resumed has nothing more to save.
        let (output, mut adapter) = (&self.folder.path, self.adapter()?);
        checkpoint::prune(output, self.keep())?;
        if let Some(what) = checkpoint::not_finite(&adapter) {
            return Err(Error::Diverged { step: self.step, what });
        }
        let best = self.best.filter(|_| self.config.load_best_model_at_end);
        if best.is_some_and(|best| best.step != self.step) {
            adapter = self.folder.best()?;
        }
        copy_side_files(&self.setup.dir, output)?;
        checkpoint::write_adapter(output, &adapter, &self.settings())?;
        #[cfg(feature = "cli")]
        if let Some(path) = &self.plot {
            plot::draw(path, &self.log.points, &self.log.evaluations)?;
        }
        let Losses { first, last, steps, sum, .. } = self.losses;
        let mean = sum / steps.max(1) as f64;
        let of = best.map_or(String::new(), |best| format!(" of step {}", best.step));
        self.log.finish();
        self.log.line(&format!(
            "{steps} steps: loss {first:.4} at the first, {last:.4} at the last, {mean:.4} on average; adapter{of} in {}",
            output.display()
        ));
        Ok(self.losses)
    }
}

/// What a run says before its first step.
fn tell(log: &Log, setup: &Setup, lines: &[Message]) {
    setup.warnings.iter().for_each(|w| log.line(&format!("warning: {w}")));
    setup.device.kernels().iter().for_each(|kernels| log.line(&format!("kernels: {kernels}")));
    lines.iter().for_each(|line| log.message(line));
}

/// The model with the adapters below the trained one, and the adapter to train on and its folder, if there is one.
fn opened(options: &mut Options) -> Result<(Setup, Option<(Adapter, PathBuf)>)> {
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
fn plan(config: &TrainConfig, setup: &Setup, start: Option<Adapter>) -> Result<Arena> {
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
    build(&mut arena, config, setup, start)?;
    arena.check(hint)?;
    Ok(arena)
}

/// Everything of a run that is allocated.
fn build(arena: &mut Arena, config: &TrainConfig, setup: &Setup, start: Adapter) -> Result<(Learner, Loss)> {
    let deltas = fitting(&setup.config, start)?;
    let delta = |layer: usize, module: &str| deltas.get(&(layer, module.to_string()));
    let mut learner = Learner::new(arena, &setup.config, setup.mask, size(config, setup), delta);
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
fn check_outputs(options: &Options, setup: &Setup, output: &Path, start: Option<&Path>) -> Result<()> {
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

fn plan_line(plan: &Arena) -> String {
    let parts: Vec<_> =
        plan.used().iter().map(|(group, bytes)| format!("{group} {}", amount(*bytes))).collect();
    let free = plan.device.available().map_or(String::new(), |b| format!(", {} available", amount(b)));
    format!("memory: at most {} ({}){free}", amount(plan.total()), parts.join(", "))
}
