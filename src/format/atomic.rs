//! Files and folders that appear under their final name only when they are whole: written beside the target, synced, renamed.

use std::{fs, io::Write, path::Path};

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// The folder that holds `path`.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// An empty temporary file in the folder of `target`, removed when dropped before [`publish`].
pub(crate) fn beside(target: &Path) -> Result<NamedTempFile> {
    let folder = folder(target);
    if !folder.is_dir() {
        return Err(Error::file(target, format!("there is no folder {}; create it first", folder.display())));
    }
    if target.is_dir() {
        return Err(Error::file(target, "is a folder, a file name was wanted; add a name to it"));
    }
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        // The default of tempfile is 0600, which other users could not read after the rename; the umask applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(|e| Error::io(target, e))
}

/// The name that the temporary file `name` of a killed process was to get.
pub(crate) fn meant(name: &str) -> Option<&str> {
    let (target, random) = name.strip_prefix('.')?.rsplit_once('.')?;
    (random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(target)
}

/// Puts the finished temporary file in the place of `target`.
pub(crate) fn publish(temp: NamedTempFile, target: &Path) -> Result<()> {
    temp.as_file().sync_all().map_err(|e| Error::io(target, e))?;
    temp.persist(target).map_err(|e| Error::io(target, e.error))?;
    sync_folder(target)
}

/// Makes the rename itself durable: without it a power cut may bring the old name back.
pub(crate) fn sync_folder(target: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(folder(target)).and_then(|f| f.sync_all()).map_err(|e| Error::io(target, e))?;
    #[cfg(not(unix))]
    let _ = target;
    Ok(())
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
    let folder =
        tempfile::Builder::new().prefix(prefix).tempdir_in(parent).map_err(|e| Error::io(parent, e))?;
    #[cfg(unix)]
    {
        // A temporary folder is private to its user; the result is an ordinary one.
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), mode).map_err(|e| Error::io(folder.path(), e))?;
    }
    Ok(folder)
}

/// Gives the folder, whose files are synced, its name, which nothing else may have.
pub(crate) fn publish_folder(temp: TempDir, target: &Path) -> Result<()> {
    sync_folder(&temp.path().join("."))?;
    fs::rename(temp.path(), target).map_err(|e| Error::io(target, e))?;
    let _ = temp.keep(); // it has its final name: nothing to remove
    sync_folder(target)
}
