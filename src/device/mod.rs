//! Where tensors live and what computes: the CPU, a GPU, or its emulator. `unsafe` stands here and around launches.

pub mod choice;
#[allow(unsafe_code)]
pub mod cpu;
#[allow(unsafe_code)]
pub mod cuda;
pub mod emulated;
#[allow(unsafe_code)]
pub mod gpu;
pub mod images;
pub mod launch;
pub mod mapped;
#[allow(unsafe_code)]
pub mod nccl;
#[allow(unsafe_code)]
pub mod nvtx;
#[allow(unsafe_code)]
pub mod panels;
pub mod system;

use crate::error::{Error, Result, Setting, message};
/// Runs the kernels' PTX on the CPU, checked and counted.
pub use ptx_emulator as emulator;

/// Element types of tensors and of weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE double: the reference of every test.
    F64,
    /// IEEE single: activations and weights on the CPU.
    F32,
    /// IEEE half: read from weight files, never computed in.
    F16,
    /// bfloat16: frozen weights of `Compute::Bf16`.
    Bf16,
    /// Token ids, segment starts, positions.
    I32,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

/// A place to compute. Every op matches on it.
#[derive(Clone, Debug)]
pub enum Device {
    /// Plain Rust on all cores; the field is the float it computes in, `F32` or (tests) `F64`.
    Cpu(DType),
    /// Our kernels, on bf16 activations and f32 statistics.
    Gpu(gpu::Gpu),
}

impl Device {
    /// Of a GPU: the kernels that run there, in a few words.
    pub fn kernels(&self) -> Option<String> {
        match self {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Some(gpu.kernels()),
        }
    }

    /// The CPU at `f32`.
    pub const fn cpu() -> Device {
        Device::Cpu(DType::F32)
    }

    /// The CPU at `f64`: slow, and the judge of every other computation.
    pub const fn cpu_f64() -> Device {
        Device::Cpu(DType::F64)
    }

    /// Picks a device by its name: `auto`, `cpu`, `cuda[:N]` or `emulated[:80|:90]`.
    ///
    /// `auto` is the first GPU that runs the kernels of this build, else the CPU; never the emulator.
    pub fn by_name(name: &str) -> Result<Device> {
        let wrong = |what: &str| Err(Error::usage(message![Setting::Device, format!(" {name}: {what}")]));
        match name.split(':').next().unwrap_or("") {
            "cpu" => Ok(Device::cpu()),
            "auto" => Ok(Device::automatic()),
            kind @ ("cuda" | "emulated") if option_env!("LLM2VEC_NVCC").is_none() => {
                let (device, what) =
                    (Setting::Device, "this build holds no CUDA kernels (nvcc was not found)");
                Err(Error::device(message![
                    device,
                    format!(" {name}: {what}, so `{kind}` cannot run; use "),
                    device,
                    " cpu, or set NVCC or CUDA_HOME, or run kernels/install_nvcc.sh, and build again"
                ]))
            }
            "cuda" => {
                let ordinal = name.strip_prefix("cuda:").map_or(Ok(0), str::parse::<u16>);
                let Ok(ordinal) = ordinal else {
                    return wrong("expected cuda or cuda:N, N from 0");
                };
                gpu::Gpu::cuda(ordinal.into()).map(Device::Gpu)
            }
            "emulated" => match name.strip_prefix("emulated").unwrap_or("") {
                "" | ":80" => gpu::Gpu::emulated((8, 0)).map(Device::Gpu),
                ":90" => gpu::Gpu::emulated((9, 0)).map(Device::Gpu),
                _ => wrong("expected emulated, emulated:80 or emulated:90"),
            },
            _ => wrong("expected auto, cpu, cuda[:N] or emulated[:80|:90]"),
        }
    }

    /// The same device with this choice of kernels.
    ///
    /// Errors where Hopper's are asked of what is no GPU of compute capability 9.0.
    pub fn with_kernels(self, set: images::KernelSet) -> Result<Device> {
        match self {
            Device::Gpu(gpu) => gpu.with_kernels(set).map(Device::Gpu),
            Device::Cpu(_) if set == images::KernelSet::Hopper => Err(Error::device(
                "kernels for Hopper run on a GPU of compute capability 9.0, this is the CPU",
            )),
            cpu => Ok(cpu),
        }
    }

    fn automatic() -> Device {
        // PTX is for compute capability 8.0 and newer.
        let runs = |gpu: &gpu::Gpu| option_env!("LLM2VEC_NVCC").is_some() && gpu.capability() >= (8, 0);
        gpu::Gpu::cuda(0).ok().filter(runs).map_or(Device::cpu(), Device::Gpu)
    }

    /// The element type of activations here.
    pub fn activation(&self) -> DType {
        match self {
            Device::Cpu(real) => *real,
            Device::Gpu(_) => DType::Bf16,
        }
    }

    /// The element type of statistics (norms, log-sum-exp) here.
    pub fn statistic(&self) -> DType {
        match self {
            Device::Cpu(real) => *real,
            Device::Gpu(_) => DType::F32,
        }
    }

    /// Bytes that can be taken now, where the system tells.
    pub fn available(&self) -> Option<u64> {
        match self {
            Device::Cpu(_) => system::available(),
            Device::Gpu(gpu) => gpu.available(),
        }
    }
}
