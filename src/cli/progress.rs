//! What `encode` and the evaluations show while texts go through, and the line at their end.

use crate::cli::say;
use crate::device::cpu::memory;
use crate::format::input;
use crate::train::progress::Progress;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Weights that are being read: since when, and the bar, which those alone have that take long.
static LOADING: Mutex<Option<(Instant, Option<Progress>)>> = Mutex::new(None);

/// Shows so many bytes of so many, where reading takes longer than two seconds; takes the bar away at the last.
pub fn loading(read: u64, total: u64) {
    let Ok(mut state) = LOADING.lock() else { return };
    if read >= total {
        if let Some((_, Some(bar))) = state.take() {
            bar.finish();
        }
        return;
    }
    let (start, bar) = state.get_or_insert_with(|| (Instant::now(), None));
    if start.elapsed() > Duration::from_secs(2) {
        bar.get_or_insert_with(|| Progress::bytes(total)).reach(read);
    }
}

/// What has gone through so far.
pub struct Tally {
    /// Texts, those without a token included.
    pub texts: u64,
    tokens: u64,
    /// Texts that a length limit cut.
    pub cut: u64,
    start: Instant,
    shown: Progress,
    end: End,
    quiet: bool,
}

/// What says how far the end is.
pub enum End {
    /// Nothing.
    Unknown,
    /// So many texts.
    Texts(u64),
    /// A file that is read to its end.
    File(input::Progress),
}

impl Tally {
    /// Starts the clock, and a spinner where stderr is a terminal.
    pub fn new(quiet: bool) -> Tally {
        Tally::to(End::Unknown, quiet)
    }

    /// Likewise, and a bar in place of the spinner where the end is known.
    pub fn to(end: End, quiet: bool) -> Tally {
        let shown = match &end {
            End::Unknown => Progress::spinner(quiet),
            End::Texts(total) => Progress::parts(*total, quiet),
            End::File(file) => Progress::parts(file.total, quiet),
        };
        Tally { texts: 0, tokens: 0, cut: 0, start: Instant::now(), shown, end, quiet }
    }

    /// So many more have gone through.
    pub fn add(&mut self, texts: usize, tokens: usize) {
        self.texts += texts as u64;
        self.tokens += tokens as u64;
        let message = format!("{} texts  {}", self.texts, self.rates());
        match &self.end {
            End::Unknown => self.shown.message(&message),
            End::Texts(_) => self.shown.step(self.texts, &message),
            End::File(file) => self.shown.step(file.read(), &message),
        }
    }

    fn rates(&self) -> String {
        let s = self.start.elapsed().as_secs_f64().max(1e-9);
        format!("{:.1} texts/s, {:.0} tokens/s", self.texts as f64 / s, self.tokens as f64 / s)
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.shown.finish();
    }

    /// Takes the bar away and says what was done.
    pub fn finish(&self) {
        self.clear();
        if self.quiet {
            return;
        }
        if self.cut > 0 {
            let what = "texts were cut to the length limits (--doc-max-length, --max-length)";
            say(format_args!("warning: {} {what}", self.cut));
        }
        let peak = memory("/proc/self/status", "VmHWM:");
        let peak = peak.map_or(String::new(), |bytes| format!(", peak {} MiB", bytes >> 20));
        let seconds = self.start.elapsed().as_secs_f64();
        let (texts, tokens, rates) = (self.texts, self.tokens, self.rates());
        say(format_args!("encoded {texts} texts, {tokens} tokens in {seconds:.2} s: {rates}{peak}"));
    }
}
