//! `llm2vec join`: the parts of a sharded encoding become one file.

use crate::cli::say;
use crate::encode::join;
use crate::error::{Error, Result};
use crate::format::atomic;
use clap::Args;
use clap::builder::BoolishValueParser;
use std::path::{Path, PathBuf};

/// Join the parts of a sharded encoding: the file is that of an encoding in one piece, byte for byte.
#[derive(Args)]
#[command(after_help = "Example:
  mpirun -n 4 llm2vec encode --shard auto -m DIR -i texts.txt -o vectors.npy
  llm2vec join vectors-*-of-00004.npy -o vectors.npy

Every part has a record beside it, NAME.part.json, of its input, model, adapters, settings, texts and content. A part that
is missing, given twice, changed, or of another run is refused by name.")]
pub struct Join {
    /// The parts, in any order
    #[arg(required = true, value_name = "PART")]
    parts: Vec<PathBuf>,
    /// The whole, a file of the same kind
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE")]
    output: String,
    /// No summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

impl Join {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let join = join::Join::open(&self.parts)?;
        if join.files().any(|part| atomic::same_file(part, Path::new(&self.output))) {
            return Err(Error::usage(format!(
                "--output {} is one of the parts; give another name",
                self.output
            )));
        }
        let texts = join.write(&self.output)?;
        if !self.quiet {
            say(format_args!("joined {} parts, {texts} texts, into {}", self.parts.len(), self.output));
        }
        Ok(())
    }
}
