//! Which kernels for Hopper `--kernels auto` takes, and the process that tries a family of them.

use crate::bench::check::{FAMILIES, cache, compare, verdict};
use crate::cli::say;
use crate::device::gpu::Gpu;
use crate::device::{Device, cuda};
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;
use std::process::Command;

/// Try a family of kernels for Hopper beside the portable ones; what the self-check starts.
#[derive(Args)]
pub struct SelfCheck {
    /// The op
    family: String,
    /// cuda[:N] or emulated:90
    device: String,
}

impl SelfCheck {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let Device::Gpu(gpu) = Device::by_name(&self.device)? else {
            return Err(Error::usage(format!("{}: expected a GPU", self.device)));
        };
        match compare(&gpu, &self.family)? {
            Some(what) => Err(Error::device(what)),
            None => Ok(()),
        }
    }
}

fn number(name: &str) -> usize {
    name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The GPU of this name, and where what is known of it is kept.
pub fn place(name: &str) -> Result<(cuda::Description, PathBuf)> {
    let (number, mut list) = (number(name), cuda::gpus().map_err(Error::device)?);
    if number >= list.len() {
        return Err(Error::device(format!("cuda:{number} is not among the GPUs")));
    }
    let cache =
        cache().ok_or_else(|| Error::usage("neither XDG_CACHE_HOME nor HOME says where to keep it"))?;
    Ok((list.swap_remove(number), cache))
}

/// The GPU of this name with the kernels for Hopper that are right there: found out once, told in a line; and with what was
/// found to be the faster of them.
pub fn checked(name: &str, gpu: Gpu) -> Result<Gpu> {
    let number = number(name);
    let program = std::env::current_exe();
    let child = |family: &str| {
        let mut command = Command::new(program.as_deref().unwrap_or("llm2vec".as_ref()));
        command.args(["self-check", family, &format!("cuda:{number}")]);
        command
    };
    match place(name).and_then(|(gpu, cache)| verdict(&gpu, &cache, child, say)) {
        Ok(verdict) => {
            let table = verdict.tuned().unwrap_or_else(|e| {
                say(format_args!("warning: {}; the default is taken", e.message()));
                None
            });
            Ok(gpu.checked(verdict.wrong).tuned(table))
        }
        Err(e) => {
            let why = e.message().to_string();
            say(format_args!("warning: kernels for Hopper are left out: {why}"));
            Ok(gpu.checked(FAMILIES.map(|family| (family.into(), why.clone())).into()))
        }
    }
}
