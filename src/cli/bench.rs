//! `llm2vec bench`: how long things take here, and how long they could.

mod plot;
mod tune;
mod whole;

use crate::bench::cases::{self, Case, large::large};
use crate::bench::measure::{self, Settings};
use crate::bench::record::Record;
use crate::bench::rival::{self, Patience, Python, Script};
use crate::bench::subject::gpu;
use crate::bench::table::Form;
use crate::cli::lists::{Listed, paths};
use crate::cli::{FLAGS, KernelSetFlags, print, say};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::atomic;
use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Time ops and whole models; against PyTorch where it is installed.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec bench ops --filter attention
  llm2vec bench ops --device cuda --against pytorch --output ops.md --output ops.json
  llm2vec bench ops --device emulated --filter rmsnorm       what kernels cost, counted: no GPU needed
  llm2vec bench encode --shape Mistral-7B --device cuda --against pytorch --compile
  llm2vec bench train -m DIR --stage mntp --tokens 2048 --length 64
  llm2vec bench tune -m DIR                                   which kernels are the faster on this GPU, kept for later
  llm2vec bench report results > table.md")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Ops(Box<Ops>),
    Encode(whole::Encode),
    Train(whole::Train),
    Tune(tune::Tune),
    Report(Report),
}

/// Every op of the case table, or at the sizes of real models: time, GB/s, TFLOP/s, share of the measured roof.
///
/// The roof is a copy and a plain product (of a CPU, its multiply instructions alone), timed in the same run. On the emulator costs are counted, not timed.
#[derive(Args)]
struct Ops {
    /// Only cases whose op and sizes hold all these words
    #[arg(long, env = "LLM2VEC_FILTER", value_name = "WORDS", default_value = "")]
    filter: String,
    /// table: the tests' own; large: a layer of S-LLaMA-1.3B, Llama-2-7B, Mistral-7B, Llama-3-8B [default: large on a GPU]
    #[arg(long, env = "LLM2VEC_CASES", value_name = "SET")]
    cases: Option<Set>,
    /// Tokens in a pack of the large cases
    #[arg(long, env = "LLM2VEC_TOKENS", value_name = "N", default_value_t = 16384)]
    tokens: usize,
    /// Print the cases and run none
    #[arg(long, env = "LLM2VEC_LIST", value_name = "FORM")]
    list: Option<ListForm>,
    #[command(flatten)]
    rival: RivalFlags,
    #[command(flatten)]
    common: Common,
}

/// What it is compared with.
#[derive(Args)]
struct RivalFlags {
    /// Time another library's ways as well, in turn with ours
    #[arg(long, env = "LLM2VEC_AGAINST", value_name = "LIBRARY")]
    against: Option<Library>,
    /// A Python that has torch
    #[arg(long, env = "LLM2VEC_PYTHON", value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// PyTorch: torch.compile as well (it compiles everything once, which takes long)
    #[arg(long, env = "LLM2VEC_COMPILE", value_parser = BoolishValueParser::new())]
    compile: bool,
    /// Give the other library up once it has not answered for so long; a compilation takes minutes
    #[arg(long, env = "LLM2VEC_PATIENCE", value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
}

/// What every bench takes.
#[derive(Args)]
struct Common {
    /// auto, cpu, cuda[:N] or emulated[:80|:90]
    #[arg(long, env = "LLM2VEC_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: String,
    #[command(flatten)]
    kernels: KernelSetFlags,
    /// Times through all cases; 0 runs each once and times none
    #[arg(long, env = "LLM2VEC_ROUNDS", value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Times that a case is timed in a round
    #[arg(long, env = "LLM2VEC_SAMPLES", value_name = "N", default_value_t = 5)]
    samples: usize,
    /// Begin no second round after so long, and publish what was timed until then
    #[arg(long, env = "LLM2VEC_SECONDS", value_name = "N")]
    seconds: Option<u64>,
    /// FILE.md, .json, .csv or .txt; repeat for several. The table goes to stdout in any case
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE")]
    output: Vec<Listed>,
    /// Draw roofline and ratios, or the tokens per second of each program, as FILE.svg
    #[arg(long, env = "LLM2VEC_PLOT", value_name = "FILE")]
    plot: Option<PathBuf>,
    /// No progress
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Set {
    Table,
    Large,
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum ListForm {
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Library {
    Pytorch,
}

/// The Markdown tables of a folder of results, as the README has them.
#[derive(Args)]
struct Report {
    /// Where the .json files of `bench --output` and of the packed runner are
    folder: PathBuf,
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Ops(ops) => ops.run(),
            What::Encode(encode) => encode.run(),
            What::Train(train) => train.run(),
            What::Tune(tune) => tune.run(),
            What::Report(report) => report.run(),
        }
    }
}

impl RivalFlags {
    /// Whether there is one.
    fn wanted(&self) -> Result<bool> {
        match self.compile && self.against.is_none() {
            true => Err(Error::usage("--compile: only with --against pytorch")),
            false => Ok(self.against.is_some()),
        }
    }

    fn patience(&self) -> Patience {
        Patience { time: Duration::from_secs(self.patience), spelling: FLAGS }
    }
}

impl Common {
    /// The number of the GPU, which PyTorch is to take as well.
    fn ordinal(&self, device: &Device) -> Option<usize> {
        let number = self.device.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        gpu(device).map(|_| number.unwrap_or(0))
    }

    /// The device, with the kernels that were asked for.
    fn opened(&self) -> Result<Device> {
        self.kernels.open(&self.device)
    }

    fn settings(&self) -> Result<Settings> {
        if !(1..=100_000).contains(&self.samples) || self.rounds > 100_000 {
            let what = format!(
                "--rounds {} --samples {}: expected at most 100000, and 1 sample",
                self.rounds, self.samples
            );
            return Err(Error::usage(what));
        }
        paths(&self.output).iter().try_for_each(|file| Form::of(file).map(|_| ()))?;
        if let Some(plot) = self.plot.as_ref().filter(|path| path.extension().is_none_or(|e| e != "svg")) {
            return Err(Error::usage(format!(
                "--plot {}: expected a name that ends in .svg",
                plot.display()
            )));
        }
        let time = self.seconds.map(Duration::from_secs);
        Ok(Settings { rounds: self.rounds, samples: self.samples, time, spelling: FLAGS })
    }

    fn progress(&self) -> impl Fn(String) {
        let quiet = self.quiet || !std::io::stderr().is_terminal();
        move |line| {
            if !quiet {
                say(line);
            }
        }
    }

    /// To stdout and to every file; an error if a case failed.
    fn publish(&self, record: &Record) -> Result<()> {
        for file in &paths(&self.output) {
            atomic::write(file, record.render(Form::of(file)?).as_bytes())?;
        }
        print(&record.render(Form::Text))?;
        if let Some(path) = &self.plot {
            plot::draw(path, record)?;
        }
        let failed: Vec<_> = record.rows.iter().filter(|r| r.failed).collect();
        match failed.first() {
            None => Ok(()),
            Some(row) => Err(Error::device(format!(
                "{} of {} cases failed; {} {}: {}",
                failed.len(),
                record.rows.len(),
                row.op,
                row.label,
                row.note.as_deref().unwrap_or_default()
            ))),
        }
    }
}

impl Ops {
    fn run(self) -> Result<()> {
        let settings = self.common.settings()?;
        let device = self.common.opened()?;
        let cases = self.selected(gpu(&device).is_some())?;
        let rival = self.rival.wanted()?;
        if self.list.is_some() {
            return print(&format!("{:#}\n", rival::list(&cases)));
        }
        let say = self.common.progress();
        let mut record = Record::new("ops", &device, std::env::args().collect());
        if let (Some(gpu), true) = (gpu(&device), self.common.device.starts_with("emulated")) {
            if rival {
                return Err(Error::usage(
                    "--against: the emulator counts and times nothing; use --device cpu or cuda",
                ));
            }
            record.rows = measure::costs(gpu, &cases, &say)?;
            return self.common.publish(&record);
        }
        let start = || {
            let device = self.common.ordinal(&device).map_or("cpu".into(), |n| format!("cuda:{n}"));
            let settings = json!({
                "device": device, "threads": rayon::current_num_threads(), "compile": self.rival.compile,
                "cases": rival::list(&cases),
            });
            let RivalFlags { python, .. } = &self.rival;
            Python::start(python, Script::Ops, &settings, cases.len(), self.rival.patience())
        };
        let mut python = rival.then(start).transpose()?;
        record.rival = python.as_ref().map(|p| p.name.clone());
        let (rows, roof) = measure::ops(&device, &cases, settings, python.as_mut(), &say)?;
        (record.rows, record.roof) = (rows, Some(roof));
        self.common.publish(&record)?;
        match python.and_then(|p| p.lost.clone()) {
            None => Ok(()),
            Some(why) => Err(Error::device(format!("--against pytorch: {why}; all the rest was measured"))),
        }
    }

    /// The cases that are asked for; the large ones are for GPUs, but not for the emulator.
    fn selected(&self, gpu: bool) -> Result<Vec<Case>> {
        if !(1..=1 << 20).contains(&self.tokens) {
            return Err(Error::usage(format!("--tokens {}: expected 1 to {}", self.tokens, 1 << 20)));
        }
        let emulated = self.common.device.starts_with("emulated");
        let default = if gpu && !emulated { Set::Large } else { Set::Table };
        let set = self.cases.unwrap_or(default);
        let mut cases = Vec::new();
        if set != Set::Large {
            cases.extend(cases::all());
            // Kernels that no smaller size takes.
            cases.extend(gpu.then(cases::device_only).into_iter().flatten());
        }
        if set != Set::Table {
            cases.extend(large(self.tokens));
        }
        let words: Vec<&str> = self.filter.split_whitespace().collect();
        let wanted = |case: &Case| {
            let name = format!("{} {}", case.op, case.label);
            words.iter().all(|word| name.contains(word))
        };
        cases.retain(wanted);
        match cases.is_empty() {
            true => Err(Error::usage(format!("--filter \"{}\": no case has all these words", self.filter))),
            false => Ok(cases),
        }
    }
}

impl Report {
    fn run(self) -> Result<()> {
        let entries = std::fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "json"));
        files.sort();
        if files.is_empty() {
            return Err(Error::file(&self.folder, "holds no .json file of `llm2vec bench`"));
        }
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            let record: Record = serde_json::from_str(&text)
                .map_err(|e| Error::file(&file, format!("is no result of `llm2vec bench`: {e}")))?;
            let name = file.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            print(&format!("### {name}\n\n{}\n", record.render(Form::Markdown)))?;
        }
        Ok(())
    }
}
