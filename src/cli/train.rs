//! `llm2vec train`: the three stages of the recipe.

use crate::cli::{FLAGS, KernelSetFlags, engine, is_verbose, say, signal};
use crate::error::{Error, Result, message};
use crate::format::keys;
use crate::pretrained::open::Compute;
use crate::train::config::{Invalid, Stage, TrainConfig};
use crate::train::folder::Existing;
use crate::train::log;
use crate::train::ranks::{Ranks, Transport};
use crate::train::run::{Options, Trainer};
use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Train an adapter: masked next-token prediction, then contrastive learning.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec train mntp       -m DIR --data text.txt.gz --validation valid.txt -o mntp
  llm2vec train simcse     -m DIR --adapter mntp --data sentences.txt -o simcse
  llm2vec train supervised -m DIR --adapter mntp --data triplets.jsonl -o supervised --validation sts.tsv --keep-best
  llm2vec train simcse     --config train_configs/simcse/Mistral.json --resume")]
pub struct Train {
    #[command(subcommand)]
    stage: StageArgs,
}

#[derive(Subcommand)]
enum StageArgs {
    /// Masked next-token prediction on running text (one line after the other)
    Mntp(Flags),
    /// Contrastive learning of texts with themselves under another dropout (one text per line)
    Simcse(Flags),
    /// Contrastive learning on JSONL rows {"query", "positive", "negative"}: a file, or a folder of data sets
    Supervised(Flags),
}

/// What is not given comes from the configuration, then from the paper's settings of the stage.
struct Flags {
    source: Source,
    run: RunFlags,
    /// The settings among them, and whatever else was given.
    matches: ArgMatches,
}

#[derive(Args)]
struct Source {
    /// JSON configuration: ours, or one of the reference implementation's
    #[arg(long, env = "LLM2VEC_CONFIG", value_name = "FILE.json")]
    config: Option<PathBuf>,
}

/// What is of one run and no setting of the training.
#[derive(Args)]
struct RunFlags {
    /// Go on from the newest checkpoint in --output, bit for bit; model and data are known by content, not by name
    #[arg(long, env = "LLM2VEC_RESUME", value_parser = BoolishValueParser::new())]
    resume: bool,
    /// Delete the run that --output holds, and nothing that no run wrote
    #[arg(long, env = "LLM2VEC_OVERWRITE", value_parser = BoolishValueParser::new(), conflicts_with = "resume")]
    overwrite: bool,

    /// Stop at the first NaN or infinity in an activation or its gradient, and say in which layer and tensor
    #[arg(long, env = "LLM2VEC_CHECK_FINITE", value_parser = BoolishValueParser::new(), help_heading = "Machine")]
    check_finite: bool,
    /// On a GPU: queue kernel by kernel, not each forward, backward and update as one CUDA graph; the same bits
    #[arg(long, env = "LLM2VEC_NO_GRAPH", value_parser = BoolishValueParser::new(), help_heading = "Machine")]
    no_graph: bool,
    /// On the CPU: compute in f32, or keep frozen weights as bf16 and multiply in bf16; a GPU does the latter always
    #[arg(
        long,
        env = "LLM2VEC_DTYPE",
        value_name = "DTYPE",
        default_value = "f32",
        help_heading = "Machine"
    )]
    dtype: Compute,
    /// auto (a GPU if one answers), cpu, cuda[:N] or emulated[:80|:90]
    #[arg(
        long,
        env = "LLM2VEC_DEVICE",
        value_name = "DEVICE",
        default_value = "auto",
        help_heading = "Machine"
    )]
    device: String,
    #[command(flatten)]
    kernels: KernelSetFlags,
    /// How ranks send gradients: nccl (from GPU to GPU), mpi (through the hosts' memory), or auto: nccl where it can
    #[arg(
        long,
        env = "LLM2VEC_TRANSPORT",
        value_name = "HOW",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Machine"
    )]
    transport: Transport,

    /// Every step as JSON [default: log.jsonl in --output]
    #[arg(long, env = "LLM2VEC_LOG", value_name = "FILE.jsonl", help_heading = "Output")]
    log: Option<PathBuf>,
    /// Every step as TensorBoard events
    #[arg(long, env = "LLM2VEC_TENSORBOARD", value_name = "DIR", help_heading = "Output")]
    tensorboard: Option<PathBuf>,
    /// Draw loss and learning rate at the end
    #[arg(long, env = "LLM2VEC_PLOT", value_name = "FILE.svg", help_heading = "Output")]
    plot: Option<PathBuf>,
    /// Nothing on stderr but errors
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    quiet: bool,
}

impl Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        // For an update, in which everything may be absent.
        RunFlags::augment_args(TrainConfig::augment_args_for_update(Source::augment_args(command)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Flags, clap::Error> {
        Ok(Flags {
            source: Source::from_arg_matches(matches)?,
            run: RunFlags::from_arg_matches(matches)?,
            matches: matches.clone(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        Flags::from_arg_matches(matches).map(|flags| *self = flags)
    }
}

impl Train {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let (stage, flags) = match self.stage {
            StageArgs::Mntp(flags) => (Stage::Mntp, flags),
            StageArgs::Simcse(flags) => (Stage::Simcse, flags),
            StageArgs::Supervised(flags) => (Stage::Supervised, flags),
        };
        flags.run(stage)
    }
}

impl Flags {
    fn run(self, stage: Stage) -> Result<()> {
        let ranks = ranks()?;
        let options = ranks.settle(self.options(stage, &ranks))?;
        let ended = Trainer::open(options).and_then(Trainer::run);
        if let Err(Error::Elsewhere { .. }) = ended {
            // Whoever started the ranks may end this one before it has left; another has said why.
            signal::mute();
        }
        ended.map(drop)
    }

    fn options(self, stage: Stage, ranks: &Rc<Ranks>) -> Result<Options> {
        let config = self.configuration(stage, ranks)?;
        let Flags { source, run, .. } = self;
        let existing = match (run.resume, run.overwrite || config.overwrite_output_dir) {
            (true, _) => Existing::Resume,
            (false, true) => Existing::Overwrite,
            (false, false) => Existing::Refuse,
        };
        let beside = config.output_dir.as_ref().map(|dir| Path::new(dir).join("log.jsonl"));
        if is_verbose() && ranks.is_first() {
            changed(&config).iter().for_each(say);
        }
        let device = if ranks.size > 1 && run.device == "auto" { engine::device() } else { run.device };
        Ok(Options {
            config,
            device: run.kernels.open(&device)?,
            dtype: run.dtype,
            check_finite: run.check_finite,
            graph: !run.no_graph,
            existing,
            source: source.config,
            log: log::Options {
                quiet: run.quiet,
                jsonl: run.log.or(beside),
                tensorboard: run.tensorboard,
                spelling: FLAGS,
                ..log::Options::default()
            },
            plot: run.plot,
            stop: signal::stop_flag()?,
            ranks: Rc::clone(ranks),
            transport: run.transport,
        })
    }

    /// The file's settings, and over them what was given by flag or environment.
    fn configuration(&self, stage: Stage, ranks: &Ranks) -> Result<TrainConfig> {
        let tells = !self.run.quiet && ranks.is_first();
        let mut config = match &self.source.config {
            None => TrainConfig::new(stage),
            Some(path) => {
                let (mut config, ignored) = TrainConfig::read(path, stage)?;
                if !ignored.is_empty() && tells {
                    say(format_args!(
                        "warning: {}: no meaning here: {}",
                        path.display(),
                        keys::explained(&ignored)
                    ));
                }
                if ranks.size > 1 && TrainConfig::has_batch_per_rank(path)? {
                    let (each, ranks) = (config.per_device_train_batch_size, ranks.size);
                    config.per_device_train_batch_size = each.saturating_mul(ranks);
                    let what =
                        format!("{each} rows a batch there, on {ranks} ranks {}", each.saturating_mul(ranks));
                    if tells && self.given("per_device_train_batch_size").is_none() {
                        say(format_args!("{}: {what} in all", path.display()));
                    }
                }
                config
            }
        };
        let mut given = self.matches.clone();
        // A switch that nobody set has the value false, which is no reason to unset the file's.
        for id in self.matches.ids() {
            if self.matches.value_source(id.as_str()) == Some(ValueSource::DefaultValue) {
                let _ = given.try_clear_id(id.as_str());
            }
        }
        config.update_from_arg_matches_mut(&mut given).map_err(|e| Error::usage(e.to_string()))?;
        config.overwrite_output_dir &= !self.run.resume;
        config.validate().map_err(|invalid| self.named_error(&invalid))?;
        Ok(config)
    }

    /// How a setting was given, if not by the file.
    fn given(&self, key: &str) -> Option<ValueSource> {
        self.matches.value_source(key).filter(|source| *source != ValueSource::DefaultValue)
    }

    /// The error, under the name by which the value was given.
    fn named_error(&self, invalid: &Invalid) -> Error {
        let settings = TrainConfig::augment_args_for_update(clap::Command::new("settings"));
        let arg = settings.get_arguments().find(|arg| arg.get_id() == invalid.key);
        let name = arg.and_then(|arg| match self.given(invalid.key)? {
            ValueSource::CommandLine => Some(format!("--{}", arg.get_long()?)),
            ValueSource::EnvVariable => Some(arg.get_env()?.to_string_lossy().into_owned()),
            _ => None,
        });
        Error::usage(
            name.map_or_else(|| invalid.message(), |name| message![format!("{name} "), invalid.what.clone()]),
        )
    }
}

/// The ranks that this process was started as one of.
fn ranks() -> Result<Rc<Ranks>> {
    let Some(size) = engine::mpi_size(engine::variable)? else { return Ok(Rc::default()) };
    #[cfg(feature = "mpi")]
    return Ranks::join(size).map(Rc::new);
    #[cfg(not(feature = "mpi"))]
    Err(Error::unsupported(format!(
        "this process is one of {size} that were started together, and each would train the same run; build with --features mpi, \
         or start one"
    )))
}

/// The settings that are not the stage's own, as a configuration has them.
fn changed(config: &TrainConfig) -> Vec<String> {
    let (ours, theirs) = (json!(config), json!(TrainConfig::new(config.stage)));
    let fields = ours.as_object().into_iter().flatten().filter(|(key, value)| theirs[key] != **value);
    fields.map(|(key, value)| format!("{key}: {value}")).collect()
}
