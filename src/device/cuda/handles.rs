//! Things of the driver's that end with their owner.

use super::failed;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ptr::null_mut;

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

/// What a capture has recorded.
pub struct Recorded(pub(super) sys::CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: from a capture, destroyed once; executable graphs do not need it.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}

/// A recorded sequence of launches that is ready to run.
pub struct Graph(pub(super) sys::CUgraphExec);

impl Graph {
    /// `old`, changed in place, where it has the same nodes in the same order; else a new one.
    pub(super) fn new(old: Option<Graph>, recorded: &Recorded) -> Result<Graph> {
        if let Some(old) = old {
            let mut info = sys::CUgraphExecUpdateResultInfo {
                result: sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS,
                errorNode: null_mut(),
                errorFromNode: null_mut(),
            };
            // SAFETY: both graphs are live. Launches that are queued already run as they were.
            let updated = unsafe { sys::cuGraphExecUpdate_v2(old.0, recorded.0, &raw mut info) };
            if updated != sys::CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE {
                return failed("cuGraphExecUpdate", updated.result()).map(|()| old);
            }
        }
        // SAFETY: the recorded graph is live.
        let ready = unsafe { result::graph::instantiate(recorded.0, sys::CUgraphInstantiate_flags(0)) };
        failed("cuGraphInstantiate", ready).map(Graph)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once; a launch of it that is queued still ends.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// Page-locked host memory.
pub struct Pinned {
    start: *mut u8,
    bytes: usize,
}

impl Pinned {
    /// Zeroed, and not write-combined, for it is read back too. The context must be this thread's.
    pub fn new(bytes: usize) -> Result<Pinned> {
        // SAFETY: freed in `drop`.
        let start = failed(&format!("cuMemHostAlloc of {bytes} bytes"), unsafe {
            result::malloc_host(bytes.max(1), 0)
        })?;
        // SAFETY: as many bytes as were taken.
        unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { start: start.cast(), bytes })
    }
}

impl std::ops::Deref for Pinned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: allocated and zeroed in `new`, owned by `self`.
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
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

/// Lets this thread load code while it captures: that is of no stream.
pub struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    pub fn new() -> Result<Relaxed> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the thread's mode with a live one; `drop` puts the old one back.
        let changed = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
        failed("cuThreadExchangeStreamCaptureMode", changed.result()).map(|()| Relaxed(mode))
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: likewise.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut self.0) };
    }
}

/// Pinned memory through which small copies to the device go, so that nobody waits for each.
#[derive(Default)]
pub struct Staging {
    room: Option<Pinned>,
    used: usize,
}

impl Staging {
    /// What a pack uploads is far smaller; a large copy is worth a wait.
    const BYTES: usize = 1 << 20;

    /// A copy of `bytes` that stays as it is until `wait` has been called, here or elsewhere; nothing if they are too many.
    pub fn take(&mut self, bytes: &[u8], wait: impl FnOnce() -> Result<()>) -> Result<Option<&[u8]>> {
        if bytes.len() > Staging::BYTES {
            return Ok(None);
        }
        if self.used + bytes.len() > Staging::BYTES {
            wait()?;
            self.used = 0;
        }
        let room = match &mut self.room {
            Some(room) => room,
            none => none.insert(Pinned::new(Staging::BYTES)?),
        };
        let place = &mut room[self.used..][..bytes.len()];
        place.copy_from_slice(bytes);
        self.used += bytes.len();
        Ok(Some(place))
    }
}
