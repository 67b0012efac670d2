//! A GPU as ops see it: memory and launches, whichever driver is behind; and what a build holds for it.

use super::cuda::{self, Cuda};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Machine code or PTX for one target.
pub struct Image {
    /// `sm_90`, `sm_90a` (machine code) or `compute_80` (PTX).
    pub target: &'static str,
    /// The file; PTX ends in a NUL.
    pub bytes: &'static [u8],
}

/// What nvcc made of one file of `kernels/`; without images where the build found no nvcc.
pub struct File {
    /// Name without `.cu`.
    pub stem: &'static str,
    /// Its entry points.
    pub kernels: &'static [&'static str],
    /// One for each target.
    pub images: &'static [Image],
    /// What each kernel takes on each target.
    pub resources: &'static [Resource],
}

/// An entry point of a file.
pub struct Kernel {
    /// C name.
    pub name: &'static str,
    /// Where it stands.
    pub file: &'static File,
}

/// What a kernel takes on one target, by ptxas.
pub struct Resource {
    /// C name.
    pub kernel: &'static str,
    /// `sm_90`.
    pub target: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory that it declares; what a launch adds is not in it.
    pub shared: u32,
    /// Bytes of stack and of spilled registers.
    pub spilled: u32,
    /// Most threads of a block.
    pub threads: u32,
    /// Bytes of machine code.
    pub code: u32,
}

impl Resource {
    /// Largest blocks that one multiprocessor holds at a time, and the warps in them as a part of the most.
    ///
    /// Registers are handed out to a warp in units of 256, shared memory to a block in units of 128 bytes and with 1 KiB
    /// for the system (CUDA programming guide, technical specifications by compute capability).
    pub fn occupancy(&self) -> (u32, f64) {
        let (warps, blocks, shared) = match self.target.trim_start_matches("sm_").trim_end_matches('a') {
            "80" => (64, 32, 164 << 10),
            "90" => (64, 32, 228 << 10),
            _ => (48, 24, 100 << 10),
        };
        let of_block = self.threads.div_ceil(32).max(1);
        let by_registers = (65536 / (self.registers * 32).next_multiple_of(256).max(256)) / 4 * 4 / of_block;
        let by_shared = shared / ((self.shared + 1024).next_multiple_of(128));
        let resident = by_registers.min(by_shared).min(warps / of_block).min(blocks);
        (resident, f64::from(resident * of_block) / f64::from(warps))
    }
}

/// The image that a GPU of this compute capability runs: its own machine code, else the nearest older of its
/// generation, else PTX for the driver to compile.
pub fn choose<'a>(images: &'a [Image], (major, minor): (u32, u32)) -> Option<&'a Image> {
    // Of `sm_90a` code an `a` says: this generation's special instructions, no other GPU.
    let parse = |image: &'a Image, prefix: &str| {
        let digits = image.target.strip_prefix(prefix)?;
        let number: u32 = digits.trim_end_matches('a').parse().ok()?;
        Some((image, (number / 10, number % 10), digits.ends_with('a')))
    };
    let machine = images.iter().filter_map(|i| parse(i, "sm_"));
    let runs =
        machine.filter(|(_, (a, b), only)| *a == major && if *only { *b == minor } else { *b <= minor });
    let ptx = images.iter().filter_map(|i| parse(i, "compute_"));
    let compiles =
        ptx.filter(|(_, at, only)| if *only { *at == (major, minor) } else { *at <= (major, minor) });
    let best = runs.max_by_key(|(_, at, only)| (*at, *only));
    best.or_else(|| compiles.max_by_key(|(_, at, only)| (*at, *only))).map(|(image, ..)| image)
}

/// How a kernel is spread over a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks in a cluster along x; 1 for none.
    pub cluster: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// May begin while the kernel before it ends (it then waits itself, by `griddepcontrol`).
    pub overlap: bool,
}

impl Launch {
    /// Blocks and threads along x, nothing else.
    pub fn line(blocks: usize, threads: usize) -> Launch {
        Launch::plane([blocks, 1], [threads, 1])
    }

    /// Blocks and threads along x and y.
    pub fn plane(grid: [usize; 2], block: [usize; 2]) -> Launch {
        // What does not fit 32 bits no GPU takes: it says so itself.
        let cut = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let all = |xy: [usize; 2]| [cut(xy[0]), cut(xy[1]), 1];
        Launch { grid: all(grid), block: all(block), cluster: 1, shared: 0, overlap: false }
    }
}

/// A value of a kernel's parameter list.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// An array that is not there.
    Null,
    /// An address on the device.
    Address(u64),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `long long`.
    I64(i64),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
    /// `const __grid_constant__ CUtensorMap`.
    Map(&'a TensorMap),
}

/// How the tensor memory accelerator finds the tiles of an array: 128 opaque bytes from the driver.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorMap(pub [u64; 16]);

/// The rows that a tile lies in once it is in shared memory: 16-byte chunks are exchanged within so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As in memory.
    None,
    /// 32 bytes.
    B32,
    /// 64 bytes.
    B64,
    /// 128 bytes.
    B128,
}

/// What a [`TensorMap`] describes, innermost dimension first.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// bf16 if not f32.
    pub float: bool,
    /// Elements along each dimension, at most 5.
    pub sizes: Vec<u64>,
    /// Bytes from one element to the next, of every dimension but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of a tile along each dimension, at most 256.
    pub tile: Vec<u32>,
    /// Layout of the tile.
    pub swizzle: Swizzle,
}

/// One open GPU; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Driver>);

#[derive(Debug)]
enum Driver {
    Cuda(Cuda),
}

impl Gpu {
    /// The GPU of this number through the CUDA driver.
    pub fn cuda(ordinal: i32) -> Result<Gpu> {
        Cuda::open(ordinal).map(|cuda| Gpu(Arc::new(Driver::Cuda(cuda))))
    }

    /// Marketing name.
    pub fn name(&self) -> &str {
        match &*self.0 {
            Driver::Cuda(cuda) => &cuda.name,
        }
    }

    /// Compute capability.
    pub fn capability(&self) -> (u32, u32) {
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.capability,
        }
    }

    /// Multiprocessors.
    pub fn processors(&self) -> usize {
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.processors,
        }
    }

    /// Bytes that can be taken now.
    pub fn available(&self) -> Option<u64> {
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.available().ok(),
        }
    }

    /// Memory of this many bytes, all zero.
    pub fn memory(&self, bytes: usize) -> Result<Memory> {
        let address = match &*self.0 {
            Driver::Cuda(cuda) => cuda.allocate(bytes)?,
        };
        let mut memory = Memory { gpu: self.clone(), address, bytes };
        memory.fill(0)?;
        Ok(memory)
    }

    /// TEMPORARY until driver lands.
    pub fn reserve(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }

    /// Queues a kernel behind what was queued before.
    ///
    /// # Safety
    ///
    /// The arguments must be those of the kernel's signature in number, order and type, and what it reads and writes
    /// through them must be live memory that nobody else uses until it is done.
    pub unsafe fn launch(&self, kernel: &Kernel, launch: Launch, arguments: &[Argument]) -> Result<()> {
        match &*self.0 {
            // SAFETY: handed on.
            Driver::Cuda(cuda) => unsafe { cuda.launch(kernel, launch, arguments) },
        }
    }

    /// Waits for all that was queued.
    pub fn synchronize(&self) -> Result<()> {
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// The map of an array that begins at `memory`'s first byte.
    pub fn tensor_map(&self, memory: &Memory, tiles: &Tiles) -> Result<TensorMap> {
        let rank = tiles.sizes.len();
        let fits = (1..=5).contains(&rank) && tiles.strides.len() + 1 == rank && tiles.tile.len() == rank;
        if !fits {
            return Err(Error::Device(format!(
                "tensor map: {tiles:?}, expected 1 to 5 sizes, as many tile sides, one stride less"
            )));
        }
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.tensor_map(memory.address, tiles),
        }
    }

    /// Milliseconds that the device spends on what `body` queues.
    pub fn time(&self, body: impl FnOnce() -> Result<()>) -> Result<f32> {
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.time(body),
        }
    }

    /// Records what `body` queues, which must allocate and copy nothing, to be replayed at once.
    ///
    /// The memory that it uses must outlive the graph's last replay.
    pub fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        match &*self.0 {
            Driver::Cuda(cuda) => Ok(Graph { gpu: self.clone(), graph: cuda.capture(body)? }),
        }
    }

    /// Host memory that the device copies from and to without the driver's help.
    pub fn pinned(&self, bytes: usize) -> Result<cuda::Pinned> {
        match &*self.0 {
            Driver::Cuda(cuda) => cuda.pinned(bytes),
        }
    }
}

/// A recorded sequence of launches.
pub struct Graph {
    gpu: Gpu,
    graph: cuda::Graph,
}

impl Graph {
    /// Queues all of it.
    pub fn replay(&self) -> Result<()> {
        match &*self.gpu.0 {
            Driver::Cuda(cuda) => cuda.replay(&self.graph),
        }
    }
}

/// Memory on a GPU, given back when dropped.
#[derive(Debug)]
pub struct Memory {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Where it begins, at a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The GPU that it lies on.
    pub fn is_on(&self, gpu: &Gpu) -> bool {
        Arc::ptr_eq(&self.gpu.0, &gpu.0)
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn within(&self, at: usize, bytes: usize) -> Result<u64> {
        match at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            true => Ok(self.address + at as u64),
            false => Err(Error::Device(format!(
                "{bytes} bytes from {at} on leave the {} of a device array",
                self.bytes
            ))),
        }
    }

    /// Copies from the host, to byte `at` on.
    pub fn write(&mut self, at: usize, from: &[u8]) -> Result<()> {
        let to = self.within(at, from.len())?;
        match &*self.gpu.0 {
            Driver::Cuda(cuda) => cuda.write(to, from),
        }
    }

    /// Copies to the host, from byte `at` on, after all that was queued.
    pub fn read(&self, at: usize, to: &mut [u8]) -> Result<()> {
        let from = self.within(at, to.len())?;
        match &*self.gpu.0 {
            Driver::Cuda(cuda) => cuda.read(to, from),
        }
    }

    /// Copies from memory of the same GPU, behind what was queued.
    pub fn copy(&mut self, at: usize, from: &Memory, from_at: usize, bytes: usize) -> Result<()> {
        let (to, source) = (self.within(at, bytes)?, from.within(from_at, bytes)?);
        if !from.is_on(&self.gpu) {
            return Err(Error::Device("a copy between two GPUs".into()));
        }
        match &*self.gpu.0 {
            Driver::Cuda(cuda) => cuda.copy(to, source, bytes),
        }
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        match &*self.gpu.0 {
            Driver::Cuda(cuda) => cuda.fill(self.address, byte, self.bytes),
        }
    }
}

impl Clone for Memory {
    /// A copy of what it holds. Not for the step, which allocates nothing: it panics where the device has no room.
    fn clone(&self) -> Memory {
        let copy = || -> Result<Memory> {
            let mut bytes = vec![0; self.bytes];
            self.read(0, &mut bytes)?;
            let mut memory = self.gpu.memory(self.bytes)?;
            memory.write(0, &bytes)?;
            Ok(memory)
        };
        copy().unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &*self.gpu.0 {
            Driver::Cuda(cuda) => cuda.free(self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Image] = &[
        Image { target: "sm_80", bytes: b"" },
        Image { target: "sm_90", bytes: b"" },
        Image { target: "sm_120", bytes: b"" },
        Image { target: "compute_80", bytes: b"" },
    ];

    #[test]
    fn the_image_is_exact_else_nearest_else_ptx() {
        let target = |images, at| choose(images, at).map(|i| i.target);
        for (at, wanted) in [
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_80")),
            ((8, 9), Some("sm_80")),
            ((9, 0), Some("sm_90")),
            ((10, 0), Some("compute_80")),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((7, 5), None),
        ] {
            assert_eq!(target(ALL, at), wanted, "{at:?}");
        }
        let hopper = &[Image { target: "sm_90a", bytes: b"" }, Image { target: "compute_90a", bytes: b"" }];
        assert_eq!(target(hopper, (9, 0)), Some("sm_90a"));
        assert_eq!(target(hopper, (10, 0)), None, "code for one generation's instructions runs on no other");
        assert_eq!(target(hopper, (8, 0)), None);
        assert_eq!(target(&[], (9, 0)), None);
    }

    #[test]
    fn occupancy_is_that_of_the_guide() {
        let of = |target, registers, shared, threads| {
            Resource { kernel: "", target, registers, shared, spilled: 0, threads, code: 0 }.occupancy()
        };
        assert_eq!(of("sm_90", 32, 0, 256), (8, 1.0));
        assert_eq!(of("sm_90", 33, 0, 256), (6, 0.75), "40 registers are handed out: 48 warps fit");
        assert_eq!(of("sm_90a", 168, 0, 384), (1, 12.0 / 64.0));
        assert_eq!(of("sm_80", 32, 80 << 10, 128), (2, 8.0 / 64.0));
        assert_eq!(of("sm_120", 32, 0, 256), (6, 1.0));
    }
}
