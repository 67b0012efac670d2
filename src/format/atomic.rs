//! Files and folders that appear under their final name only when they are whole: written beside the target, synced, renamed.
//!
//! What is unfinished is known by its path, so that a signal can end the process and leave none ([`remove_unfinished`]),
//! and holds a lock as long as its process lives: what a killed process left is unlocked, and the next that writes the
//! same output removes it.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// A temporary file or folder of this process.
struct Unfinished {
    path: PathBuf,
    /// A folder's lock; a file's is its own handle's.
    _lock: Option<fs::File>,
}

static UNFINISHED: Mutex<Vec<Unfinished>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<Unfinished>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds one, and forgets those that are finished or dropped.
fn remember(list: &mut Vec<Unfinished>, path: &Path, lock: Option<fs::File>) {
    list.retain(|u| u.path.symlink_metadata().is_ok());
    list.push(Unfinished { path: path.to_path_buf(), _lock: lock });
}

/// Removes all that is unfinished, for a process that ends: whoever makes or finishes a file from now on waits for ever.
#[cfg(feature = "cli")]
pub(crate) fn remove_unfinished() {
    let list = unfinished();
    for Unfinished { path, .. } in list.iter() {
        // More than once: another thread may still be filling a folder.
        for _ in 0..50 {
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            if removed.is_ok() || path.symlink_metadata().is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    std::mem::forget(list);
}

/// Returns where nobody is about to end the process, and else never.
#[cfg(feature = "cli")]
pub(crate) fn wait_for_removal() {
    drop(unfinished());
}

/// The folder that holds `path`.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Where a file written to `target` belongs: a symbolic link is followed, also one to a file that does not exist yet.
pub(crate) fn destination(target: &Path) -> Result<PathBuf> {
    let mut path = target.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(next) => path = folder(&path).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(Error::file(target, "is a link that leads back to itself; give another name"))
}

/// Whether two names, which may be links of either kind, are one file.
#[cfg(feature = "cli")]
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        identity(a).is_some_and(|a| Some(a) == identity(b))
    }
    #[cfg(not(unix))]
    {
        fs::canonicalize(a).ok().is_some_and(|a| fs::canonicalize(b).ok() == Some(a))
    }
}

/// Where `target` is to be, a file in a folder that is there, and how what is unfinished of it is called.
fn place(target: &Path) -> Result<(PathBuf, String)> {
    let real = destination(target)?;
    let folder = folder(&real);
    if !folder.is_dir() {
        return Err(Error::file(target, format!("there is no folder {}; create it first", folder.display())));
    }
    match fs::metadata(&real) {
        Ok(there) if there.is_dir() => {
            return Err(Error::file(target, "is a folder, a file name was wanted; add a name to it"));
        }
        Ok(there) if !there.is_file() => {
            let what = "is a device or a pipe, and what is written replaces a file whole";
            return Err(Error::file(target, format!("{what}; give the name of a file")));
        }
        _ => {}
    }
    let prefix = format!(".{}.", file_name(&real));
    Ok((real, prefix))
}

/// An empty temporary file in the folder of `target`, removed when dropped before [`publish`].
pub(crate) fn beside(target: &Path) -> Result<NamedTempFile> {
    let (real, prefix) = place(target)?;
    let folder = folder(&real);
    let mut builder = named(&prefix);
    #[cfg(unix)]
    {
        // The default of tempfile is 0600, which other users could not read after the rename; the umask applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    // Held from before the file is there, so that no file is made unknown to one who removes them all.
    let mut list = unfinished();
    remove_leftovers(folder, &prefix);
    loop {
        let temp = builder.tempfile_in(folder).map_err(|e| Error::io(target, e))?;
        if hold(temp.as_file(), temp.path()) {
            remember(&mut list, temp.path(), None);
            return Ok(temp);
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

const RANDOM: usize = 6;

/// Makes names that [`is_leftover`] knows, all of them: one that it does not know would stay wherever a process is killed, or
/// cannot remove it again, as soon as it is there.
fn named(prefix: &str) -> tempfile::Builder<'_, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).rand_bytes(RANDOM - 1).suffix("0");
    builder
}

/// The name that the temporary file `name` of a killed process was to get.
pub(crate) fn meant(name: &str) -> Option<&str> {
    let (target, random) = name.strip_prefix('.')?.rsplit_once('.')?;
    (random.len() == RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(target)
}

/// Whether only this module gives such a name: `.v.npy.backup` and `.merge-folder` are somebody's own.
fn is_leftover(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|random| {
        random.len() == RANDOM
            && random.bytes().all(|b| b.is_ascii_alphanumeric())
            && random.bytes().any(|b| !b.is_ascii_lowercase())
    })
}

/// Locks what was just made; false where another process has taken it for a leftover meanwhile.
fn hold(file: &fs::File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => is_at(file, path),
        Err(fs::TryLockError::WouldBlock) => false,
        // Without locks nothing is ever taken for a leftover.
        Err(fs::TryLockError::Error(_)) => true,
    }
}

/// Whether `path` still leads to the open file.
fn is_at(file: &fs::File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (open, named) = (file.metadata(), path.symlink_metadata());
        matches!((open, named), (Ok(a), Ok(b)) if a.dev() == b.dev() && a.ino() == b.ino())
    }
    #[cfg(not(unix))]
    {
        file.metadata().is_ok() && path.exists()
    }
}

/// Removes what killed processes left in `folder` under names that begin so: whatever no living process has locked.
fn remove_leftovers(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        let Ok(kind) = kind else { continue };
        if !(kind.is_file() || kind.is_dir()) || !is_leftover(&entry.file_name().to_string_lossy(), prefix) {
            continue;
        }
        // What cannot be removed, another user's for instance, does no harm.
        let Ok(file) = fs::File::open(&path) else { continue };
        if file.try_lock().is_ok() && is_at(&file, &path) {
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Puts the finished temporary file in the place of `target`.
pub(crate) fn publish(temp: NamedTempFile, target: &Path) -> Result<()> {
    let real = destination(target)?;
    temp.as_file().sync_all().map_err(|e| Error::io(target, e))?;
    let list = unfinished();
    temp.persist(&real).map_err(|e| Error::io(target, e.error))?;
    drop(list);
    sync_folder(&real)
}

/// Removes the file `target`, if there is one.
pub(crate) fn remove(target: &Path) -> Result<()> {
    match fs::remove_file(destination(target)?) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(target, e)),
        _ => Ok(()),
    }
}

/// Makes the rename itself durable: without it a power cut may bring the old name back.
pub(crate) fn sync_folder(target: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(folder(target)).and_then(|f| f.sync_all()).map_err(|e| Error::io(target, e))?;
    #[cfg(not(unix))]
    let _ = target;
    Ok(())
}

/// An empty temporary folder beside `target`, for one who needs several names to write it; removed with all in it when
/// dropped.
pub(crate) fn folder_beside(target: &Path) -> Result<TempDir> {
    let (real, prefix) = place(target)?;
    folder_in(folder(&real), &prefix)
}

/// Puts a synced file of such a folder in the place of `target`.
pub(crate) fn publish_from(folder: TempDir, file: &Path, target: &Path) -> Result<()> {
    let real = destination(target)?;
    let list = unfinished();
    fs::rename(file, &real).map_err(|e| Error::io(target, e))?;
    drop(list);
    // One that stays would be published with the folder around it.
    folder.close().map_err(|e| Error::io(target, e))?;
    sync_folder(&real)
}

/// Writes a small file whole.
pub(crate) fn write(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut temp = beside(target)?;
    temp.write_all(bytes).map_err(|e| Error::io(target, e))?;
    publish(temp, target)
}

/// Writes a JSON file, indented, with a newline at its end.
pub(crate) fn write_json(target: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::file(target, e.to_string()))?;
    text.push('\n');
    write(target, text.as_bytes())
}

/// An empty temporary folder in `parent`, removed with all in it when dropped before [`publish_folder`].
pub(crate) fn folder_in(parent: &Path, prefix: &str) -> Result<TempDir> {
    let failed = |e: io::Error| Error::io(parent, e);
    let mut list = unfinished();
    remove_leftovers(parent, prefix);
    loop {
        let folder = named(prefix).tempdir_in(parent).map_err(failed)?;
        // Elsewhere a folder cannot be opened, and so not be locked or taken for a leftover.
        let lock = if cfg!(unix) { Some(fs::File::open(folder.path()).map_err(failed)?) } else { None };
        if !lock.as_ref().is_none_or(|lock| hold(lock, folder.path())) {
            continue;
        }
        remember(&mut list, folder.path(), lock);
        #[cfg(unix)]
        {
            // A temporary folder is private to its user; the result is an ordinary one.
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(folder.path(), mode).map_err(|e| Error::io(folder.path(), e))?;
        }
        return Ok(folder);
    }
}

/// Gives the folder, whose files are synced, its name, which nothing else may have.
pub(crate) fn publish_folder(temp: TempDir, target: &Path) -> Result<()> {
    sync_folder(&temp.path().join("."))?;
    let mut list = unfinished();
    fs::rename(temp.path(), target).map_err(|e| Error::io(target, e))?;
    list.retain(|u| u.path != temp.path());
    drop(list);
    let _ = temp.keep(); // it has its final name: nothing to remove
    sync_folder(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of names at random one in 185 is all lowercase letters, as a name that somebody gave may be.
    #[test]
    fn every_name_that_is_made_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2000 {
            let temp = named(".v.npy.").tempfile_in(dir.path()).unwrap();
            let name = file_name(temp.path());
            assert!(is_leftover(&name, ".v.npy.") && meant(&name) == Some("v.npy"), "{name}");
        }
        assert!(!is_leftover(".v.npy.backup", ".v.npy."));
    }
}
