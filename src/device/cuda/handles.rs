//! Things of the driver's that end with their owner.

use super::failed;
use crate::error::Result;
use cudarc::driver::{result, sys};

/// A point on the stream.
pub struct Event(pub(super) sys::CUevent);

impl Event {
    /// One that tells its time.
    pub fn new() -> Result<Event> {
        failed("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// A recorded sequence of launches.
pub struct Graph(pub(super) sys::CUgraphExec);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `capture`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// Page-locked host memory.
pub struct Pinned {
    pub(super) start: *mut u8,
    pub(super) bytes: usize,
}

impl std::ops::Deref for Pinned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: allocated and zeroed in `pinned`, owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl std::ops::DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: likewise, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `pinned`, freed once.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}
