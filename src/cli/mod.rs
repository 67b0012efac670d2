//! The command line: one file per subcommand; results to files or stdout, everything else to stderr.

mod bench;
mod doctor;
mod emulate;
mod encode;
mod eval;
mod info;
mod merge;
mod nearest;
mod progress;
pub mod signal;
mod train;

use crate::device::Device;
use crate::encode::texts::Empty;
use crate::error::{Error, Result, one_line};
use crate::pretrained::open::{MOST_TOKENS, Options};
use crate::text::prompt::Compat;
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::Write;

/// Turn decoder-only LLMs into text encoders.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// CPU threads [default: all cores]
    #[arg(short, long, global = true, env = "LLM2VEC_THREADS", value_name = "N")]
    threads: Option<usize>,
}

#[derive(Subcommand)]
enum Command {
    Encode(encode::Encode),
    Merge(merge::Merge),
    Train(Box<train::Train>),
    Eval(eval::Eval),
    Bench(bench::Bench),
    Info(info::Info),
    Doctor(doctor::Doctor),
    Emulate(emulate::Emulate),
}

/// Runs the parsed command line, on a thread of the pool: from outside, every parallel loop would cost two switches of
/// threads.
pub fn run(cli: Cli) -> Result<()> {
    signal::watch()?;
    threads(cli.threads)?;
    rayon::scope(|_| match cli.command {
        Command::Encode(c) => c.run(),
        Command::Merge(c) => c.run(),
        Command::Train(c) => c.run(),
        Command::Eval(c) => c.run(),
        Command::Bench(c) => c.run(),
        Command::Info(c) => c.run(),
        Command::Doctor(c) => c.run(),
        Command::Emulate(c) => c.run(),
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
    /// Model folder (config.json, tokenizer.json, model.safetensors) or adapter that names its base, or org/name[@revision] in the local Hugging Face cache
    #[arg(short, long, env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")]
    model: String,
    /// PEFT LoRA folder or name to merge; repeat for several, in order (MNTP before SimCSE or supervised)
    #[arg(long, env = "LLM2VEC_ADAPTER", value_name = "DIR")]
    adapter: Vec<String>,
    /// mean, weighted-mean, last, eos, bos or first [default: what the folder records, else mean]
    #[arg(long, env = "LLM2VEC_POOLING", value_name = "MODE")]
    pooling: Option<String>,
    /// Pool the text's own tokens, or all: BOS, instruction and template too [default: text; all for a sentence-transformers folder]
    #[arg(long, env = "LLM2VEC_POOL_OVER", value_name = "SPAN")]
    pool_over: Option<PoolOver>,
    /// full (bidirectional), causal (as pre-trained), window (bidirectional in the config's window) [default: what the folder says, else full]
    #[arg(long, env = "LLM2VEC_ATTENTION", value_name = "MASK")]
    attention: Option<String>,
    /// One of the folder's prompts (config_sentence_transformers.json) in front of every text [default: its default one]
    #[arg(long, env = "LLM2VEC_PROMPT", value_name = "NAME")]
    prompt: Option<String>,
    /// none, llama2, llama3, mistral, qwen2 [default: by the model's name, as the reference does]
    #[arg(long, env = "LLM2VEC_TEMPLATE", value_name = "NAME")]
    template: Option<String>,
    /// Most tokens in a row, template and instruction included [default: 512]
    #[arg(long, env = "LLM2VEC_MAX_LENGTH", value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Most tokens of the text itself [default: 400]
    #[arg(long, env = "LLM2VEC_DOC_MAX_LENGTH", value_name = "TOKENS")]
    doc_max_length: Option<usize>,
    /// Scale every vector to unit length, or with =false not [default: what the folder records, else not]
    #[arg(long, env = "LLM2VEC_NORMALIZE", value_parser = BoolishValueParser::new(), num_args = 0..=1,
          require_equals = true, default_missing_value = "true", value_name = "WHETHER")]
    normalize: Option<bool>,
    /// Reproduce the reference implementation's ids and pooled span, quirks included
    #[arg(long, env = "LLM2VEC_COMPAT", value_name = "reference")]
    compat: Option<CompatFlag>,
    /// On the CPU: compute in f32, or keep weights as bf16 and multiply in bf16 (sums stay f32); a GPU does the latter always
    #[arg(long, env = "LLM2VEC_DTYPE", value_name = "DTYPE", default_value = "f32")]
    dtype: ComputeDtype,
    /// Tokens in a pack [default: 2048 on the CPU, 16384 on a GPU]
    #[arg(long, env = "LLM2VEC_TOKENS", alias = "max-batch-tokens", value_name = "N")]
    tokens: Option<usize>,
    /// Stop at the first NaN or infinity in an activation, and say in which layer and tensor
    #[arg(long, env = "LLM2VEC_CHECK_FINITE", value_parser = BoolishValueParser::new())]
    check_finite: bool,
    /// auto (a GPU if one answers), cpu, cuda[:N] or emulated[:80|:90]
    #[arg(long, env = "LLM2VEC_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolOver {
    Text,
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum CompatFlag {
    Reference,
}

#[derive(Clone, Copy, ValueEnum)]
enum ComputeDtype {
    #[value(alias = "float32")]
    F32,
    #[value(alias = "bfloat16")]
    Bf16,
}

/// Sizes the thread pool.
fn threads(n: Option<usize>) -> Result<()> {
    if let Some(n) = n.filter(|n| !(1..=4096).contains(n)) {
        return Err(Error::Usage(format!("--threads {n}: expected 1 to 4096")));
    }
    // Always here, because rayon's own first use would panic; 0 is its default.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n.unwrap_or(0)).build_global();
    pool.map_err(|e| {
        let wanted = n.map_or("the threads, one for each core".into(), |n| format!("{n} threads"));
        let hint =
            "try a smaller --threads, or raise the limit of processes (ulimit -u) or of memory (ulimit -v)";
        Error::Device(format!("cannot start {wanted}: {e}; {hint}"))
    })
}

impl ModelFlags {
    /// The library's options.
    fn options(&self) -> Result<Options> {
        if let Some(n) = self.tokens.filter(|n| !(1..=MOST_TOKENS).contains(n)) {
            return Err(Error::Usage(format!("--tokens {n}: expected 1 to {MOST_TOKENS}")));
        }
        Ok(Options {
            model: self.model.clone(),
            adapters: self.adapter.clone(),
            pooling: self.pooling.clone(),
            pool_all: self.pool_over.map(|p| matches!(p, PoolOver::All)),
            attention: self.attention.clone(),
            prompt: self.prompt.clone(),
            template: self.template.clone(),
            max_length: self.max_length,
            doc_max_length: self.doc_max_length,
            normalize: self.normalize,
            compat: if self.compat.is_some() { Compat::Reference } else { Compat::Default },
            bf16: matches!(self.dtype, ComputeDtype::Bf16),
            tokens: self.tokens,
            check_finite: self.check_finite,
            device: Device::by_name(&self.device)?,
        })
    }
}

/// Flags that say how texts are read and what is shown meanwhile.
#[derive(Args)]
struct TextFlags {
    /// Instruction in front of every text that brings none of its own
    #[arg(long, env = "LLM2VEC_INSTRUCTION", default_value = "", value_name = "TEXT")]
    instruction: String,
    /// What an empty text gives: an error, or a vector of zeros
    #[arg(long, env = "LLM2VEC_EMPTY", default_value = "error", value_name = "WHAT")]
    empty: EmptyFlag,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum EmptyFlag {
    Error,
    Zero,
}

impl TextFlags {
    fn empty(&self) -> Empty {
        match self.empty {
            EmptyFlag::Error => Empty::Error,
            EmptyFlag::Zero => Empty::Zero,
        }
    }
}
