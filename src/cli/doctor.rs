//! `llm2vec doctor`: what this machine and this build have to compute with.

use crate::bench::check;
use crate::cli::print;
use crate::device::{Device, cuda, images, nccl, panels};
use crate::error::Result;
use crate::kernels;
use crate::memory::amount;
use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;
use std::collections::BTreeSet;

/// Look at this machine and this build: threads, memory, GPUs, driver, kernels; a hint for all that is missing.
#[derive(Args)]
#[command(after_help = "Example:\n  llm2vec doctor --json | grep WARN")]
pub struct Doctor {
    /// One JSON object a line
    #[arg(long, env = "LLM2VEC_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// One look; with a hint where something is missing that could be there.
#[derive(Serialize)]
pub struct Finding {
    name: &'static str,
    status: &'static str,
    /// What was found.
    pub what: String,
    hint: Option<&'static str>,
}

impl Doctor {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let findings = [
            threads(),
            vectors(),
            memory(),
            gpus(),
            driver_version(),
            built(),
            runnable(),
            hopper(),
            emulator(),
            ranks(),
            nccl(),
        ];
        let line = |f: &Finding| match (self.json, f.hint) {
            (true, _) => serde_json::to_string(f).unwrap_or_default() + "\n",
            (_, None) => format!("{}  {:<9} {}\n", f.status, f.name, f.what),
            (_, Some(hint)) => format!("{}  {:<9} {}; {hint}\n", f.status, f.name, f.what),
        };
        print(&findings.iter().map(line).collect::<String>())
    }
}

fn pass(name: &'static str, what: String) -> Finding {
    Finding { name, status: "PASS", what, hint: None }
}

fn warn(name: &'static str, what: String, hint: &'static str) -> Finding {
    Finding { name, status: "WARN", what, hint: Some(hint) }
}

fn threads() -> Finding {
    let (used, cores) =
        (rayon::current_num_threads(), std::thread::available_parallelism().map_or(1, usize::from));
    let what = format!("{used} of {cores} cores");
    match used < cores {
        true => warn("threads", what, "a larger --threads uses all"),
        false => pass("threads", what),
    }
}

fn vectors() -> Finding {
    let real = panels::f32_unit().map_or("f32 by `gemm`".into(), |name| format!("f32 by {name}"));
    let half = panels::bf16_unit().unwrap_or("widening: this saves memory here, not time");
    pass("cpu", format!("{real}, --dtype bf16 by {half}"))
}

fn memory() -> Finding {
    match Device::cpu().available() {
        Some(bytes) => pass("memory", format!("{} available", amount(bytes))),
        None => warn(
            "memory",
            "this system does not say what is available".into(),
            "plans are not checked against it",
        ),
    }
}

fn gpus() -> Finding {
    let hint = "everything runs on the CPU; for a GPU install NVIDIA's driver";
    match cuda::gpus() {
        Ok(list) if list.is_empty() => warn("gpu", "the driver sees none".into(), hint),
        Ok(list) => pass("gpu", listed(&list)),
        Err(why) => warn("gpu", why, hint),
    }
}

/// GPUs in a line.
pub fn listed(gpus: &[cuda::Description]) -> String {
    let one = |g: &cuda::Description| {
        let (major, minor) = g.capability;
        format!("{} (sm_{major}{minor}, {})", g.name, amount(g.memory as u64))
    };
    gpus.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn driver_version() -> Finding {
    match cuda::driver() {
        Some(version) => pass("driver", version),
        None => warn("driver", "no NVIDIA kernel module".into(), "it comes with NVIDIA's driver"),
    }
}

const BUILD: &str = "set NVCC or CUDA_HOME, or run kernels/install_nvcc.sh, and build again";

fn built() -> Finding {
    let Some(version) = option_env!("LLM2VEC_NVCC") else {
        return warn("kernels", "none in this build: nvcc was not found".into(), BUILD);
    };
    let files = kernels::FILES;
    let count: usize = files.iter().map(|f| f.kernels.len()).sum();
    let targets: BTreeSet<&str> = files.iter().flat_map(|f| f.images).map(|i| i.target).collect();
    let targets: Vec<&str> = targets.into_iter().collect();
    pass("kernels", format!("{count} in {} files by nvcc {version}, for {}", files.len(), targets.join(", ")))
}

/// Whether every portable file has an image for every GPU that is there.
fn runnable() -> Finding {
    let gpus = cuda::gpus().unwrap_or_default();
    let portable = || kernels::FILES.iter().filter(|f| !f.stem.contains("_sm") && !f.images.is_empty());
    let lacks = |g: &&cuda::Description| portable().any(|f| images::choose(f.images, g.capability).is_none());
    match gpus.iter().find(lacks) {
        _ if gpus.is_empty() => warn("images", "no GPU to choose for".into(), "see gpu above"),
        _ if portable().next().is_none() => warn("images", "none".into(), BUILD),
        Some(g) => warn(
            "images",
            format!("{} runs none of those above", g.name),
            "sm_80 is the oldest that is built for",
        ),
        None => {
            let of = |g: &cuda::Description| {
                portable().filter_map(|f| images::choose(f.images, g.capability)).map(|i| i.target).next()
            };
            let chosen: Vec<&str> = gpus.iter().filter_map(of).collect();
            pass("images", format!("chosen: {}", chosen.join(", ")))
        }
    }
}

/// What the self-check found of the first GPU that runs kernels for Hopper.
pub fn hopper() -> Finding {
    let gpus = cuda::gpus().unwrap_or_default();
    let Some(gpu) = gpus.iter().find(|gpu| gpu.capability == (9, 0)) else {
        return pass("hopper", "no GPU of compute capability 9.0: portable kernels run".into());
    };
    match check::cache().and_then(|cache| check::known(gpu, &cache)) {
        Some(verdict) if verdict.wrong.is_empty() => pass("hopper", verdict.told()),
        Some(verdict) => warn("hopper", verdict.told(), "what is left out runs by portable kernels"),
        None => warn(
            "hopper",
            "no self-check yet".into(),
            "the first encode, train or bench makes it, in seconds",
        ),
    }
}

/// Whether this build trains on several ranks, and by which MPI.
fn ranks() -> Finding {
    #[cfg(feature = "mpi")]
    return pass("mpi", format!("ranks train by {}", crate::train::ranks::library()));
    #[cfg(not(feature = "mpi"))]
    pass("mpi", "not in this build: one process trains (--features mpi for ranks)".into())
}

/// What the GPUs of ranks would exchange gradients by.
fn nccl() -> Finding {
    match (nccl::version(), cuda::gpus().is_ok_and(|list| !list.is_empty())) {
        (Ok(version), _) => pass("nccl", format!("{version}, for ranks that have a GPU each")),
        (Err(why), false) => pass("nccl", format!("{why}; no GPU would take it")),
        (Err(why), true) => warn(
            "nccl",
            why,
            "gradients of ranks go through the hosts' memory; name the library's folder in LD_LIBRARY_PATH",
        ),
    }
}

fn emulator() -> Finding {
    let ptx = kernels::FILES.iter().flat_map(|f| f.images).filter(|i| i.target.starts_with("compute_"));
    match ptx.count() {
        0 => warn("emulator", "no PTX in this build".into(), BUILD),
        n => pass("emulator", format!("{n} files of PTX: --device emulated runs them on the CPU, checked")),
    }
}
