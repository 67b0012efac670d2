//! The rows of a set: JSON lines in `NAME.jsonl`, `NAME.jsonl.gz` or `NAME.jsonl.zst` of a folder.

use crate::error::{Error, Message, Result, message};
use crate::format::input::Lines;
use crate::format::jsonl;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A row and the line it stood in, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<T> {
    /// The line.
    pub line: u64,
    /// What it holds.
    pub value: T,
}

/// The file `NAME.ending` of a folder, packed or not.
pub fn file(folder: &Path, name: &str) -> Result<PathBuf> {
    if !folder.is_dir() {
        let what = format!("is no folder, one of a set was wanted, with {name} in it");
        return Err(Error::file(folder, what));
    }
    let names = ["", ".gz", ".zst"].map(|packing| folder.join(format!("{name}{packing}")));
    let found = names.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| Error::file(folder, format!("holds no {name} ({name}.gz, {name}.zst)")))
}

/// All rows of a file; `wanted` shows one. A row that is not one is an error naming its line and what it lacks.
pub fn read<T: DeserializeOwned>(path: &Path, wanted: &str) -> Result<Vec<Row<T>>> {
    let rows = Rows::open(path, wanted)?.collect::<Result<Vec<_>>>()?;
    if rows.is_empty() {
        return Err(Error::file(path, format!("holds no row; lines of {wanted} were wanted")));
    }
    Ok(rows)
}

/// The rows of a file, one at a time; ends after the first error.
pub struct Rows<T> {
    lines: Lines,
    wanted: String,
    done: bool,
    kind: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned> Rows<T> {
    /// Opens a file.
    pub fn open(path: &Path, wanted: &str) -> Result<Rows<T>> {
        let (lines, wanted) = (Lines::open(path)?, wanted.into());
        Ok(Rows { lines, wanted, done: false, kind: std::marker::PhantomData })
    }

    fn row(&mut self) -> Result<Option<Row<T>>> {
        while self.lines.read()? {
            let text = self.lines.text()?;
            if text.trim().is_empty() {
                continue;
            }
            let wanted = &self.wanted;
            // Asked here because serde would take an array for the fields in their order.
            if !text.trim_start().starts_with('{') {
                return Err(self.lines.wrong(format_args!("not a JSON object; {wanted} was wanted")));
            }
            let value = jsonl::parse(text)
                .map_err(|what| self.lines.wrong(format_args!("{what}; {wanted} was wanted")))?;
            return Ok(Some(Row { line: self.lines.place(), value }));
        }
        Ok(None)
    }
}

impl<T: DeserializeOwned> Iterator for Rows<T> {
    type Item = Result<Row<T>>;

    fn next(&mut self) -> Option<Result<Row<T>>> {
        if self.done {
            return None;
        }
        let next = self.row().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The error of one field of one line.
pub fn wrong(path: &Path, line: u64, field: &str, what: Message) -> Error {
    Error::file(path, message![format!("line {line}, {field}: "), what])
}
