//! `llm2vec info`: what would run, without running it.

use crate::bench::record::described;
use crate::bench::table::aligned;
use crate::cli::doctor::{self, listed};
use crate::cli::{FLAGS, ModelFlags, is_verbose, print, say};
use crate::device::images::Resource;
use crate::device::{Device, cuda};
use crate::error::{Error, Result};
use crate::kernels;
use crate::model::config::RopeScaling;
use crate::model::weights::Storage;
use crate::pretrained::open::Setup;
use crate::train::config::{Stage, TrainConfig};
use crate::train::prepare;
use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};
use std::path::PathBuf;

/// Say what would run: model, settings, memory plan, devices; reads no weight.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  llm2vec info -m DIR --adapter mntp --dtype bf16\n  llm2vec info -m DIR --train simcse --ranks 4\n  llm2vec info --kernels"
)]
pub struct Info {
    #[command(flatten)]
    what: What,
    /// Say as well what each rank of this stage's training would allocate, by the paper's settings or a file's
    #[arg(long, env = "LLM2VEC_TRAIN", value_name = "STAGE")]
    train: Option<Stage>,
    /// The training's configuration
    #[arg(long, env = "LLM2VEC_CONFIG", value_name = "FILE.json", requires = "train")]
    config: Option<PathBuf>,
    /// Ranks that share the training
    #[arg(long, env = "LLM2VEC_RANKS", value_name = "N", default_value_t = 1, requires = "train")]
    ranks: usize,
}

/// Of what; a model on the command line and kernels in the environment are the model, and the other way round.
enum What {
    Kernels,
    Model(Box<ModelFlags>),
}

#[derive(Args)]
struct KernelFlags {
    /// Say instead what the CUDA kernels of this build take: registers, shared memory, occupancy, bytes
    #[arg(long, env = "LLM2VEC_KERNELS", value_parser = BoolishValueParser::new())]
    kernels: bool,
}

impl FromArgMatches for What {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<What, clap::Error> {
        let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let kernels = KernelFlags::from_arg_matches(matches)?.kernels;
        let flags = ModelFlags::augment_args(clap::Command::new("model"));
        match flags.get_arguments().find(|arg| given(arg.get_id().as_str())) {
            Some(flag) if given("kernels") => {
                let flag = flag.get_long().unwrap_or_default();
                let what = format!("--kernels and --{flag}: expected one of them\n");
                Err(clap::Error::raw(ErrorKind::ArgumentConflict, what))
            }
            None if kernels => Ok(What::Kernels),
            _ if matches.value_source("model").is_none() => Err(clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "expected --model DIR or --kernels\n",
            )),
            _ => Ok(What::Model(Box::new(ModelFlags::from_arg_matches(matches)?))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        What::from_arg_matches(matches).map(|what| *self = what)
    }
}

impl Args for What {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = KernelFlags::augment_args(ModelFlags::augment_args(command));
        command.mut_arg("model", |model| model.required(false))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        What::augment_args(command)
    }
}

impl Info {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let model = match self.what {
            What::Kernels => return print(&kernel_table()?),
            What::Model(model) => model,
        };
        let setup = Setup::open(&model.options()?)?;
        setup.warnings.iter().for_each(|w| say(format_args!("warning: {w}")));
        let mut lines = described_setup(&setup);
        if let Some(stage) = self.train {
            let config = self.config.map(|path| TrainConfig::read(&path, stage)).transpose()?;
            let config = config.map_or_else(|| TrainConfig::new(stage), |(config, _)| config);
            let plan = prepare::rank_plan(config, &setup, self.ranks)?;
            lines.extend(plan.iter().map(|line| format!("{:<12} {}", stage.name(), line.spelled(FLAGS))));
        }
        print(&(lines.join("\n") + "\n"))
    }
}

/// Says what is to be known before a command computes: warnings; of what was opened its attention, or all that `info` says
/// where the user wants more words.
pub fn tell(setup: &Setup, quiet: bool) {
    setup.warnings.iter().for_each(|w| say(format_args!("warning: {w}")));
    match (is_verbose(), quiet) {
        (true, _) => described_setup(setup).iter().for_each(say),
        (false, true) => {}
        (false, false) => say(setup.attention_line().spelled(FLAGS)),
    }
}

/// Lines of what would run: the model, the settings, the device, the memory plan.
fn described_setup(setup: &Setup) -> Vec<String> {
    let lines = [model_lines(setup), setting_lines(setup), device_lines(&setup.device), memory_lines(setup)];
    lines.concat().iter().map(|(key, value)| format!("{key:<12} {value}")).collect()
}

type Line = (&'static str, String);

fn model_lines(setup: &Setup) -> Vec<Line> {
    let (c, h) = (&setup.config, setup.config.heads);
    let window = match c.window {
        None => String::new(),
        Some(w) if c.windowed == c.layers => format!(", window {w} in pre-training"),
        Some(w) => format!(", window {w} in {} layers in pre-training", c.windowed),
    };
    let scaling = match c.rope_scaling {
        RopeScaling::None => "no scaling".into(),
        ref scaled => format!("scaling {scaled:?}"),
    };
    let dtype = setup.files.checkpoint_dtype().map_or("unknown".into(), |d| format!("{d:?}").to_lowercase());
    let kept = match setup.storage {
        _ if matches!(setup.device, Device::Gpu(_)) => "bf16 on the device, multiplied in bf16 with f32 sums",
        Storage::Real => "f32 in memory",
        Storage::Bf16 => "bf16 in memory, widened to f32 tile by tile (f32 would not fit)",
        Storage::Panels => "bf16 in memory, multiplied in bf16 with f32 sums",
    };
    let chain: Vec<_> = setup.files.chain.iter().map(|l| format!("{} ({:.8})", l.name, l.sha256)).collect();
    vec![
        ("model", setup.dir.display().to_string()),
        (
            "family",
            format!(
                "{:?}, {} layers, width {}, feed-forward {}{window}",
                c.family, c.layers, c.width, c.feed_forward
            ),
        ),
        ("heads", format!("{} query, {} key/value, width {}", h.query, h.key, h.width)),
        ("rope", format!("theta {}, {scaling}", c.rope_theta)),
        ("vocabulary", format!("{} rows, tokenizer {}", c.vocab, setup.prompter.tokenizer().vocab_size())),
        ("parameters", format!("{:.3} M without the head", c.parameters() as f64 / 1e6)),
        ("weights", format!("{dtype} on disk, {kept}")),
        ("adapters", if chain.is_empty() { "none".into() } else { chain.join(" + ") }),
    ]
}

fn setting_lines(setup: &Setup) -> Vec<Line> {
    let span = if setup.pool_all { "all tokens" } else { "the text's own tokens" };
    let unit = if setup.normalize { ", unit length" } else { "" };
    let limits = setup.limits;
    vec![
        ("attention", format!("{:?}, by {}", setup.mask, setup.attention_by.spelled(FLAGS))),
        ("pooling", format!("{} over {span}{unit}", setup.pooling.reference_name())),
        ("template", setup.template.to_string()),
        ("limits", format!("{} tokens a row, {} of them text", limits.max_length, limits.doc_max_length)),
    ]
}

fn device_lines(device: &Device) -> Vec<Line> {
    let gpus = match cuda::gpus() {
        Ok(list) if list.is_empty() => "none".into(),
        Ok(list) => listed(&list),
        Err(why) => why,
    };
    let bf16 = crate::device::panels::bf16_unit().unwrap_or("bf16 widened");
    let device = match device {
        Device::Cpu(_) => format!("cpu, {} threads, {bf16}", rayon::current_num_threads()),
        Device::Gpu(gpu) => described(gpu),
    };
    vec![("device", device), ("gpus", gpus), ("kernels", kernel_line()), ("hopper", doctor::hopper().what)]
}

fn kernel_line() -> String {
    match option_env!("LLM2VEC_NVCC") {
        Some(version) => {
            let count: usize = kernels::FILES.iter().map(|f| f.kernels.len()).sum();
            format!("{count} by nvcc {version}, for --device cuda and emulated")
        }
        None => "none in this build (nvcc was not found): every op runs on the CPU".into(),
    }
}

/// A line for each kernel and target: what ptxas said of it.
fn kernel_table() -> Result<String> {
    let Some(version) = option_env!("LLM2VEC_NVCC") else {
        return Err(Error::device(
            "this build holds no CUDA kernels: nvcc was not found; set NVCC or CUDA_HOME, or run \
             kernels/install_nvcc.sh, and build again",
        ));
    };
    let head = ["kernel", "target", "registers", "shared", "spilled", "threads", "occupancy", "code"];
    let row = |r: &Resource| {
        let (blocks, part) = r.occupancy(r.threads, 0);
        let occupancy = format!("{blocks} = {:.0} %", part * 100.0);
        let numbers = [r.registers, r.shared, r.spilled, r.threads].map(|n| n.to_string());
        [r.kernel.into(), r.target.into()].into_iter().chain(numbers).chain([occupancy, r.code.to_string()])
    };
    let rows = kernels::FILES.iter().flat_map(|f| f.resources).map(|r| row(r).collect());
    let mut text = aligned(&head, &rows.collect::<Vec<_>>());
    let images = kernels::FILES.iter().flat_map(|f| f.images);
    let bytes: usize = images.clone().map(|i| i.bytes.len()).sum();
    text += &format!(
        "nvcc {version}; {} images, {:.1} KiB; occupancy: largest blocks on a multiprocessor, warps of the most, \
         before a launch adds shared memory\n",
        images.count(),
        bytes as f64 / 1024.0
    );
    Ok(text)
}

fn memory_lines(setup: &Setup) -> Vec<Line> {
    let plan = setup.plan();
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let parts: Vec<_> = plan.used().iter().map(|(group, bytes)| format!("{group} {}", mib(*bytes))).collect();
    let free = setup.device.available().map_or(String::new(), |b| format!(", {} available", mib(b)));
    vec![(
        "memory",
        format!("{} for packs of {} tokens ({}){free}", mib(plan.total()), setup.tokens, parts.join(", ")),
    )]
}
