//! The self-check: whether kernels for one generation of GPUs are right on the one that is there.
//!
//! Each family runs once in a process of its own, beside the portable kernels: one that hangs or faults costs seconds, and not
//! the user's run. What was found is kept in `$XDG_CACHE_HOME/llm2vec/KEY.json`, the key being all that it depends on.

use super::cases::{self, Case};
use super::subject::Operands;
use crate::device::choice::{self, Table};
use crate::device::gpu::Gpu;
use crate::device::images::KernelSet;
use crate::device::{Device, cuda};
use crate::error::{Error, Result};
use crate::format::atomic;
use crate::kernels;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Families of kernels for Hopper, each named like its op.
pub const FAMILIES: [&str; 4] = ["attention", "lora_linear", "masked_xent", "contrastive"];
/// What a family may take: its driver, its images, its cases; and all of them.
const PATIENCE: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(10);
/// Cases of more operations are left to the tests.
const FLOPS: usize = 1 << 28;

/// What is wrong with a family, if anything: by all of its cases, on the kernels for Hopper and on the portable ones.
///
/// Errors where the device does.
pub fn compare(gpu: &Gpu, family: &str) -> Result<Option<String>> {
    let sets = [KernelSet::Portable, KernelSet::Hopper];
    let operands = Operands::new(&Device::Gpu(gpu.clone()));
    let all = cases::all().into_iter().chain(cases::device_only());
    for case in all.filter(|case| case.op.starts_with(family) && case.flops <= FLOPS) {
        let [right, got] =
            sets.map(|set| outputs(&operands, &Device::Gpu(gpu.clone()).with_kernels(set)?, &case));
        let (right, got) = match (right, got) {
            (Err(Error::Limit { .. }), Err(Error::Limit { .. })) => continue,
            (right, got) => (right?, got?),
        };
        for ((operand, right), got) in case.outputs.iter().zip(&right).zip(&got) {
            if !operand.role.is_result() {
                continue;
            }
            if let Some(what) = apart(&right.to_f64(), &got.to_f64()) {
                return Ok(Some(format!("{} {}: {} {what}", case.op, case.label, operand.name)));
            }
        }
    }
    Ok(None)
}

/// What a case leaves on a device, on the host.
pub(super) fn outputs(operands: &Operands, device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let (mut outputs, inputs) = (operands.list(&case.outputs)?, operands.list(&case.inputs)?);
    (case.run)(device, &mut outputs, &inputs)?;
    outputs.iter().map(Tensor::to_host).collect()
}

/// How far two results of one sum are apart, if further than two roundings to bf16 and the order of f32 sums account for.
fn apart(right: &[f64], got: &[f64]) -> Option<String> {
    let rms = |x: &mut dyn Iterator<Item = f64>| (x.map(|x| x * x).sum::<f64>() / right.len() as f64).sqrt();
    let size = rms(&mut right.iter().copied());
    let off = rms(&mut right.iter().zip(got).map(|(a, b)| a - b));
    // Equal NaN are what a kernel that does not run leaves of a poisoned output.
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a - b).abs() <= (a.abs() + size) / 64.0;
    let worst = right.iter().zip(got).position(|(&a, &b)| !same(a, b));
    match worst {
        Some(at) => Some(format!("[{at}] is {}, by portable kernels {}", got[at], right[at])),
        None if off > size / 128.0 => Some(format!("is off by {off:.2e} of {size:.2e} on average")),
        None => None,
    }
}

/// What is known of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The GPU, for people.
    pub gpu: String,
    /// Families that are not to run, and why.
    pub wrong: BTreeMap<String, String>,
    /// Which tiles are the faster, once that was tried: a [`Table`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Value>,
}

/// The file of a GPU's verdict in `cache`: named by the GPU, its size, its driver and the images.
pub fn file(cache: &Path, gpu: &cuda::Description) -> PathBuf {
    let mut hash = Sha256::new();
    let (major, minor) = gpu.capability;
    let driver = cuda::driver().unwrap_or_default();
    hash.update(format!("{}\n{major}.{minor}\n{}\n{}\n{driver}\n", gpu.name, gpu.processors, gpu.memory));
    for image in kernels::FILES.iter().flat_map(|file| file.images).filter(|i| i.target == "sm_90a") {
        hash.update(Sha256::digest(image.bytes));
    }
    let name: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    cache.join(format!("{name}.json"))
}

/// `$XDG_CACHE_HOME/llm2vec`, else `~/.cache/llm2vec`.
pub fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("llm2vec"))
}

/// What is known of this GPU, if anything is; nothing is tried.
pub fn known(gpu: &cuda::Description, cache: &Path) -> Option<Verdict> {
    serde_json::from_str(&std::fs::read_to_string(file(cache, gpu)).ok()?).ok()
}

/// Keeps a table beside the verdict of this GPU, in its file.
///
/// Errors where there is no verdict that can be read, or the file cannot be written.
pub fn keep(gpu: &cuda::Description, cache: &Path, table: &Table) -> Result<PathBuf> {
    let file = file(cache, gpu);
    // Another tuning waits: each reads what the one before has left.
    let beside = file.with_extension("lock");
    let lock = std::fs::File::create(&beside).map_err(|e| Error::io(&beside, e))?;
    lock.lock().map_err(|e| Error::io(&beside, e))?;
    let mut verdict =
        known(gpu, cache).ok_or_else(|| Error::file(&file, "holds no verdict to keep it with"))?;
    verdict.table = Some(serde_json::to_value(table).unwrap_or_default());
    atomic::write_json(&file, &serde_json::to_value(&verdict).unwrap_or_default())?;
    Ok(file)
}

impl Verdict {
    /// The table that is kept with it, if there is one.
    ///
    /// Errors where it cannot be read.
    pub fn tuned(&self) -> Result<Option<Table>> {
        let read = |value: &Value| {
            Table::deserialize(value)
                .map_err(|e| Error::unsupported(format!("the table of kernels cannot be read: {e}")))
        };
        self.table.as_ref().map(read).transpose()
    }

    /// Which families run, and which are left out, and why.
    pub fn told(&self) -> String {
        let (wrong, right): (Vec<&str>, Vec<&str>) =
            FAMILIES.into_iter().partition(|family| self.wrong.contains_key(*family));
        let right = if right.is_empty() { "none".into() } else { right.join(", ") };
        let wrong = wrong.iter().map(|family| format!("; {family} left out: {}", self.wrong[*family]));
        let table = self.tuned().map_or("table: unreadable".into(), |table| choice::named(table.as_ref()));
        format!(
            "of the kernels for Hopper {right} passed the self-check{}; {table}",
            wrong.collect::<String>()
        )
    }
}

/// What is known of this GPU, or found out now by `child`, a process for each family, and kept if each could be started.
///
/// Errors where nothing can be kept, before anything is tried: it would be tried at every start.
pub fn verdict(
    gpu: &cuda::Description,
    cache: &Path,
    child: impl Fn(&str) -> Command,
    say: impl Fn(String),
) -> Result<Verdict> {
    let file = file(cache, gpu);
    if file.exists() {
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        return serde_json::from_str(&text)
            .map_err(|e| Error::file(&file, format!("is no verdict: {e}; delete it")));
    }
    std::fs::create_dir_all(cache).map_err(|e| Error::io(cache, e))?;
    atomic::beside(&file)?;
    say(format!("{}: trying the kernels for Hopper once, {} s at most", gpu.name, ALL.as_secs()));
    let mut verdict = Verdict { gpu: gpu.name.clone(), ..Verdict::default() };
    let (mut tried, end) = (true, Instant::now() + ALL);
    for family in FAMILIES {
        let left = end.saturating_duration_since(Instant::now()).min(PATIENCE);
        let why = if left.is_zero() {
            Some(format!("not tried: the {} s for all were over", ALL.as_secs()))
        } else {
            let mut child = child(family);
            let child = child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
            tried &= child.is_ok();
            match child {
                Ok(child) => outcome(child, left),
                Err(e) => Some(format!("no process could be started: {e}")),
            }
        };
        if let Some(why) = why {
            say(format!("warning: kernels of {family} for Hopper are left out on {}: {why}", gpu.name));
            verdict.wrong.insert(family.into(), why);
        }
    }
    // Where no process starts, the next run tries again; a GPU that used up the time would use it up again.
    if tried {
        atomic::write_json(&file, &serde_json::to_value(&verdict).unwrap_or_default())?;
        if !verdict.wrong.is_empty() {
            say(format!("{} keeps that; without it they are tried again", file.display()));
        }
    }
    Ok(verdict)
}

/// Why a family fails, if it does: what its process says, or how it ended.
fn outcome(mut child: Child, patience: Duration) -> Option<String> {
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill().and_then(|()| child.wait().map(drop));
                return Some(format!("not done after {:.1} s", patience.as_secs_f64()));
            }
            Err(e) => return Some(format!("its process is lost: {e}")),
        }
    };
    if status.success() {
        return None;
    }
    let mut said = String::new();
    let _ = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).map(String::from);
    Some(last.unwrap_or_else(|| status.to_string()))
}
