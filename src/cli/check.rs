//! Which kernels for Hopper `--kernels auto` takes, and the process that tries a family of them.

use crate::bench::check::{FAMILIES, cache, compare, verdict};
use crate::cli::say;
use crate::device::gpu::Gpu;
use crate::device::{Device, cuda};
use crate::error::{Error, Result};
use clap::Args;
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

/// The GPU of this name with the kernels for Hopper that are right there: found out once, told in a line.
pub fn checked(name: &str, gpu: Gpu) -> Result<Gpu> {
    let number = name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).unwrap_or(0);
    let program = std::env::current_exe();
    let child = |family: &str| {
        let mut command = Command::new(program.as_deref().unwrap_or("llm2vec".as_ref()));
        command.args(["self-check", family, &format!("cuda:{number}")]);
        command
    };
    let known = (|| {
        let list = cuda::gpus().map_err(Error::device)?;
        let gpu =
            list.get(number).ok_or_else(|| Error::device(format!("cuda:{number} is not among the GPUs")))?;
        let cache =
            cache().ok_or_else(|| Error::usage("neither XDG_CACHE_HOME nor HOME says where to keep it"))?;
        verdict(gpu, &cache, child, say)
    })();
    match known {
        Ok(verdict) => Ok(gpu.checked(verdict.wrong)),
        Err(e) => {
            let why = e.message().to_string();
            say(format_args!("warning: kernels for Hopper are left out: {why}"));
            Ok(gpu.checked(FAMILIES.map(|family| (family.into(), why.clone())).into()))
        }
    }
}
