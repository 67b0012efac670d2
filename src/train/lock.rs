//! One run at a time in a folder. The operating system's lock dies with its process: what a killed run leaves of it
//! stops nobody.

use crate::error::{Error, Message, Result, Setting, message};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The locked file of a run's folder. It goes when the run does; a killed one leaves it, unlocked.
pub const FILE: &str = ".llm2vec.lock";

/// A lock that is held until it is dropped.
pub struct Lock {
    path: PathBuf,
    file: File,
    locked: bool,
    /// Why nothing is locked, where the file system cannot.
    pub warning: Option<String>,
}

/// What the file says of its process.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    /// Seconds since 1970.
    started: u64,
}

impl Lock {
    /// Locks `dir`, or says who holds it.
    pub fn new(dir: &Path) -> Result<Lock> {
        let path = dir.join(FILE);
        let io = |e| Error::io(&path, e);
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
            let warning = match file.try_lock() {
                // Its holder may have ended, and removed it, between the two calls above: then it locks nobody out.
                Ok(()) if !is_named(&file, &path) => continue,
                Ok(()) => None,
                Err(TryLockError::WouldBlock) => return Err(held(dir, file)),
                Err(TryLockError::Error(e)) => Some(unlocked(dir, &e)),
            };
            let started = now();
            let holder = Holder { pid: std::process::id(), host: host(), started };
            let text = serde_json::to_string(&holder).map_err(|e| Error::file(&path, e.to_string()))?;
            let lock = Lock { path, file, locked: warning.is_none(), warning };
            let mut file = &lock.file;
            return match file.set_len(0).and_then(|()| file.write_all(text.as_bytes())) {
                Ok(()) => Ok(lock),
                // Dropped, and so removed.
                Err(e) => Err(Error::io(&lock.path, e)),
            };
        }
    }

    /// An error where the file that this holds has gone from the folder, mostly with the folder: another process may have
    /// begun there anew.
    pub fn check(&self) -> Result<()> {
        if !self.locked || is_named(&self.file, &self.path) {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        let what = "was removed, or made anew, while this process wrote into it; what was saved there is gone, start again";
        Err(Error::file(dir, what))
    }
}

impl Drop for Lock {
    /// Removed while it is still locked: who opened it before finds that it has no name any more, and begins again.
    fn drop(&mut self) {
        if cfg!(unix) && is_named(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` still names this open file.
#[cfg(unix)]
fn is_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => id(open) == id(named),
        _ => false,
    }
}

/// Elsewhere the file is never removed.
#[cfg(not(unix))]
fn is_named(_: &File, _: &Path) -> bool {
    true
}

fn unlocked(dir: &Path, e: &std::io::Error) -> String {
    let what = "cannot be locked against a second run";
    format!("{} {what} ({e}); start no other into it", dir.display())
}

/// What speaks against a folder as a run's output.
pub(super) fn refused(path: &Path, what: impl Into<Message>) -> Error {
    Error::usage(message![Setting::OutputDir, format!(" {} ", path.display()), what])
}

fn held(dir: &Path, mut file: File) -> Error {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let holder: Option<Holder> = read.ok().and_then(|_| serde_json::from_str(&text).ok());
    let who = holder.map_or("another process".into(), |h| {
        let since = now().saturating_sub(h.started);
        format!("process {} on {}, started {since} s ago", h.pid, h.host)
    });
    let what = format!("is being trained into by {who}; wait for its end or take another folder");
    refused(dir, what)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

fn host() -> String {
    let file = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = || ["HOSTNAME", "COMPUTERNAME"].iter().find_map(|name| std::env::var(name).ok());
    let name = file.or_else(variable).map(|name| name.trim().to_string());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "an unknown host".into())
}
