//! Model folders as Hugging Face tools write them: JSON files and safetensors, whole or in shards.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Component, Path},
};

use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use serde_json::Value;

use super::atomic;
use crate::{
    device::mapped::Mapped,
    error::{Error, Result},
};

/// No configuration or index comes near this; a larger file is another file by mistake.
const MAX_JSON_BYTES: u64 = 100_000_000;

/// What travels with the weights when a model is written elsewhere.
pub const SIDE_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// Whether `name` names a file of the folder it is joined to, and nothing outside it.
pub(crate) fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', '\0'])
}

/// Reads a JSON file; the error names the line and column.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes > MAX_JSON_BYTES {
        let what = format!(
            "{bytes} bytes where a JSON file of at most {MAX_JSON_BYTES} was wanted; is it the right file?"
        );
        return Err(Error::file(path, what));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::file(path, format!("not valid JSON: {e}; repair the file")))
}

/// A tensor in its file: no copy, no alignment promised.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The element type.
    pub dtype: Dtype,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// The elements, little-endian, C order.
    pub data: &'a [u8],
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The tensors of one safetensors file, or of all shards of a model, memory-mapped.
#[derive(Default)]
pub struct Checkpoint {
    files: Vec<Mapped>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let (whole, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        if whole.exists() {
            Checkpoint::open_file(&whole)
        } else if index.exists() {
            Checkpoint::open_shards(dir, &index)
        } else if dir.join("pytorch_model.bin").exists() || dir.join("pytorch_model.bin.index.json").exists()
        {
            let what = "only pytorch_model.bin is here, which is not read because it can run code; save it as safetensors";
            Err(Error::file(dir, what))
        } else {
            Err(Error::file(
                dir,
                "neither model.safetensors nor model.safetensors.index.json is here; give a model folder",
            ))
        }
    }

    /// Opens a single safetensors file.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::default();
        checkpoint.add(path, |_| true)?;
        Ok(checkpoint)
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Checkpoint> {
        let json = read_json(index)?;
        let Some(map) = json.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty())
        else {
            return Err(Error::file(
                index,
                "no \"weight_map\" with tensor names and their files; download it again",
            ));
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in map {
            let Some(shard) = shard.as_str().filter(|shard| is_file_name(shard)) else {
                let what =
                    format!("tensor {tensor:?} is said to be in {shard}, a plain file name was wanted");
                return Err(Error::file(index, what));
            };
            shards.entry(shard).or_default().push(tensor);
        }
        // All files first: a download that lacks its last shard should not be mapped up to there.
        if let Some(shard) = shards.keys().find(|shard| !dir.join(shard).is_file()) {
            return Err(Error::file(
                dir.join(shard),
                "this shard is named by the index and missing; download it again",
            ));
        }
        let mut checkpoint = Checkpoint::default();
        for (shard, tensors) in &shards {
            let path = dir.join(shard);
            checkpoint.add(&path, |name| map.get(name).and_then(Value::as_str) == Some(*shard))?;
            if let Some(lost) = tensors.iter().find(|name| !checkpoint.entries.contains_key(**name)) {
                return Err(Error::file(
                    &path,
                    format!("tensor {lost:?} is not here, where the index says it is; download both again"),
                ));
            }
        }
        Ok(checkpoint)
    }

    /// Maps one file and takes the tensors that `wanted` accepts.
    fn add(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let map = Mapped::open(path)?;
        let (header, parsed) = SafeTensors::read_metadata(&map).map_err(|e| bad_file(path, &map, e))?;
        let start = header + size_of::<u64>();
        for (name, info) in parsed.tensors() {
            if !wanted(&name) {
                continue;
            }
            // The sums can overflow: the offsets were checked against each other, not against the file.
            let (from, to) = info.data_offsets;
            let range = from.checked_add(start).zip(to.checked_add(start)).map(|(from, to)| from..to);
            let Some(range) = range.filter(|range| map.get(range.clone()).is_some()) else {
                return Err(Error::file(
                    path,
                    format!("tensor {name:?} lies outside the file; download it again"),
                ));
            };
            let entry = Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), range };
            self.entries.insert(name, entry);
        }
        if let Some(metadata) = parsed.metadata() {
            self.metadata.extend(metadata.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        self.files.push(map);
        Ok(())
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The tensor of exactly this name.
    pub fn get(&self, name: &str) -> Option<RawTensor<'_>> {
        let (name, entry) = self.entries.get_key_value(name)?;
        let data = self.files.get(entry.file)?.as_bytes().get(entry.range.clone())?;
        Some(RawTensor { name, dtype: entry.dtype, shape: entry.shape.clone(), data })
    }

    /// The tensor of this name, given in the long form (`model.layers.…`), also where the file was saved from the bare
    /// model and its names lack the leading `model.`.
    pub fn find(&self, name: &str) -> Option<RawTensor<'_>> {
        self.get(name).or_else(|| self.get(name.strip_prefix("model.")?))
    }

    /// The files' `__metadata__`, merged.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.range.len() as u64).sum()
    }
}

/// One clear line for what the safetensors crate found.
fn bad_file(path: &Path, bytes: &[u8], error: SafeTensorError) -> Error {
    let what = match error {
        SafeTensorError::HeaderTooSmall if bytes.is_empty() => "the file is empty".to_string(),
        SafeTensorError::HeaderTooSmall => {
            format!("only {} bytes, the header's size alone takes 8", bytes.len())
        }
        SafeTensorError::HeaderTooLarge => {
            "the header claims more than 100 MB, so this is no safetensors file".to_string()
        }
        SafeTensorError::InvalidHeaderLength => {
            format!("truncated: {} bytes, and the header alone claims more", bytes.len())
        }
        SafeTensorError::InvalidHeader(e) => {
            format!("the header is not UTF-8 ({e}), so this is no safetensors file")
        }
        SafeTensorError::InvalidHeaderDeserialization(e) => {
            format!("the header is not the JSON of safetensors ({e})")
        }
        SafeTensorError::InvalidOffset(name) => {
            format!("the range of tensor {name:?} overlaps another or leaves a hole")
        }
        SafeTensorError::MetadataIncompleteBuffer => match promised_bytes(bytes) {
            Some(wanted) => {
                format!("{} bytes, and the header describes {wanted}: truncated, or added to", bytes.len())
            }
            None => "the tensors' ranges do not end where the file does".to_string(),
        },
        SafeTensorError::TensorInvalidInfo => {
            "a tensor's shape and its number of bytes do not agree".to_string()
        }
        SafeTensorError::ValidationOverflow => "a tensor's shape is larger than any memory".to_string(),
        other => other.to_string(),
    };
    Error::file(path, format!("{what}; download or save it again"))
}

/// The size that the file should have by its header, for the message only.
fn promised_bytes(bytes: &[u8]) -> Option<u64> {
    let header = u64::from_le_bytes(*bytes.first_chunk()?);
    let end = usize::try_from(header).ok()?.checked_add(8)?;
    let json: Value = serde_json::from_slice(bytes.get(8..end)?).ok()?;
    let ends = json.as_object()?.values().filter_map(|t| t.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0).checked_add(header)?.checked_add(8)
}

/// An f32 tensor that becomes bytes when the writer asks for it.
pub struct Floats<'a> {
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// The elements, C order.
    pub values: &'a [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// Writes a safetensors file, one tensor at a time: `View::data` may make its bytes when it is asked for them.
pub fn write_safetensors<V: View>(path: &Path, tensors: Vec<(String, V)>) -> Result<()> {
    // The crate writes to a file that it makes beside ours and then renames. A killed process would leave that one for
    // ever: in a folder of ours, whoever removes what is unfinished finds it.
    let folder = atomic::folder_beside(path)?;
    let file = folder.path().join("tensors");
    let made = std::fs::File::create(&file).and_then(|made| made.metadata());
    let permissions = made.map_err(|e| Error::io(path, e))?.permissions();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &file).map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io(path, e),
        other => Error::file(path, format!("cannot be written: {other}")),
    })?;
    // The crate's file is of mode 0600: give it that of an ordinary one, and sync it.
    std::fs::set_permissions(&file, permissions)
        .and_then(|()| std::fs::File::open(&file)?.sync_all())
        .map_err(|e| Error::io(path, e))?;
    atomic::publish_from(folder, &file, path)
}

/// Copies the tokenizer and generation files that a written model needs beside its weights, where there are any.
pub fn copy_side_files(from: &Path, to: &Path) -> Result<()> {
    for name in SIDE_FILES {
        let source = from.join(name);
        if source.is_file() {
            let bytes = std::fs::read(&source).map_err(|e| Error::io(&source, e))?;
            atomic::write(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
