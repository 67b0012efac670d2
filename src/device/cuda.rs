//! The CUDA driver. libcuda is opened at run time; without it nothing fails until a GPU is asked for.

mod handles;
mod maps;

use super::images::{Kernel, choose};
use super::launch::{Argument, Launch, TensorMap, Tiles};
use crate::error::{Error, Result, Setting, message};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard};

pub use handles::Graph;
use handles::{Event, Recorded, Relaxed, Staging};

/// One GPU as the driver describes it.
#[derive(Debug)]
pub struct Description {
    /// Marketing name.
    pub name: String,
    /// Compute capability, for instance `(9, 0)`.
    pub capability: (u32, u32),
    /// Total memory in bytes.
    pub memory: usize,
    /// Multiprocessors.
    pub processors: usize,
}

/// The GPUs of this machine, or one line that says why there are none.
pub fn gpus() -> std::result::Result<Vec<Description>, String> {
    let count = count()?;
    (0..count).map(|i| describe(i).map_err(|e| format!("GPU {i}: {:?}", e.0))).collect()
}

/// What NVIDIA's kernel module says of itself.
pub fn driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("NVRM version:"))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// How many there are, once the driver answers and is not too old to hold all that is called here.
fn count() -> std::result::Result<i32, String> {
    // SAFETY: opens libcuda and looks for nothing else; cudarc would panic without this probe.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver (libcuda was not found)".into());
    }
    let mut version = 0;
    // SAFETY: in every libcuda; the pointer is to a live integer.
    let known = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    known.map_err(|e| format!("cuDriverGetVersion failed: {:?}", e.0))?;
    let oldest = oldest_driver();
    if version < oldest {
        return Err(format!(
            "the driver is of CUDA {}, too old: this build needs CUDA {} or newer",
            spell(version),
            spell(oldest)
        ));
    }
    result::init().map_err(|e| format!("cuInit failed: {:?}", e.0))?;
    result::device::get_count().map_err(|e| format!("cuDeviceGetCount failed: {:?}", e.0))
}

/// In the driver's numbers (13.0 is 13000). A driver runs the code of the toolkits of its own major version; 12.0 has all
/// the calls that are made here.
fn oldest_driver() -> i32 {
    let toolkit = option_env!("LLM2VEC_NVCC").and_then(|v| v.split('.').next()?.parse::<i32>().ok());
    toolkit.map_or(12000, |major| (major * 1000).max(12000))
}

fn spell(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn describe(ordinal: i32) -> std::result::Result<Description, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS,
    };
    let device = result::device::get(ordinal)?;
    let name = result::device::get_name(device)?;
    // SAFETY: `device` comes from cuDeviceGet just above.
    let (major, minor, processors, memory) = unsafe {
        let attribute = |a| result::device::get_attribute(device, a);
        (attribute(MAJOR)?, attribute(MINOR)?, attribute(PROCESSORS)?, result::device::total_mem(device)?)
    };
    let capability = (major.unsigned_abs(), minor.unsigned_abs());
    Ok(Description { name, capability, memory, processors: processors.unsigned_abs() as usize })
}

/// A driver's refusal, with the call that it refused.
fn failed<T>(call: &str, result: std::result::Result<T, result::DriverError>) -> Result<T> {
    result.map_err(|e| Error::device(format!("{call} failed: {:?}", e.0)))
}

/// One open GPU: its primary context and one stream, on which everything is queued.
pub struct Cuda {
    /// Marketing name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub processors: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    loaded: Mutex<Loaded>,
    staging: Mutex<Staging>,
    /// Waits for each kernel, so that an error is its own.
    wait: bool,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    /// Clusters of persistent kernels that it holds at a time.
    resident: HashMap<&'static str, u32>,
    last: &'static str,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it has leave to use.
    shared: u32,
}

// SAFETY: the driver's handles may be used from any thread; each call makes the context the thread's own first.
unsafe impl Send for Cuda {}
// SAFETY: likewise; what changes is behind a mutex.
unsafe impl Sync for Cuda {}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} (compute capability {}.{})", self.name, self.capability.0, self.capability.1)
    }
}

fn unusable(ordinal: i32, why: &str) -> Error {
    Error::device(message![format!("cuda:{ordinal}: {why}; use "), Setting::Device, " cpu"])
}

impl Cuda {
    /// Opens the GPU of this number.
    pub fn open(ordinal: i32) -> Result<Cuda> {
        let count = count().map_err(|why| unusable(ordinal, &why))?;
        if !(0..count).contains(&ordinal) {
            let known = match count {
                0 => "the driver sees no GPU".into(),
                n => format!("the driver sees {n}, numbered from 0"),
            };
            return Err(unusable(ordinal, &known));
        }
        let about = failed("cuDeviceGet", describe(ordinal))?;
        let device = failed("cuDeviceGet", result::device::get(ordinal))?;
        // SAFETY: `device` comes from cuDeviceGet; the context is released in `drop`.
        let context = failed("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let mut cuda = Cuda {
            name: about.name,
            capability: about.capability,
            processors: about.processors,
            device,
            context,
            stream: null_mut(),
            loaded: Mutex::default(),
            staging: Mutex::default(),
            wait: std::env::var("LLM2VEC_SYNC").is_ok_and(|v| !["", "0"].contains(&v.as_str())),
        };
        cuda.enter()?;
        cuda.stream =
            failed("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        let mut keep = u64::MAX;
        // SAFETY: the attribute is a u64; freed memory then stays in the pool in place of going back at every wait.
        let kept = unsafe {
            let name = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::device::get_default_mem_pool(device)
                .and_then(|pool| result::mem_pool::set_attribute(pool, name, (&raw mut keep).cast()))
        };
        failed("cuMemPoolSetAttribute", kept)?;
        Ok(cuda)
    }

    /// Makes the context this thread's.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: retained until `drop`.
        failed("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Where it is on its machine's bus.
    pub fn slot(&self) -> Result<String> {
        let mut text = [0; 16];
        // SAFETY: as much room as is said, which is more than "0000:00:00.0" takes; the driver ends it with a NUL.
        let got = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, self.device) };
        failed("cuDeviceGetPCIBusId", got.result())?;
        Ok(text.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect())
    }

    /// Free bytes on the device.
    pub fn available(&self) -> Result<u64> {
        self.enter()?;
        failed("cuMemGetInfo", result::mem_get_info()).map(|(free, _)| free as u64)
    }

    /// Memory from the driver's pool, not yet written.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // SAFETY: the stream is this context's. Nobody takes 0 bytes for an address.
        let address = unsafe { result::malloc_async(self.stream, bytes.max(1)) };
        failed(&format!("cuMemAllocAsync of {bytes} bytes"), address)
    }

    /// Gives memory back once all that is queued has used it.
    pub fn free(&self, address: u64) {
        if self.enter().is_ok() {
            // SAFETY: from `allocate`, freed once, by the one owner. An error here is that of a kernel before, and told by
            // the next call.
            let _ = unsafe { result::free_async(address, self.stream) };
        }
    }

    /// Copies to the device. Returns when `from` may change again; for little, the device need not have come so far.
    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        self.enter()?;
        let mut staging = self.staging.lock().unwrap_or_else(|e| e.into_inner());
        let staged = staging.take(from, || self.synchronize())?;
        // SAFETY: the owner has checked the range. What is staged stays until the device has been waited for; anything else
        // is outlasted by the wait below.
        let queued = unsafe { result::memcpy_htod_async(to, staged.unwrap_or(from), self.stream) };
        failed("cuMemcpyHtoDAsync", queued)?;
        if staged.is_some() { Ok(()) } else { self.synchronize() }
    }

    /// Copies to the host.
    pub fn read(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: likewise.
        failed("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(to, from, self.stream) })?;
        self.synchronize()
    }

    /// Copies on the device.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the owners have checked both ranges; they are of different allocations.
        failed("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
    }

    /// Sets every byte.
    pub fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the owner's whole range.
        failed("cuMemsetD8Async", unsafe { result::memset_d8_async(address, byte, bytes, self.stream) })
    }

    /// Waits for all that was queued.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        let done = unsafe { result::stream::synchronize(self.stream) };
        done.map_err(|e| {
            let last = self.loaded().last;
            let hint =
                if self.wait { "" } else { "; LLM2VEC_SYNC=1 waits for each kernel and names the right one" };
            let by = if last.is_empty() { String::new() } else { format!(", in or before {last}{hint}") };
            Error::device(format!("cuStreamSynchronize failed: {:?}{by}", e.0))
        })
    }

    /// Whether each kernel is waited for.
    pub fn waits(&self) -> bool {
        self.wait
    }

    /// The kernel's function, from an image that this GPU runs.
    fn function(&self, kernel: &Kernel, shared: u32) -> Result<sys::CUfunction> {
        let mut loaded = self.loaded();
        let file = kernel.file;
        let known = loaded.functions.get(kernel.name).copied();
        let _relaxed = known.is_none_or(|f| shared > f.shared).then(Relaxed::new).transpose()?;
        let module = match loaded.modules.get(file.stem) {
            Some(module) => *module,
            None => {
                let module = self.load(kernel)?;
                loaded.modules.insert(file.stem, module);
                module
            }
        };
        let known = match known {
            Some(function) => function,
            None => {
                let name = CString::new(kernel.name).unwrap_or_default();
                // SAFETY: the module stays loaded until `drop`.
                let handle = unsafe { result::module::get_function(module, name) };
                let handle = failed(&format!("cuModuleGetFunction {}", kernel.name), handle)?;
                let name = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                // SAFETY: a function of a loaded module.
                let own = unsafe { result::function::get_function_attribute(handle, name) };
                let own = failed(&format!("{}: cuFuncGetAttribute", kernel.name), own)?;
                Function { handle, shared: (48u32 << 10).saturating_sub(own as u32) }
            }
        };
        if shared > known.shared {
            let name = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let set = unsafe { result::function::set_function_attribute(known.handle, name, shared as i32) };
            failed(
                &format!("{} with {shared} bytes of shared memory: cuFuncSetAttribute", kernel.name),
                set,
            )?;
        }
        let shared = shared.max(known.shared);
        loaded.functions.insert(kernel.name, Function { shared, ..known });
        loaded.last = kernel.name;
        Ok(known.handle)
    }

    fn load(&self, kernel: &Kernel) -> Result<sys::CUmodule> {
        let (image, stem) = (kernel.image(&self.name, self.capability, choose)?, kernel.file.stem);
        // SAFETY: machine code is self-describing; PTX ends in the NUL that build.rs puts there.
        let module = unsafe { result::module::load_data(image.bytes.as_ptr().cast()) };
        failed(&format!("cuModuleLoadData of kernels/{stem}.cu for {}", image.target), module)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    ///
    /// That of [`super::gpu::Gpu::launch`].
    pub unsafe fn launch(&self, kernel: &Kernel, launch: Launch, arguments: &[Argument]) -> Result<()> {
        self.enter()?;
        let function = self.function(kernel, launch.shared)?;
        let mut attributes = Vec::new();
        if launch.cluster != [1; 3] {
            let [x, y, z] = launch.cluster;
            let along = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            attributes.push((
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue { clusterDim: along },
            ));
        }
        if launch.overlap {
            attributes.push((
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ));
        }
        let mut attributes: Vec<_> = attributes
            .into_iter()
            .map(|(id, value)| sys::CUlaunchAttribute { id, pad: [0; 4], value })
            .collect();
        let (grid, block) = (launch.grid, launch.block);
        let mut config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: launch.shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        if launch.persistent {
            let clusters = self.resident(kernel.name, function, &config, launch.cluster != [1; 3])?;
            config.gridDimX = grid[0].min(clusters * launch.cluster[0]);
        }
        let mut values: Vec<*mut c_void> = arguments.iter().map(place).collect();
        // SAFETY: each value points into `arguments`, which holds what the signature wants by the caller's word; the driver
        // copies them before it returns.
        let queued =
            unsafe { sys::cuLaunchKernelEx(&config, function, values.as_mut_ptr(), null_mut()) }.result();
        failed(&format!("{} {grid:?} x {block:?}: cuLaunchKernelEx", kernel.name), queued)?;
        if self.wait { self.synchronize() } else { Ok(()) }
    }

    /// Clusters (of one block, where there are none) of a kernel that this GPU holds at a time, as it is launched here.
    fn resident(
        &self,
        name: &'static str,
        function: sys::CUfunction,
        config: &sys::CUlaunchConfig,
        clustered: bool,
    ) -> Result<u32> {
        if let Some(known) = self.loaded().resident.get(name) {
            return Ok(*known);
        }
        let (mut most, threads) = (0, config.blockDimX as i32);
        // SAFETY: the function is loaded, the configuration and its attributes are alive.
        let clusters = if clustered {
            let asked = unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut most, function, config) };
            failed(&format!("{name}: cuOccupancyMaxActiveClusters"), asked.result())?;
            most
        } else {
            let ask = sys::cuOccupancyMaxActiveBlocksPerMultiprocessor;
            // SAFETY: likewise.
            let asked = unsafe { ask(&raw mut most, function, threads, config.sharedMemBytes as usize) };
            failed(&format!("{name}: cuOccupancyMaxActiveBlocksPerMultiprocessor"), asked.result())?;
            most * self.processors as i32
        };
        let clusters = clusters.unsigned_abs().max(1);
        self.loaded().resident.insert(name, clusters);
        Ok(clusters)
    }

    /// Encodes a tensor map of the array at `address`.
    pub fn tensor_map(&self, address: u64, tiles: &Tiles) -> Result<TensorMap> {
        self.enter()?;
        maps::encode(address, tiles)
    }

    /// Milliseconds between two events around `body`.
    pub fn time(&self, body: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.enter()?;
        let (start, end) = (Event::new()?, Event::new()?);
        // SAFETY: both events and the stream are live to the end of this function.
        unsafe {
            failed("cuEventRecord", result::event::record(start.0, self.stream))?;
            body()?;
            self.enter()?;
            failed("cuEventRecord", result::event::record(end.0, self.stream))?;
            failed("cuEventSynchronize", result::event::synchronize(end.0))?;
            failed("cuEventElapsedTime", result::event::elapsed(start.0, end.0))
        }
    }

    /// Records what `body` queues, and makes `old` do it.
    pub fn capture(&self, old: Option<Graph>, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live. The capture is ended whatever `body` says, else the stream would stay unusable.
        let (said, recorded) = unsafe {
            failed("cuStreamBeginCapture", result::stream::begin_capture(self.stream, mode))?;
            let said = body();
            (said, failed("cuStreamEndCapture", result::stream::end_capture(self.stream)).map(Recorded))
        };
        said?;
        Graph::new(old, &recorded?)
    }

    /// Queues a recorded graph.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: both are live.
        failed("cuGraphLaunch", unsafe { result::graph::launch(graph.0, self.stream) })
    }
}

/// Where an argument's value lies.
fn place(argument: &Argument) -> *mut c_void {
    static NULL: u64 = 0;
    fn at<T>(value: &T) -> *mut c_void {
        std::ptr::from_ref(value).cast_mut().cast()
    }
    match argument {
        Argument::Null => at(&NULL),
        Argument::Address(x) | Argument::U64(x) => at(x),
        Argument::I32(x) => at(x),
        Argument::U32(x) => at(x),
        Argument::I64(x) => at(x),
        Argument::F32(x) => at(x),
        Argument::F64(x) => at(x),
        Argument::Map(x) => at(*x),
        Argument::Bytes(x) => x.as_ptr().cast_mut().cast(),
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let loaded = std::mem::take(&mut *self.loaded());
        let staging = std::mem::take(self.staging.get_mut().unwrap_or_else(|e| e.into_inner()));
        // SAFETY: the last use of each handle; memory on the device holds a clone of its owner, so none is left.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
            drop(staging);
            for module in loaded.modules.into_values() {
                let _ = result::module::unload(module);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
