//! Panics of libraries on files that they have read without complaint, or should have refused, as errors.

use super::panic_message;
use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is now one that becomes an error: a panic hook should be silent about it.
pub fn panics_are_errors() -> bool {
    GUARDED.get()
}

/// What `work` of a library gives, its panic being an error in its words. What it worked on is not to be used after that.
pub(crate) fn guarded<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let ended = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    match ended {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(panic) => Err(panic_message(&*panic).to_string()),
    }
}
