//! Ranges for Nsight Systems: with `LLM2VEC_NVTX=1` each launch is in a range of its op's name, and each stretch of a step that
//! is queued as a whole in one of the stretch's: `LLM2VEC_NVTX=1 nsys profile -t cuda,nvtx llm2vec …`.
//!
//! libnvToolsExt is opened at run time, and only then: without the variable a range is one load of a flag.

use crate::error::{Error, Result};
use cudarc::nvtx::sys;
use std::ffi::CString;
use std::sync::OnceLock;

static ON: OnceLock<bool> = OnceLock::new();

fn on() -> bool {
    *ON.get_or_init(|| std::env::var("LLM2VEC_NVTX").is_ok_and(|v| !["", "0"].contains(&v.as_str())))
}

/// Refuses ranges that nobody would see.
pub fn check() -> Result<()> {
    // SAFETY: opens the library, which initialises itself, and looks for nothing; cudarc would panic without this probe.
    match on() && !unsafe { sys::is_culib_present() } {
        true => Err(Error::device(
            "LLM2VEC_NVTX: libnvToolsExt was not found; CUDA toolkits before 13.0 and pip's nvidia-nvtx have it: \
             name its folder in LD_LIBRARY_PATH",
        )),
        false => Ok(()),
    }
}

/// A range of this thread, until it is dropped.
pub struct Range(());

/// Begins a range, where they are wanted; [`check`] comes first.
pub fn range(name: &str) -> Option<Range> {
    if !on() {
        return None;
    }
    let name = CString::new(name).ok()?;
    // SAFETY: the library copies the string before it returns.
    unsafe { sys::nvtxRangePushA(name.as_ptr()) };
    Some(Range(()))
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: ends the innermost range of this thread, which is this one: ranges end in the order of scopes.
        unsafe { sys::nvtxRangePop() };
    }
}
