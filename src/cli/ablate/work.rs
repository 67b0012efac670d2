//! The work of an ablation: its steps one after the other, those that are done left out.

use super::evaluator::Evaluator;
use super::flags::Ablate;
use super::plan::{Plan, Source, Step, Training};
use super::record::Record;
use crate::cli::{FLAGS, say};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::config::Attention;
use crate::pretrained::open;
use crate::train::config::{Stage, TrainConfig};
use crate::train::folder::Existing;
use crate::train::log;
use crate::train::run::{Options, Trainer};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// An ablation that runs.
pub struct Work<'a> {
    flags: &'a Ablate,
    plan: &'a Plan,
    record: &'a Record,
    /// Of the stages, in their order.
    configs: [TrainConfig; 3],
    device: Device,
    stop: Arc<AtomicUsize>,
    /// Warnings that were said.
    warned: RefCell<BTreeSet<String>>,
}

impl<'a> Work<'a> {
    /// Of these flags, which gave the plan and the configurations.
    pub fn new(
        flags: &'a Ablate,
        plan: &'a Plan,
        record: &'a Record,
        configs: [TrainConfig; 3],
        device: Device,
        stop: Arc<AtomicUsize>,
    ) -> Work<'a> {
        Work { flags, plan, record, configs, device, stop, warned: RefCell::default() }
    }

    /// Does what is not done yet.
    pub fn run(&self) -> Result<()> {
        let steps = self.plan.steps();
        let (mut times, mut evaluator) = (Times::default(), None::<Evaluator>);
        for (i, &step) in steps.iter().enumerate() {
            if self.is_done(step)? {
                continue;
            }
            if let signal @ 1.. = self.stop.load(Ordering::Relaxed) as u8 {
                let what = format!("{i} of {} steps are kept; the same command goes on", steps.len());
                return Err(Error::Stopped { signal, what: what.into() });
            }
            let undone = || steps[i..].iter().filter(|s| !self.is_done(**s).unwrap_or(false));
            let say_step = |what: &str| {
                let place = format!("[{}/{}]", i + 1, steps.len());
                self.say(&format!("{place} {what}{}", times.remaining(undone())));
            };
            let begun = Instant::now();
            match step {
                Step::Train(training, seed) => {
                    say_step(&format!("training {}, seed {seed}", training.name));
                    evaluator = None;
                    self.train(training, seed)?;
                }
                Step::Score(source, task) => {
                    let evaluator = match evaluator.take().filter(|e| e.source == source) {
                        Some(same) => evaluator.insert(same),
                        None => {
                            let variant = source.variant.title(source.seed);
                            say_step(&format!("{variant}, {}: evaluating", source.level()));
                            evaluator.insert(Evaluator::new(source, self.options(&source)))
                        }
                    };
                    let scores = evaluator.scores(task, self.flags, &|what| self.warn(what))?;
                    self.record.set_score(&source, task, &scores)?;
                }
            }
            times.add(step, begun.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// What is noted of every training, by folder.
    pub fn trained(&self) -> Result<BTreeMap<String, Value>> {
        let trainings = self.plan.steps().into_iter().filter_map(|step| match step {
            Step::Train(training, seed) => Some((training, seed)),
            Step::Score(..) => None,
        });
        let note = |(training, seed): (&Training, u64)| {
            Ok((format!("seed-{seed}/{}", training.name), self.record.trained(training, seed)?))
        };
        trainings.map(note).collect()
    }

    fn say(&self, line: &str) {
        if !self.flags.quiet {
            say(line);
        }
    }

    /// Says what is wrong a little, once: most of it is the same for every variant.
    fn warn(&self, what: String) {
        if self.warned.borrow_mut().insert(what.clone()) {
            self.say(&format!("warning: {what}"));
        }
    }

    fn is_done(&self, step: Step) -> Result<bool> {
        match step {
            Step::Train(training, seed) => Ok(self.record.is_trained(training, seed)),
            Step::Score(source, task) => Ok(self.record.score(&source, task)?.is_some()),
        }
    }

    /// The folders of an adapter and of those below it, from the model up.
    fn adapters(&self, chain: &[&Training], seed: u64) -> Vec<String> {
        let folder =
            |training: &&Training| self.record.adapter(training, seed).to_string_lossy().into_owned();
        chain.iter().map(folder).collect()
    }

    fn train(&self, training: &'static Training, seed: u64) -> Result<()> {
        let flags = self.flags;
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut adapters = self.adapters(&training.chain(), seed);
        let output = adapters.pop();
        let log = output.as_ref().map(|dir| Path::new(dir).join("log.jsonl"));
        let config = TrainConfig {
            model_name_or_path: Some(flags.model.clone()),
            peft_model_name_or_path: adapters,
            train_file: flags.data(training.stage).map(path),
            validation_file: flags
                .mntp_validation
                .as_deref()
                .filter(|_| training.stage == Stage::Mntp)
                .map(path),
            output_dir: output,
            seed,
            bidirectional: training.attention == Attention::Full,
            // What a file says of these is of a run of its own.
            dataset_file_path: None,
            continue_adapter: false,
            ..self.configs[training.stage as usize].clone()
        };
        let trainer = Trainer::open(Options {
            device: self.device.clone(),
            dtype: flags.dtype,
            existing: Existing::Resume,
            source: flags.config_file(training.stage).map(Path::to_path_buf),
            log: log::Options { quiet: flags.quiet, jsonl: log, spelling: FLAGS, ..log::Options::default() },
            stop: self.stop.clone(),
            ..Options::new(config)
        })?;
        let losses = trainer.run().map_err(|e| match e {
            Error::Stopped { signal, .. } => {
                let what = format!("{}, seed {seed}, is saved; the same command goes on", training.name);
                Error::Stopped { signal, what: what.into() }
            }
            other => other,
        })?;
        self.record.set_trained(training, seed, &losses)
    }

    /// What opens the encoder of a variant.
    fn options(&self, source: &Source) -> open::Options {
        let adapters = source.seed.map(|seed| self.adapters(&source.variant.chain(), seed));
        open::Options {
            adapters: adapters.unwrap_or_default(),
            pooling: source.pooling,
            attention: Some(source.variant.attention),
            dtype: self.flags.dtype,
            device: self.device.clone(),
            ..open::Options::new(self.flags.model.clone())
        }
    }
}

/// How long steps of a kind took in this process: seconds and steps.
#[derive(Default)]
struct Times(BTreeMap<String, (f64, f64)>);

impl Times {
    fn kind(step: &Step) -> String {
        match step {
            Step::Train(training, _) => training.name.into(),
            Step::Score(_, task) => task.id(),
        }
    }

    fn add(&mut self, step: Step, seconds: f64) {
        let (sum, count) = self.0.entry(Times::kind(&step)).or_default();
        (*sum, *count) = (*sum + seconds, *count + 1.0);
    }

    /// `; about 12 min left`: what steps of the same kinds took, and so a lower bound where one has not been seen.
    fn remaining<'s>(&self, steps: impl Iterator<Item = &'s Step<'s>>) -> String {
        let (mut seconds, mut unseen) = (0.0, false);
        for step in steps {
            match self.0.get(&Times::kind(step)) {
                Some((sum, count)) => seconds += sum / count,
                None => unseen = true,
            }
        }
        let about = if unseen { "more than" } else { "about" };
        match self.0.is_empty() {
            true => String::new(),
            false if seconds < 90.0 => format!("; {about} {seconds:.0} s left"),
            false => format!("; {about} {:.0} min left", seconds / 60.0),
        }
    }
}
