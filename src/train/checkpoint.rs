//! A run's folder: `OUTPUT/checkpoint-STEP/` holds all that a resumed run needs to go on bit for bit, as a PEFT
//! adapter that other tools read, and files of our own beside it.

use crate::device::mapped::Mapped;
use crate::error::{Error, Result};
use crate::format::hf::{self, Floats, RawTensor, read_json};
use crate::format::peft::{self, Adapter};
use crate::format::{atomic, hf::Checkpoint as Tensors};
use crate::pretrained::chain::hex;
use crate::pretrained::settings::{self, Settings};
use crate::train::config;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PREFIX: &str = "checkpoint-";
const TEMPORARY: &str = ".checkpoint-";
const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const EXTRA: &str = "extra.safetensors";
const STATE: &str = "trainer_state.json";

/// The trained adapter, beside the checkpoints as in each.
const RESULT: [&str; 4] = [ADAPTER, "adapter_config.json", settings::FILE, settings::REFERENCE_FILE];

/// An f32 tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Its name, unique in its list.
    pub name: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its elements, C order.
    pub values: Vec<f32>,
}

/// AdamW's state of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The parameter's name, unique in its list.
    pub name: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// The running mean of the gradient.
    pub m: Vec<f32>,
    /// The running mean of its square.
    pub v: Vec<f32>,
}

/// The losses of a run so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// Steps counted.
    pub steps: u64,
    /// Of the first step.
    pub first: f64,
    /// Of the last step.
    pub last: f64,
    /// The lowest of all.
    pub lowest: f64,
    /// The sum over all.
    pub sum: f64,
}

impl Losses {
    /// Counts one more step.
    pub fn add(&mut self, loss: f64) {
        if self.steps == 0 {
            (self.first, self.lowest) = (loss, loss);
        }
        self.steps += 1;
        self.last = loss;
        self.lowest = self.lowest.min(loss);
        self.sum += loss;
    }
}

/// The numbers of a run that are no tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// The seed of all randomness, which is counted from the step.
    pub seed: u64,
    /// Where the data stands; known to the data's reader alone.
    pub position: Value,
    /// Everything that decides the numbers of a step; a run goes on under the same only.
    pub configuration: Value,
    /// The losses so far.
    pub losses: Losses,
}

/// All that a resumed run needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Step, seed, data position, configuration, losses.
    pub state: State,
    /// The LoRA masters.
    pub adapter: Adapter,
    /// How the adapter wants to be used, and what it was trained on top of.
    pub settings: Settings,
    /// What else is trained (the head), by name; often nothing.
    pub extra: Vec<Named>,
    /// The optimiser's state, by name.
    pub moments: Vec<Moments>,
}

/// `trainer_state.json`: the state, and the hashes that tell whether the other files are those it was saved with.
#[derive(Serialize, Deserialize)]
struct StateFile {
    #[serde(flatten)]
    state: State,
    files: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Writes `OUTPUT/checkpoint-STEP`, whole or not at all; when it is durable, deletes all but the newest `keep`.
    pub fn save(&self, output: &Path, keep: usize) -> Result<PathBuf> {
        std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
        let folder = atomic::folder_in(output, TEMPORARY)?;
        let dir = folder.path();
        write_adapter(dir, &self.adapter, &self.settings)?;
        let tensor = |name, shape: &[usize], values| (name, Floats { shape: shape.to_vec(), values });
        let moments = self.moments.iter().flat_map(|p| {
            [("m", &p.m), ("v", &p.v)].map(|(which, v)| tensor(format!("{}.{which}", p.name), &p.shape, v))
        });
        hf::write_safetensors(&dir.join(OPTIMIZER), moments.collect())?;
        if !self.extra.is_empty() {
            let extra = self.extra.iter().map(|t| tensor(t.name.clone(), &t.shape, &t.values));
            hf::write_safetensors(&dir.join(EXTRA), extra.collect())?;
        }
        let mut files = BTreeMap::new();
        for name in file_names(dir)? {
            files.insert(name.clone(), sha256(&dir.join(&name))?);
        }
        atomic::write_json(&dir.join(STATE), &StateFile { state: self.state.clone(), files })?;

        let target = output.join(format!("{PREFIX}{}", self.state.step));
        if target.exists() {
            // A run stopped right after it was resumed: never take away the checkpoint that it came from.
            let same = Checkpoint::load(&target, &self.state.configuration);
            if same.is_ok_and(|c| c.state == self.state) {
                return Ok(target);
            }
            remove(&target)?;
        }
        atomic::publish_folder(folder, &target)?;
        prune(output, keep)?;
        Ok(target)
    }

    /// Reads a checkpoint that was saved under `configuration`; one that is cut short, changed or another run's is an
    /// error. Lists come back in the order of their names.
    pub fn load(dir: &Path, configuration: &Value) -> Result<Checkpoint> {
        let path = dir.join(STATE);
        let damaged = |what: String| {
            let hint = "delete this folder to resume from the one before it";
            Error::file(&path, format!("{what}; {hint}"))
        };
        let json = read_json(&path).map_err(|e| match e {
            Error::File { what, .. } => damaged(what),
            Error::Io { source, .. } => damaged(source.to_string()),
            other => other,
        })?;
        let StateFile { state, files } =
            StateFile::deserialize(json).map_err(|e| damaged(format!("not a state of training: {e}")))?;
        for needed in [ADAPTER, OPTIMIZER] {
            if !files.contains_key(needed) {
                return Err(damaged(format!("names no {needed}")));
            }
        }
        for (name, hash) in &files {
            if sha256(&dir.join(name)).ok().as_ref() != Some(hash) {
                return Err(damaged(format!("{name} is missing, cut short or not the file that was saved")));
            }
        }
        same_configuration(dir, &state.configuration, configuration)?;
        let extra = if files.contains_key(EXTRA) { named(&dir.join(EXTRA))? } else { Vec::new() };
        let Some(moments) = moments(named(&dir.join(OPTIMIZER))?) else {
            return Err(damaged(format!("{OPTIMIZER} does not hold an m and a v for every parameter")));
        };
        let settings = Settings::read(dir)?.unwrap_or_default();
        Ok(Checkpoint { state, adapter: Adapter::open(dir)?, settings, extra, moments })
    }
}

/// Writes a trained adapter as PEFT and `encode` read it.
pub fn write_adapter(dir: &Path, adapter: &Adapter, settings: &Settings) -> Result<()> {
    peft::save(dir, adapter)?;
    settings.write(dir)
}

/// What to do with an output folder that holds a run already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// An error.
    Refuse,
    /// Go on from its newest checkpoint.
    Resume,
    /// Delete it.
    Overwrite,
}

/// Makes `output` ready for a run: the checkpoint to go on from, if it is to and there is one. Also clears away what
/// a killed run left half written.
pub fn claim(output: &Path, existing: Existing) -> Result<Option<PathBuf>> {
    if output.join("config.json").exists() {
        let what = "holds a model (config.json); a folder of the run's own was wanted";
        return Err(Error::Usage(format!("--output {} {what}", output.display())));
    }
    std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    let old = steps(output)?;
    let finished = output.join(ADAPTER);
    match existing {
        Existing::Refuse if !old.is_empty() || finished.exists() => {
            let what = "already holds a run; try --resume, --overwrite or another folder";
            return Err(Error::Usage(format!("--output {} {what}", output.display())));
        }
        Existing::Resume if old.is_empty() && finished.exists() => {
            return Err(Error::file(output, "holds an adapter and no checkpoint to resume from"));
        }
        Existing::Refuse | Existing::Resume => {}
        Existing::Overwrite => {
            old.iter().try_for_each(|(_, dir)| remove(dir))?;
            for name in RESULT {
                let path = output.join(name);
                if path.exists() {
                    std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
                }
            }
        }
    }
    let ours = |name: &str| name == config::FILE || RESULT.contains(&name) || hf::SIDE_FILES.contains(&name);
    for name in file_names(output)? {
        let path = output.join(&name);
        if name.starts_with(TEMPORARY) {
            std::fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        } else if atomic::meant(&name).is_some_and(ours) {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    latest(output)
}

/// Deletes all checkpoints but the newest `keep`, of which there is one at least.
pub fn prune(output: &Path, keep: usize) -> Result<()> {
    steps(output)?.iter().rev().skip(keep.max(1)).try_for_each(|(_, dir)| remove(dir))
}

/// The newest checkpoint in `output`.
pub fn latest(output: &Path) -> Result<Option<PathBuf>> {
    Ok(steps(output)?.pop().map(|(_, dir)| dir))
}

/// The checkpoints in `output`, oldest first.
fn steps(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |name: &str| {
        let digits = name.strip_prefix(PREFIX)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let names = file_names(output)?;
    let mut steps: Vec<_> = names.iter().filter_map(|n| Some((step(n)?, output.join(n)))).collect();
    steps.sort();
    Ok(steps)
}

fn file_names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let name = |e: std::io::Result<std::fs::DirEntry>| {
        e.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(|e| Error::io(dir, e))
    };
    entries.map(name).collect()
}

/// Deletes a checkpoint, so that it is never seen in part: it loses its name first.
fn remove(dir: &Path) -> Result<()> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let aside = atomic::folder_in(parent, TEMPORARY)?;
    std::fs::rename(dir, aside.path().join("old")).map_err(|e| Error::io(dir, e))?;
    aside.close().map_err(|e| Error::io(dir, e))
}

fn sha256(path: &Path) -> Result<String> {
    Ok(hex(&Sha256::digest(Mapped::open(path)?.as_bytes())))
}

/// Names what differs, so that the user knows which flag to change.
fn same_configuration(dir: &Path, saved: &Value, wanted: &Value) -> Result<()> {
    // Through text, as the saved one went.
    let wanted: Value = serde_json::from_str(&wanted.to_string())
        .map_err(|e| Error::file(dir, format!("the configuration cannot be compared: {e}")))?;
    if *saved == wanted {
        return Ok(());
    }
    let keys = |v: &Value| v.as_object().map_or(Vec::new(), |o| o.keys().cloned().collect());
    let mut all: Vec<String> = [keys(saved), keys(&wanted)].concat();
    all.sort();
    all.dedup();
    let show = |v: &Value, key: &str| v.get(key).map_or("absent".into(), peft::brief);
    let differ = all.iter().filter(|k| saved.get(k) != wanted.get(k));
    let lines: Vec<_> =
        differ.map(|k| format!("{k} {} there, {} here", show(saved, k), show(&wanted, k))).collect();
    let what = format!("is of another configuration ({}); give the same to resume", lines.join("; "));
    Err(Error::file(dir, what))
}

/// The tensors of a file that [`Checkpoint::save`] wrote, bit for bit.
fn named(path: &Path) -> Result<Vec<Named>> {
    let file = Tensors::open_file(path)?;
    let one = |t: RawTensor| {
        if t.dtype != Dtype::F32 {
            return Err(Error::file(path, format!("tensor {:?} is {:?}, F32 was wanted", t.name, t.dtype)));
        }
        let values = t.data.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        Ok(Named { name: t.name.to_string(), shape: t.shape, values })
    };
    file.names().filter_map(|name| file.get(name)).map(one).collect()
}

/// Pairs each `NAME.m` with its `NAME.v`.
fn moments(tensors: Vec<Named>) -> Option<Vec<Moments>> {
    let mut by_name: BTreeMap<String, Named> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    let names: Vec<String> = by_name.keys().filter_map(|n| n.strip_suffix(".m")).map(String::from).collect();
    let one = |name: String| {
        let (m, v) = (by_name.remove(&format!("{name}.m"))?, by_name.remove(&format!("{name}.v"))?);
        (m.shape == v.shape).then_some(Moments { name, shape: m.shape, m: m.values, v: v.values })
    };
    let moments = names.into_iter().map(one).collect::<Option<_>>()?;
    by_name.is_empty().then_some(moments)
}
