//! A run's folder: who may train into it, and what of an earlier run is taken over, refused or deleted.

use crate::error::{Error, Message, Result, Setting, message};
use crate::format::peft::Adapter;
use crate::format::{atomic, hf};
use crate::pretrained::settings::{self, Settings};
use crate::train::checkpoint::{self, ADAPTER, TEMPORARY, file_names, remove};
use crate::train::config;
use crate::train::lock::{Lock, refused};
use std::path::{Path, PathBuf};

/// The trained adapter, beside the checkpoints as in each.
const RESULT: [&str; 4] = [ADAPTER, "adapter_config.json", settings::FILE, settings::REFERENCE_FILE];

/// The folder of the best adapter so far, where it is kept.
const BEST: &str = "best";

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

/// The folder of this process's run, which nobody else trains into while this lives.
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// The checkpoint to go on from, if the run is to and there is one.
    pub resume: Option<PathBuf>,
    /// What a user should know and may ignore.
    pub warning: Option<String>,
    existing: Existing,
    lock: Lock,
}

impl Folder {
    /// Makes `path` ready for a run, and clears away what a killed one left half written. The old run that is to be
    /// overwritten is still there: [`Folder::clear`] deletes it once nothing can be wrong with the new one.
    pub fn claim(path: &Path, existing: Existing) -> Result<Folder> {
        holds_no_model(path)?;
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        let mut lock = Lock::new(path)?;
        let (old, finished) = (checkpoint::steps(path)?, path.join(ADAPTER).exists());
        let usage = |what: Message| Err(refused(path, what));
        match existing {
            Existing::Refuse if !old.is_empty() || finished => {
                let (resume, overwrite) = (Setting::Resume, Setting::Overwrite);
                return usage(message![
                    "already holds a run; try ",
                    resume,
                    ", ",
                    overwrite,
                    " or another folder"
                ]);
            }
            Existing::Resume if old.is_empty() && finished => {
                return Err(Error::file(path, "holds an adapter and no checkpoint to resume from"));
            }
            Existing::Overwrite => {
                let best = path.join(BEST);
                for dir in old.iter().map(|(_, dir)| dir).chain(best.exists().then_some(&best)) {
                    if let Some(name) = checkpoint::stranger(dir)? {
                        let dir = dir.file_name().unwrap_or_default().to_string_lossy();
                        return usage(
                            format!("holds {dir}/{name}, which no run wrote; move it away first").into(),
                        );
                    }
                }
            }
            Existing::Refuse | Existing::Resume => {}
        }
        // Every run has written its configuration before anything else that has a name of its own.
        let has = |name: &&&str| path.join(name).exists();
        let theirs =
            RESULT.iter().chain(&hf::SIDE_FILES).find(has).filter(|_| !path.join(config::FILE).exists());
        if let Some(name) = theirs {
            let what = format!("holds {name} and no {}", config::FILE);
            return usage(format!("{what}: no run wrote it, and this one would; take another folder").into());
        }
        for name in file_names(path)? {
            let half = path.join(&name);
            if name.starts_with(TEMPORARY) || atomic::meant(&name).is_some_and(is_written) {
                let removed = match half.is_dir() {
                    true => std::fs::remove_dir_all(&half),
                    false => std::fs::remove_file(&half),
                };
                removed.map_err(|e| Error::io(&half, e))?;
            }
        }
        let resume = if existing == Existing::Resume { checkpoint::latest(path)? } else { None };
        Ok(Folder { path: path.into(), resume, warning: lock.warning.take(), existing, lock })
    }

    /// An error where the folder that was claimed is no longer there: nothing may be written into one made anew.
    pub fn check(&self) -> Result<()> {
        self.lock.check()
    }

    /// Keeps an adapter as the best one, in place of the one before.
    pub fn keep_best(&self, adapter: &Adapter, settings: &Settings) -> Result<()> {
        let (new, target) = (atomic::folder_in(&self.path, TEMPORARY)?, self.path.join(BEST));
        checkpoint::write_adapter(new.path(), adapter, settings)?;
        if target.exists() {
            remove(&target)?;
        }
        atomic::publish_folder(new, &target)
    }

    /// The adapter that was kept.
    pub fn best(&self) -> Result<Adapter> {
        let dir = self.path.join(BEST);
        match dir.exists() {
            true => Adapter::open(&dir),
            false => Err(Error::file(&dir, "is gone, and with it the best adapter; train again")),
        }
    }

    /// Deletes the run that is to be overwritten, if one is: its checkpoints and its adapter.
    pub fn clear(&self) -> Result<()> {
        if self.existing != Existing::Overwrite {
            return Ok(());
        }
        let best = self.path.join(BEST);
        let folders = checkpoint::steps(&self.path)?.into_iter().map(|(_, dir)| dir);
        folders.chain(best.exists().then_some(best)).try_for_each(|dir| remove(&dir))?;
        for path in RESULT.map(|name| self.path.join(name)).iter().filter(|path| path.exists()) {
            std::fs::remove_file(path).map_err(|e| Error::io(path, e))?;
        }
        Ok(())
    }
}

/// Refuses a model's folder.
pub fn holds_no_model(path: &Path) -> Result<()> {
    if path.join("config.json").exists() {
        let what = "holds a model (config.json); a folder of the run's own was wanted";
        return Err(refused(path, what));
    }
    Ok(())
}

/// Whether a run writes a file of this name into its folder.
pub fn is_written(name: &str) -> bool {
    name == config::FILE || RESULT.contains(&name) || hf::SIDE_FILES.contains(&name)
}
