//! Rows of any file that people have: lines of text, JSON lines, a JSON array, CSV or TSV with a header, Parquet, Arrow;
//! the first four packed or not. A row is a line of text, or a JSON object, whatever the file is; one is held at a time.

mod array;
#[cfg(feature = "parquet")]
mod columns;
mod content;
mod csv;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use self::array::Array;
use self::content::{Content, HEAD_BYTES};
use self::csv::Csv;
use super::lines::{Lines, Source};
use super::unpack::{ending, unpacked};
use crate::error::{Error, Message, Result, Setting, message};

/// How texts lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Format {
    /// One text per line.
    Text,
    /// One object per line, `{"text": …}` or of words `{"tokens": […]}`, with `"instruction"` and `"id"` or without; blank
    /// lines are skipped.
    Jsonl,
    /// One array of such objects, or of strings.
    Json,
    /// Comma- or semicolon-separated values under a header.
    Csv,
    /// Tab-separated values under a header.
    Tsv,
    /// A Parquet table.
    Parquet,
    /// An Arrow file (Feather 2) or stream.
    Arrow,
}

impl Format {
    /// The format that a file name asks for, looking through `.gz` and `.zst`.
    pub fn of(path: &Path) -> Format {
        named(path).unwrap_or(Format::Text)
    }

    /// Whether it is read whole before the first row.
    pub(crate) fn is_binary(self) -> bool {
        matches!(self, Format::Parquet | Format::Arrow)
    }

    fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Jsonl => "JSON lines",
            Format::Json => "a JSON array",
            Format::Csv => "comma-separated values",
            Format::Tsv => "tab-separated values",
            Format::Parquet => "Parquet",
            Format::Arrow => "Arrow",
        }
    }
}

fn named(path: &Path) -> Option<Format> {
    Some(match ending(&unpacked(path))?.as_str() {
        "jsonl" | "ndjson" => Format::Jsonl,
        "json" => Format::Json,
        "csv" => Format::Csv,
        "tsv" => Format::Tsv,
        "parquet" => Format::Parquet,
        "arrow" | "feather" => Format::Arrow,
        _ => return None,
    })
}

/// How a file is to be read, where its content does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Its format.
    pub format: Option<Format>,
    /// The column, or the key of JSON, that holds the text; `None` is `text`.
    pub text_column: Option<String>,
}

impl Reading {
    /// The column of the text.
    pub fn column(&self) -> &str {
        self.text_column.as_deref().unwrap_or("text")
    }
}

/// Where a row stands, from 1: `line 3`, `row 2, line 4` of a table, `element 2, line 4` of an array, `row 2` of Parquet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What rows are called; empty where each is a line.
    pub unit: &'static str,
    /// The number of the row; of a line, the line.
    pub number: u64,
    /// The line that it begins in; 0 where there are none.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.unit, self.line) {
            ("", line) => write!(f, "line {line}"),
            (unit, 0) => write!(f, "{unit} {}", self.number),
            (unit, line) => write!(f, "{unit} {}, line {line}", self.number),
        }
    }
}

/// Why no more rows can be read.
enum Broken {
    /// Reading failed.
    Io(io::Error),
    /// The file is damaged from here on.
    Data(String),
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Broken {
        Broken::Io(e)
    }
}

enum Body {
    Lines(Lines),
    Array(Array),
    Csv(Box<Csv>),
    #[cfg(feature = "parquet")]
    Columns(Box<columns::Columns>),
}

/// The rows of one input, one at a time.
pub struct Table {
    path: PathBuf,
    format: Format,
    text: String,
    /// Said behind every error of a file whose name says something else.
    note: String,
    body: Body,
}

impl Table {
    /// Opens a file. What cannot be read is refused by its content; `otherwise` says how the caller could be told to read
    /// it all the same.
    pub fn open(path: &Path, reading: &Reading, otherwise: Message) -> Result<Table> {
        Table::new(path, Source::open(path)?, reading, otherwise, false)
    }

    /// Reads from a source; `soon` judges it by what has come when the first line is complete.
    pub(super) fn new(
        path: &Path,
        mut source: Source,
        reading: &Reading,
        otherwise: Message,
        soon: bool,
    ) -> Result<Table> {
        let format = match reading.format {
            Some(format) => format,
            None => judged(path, &mut source, otherwise, soon)?,
        };
        let (path, text, note) = (path.to_path_buf(), reading.column().to_string(), note(path, format));
        let body = match format {
            Format::Text | Format::Jsonl => Body::Lines(Lines::new(&path, source)),
            Format::Json => Body::Array(Array::new(source)),
            Format::Csv | Format::Tsv => {
                let delimiter = match format {
                    Format::Tsv => b'\t',
                    _ => content::delimiter(source.peek(HEAD_BYTES, soon).0),
                };
                Body::Csv(Box::new(Csv::new(source, delimiter, &text)))
            }
            Format::Parquet | Format::Arrow => columnar(&path, format, source)?,
        };
        let mut table = Table { path, format, text, note, body };
        if let Body::Csv(csv) = &mut table.body {
            csv.header().map_err(|e| table.broken(e))?;
        }
        Ok(table)
    }

    /// What it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The columns, where the file has a header.
    pub fn columns(&self) -> Option<&[String]> {
        match &self.body {
            Body::Lines(_) | Body::Array(_) => None,
            Body::Csv(csv) => Some(&csv.columns),
            #[cfg(feature = "parquet")]
            Body::Columns(columns) => Some(&columns.columns),
        }
    }

    /// Reads one row; false at the end. An error is of the whole file: nothing can be read behind it.
    pub fn read(&mut self) -> Result<bool> {
        let read = match &mut self.body {
            Body::Lines(lines) => return lines.read(),
            Body::Array(array) => array.read(),
            Body::Csv(csv) => csv.read(),
            #[cfg(feature = "parquet")]
            Body::Columns(columns) => columns.read(),
        };
        if !read.map_err(|e| self.broken(e))? {
            return Ok(false);
        }
        if let Body::Array(array) = &mut self.body
            && array.element.starts_with(b"\"")
        {
            let mut object = b"{".to_vec();
            csv::put(&mut object, &self.text);
            object.push(b':');
            object.append(&mut array.element);
            object.push(b'}');
            array.element = object;
        }
        Ok(true)
    }

    fn broken(&self, e: Broken) -> Error {
        match (e, &self.body) {
            (Broken::Data(what), _) => self.wrong(what),
            (Broken::Io(e), Body::Array(array)) => array.source.failed(&self.path, self.place(), e),
            (Broken::Io(e), Body::Csv(csv)) => csv.source().failed(&self.path, self.place(), e),
            (Broken::Io(e), _) => Error::io(&self.path, e),
        }
    }

    /// Where the current row stands.
    pub fn place(&self) -> Place {
        match &self.body {
            Body::Lines(lines) => Place { unit: "", number: lines.place(), line: lines.place() },
            Body::Array(array) => Place { unit: "element", number: array.number, line: array.line },
            // The header is a line.
            Body::Csv(csv) if csv.number == 0 => Place { unit: "", number: 1, line: csv.line },
            Body::Csv(csv) => Place { unit: "row", number: csv.number, line: csv.line },
            #[cfg(feature = "parquet")]
            Body::Columns(columns) => Place { unit: "row", number: columns.number, line: 0 },
        }
    }

    /// Whether rows stand in the file as they are read.
    pub fn is_in_place(&self) -> bool {
        matches!(&self.body, Body::Lines(lines) if !lines.is_packed())
    }

    /// Where the current row starts, in bytes of a file that has them in place.
    pub fn start(&self) -> u64 {
        if let Body::Lines(lines) = &self.body { lines.start() } else { 0 }
    }

    /// Whether the current row is a line of white space.
    pub fn is_blank(&self) -> bool {
        matches!(&self.body, Body::Lines(lines) if lines.line().trim_ascii().is_empty())
    }

    /// The current row: a line of text, or for every other format a JSON object, as far as the file is sound.
    pub fn text(&self) -> Result<&str> {
        let utf8 = |bytes| {
            std::str::from_utf8(bytes).map_err(|e| {
                let byte = e.valid_up_to() + 1;
                self.wrong(format!("invalid UTF-8 at byte {byte}; convert the file to UTF-8"))
            })
        };
        match &self.body {
            Body::Lines(lines) => lines.text(),
            Body::Array(array) => utf8(&array.element),
            Body::Csv(csv) => utf8(csv.row.as_ref().map_err(|what| self.wrong(what.as_str()))?),
            #[cfg(feature = "parquet")]
            Body::Columns(columns) => utf8(&columns.row),
        }
    }

    /// An error of the current row.
    pub fn wrong(&self, what: impl Into<Message>) -> Error {
        Error::file(&self.path, message![format!("{}: ", self.place()), what.into(), self.note.clone()])
    }

    /// Refuses a table with a header that lacks the column of the text.
    pub fn check_text(&self, reading: &Reading) -> Result<()> {
        let words = |name: &String| reading.text_column.is_none() && name == "tokens";
        match self.columns() {
            Some(columns) if !columns.iter().any(|name| name == reading.column() || words(name)) => {
                Err(self.refused(lacking(reading.column(), columns)))
            }
            _ => Ok(()),
        }
    }

    /// An error of the file.
    pub fn refused(&self, what: impl Into<Message>) -> Error {
        Error::file(&self.path, message![what.into(), self.note.clone()])
    }
}

/// What is said of columns, or keys, among which the text's is missing.
pub(super) fn lacking(column: &str, columns: &[String]) -> Message {
    let found =
        if columns.is_empty() { "there are none".into() } else { format!("there are {}", list(columns)) };
    message![format!("no column {column:?}, {found}; name the text's by "), Setting::TextColumn]
}

/// What an input is by its first bytes and its name.
fn judged(path: &Path, source: &mut Source, otherwise: Message, soon: bool) -> Result<Format> {
    let (head, whole) = source.peek(HEAD_BYTES, soon);
    match content::content(head, whole, ending(&unpacked(path)).as_deref()) {
        Content::Known(format) => Ok(format),
        Content::Other(what, todo) => {
            let what = format!("is {what}; text, JSON or a table was wanted: {todo}");
            Err(Error::file(path, message![what, otherwise]))
        }
    }
}

/// What is said of a file whose name says that it is something else.
fn note(path: &Path, format: Format) -> String {
    match named(path) {
        // JSON lines are called .json too.
        None | Some(Format::Json) if format == Format::Jsonl => String::new(),
        Some(name) if name != format => {
            let ending = ending(&unpacked(path)).unwrap_or_default();
            format!(" (read as {}, though its name ends in .{ending})", format.name())
        }
        _ => String::new(),
    }
}

/// Names in quotes, not too many.
pub fn list(names: &[String]) -> String {
    const MOST: usize = 12;
    let shown: Vec<String> = names.iter().take(MOST).map(|name| format!("{name:?}")).collect();
    let more = names.len().saturating_sub(MOST);
    shown.join(", ") + &(if more > 0 { format!(" and {more} more") } else { String::new() })
}

#[cfg(feature = "parquet")]
fn columnar(path: &Path, format: Format, source: Source) -> Result<Body> {
    let columns = columns::Columns::open(path, format == Format::Parquet, source)?;
    Ok(Body::Columns(Box::new(columns)))
}

#[cfg(not(feature = "parquet"))]
fn columnar(path: &Path, format: Format, _: Source) -> Result<Body> {
    let what = format!("is {}, which this build does not read: ", format.name());
    let todo = "build with --features parquet, or convert it to JSONL: pandas' to_json(orient=\"records\", lines=True)";
    Err(Error::file(path, what + todo + &note(path, format)))
}
