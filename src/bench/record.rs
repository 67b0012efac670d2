//! What a run of a bench measured, with all that is needed to repeat it: JSON between a run and its report.

use crate::device::gpu::Gpu;
use crate::device::{Device, cuda};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// `ops`, `encode`, `train` or `checks`.
    pub kind: String,
    /// What computed.
    pub device: String,
    /// Of a GPU: the kernels that ran, and what the self-check left out.
    pub kernels: Option<String>,
    /// The host's processor and how many threads were used.
    pub machine: String,
    /// The GPU's driver.
    pub driver: Option<String>,
    /// Of the sources, where git or the caller knew it; `-dirty` where they were changed since.
    pub commit: Option<String>,
    /// The command line, as a shell takes it, behind the variables of ours that were set.
    pub command: String,
    /// UTC.
    pub date: String,
    /// The medians of the run's copies and products.
    pub roof: Option<Roof>,
    /// What it was compared with.
    pub rival: Option<String>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What was checked.
    pub checks: Vec<Check>,
}

/// What the device reaches, measured in the same run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roof {
    /// Of a copy, reads and writes together.
    pub bytes_per_second: Option<f64>,
    /// Of a plain product in the float that the device computes in; of a CPU, of its instructions alone.
    pub flops_per_second: Option<f64>,
    /// Whose product that was, where it may not be the fastest there is, or which instruction.
    #[serde(default)]
    pub product: Option<String>,
}

/// One case.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// The op.
    pub op: String,
    /// Its sizes.
    pub label: String,
    /// By the case's cost model.
    pub bytes: u64,
    /// Likewise.
    pub flops: u64,
    /// Tokens that one call takes, where a whole model is timed.
    pub tokens: Option<u64>,
    /// Seconds of one call.
    pub time: Option<Spread>,
    /// Of the roof: the least time that it leaves, over the median.
    pub share: Option<f64>,
    /// MHz that a multiprocessor of a GPU ran at, measured behind each sample: the median.
    pub clock_mhz: Option<f64>,
    /// What the emulator counted.
    pub counted: Option<Counted>,
    /// Why there is nothing to show.
    pub note: Option<String>,
    /// Whether that is an error; else the device has no kernel for it.
    pub failed: bool,
    /// The rival's ways to do the same, in seconds, or why not.
    pub rivals: BTreeMap<String, Rival>,
    /// The most memory of a whole model, in bytes: on a GPU what is allocated there, on the CPU what the process has.
    pub peak: Option<u64>,
    /// Likewise, of the rival's ways.
    pub rival_peaks: BTreeMap<String, u64>,
    /// How far the rival's result of the same work without chance was from ours, relative, by what was compared.
    pub apart: BTreeMap<String, f64>,
}

/// Statistics of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// How many there are.
    pub samples: usize,
}

/// What the emulator counted in one call, all launches together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// Launches of kernels, in order, each with its registers and occupancy.
    pub kernels: Vec<String>,
    /// That lanes asked global memory for.
    pub bytes: u64,
    /// Of these each once for reading and once for writing.
    pub touched: u64,
    /// 32-byte sectors of global memory, in bytes.
    pub sectors: u64,
    /// Tensor-core operations.
    pub flops: u64,
    /// Passes through shared memory beyond those that are needed.
    pub conflicts: u64,
}

/// One way of the rival's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rival {
    /// It ran.
    Time(Spread),
    /// It does not take this case.
    Note(String),
}

/// A test or another check that a script ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// Which.
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub status: String,
    /// It took.
    pub seconds: f64,
    /// Why, or what it said last.
    pub detail: String,
}

impl Spread {
    /// Of samples in seconds; nothing of none.
    pub fn of(samples: &[f64]) -> Option<Spread> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&least, samples) = (sorted.first()?, sorted.len());
        let median = (sorted[(samples - 1) / 2] + sorted[samples / 2]) / 2.0;
        Some(Spread { median, least, samples })
    }
}

impl Row {
    /// The rival's fastest way, by its median; a `bound` does less than the op.
    pub fn best_rival(&self) -> Option<(&str, Spread)> {
        let timed = self.rivals.iter().filter_map(|(name, r)| match r {
            Rival::Time(spread) if !name.starts_with("bound: ") => Some((name.as_str(), *spread)),
            _ => None,
        });
        timed.min_by(|a, b| a.1.median.total_cmp(&b.1.median))
    }
}

impl Record {
    /// An empty record of a run that begins now on this device; `command` is the command line.
    pub fn new(kind: &str, device: &Device, command: Vec<String>) -> Record {
        let gpu = matches!(device, Device::Gpu(_));
        let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
        let text =
            |(name, value): (OsString, OsString)| name.into_string().ok().zip(value.into_string().ok());
        let variables = std::env::vars_os().filter_map(text);
        let named = std::env::var("LLM2VEC_COMMIT").ok().filter(|commit| !commit.is_empty());
        Record {
            kind: kind.into(),
            device: match device {
                Device::Cpu(real) => format!("cpu, {real:?}").to_lowercase(),
                Device::Gpu(gpu) => described(gpu),
            },
            kernels: device.kernels(),
            machine: format!("{processor}, {} threads", rayon::current_num_threads()),
            driver: gpu.then(cuda::driver).flatten(),
            commit: named.or_else(|| option_env!("BUILD_COMMIT").map(Into::into)),
            command: line(variables, &command),
            date: now(),
            ..Record::default()
        }
    }
}

/// What repeats a run in a shell.
fn line(variables: impl Iterator<Item = (String, String)>, command: &[String]) -> String {
    // `cargo run` hands on what the build script has set.
    let ours =
        |name: &str| name.starts_with("LLM2VEC_") && !["LLM2VEC_COMMIT", "LLM2VEC_NVCC"].contains(&name);
    let set = variables.filter(|(name, _)| ours(name));
    let mut set: Vec<String> = set.map(|(name, value)| format!("{name}={}", quoted(&value))).collect();
    set.sort();
    set.extend(command.iter().map(|word| quoted(word)));
    set.join(" ")
}

/// In quotes where a shell would make something else of it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// A GPU in a line.
pub fn described(gpu: &Gpu) -> String {
    let ((major, minor), name) = (gpu.capability(), gpu.name());
    format!("{name}, sm_{major}{minor}, {} multiprocessors", gpu.processors())
}

fn field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The time, in UTC.
pub(super) fn now() -> String {
    utc(SystemTime::now())
}

/// `2025-11-25 09:36:16 UTC`: days to dates by Hinnant's `civil_from_days`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    // From the first of March on.
    let day = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (date, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month < 3);
    format!("{year}-{month:02}-{date:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_command_can_be_pasted() {
        let set = [
            ("PATH", "/a"),
            ("LLM2VEC_THREADS", "2"),
            ("LLM2VEC_COMMIT", "b"),
            ("LLM2VEC_NVCC", "13.0"),
            ("LLM2VEC_FILTER", ""),
        ];
        let set = set.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let command = ["llm2vec", "--filter", "swiglu N=65", "it's"].map(String::from);
        assert_eq!(
            line(set, &command),
            r"LLM2VEC_FILTER='' LLM2VEC_THREADS=2 llm2vec --filter 'swiglu N=65' 'it'\''s'"
        );
    }

    #[test]
    fn a_time_is_a_date() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_735_689_600, "2025-01-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn a_spread_is_the_middle_and_the_least() {
        assert!(Spread::of(&[]).is_none());
        assert_eq!(Spread::of(&[3.0, 1.0]), Some(Spread { median: 2.0, least: 1.0, samples: 2 }));
        assert_eq!(Spread::of(&[3.0, 1.0, 7.0]), Some(Spread { median: 3.0, least: 1.0, samples: 3 }));
    }
}
