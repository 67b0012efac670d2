//! `llm2vec bench tune`: the tiles that are the faster for products on this GPU, kept for later runs.

use crate::bench::cases::large::{SHAPES, large_of, shape_of};
use crate::bench::check::{FAMILIES, keep};
use crate::bench::table::aligned;
use crate::bench::tune::{Found, TOTAL, subject, tune};
use crate::cli::check::{checked, place};
use crate::cli::{print, say};
use crate::device::Device;
use crate::device::choice::named;
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::pretrained::files::Stack;
use clap::Args;
use clap::builder::BoolishValueParser;
use std::io::IsTerminal;

/// Time a product's tiles on this GPU in turn with the default's, and keep those that have its bits and beat it by 3 %.
///
/// A minute at most. Later runs of `--kernels auto` go by the table; no other command times anything.
#[derive(Args)]
pub(super) struct Tune {
    /// Model folder, or a name in the local Hugging Face cache, whose sizes are tuned for [default: those of `bench ops`]
    #[arg(short, long, env = "LLM2VEC_MODEL", alias = "model-id", value_name = "DIR")]
    model: Option<String>,
    /// Tokens in a pack
    #[arg(long, env = "LLM2VEC_TOKENS", value_name = "N", default_value_t = 16384)]
    tokens: usize,
    /// auto, cpu, cuda[:N] or emulated[:80|:90]
    #[arg(long, env = "LLM2VEC_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// No progress
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

impl Tune {
    /// Runs the command.
    pub(super) fn run(self) -> Result<()> {
        if !(1..=1 << 20).contains(&self.tokens) {
            return Err(Error::usage(format!("--tokens {}: expected 1 to {}", self.tokens, 1 << 20)));
        }
        let why = "products have a choice of tiles on compute capability 9.0";
        let gpu = match Device::by_name(&self.device)? {
            Device::Gpu(gpu) if gpu.capability() == (9, 0) && !gpu.is_emulated() => gpu,
            Device::Gpu(gpu) => return print(&format!("nothing to tune on {}: {why}\n", gpu.name())),
            Device::Cpu(_) => return print(&format!("nothing to tune on the CPU: {why}\n")),
        };
        let shapes = match &self.model {
            Some(name) => vec![shape_of(&Config::parse(&Stack::open(name, &[])?.config)?)],
            None => SHAPES.to_vec(),
        };
        let gpu = checked(&self.device, gpu)?;
        let mut cases = large_of(&shapes, self.tokens);
        let right = |op: &str| FAMILIES.iter().any(|family| op.starts_with(family) && gpu.hopper(family));
        cases.retain(|case| subject(case).is_some() && right(case.op));
        let quiet = self.quiet || !std::io::stderr().is_terminal();
        if !quiet {
            say(format_args!("{}: {} s at most", gpu.name(), TOTAL.as_secs()));
        }
        let progress = |line: String| {
            if !quiet {
                say(line);
            }
        };
        let (table, found) = tune(&gpu, &cases, &progress)?;
        print(&shown(&found))?;
        match place(&self.device).and_then(|(gpu, cache)| keep(&gpu, &cache, &table)) {
            Ok(file) => print(&format!("{}, in {}\n", named(Some(&table)), file.display())),
            Err(e) => {
                say(format_args!("warning: the table cannot be kept, the default stays: {}", e.message()));
                Ok(())
            }
        }
    }
}

/// A line for every bucket.
fn shown(found: &[Found]) -> String {
    let row = |f: &Found| {
        let (best, gain) = match f.best {
            Some((tile, gain)) => (tile.name().to_string(), format!("{gain:.2}")),
            None => ("default".into(), "-".into()),
        };
        vec![f.bucket.clone(), best, gain, f.notes.join("; ")]
    };
    aligned(
        &["case", "tiles", "default's time over theirs", "detail"],
        &found.iter().map(row).collect::<Vec<_>>(),
    )
}
