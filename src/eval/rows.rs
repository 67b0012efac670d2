//! The rows of a set: `NAME.jsonl` of a folder, or the same rows as a JSON array, CSV, TSV, Parquet or Arrow, packed or not.

use crate::error::{Error, Message, Result, message};
use crate::format::jsonl;
use crate::format::table::{Format, Reading, Table, list};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A row and the line it began in, from 1; of a file without lines, its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<T> {
    /// The line.
    pub line: u64,
    /// What it holds.
    pub value: T,
}

/// Endings of other files of rows, in the order in which they are looked for.
const TABLES: [&str; 5] = ["json", "csv", "tsv", "parquet", "arrow"];

/// The file `NAME.ending` of a folder, packed or not; where JSON lines are wanted, another table of this name.
pub fn file(folder: &Path, name: &str) -> Result<PathBuf> {
    if !folder.is_dir() {
        let what = format!("is no folder, one of a set was wanted, with {name} in it");
        return Err(Error::file(folder, what));
    }
    let packed = |name: &str| ["", ".gz", ".zst"].map(|packing| folder.join(format!("{name}{packing}")));
    let tables = match name.strip_suffix(".jsonl") {
        Some(stem) => TABLES.iter().map(|ending| format!("{stem}.{ending}")).collect(),
        None => Vec::new(),
    };
    let mut names = packed(name).into_iter().chain(tables.iter().flat_map(|name| packed(name)));
    let or_tables = if tables.is_empty() { String::new() } else { format!(", or .{}", TABLES.join(", .")) };
    let missing = || Error::file(folder, format!("holds no {name} ({name}.gz, {name}.zst{or_tables})"));
    names.find(|path| path.is_file()).ok_or_else(missing)
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
    table: Table,
    wanted: String,
    done: bool,
    kind: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned> Rows<T> {
    /// Opens a file.
    pub fn open(path: &Path, wanted: &str) -> Result<Rows<T>> {
        let (table, wanted) = (Table::open(path, &Reading::default(), Message::default())?, wanted.into());
        Ok(Rows { table, wanted, done: false, kind: std::marker::PhantomData })
    }

    /// The columns, where the file has a header.
    pub fn columns(&self) -> Option<&[String]> {
        self.table.columns()
    }

    fn row(&mut self) -> Result<Option<Row<T>>> {
        while self.table.read()? {
            let text = self.table.text()?;
            if text.trim().is_empty() {
                continue;
            }
            let wanted = &self.wanted;
            let columns = match self.table.columns() {
                Some(columns) => format!("; the columns are {}", list(columns)),
                None => String::new(),
            };
            // Asked here because serde would take an array for the fields in their order.
            if self.table.format() == Format::Text || !text.trim_start().starts_with('{') {
                return Err(self.table.wrong(format!("not a JSON object; {wanted} was wanted")));
            }
            let value = jsonl::parse(text)
                .map_err(|what| self.table.wrong(format!("{what}; {wanted} was wanted{columns}")))?;
            let place = self.table.place();
            return Ok(Some(Row { line: if place.line > 0 { place.line } else { place.number }, value }));
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
