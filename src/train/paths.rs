//! What a run reads and what it writes or deletes: that these never meet, whatever their names, and that it can be
//! written, before the first step.

use crate::error::{Error, Message, Result, Setting, message};
use crate::format::atomic;
use crate::pretrained::open::Setup;
use crate::train::checkpoint;
use crate::train::config::TrainConfig;
use crate::train::folder::{Existing, is_written};
use crate::train::{config, log};
use std::fs::OpenOptions;
use std::path::{Component, Path, PathBuf};

/// Something that a run reads: a file, or a folder of files.
pub struct Input {
    /// The setting that names it.
    pub setting: Setting,
    /// Where it is.
    pub path: PathBuf,
}

/// Everything that a run reads, by the setting that names it.
pub(super) fn inputs(
    config: &TrainConfig,
    setup: &Setup,
    start: Option<&Path>,
    source: Option<&Path>,
) -> Vec<Input> {
    let file = |setting, path: Option<&str>| path.map(|path| Input { setting, path: path.into() });
    let folder = |setting, path: &Path| Input { setting, path: path.into() };
    let mut list: Vec<Input> = setup.stack.dirs().map(|dir| folder(Setting::TrainModel, dir)).into();
    list.extend(setup.stack.adapters.iter().map(|at| folder(Setting::TrainAdapters, &at.dir)));
    list.extend(start.map(|dir| folder(Setting::TrainAdapters, dir)));
    list.extend(file(Setting::TrainFile, config.data()));
    list.extend(file(Setting::ValidationFile, config.validation_file.as_deref()));
    list.extend(file(Setting::Instructions, config.instructions.as_deref()));
    list.extend(source.map(|path| Input { setting: Setting::Source, path: path.into() }));
    list
}

/// Where a run writes.
pub struct Outputs<'a> {
    /// The run's folder.
    pub folder: &'a Path,
    /// What it does about a run that is there.
    pub existing: Existing,
    /// The log of its steps.
    pub log: Option<&'a Path>,
    /// The picture of its losses.
    pub plot: Option<&'a Path>,
    /// The folder of TensorBoard's events.
    pub tensorboard: Option<&'a Path>,
}

impl Outputs<'_> {
    /// Refuses outputs that would delete or overwrite one of `inputs`, or each other.
    pub fn spare(&self, inputs: &[Input]) -> Result<()> {
        let folder = real(self.folder);
        let refused = |what: Message| Err(Error::usage(what));
        for &Input { setting, ref path } in inputs {
            let name = format!(" {}", path.display());
            if real(path) == folder {
                let (output, rest) =
                    (self.folder.display(), " itself, which the run reads; take another folder");
                return refused(message![Setting::OutputDir, format!(" {output} is "), setting, rest]);
            }
            for file in files(path) {
                // By its own name and by that of what it links to: deleting either loses it.
                let forms = [real(&file), named(&file)];
                if let Some(place) = forms.iter().find_map(|form| self.place(&folder, form, setting)) {
                    let what =
                        format!("{name} is read, and the run would delete or overwrite {place} in its ");
                    let output = Setting::OutputDir;
                    return refused(message![setting, what, output, "; take another folder, or a copy"]);
                }
                if let Some((output, to)) = self.files().into_iter().find(|(_, to)| same(to, &file)) {
                    let what = format!(" {} would overwrite ", to.display());
                    return refused(message![output, what, setting, name, "; name another file"]);
                }
            }
            let rows = [Setting::TrainFile, Setting::ValidationFile].contains(&setting);
            if let Some(log) = self.log.filter(|log| rows && real(log).parent() == Some(&*real(path))) {
                let what = format!(" {} would be read as a data set of ", log.display());
                let rest = " from then on; name another file";
                return refused(message![Setting::Log, what, setting, name, rest]);
            }
        }
        for (output, to) in
            self.files().into_iter().chain(self.tensorboard.map(|dir| (Setting::Tensorboard, dir)))
        {
            if let Some(place) = self.place(&folder, &real(to), output) {
                let what =
                    format!(" {} would be in the way of {place}, which the run writes in its ", to.display());
                return refused(message![output, what, Setting::OutputDir, "; name another"]);
            }
        }
        match (self.log, self.plot) {
            (Some(log), Some(plot)) if same(log, plot) => {
                let rest = format!(" are both {}; name another file", log.display());
                refused(message![Setting::Log, " and ", Setting::Plot, rest])
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
    fn files(&self) -> Vec<(Setting, &Path)> {
        let all = [(Setting::Log, self.log), (Setting::Plot, self.plot)];
        all.into_iter().filter_map(|(setting, path)| Some((setting, path?))).collect()
    }

    /// What of the run's own is at `path`, or holds it.
    fn place(&self, folder: &Path, path: &Path, setting: Setting) -> Option<String> {
        let inside = path.strip_prefix(folder).ok()?;
        let first = inside.components().next()?.as_os_str().to_string_lossy();
        // A resumed run may be told its settings by the file that it has written itself.
        let own = first == config::FILE && setting == Setting::Source && self.existing == Existing::Resume;
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
