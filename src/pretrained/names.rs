//! Names of models and adapters: a folder, or a repository in the local Hugging Face cache.

use crate::error::{Error, Result};
use crate::format::hf::is_file_name;
use std::path::{Path, PathBuf};

/// The folder of a model: `name` itself, or the local copy of the hub id `org/name`. Nothing is downloaded.
pub fn model_dir(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return Err(Error::file(
            path,
            "is a file, a model folder was wanted; give the folder that holds config.json",
        ));
    }
    let from_env = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = from_env("HF_HUB_CACHE")
        .or_else(|| from_env("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")));
    match cache {
        Some(cache) => cached_model(name, &cache),
        None => Err(Error::file(
            path,
            "no such folder, and no home folder to look for a Hugging Face cache in; give a folder",
        )),
    }
}

/// The snapshot of the hub id `name` in the Hugging Face cache at `cache`.
pub fn cached_model(name: &str, cache: &Path) -> Result<PathBuf> {
    let missing =
        |what: String| Err(Error::file(name, format!("{what}; give a model folder or download it first")));
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_file_name(part)) {
        return missing("no such folder, and not a hub id of the form org/name".to_string());
    }
    let root = cache.join(format!("models--{}", parts.join("--")));
    let snapshots = root.join("snapshots");
    if let Ok(revision) = std::fs::read_to_string(root.join("refs/main")) {
        let snapshot = snapshots.join(revision.trim());
        if is_file_name(revision.trim()) && snapshot.is_dir() {
            return Ok(snapshot);
        }
        return missing(format!(
            "the local cache names a snapshot that is not there ({})",
            snapshot.display()
        ));
    }
    let found: Vec<PathBuf> = match std::fs::read_dir(&snapshots) {
        Ok(entries) => entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect(),
        Err(_) => {
            return missing(format!(
                "no such folder, and no local copy of a hub model in {}",
                root.display()
            ));
        }
    };
    match found.as_slice() {
        [only] => Ok(only.clone()),
        _ => missing(format!(
            "{} snapshots in {} and no refs/main that names one",
            found.len(),
            snapshots.display()
        )),
    }
}
