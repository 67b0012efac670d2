//! Rows of comma- or tab-separated values under a header, as JSON objects of strings.

use std::io::{self, Read};

use csv::{ByteRecord, Reader, ReaderBuilder};

use super::super::lines::{MAX_RECORD_BYTES, Source};
use super::Broken;
use super::content::HEAD_BYTES;

/// Put behind the input: it is a record of its own unless a quote is still open there.
const END: &[u8] = b"\n\x01end of table\x01";
/// Columns of numbers in what people label; all others are text, whatever stands there.
const NUMBERS: [&str; 3] = ["label", "labels", "score"];

/// Bounds what one record reads, and marks the end.
pub(super) struct Bounded {
    pub(super) source: Source,
    since: usize,
    end: &'static [u8],
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since > MAX_RECORD_BYTES {
            let most = MAX_RECORD_BYTES >> 20;
            return Err(io::Error::other(format!("a record longer than {most} MiB; a quote is not closed")));
        }
        let got = self.source.read(buffer)?;
        self.since += got;
        if got > 0 { Ok(got) } else { self.end.read(buffer) }
    }
}

/// Reads rows.
pub(super) struct Csv {
    reader: Reader<Bounded>,
    record: ByteRecord,
    /// Whether lines end in CR LF.
    crlf: bool,
    /// What the header says, in order.
    pub(super) columns: Vec<String>,
    /// The column of the text, which may be empty where others have no value.
    text: String,
    /// The current row as a JSON object, or what is wrong with it.
    pub(super) row: Result<Vec<u8>, String>,
    /// Its number, from 1, without the header.
    pub(super) number: u64,
    /// The line that it begins in, from 1.
    pub(super) line: u64,
}

impl Csv {
    pub(super) fn new(mut source: Source, delimiter: u8, text: &str) -> Csv {
        let head = source.peek(HEAD_BYTES, true).0;
        let crlf = head.iter().position(|&b| b == b'\n').is_some_and(|at| head[..at].ends_with(b"\r"));
        let bounded = Bounded { source, since: 0, end: END };
        let reader =
            ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(bounded);
        let (record, row) = (ByteRecord::new(), Ok(Vec::new()));
        Csv { reader, record, crlf, columns: Vec::new(), text: text.into(), row, number: 0, line: 1 }
    }

    /// Reads the header, which comes before all rows.
    pub(super) fn header(&mut self) -> Result<(), Broken> {
        if self.record()? {
            let name = |field: &[u8]| String::from_utf8(field.to_vec());
            let names = self.record.iter().map(name).collect::<Result<_, _>>();
            self.columns =
                names.map_err(|_| Broken::Data("invalid UTF-8 in the header; convert the file".into()))?;
        }
        let before = |i: usize, name: &String| !name.is_empty() && self.columns[..i].contains(name);
        match self.columns.iter().enumerate().find(|(i, name)| before(*i, name)) {
            None => Ok(()),
            Some((_, twice)) => {
                Err(Broken::Data(format!("two columns are called {twice:?} in the header; rename one")))
            }
        }
    }

    /// What is read from.
    pub(super) fn source(&self) -> &Source {
        &self.reader.get_ref().source
    }

    /// The next record; false behind the last.
    fn record(&mut self) -> Result<bool, Broken> {
        self.reader.get_mut().since = 0;
        let read = self.reader.read_byte_record(&mut self.record);
        let read = read.map_err(|e| match e.into_kind() {
            csv::ErrorKind::Io(e) if self.reader.get_ref().since <= MAX_RECORD_BYTES => Broken::Io(e),
            csv::ErrorKind::Io(e) => Broken::Data(e.to_string()),
            other => Broken::Data(format!("{other:?}")),
        })?;
        // Counted back from the end, which is behind a line feed, but in front of the one of CR LF; blank lines are skipped.
        let inside = self.record.as_slice().iter().filter(|&&b| b == b'\n').count() as u64;
        let over = self.reader.position().line() - u64::from(!self.crlf);
        self.line = over.saturating_sub(inside).max(1);
        let end = &END[1..];
        match self.record.iter().next_back() {
            Some(field) if self.record.len() == 1 && field == end => Ok(false),
            Some(field) if field.ends_with(end) => {
                // The end of the last record is no line feed.
                self.line += u64::from(!self.crlf);
                Err(Broken::Data("the file ends inside a quoted field: its quote is not closed".into()))
            }
            _ => Ok(read),
        }
    }

    /// Reads one row; false behind the last.
    pub(super) fn read(&mut self) -> Result<bool, Broken> {
        self.number += 1;
        if !self.record()? {
            return Ok(false);
        }
        self.row = self.object();
        Ok(true)
    }

    /// The record as an object. What is empty is null, but for the text.
    fn object(&self) -> Result<Vec<u8>, String> {
        let (got, wanted) = (self.record.len(), self.columns.len());
        if got != wanted {
            let fields = if got == 1 { "1 field".to_string() } else { format!("{got} fields") };
            return Err(format!(
                "{fields}, the header has {wanted} columns ({})",
                super::list(&self.columns)
            ));
        }
        let mut object = b"{".to_vec();
        for (name, field) in self.columns.iter().zip(&self.record).filter(|(name, _)| !name.is_empty()) {
            let field = std::str::from_utf8(field).map_err(|e| {
                let byte = e.valid_up_to() + 1;
                format!("column {name:?}: invalid UTF-8 at byte {byte}; convert the file to UTF-8")
            })?;
            object.extend(if object.len() > 1 { &b","[..] } else { b"" });
            put(&mut object, name);
            object.push(b':');
            match () {
                () if field.is_empty() && *name != self.text => object.extend(b"null"),
                () if NUMBERS.contains(&name.as_str()) && *name != self.text && is_number(field) => {
                    object.extend(field.as_bytes());
                }
                () => put(&mut object, field),
            }
        }
        object.push(b'}');
        Ok(object)
    }
}

/// Whether it is a number as JSON writes it.
fn is_number(field: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(field).is_ok()
}

/// Appends a JSON string.
pub(super) fn put(to: &mut Vec<u8>, text: &str) {
    to.extend(serde_json::Value::from(text).to_string().as_bytes());
}
