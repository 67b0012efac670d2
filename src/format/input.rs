//! Texts from a file or from standard input, one record at a time: no file is ever held whole.

use std::{
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::jsonl;
pub use super::lines::Progress;
use super::lines::Source;
use super::table::{Table, lacking};
use crate::error::{Error, Message, Result, Setting, message};

pub use super::table::{Format, Place, Reading};

/// One text and where it stood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Where, in its file.
    pub place: Place,
    /// What the text is to be read for, where the record says so itself.
    pub instruction: Option<String>,
    /// The text.
    pub text: String,
    /// Where the words stand in the text, in bytes, if the record brings them one by one.
    pub words: Option<Vec<Range<usize>>>,
    /// The record's name for itself, whatever JSON it is.
    pub id: Option<Value>,
}

/// What a line is.
pub enum Entry {
    /// Nothing, in a format that skips it.
    Blank,
    /// A text.
    Record(Record),
    /// No text, and why; those behind it may be.
    Wrong(Error),
}

/// The records of one input, in order; ends after the first error.
pub struct Records {
    path: PathBuf,
    reading: Reading,
    /// Of something that is no file, till its first record: reading ahead would wait for whoever writes.
    source: Source,
    progress: Option<Progress>,
    /// Judge it by its first line alone: whoever writes waits for the answer.
    soon: bool,
    table: Option<Table>,
    /// Read already, to see whether it is a record at all.
    first: Option<Entry>,
    done: bool,
}

/// Opens `input`, a file name or `-` for standard input; `reading` overrules what the name and the content say. A file that
/// is neither text nor data, or whose first record lacks the text, is refused here.
pub fn open(input: &str, reading: &Reading) -> Result<Records> {
    if input == "-" {
        let path = Path::new("stdin");
        return Ok(Records::new(path, Source::new(path, io::stdin()), reading));
    }
    let path = Path::new(input);
    let mut records = Records::new(path, Source::open(path)?, reading);
    if path.is_file() {
        let format = records.table()?.0.format();
        records.first = match records.entry()? {
            Some(Entry::Wrong(e)) if format != Format::Text => return Err(e),
            first => first,
        };
    }
    Ok(records)
}

fn otherwise() -> Message {
    message!["; ", Setting::InputFormat, " text reads its lines as they stand"]
}

impl Records {
    fn new(path: &Path, source: Source, reading: &Reading) -> Records {
        let (path, reading, progress) = (path.to_path_buf(), reading.clone(), source.progress().cloned());
        Records { path, reading, source, progress, soon: false, table: None, first: None, done: false }
    }

    /// Reads records from anything, for instance from memory; `name` stands in for the file's in errors.
    pub fn from_reader(name: &str, format: Format, source: impl Read + Send + 'static) -> Records {
        let reading = Reading { format: Some(format), ..Reading::default() };
        Records::new(Path::new(name), Source::new(Path::new(name), source), &reading)
    }

    /// Standard input of a program that waits for answers: `before_wait` is called whenever no complete line is there and
    /// more has to be waited for, and the format is judged by what has come with the first line.
    pub fn from_peer(reading: &Reading, before_wait: impl FnMut() + Send + 'static) -> Records {
        let (path, source) = (Path::new("stdin"), Waiting { source: io::stdin(), before_wait });
        Records { soon: true, ..Records::new(path, Source::new(path, source), reading) }
    }

    /// How much of the file has been read; `None` where nobody knows the end, or all is read before the first record.
    pub fn progress(&self) -> Option<Progress> {
        let whole = self.table.as_ref().is_some_and(|table| table.format().is_binary());
        self.progress.clone().filter(|_| !whole)
    }

    /// The table that they are rows of, which has a text.
    fn table(&mut self) -> Result<(&mut Table, &Reading)> {
        let Records { path, reading, source, soon, table, .. } = self;
        match table {
            Some(table) => Ok((table, reading)),
            none => {
                let made = Table::new(path, source.taken(), reading, otherwise(), *soon)?;
                made.check_text(reading)?;
                Ok((none.insert(made), reading))
            }
        }
    }

    /// The next line, whatever it is; `None` at the end. After an error there is nothing to go on with.
    pub fn entry(&mut self) -> Result<Option<Entry>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let (table, reading) = self.table()?;
        if !table.read()? {
            return Ok(None);
        }
        let place = table.place();
        Ok(Some(match (table.text(), table.format()) {
            (Err(wrong), _) => Entry::Wrong(wrong),
            (Ok(text), Format::Text) => {
                Entry::Record(Record { place, text: text.to_string(), ..Record::default() })
            }
            (Ok(text), Format::Jsonl) if text.trim().is_empty() => Entry::Blank,
            (Ok(text), _) => match parse(text, reading) {
                Ok(record) => Entry::Record(Record { place, ..record }),
                Err(what) => Entry::Wrong(table.wrong(what)),
            },
        }))
    }

    fn record(&mut self) -> Result<Option<Record>> {
        loop {
            match self.entry()? {
                None => return Ok(None),
                Some(Entry::Blank) => {}
                Some(Entry::Record(record)) => return Ok(Some(record)),
                Some(Entry::Wrong(wrong)) => return Err(wrong),
            }
        }
    }
}

/// The record that a row of JSON is, or what is wrong with it.
fn parse(row: &str, reading: &Reading) -> std::result::Result<Record, Message> {
    const WANTED: &str = r#"{"text": …} or {"instruction": …, "text": …} was wanted"#;
    // Asked here because serde would take an array for the fields in their order.
    if !row.trim_start().starts_with('{') {
        return Err(format!("not a JSON object; {WANTED}").into());
    }
    let column = reading.column();
    let fields = match reading.text_column {
        None => jsonl::parse(row),
        Some(_) => jsonl::parse(row).map(|fields| Fields::of(fields, column)),
    };
    let Fields { text, tokens, instruction, id } = fields.map_err(|what| format!("{what}; {WANTED}"))?;
    match (text, tokens) {
        (Some(Value::String(text)), _) => Ok(Record { instruction, text, id, ..Record::default() }),
        (Some(other), _) => Err(format!("{column:?} is {}, a string was wanted", kind(&other)).into()),
        (None, Some(tokens)) => {
            let words = serde_json::from_value::<Vec<String>>(tokens)
                .map_err(|e| format!("\"tokens\": {e}; a list of words was wanted"))?;
            let (text, places) = joined(&words);
            Ok(Record { instruction, text, words: Some(places), id, ..Record::default() })
        }
        (None, None) => {
            let keys: Map<String, Value> = jsonl::parse(row).unwrap_or_default();
            let keys: Vec<String> = keys.keys().cloned().collect();
            Err(lacking(column, &keys))
        }
    }
}

/// What of a row is read.
#[derive(Deserialize)]
struct Fields {
    #[serde(default, deserialize_with = "given")]
    text: Option<Value>,
    #[serde(default)]
    tokens: Option<Value>,
    #[serde(default)]
    instruction: Option<String>,
    #[serde(default)]
    id: Option<Value>,
}

impl Fields {
    /// Of a row whose text has another name.
    fn of(mut row: Map<String, Value>, column: &str) -> Fields {
        let text = row.remove(column);
        let instruction = row.get("instruction").and_then(Value::as_str).map(String::from);
        Fields { text, tokens: None, instruction, id: row.remove("id").filter(|id| !id.is_null()) }
    }
}

/// A field that is there, and may be null.
fn given<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// What a JSON value is.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        // What pandas writes without orient.
        Value::Object(_) => "an object (of rows by number? pandas' orient=\"records\" writes rows)",
    }
}

/// Words with a space between them, and where each then stands.
pub fn joined(words: &[String]) -> (String, Vec<Range<usize>>) {
    let mut end = 0;
    let places = words.iter().map(|word| {
        let start = end;
        end += word.len() + 1;
        start..start + word.len()
    });
    let places = places.collect();
    (words.join(" "), places)
}

/// A source that tells before it is read, which may take for ever.
struct Waiting<R, F> {
    source: R,
    before_wait: F,
}

impl<R: Read, F: FnMut()> Read for Waiting<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.before_wait)();
        self.source.read(buffer)
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.done {
            return None;
        }
        let next = self.record().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
