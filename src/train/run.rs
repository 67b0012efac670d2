//! A run from its configuration to its adapter: prepare, plan, step, save, stop and go on.

use crate::device::gpu::Graphs;
use crate::device::mapped::Mapped;
use crate::error::{Error, Message, Result, Setting, message};
use crate::format::hf::copy_side_files;
use crate::format::peft::Adapter;
use crate::memory::Arena;
use crate::model::llama::Noise;
use crate::ops::adamw::AdamW;
use crate::ops::dropout;
use crate::pretrained::open::Setup;
use crate::pretrained::settings::Settings;
use crate::tensor::Tensor;
use crate::train::adapter;
use crate::train::best::Best;
use crate::train::checkpoint::{self, Checkpoint, Losses, Moments, Named, State};
use crate::train::config::{Stage, TrainConfig};
use crate::train::folder::{Existing, Folder};
use crate::train::identity::Identity;
use crate::train::learner::Learner;
use crate::train::log::{Log, Step};
use crate::train::mntp::Outcome;
#[cfg(feature = "cli")]
use crate::train::plot;
pub use crate::train::prepare::Options;
use crate::train::prepare::{build, check_outputs, opened, plan, plan_line, share, shared};
use crate::train::ranks::Ranks;
use crate::train::resume::{HEAD, go_on, restore, resumed};
use crate::train::schedule::Schedule;
use crate::train::stage::{Feed, Loss};
use crate::train::validation::Validation;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A run that is ready for its next step.
pub struct Trainer {
    config: TrainConfig,
    setup: Setup,
    ranks: Rc<Ranks>,
    /// The first rank's.
    folder: Option<Folder>,
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
    pub fn run(self) -> Result<Losses> {
        let ranks = Rc::clone(&self.ranks);
        ranks.settle(self.steps())
    }

    fn steps(mut self) -> Result<Losses> {
        if self.step == 0 {
            self.evaluate()?;
        }
        while !self.is_over() {
            self.one_step()?;
            self.folder.as_ref().map_or(Ok(()), Folder::check)?;
            let signal = self.signal()?;
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

    /// The number of a signal that asks one of the ranks to stop, or 0.
    fn signal(&self) -> Result<u8> {
        let said = self.ranks.gather(&[self.stop.load(Ordering::Relaxed) as u32])?;
        Ok(said.concat().into_iter().max().unwrap_or(0) as u8)
    }

    /// Whether the last step is done, or no evaluation has been better for long enough.
    fn is_over(&self) -> bool {
        let patience = self.config.early_stopping_patience;
        let stale = self.best.is_some_and(|best| patience > 0 && best.since >= patience);
        stale || self.step >= self.schedule.steps as u64
    }

    /// Prepares a run: opens and checks all that it reads and writes, plans its memory, and resumes where it is to.
    pub fn open(options: Options) -> Result<Trainer> {
        let ranks = Rc::clone(&options.ranks);
        ranks.settle(Trainer::prepare(options))
    }

    fn prepare(mut options: Options) -> Result<Trainer> {
        let options = &mut options;
        let Some(output) = options.config.output_dir.as_ref().map(PathBuf::from) else {
            return Err(Error::usage(message!["training needs an ", Setting::OutputDir, " folder"]));
        };
        let ranks = Rc::clone(&options.ranks);
        let share = share(options, &output)?;
        let (setup, start) = opened(options)?;
        if ranks.is_first() {
            check_outputs(options, &setup, &output, start.as_ref().map(|(_, dir)| dir.as_path()))?;
        }
        let joined = ranks.connect(&setup.device, options.transport)?;
        let config = &options.config;
        let (mut feed, mut lines) = Feed::open(config, &setup)?;
        let validation = Validation::open(config, &setup, &feed, &mut lines)?;
        let schedule = Schedule::new(config.learning_rate, &config.plan(feed.per_epoch()))?;
        let adapter = start.as_ref().map(|(adapter, _)| adapter.clone());
        let plan = plan(config, &setup, adapter, share.clone())?;
        lines.push(plan_line(&plan).into());
        lines.extend(shared(&share).into_iter().chain(joined));

        let identity = Identity::new(config, &setup, start.as_ref().map(|(adapter, _)| adapter))?;
        if ranks.size > 1 {
            ranks.same(&fingerprints(&identity, &feed)?)?;
        }
        let (folder, saved) = claimed(&ranks, &output, options.existing, &mut lines)?;
        let saved = saved.map(|dir| resumed(&dir, &identity, &setup)).transpose()?;
        let start = first(&saved, start, (config, &setup), &mut lines);
        let (mut learner, loss) = build(&mut Arena::new(&setup.device), config, &setup, start, share)?;
        learner.load(&setup.files)?;
        if !options.graph {
            learner.graphs = Graphs::default();
        }
        let mut begun = (0, Losses::default(), None);
        if let Some(saved) = saved {
            begun = (saved.state.step, saved.state.losses, saved.state.best);
            go_on(&mut feed, &saved.state, config)?;
            restore(&mut learner, saved)?;
        }
        let (step, losses, best) = begun;
        options.log.steps = schedule.steps as u64;
        options.log.every = config.logging_steps as u64;
        let log = Log::open(&options.log, step)?;
        let config = config.clone();
        if let Some(folder) = &folder {
            folder.clear()?;
            tell(&log, &setup, &lines);
            config.save(&output)?;
        }
        Ok(Trainer {
            config,
            setup,
            ranks,
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
        self.learner.sum()?;
        let c = &self.config;
        let (rate, beta1, beta2) = (self.schedule.rate(step as usize - 1), c.adam_beta1, c.adam_beta2);
        let by = AdamW { rate, beta1, beta2, eps: c.adam_epsilon, decay: c.weight_decay, step };
        let grad_norm = self.learner.update(by, c.max_grad_norm)?;
        let loss = sum / with_rows.max(1) as f64;
        self.step = step;
        self.losses.add(loss);
        let (time, spent) = (started.elapsed(), self.ranks.spent());
        self.log.step(&Step { step, loss, grad_norm, lr: rate, tokens, time, spent })?;
        if step.is_multiple_of(self.config.eval_steps as u64) || step == self.schedule.steps as u64 {
            self.evaluate()?;
        }
        Ok(())
    }

    /// By the first rank, whose figures are everyone's.
    fn evaluate(&mut self) -> Result<()> {
        let Trainer { config, setup, validation, learner, loss, .. } = self;
        let Some(validation) = validation else { return Ok(()) };
        if let Some(folder) = &self.folder {
            let (figures, rises) = (validation.evaluate(learner, loss, config, setup)?, validation.rises());
            self.log.evaluation(self.step, &figures)?;
            let first = figures.first().map_or(f64::NAN, |figure| figure.1);
            if Best::judge(&mut self.best, self.step, first, rises) && self.config.load_best_model_at_end {
                folder.keep_best(&self.adapter()?, &self.settings())?;
            }
        }
        let told: Vec<u64> = self
            .best
            .filter(|_| self.ranks.is_first())
            .map_or(Vec::new(), |best| <[u64; 3]>::from(best).into());
        let told: Vec<u64> =
            bytemuck::pod_collect_to_vec(&self.ranks.gather(bytemuck::cast_slice(&told))?.concat());
        self.best = told.as_chunks().0.first().map(|&words| Best::from(words));
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

    /// Writes a checkpoint, which has to be that of every rank.
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
        if let Some(what) = saved.not_finite() {
            return Err(Error::Diverged { step: self.step, what });
        }
        if self.ranks.size > 1 {
            self.ranks.same(&[("what they have learned", saved.hash())])?;
        }
        let Some(folder) = &self.folder else { return Ok(()) };
        saved.save(&folder.path, self.keep()).map(drop)
    }

    /// Checkpoints to keep.
    fn keep(&self) -> usize {
        self.config.save_total_limit.unwrap_or(usize::MAX)
    }

    /// The adapter, the tokenizer's files and the picture.
    fn finish(self) -> Result<Losses> {
        let Some(folder) = &self.folder else { return Ok(self.losses) };
        // A run that was killed within its last save and resumed has nothing more to save.
        let (output, mut adapter) = (&folder.path, self.adapter()?);
        checkpoint::prune(output, self.keep())?;
        if let Some(what) = checkpoint::not_finite(&adapter) {
            return Err(Error::Diverged { step: self.step, what });
        }
        let best = self.best.filter(|_| self.config.load_best_model_at_end);
        if best.is_some_and(|best| best.step != self.step) {
            adapter = folder.best()?;
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

/// The run's folder, which is the first rank's, and the checkpoint to go on from, which all of them read.
fn claimed(
    ranks: &Ranks,
    output: &Path,
    existing: Existing,
    lines: &mut Vec<Message>,
) -> Result<(Option<Folder>, Option<PathBuf>)> {
    let folder = if ranks.is_first() { Some(Folder::claim(output, existing)?) } else { None };
    lines.extend(folder.iter().flat_map(|f| &f.warning).map(|w| format!("warning: {w}").into()));
    let newest = folder.as_ref().and_then(|folder| folder.resume.as_ref()?.file_name());
    let newest = ranks.tell(&newest.map_or(String::new(), |name| name.to_string_lossy().into_owned()))?;
    let newest = (!newest.is_empty()).then(|| output.join(newest));
    lines.extend(newest.iter().map(|dir| format!("resuming from {}", dir.display()).into()));
    Ok((folder, newest))
}

/// The adapter that the run begins with.
fn first(
    saved: &Option<Checkpoint>,
    start: Option<(Adapter, PathBuf)>,
    (config, setup): (&TrainConfig, &Setup),
    lines: &mut Vec<Message>,
) -> Adapter {
    match (saved, start) {
        (Some(saved), _) => saved.adapter.clone(),
        (None, Some((adapter, dir))) => {
            lines.push(format!("training on from {}", dir.display()).into());
            adapter
        }
        (None, None) => adapter::fresh(&setup.config, config, &setup.base_reference()),
    }
}

/// What all ranks must have alike.
fn fingerprints(identity: &Identity, feed: &Feed) -> Result<[(&'static str, [u8; 32]); 4]> {
    let hash = |bytes: &[u8]| Sha256::digest(bytes).into();
    let path = std::env::current_exe().map_err(|e| Error::device(format!("the program's own file: {e}")))?;
    let program = Mapped::open(&path)?;
    Ok([
        ("their program", hash(program.as_bytes())),
        ("their settings", hash(identity.configuration.to_string().as_bytes())),
        ("the model, adapters or files that they read", hash(identity.inputs.to_string().as_bytes())),
        ("their training data", hash(&feed.position().hash.to_le_bytes())),
    ])
}
