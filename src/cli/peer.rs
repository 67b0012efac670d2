//! `encode -i - -o -` for a program that keeps it running: lines are answered as they come.

use crate::cli::{FLAGS, progress::Tally};
use crate::encode::Encoder;
use crate::encode::texts::Item;
use crate::encode::tokens::{Level, Parts, Passage};
use crate::error::{Error, Result, message};
use crate::format::input::{Entry, Reading, Record, Records};
use crate::format::output::Output;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};

/// Texts are read, sorted and packed in windows of at most this much text, and this much output.
pub const WINDOW_BYTES: usize = 32 << 20;
const WINDOW_TEXTS: usize = 32_768;
/// Lines that may be read ahead while others are encoded.
const AHEAD: usize = 8192;

/// How much of the output a window may be.
pub struct WindowSize {
    /// Rows of it.
    pub rows: usize,
    level: Level,
    most: usize,
}

impl WindowSize {
    /// For one encoder.
    pub fn new(encoder: &Encoder, level: Level) -> WindowSize {
        let rows = (WINDOW_BYTES / (4 * encoder.row_width(level))).clamp(256, WINDOW_TEXTS);
        // A pack's worth of rows at least, where texts have many.
        let rows = if level == Level::Text { rows } else { rows.max(encoder.setup.tokens) };
        WindowSize { rows, level, most: encoder.setup.limits.max_length }
    }

    /// The most rows that a text may have, of its tokens about one a byte.
    pub fn rows_of(&self, record: &Record) -> usize {
        if self.level == Level::Text { 1 } else { record.text.len().clamp(1, self.most) }
    }
}

/// A record as the encoder takes it.
pub fn passage<'a>(record: &'a Record, instruction: &'a str) -> Passage<'a> {
    let instruction = record.instruction.as_deref().unwrap_or(instruction);
    Passage { item: Item { instruction, text: &record.text }, words: record.words.as_deref() }
}

/// What the thread that reads has to say.
enum Event {
    Line(Entry),
    /// No complete line is there, and whoever writes may be waiting for answers.
    Pause,
    /// Nothing more can be read.
    Failed(Error),
}

/// Lines of standard input, read by a thread of their own.
pub struct Lines {
    events: Receiver<Event>,
    paused: bool,
    failed: Option<Error>,
}

/// Starts to read.
pub fn lines(reading: Reading) -> Result<Lines> {
    let (sender, events) = sync_channel(AHEAD);
    let read = move || read(&reading, &sender);
    let thread = std::thread::Builder::new().name("input".into()).spawn(read);
    thread.map_err(|e| {
        Error::device(format!("cannot start a thread: {e}; raise the limit of processes (ulimit -u)"))
    })?;
    Ok(Lines { events, paused: false, failed: None })
}

/// Sends line after line; ends with the input, or when nobody listens any more.
fn read(reading: &Reading, sender: &SyncSender<Event>) {
    let pause = sender.clone();
    let before_wait = move || {
        let _ = pause.send(Event::Pause);
    };
    let mut records = Records::from_peer(reading, before_wait);
    loop {
        let event = match records.entry() {
            Ok(Some(entry)) => Event::Line(entry),
            Ok(None) => return,
            Err(e) => Event::Failed(e),
        };
        let failed = matches!(event, Event::Failed(_));
        if sender.send(event).is_err() || failed {
            return;
        }
    }
}

impl Lines {
    /// What there is to answer now, waiting for the first; empty at the end.
    fn window(&mut self, size: &WindowSize) -> Vec<Entry> {
        let (mut window, mut bytes, mut rows) = (Vec::new(), 0, 0);
        while self.failed.is_none() && rows < size.rows && bytes < WINDOW_BYTES {
            let event = if self.paused && !window.is_empty() {
                match self.events.try_recv() {
                    Ok(event) => event,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            } else {
                match self.events.recv() {
                    Ok(event) => event,
                    Err(RecvError) => break,
                }
            };
            self.paused = matches!(event, Event::Pause);
            match event {
                Event::Pause => {}
                Event::Line(Entry::Blank) if window.is_empty() => {}
                Event::Line(Entry::Blank) => break,
                Event::Line(entry) => {
                    if let Entry::Record(record) = &entry {
                        bytes += record.text.len() + record.instruction.as_ref().map_or(0, String::len);
                        rows += size.rows_of(record);
                    }
                    window.push(entry);
                }
                Event::Failed(e) => self.failed = Some(e),
            }
        }
        window
    }
}

/// Who answers.
pub struct Peer<'a> {
    /// Makes the vectors.
    pub encoder: Encoder,
    /// Takes them.
    pub output: Output,
    /// Of what.
    pub parts: Parts,
    /// Of texts that bring none.
    pub instruction: &'a str,
}

impl Peer<'_> {
    /// Answers until there are no more lines.
    pub fn answer(mut self, mut lines: Lines, tally: &mut Tally) -> Result<()> {
        let size = WindowSize::new(&self.encoder, self.parts.level);
        let (mut count, mut wrong, mut first) = (0u64, 0u64, None);
        loop {
            let window = lines.window(&size);
            if window.is_empty() {
                break;
            }
            count += window.len() as u64;
            for e in self.answer_window(&window, tally)? {
                wrong += 1;
                first.get_or_insert(e);
            }
            self.output.flush()?;
        }
        if let Some(e) = lines.failed {
            return Err(e);
        }
        if count == 0 {
            return Err(Error::file("stdin", "holds no text"));
        }
        tally.finish();
        match first {
            None => Ok(()),
            Some(e) => {
                let what = format!("{wrong} of {count} lines got an error and no vector, the first: ");
                Err(Error::file("stdin", message![what, e.message()]))
            }
        }
    }

    /// One line for each of these; gives what was wrong with some.
    fn answer_window(&mut self, window: &[Entry], tally: &mut Tally) -> Result<Vec<Error>> {
        let records = window.iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(passage(record, self.instruction)),
            Entry::Blank | Entry::Wrong(_) => None,
        });
        let passages: Vec<Passage> = records.collect();
        let answers = self.encoder.tokens(&passages, self.parts, |texts, tokens| tally.add(texts, tokens))?;
        let (mut answers, mut wrong) = (answers.into_iter(), Vec::new());
        for entry in window {
            let (id, answer) = match entry {
                Entry::Record(record) => {
                    let at = |e: Error| {
                        let place = format!("{}: ", record.place);
                        Error::file("stdin", message![place, e.message()])
                    };
                    (record.id.as_ref(), answers.next().map(|answer| answer.map_err(at)))
                }
                Entry::Wrong(e) => (None, Some(Err(Error::usage(e.message())))),
                Entry::Blank => continue,
            };
            match answer {
                Some(Ok(block)) if self.parts.level == Level::Text => {
                    tally.cut += u64::from(block.cut);
                    self.output.write_vector(id, &block.vectors)?;
                }
                Some(Ok(block)) => {
                    tally.cut += u64::from(block.cut);
                    self.output.write_block(id, &block.vectors, &block.offsets, block.cut)?;
                }
                Some(Err(e)) => {
                    self.output.write_error(id, &e.message().spelled(FLAGS))?;
                    wrong.push(e);
                }
                None => {}
            }
        }
        Ok(wrong)
    }
}
