//! The lines of one input, one at a time: no file is ever held whole.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use super::unpack::Unpacked;
use crate::error::{Error, Result};

/// Bounds the memory of one record: a longer one is a file of another kind by mistake.
pub(super) const MAX_RECORD_BYTES: usize = 256 << 20;

/// The lines of one input, one at a time, without their ends and without a byte-order mark.
pub struct Lines {
    path: PathBuf,
    source: Source,
    place: u64,
    start: u64,
    end: u64,
    line: Vec<u8>,
}

/// Bytes of which the first may have been looked at.
pub(super) struct Source {
    head: io::Cursor<Vec<u8>>,
    /// What looking ran into, which comes again in its place: behind an error a decoder may say that all is over.
    failed: Option<io::Error>,
    rest: Unpacked,
    /// Of a file.
    progress: Option<Progress>,
}

/// How much of a file has been read, packed as it lies there.
#[derive(Clone)]
pub struct Progress {
    read: Arc<AtomicU64>,
    /// Its bytes.
    pub total: u64,
}

impl Progress {
    /// Bytes that have been read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Source {
    /// Bytes from anything; `path` stands in for it in errors.
    pub(super) fn new(path: &Path, source: impl Read + Send + 'static) -> Source {
        let rest = Unpacked::new(path, source);
        Source { head: io::Cursor::default(), failed: None, rest, progress: None }
    }

    /// Opens a file, or what can be read like one.
    pub(super) fn open(path: &Path) -> Result<Source> {
        if path.is_dir() {
            return Err(Error::file(
                path,
                "is a folder, a file of texts was wanted; give one of the files in it",
            ));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let total = file.metadata().ok().filter(|there| there.is_file()).map(|there| there.len());
        let read = Arc::default();
        let source = Source::new(path, Counted { file, read: Arc::clone(&read) });
        Ok(Source { progress: total.map(|total| Progress { read, total }), ..source })
    }

    /// How much of it has been read, where it is a file.
    pub(super) fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// This source, leaving an empty one.
    pub(super) fn taken(&mut self) -> Source {
        std::mem::replace(self, Source::new(Path::new(""), io::empty()))
    }

    /// The next bytes, which are read again afterwards, and whether there are no others: `most` of them, or all; `soon` is
    /// content with those that have come when a line is complete, because whoever writes may wait for an answer to it.
    pub(super) fn peek(&mut self, most: usize, soon: bool) -> (&[u8], bool) {
        let read = self.head.position() as usize;
        let mut head = std::mem::take(&mut self.head).into_inner();
        head.drain(..read);
        let mut over = false;
        while self.failed.is_none() && !over && head.len() < most && !(soon && head.contains(&b'\n')) {
            match self.rest.fill_buf() {
                Ok(more) => {
                    let taken = more.len().min(most - head.len());
                    over = taken == 0;
                    head.extend(&more[..taken]);
                    self.rest.consume(taken);
                }
                Err(e) => self.failed = Some(e),
            }
        }
        self.head = io::Cursor::new(head);
        (self.head.get_ref(), over)
    }

    fn is_ahead(&self) -> bool {
        self.head.position() < self.head.get_ref().len() as u64
    }

    /// Whether it is packed; known when something has been read.
    pub(super) fn is_packed(&self) -> bool {
        self.rest.is_packed()
    }

    /// What went wrong at `place` of a file.
    pub(super) fn failed(&self, path: &Path, place: impl std::fmt::Display, e: io::Error) -> Error {
        self.rest.failed(path, place, e)
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.is_ahead() {
            return self.head.fill_buf();
        }
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.rest.fill_buf(),
        }
    }

    fn consume(&mut self, bytes: usize) {
        if self.is_ahead() { self.head.consume(bytes) } else { self.rest.consume(bytes) }
    }
}

impl Lines {
    /// Opens a file, through gzip or zstd where it is packed.
    pub fn open(path: &Path) -> Result<Lines> {
        Ok(Lines::new(path, Source::open(path)?))
    }

    pub(super) fn new(path: &Path, source: Source) -> Lines {
        Lines { path: path.to_path_buf(), source, place: 0, start: 0, end: 0, line: Vec::new() }
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

    /// Whether the input is packed, once something of it has been looked at.
    pub fn is_packed(&self) -> bool {
        self.source.is_packed()
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
        let mut bounded = (&mut self.source).take(MAX_RECORD_BYTES as u64 + 2);
        let got = bounded
            .read_until(b'\n', &mut self.line)
            .map_err(|e| self.source.failed(&self.path, format_args!("line {}", self.place), e))?;
        self.end += got as u64;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        }
        if self.line.len() > MAX_RECORD_BYTES {
            let most = MAX_RECORD_BYTES >> 20;
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
