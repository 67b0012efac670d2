//! The elements of one JSON array, one at a time, as they stand: the array is never held whole.

use std::io::{self, BufRead};

use super::super::lines::{MAX_RECORD_BYTES, Source};
use super::Broken;

/// Reads the elements of an array.
pub(super) struct Array {
    pub(super) source: Source,
    /// The current element.
    pub(super) element: Vec<u8>,
    /// Its number, from 1.
    pub(super) number: u64,
    /// The line that it begins in, from 1.
    pub(super) line: u64,
    /// The line that was last read from.
    current: u64,
    done: bool,
}

impl Array {
    pub(super) fn new(source: Source) -> Array {
        Array { source, element: Vec::new(), number: 0, line: 1, current: 1, done: false }
    }

    /// Reads one element; false behind the last.
    pub(super) fn read(&mut self) -> Result<bool, Broken> {
        if self.done {
            return Ok(false);
        }
        if self.number == 0 {
            self.opening()?;
        }
        let first = self.number == 0;
        self.number += 1;
        let next = self.next_byte()?;
        self.line = self.current;
        match next {
            Some(b']') => return self.closing(),
            Some(b',') if !first => {
                self.source.consume(1);
                self.next_byte()?;
                self.line = self.current;
            }
            Some(_) if first => {}
            Some(b) => return Err(unexpected("a comma or ] was wanted behind the element before it", b)),
            None => return Err(Broken::Data(ENDS.into())),
        }
        self.element.clear();
        self.take()?;
        Ok(true)
    }

    /// The bracket, behind a byte-order mark and white space.
    fn opening(&mut self) -> Result<(), Broken> {
        if self.source.peek(3, false).0.starts_with(b"\xef\xbb\xbf") {
            self.source.consume(3);
        }
        match self.next_byte()? {
            Some(b'[') => self.source.consume(1),
            Some(b) => return Err(unexpected("a JSON array begins with [", b)),
            None => return Err(Broken::Data("holds nothing, a JSON array was wanted".into())),
        }
        Ok(())
    }

    /// The other bracket, and nothing behind it.
    fn closing(&mut self) -> Result<bool, Broken> {
        self.done = true;
        self.source.consume(1);
        match self.next_byte()? {
            None => Ok(false),
            Some(b) => {
                let what = "the array is over, and only white space may follow it; one array was wanted";
                self.line = self.current;
                Err(unexpected(what, b))
            }
        }
    }

    /// The next byte that is no white space, which is not taken.
    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        loop {
            let bytes = self.source.fill_buf()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let blank = bytes.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.current += bytes[..blank].iter().filter(|&&b| b == b'\n').count() as u64;
            let found = bytes.get(blank).copied();
            self.source.consume(blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Takes one element, up to what ends it outside of strings and brackets.
    fn take(&mut self) -> Result<(), Broken> {
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let bytes = self.source.fill_buf()?;
            if bytes.is_empty() {
                return Err(Broken::Data(ENDS.into()));
            }
            let mut end = None;
            for (i, &b) in bytes.iter().enumerate() {
                match b {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    _ if quoted => {}
                    b'{' | b'[' => depth += 1,
                    b',' | b']' if depth == 0 => {
                        end = Some(i);
                        break;
                    }
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            let taken = end.unwrap_or(bytes.len());
            self.element.extend(&bytes[..taken]);
            self.current += bytes[..taken].iter().filter(|&&b| b == b'\n').count() as u64;
            self.source.consume(taken);
            if end.is_some() {
                let text = self.element.trim_ascii_end().len();
                self.element.truncate(text);
                return Ok(());
            }
            if self.element.len() > MAX_RECORD_BYTES {
                let most = MAX_RECORD_BYTES >> 20;
                return Err(Broken::Data(format!(
                    "longer than {most} MiB; a quote or bracket is not closed"
                )));
            }
        }
    }
}

const ENDS: &str =
    "the file ends inside the JSON array; it is cut short, or a quote or bracket is not closed";

fn unexpected(what: &str, got: u8) -> Broken {
    Broken::Data(format!("{what}, not {:?}", char::from(got)))
}
