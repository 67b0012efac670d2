//! Texts from a file or from standard input, one record at a time: no file is ever held whole.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::content::{self, Content};
use super::jsonl;
use crate::error::{Error, Message, Result, Setting, message};

/// Bounds the memory of one record: a longer line is a file of another kind by mistake.
const MAX_LINE_BYTES: usize = 256 << 20;
/// What ruzstd allows.
const MAX_WINDOW_BYTES: u64 = 100 << 20;
const BUFFER_BYTES: usize = 1 << 16;

/// How texts lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Format {
    /// One text per line.
    Text,
    /// One object per line, `{"text": …}` or of words `{"tokens": […]}`, with `"instruction"` and `"id"` or without; blank
    /// lines are skipped.
    Jsonl,
}

impl Format {
    /// The format that a file name asks for, looking through `.gz` and `.zst`.
    pub fn of(path: &Path) -> Format {
        match extension(&unpacked(path)).as_deref() {
            Some("jsonl" | "ndjson") => Format::Jsonl,
            _ => Format::Text,
        }
    }
}

/// The name without `.gz` or `.zst`.
pub fn unpacked(path: &Path) -> PathBuf {
    if packing(path).is_some() { path.with_extension("") } else { path.to_path_buf() }
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// How a file is compressed, by its name.
fn packing(path: &Path) -> Option<&'static str> {
    match extension(path).as_deref() {
        Some("gz") => Some("gzip"),
        Some("zst") => Some("zstd"),
        _ => None,
    }
}

/// One text and where it stood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The line in the file, from 1.
    pub place: u64,
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

/// The lines of one input, one at a time, without their ends and without a byte-order mark.
pub struct Lines {
    path: PathBuf,
    packing: Option<&'static str>,
    source: Box<dyn BufRead + Send>,
    place: u64,
    start: u64,
    end: u64,
    line: Vec<u8>,
}

impl Lines {
    /// Opens a file, through gzip or zstd where its name says so.
    pub fn open(path: &Path) -> Result<Lines> {
        if path.is_dir() {
            return Err(Error::file(
                path,
                "is a folder, a file of texts was wanted; give one of the files in it",
            ));
        }
        let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        let packing = packing(path);
        let source: Box<dyn BufRead + Send> = match packing {
            Some("gzip") => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file))),
            Some(_) => Box::new(BufReader::with_capacity(BUFFER_BYTES, Zstd::new(file))),
            None => Box::new(file),
        };
        Ok(Lines::new(path.to_path_buf(), packing, source))
    }

    /// How texts lie in this input, by its name and its first bytes, before a line is read. What is neither text nor JSONL
    /// is refused; `otherwise` says how the caller could be told to read it all the same.
    pub fn format(&mut self, otherwise: Message) -> Result<Format> {
        let (mut head, mut failed) = (Vec::new(), None);
        if let Err(e) = (&mut self.source).take(content::HEAD_BYTES as u64).read_to_end(&mut head) {
            failed = Some(e);
        }
        let whole = head.len() < content::HEAD_BYTES && failed.is_none();
        self.judged(head, whole, failed, otherwise)
    }

    /// Likewise, by what has come when the first line is complete: whoever writes may wait for an answer to it.
    fn format_of_first(&mut self, otherwise: Message) -> Result<Format> {
        let mut head = Vec::new();
        loop {
            let more = self.source.fill_buf().map_err(|e| Error::io(&self.path, e))?;
            let (got, complete) = (more.len(), more.contains(&b'\n'));
            head.extend(more);
            self.source.consume(got);
            if got == 0 || complete || head.len() >= content::HEAD_BYTES {
                return self.judged(head, got == 0, None, otherwise);
            }
        }
    }

    /// Judges the first bytes and puts them back.
    fn judged(
        &mut self,
        head: Vec<u8>,
        whole: bool,
        failed: Option<io::Error>,
        otherwise: Message,
    ) -> Result<Format> {
        let name = extension(&unpacked(&self.path));
        let content = content::content(&head, whole, name.as_deref());
        let source = std::mem::replace(&mut self.source, Box::new(io::empty()));
        let failed = BufReader::new(Failed(failed));
        self.source = Box::new(io::Cursor::new(head).chain(failed).chain(source));
        match content {
            Content::Text => Ok(Format::Text),
            Content::JsonLines => Ok(Format::Jsonl),
            Content::Other(what, todo) => {
                let what = format!("is {what}; lines of text or JSONL were wanted: {todo}");
                Err(Error::file(&self.path, message![what, otherwise]))
            }
        }
    }

    fn new(path: PathBuf, packing: Option<&'static str>, source: Box<dyn BufRead + Send>) -> Lines {
        Lines { path, packing, source, place: 0, start: 0, end: 0, line: Vec::new() }
    }

    /// An error of the current line.
    pub fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("line {}: {what}", self.place))
    }

    /// The current line, from 1.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// Where the current line starts, in bytes of the unpacked input.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The current line.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// The current line as text.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.line).map_err(|e| {
            let byte = e.valid_up_to() + 1;
            self.wrong(format_args!("invalid UTF-8 at byte {byte}; convert the file to UTF-8"))
        })
    }

    /// Reads one line; false at the end of the input.
    pub fn read(&mut self) -> Result<bool> {
        self.line.clear();
        self.place += 1;
        self.start = self.end;
        let mut bounded = (&mut self.source).take(MAX_LINE_BYTES as u64 + 2);
        let got = bounded.read_until(b'\n', &mut self.line).map_err(|e| match self.packing {
            Some(packing) if e.kind() != io::ErrorKind::Unsupported => {
                let what = format!("line {}: {e}; the {packing} file is damaged or cut short", self.place);
                Error::file(&self.path, what)
            }
            Some(_) => self.wrong(e),
            None => Error::io(&self.path, e),
        })?;
        self.end += got as u64;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        }
        if self.line.len() > MAX_LINE_BYTES {
            let most = MAX_LINE_BYTES >> 20;
            return Err(
                self.wrong(format_args!("longer than {most} MiB, one text per line was wanted; split it"))
            );
        }
        if self.place == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
            self.line.drain(..3);
            self.start += 3;
        }
        Ok(got > 0)
    }
}

/// Gives back, in its place, the error that reading ahead ran into.
struct Failed(Option<io::Error>);

impl Read for Failed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// The records of one input, in order; ends after the first error.
pub struct Records {
    lines: Lines,
    /// Not known before the first record of something that is no file: reading ahead would wait for whoever writes.
    format: Option<Format>,
    done: bool,
}

/// Opens `input`, a file name or `-` for standard input; `format` overrules what the name and the content say.
pub fn open(input: &str, format: Option<Format>) -> Result<Records> {
    let mut lines = match input {
        "-" => {
            let source = Box::new(BufReader::with_capacity(BUFFER_BYTES, io::stdin()));
            Lines::new("stdin".into(), None, source)
        }
        file => Lines::open(Path::new(file))?,
    };
    let format = match format {
        None if Path::new(input).is_file() => Some(lines.format(otherwise())?),
        given => given,
    };
    Ok(Records { lines, format, done: false })
}

fn otherwise() -> Message {
    message!["; ", Setting::InputFormat, " text reads its lines as they stand"]
}

impl Records {
    /// Reads records from anything, for instance from memory; `name` stands in for the file's in errors.
    pub fn from_reader(name: &str, format: Format, source: impl Read + Send + 'static) -> Records {
        let source = Box::new(BufReader::with_capacity(BUFFER_BYTES, source));
        Records { lines: Lines::new(name.into(), None, source), format: Some(format), done: false }
    }

    /// Standard input of a program that waits for answers: `before_wait` is called whenever no complete line is there and
    /// more has to be waited for, and the format is judged by what has come with the first line.
    pub fn from_peer(format: Option<Format>, before_wait: impl FnMut() + Send + 'static) -> Result<Records> {
        let source = Waiting { source: io::stdin(), before_wait };
        let source = Box::new(BufReader::with_capacity(BUFFER_BYTES, source));
        let mut lines = Lines::new("stdin".into(), None, source);
        let format = format.map_or_else(|| lines.format_of_first(otherwise()), Ok)?;
        Ok(Records { lines, format: Some(format), done: false })
    }

    /// The next line, whatever it is; `None` at the end. After an error there is nothing to go on with.
    pub fn entry(&mut self) -> Result<Option<Entry>> {
        let format = match self.format {
            Some(format) => format,
            None => *self.format.insert(self.lines.format(otherwise())?),
        };
        if !self.lines.read()? {
            return Ok(None);
        }
        let place = self.lines.place;
        Ok(Some(match (self.lines.text(), format) {
            (Err(wrong), _) => Entry::Wrong(wrong),
            (Ok(text), Format::Text) => {
                Entry::Record(Record { place, text: text.to_string(), ..Record::default() })
            }
            (Ok(text), Format::Jsonl) if text.trim().is_empty() => Entry::Blank,
            (Ok(text), Format::Jsonl) => self.parse(text).map_or_else(Entry::Wrong, Entry::Record),
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

    fn parse(&self, line: &str) -> Result<Record> {
        const WANTED: &str = r#"{"text": …} or {"instruction": …, "text": …} was wanted"#;
        #[derive(Deserialize)]
        struct Fields {
            #[serde(default, deserialize_with = "given")]
            text: Option<String>,
            #[serde(default)]
            tokens: Option<Value>,
            #[serde(default)]
            instruction: Option<String>,
            #[serde(default)]
            id: Option<Value>,
        }
        // Asked here because serde would take an array for the fields in their order.
        if !line.trim_start().starts_with('{') {
            return Err(self.lines.wrong(format_args!("not a JSON object; {WANTED}")));
        }
        let fields: Fields =
            jsonl::parse(line).map_err(|what| self.lines.wrong(format_args!("{what}; {WANTED}")))?;
        let Fields { text, tokens, instruction, id } = fields;
        let (text, words) = match (text, tokens) {
            (Some(text), _) => (text, None),
            (None, Some(tokens)) => {
                let words = serde_json::from_value::<Vec<String>>(tokens).map_err(|e| {
                    self.lines.wrong(format_args!("\"tokens\": {e}; a list of words was wanted"))
                })?;
                let (text, places) = joined(&words);
                (text, Some(places))
            }
            (None, None) => {
                let column = line.trim_end().len();
                let what = format_args!("column {column}: missing field `text`; {WANTED}");
                return Err(self.lines.wrong(what));
            }
        };
        Ok(Record { place: self.lines.place, instruction, text, words, id })
    }
}

/// A field that is there is no null.
fn given<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<String>, D::Error> {
    String::deserialize(from).map(Some)
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

/// All frames of a zstd file one after the other, which ruzstd's own reader leaves to its caller.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    inside: bool,
    frames: u64,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        // ruzstd bounds the window, and so the memory, in every frame but a decoder's first: this one, which is empty.
        let primed = decoder.init(&b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"[..]);
        debug_assert!(primed.is_ok());
        Zstd { source, decoder, inside: false, frames: 0 }
    }

    /// Starts the next frame; false at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.inside {
            if self.source.fill_buf()?.is_empty() {
                return if self.frames > 0 { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => self.inside = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::WindowSizeTooBig { requested }) => {
                    let what = format!(
                        "needs a zstd window of {requested} bytes, at most {MAX_WINDOW_BYTES} are allowed"
                    );
                    let what = format!("{what}; decompress it first with zstd -d --long=31");
                    return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                }
                Err(e) => return Err(io::Error::other(e)),
            }
            self.frames += 1;
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() && self.next_frame()? {
            while self.decoder.can_collect() < buffer.len() && !self.decoder.is_finished() {
                let more = buffer.len() - self.decoder.can_collect();
                let strategy = BlockDecodingStrategy::UptoBytes(more);
                self.decoder.decode_blocks(&mut self.source, strategy).map_err(io::Error::other)?;
            }
            let got = self.decoder.read(buffer)?;
            if got > 0 {
                return Ok(got);
            }
            // The frame is over and drained: only now is its checksum known.
            let (said, made) =
                (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if said.is_some() && made.is_some() && said != made {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the checksum does not match the content",
                ));
            }
            self.inside = false;
        }
        Ok(0)
    }
}
