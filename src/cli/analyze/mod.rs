//! `llm2vec analyze`: what the paper asks of a model's states; a file for each question.

mod anisotropy;
mod efficiency;
mod prefix;
mod similarity;

use crate::cli::info::tell;
use crate::cli::progress::Tally;
use crate::cli::{KernelSetFlags, ModelFlags};
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::format::atomic;
use crate::model::config::Attention;
use crate::pretrained::open::{Options, Setup};
use crate::pretrained::pooling::PoolingMode;
use crate::text::template;
use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Look into a model's states: causal against full attention, prefixes, anisotropy, STS against steps.
#[derive(Args)]
pub struct Analyze {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    Similarity(similarity::Similarity),
    Prefix(prefix::Prefix),
    Anisotropy(anisotropy::Anisotropy),
    Efficiency(efficiency::Efficiency),
}

impl Analyze {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.question {
            Question::Similarity(c) => c.run(),
            Question::Prefix(c) => c.run(),
            Question::Anisotropy(c) => c.run(),
            Question::Efficiency(c) => c.run(),
        }
    }
}

/// Flags of every analysis.
#[derive(Args)]
struct AnalysisFlags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    kernels: KernelSetFlags,
    /// Instruction in front of every text
    #[arg(long, env = "LLM2VEC_INSTRUCTION", default_value = "", value_name = "TEXT")]
    instruction: String,
    /// Figures, settings and all as JSON
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// Draw them
    #[arg(long, env = "LLM2VEC_PLOT", value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

/// A model that is asked, and what is said of it at the end.
struct Session<'a> {
    flags: &'a AnalysisFlags,
    encoder: Encoder,
    tally: Tally,
    head: Value,
}

impl AnalysisFlags {
    /// Refuses, before any work, what cannot be written or would overwrite what is read.
    fn check_outputs(&self, read: &[&Path]) -> Result<()> {
        for (flag, path) in [("--output", &self.output), ("--plot", &self.plot)] {
            let Some(path) = path else { continue };
            if read.iter().any(|read| atomic::same_file(read, path)) {
                let what = "is one of the files read; give another name";
                return Err(Error::usage(format!("{flag} {} {what}", path.display())));
            }
            atomic::beside(path)?;
        }
        if self.output.is_some() && self.output == self.plot {
            return Err(Error::usage("--output and --plot are one file; give two names"));
        }
        Ok(())
    }

    /// The library's options with the device opened.
    fn options(&self) -> Result<Options> {
        self.model.check_states()?;
        let options = self.model.options()?;
        Ok(Options { device: self.kernels.apply(&self.model.device, options.device)?, ..options })
    }

    /// The masks to compare: the one asked for, or both.
    fn attentions(&self) -> Vec<Attention> {
        self.model.options.attention.map_or(vec![Attention::Causal, Attention::Full], |one| vec![one])
    }

    /// Opens the model, its states taken at `layer`; `pooled` says whether spans of several tokens are pooled.
    fn open(&self, question: &str, layer: Option<i64>, pooled: bool) -> Result<Session<'_>> {
        let mut options = Options { layer, ..self.options()? };
        // As in the paper's figures: texts alone.
        options.template.get_or_insert(template::NONE);
        let setup = Setup::open(&options)?;
        let pooling = setup.pooling;
        if pooled && matches!(pooling, PoolingMode::Eos | PoolingMode::Bos | PoolingMode::First) {
            let what = "takes a token outside of the text, which is asked about; try --pooling mean";
            return Err(Error::usage(format!("--pooling {} {what}", pooling.name())));
        }
        // It asks about both masks.
        tell(&setup, true);
        let mut settings = json!(setup.settings());
        if let Value::Object(settings) = &mut settings {
            settings.remove("attention");
        }
        let head = json!({
            "analysis": question, "model": setup.dir, "adapters": options.adapters, "settings": settings,
            "layer": setup.config.layers, "instruction": self.instruction,
        });
        let (encoder, tally) = (Encoder::load(setup)?, Tally::new(self.quiet));
        Ok(Session { flags: self, encoder, tally, head })
    }
}

impl Session<'_> {
    /// Has the model attend so.
    fn attend(&mut self, attention: Attention) -> Result<()> {
        self.encoder.set_attention(attention)
    }

    /// Says how much was encoded, and writes `body`'s fields with those of the settings to `--output`.
    fn finish(self, body: Value) -> Result<()> {
        self.tally.finish();
        let Some(output) = &self.flags.output else { return Ok(()) };
        let (mut json, Value::Object(body)) = (self.head, body) else { return Ok(()) };
        body.into_iter().for_each(|(key, value)| json[key] = value);
        atomic::write_json(output, &json)
    }
}
