//! The flags of `eval words`, and under them what `--config` says.

use super::Flags;
use crate::cli::say;
use crate::encode::tokens::WordPooling;
use crate::encode::words::LabelPosition;
use crate::error::{Error, Result};
use crate::eval::words::config::{RetroactiveLabels, WordConfig};
use crate::format::keys;
use crate::model::config::Attention;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};
use std::collections::BTreeSet;
use std::path::Path;

/// The file of the scores in a configuration's `output_dir`, as the reference's.
const RESULT: &str = "result_summary.json";

/// A parsed command line.
pub struct Words {
    flags: Flags,
    /// The arguments that were given, by flag or environment, and have no default's value.
    given: BTreeSet<String>,
}

impl Args for Words {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

impl FromArgMatches for Words {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Words, clap::Error> {
        let own = [Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable)];
        let given = matches.ids().map(|id| id.as_str()).filter(|id| own.contains(&matches.value_source(id)));
        Ok(Words { flags: Flags::from_arg_matches(matches)?, given: given.map(String::from).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        Words::from_arg_matches(matches).map(|words| *self = words)
    }
}

impl Words {
    /// Runs the command.
    pub fn run(mut self) -> Result<()> {
        if let Some(path) = self.flags.config.clone() {
            let (config, ignored) = WordConfig::read(&path)?;
            if !ignored.is_empty() && !self.flags.quiet {
                say(format_args!(
                    "warning: {}: no meaning here: {}",
                    path.display(),
                    keys::explained(&ignored)
                ));
            }
            self.fill(config, &path)?;
        }
        self.flags.run()
    }

    /// Sets what was not given as the configuration says.
    fn fill(&mut self, config: WordConfig, path: &Path) -> Result<()> {
        let Words { flags, given } = self;
        let free = |id: &str| !given.contains(id);
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let full = |full: bool| Some(if full { Attention::Full } else { Attention::Causal });
        let model = &mut flags.model.options;
        set(free("model"), &mut model.model, config.model_name_or_path);
        set(free("adapters"), &mut model.adapters, some(config.peft_addr));
        set(free("attention"), &mut model.attention, config.bidirectional.map(full));
        set(free("max_length"), &mut model.max_length, config.max_seq_length.map(Some));

        if free("data") && free("train") {
            let files = config.train_file.is_some();
            set(files, &mut flags.train, Some(config.train_file));
            set(files && free("validation"), &mut flags.validation, Some(config.validation_file));
            if !files || free("test") {
                let name = config.dataset_name.map_or(String::new(), |name| format!(" in place of {name:?}"));
                let what = format!("no data{name}: give --data FOLDER, or --train FILE and --test FILE");
                return Err(Error::file(path, what));
            }
        }
        let before = |labels| match labels {
            RetroactiveLabels::SameToken => Some(LabelPosition::Same),
            RetroactiveLabels::NextToken => Some(LabelPosition::Before),
        };
        let pooling = |mean: bool| if mean { WordPooling::Mean } else { WordPooling::First };
        set(free("label"), &mut flags.label, config.task.map(|task| Some(task.label().to_string())));
        if let Some(labels) = config.retroactive_labels.filter(|_| free("label_position")) {
            flags.label_position = before(labels);
            flags.position_by = Some(format!("by \"retroactive_labels\" of {}", path.display()));
        }
        set(free("word_pooling"), &mut flags.word_pooling, config.merge_subwords.map(pooling));

        let probe = &mut flags.probe;
        set(free("epochs"), &mut probe.epochs, config.num_train_epochs.map(|n| n as usize));
        set(free("stop_after"), &mut probe.stop_after, config.stop_after_n_steps);
        set(free("batch"), &mut probe.batch, config.per_device_train_batch_size);
        set(free("rate"), &mut probe.rate, config.learning_rate);
        set(free("decay"), &mut probe.decay, config.weight_decay);
        set(free("max_grad_norm"), &mut probe.max_grad_norm, config.max_grad_norm);
        set(free("dropout"), &mut probe.dropout, config.classifier_dropout);
        set(free("seed"), &mut probe.seed, config.seed);

        if let Some(dir) = config.output_dir.filter(|_| free("output")) {
            flags.output = Some(dir.join(RESULT));
            flags.folder = Some(dir);
        }
        Ok(())
    }
}

fn set<T>(free: bool, field: &mut T, value: Option<T>) {
    if let Some(value) = value.filter(|_| free) {
        *field = value;
    }
}
