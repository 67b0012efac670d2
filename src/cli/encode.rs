//! `llm2vec encode`: texts in, vectors out.

use crate::cli::{ModelFlags, nearest::Nearest, say};
use crate::device::cpu::memory;
use crate::encode::Encoder;
use crate::encode::setup::Setup;
use crate::error::{Error, Result};
use crate::format::input::{self, Format, Record};
use crate::format::output::{Output, OutputDtype};
use crate::text::prompt::Prompt;
use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Turn texts into vectors.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec encode -m DIR -i texts.txt -o vectors.npy
  llm2vec encode -m DIR --adapter mntp --adapter simcse -i texts.jsonl.gz -o vectors.safetensors --normalize
  zcat big.txt.gz | llm2vec encode -m DIR -i - -o big.npy --output-dtype f16
  llm2vec encode -m DIR -i texts.txt --nearest 3")]
pub struct Encode {
    #[command(flatten)]
    model: ModelFlags,
    /// One text per line, or .jsonl with {\"text\"} or {\"instruction\", \"text\"}; .gz and .zst too; - is stdin
    #[arg(short, long, env = "LLM2VEC_INPUT", default_value = "-", value_name = "FILE")]
    input: String,
    /// What the input is, where its name does not say
    #[arg(long, env = "LLM2VEC_INPUT_FORMAT", value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// FILE.npy, FILE.safetensors or FILE.jsonl; - is JSONL to stdout
    #[arg(short, long, env = "LLM2VEC_OUTPUT", required_unless_present = "nearest", value_name = "FILE")]
    output: Option<String>,
    /// f32, f16, or i8 with a scale per row
    #[arg(long, env = "LLM2VEC_OUTPUT_DTYPE", default_value = "f32", value_name = "DTYPE")]
    output_dtype: RowDtype,
    /// Instruction in front of every text that brings none of its own
    #[arg(long, env = "LLM2VEC_INSTRUCTION", default_value = "", value_name = "TEXT")]
    instruction: String,
    /// What an empty text gives: an error, or a vector of zeros
    #[arg(long, env = "LLM2VEC_EMPTY", default_value = "error", value_name = "WHAT")]
    empty: Empty,
    /// Encode only part I of N (1/4 … 4/4); the parts' outputs, one after the other, are the whole's
    #[arg(long, env = "LLM2VEC_SHARD", value_name = "I/N", value_parser = shard)]
    shard: Option<(u64, u64)>,
    /// Print for every text the K most similar others, by cosine
    #[arg(long, env = "LLM2VEC_NEAREST", value_name = "K")]
    nearest: Option<usize>,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum InputFormat {
    Text,
    Jsonl,
}

#[derive(Clone, Copy, ValueEnum)]
enum RowDtype {
    F32,
    F16,
    I8,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Empty {
    Error,
    Zero,
}

fn shard(s: &str) -> std::result::Result<(u64, u64), String> {
    let parts = s.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts
        .filter(|(i, n)| (1..=*n).contains(i))
        .ok_or_else(|| "expected I/N with 1 <= I <= N, for instance 2/4".into())
}

/// Texts are read, sorted and packed in windows of at most this many, this much text and this much output.
const WINDOW_TEXTS: usize = 32_768;
const WINDOW_BYTES: usize = 32 << 20;

/// What has gone through so far.
struct Tally {
    texts: u64,
    tokens: u64,
    cut: u64,
    start: Instant,
    bar: ProgressBar,
}

impl Encode {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        if self.nearest.is_some() && self.output.as_deref() == Some("-") {
            return Err(Error::Usage("--nearest and --output - would share stdout; give a file name".into()));
        }
        let real = |path: &str| std::fs::canonicalize(path).ok();
        if self.output.as_deref().and_then(real).is_some_and(|output| real(&self.input) == Some(output)) {
            return Err(Error::Usage(format!("--output {} is the input; give another name", self.input)));
        }
        let options = self.model.options()?;
        let range = self.range()?;
        let mut records = self.records()?.skip(range.start as usize);
        let mut left = range.end - range.start;
        let setup = Setup::open(&options)?;
        setup.warnings.iter().for_each(|w| say(format_args!("warning: {w}")));
        let c = setup.config.width;
        // Before the weights: a wrong name or a missing folder should not cost the time to load them.
        let mut output = self.output.as_ref().map(|o| Output::create(o, c, self.dtype())).transpose()?;
        let mut encoder = Encoder::load(setup)?;
        let mut nearest = self.nearest.map(|k| Nearest::new(k, c));

        let mut tally = Tally::new(self.quiet);
        loop {
            let window = self.window(&mut records, &mut left, c)?;
            if window.is_empty() {
                break;
            }
            let rows = self.encode_window(&mut encoder, &window, &mut tally)?;
            if let Some(output) = &mut output {
                output.write_rows(&rows)?;
            }
            if let Some(nearest) = &mut nearest {
                nearest.add(window.into_iter().map(|r| r.text), &rows)?;
            }
        }
        if tally.texts == 0 && self.shard.is_none() {
            return Err(Error::file(self.name(), "holds no text"));
        }
        if let Some(output) = output {
            output.finish()?;
        }
        tally.finish(self.quiet);
        nearest.map_or(Ok(()), |n| n.print())
    }

    fn name(&self) -> &str {
        if self.input == "-" { "stdin" } else { &self.input }
    }

    fn dtype(&self) -> OutputDtype {
        match self.output_dtype {
            RowDtype::F32 => OutputDtype::F32,
            RowDtype::F16 => OutputDtype::F16,
            RowDtype::I8 => OutputDtype::I8,
        }
    }

    fn records(&self) -> Result<input::Records> {
        let format = self.input_format.map(|f| match f {
            InputFormat::Text => Format::Text,
            InputFormat::Jsonl => Format::Jsonl,
        });
        input::open(&self.input, format)
    }

    /// The records of this shard: parts of equal size in the input's order, so the input is counted first.
    fn range(&self) -> Result<std::ops::Range<u64>> {
        let Some((i, n)) = self.shard else { return Ok(0..u64::MAX) };
        if self.input == "-" {
            return Err(Error::Usage("--shard needs a file that can be read twice, not stdin".into()));
        }
        let mut total = 0u64;
        for record in self.records()? {
            record?;
            total += 1;
        }
        let edge = |i: u64| (u128::from(total) * u128::from(i) / u128::from(n)) as u64;
        Ok(edge(i - 1)..edge(i))
    }

    fn window(
        &self,
        records: &mut impl Iterator<Item = Result<Record>>,
        left: &mut u64,
        width: usize,
    ) -> Result<Vec<Record>> {
        let most = (WINDOW_BYTES / (4 * width)).clamp(256, WINDOW_TEXTS);
        let (mut window, mut bytes) = (Vec::new(), 0);
        while *left > 0 && window.len() < most && bytes < WINDOW_BYTES {
            let Some(record) = records.next() else { break };
            let record = record?;
            bytes += record.text.len() + record.instruction.as_ref().map_or(0, String::len);
            *left -= 1;
            window.push(record);
        }
        Ok(window)
    }

    /// The rows of a window, in its order.
    fn encode_window(&self, encoder: &mut Encoder, window: &[Record], tally: &mut Tally) -> Result<Vec<f32>> {
        let at = |r: &Record, what: &str| Error::file(self.name(), format!("line {}: {what}", r.place));
        let prompts = window.par_iter().map(|r| {
            let instruction = r.instruction.as_deref().unwrap_or(&self.instruction);
            let prompt = encoder.prompt(instruction, &r.text).map_err(|e| at(r, &e.to_string()))?;
            let empty = r.text.is_empty() || prompt.text.is_empty();
            if empty && self.empty == Empty::Error {
                return Err(at(
                    r,
                    "an empty text has nothing to pool; --empty zero gives it a vector of zeros",
                ));
            }
            Ok((!empty).then_some(prompt))
        });
        let prompts: Vec<Option<Prompt>> = prompts.collect::<Result<_>>()?;
        let places: Vec<usize> = (0..prompts.len()).filter(|&i| prompts[i].is_some()).collect();
        let prompts: Vec<Prompt> = prompts.into_iter().flatten().collect();

        let c = encoder.width();
        let mut vectors = vec![0.0; prompts.len() * c];
        encoder.encode(&prompts, &mut vectors, |texts, tokens| tally.add(texts, tokens))?;
        tally.cut += prompts.iter().filter(|p| p.cut).count() as u64;
        tally.texts += (window.len() - prompts.len()) as u64;
        if let Some(bad) = vectors.iter().position(|v| !v.is_finite()) {
            return Err(at(&window[places[bad / c]], "the vector holds NaN or infinity"));
        }
        if places.len() == window.len() {
            return Ok(vectors);
        }
        let mut rows = vec![0.0; window.len() * c];
        for (vector, &i) in vectors.chunks_exact(c).zip(&places) {
            rows[i * c..][..c].copy_from_slice(vector);
        }
        Ok(rows)
    }
}

impl Tally {
    fn new(quiet: bool) -> Tally {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(250));
        Tally { texts: 0, tokens: 0, cut: 0, start: Instant::now(), bar }
    }

    fn add(&mut self, texts: usize, tokens: usize) {
        self.texts += texts as u64;
        self.tokens += tokens as u64;
        self.bar.set_message(format!("{} texts  {}", self.texts, self.rates()));
    }

    fn rates(&self) -> String {
        let s = self.start.elapsed().as_secs_f64().max(1e-9);
        format!("{:.1} texts/s, {:.0} tokens/s", self.texts as f64 / s, self.tokens as f64 / s)
    }

    fn finish(&self, quiet: bool) {
        self.bar.finish_and_clear();
        if quiet {
            return;
        }
        if self.cut > 0 {
            say(format_args!(
                "warning: {} texts were cut to the length limits (--doc-max-length, --max-length)",
                self.cut
            ));
        }
        let peak = memory("/proc/self/status", "VmHWM:");
        let peak = peak.map_or(String::new(), |bytes| format!(", peak {} MiB", bytes >> 20));
        let seconds = self.start.elapsed().as_secs_f64();
        let (texts, tokens, rates) = (self.texts, self.tokens, self.rates());
        say(format_args!("encoded {texts} texts, {tokens} tokens in {seconds:.2} s: {rates}{peak}"));
    }
}
