//! `llm2vec encode`: texts in, vectors out.

use crate::cli::{FLAGS, ModelFlags, TextFlags, nearest::Nearest, progress::Tally, say};
use crate::encode::Encoder;
use crate::encode::texts::{Item, Rows};
use crate::error::{Error, Message, Result, message};
use crate::format::atomic;
use crate::format::input::{self, Format, Record};
use crate::format::output::{Output, OutputDtype};
use crate::pretrained::open::Setup;
use clap::Args;

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
    /// One text per line, or .jsonl with {"text"} or {"instruction", "text"}; .gz and .zst too; - is stdin
    #[arg(short, long, env = "LLM2VEC_INPUT", default_value = "-", value_name = "FILE")]
    input: String,
    /// What the input is, where its name does not say
    #[arg(long, env = "LLM2VEC_INPUT_FORMAT", value_name = "FORMAT")]
    input_format: Option<Format>,
    /// FILE.npy, FILE.safetensors or FILE.jsonl; - is JSONL to stdout
    #[arg(short, long, env = "LLM2VEC_OUTPUT", required_unless_present = "nearest", value_name = "FILE")]
    output: Option<String>,
    /// f32, f16, or i8 with a scale per row
    #[arg(long, env = "LLM2VEC_OUTPUT_DTYPE", default_value = "f32", value_name = "DTYPE")]
    output_dtype: OutputDtype,
    #[command(flatten)]
    texts: TextFlags,
    /// Encode only part I of N (1/4 … 4/4); the parts' outputs, one after the other, are the whole's
    #[arg(long, env = "LLM2VEC_SHARD", value_name = "I/N", value_parser = shard)]
    shard: Option<(u64, u64)>,
    /// Print for every text the K most similar others, by cosine
    #[arg(long, env = "LLM2VEC_NEAREST", value_name = "K")]
    nearest: Option<usize>,
}

fn shard(s: &str) -> std::result::Result<(u64, u64), String> {
    let parts = s.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts
        .filter(|(i, n)| (1..=*n).contains(i))
        .ok_or_else(|| "expected I/N with 1 <= I <= N, for instance 2/4".into())
}

/// Whether whoever read stdout has seen enough and left, as `head` does: no error.
fn is_reader_gone(e: &Error) -> bool {
    matches!(e, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Texts are read, sorted and packed in windows of at most this many, this much text and this much output.
const WINDOW_TEXTS: usize = 32_768;
const WINDOW_BYTES: usize = 32 << 20;

impl Encode {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        if self.nearest.is_some() && self.output.as_deref() == Some("-") {
            return Err(Error::usage("--nearest and --output - would share stdout; give a file name"));
        }
        let input = if self.input == "-" { "/dev/stdin" } else { &self.input };
        if let Some(output) =
            self.output.as_ref().filter(|o| atomic::same_file((*o).as_ref(), input.as_ref()))
        {
            return Err(Error::usage(format!("--output {output} is the input; give another name")));
        }
        let options = self.model.options()?;
        let range = self.range()?;
        let mut records = self.records()?.skip(range.start as usize);
        let mut left = range.end - range.start;
        let setup = Setup::open(&options)?;
        setup.warnings.iter().for_each(|w| say(format_args!("warning: {w}")));
        if !self.texts.quiet {
            say(setup.attention_line().spelled(FLAGS));
        }
        let c = setup.dimensions();
        // Before the weights: a wrong name or a missing folder should not cost the time to load them.
        let mut output = self.output.as_ref().map(|o| Output::create(o, c, self.output_dtype)).transpose()?;
        let mut encoder = Encoder::load(setup)?;
        let mut nearest = self.nearest.map(|k| Nearest::new(k, c));

        let mut tally = Tally::new(self.texts.quiet);
        loop {
            let window = self.window(&mut records, &mut left, c)?;
            if window.is_empty() {
                break;
            }
            let at = |i: usize, what: Message| {
                Error::file(self.name(), message![format!("line {}: ", window[i].place), what])
            };
            let added = |texts, tokens| tally.add(texts, tokens);
            let Rows { vectors: rows, cut } =
                encoder.texts(&self.items(&window), self.texts.empty, at, added)?;
            tally.cut += cut;
            if let Some(output) = &mut output {
                match output.write_rows(&rows) {
                    Err(e) if is_reader_gone(&e) => return Ok(()),
                    written => written?,
                }
            }
            if let Some(nearest) = &mut nearest {
                nearest.add(window.into_iter().map(|r| r.text), &rows)?;
            }
        }
        if tally.texts == 0 && self.shard.is_none() {
            return Err(Error::file(self.name(), "holds no text"));
        }
        if let Some(output) = output {
            match output.finish() {
                Err(e) if is_reader_gone(&e) => return Ok(()),
                finished => finished?,
            };
        }
        tally.finish();
        nearest.map_or(Ok(()), |n| n.print())
    }

    fn name(&self) -> &str {
        if self.input == "-" { "stdin" } else { &self.input }
    }

    fn records(&self) -> Result<input::Records> {
        input::open(&self.input, self.input_format)
    }

    /// The records of this shard: parts of equal size in the input's order, so the input is counted first.
    fn range(&self) -> Result<std::ops::Range<u64>> {
        let Some((i, n)) = self.shard else { return Ok(0..u64::MAX) };
        let what = "--shard counts the texts first and needs a file that can be read twice";
        if self.input == "-" {
            return Err(Error::usage(format!("{what}, not stdin; save the texts to a file")));
        }
        // Where there is no file, opening it says so.
        if std::fs::metadata(&self.input).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            let hint = "is a pipe or a device; save the texts to a file";
            return Err(Error::usage(format!("{what}, and {} {hint}", self.input)));
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

    /// The texts of a window, each with its instruction.
    fn items<'a>(&'a self, window: &'a [Record]) -> Vec<Item<'a>> {
        let instruction = |r: &'a Record| r.instruction.as_deref().unwrap_or(&self.texts.instruction);
        window.iter().map(|r| Item { instruction: instruction(r), text: &r.text }).collect()
    }
}
