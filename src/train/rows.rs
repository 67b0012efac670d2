//! Rows of files larger than memory: one pass checks every row and notes where it is, then any row is one seek away.
//!
//! A packed file (gzip, zstd), an array or a table is written once, row by row, into an unnamed temporary file, where a
//! shuffle buffer would have spared the disk: the whole corpus is shuffled alike, packed or not (ours are sorted by book), resuming is a seek instead of
//! reading everything again, and bad rows are all known before the first step. Memory is 16 bytes a row.

use crate::error::{Error, Message, Result};
use crate::format::table::{Format, Reading, Table};
use crate::format::unpack::unpacked;
use crate::train::forms;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What a row must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line of running text, as masked training reads it; a blank one is a line as well.
    Line,
    /// A text to embed: not blank.
    Text,
    /// A query, its positive and negatives, in one of the forms of [`forms`].
    Triple,
}

/// What was found wrong while indexing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that are good.
    pub rows: usize,
    /// Rows that were left out.
    pub bad: usize,
    /// The first of them, each with file, line and reason.
    pub named: Vec<String>,
    /// Files of a folder that hold no rows by their name.
    pub ignored: Vec<PathBuf>,
}

/// Bad rows that are named; the others are only counted.
const NAMED: usize = 20;

/// Where a row is.
#[derive(Clone, Copy, Debug)]
struct Row {
    at: u64,
    bytes: u32,
    line: u32,
}

/// The rows of one file, which is one data set.
struct Indexed {
    name: String,
    path: PathBuf,
    format: Format,
    /// Plain text: the file itself, or what it unpacks to.
    file: File,
    rows: Vec<Row>,
}

/// The good rows of one file or of a folder of files, by number: file by file in the order of their names.
pub struct Rows {
    files: Vec<Indexed>,
    /// Number of the first row of each file, and of the end.
    starts: Vec<usize>,
    hash: u64,
    /// What was found.
    pub report: Report,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowText {
    /// The data set, by number.
    pub set: usize,
    /// The line in its file, from 1; in an array or a table, the row.
    pub line: usize,
    /// What stands there: text, or for JSON the whole object.
    pub text: String,
}

impl Rows {
    /// Reads through `path`, a file or a folder of files; `column` holds the text of rows that are texts, `strict` stops at
    /// the first bad row.
    pub fn open(path: &Path, kind: Kind, column: Option<&str>, strict: bool) -> Result<Rows> {
        let reading = Reading { format: None, text_column: column.map(String::from) };
        let mut report = Report::default();
        let mut files: Vec<Indexed> = Vec::new();
        let mut hash = Hash::new();
        for path in listed(path, kind, &mut report)? {
            let file = index(&path, kind, &reading, strict, &mut report, &mut hash)?;
            if let Some(other) = files.iter().find(|f| f.name == file.name) {
                let what =
                    format!("and {} are one data set by their names; rename one", other.path.display());
                return Err(Error::file(&path, what));
            }
            files.push(file);
        }
        let starts = std::iter::once(0).chain(files.iter().scan(0, |end, f| {
            *end += f.rows.len();
            Some(*end)
        }));
        let starts: Vec<usize> = starts.collect();
        report.rows = starts[files.len()];
        if report.rows == 0 {
            let first = report.named.first().map_or("it is empty", String::as_str);
            return Err(Error::file(path, format!("no row to train on: {first}")));
        }
        if u32::try_from(report.rows).is_err() {
            return Err(Error::file(path, format!("{} rows, at most 2^32 - 1 can be shuffled", report.rows)));
        }
        Ok(Rows { files, starts, hash: hash.0, report })
    }

    /// Names of the data sets: their files' names without endings.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|f| f.name.as_str())
    }

    /// Rows of each data set.
    pub fn sizes(&self) -> Vec<usize> {
        self.files.iter().map(|f| f.rows.len()).collect()
    }

    /// A hash of every good row: a position in other data means nothing.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Row `i`.
    pub fn read(&mut self, i: usize) -> Result<RowText> {
        let set = self.starts.partition_point(|&start| start <= i) - 1;
        let file = &mut self.files[set];
        let row = file.rows[i - self.starts[set]];
        let mut bytes = vec![0; row.bytes as usize];
        file.file
            .seek(SeekFrom::Start(row.at))
            .and_then(|_| file.file.read_exact(&mut bytes))
            .map_err(|e| Error::io(&file.path, e))?;
        let line = row.line as usize;
        let text = String::from_utf8(bytes).map_err(|_| changed(&file.path, line))?;
        Ok(RowText { set, line, text })
    }

    /// The format of a data set's rows.
    pub fn format(&self, set: usize) -> Format {
        self.files[set].format
    }

    /// For a row that was good and no longer is.
    pub fn changed(&self, row: &RowText) -> Error {
        changed(&self.files[row.set].path, row.line)
    }
}

fn changed(path: &Path, line: usize) -> Error {
    Error::file(path, format!("line {line}: changed since training began"))
}

/// The files to read: `path` itself, or the files of a folder by the ending that `kind` wants, sorted by name.
fn listed(path: &Path, kind: Kind, report: &mut Report) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        let hidden = file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let text = unpacked(&file).extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"));
        let wanted = Format::of(&file) != Format::Text || text && kind != Kind::Triple;
        match file.is_file() && !hidden {
            true if wanted => files.push(file),
            true => report.ignored.push(file),
            false => {}
        }
    }
    files.sort();
    report.ignored.sort();
    if files.is_empty() {
        let text = if kind == Kind::Triple { "" } else { ".txt, " };
        let what =
            format!("holds no {text}.jsonl, .json, .csv, .tsv (plain, .gz or .zst), .parquet or .arrow file");
        return Err(Error::file(path, what));
    }
    Ok(files)
}

/// One pass over a file: notes the good rows, names the bad ones, copies those that do not stand in it as they are read.
fn index(
    path: &Path,
    kind: Kind,
    reading: &Reading,
    strict: bool,
    report: &mut Report,
    hash: &mut Hash,
) -> Result<Indexed> {
    let plain = unpacked(path);
    let name = plain.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut table = Table::open(path, reading, Message::default())?;
    let format = match (table.format(), kind) {
        (Format::Text, Kind::Triple) => Format::Jsonl,
        (format, _) => format,
    };
    match (table.columns(), kind) {
        (Some(columns), Kind::Triple) => {
            forms::keys(columns.iter()).map_err(|what| table.refused(what))?;
        }
        _ => table.check_text(reading)?,
    }
    let mut copy = match table.is_in_place() {
        true => None,
        false => Some(BufWriter::new(tempfile::tempfile().map_err(Error::temporary)?)),
    };
    let (mut rows, mut copied) = (Vec::new(), 0);
    hash.add(name.as_bytes());
    while table.read()? {
        if format == Format::Jsonl && table.is_blank() {
            continue;
        }
        let row = match check(&table, kind, format, reading.column()) {
            Ok(row) => row,
            Err(e) if strict => return Err(e),
            Err(e) => {
                report.bad += 1;
                if report.named.len() < NAMED {
                    report.named.push(e.to_string());
                }
                continue;
            }
        };
        let row = row.as_bytes();
        let at = if copy.is_some() { copied } else { table.start() };
        let number = u32::try_from(table.place().number).map_err(|_| table.wrong("more than 2^32 rows"))?;
        rows.push(Row { at, bytes: row.len() as u32, line: number });
        hash.add(row);
        if let Some(copy) = &mut copy {
            copy.write_all(row).map_err(Error::temporary)?;
            copied += row.len() as u64;
        }
    }
    let file = match copy {
        Some(copy) => copy.into_inner().map_err(|e| Error::temporary(e.into_error()))?,
        None => File::open(path).map_err(|e| Error::io(path, e))?,
    };
    Ok(Indexed { name, path: path.to_path_buf(), format, file, rows })
}

/// The current row, if it is one of this kind.
fn check<'a>(table: &'a Table, kind: Kind, format: Format, column: &str) -> Result<&'a str> {
    let row = table.text()?;
    let checked = match (kind, format) {
        (Kind::Line, Format::Text) => Ok(()),
        (Kind::Text, Format::Text) if row.trim().is_empty() => Err("blank".into()),
        (Kind::Text, Format::Text) => Ok(()),
        (Kind::Triple, _) => forms::triple(row).map(|_| ()),
        _ => forms::text(row, column).and_then(|text| match kind == Kind::Text && text.trim().is_empty() {
            true => Err(format!("{column:?} is blank")),
            false => Ok(()),
        }),
    };
    checked.map(|()| row).map_err(|what| table.wrong(what))
}

/// FNV-1a of 64 bits, a length after each piece.
struct Hash(u64);

impl Hash {
    fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &b in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
