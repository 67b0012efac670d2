//! The sets of a word-level task: training, validation and test files of one layer of tags.

use super::reader::Tagged;
use super::spans;
use crate::error::{Error, Result};
use crate::format::unpack::unpacked;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the parts of a set are called in names of files.
const NAMES: [&[&str]; 3] = [&["train"], &["validation", "valid", "dev", "testa"], &["test", "testb"]];

/// The files of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// To learn from.
    pub train: PathBuf,
    /// Measured too, where there is one.
    pub validation: Option<PathBuf>,
    /// To answer.
    pub test: PathBuf,
}

impl Files {
    /// The files `train…`, `dev…` and `test…` of a folder, or those whose names begin with the last part of `path`:
    /// `FOLDER/ud-ewt` has `ud-ewt.train.jsonl.gz`. Without a test file, the validation file is it.
    pub fn find(path: &Path) -> Result<Files> {
        let (folder, prefix) = match path.is_dir() {
            true => (path, String::new()),
            false => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                (folder.unwrap_or(Path::new(".")), name)
            }
        };
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
        let entries = entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io(folder, e)));
        let mut files = entries.collect::<Result<Vec<_>>>()?;
        files.retain(|file| file.is_file() && stem(file).is_some_and(|name| name.starts_with(&prefix)));
        files.sort();
        let [train, validation, test] = NAMES.map(|names| part(path, &files, names));
        let train = train?;
        let (validation, test) = match (validation?, test?) {
            (validation, Some(test)) => (validation, Some(test)),
            (only, None) => (None, only),
        };
        let missing = |what: &str| {
            let what = format!("holds no {what} file (train.…, dev.…, test.…, or NAME.train.… and so on)");
            Error::file(path, what)
        };
        let train = train.ok_or_else(|| missing("train"))?;
        Ok(Files { train, validation, test: test.ok_or_else(|| missing("test or dev"))? })
    }
}

/// The name without endings of packing and format, in lower case.
fn stem(path: &Path) -> Option<String> {
    Some(unpacked(path).file_stem()?.to_str()?.to_lowercase())
}

/// The one file of these names.
fn part(path: &Path, files: &[PathBuf], names: &[&str]) -> Result<Option<PathBuf>> {
    let of_part = |file: &&PathBuf| {
        let stem = stem(file).unwrap_or_default();
        let last = stem.rsplit(['.', '-', '_']).next().unwrap_or_default();
        names.contains(&last)
    };
    let found: Vec<&PathBuf> = files.iter().filter(of_part).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.to_path_buf())),
        [first, second, ..] => {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (n, first, second) = (found.len(), name(first), name(second));
            let what = format!("{n} {} files ({first}, {second} …)", names[0]);
            Err(Error::file(
                path,
                format!("{what}; add the start of their name, or give the files one by one"),
            ))
        }
    }
}

/// A read set.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// To learn from.
    pub train: Tagged,
    /// Measured too, where there is one.
    pub validation: Option<Tagged>,
    /// To answer.
    pub test: Tagged,
    /// The tags of the training file, in order: what can be answered.
    pub classes: Vec<String>,
    /// Whether tags mark spans.
    pub spans: bool,
}

impl DataSet {
    /// Reads all files with one layer of tags. Tags mark spans where the layer is called `ner` or `chunk`, or where the
    /// training file has both `O` and a `B-…` or `I-…`; then every tag has to be one of them.
    pub fn read(files: &Files, label: Option<&str>) -> Result<DataSet> {
        let train = Tagged::read(&files.train, label)?;
        // What the training file has as its only layer is the layer of the others.
        let label = Some(label.unwrap_or(&train.label));
        let validation = files.validation.as_deref().map(|path| Tagged::read(path, label)).transpose()?;
        let test = Tagged::read(&files.test, label)?;
        let tags: BTreeSet<&String> = train.sentences.iter().flat_map(|s| &s.tags).collect();
        let classes: Vec<String> = tags.into_iter().cloned().collect();
        if let [only] = classes.as_slice() {
            let what = format!("every tag is {only:?}, at least two were wanted to tell apart");
            return Err(Error::file(&train.path, what));
        }
        let has = |test: fn(&str) -> bool| classes.iter().any(|tag| test(tag));
        let mixed = has(|tag| tag == "O") && has(|tag| tag.starts_with("B-") || tag.starts_with("I-"));
        let spans = mixed || ["ner", "chunk"].contains(&train.label.as_str());
        let data = DataSet { train, validation, test, classes, spans };
        if spans {
            data.parts().try_for_each(check_spans)?;
        }
        Ok(data)
    }

    /// All files, the training file first, the test file last.
    pub fn parts(&self) -> impl Iterator<Item = &Tagged> {
        std::iter::once(&self.train).chain(&self.validation).chain(std::iter::once(&self.test))
    }

    /// The class of a tag, where the training file has it.
    pub fn class(&self, tag: &str) -> Option<usize> {
        self.classes.binary_search_by(|class| class.as_str().cmp(tag)).ok()
    }
}

fn check_spans(file: &Tagged) -> Result<()> {
    let tags = file.sentences.iter().flat_map(|s| s.lines.iter().zip(&s.tags));
    match tags.into_iter().find(|(_, tag)| spans::parts(tag).is_none()) {
        None => Ok(()),
        Some((line, tag)) => {
            let what = format!("line {line}: tag {tag:?}; O, B-TYPE or I-TYPE was wanted (E- and S- too)");
            Err(Error::file(&file.path, what))
        }
    }
}
