//! Names of models and adapters: a folder, or `org/name[@revision]` in the local Hugging Face cache, found as
//! huggingface_hub finds it. Nothing is downloaded.
//!
//! The cache's rules are a page, so they stand here: the hf-hub crate brings some 235 others for its downloads.

use crate::error::{Error, Result};
use crate::format::hf::is_file_name;
use std::path::{Path, PathBuf};

/// A folder, and the name that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// As it was asked for, without its revision: a path, or `org/name`.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Whether `name` is a repository of the hub.
    pub hub: bool,
}

impl Located {
    /// A folder, whatever it holds.
    pub fn folder(dir: impl Into<PathBuf>) -> Located {
        let dir = dir.into();
        Located { name: dir.to_string_lossy().into_owned(), dir, hub: false }
    }

    /// What stands for it in a file that others read: the hub's name, or the folder's absolute path.
    pub fn reference(&self) -> String {
        match self.dir.canonicalize() {
            Ok(dir) if !self.hub => dir.to_string_lossy().into_owned(),
            _ => self.name.clone(),
        }
    }

    /// The last part of the name, in lower case: what repositories and copies of them share.
    pub fn stem(&self) -> String {
        stem(&self.reference())
    }
}

/// The last part of a path or a hub id, in lower case.
pub fn stem(name: &str) -> String {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_lowercase()
}

/// The folder `name`, or the snapshot of the hub id `org/name[@revision]` in the local cache.
pub fn locate(name: &str) -> Result<Located> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(Located::folder(path));
    }
    if path.exists() {
        let what =
            "is a file, a folder was wanted; give the folder that holds config.json or adapter_config.json";
        return Err(Error::file(path, what));
    }
    let Some(cache) = hub_cache(|key| std::env::var_os(key).map(|v| v.to_string_lossy().into_owned())) else {
        let what = "no such folder, and no home folder to look for a Hugging Face cache in; give a folder";
        return Err(Error::file(path, what));
    };
    let dir = cached(name, &cache)?;
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    Ok(Located { name: name.into(), dir, hub: true })
}

/// Names by flag or configuration: each one, or several with commas between where the whole is no folder.
pub fn split(names: &[String]) -> Vec<String> {
    let split = |name: &String| match Path::new(name).exists() {
        true => vec![name.clone()],
        false => name.split(',').map(|part| part.trim().to_string()).collect(),
    };
    names.iter().flat_map(split).filter(|name| !name.is_empty()).collect()
}

/// The hub's cache by the variables that huggingface_hub reads, in its order; a variable that is empty is not set.
///
/// Source: huggingface_hub/constants.py. `~` and `$NAME` are expanded where it expands them.
pub fn hub_cache(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let var = |key: &str| var(key).filter(|value| !value.is_empty());
    let home = || var("HOME").map(PathBuf::from).or_else(std::env::home_dir);
    let expanded = |value: String| -> Option<PathBuf> {
        let value = expand_variables(&value, &var);
        Some(match value.strip_prefix('~') {
            Some("") => home()?,
            Some(rest) if rest.starts_with('/') => home()?.join(&rest[1..]),
            _ => PathBuf::from(value),
        })
    };
    if let Some(cache) = var("HF_HUB_CACHE") {
        return expanded(cache);
    }
    if let Some(cache) = var("HUGGINGFACE_HUB_CACHE") {
        return expanded(cache);
    }
    if let Some(home) = var("HF_HOME") {
        return Some(expanded(home)?.join("hub"));
    }
    let caches = match var("XDG_CACHE_HOME") {
        Some(folder) => expanded(folder)?,
        None => home()?.join(".cache"),
    };
    Some(caches.join("huggingface/hub"))
}

/// `$NAME` and `${NAME}` of variables that are set.
fn expand_variables(text: &str, var: &impl Fn(&str) -> Option<String>) -> String {
    let Some((before, rest)) = text.split_once('$') else { return text.to_string() };
    let braced = rest.strip_prefix('{').and_then(|r| r.split_once('}'));
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, after) = braced.unwrap_or(rest.split_at(end));
    let value = if name.is_empty() { None } else { var(name) };
    let written = &rest[..rest.len() - after.len()];
    let value = value.unwrap_or_else(|| format!("${written}"));
    format!("{before}{value}{}", expand_variables(after, var))
}

/// The snapshot of the hub id `name[@revision]` in the cache at `cache`; the revision is a branch, a tag or a commit.
pub fn cached(name: &str, cache: &Path) -> Result<PathBuf> {
    let missing =
        |what: String| Err(Error::file(name, format!("{what}; give a folder or download it first")));
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_file_name(part)) {
        return missing("no such folder, and not a hub id of the form org/name".to_string());
    }
    if revision.is_empty() || !revision.split('/').all(is_file_name) {
        return missing(format!("{revision:?} is no revision; a branch, a tag or a commit was wanted"));
    }
    let root = cache.join(format!("models--{}", parts.join("--")));
    let snapshots = root.join("snapshots");
    let Ok(entries) = std::fs::read_dir(&snapshots) else {
        return missing(format!("no such folder, and no local copy of a hub model in {}", root.display()));
    };
    if let Ok(commit) = std::fs::read_to_string(root.join("refs").join(revision)) {
        let snapshot = snapshots.join(commit.trim());
        if is_file_name(commit.trim()) && snapshot.is_dir() {
            return Ok(snapshot);
        }
        return missing(format!(
            "the local cache names a snapshot that is not there ({})",
            snapshot.display()
        ));
    }
    let found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    if name.contains('@') {
        // A commit, or as much of it as is unique.
        let starts = |p: &&PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(revision));
        return match found.iter().filter(starts).collect::<Vec<_>>().as_slice() {
            [only] if revision.len() >= 7 => Ok((*only).clone()),
            _ => missing(format!("no revision {revision:?} of it in {}", root.display())),
        };
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        _ => missing(format!(
            "{} snapshots in {} and no refs/main that names one; add @COMMIT",
            found.len(),
            snapshots.display()
        )),
    }
}
