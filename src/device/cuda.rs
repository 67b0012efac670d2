//! What the CUDA driver says of this machine. libcuda is opened at run time; without it nothing fails.

use cudarc::driver::{result, sys};

/// One GPU as the driver describes it.
pub struct Gpu {
    /// Marketing name.
    pub name: String,
    /// Compute capability, for instance `(9, 0)`.
    pub capability: (i32, i32),
    /// Total memory in bytes.
    pub memory: usize,
}

/// The GPUs of this machine, or one line that says why there are none.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    // SAFETY: opens libcuda and looks for nothing else; cudarc would panic without this probe.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver (libcuda was not found)".into());
    }
    result::init().map_err(|e| format!("cuInit failed: {:?}", e.0))?;
    let count = result::device::get_count().map_err(|e| format!("cuDeviceGetCount failed: {:?}", e.0))?;
    (0..count).map(|i| describe(i).map_err(|e| format!("GPU {i}: {:?}", e.0))).collect()
}

fn describe(ordinal: i32) -> Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(ordinal)?;
    let name = result::device::get_name(device)?;
    // SAFETY: `device` comes from cuDeviceGet just above.
    let (major, minor, memory) = unsafe {
        let attribute = |a| result::device::get_attribute(device, a);
        (attribute(MAJOR)?, attribute(MINOR)?, result::device::total_mem(device)?)
    };
    Ok(Gpu { name, capability: (major, minor), memory })
}
