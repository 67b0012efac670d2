//! `llm2vec encode`: texts in, vectors out.

use crate::cli::engine;
use crate::cli::info::tell;
use crate::cli::peer::{self, Peer, WINDOW_BYTES};
use crate::cli::progress::{End, Tally};
use crate::cli::shard::{self, Shard};
use crate::cli::{KernelSetFlags, ModelFlags, ReadingFlags, TextFlags, nearest::Nearest, say};
use crate::device::Device;
use crate::encode::Encoder;
use crate::encode::part::{Part, PartRecord};
use crate::encode::texts::{Item, Rows};
use crate::encode::tokens::{Level, Parts, Passage, WordPooling};
use crate::error::{Error, Message, Result, message};
use crate::format::atomic;
use crate::format::input::{self, Record};
use crate::format::output::{Output, OutputDtype};
use crate::pretrained::open::{Options, Setup};
use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Turn texts into vectors.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec encode -m DIR -i texts.txt -o vectors.npy
  llm2vec encode -m DIR --adapter mntp --adapter simcse -i texts.jsonl.gz -o vectors.safetensors --normalize
  zcat big.txt.gz | llm2vec encode -m DIR -i - -o big.npy --output-dtype f16
  llm2vec encode -m DIR -i conll.jsonl -o words.safetensors --level word --layer -2
  llm2vec encode -m DIR -i texts.txt --nearest 3

A program may keep `encode -i - -o - --input-format jsonl` running. For every line that is not blank it gets one line, in
order: {\"index\", \"id\" if there was one, \"embedding\"}, or {\"index\", \"id\", \"error\"} for a line that has no vector,
which ends nothing but makes the exit status at the end 1. Answers are written whenever no complete line is waiting, and
at a blank line, which has no answer. Who writes many lines at once has to read meanwhile.

Tokens and words: `vectors [n, C]`, `starts [texts + 1]` (the first row of each text, then n), `offsets [n, 2]` (the bytes
of the text that a row stands for) and `cut [texts]` (1 where a limit cut the text: of words, the whole ones that are left
have rows). In .npy they are files beside it (NAME.starts.npy …), in JSONL a line a text, with \"cut\": true where it was.
")]
pub struct Encode {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    kernels: KernelSetFlags,
    /// One text per line; or JSON lines, a JSON array, CSV or TSV with a header, Parquet, Arrow with "text" or "tokens": [words], "instruction" and "id" if wanted, known by content; .gz and .zst too; - is stdin
    #[arg(short, long, env = "LLM2VEC_INPUT", default_value = "-", value_name = "FILE")]
    input: String,
    #[command(flatten)]
    reading: ReadingFlags,
    /// FILE.npy, FILE.safetensors, FILE.jsonl, or FILE.parquet in a build with that feature; - is JSONL to stdout
    #[arg(short, long, env = "LLM2VEC_OUTPUT", required_unless_present = "nearest", value_name = "FILE")]
    output: Option<String>,
    /// f32, f16, i8 with a scale per row, or a bit a number: binary (as i8) or ubinary (as u8), as sentence-transformers packs them
    #[arg(long, env = "LLM2VEC_OUTPUT_DTYPE", default_value = "f32", value_name = "DTYPE")]
    output_dtype: OutputDtype,
    #[command(flatten)]
    texts: TextFlags,
    /// A vector for each text, token, or word (of "tokens", or between white space)
    #[arg(long, env = "LLM2VEC_LEVEL", default_value = "text", value_name = "LEVEL")]
    level: Level,
    /// The vector of a word of several tokens: the first's, the last's, or their mean
    #[arg(long, env = "LLM2VEC_WORD_POOLING", default_value = "mean", value_name = "MODE")]
    word_pooling: WordPooling,
    /// Encode only part I of N (1/4 … 4/4), which `join` makes one file of; auto: this process's rank among those that mpirun, srun or torchrun started; auto/N: in a job array 1-N its task. With auto the file is NAME-00003-of-00016.npy
    #[arg(long, env = "LLM2VEC_SHARD", value_name = "I/N|auto|auto/N")]
    shard: Option<Shard>,
    /// Leave a part alone that is there, whole and of this very run
    #[arg(long, env = "LLM2VEC_SKIP_DONE", requires = "shard", value_parser = BoolishValueParser::new())]
    skip_done: bool,
    /// Print for every text the K most similar others, by cosine
    #[arg(long, env = "LLM2VEC_NEAREST", value_name = "K")]
    nearest: Option<usize>,
}

/// No error where whoever read stdout has seen enough and left, as `head` does.
pub fn unread(e: Error) -> Result<()> {
    match e {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        e => Err(e),
    }
}

/// All that is open before the first text is read.
struct Started {
    encoder: Encoder,
    output: Option<Output>,
    /// None where a program at our pipes is answered line by line.
    records: Option<std::iter::Skip<input::Records>>,
    left: u64,
    parts: Parts,
    end: End,
    /// Of a shard that goes to a file: the file, and what is to be recorded of it.
    record: Option<(PathBuf, PartRecord)>,
}

impl Encode {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let Some(started) = self.start()? else { return Ok(()) };
        let Started { mut encoder, mut output, records, mut left, parts, end, record } = started;
        let mut tally = Tally::to(end, self.texts.quiet);
        let Some(mut records) = records else {
            let Some(output) = output else { return Ok(()) };
            let peer = Peer { encoder, output, parts, instruction: &self.texts.instruction };
            return peer.answer(peer::lines(self.reading.reading())?, &mut tally);
        };
        let mut nearest = self.nearest.map(|k| Nearest::new(k, encoder.width()));
        loop {
            let window = self.window(&mut records, &mut left, &encoder)?;
            if window.is_empty() {
                break;
            }
            let at = |i: usize, what: Message| {
                Error::file(self.name(), message![format!("{}: ", window[i].place), what])
            };
            if let (Some(output), Level::Token | Level::Word) = (&mut output, self.level) {
                let passages: Vec<Passage> =
                    window.iter().map(|r| peer::passage(r, &self.texts.instruction)).collect();
                let answers = encoder.tokens(&passages, parts, |texts, tokens| tally.add(texts, tokens))?;
                for (i, answer) in answers.into_iter().enumerate() {
                    let block = answer.map_err(|e| at(i, e.message()))?;
                    tally.cut += u64::from(block.cut);
                    output.write_block(window[i].id.as_ref(), &block.vectors, &block.offsets, block.cut)?;
                }
                continue;
            }
            let added = |texts, tokens| tally.add(texts, tokens);
            let Rows { vectors: rows, cut } =
                encoder.texts(&self.items(&window), self.texts.empty, at, added)?;
            tally.cut += cut;
            if let Some(output) = &mut output {
                for (record, row) in window.iter().zip(rows.chunks_exact(encoder.width())) {
                    output.write_vector(record.id.as_ref(), row)?;
                }
            }
            if let Some(nearest) = &mut nearest {
                nearest.add(window.into_iter().map(|r| r.text), &rows)?;
            }
        }
        if tally.texts == 0 && self.shard.is_none() {
            return Err(Error::file(self.name(), "holds no text"));
        }
        output.map_or(Ok(0), Output::finish)?;
        record.map_or(Ok(()), |(part, record)| record.write(&part))?;
        tally.finish();
        nearest.map_or(Ok(()), |n| n.print())
    }

    /// Opens all that it reads and writes, the model last; nothing where the part is done already.
    fn start(&self) -> Result<Option<Started>> {
        if self.nearest.is_some() && self.output.as_deref() == Some("-") {
            return Err(Error::usage("--nearest and --output - would share stdout; give a file name"));
        }
        if self.nearest.is_some() && self.level != Level::Text {
            return Err(Error::usage("--nearest compares texts; leave out --level"));
        }
        if self.level != Level::Text {
            self.model.check_states()?;
        }
        let input = if self.input == "-" { "/dev/stdin" } else { &self.input };
        let part = self.shard.map(|shard| shard.part(engine::variable)).transpose()?;
        let auto = part.filter(|_| self.shard.is_some_and(Shard::is_auto));
        let output = self.output.as_ref().map(|output| match auto {
            Some(part) if output != "-" => shard::part_path(output, part),
            _ => output.clone(),
        });
        if let Some(output) = output.as_ref().filter(|o| atomic::same_file((*o).as_ref(), input.as_ref())) {
            return Err(Error::usage(format!("--output {output} is the input; give another name")));
        }
        let device = match auto {
            Some(_) if self.model.device == "auto" => engine::device(),
            _ => self.model.device.clone(),
        };
        let device = self.kernels.open(&device)?;
        let options = Options { device, layer: self.texts.layer, ..self.model.options.clone() };
        let (range, total) = self.range(part)?;
        let peer = self.input == "-" && self.output.as_deref() == Some("-");
        let records = if peer { None } else { Some(self.records()?) };
        let end = match records.as_ref().and_then(input::Records::progress) {
            Some(_) if self.shard.is_some() => End::Texts(range.end - range.start),
            file => file.map_or(End::Unknown, End::File),
        };
        let records = records.map(|records| records.skip(range.start as usize));
        let setup = Setup::open(&options)?;
        tell(&setup, self.texts.quiet);
        let c = if self.level == Level::Text { setup.dimensions() } else { setup.config.width };
        // Before the weights: a wrong name or a missing folder should not cost the time to load them.
        let create = if self.level == Level::Text { Output::create } else { Output::of_blocks };
        let file = output.as_ref().filter(|output| *output != "-").map(PathBuf::from);
        let record = match part.zip(file) {
            Some((part, file)) => {
                let form = (c, self.output_dtype, self.level.name());
                let record = PartRecord::new(
                    part,
                    range.clone(),
                    total,
                    input.as_ref(),
                    &setup,
                    form,
                    self.asked(&setup),
                )?;
                if self.skip_done && record.is_done(&file) {
                    if !self.texts.quiet {
                        say(format_args!("{}: is done, part {} of {}", file.display(), part.number, part.of));
                    }
                    return Ok(None);
                }
                Some((file, record))
            }
            None => None,
        };
        let output = output.as_ref().map(|o| create(o, c, self.output_dtype)).transpose()?;
        let encoder = Encoder::load(setup)?;
        let normalize = options.normalize == Some(true);
        let parts =
            Parts { level: self.level, word_pooling: self.word_pooling, empty: self.texts.empty, normalize };
        let left = range.end - range.start;
        Ok(Some(Started { encoder, output, records, left, parts, end, record }))
    }

    fn name(&self) -> &str {
        if self.input == "-" { "stdin" } else { &self.input }
    }

    fn records(&self) -> Result<input::Records> {
        input::open(&self.input, &self.reading.reading())
    }

    /// What decides a vector's numbers beside the model and its settings.
    fn asked(&self, setup: &Setup) -> Map<String, Value> {
        let on_gpu = matches!(setup.device, Device::Gpu(_));
        let asked = json!({
            "instruction": self.texts.instruction, "empty": format!("{:?}", self.texts.empty),
            "word pooling": format!("{:?}", self.word_pooling), "dimensions": setup.dimensions(),
            "prompt": self.model.options.prompt, "compat": format!("{:?}", self.model.options.compat),
            "text column": self.reading.text_column, "input format": format!("{:?}", self.reading.input_format),
            "arithmetic": if on_gpu { "bf16 on a GPU".into() } else { format!("{:?}", setup.storage) },
        });
        if let Value::Object(asked) = asked { asked } else { Map::new() }
    }

    /// The records of this shard, parts of equal size in the input's order, so that the input is counted first; and its count.
    fn range(&self, part: Option<Part>) -> Result<(std::ops::Range<u64>, u64)> {
        let Some(Part { number: i, of: n }) = part else { return Ok((0..u64::MAX, u64::MAX)) };
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
        Ok((edge(i - 1)..edge(i), total))
    }

    fn window(
        &self,
        records: &mut impl Iterator<Item = Result<Record>>,
        left: &mut u64,
        encoder: &Encoder,
    ) -> Result<Vec<Record>> {
        let size = peer::WindowSize::new(encoder, self.level);
        let (mut window, mut bytes, mut rows) = (Vec::new(), 0, 0);
        while *left > 0 && rows < size.rows && bytes < WINDOW_BYTES {
            let Some(record) = records.next() else { break };
            let record = record?;
            bytes += record.text.len() + record.instruction.as_ref().map_or(0, String::len);
            rows += size.rows_of(&record);
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
