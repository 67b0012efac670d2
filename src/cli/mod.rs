//! The command line: one file per subcommand; results to files or stdout, everything else to stderr.

mod ablate;
mod analyze;
mod bench;
mod check;
mod doctor;
mod emulate;
mod encode;
mod engine;
mod eval;
mod extractor;
mod info;
mod join;
mod lists;
mod merge;
mod mine;
mod nearest;
mod pages;
mod peer;
mod progress;
mod shard;
pub mod signal;
mod spelling;
mod table;
mod train;

use crate::device::Device;
use crate::device::images::KernelSet;
use crate::encode::texts::Empty;
use crate::error::{Error, Result, one_line};
use crate::format::input::{Format, Reading};
use crate::pretrained::loading;
use crate::pretrained::open::Options;
use clap::builder::BoolishValueParser;
use clap::builder::Resettable;
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

pub use spelling::{FLAGS, LESS_MEMORY};

/// Turn decoder-only LLMs into text encoders.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// CPU threads [default: all cores]
    #[arg(short, long, global = true, env = "LLM2VEC_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// Say more: model, settings, device and memory plan before the work, as `info` does
    #[arg(short, long, global = true, env = "LLM2VEC_VERBOSE", value_parser = BoolishValueParser::new())]
    verbose: bool,
}

/// Whether more is said, once the command line is read.
static VERBOSE: AtomicBool = AtomicBool::new(false);

fn is_verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

#[derive(Subcommand)]
enum Command {
    Encode(encode::Encode),
    Join(join::Join),
    Merge(merge::Merge),
    Train(Box<train::Train>),
    Mine(Box<mine::Mine>),
    Eval(eval::Eval),
    Ablate(Box<ablate::Ablate>),
    Analyze(Box<analyze::Analyze>),
    Bench(bench::Bench),
    Info(info::Info),
    Doctor(doctor::Doctor),
    Completions(pages::Completions),
    Man(pages::Man),
    Emulate(emulate::Emulate),
    #[command(hide = true)]
    SelfCheck(check::SelfCheck),
}

/// The command line and the environment, parsed; ends the process at a mistake, or after `--help`.
pub fn parse() -> Cli {
    let mut command = prepared_command(Cli::command());
    let matches = command.get_matches_mut();
    if !is_quiet(&matches) {
        loading::show(progress::loading);
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.format(&mut command).exit())
}

/// Whether the command was told to show nothing.
fn is_quiet(matches: &ArgMatches) -> bool {
    let here = matches.try_get_one::<bool>("quiet").ok().flatten().is_some_and(|quiet| *quiet);
    here || matches.subcommand().is_some_and(|(_, matches)| is_quiet(matches))
}

/// An empty variable of the environment is none, as scripts leave them. `--help` is the short page: what the values of
/// an enum mean is told by `llm2vec help`.
fn prepared_command(command: clap::Command) -> clap::Command {
    let empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort);
    let help = help.help("Print help").display_order(999);
    let command = command.mut_args(|arg| if empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.disable_help_flag(true).arg(help).mut_subcommands(prepared_command)
}

/// Runs the parsed command line, on a thread of the pool: from outside, every parallel loop would cost two switches of
/// threads.
pub fn run(cli: Cli) -> Result<()> {
    signal::watch()?;
    threads(cli.threads)?;
    VERBOSE.store(cli.verbose, Ordering::Relaxed);
    rayon::scope(|_| match cli.command {
        Command::Encode(c) => c.run().or_else(encode::unread),
        Command::Join(c) => c.run(),
        Command::Merge(c) => c.run(),
        Command::Train(c) => c.run(),
        Command::Mine(c) => c.run(),
        Command::Eval(c) => c.run(),
        Command::Ablate(c) => c.run(),
        Command::Analyze(c) => c.run(),
        Command::Bench(c) => c.run(),
        Command::Info(c) => c.run(),
        Command::Doctor(c) => c.run(),
        Command::Completions(c) => c.run(),
        Command::Man(c) => c.run(),
        Command::Emulate(c) => c.run(),
        Command::SelfCheck(c) => c.run(),
    })
}

/// A line to stderr, whatever a file or a library put into it. Where stderr is closed or full there is nobody to tell,
/// and no reason to fail.
pub fn say(line: impl std::fmt::Display) {
    // One write: what another thread says comes before or after.
    let line = one_line(&line.to_string()) + "\n";
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Text to stdout; a reader that has seen enough and left is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

/// Flags that say which model runs and how.
#[derive(Args)]
struct ModelFlags {
    #[command(flatten)]
    options: Options,
    /// auto (a GPU if one answers), cpu, cuda[:N] or emulated[:80|:90]
    #[arg(long, env = "LLM2VEC_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: String,
}

/// Which kernels run, of a command that computes.
#[derive(Args)]
struct KernelSetFlags {
    /// Kernels where there are several: portable (any GPU from compute capability 8.0), hopper (9.0 alone), or auto: on 9.0 those for Hopper that a check of seconds, made once, finds right there, else portable
    #[arg(
        id = "kernel_set",
        long = "kernels",
        env = "LLM2VEC_KERNEL_SET",
        value_name = "SET",
        default_value = "auto",
        value_parser = KernelSet::by_name,
        help_heading = "Machine"
    )]
    set: KernelSet,
}

impl KernelSetFlags {
    /// The device of this name with these kernels.
    fn open(&self, name: &str) -> Result<Device> {
        self.apply(name, Device::by_name(name)?)
    }

    /// The device, opened by this name, with these kernels. `auto` takes those that have been found right on the GPU.
    fn apply(&self, name: &str, device: Device) -> Result<Device> {
        match (self.set, device) {
            (KernelSet::Auto, Device::Gpu(gpu)) if gpu.capability() == (9, 0) && !gpu.is_emulated() => {
                check::checked(name, gpu).map(Device::Gpu)
            }
            (set, device) => device.with_kernels(set),
        }
    }
}

/// Sizes the thread pool.
fn threads(n: Option<usize>) -> Result<()> {
    if let Some(n) = n.filter(|n| !(1..=4096).contains(n)) {
        return Err(Error::usage(format!("--threads {n}: expected 1 to 4096")));
    }
    // Always here, because rayon's own first use would panic; 0 is its default.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n.unwrap_or(0)).build_global();
    pool.map_err(|e| {
        let wanted = n.map_or("the threads, one for each core".into(), |n| format!("{n} threads"));
        let hint =
            "try a smaller --threads, or raise the limit of processes (ulimit -u) or of memory (ulimit -v)";
        Error::device(format!("cannot start {wanted}: {e}; {hint}"))
    })
}

impl ModelFlags {
    /// Refuses what only vectors of texts have, where states of tokens or words are wanted.
    fn check_states(&self) -> Result<()> {
        match self.options.dimensions {
            Some(_) => Err(Error::usage("--dimensions cuts the vectors of texts; here are none")),
            None => Ok(()),
        }
    }

    /// The library's options, with the device opened.
    fn options(&self) -> Result<Options> {
        Ok(Options { device: Device::by_name(&self.device)?, ..self.options.clone() })
    }
}

/// Flags that say how a file of texts is read.
#[derive(Args)]
struct ReadingFlags {
    /// What the input is, where its content does not say
    #[arg(long, env = "LLM2VEC_INPUT_FORMAT", value_name = "FORMAT")]
    input_format: Option<Format>,
    /// The column of a table, or the key of JSON, that holds the text [default: text]
    #[arg(long, env = "LLM2VEC_TEXT_COLUMN", value_name = "NAME")]
    text_column: Option<String>,
}

impl ReadingFlags {
    fn reading(&self) -> Reading {
        Reading { format: self.input_format, text_column: self.text_column.clone() }
    }
}

/// Flags that say how texts are read and what is shown meanwhile.
#[derive(Args)]
struct TextFlags {
    /// Instruction in front of every text that brings none of its own
    #[arg(long, env = "LLM2VEC_INSTRUCTION", default_value = "", value_name = "TEXT")]
    instruction: String,
    /// Take the states after block N: 0 is the embedding, -1 the last, which alone has the final norm [default: -1]
    #[arg(long, env = "LLM2VEC_LAYER", value_name = "N", allow_negative_numbers = true)]
    layer: Option<i64>,
    /// What an empty text gives: an error, or a vector of zeros
    #[arg(long, env = "LLM2VEC_EMPTY", default_value = "error", value_name = "WHAT")]
    empty: Empty,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}
