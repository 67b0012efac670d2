//! Which model it is, by the content of its files: a path is a name only.

use super::chain::hex;
use super::files::Stack;
use crate::error::{Error, Result};
use crate::format::hf;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of a weights' file that are read at its beginning, middle and end: gigabytes are not read for a fingerprint.
const SAMPLE: u64 = 1 << 20;

/// The files of a model that decide its numbers.
pub fn model(stack: &Stack) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = stack.dirs().map(|dir| dir.join(name)).into_iter().find(|path| path.exists());
        if let Some(path) = path {
            all.insert(name.into(), whole(&path)?.into());
        }
    }
    let dir = &stack.base.dir;
    let mut names = vec!["model.safetensors".to_string()];
    if !dir.join(&names[0]).exists() {
        let index = hf::read_json(&dir.join("model.safetensors.index.json"))?;
        let shards = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
        names = shards.filter_map(|name| name.as_str().map(str::to_string)).collect();
        names.sort();
        names.dedup();
    }
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    for name in names {
        bytes += sampled(&dir.join(name), &mut hash)?;
    }
    all.insert("weights".into(), shown(bytes, hash).into());
    Ok(all)
}

/// Adds a weights' file to `hash`: its size, its header, and samples of the rest.
fn sampled(path: &Path, hash: &mut Sha256) -> Result<u64> {
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let header = u64::from_le_bytes(length).saturating_add(8).min(size);
    hash.update(size.to_le_bytes());
    for (from, most) in
        [(0, header), (header, SAMPLE), (size / 2, SAMPLE), (size.saturating_sub(SAMPLE), SAMPLE)]
    {
        file.seek(SeekFrom::Start(from)).map_err(io)?;
        hash_all(&mut (&mut file).take(most), hash).map_err(io)?;
    }
    Ok(size)
}

/// Size and hash of a small file.
pub fn whole(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let bytes = File::open(path).and_then(|mut file| hash_all(&mut file, &mut hash));
    Ok(shown(bytes.map_err(|e| Error::io(path, e))?, hash))
}

/// The same of a file, or of all files in a folder.
pub fn files(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return whole(path);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut list: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_file()).collect();
    list.sort();
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    for path in &list {
        let file = File::open(path).and_then(|mut file| hash_all(&mut file, &mut hash));
        bytes += file.map_err(|e| Error::io(path, e))?;
    }
    Ok(shown(bytes, hash))
}

fn hash_all(from: &mut impl Read, hash: &mut Sha256) -> std::io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
    loop {
        let got = from.read(&mut buffer)?;
        if got == 0 {
            return Ok(bytes);
        }
        hash.update(&buffer[..got]);
        bytes += got as u64;
    }
}

fn shown(bytes: u64, hash: Sha256) -> String {
    format!("{bytes} bytes, {}", hex(&hash.finalize()))
}
