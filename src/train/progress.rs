//! How far something is, on stderr: a bar, and lines above it. Without feature `cli` there are the lines only.

#[cfg(feature = "cli")]
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is shown of something that goes on.
pub(crate) struct Progress {
    #[cfg(feature = "cli")]
    bar: ProgressBar,
}

#[cfg(feature = "cli")]
impl Progress {
    /// A bar of `steps` that stands at `done`.
    pub fn steps(steps: u64, done: u64, quiet: bool) -> Progress {
        let shown = Progress::new(Some(steps), "{bar:30} {pos}/{len}  {msg}  {elapsed}, {eta} left", quiet);
        shown.bar.set_position(done);
        shown.bar.reset_eta();
        shown
    }

    /// A bar of work whose size is known, in parts of a hundred, beside what [`Progress::step`] says.
    pub fn parts(total: u64, quiet: bool) -> Progress {
        Progress::new(Some(total), "{bar:30} {percent} %  {msg}  {elapsed}, {eta} left", quiet)
    }

    /// A bar of bytes.
    pub fn bytes(total: u64) -> Progress {
        let template = "{bar:30} {bytes} of {total_bytes} of weights  {elapsed}, {eta} left";
        Progress::new(Some(total), template, false)
    }

    /// A spinner beside what [`Progress::message`] says, where nobody knows the end.
    pub fn spinner(quiet: bool) -> Progress {
        let shown = Progress::new(None, "{spinner} {msg}  {elapsed}", quiet);
        shown.bar.enable_steady_tick(std::time::Duration::from_millis(250));
        shown
    }

    fn new(length: Option<u64>, template: &str, quiet: bool) -> Progress {
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(4));
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar }
    }

    /// A line above it.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Goes to `position`.
    pub fn reach(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Goes to `step`, with words beside it.
    pub fn step(&self, step: u64, message: &str) {
        self.message(message);
        self.bar.set_position(step);
    }

    /// The words beside it.
    pub fn message(&self, text: &str) {
        self.bar.set_message(text.to_string());
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(not(feature = "cli"))]
impl Progress {
    pub fn steps(_steps: u64, _done: u64, _quiet: bool) -> Progress {
        Progress {}
    }

    pub fn line(&self, text: &str) {
        eprintln!("{text}");
    }

    pub fn step(&self, _step: u64, _message: &str) {}

    pub fn finish(&self) {}
}
