//! What a run reads and what it writes or deletes: that these never meet, whatever their names, and that it can be
//! written, before the first step.

use crate::error::{Error, Result};
use crate::format::atomic;
use crate::train::checkpoint;
use crate::train::folder::{Existing, is_written};
use crate::train::{config, log};
use std::fs::OpenOptions;
use std::path::{Component, Path, PathBuf};

/// Something that a run reads: a file, or a folder of files.
pub struct Input {
    /// The flag that names it.
    pub flag: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// Where a run writes.
pub struct Outputs<'a> {
    /// The run's folder.
    pub folder: &'a Path,
    /// What it does about a run that is there.
    pub existing: Existing,
    /// `--log`.
    pub log: Option<&'a Path>,
    /// `--plot`.
    pub plot: Option<&'a Path>,
    /// `--tensorboard`.
    pub tensorboard: Option<&'a Path>,
}

impl Outputs<'_> {
    /// Refuses outputs that would delete or overwrite one of `inputs`, or each other.
    pub fn spare(&self, inputs: &[Input]) -> Result<()> {
        let folder = real(self.folder);
        let refused = |what: String| Err(Error::Usage(what));
        for Input { flag, path } in inputs {
            let name = path.display();
            if real(path) == folder {
                let what = format!("--output {} is {flag} itself", self.folder.display());
                return refused(format!("{what}, which the run reads; take another folder"));
            }
            for file in files(path) {
                // By its own name and by that of what it links to: deleting either loses it.
                let forms = [real(&file), named(&file)];
                if let Some(place) = forms.iter().find_map(|form| self.place(&folder, form, flag)) {
                    let what =
                        format!("{flag} {name} is read, and the run would delete or overwrite {place}");
                    return refused(format!("{what} in its --output; take another folder, or a copy"));
                }
                if let Some((output, to)) = self.files().into_iter().find(|(_, to)| same(to, &file)) {
                    let what = format!("{output} {} would overwrite {flag} {name}", to.display());
                    return refused(format!("{what}; name another file"));
                }
            }
            let rows = ["--data", "--validation"].contains(flag);
            if let Some(log) = self.log.filter(|log| rows && real(log).parent() == Some(&*real(path))) {
                let what = format!("--log {} would be read as a data set of {flag} {name}", log.display());
                return refused(format!("{what} from then on; name another file"));
            }
        }
        for (output, to) in self.files().into_iter().chain(self.tensorboard.map(|dir| ("--tensorboard", dir)))
        {
            if let Some(place) = self.place(&folder, &real(to), output) {
                let what = format!("{output} {} would be in the way of {place}", to.display());
                return refused(format!("{what}, which the run writes in its --output; name another"));
            }
        }
        match (self.log, self.plot) {
            (Some(log), Some(plot)) if same(log, plot) => {
                refused(format!("--log and --plot are both {}; name another file", log.display()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses outputs that cannot be written, and a log that is no log.
    pub fn probe(&self) -> Result<()> {
        for (_, path) in self.files() {
            if path.exists() && !path.is_dir() {
                OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, e))?;
            }
            // The run's own folder is made when the run begins.
            if path.is_dir() || path.parent().map(real) != Some(real(self.folder)) {
                atomic::beside(path)?;
            }
        }
        self.log.map_or(Ok(()), log::check)?;
        for dir in [self.tensorboard, Some(self.folder)].into_iter().flatten() {
            let Some(there) = absolute(dir).ancestors().find(|a| a.exists()).map(Path::to_path_buf) else {
                continue;
            };
            if !there.is_dir() {
                let what = if there == absolute(dir) { "is a file" } else { "lies below a file" };
                return Err(Error::file(dir, format!("{what}, a folder was wanted; name another")));
            }
            tempfile::tempfile_in(&there).map_err(|e| Error::io(dir, e))?;
        }
        Ok(())
    }

    /// The files beside the run's folder.
    fn files(&self) -> Vec<(&'static str, &Path)> {
        let all = [("--log", self.log), ("--plot", self.plot)];
        all.into_iter().filter_map(|(flag, path)| Some((flag, path?))).collect()
    }

    /// What of the run's own is at `path`, or holds it.
    fn place(&self, folder: &Path, path: &Path, flag: &str) -> Option<String> {
        let inside = path.strip_prefix(folder).ok()?;
        let first = inside.components().next()?.as_os_str().to_string_lossy();
        // A resumed run may be told its settings by the file that it has written itself.
        let own = first == config::FILE && flag == "--config" && self.existing == Existing::Resume;
        let taken = checkpoint::is_name(&first) || is_written(&first) && !own;
        taken.then(|| first.into_owned())
    }
}

/// The files that are read of an input.
fn files(path: &Path) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(path).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    std::iter::once(path.to_path_buf()).chain(inside).collect()
}

/// Whether two names are of one file, be it by a hard link.
fn same(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (std::fs::metadata(a), std::fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    real(a) == real(b)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The path without links, `.` and `..`; what is not there yet stands behind the nearest folder that is.
fn real(path: &Path) -> PathBuf {
    let path = absolute(path);
    let there = path.ancestors().find_map(|a| Some((a.canonicalize().ok()?, path.strip_prefix(a).ok()?)));
    let Some((mut real, rest)) = there else { return path.clone() };
    for part in rest.components() {
        match part {
            Component::ParentDir => drop(real.pop()),
            part => real.push(part),
        }
    }
    real
}

/// The same, but for a link at the end of the path.
fn named(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => real(parent).join(name),
        _ => absolute(path),
    }
}
