//! A GPU as ops see it: memory and launches, whichever driver is behind.

mod graphs;

use super::choice::{Table, Tile, choose, named};
use super::cuda::Cuda;
use super::emulated::Emulated;
use super::emulator::Counters;
use super::images::{File, Kernel, KernelSet};
use super::nvtx;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

pub use super::launch::{Argument, Launch, Swizzle, TensorMap, Tiles};
pub use graphs::{Graph, Graphs};

/// One open GPU; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Gpu {
    driver: Arc<Driver>,
    workspace: Arc<Mutex<Workspace>>,
    maps: Arc<Mutex<HashMap<(u64, Tiles), TensorMap>>>,
    set: KernelSet,
    /// Ops whose kernels for Hopper are wrong here, and why; none where nobody has looked.
    wrong: Option<BTreeMap<String, String>>,
    /// What was found to be faster than the default.
    table: Option<Arc<Table>>,
    /// The tiles of all products for Hopper.
    only: Option<Tile>,
}

/// Tensor maps that are kept: far more than a model and its pass have, for one number of tokens.
const MAPS: usize = 1 << 16;

#[derive(Debug)]
enum Driver {
    Cuda(Cuda),
    Emulated(Emulated),
}

/// Memory that ops use one after the other, each within itself.
#[derive(Debug, Default)]
struct Workspace {
    block: Option<Arc<Block>>,
    /// The memory plan has asked for it: it does not grow any more.
    reserved: bool,
    /// A graph is being captured, which could not follow it to another place.
    capturing: bool,
}

impl Gpu {
    /// The GPU of this number through the CUDA driver.
    pub fn cuda(ordinal: i32) -> Result<Gpu> {
        nvtx::check()?;
        Cuda::open(ordinal).map(|cuda| Gpu::new(Driver::Cuda(cuda)))
    }

    /// The emulator, running what a GPU of this compute capability would compile from PTX.
    pub fn emulated(capability: (u32, u32)) -> Result<Gpu> {
        nvtx::check()?;
        Emulated::open(capability).map(|emulated| Gpu::new(Driver::Emulated(emulated)))
    }

    fn new(driver: Driver) -> Gpu {
        let set = KernelSet::Auto;
        let (driver, workspace, maps) = (Arc::new(driver), Arc::default(), Arc::default());
        Gpu { driver, workspace, maps, set, wrong: None, table: None, only: None }
    }

    /// The same GPU with this choice of kernels.
    ///
    /// Errors where Hopper's are asked of a GPU that is none.
    pub fn with_kernels(self, set: KernelSet) -> Result<Gpu> {
        if set == KernelSet::Hopper && self.capability() != (9, 0) {
            let (name, (major, minor)) = (self.name(), self.capability());
            return Err(Error::device(format!(
                "kernels for Hopper run on compute capability 9.0; {name} is of {major}.{minor}: use auto or portable"
            )));
        }
        Ok(Gpu { set, ..self })
    }

    /// The same GPU, now that its kernels for Hopper are known to be right, but for those of these ops, and why.
    pub fn checked(self, wrong: BTreeMap<String, String>) -> Gpu {
        Gpu { wrong: Some(wrong), ..self }
    }

    /// The same GPU, whose choice goes by this table; without one by the default.
    pub fn tuned(self, table: Option<Table>) -> Gpu {
        Gpu { table: table.map(Arc::new), ..self }
    }

    /// The same GPU, every product of which for Hopper takes these tiles: for comparisons.
    pub fn only(self, tile: Tile) -> Gpu {
        Gpu { only: Some(tile), ..self }
    }

    /// The tiles of a product of these sizes, where they are not the default's.
    pub fn tile(&self, op: &str, sizes: &[usize]) -> Option<Tile> {
        self.only.or_else(|| choose(self.table.as_deref().filter(|_| self.chooses()), op, sizes))
    }

    /// The kernels that run, in a few words: the set, its table, and what is left out of it.
    pub fn kernels(&self) -> String {
        let set = match (self.set, &self.wrong) {
            (KernelSet::Hopper, _) => "hopper",
            (KernelSet::Auto, Some(_)) => "auto (hopper where it is predicted to be faster)",
            _ => "portable",
        };
        let out = self.wrong.iter().flatten().map(|(op, why)| format!(", {op} left out: {why}"));
        let table = self.wrong.as_ref().filter(|_| self.chooses()).map(|_| named(self.table.as_deref()));
        let table = table.map_or(String::new(), |table| format!(", {table}"));
        out.fold(format!("{set}{table}"), |all, one| all + &one)
    }

    /// Whether an op's kernels for Hopper may run.
    pub fn hopper(&self, op: &str) -> bool {
        match (self.set, &self.wrong) {
            (KernelSet::Hopper, _) => true,
            (KernelSet::Auto, Some(wrong)) => !wrong.contains_key(op),
            _ => false,
        }
    }

    /// Whether they run for those sizes alone that they are predicted to be the faster for, not for all that they take.
    pub fn chooses(&self) -> bool {
        self.set == KernelSet::Auto
    }

    /// Whether it is the emulator.
    pub fn is_emulated(&self) -> bool {
        matches!(&*self.driver, Driver::Emulated(_))
    }

    /// The CUDA driver's, where it is no emulator.
    pub(super) fn driver(&self) -> Option<&Cuda> {
        match &*self.driver {
            Driver::Cuda(cuda) => Some(cuda),
            Driver::Emulated(_) => None,
        }
    }

    /// Where it is on its machine's bus; nothing of the emulator.
    pub fn slot(&self) -> Result<Option<String>> {
        self.driver().map(Cuda::slot).transpose()
    }

    /// Marketing name, or `emulated (sm_80)`.
    pub fn name(&self) -> &str {
        match &*self.driver {
            Driver::Cuda(cuda) => &cuda.name,
            Driver::Emulated(emulated) => &emulated.name,
        }
    }

    /// Compute capability.
    pub fn capability(&self) -> (u32, u32) {
        match &*self.driver {
            Driver::Cuda(cuda) => cuda.capability,
            Driver::Emulated(emulated) => emulated.capability,
        }
    }

    /// Multiprocessors.
    pub fn processors(&self) -> usize {
        match &*self.driver {
            Driver::Cuda(cuda) => cuda.processors,
            Driver::Emulated(_) => super::emulated::PROCESSORS,
        }
    }

    /// Bytes that can be taken now. The emulator keeps more than them: the state of each byte, 40 bytes about the last
    /// accesses to every 1 to 16 that a launch touches, and copies of what the chunks write that run at a time.
    pub fn available(&self) -> Option<u64> {
        match &*self.driver {
            Driver::Cuda(cuda) => cuda.available().ok(),
            Driver::Emulated(_) => super::cpu::memory("/proc/meminfo", "MemAvailable:").map(|b| b / 16),
        }
    }

    /// Refuses, while launches are recorded, what a graph could not do again.
    fn idle(&self, does: &str) -> Result<()> {
        match self.held().capturing {
            true => Err(Error::device(format!("{does} while launches are captured"))),
            false => Ok(()),
        }
    }

    /// Memory of this many bytes, all zero.
    pub fn memory(&self, bytes: usize) -> Result<Memory> {
        self.idle("an allocation")?;
        let block = Arc::new(Block::new(&self.driver, "device memory", bytes)?);
        let mut memory = Memory { gpu: self.clone(), address: block.address, bytes, block };
        memory.fill(0)?;
        Ok(memory)
    }

    fn held(&self) -> MutexGuard<'_, Workspace> {
        self.workspace.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the workspace this large, once and for all: the memory plan knows the most that an op takes.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        let mut held = self.held();
        held.grow(&self.driver, bytes)?;
        held.reserved = true;
        Ok(())
    }

    /// Parts of the workspace, `(from, bytes)`, whose content is undefined; of an op until it returns.
    ///
    /// Errors where the parts of the op before are still held, or the workspace is too small and must not grow.
    pub fn workspace(&self, parts: Vec<(usize, usize)>) -> Result<Vec<Memory>> {
        let mut held = self.held();
        let bytes = parts.iter().map(|(from, bytes)| from + bytes).max().unwrap_or(0);
        let has = held.block.as_ref().map_or(0, |b| b.bytes);
        if bytes > has && (held.reserved || held.capturing) {
            let why =
                if held.reserved { "were reserved" } else { "are there, and a graph is being captured" };
            return Err(Error::device(format!("an op takes a workspace of {bytes} bytes, {has} {why}")));
        }
        let block = held.grow(&self.driver, bytes)?;
        let part = |&(from, bytes): &(usize, usize)| Memory {
            gpu: self.clone(),
            block: block.clone(),
            address: block.address + from as u64,
            bytes,
        };
        let memory = parts.iter().map(part).collect();
        if let Driver::Emulated(emulated) = &*self.driver {
            emulated.divide(block.address, parts)?;
        }
        Ok(memory)
    }

    /// Queues a kernel behind what was queued before.
    ///
    /// # Safety
    ///
    /// The arguments must be those of the kernel's signature in number, order and type, and what it reads and writes
    /// through them must be live memory that nobody else uses until it is done.
    pub unsafe fn launch(&self, kernel: &Kernel, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let _range = nvtx::range(kernel.op());
        match &*self.driver {
            // SAFETY: handed on.
            Driver::Cuda(cuda) => unsafe { cuda.launch(kernel, launch, arguments) },
            Driver::Emulated(emulated) => emulated.launch(kernel, launch, arguments),
        }
    }

    /// Waits for all that was queued.
    pub fn synchronize(&self) -> Result<()> {
        match &*self.driver {
            Driver::Cuda(cuda) => cuda.synchronize(),
            Driver::Emulated(_) => Ok(()),
        }
    }

    /// The map of an array that begins at `memory`'s first byte, made at the first call with these tiles: a map holds
    /// addresses and numbers, whoever's memory it is.
    pub fn tensor_map(&self, memory: &Memory, tiles: &Tiles) -> Result<TensorMap> {
        let rank = tiles.sizes.len();
        let fits = (1..=5).contains(&rank) && tiles.strides.len() + 1 == rank && tiles.tile.len() == rank;
        if !fits {
            return Err(Error::device(format!(
                "tensor map: {tiles:?}, expected 1 to 5 sizes, as many tile sides, one stride less"
            )));
        }
        let mut maps = self.maps.lock().unwrap_or_else(|e| e.into_inner());
        let key = (memory.address, tiles.clone());
        if let Some(map) = maps.get(&key) {
            return Ok(*map);
        }
        let map = match &*self.driver {
            Driver::Cuda(cuda) => cuda.tensor_map(memory.address, tiles),
            Driver::Emulated(emulated) => emulated.tensor_map(memory.address, tiles),
        }?;
        if maps.len() >= MAPS {
            maps.clear();
        }
        maps.insert(key, map);
        Ok(map)
    }

    /// Milliseconds that the device spends on what `body` queues; 0 on the emulator, which models no times.
    pub fn time(&self, body: impl FnOnce() -> Result<()>) -> Result<f32> {
        match &*self.driver {
            Driver::Cuda(cuda) => cuda.time(body),
            Driver::Emulated(_) => body().map(|()| 0.0),
        }
    }

    /// What each launch of `body` did, by kernel; nothing on a real GPU, which does not say.
    pub fn count(&self, body: impl FnOnce() -> Result<()>) -> Result<Vec<(&'static str, Counters)>> {
        match &*self.driver {
            Driver::Cuda(_) => body().map(|()| Vec::new()),
            Driver::Emulated(emulated) => emulated.count(body),
        }
    }

    /// Picks the emulator's schedule for later launches; a real GPU has its own.
    pub fn seed(&self, seed: u64) {
        if let Driver::Emulated(emulated) = &*self.driver {
            emulated.seed(seed);
        }
    }

    /// Has the emulator run `ptx` in place of what the build holds of `file`, before any launch of it.
    pub fn substitute(&self, file: &File, ptx: &str) -> Result<()> {
        match &*self.driver {
            Driver::Cuda(cuda) => Err(Error::device(format!("{}: other PTX is for the emulator", cuda.name))),
            Driver::Emulated(emulated) => emulated.substitute(file.stem, ptx),
        }
    }
}

impl Workspace {
    /// The block, after it has at least this size.
    fn grow(&mut self, driver: &Arc<Driver>, bytes: usize) -> Result<Arc<Block>> {
        if self.block.as_ref().is_some_and(|b| Arc::strong_count(b) > 1) {
            return Err(Error::device("the workspace is taken while the op before still holds it"));
        }
        match &self.block {
            Some(block) if block.bytes >= bytes => Ok(block.clone()),
            _ => {
                // The old one is given back first: the two need not fit together.
                self.block = None;
                let block = Arc::new(Block::new(driver, "the workspace", bytes)?);
                self.block = Some(block.clone());
                Ok(block)
            }
        }
    }
}

/// One allocation.
#[derive(Debug)]
struct Block {
    driver: Arc<Driver>,
    address: u64,
    bytes: usize,
}

impl Block {
    fn new(driver: &Arc<Driver>, name: &str, bytes: usize) -> Result<Block> {
        let address = match &**driver {
            Driver::Cuda(cuda) => cuda.allocate(bytes)?,
            Driver::Emulated(emulated) => emulated.allocate(name, bytes)?,
        };
        Ok(Block { driver: driver.clone(), address, bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match &*self.driver {
            Driver::Cuda(cuda) => cuda.free(self.address),
            Driver::Emulated(emulated) => emulated.free(self.address),
        }
    }
}

/// Memory on a GPU, given back when the last part of its allocation is dropped.
#[derive(Debug)]
pub struct Memory {
    gpu: Gpu,
    block: Arc<Block>,
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
        Arc::ptr_eq(&self.gpu.driver, &gpu.driver)
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the emulator's reports call it: the parameter of the last kernel that took it.
    pub fn rename(&self, name: &str) {
        if let Driver::Emulated(emulated) = &*self.gpu.driver
            && self.bytes == self.block.bytes
        {
            emulated.rename(self.address, name);
        }
    }

    fn within(&self, at: usize, bytes: usize) -> Result<u64> {
        match at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            true => Ok(self.address + at as u64),
            false => Err(Error::device(format!(
                "{bytes} bytes from {at} on leave the {} of a device array",
                self.bytes
            ))),
        }
    }

    /// Copies from the host, to byte `at` on.
    pub fn write(&mut self, at: usize, from: &[u8]) -> Result<()> {
        let to = self.within(at, from.len())?;
        self.gpu.idle("a copy to the device")?;
        match &*self.gpu.driver {
            Driver::Cuda(cuda) => cuda.write(to, from),
            Driver::Emulated(emulated) => emulated.write(to, from),
        }
    }

    /// Copies to the host, from byte `at` on, after all that was queued.
    pub fn read(&self, at: usize, to: &mut [u8]) -> Result<()> {
        let from = self.within(at, to.len())?;
        self.gpu.idle("a copy to the host")?;
        match &*self.gpu.driver {
            Driver::Cuda(cuda) => cuda.read(to, from),
            Driver::Emulated(emulated) => emulated.read(to, from),
        }
    }

    /// Copies from memory of the same GPU, behind what was queued.
    pub fn copy(&mut self, at: usize, from: &Memory, from_at: usize, bytes: usize) -> Result<()> {
        let (to, source) = (self.within(at, bytes)?, from.within(from_at, bytes)?);
        if !from.is_on(&self.gpu) {
            return Err(Error::device("a copy between two GPUs"));
        }
        match &*self.gpu.driver {
            Driver::Cuda(cuda) => cuda.copy(to, source, bytes),
            Driver::Emulated(emulated) => emulated.copy(to, source, bytes),
        }
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        match &*self.gpu.driver {
            Driver::Cuda(cuda) => cuda.fill(self.address, byte, self.bytes),
            Driver::Emulated(emulated) => emulated.fill(self.address, byte, self.bytes),
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
