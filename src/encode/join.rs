//! The parts of a sharded encoding, made into the one file that an encoding in one piece writes.

use super::part::PartRecord;
use crate::error::{Error, Result};
use crate::format::output::Output;
use crate::format::parts::PartFile;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Parts that belong together, in their order.
pub struct Join {
    parts: Vec<(PathBuf, PartRecord)>,
}

impl Join {
    /// Reads the records of these parts, whatever their order, and refuses what does not make a whole, by name.
    pub fn open(paths: &[PathBuf]) -> Result<Join> {
        let mut parts = Vec::with_capacity(paths.len());
        for path in paths {
            parts.push((path.clone(), PartRecord::read(path)?));
        }
        let Some((first, record)) = parts.first().cloned() else {
            return Err(Error::usage("join: no parts are given"));
        };
        for (path, other) in &parts {
            if let Some(what) = differs(&record, other) {
                let what = format!("is a part of another run than {} ({what})", first.display());
                return Err(Error::file(path, what));
            }
            if ending(path) != ending(&first) {
                return Err(Error::file(path, format!("is a file of another kind than {}", first.display())));
            }
        }
        parts.sort_by_key(|(_, record)| record.part);
        if let Some(twice) = parts.windows(2).find(|pair| pair[0].1.part == pair[1].1.part) {
            let what =
                format!("is part {} of {}, as {} is", twice[1].1.part, record.parts, twice[0].0.display());
            return Err(Error::file(&twice[1].0, what));
        }
        if let Some(missing) = (1..=record.parts).find(|i| parts.iter().all(|(_, record)| record.part != *i))
        {
            return Err(Error::usage(format!("join: part {missing} of {} is missing", record.parts)));
        }
        let mut next = 0;
        for (path, record) in &parts {
            if record.part > record.parts || record.texts[0] != next || record.texts[1] < next {
                let what = format!("has the texts {} to {} by its record", record.texts[0], record.texts[1]);
                return Err(Error::file(path, format!("{what}, those from {next} on were wanted")));
            }
            next = record.texts[1];
        }
        if next != record.total {
            let what = format!("join: the parts end at text {next} of {}", record.total);
            return Err(Error::usage(what));
        }
        Ok(Join { parts })
    }

    /// The files that are read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|(path, _)| path.as_path())
    }

    /// Writes the whole, each part checked against its hash before; gives its texts.
    pub fn write(&self, output: &str) -> Result<u64> {
        let (first, record) = &self.parts[0];
        let blocks = record.level != "text";
        if ending(Path::new(output)) != ending(first) {
            let what =
                format!("the parts are files like {}; give a name that ends as theirs", first.display());
            return Err(Error::usage(format!("output {output:?}: {what}")));
        }
        let create = if blocks { Output::of_blocks } else { Output::create };
        let mut whole = create(output, record.width, record.dtype)?;
        for (path, record) in &self.parts {
            record.check_files(path)?;
            if ending(path) == "jsonl" {
                let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
                for line in file.lines() {
                    whole.append_line(&line.map_err(|e| Error::io(path, e))?, path)?;
                }
            } else {
                let file = PartFile::open(path, record.dtype, blocks)?;
                whole.append(&file.raw()?, path)?;
            }
        }
        whole.finish()?;
        Ok(record.total)
    }
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// What two parts do not have in common, if they are not of one run.
fn differs(a: &PartRecord, b: &PartRecord) -> Option<String> {
    if a.parts != b.parts {
        return Some(format!("of {} parts there, of {} here", a.parts, b.parts));
    }
    let key = a.run.keys().chain(b.run.keys()).find(|key| a.run.get(*key) != b.run.get(*key));
    if let Some(key) = key {
        return Some(format!("another {key}"));
    }
    let form = |record: &PartRecord| (record.total, record.width, record.dtype, record.level.clone());
    (form(a) != form(b)).then(|| "of another form".into())
}
