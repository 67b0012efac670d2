//! A run's folder: `OUTPUT/checkpoint-STEP/` holds all that a resumed run needs to go on bit for bit, as a PEFT
//! adapter that other tools read, and files of our own beside it.

use crate::device::mapped::Mapped;
use crate::error::{Error, Result, Setting, message};
use crate::format::hf::{self, Floats, RawTensor, read_json};
use crate::format::peft::{self, Adapter};
use crate::format::{atomic, hf::Checkpoint as Tensors};
use crate::ops::dropout;
use crate::pretrained::chain::hex;
use crate::pretrained::settings::{self, Settings};
use crate::train::best::Best;
use crate::train::identity::Identity;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PREFIX: &str = "checkpoint-";
pub(super) const TEMPORARY: &str = ".checkpoint-";
pub(super) const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const EXTRA: &str = "extra.safetensors";
const STATE: &str = "trainer_state.json";

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
    /// How the dropout masks of its steps were drawn, [`dropout::FORMAT`] of then; 0 where it was not recorded yet.
    #[serde(default)]
    pub masks: u32,
    /// Where the data stands; known to the data's reader alone.
    pub position: Value,
    /// Every setting that decides the numbers of a step; a run goes on under the same only.
    pub configuration: Value,
    /// What was read, by content; `null` in checkpoints of before it was recorded, whose configuration names the paths.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub inputs: Value,
    /// The losses so far.
    pub losses: Losses,
    /// The best evaluation, if there has been one.
    #[serde(default)]
    pub best: Option<Best>,
}

impl State {
    /// Refuses to go on in `dir` with other dropout masks than the steps so far had. A run without dropout has none.
    fn check_masks(&self, dir: &Path) -> Result<()> {
        let without = |key: &str| self.configuration.get(key).and_then(Value::as_f64) == Some(0.0);
        // What was not recorded is the first format.
        let (saved, ours) = (self.masks.max(1), dropout::FORMAT);
        if saved == ours || ["lora_dropout", "simcse_dropout"].into_iter().all(without) {
            return Ok(());
        }
        let what = format!(
            "its dropout masks are of format {saved}, this version draws them otherwise (format {ours})"
        );
        let hint = "; finish the run with the version that began it, or start anew with ";
        Err(Error::file(dir, message![what, hint, Setting::Overwrite]))
    }
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
        let state = json!(StateFile { state: self.state.clone(), files });
        atomic::write_json(&dir.join(STATE), &sealed(state))?;

        let target = output.join(folder_name(self.state.step));
        if target.exists() {
            // A run stopped right after it was resumed: never take away the checkpoint that it came from.
            let same = Checkpoint::read(&target);
            if same.is_ok_and(|c| c.state == self.state) {
                return Ok(target);
            }
            remove(&target)?;
        }
        atomic::publish_folder(folder, &target)?;
        prune(output, keep)?;
        Ok(target)
    }

    /// The first tensor that holds NaN or infinity: of the adapter, of what else is trained, of the optimiser.
    pub fn not_finite(&self) -> Option<String> {
        let extra = || self.extra.iter().find(|t| !finite(&t.values)).map(|t| t.name.clone());
        let moments = || {
            let bad = |p: &&Moments| !finite(&p.m) || !finite(&p.v);
            self.moments.iter().find(bad).map(|p| format!("AdamW's state of {}", p.name))
        };
        not_finite(&self.adapter).or_else(extra).or_else(moments)
    }

    /// SHA-256 of all numbers that have been learned.
    pub fn hash(&self) -> [u8; 32] {
        let pairs = self.adapter.pairs.iter().flat_map(|pair| [&pair.a, &pair.b]);
        let moments = self.moments.iter().flat_map(|p| [&p.m, &p.v]);
        let mut hash = Sha256::new();
        let all = pairs.chain(moments).chain(self.extra.iter().map(|t| &t.values));
        all.for_each(|values| hash.update(bytemuck::cast_slice::<f32, u8>(values)));
        hash.finalize().into()
    }

    /// Reads a checkpoint of the run that `identity` stands for; another's is an error.
    pub fn load(dir: &Path, identity: &Identity) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::read(dir)?;
        checkpoint.state.check_masks(dir)?;
        identity.check(dir, &checkpoint.state.configuration, &checkpoint.state.inputs)?;
        Ok(checkpoint)
    }

    /// Reads a checkpoint; one that is cut short or changed is an error. Lists come back in the order of their names.
    pub fn read(dir: &Path) -> Result<Checkpoint> {
        let path = dir.join(STATE);
        let damaged = |what: String| {
            let hint = "delete this folder to resume from the one before it";
            Error::file(&path, format!("{what}; {hint}"))
        };
        let json = read_json(&path).map_err(|e| match e {
            Error::File { what, .. } => damaged(what.to_string()),
            Error::Io { source, .. } => damaged(source.to_string()),
            other => other,
        })?;
        let json = unsealed(json).ok_or_else(|| damaged("changed since it was saved".into()))?;
        let StateFile { state, files } =
            StateFile::deserialize(json).map_err(|e| damaged(format!("not a state of training: {e}")))?;
        if dir.file_name().is_none_or(|name| name.to_string_lossy() != folder_name(state.step)) {
            return Err(damaged(format!("is of step {}, which is not its folder's", state.step)));
        }
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
        let extra = if files.contains_key(EXTRA) { named(&dir.join(EXTRA))? } else { Vec::new() };
        let Some(moments) = moments(named(&dir.join(OPTIMIZER))?) else {
            return Err(damaged(format!("{OPTIMIZER} does not hold an m and a v for every parameter")));
        };
        let settings = Settings::read(dir)?.unwrap_or_default();
        Ok(Checkpoint { state, adapter: Adapter::open(dir)?, settings, extra, moments })
    }
}

/// The first matrix of an adapter that holds NaN or infinity.
pub fn not_finite(adapter: &Adapter) -> Option<String> {
    let sides = adapter.pairs.iter().flat_map(|p| [("A", p, &p.a), ("B", p, &p.b)]);
    let name =
        |(side, p, _): (&str, &peft::Pair, _)| format!("lora_{side} of {} of layer {}", p.module, p.layer);
    sides.into_iter().find(|(_, _, v)| !finite(v)).map(name)
}

fn finite(values: &[f32]) -> bool {
    values.iter().all(|v| v.is_finite())
}

fn folder_name(step: u64) -> String {
    format!("{PREFIX}{step}")
}

/// The key of a state's own hash.
const SEAL: &str = "sha256";

/// The state with the SHA-256 of itself: of its JSON in one line, keys sorted.
fn sealed(mut state: Value) -> Value {
    state[SEAL] = hex(&Sha256::digest(state.to_string())).into();
    state
}

/// The state without its hash, if it is the one that was saved. One of before there was a hash passes.
fn unsealed(mut state: Value) -> Option<Value> {
    let seal = state.as_object_mut().and_then(|fields| fields.remove(SEAL));
    seal.is_none_or(|seal| sealed(state.clone())[SEAL] == seal).then_some(state)
}

/// Writes a trained adapter as PEFT and `encode` read it.
pub fn write_adapter(dir: &Path, adapter: &Adapter, settings: &Settings) -> Result<()> {
    peft::save(dir, adapter)?;
    settings.write(dir)
}

/// Deletes all checkpoints but the newest `keep`, of which there is one at least, and but those that hold a file of
/// someone else's.
pub fn prune(output: &Path, keep: usize) -> Result<()> {
    for (_, dir) in steps(output)?.iter().rev().skip(keep.max(1)) {
        if stranger(dir)?.is_none() {
            remove(dir)?;
        }
    }
    Ok(())
}

/// The newest checkpoint in `output`.
pub fn latest(output: &Path) -> Result<Option<PathBuf>> {
    Ok(steps(output)?.pop().map(|(_, dir)| dir))
}

/// The slices of the run in `output`, by its newest checkpoint.
pub fn slices(output: &Path) -> Option<usize> {
    let state = read_json(&latest(output).ok()??.join(STATE)).ok()?;
    Some(state["configuration"]["slices"].as_u64().map_or(1, |n| n as usize))
}

/// The checkpoints in `output`, oldest first.
pub fn steps(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let names = file_names(output)?;
    let mut steps: Vec<_> = names.iter().filter_map(|n| Some((step(n)?, output.join(n)))).collect();
    steps.sort();
    Ok(steps)
}

/// The step of a checkpoint's folder, by its name.
fn step(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// Whether this is a checkpoint's name, or one that is being written or deleted.
pub(super) fn is_name(name: &str) -> bool {
    step(name).is_some() || name.starts_with(TEMPORARY)
}

pub(super) fn file_names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let name = |e: std::io::Result<std::fs::DirEntry>| {
        e.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(|e| Error::io(dir, e))
    };
    entries.map(name).collect()
}

/// Deletes a checkpoint, so that it is never seen in part: it loses its name first.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let aside = atomic::folder_in(parent, TEMPORARY)?;
    std::fs::rename(dir, aside.path().join("old")).map_err(|e| Error::io(dir, e))?;
    aside.close().map_err(|e| Error::io(dir, e))
}

/// The first thing in a checkpoint's folder that no run has put there.
pub(super) fn stranger(dir: &Path) -> Result<Option<String>> {
    let settings = [settings::FILE, settings::REFERENCE_FILE];
    let ours = [&[ADAPTER, OPTIMIZER, EXTRA, STATE, "adapter_config.json"][..], &settings].concat();
    let mut names = file_names(dir)?;
    names.sort();
    let known = |name: &String| ours.contains(&name.as_str()) && dir.join(name).is_file();
    Ok(names.into_iter().find(|name| !known(name)))
}

fn sha256(path: &Path) -> Result<String> {
    Ok(hex(&Sha256::digest(Mapped::open(path)?.as_bytes())))
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
