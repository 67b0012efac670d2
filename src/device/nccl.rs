//! NCCL: GPUs of several processes exchange what lies in their memory. The library is opened at run time; without it nothing
//! fails until it is asked for.
//!
//! cudarc's own bindings look for `libnccl.so` alone, which neither wheels nor run-time packages have, and panic without it.

use super::cuda::Cuda;
use super::gpu::{Gpu, Memory};
use crate::error::{Error, Result};
use cudarc::driver::sys;
use libloading::Library;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

/// That of every package; that of a toolkit's headers.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclFloat32` and `ncclSum`.
const F32: c_int = 7;
const SUM: c_int = 0;

/// How often the host looks whether the device is done.
const LOOK: Duration = Duration::from_micros(50);

/// What the ranks of one communicator have in common, made by the first.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Id(pub [u8; 128]);

type Communicator = *mut c_void;
type Stream = sys::CUstream;

/// Makes the struct of the calls, and what finds them.
macro_rules! calls {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        #[allow(non_snake_case)]
        struct Calls {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Calls {
            fn find(library: &Library) -> std::result::Result<Calls, String> {
                Ok(Calls {
                    // SAFETY: the signature is that of nccl.h since 2.7; the library stays open for good.
                    $($name: *unsafe { library.get(stringify!($name)) }.map_err(|_| {
                        format!("it has no {}: NCCL 2.7 or newer is needed", stringify!($name))
                    })?,)*
                })
            }
        }
    };
}

calls! {
    ncclGetVersion(*mut c_int) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetUniqueId(*mut Id) -> c_int;
    ncclCommInitRank(*mut Communicator, c_int, Id, c_int) -> c_int;
    ncclCommDestroy(Communicator) -> c_int;
    ncclCommAbort(Communicator) -> c_int;
    ncclCommGetAsyncError(Communicator, *mut c_int) -> c_int;
    ncclGroupStart() -> c_int;
    ncclGroupEnd() -> c_int;
    ncclSend(*const c_void, usize, c_int, c_int, Communicator, Stream) -> c_int;
    ncclRecv(*mut c_void, usize, c_int, c_int, Communicator, Stream) -> c_int;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, Communicator, Stream) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, Stream) -> c_int;
}

/// The library, or why there is none.
fn calls() -> std::result::Result<&'static Calls, String> {
    static CALLS: OnceLock<std::result::Result<Calls, String>> = OnceLock::new();
    let open = || {
        // SAFETY: NCCL does nothing as it is opened but read its environment.
        let opened = NAMES.into_iter().find_map(|name| Some((name, unsafe { Library::new(name) }.ok()?)));
        let (name, library) = opened.ok_or_else(|| format!("{} was not found", NAMES[0]))?;
        let calls = Calls::find(&library).map_err(|what| format!("{name}: {what}"))?;
        std::mem::forget(library);
        Ok(calls)
    };
    CALLS.get_or_init(open).as_ref().map_err(String::clone)
}

/// Its version, or why there is none.
pub fn version() -> std::result::Result<String, String> {
    let (calls, mut version) = (calls()?, 0);
    // SAFETY: a pointer to a live integer.
    checked("ncclGetVersion", unsafe { (calls.ncclGetVersion)(&raw mut version) })
        .map_err(|e| e.to_string())?;
    // 2.9 was the first of five digits.
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    Ok(format!("{}.{}.{}", version / unit, version % unit / 100, version % 100))
}

/// A refusal, with the call that was refused.
fn checked(call: &str, result: c_int) -> Result<()> {
    if result == 0 {
        return Ok(());
    }
    let text = calls().ok().map(|calls| {
        // SAFETY: a string that lives as long as the library, for any number.
        unsafe { CStr::from_ptr((calls.ncclGetErrorString)(result)) }.to_string_lossy()
    });
    let text = text.unwrap_or_default();
    Err(Error::device(format!("{call} failed: {text} (NCCL_DEBUG=WARN says more)")))
}

impl Id {
    /// For the first rank, whose id all take.
    pub fn new() -> Result<Id> {
        let (calls, mut id) = (calls().map_err(Error::device)?, Id([0; 128]));
        // SAFETY: a pointer to as many bytes as nccl.h has.
        checked("ncclGetUniqueId", unsafe { (calls.ncclGetUniqueId)(&raw mut id) })?;
        Ok(id)
    }
}

/// The GPUs of several processes, as one of them sees them. All ask for the same things in the same order; each is queued
/// behind what the GPU was to do before.
pub struct Comm {
    gpu: Gpu,
    calls: &'static Calls,
    handle: Communicator,
    ranks: usize,
    /// Something is queued, or has failed: an orderly end would wait for the others.
    open: Cell<bool>,
}

impl Comm {
    /// Joins the others with that id, each on a GPU of its own. Comes back when all have come.
    pub fn join(gpu: &Gpu, id: Id, rank: usize, ranks: usize) -> Result<Comm> {
        let calls = calls().map_err(Error::device)?;
        let mut comm = Comm { gpu: gpu.clone(), calls, handle: null_mut(), ranks, open: Cell::new(true) };
        comm.cuda()?.enter()?;
        // SAFETY: the handle's place is live; the context is this thread's.
        let joined =
            unsafe { (calls.ncclCommInitRank)(&raw mut comm.handle, ranks as c_int, id, rank as c_int) };
        checked("ncclCommInitRank", joined)?;
        comm.open.set(false);
        Ok(comm)
    }

    fn cuda(&self) -> Result<&Cuda> {
        self.gpu.driver().ok_or_else(|| Error::device("NCCL knows nothing of the emulator"))
    }

    /// Does `body` with this communicator's stream, in the GPU's context.
    fn queue(&self, call: &str, body: impl FnOnce(&Calls, Stream) -> c_int) -> Result<()> {
        let cuda = self.cuda()?;
        cuda.enter()?;
        self.open.set(true);
        checked(call, body(self.calls, cuda.stream))
    }

    /// Where `numbers` f32 begin, which lie in this memory.
    fn place(&self, memory: &Memory, numbers: usize) -> Result<*mut c_void> {
        match memory.is_on(&self.gpu) && numbers * 4 <= memory.bytes() {
            true => Ok(memory.address() as *mut c_void),
            false => Err(Error::device(format!(
                "NCCL: {numbers} numbers do not lie in {} bytes of {}",
                memory.bytes(),
                self.gpu.name()
            ))),
        }
    }

    /// Sends part `r` of `from`, each of `part` f32, to rank r, and takes into `to[r]` what rank r sends.
    pub fn exchange<'a>(
        &self,
        from: &Memory,
        to: impl ExactSizeIterator<Item = &'a mut Memory>,
        part: usize,
    ) -> Result<()> {
        if to.len() != self.ranks {
            return Err(Error::device(format!("NCCL: {} parts for {} ranks", to.len(), self.ranks)));
        }
        let from = self.place(from, part * self.ranks)?;
        let to: Vec<*mut c_void> = to.map(|memory| self.place(memory, part)).collect::<Result<_>>()?;
        // SAFETY: no arguments. Until the end of the group nothing is sent.
        self.queue("ncclGroupStart", |calls, _| unsafe { (calls.ncclGroupStart)() })?;
        for (rank, &into) in to.iter().enumerate() {
            let peer = rank as c_int;
            self.queue("ncclSend", |calls, stream| {
                let part_of = from.wrapping_byte_add(rank * part * 4);
                // SAFETY: as much memory as checked above, freed behind this on the stream.
                unsafe { (calls.ncclSend)(part_of, part, F32, peer, self.handle, stream) }
            })?;
            self.queue("ncclRecv", |calls, stream| {
                // SAFETY: likewise; nobody else has it, for it was borrowed as such.
                unsafe { (calls.ncclRecv)(into, part, F32, peer, self.handle, stream) }
            })?;
        }
        // SAFETY: ends what began above.
        self.queue("ncclGroupEnd", |calls, _| unsafe { (calls.ncclGroupEnd)() })
    }

    /// The first `part` f32 of every rank's `from`, in the order of the ranks.
    pub fn gather(&self, from: &Memory, to: &mut Memory, part: usize) -> Result<()> {
        let (from, to) = (self.place(from, part)?, self.place(to, part * self.ranks)?);
        self.queue("ncclAllGather", |calls, stream| {
            // SAFETY: as much memory as checked above, freed behind this on the stream; two allocations.
            unsafe { (calls.ncclAllGather)(from, to, part, F32, self.handle, stream) }
        })
    }

    /// Leaves the sums over all ranks of the first so many f32 in their place, added in NCCL's order.
    pub fn sum(&self, values: &mut Memory, numbers: usize) -> Result<()> {
        let place = self.place(values, numbers)?;
        self.queue("ncclAllReduce", |calls, stream| {
            // SAFETY: likewise; in place is one of its two ways.
            unsafe { (calls.ncclAllReduce)(place, place, numbers, F32, SUM, self.handle, stream) }
        })
    }

    /// Waits for all that was queued, or for word that something has failed: a kernel of NCCL's waits for ever for a rank that
    /// is gone.
    pub fn wait(&self) -> Result<()> {
        let (cuda, mut state) = (self.cuda()?, 0);
        cuda.enter()?;
        // SAFETY: the stream lives as long as the GPU.
        while unsafe { sys::cuStreamQuery(cuda.stream) } == sys::CUresult::CUDA_ERROR_NOT_READY {
            self.queue("ncclCommGetAsyncError", |calls, _| {
                // SAFETY: the communicator is live, as is the integer.
                unsafe { (calls.ncclCommGetAsyncError)(self.handle, &raw mut state) }
            })?;
            self.queue("NCCL", |_, _| state)?;
            sleep(LOOK);
        }
        // Done, or the driver has an error to tell.
        cuda.synchronize()?;
        self.open.set(false);
        Ok(())
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if self.handle.is_null() || self.cuda().and_then(Cuda::enter).is_err() {
            return;
        }
        let end = match self.open.get() || std::thread::panicking() {
            // Ends the kernels that wait, which the end of the GPU's stream would wait for.
            true => self.calls.ncclCommAbort,
            false => self.calls.ncclCommDestroy,
        };
        // SAFETY: made in `join`, ended once. Nobody is left to hear of an error.
        let _ = unsafe { end(self.handle) };
    }
}
