//! `llm2vec bench encode` and `train`: whole models.

use super::{Common, RivalFlags};
use crate::bench::record::Record;
use crate::bench::whole::{self, Against, Size, Task, Timed};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::train::config::Stage;
use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};

/// Tokens per second of encoding whole packs to vectors, with a real model or a random one.
#[derive(Args)]
pub(super) struct Encode {
    #[command(flatten)]
    whole: Whole,
}

/// Tokens per second of whole steps of a stage, optimiser and all, with a real model or a random one.
#[derive(Args)]
pub(super) struct Train {
    #[command(flatten)]
    whole: Whole,
    /// Whose loss and dropout
    #[arg(long, env = "LLM2VEC_STAGE", value_name = "STAGE", default_value = "simcse")]
    stage: Stage,
    /// Keep only the input of every block
    #[arg(long, env = "LLM2VEC_RECOMPUTE", value_parser = BoolishValueParser::new())]
    recompute: bool,
    /// On a GPU: queue kernel by kernel, as `train --no-graph` does
    #[arg(long, env = "LLM2VEC_NO_GRAPH", value_parser = BoolishValueParser::new())]
    no_graph: bool,
}

/// What both take.
#[derive(Args)]
struct Whole {
    #[command(flatten)]
    what: Subject,
    /// Only the first N layers
    #[arg(long, env = "LLM2VEC_LAYERS", value_name = "N")]
    layers: Option<usize>,
    /// Tokens in a pack, of random ids
    #[arg(long, env = "LLM2VEC_TOKENS", value_name = "N", default_value_t = 16384)]
    tokens: usize,
    /// Tokens in a text
    #[arg(long, env = "LLM2VEC_LENGTH", value_name = "N", default_value_t = 128)]
    length: usize,
    /// On the CPU: frozen weights packed as bf16, as `--dtype bf16` has them; a GPU computes in bf16 always
    #[arg(long, env = "LLM2VEC_BF16", value_parser = BoolishValueParser::new())]
    bf16: bool,
    #[command(flatten)]
    rival: RivalFlags,
    #[command(flatten)]
    common: Common,
}

/// Whose weights; of one on the command line and one in the environment, the first.
enum Subject {
    Shape(String),
    Model(String),
}

#[derive(Args)]
struct SubjectFlags {
    /// Random weights in the shape of Llama-3.2-1B, S-LLaMA-1.3B, Llama-2-7B, Mistral-7B or Llama-3-8B
    #[arg(long, env = "LLM2VEC_SHAPE", value_name = "NAME")]
    shape: Option<String>,
    /// Model folder, or a name in the local Hugging Face cache
    #[arg(short, long, env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")]
    model: Option<String>,
}

impl FromArgMatches for Subject {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Subject, clap::Error> {
        let flags = SubjectFlags::from_arg_matches(matches)?;
        let given = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        match (flags.shape, flags.model) {
            (None, None) => Err(clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "expected --shape NAME or --model DIR\n",
            )),
            (Some(_), Some(_)) if given("shape") == given("model") => {
                Err(clap::Error::raw(ErrorKind::ArgumentConflict, "expected one of --shape and --model\n"))
            }
            (Some(shape), None) => Ok(Subject::Shape(shape)),
            (Some(shape), _) if given("shape") => Ok(Subject::Shape(shape)),
            (_, Some(model)) => Ok(Subject::Model(model)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        Subject::from_arg_matches(matches).map(|subject| *self = subject)
    }
}

impl Args for Subject {
    fn augment_args(command: clap::Command) -> clap::Command {
        SubjectFlags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        SubjectFlags::augment_args_for_update(command)
    }
}

impl Encode {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        self.whole.run(Task::Encode, false, true)
    }
}

impl Train {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        self.whole.run(Task::Train(self.stage), self.recompute, !self.no_graph)
    }
}

impl Whole {
    fn run(self, task: Task, recompute: bool, graph: bool) -> Result<()> {
        let settings = self.common.settings()?;
        let device = self.device()?;
        let mut model = match &self.what {
            Subject::Model(dir) => Timed::open(dir)?,
            Subject::Shape(name) => Timed::random(name)?,
        };
        if let Some(layers) = self.layers {
            model.cut(layers)?;
        }
        let (kind, load) = match task {
            Task::Encode => ("encode", "whole packs"),
            Task::Train(_) => ("train", "whole steps"),
        };
        let size = Size {
            tokens: self.tokens,
            length: self.length,
            panels: self.bf16 && matches!(device, Device::Cpu(_)),
            recompute,
            graph,
        };
        let mut record = Record::new(kind, &device, std::env::args().collect());
        self.common.progress()(format!("{load} of {}: loading", model.name));
        let against = self.rival.wanted()?.then(|| Against {
            python: self.rival.python.clone(),
            gpu: self.common.ordinal(&device),
            compile: self.rival.compile,
            patience: self.rival.patience(),
        });
        // Opened anew for every round: with this one open, its memory would not be the rival's.
        drop(device);
        let open = || self.common.opened();
        let (row, roof, rival) = whole::measure(&open, &model, task, size, settings, against.as_ref())?;
        (record.rows, record.roof, record.rival) = (vec![row], Some(roof), rival);
        self.common.publish(&record)
    }

    fn device(&self) -> Result<Device> {
        match self.common.device.starts_with("emulated") {
            true => Err(Error::usage(
                "--device emulated: the emulator counts ops and times nothing; see bench ops",
            )),
            false => self.common.opened(),
        }
    }
}
