//! Runs PTX on the CPU, instruction by instruction, checked and counted. No GPU, driver or toolkit.
//!
//! It is memcheck, initcheck, racecheck, synccheck and a profiler for machines that have no GPU, for any kernel that
//! nvcc compiled:
//!
//! ```
//! use ptx_emulator::{Emulator, Launch, Module};
//! # fn main() -> ptx_emulator::Result<()> {
//! # let text = include_str!("../tests/conformance/ptx/basics.ptx");
//! let mut emulator = Emulator::new(Module::parse("basics.ptx", text)?)?;
//! let (a, b) = (emulator.allocate("a", 4 * 100), emulator.allocate("b", 4 * 100));
//! let c = emulator.allocate("c", 4 * 100);
//! emulator.write(a, &[0; 400])?;
//! emulator.write(b, &[0; 400])?;
//! let launch = Launch { grid: [2, 1, 1], block: [64, 1, 1], ..Launch::default() };
//! let args: [&[u8]; 4] = [&c.to_le_bytes(), &a.to_le_bytes(), &b.to_le_bytes(), &100i32.to_le_bytes()];
//! let counters = emulator.launch("vector_add", &launch, &args)?;
//! assert_eq!(counters.total.bytes, 3 * 400);
//! assert_eq!(emulator.read(c, 400)?, [0; 400]);
//! # Ok(())
//! # }
//! ```
//!
//! # What is modelled
//! - PTX as nvcc 13.0 writes it for sm_80 and sm_90a: integers, floats (rounding as the modifier says; `.approx`
//!   functions are rounded from f64, so they are better than the hardware's), f16 and bf16 and their pairs, all state
//!   spaces, calls, local arrays, atomics, shuffles, votes, `match`, `redux`, named barriers, `cp.async`, `ldmatrix`,
//!   `stmatrix`, `elect.sync`, and `mma.sync` m16n8 with f16, bf16 and tf32 elements and f32 or f16 sums, and with 8-bit
//!   integers (exact products, summed over rising k; see `numbers::mma`). Cache hints and policies are read and ignored.
//! - `wgmma` on f16, bf16 and tf32 with A from registers or shared memory, both majors, every swizzle (see `numbers::descriptor`).
//!   A product takes its registers and operands from the instruction to the wait that covers it, and is done at once
//!   under an odd seed, at that wait under an even one. `setmaxnreg` moves registers through the block's pool, which
//!   starts with all that the kernel's bounds allow.
//! - A module's variables, of 128 MiB together at most.
//! - Clusters in x, y and z, whose blocks run together: their special registers, barrier, and each other's shared memory
//!   (`mapa`). Programmatic launch: see [`Launch::overlap`].
//! - mbarriers with all that is done to them; bulk copies, tensor copies in 1 to 5 dimensions (tiled; see [`TensorMap`]),
//!   multicast, their reductions, prefetches (their rules), `st.async`, `red.async`. A copy is checked when it is issued. It arrives then (seeds
//!   1, 5, 9 …), when a wait that needs it asks a second time (0, 4, 8 …), or now so, now so. A wait at an mbarrier says
//!   no at first, then sleeps. The asynchronous proxy sees ordinary writes only behind a proxy fence, by whichever
//!   thread on the way from the write to the operation.
//! - Divergence: each lane has its own program counter (see `machine::warp`). Warps and up to 8 blocks at a time are
//!   interleaved by the launch's seed; the same seed gives the same run, on any number of cores (see `launch::chunks`).
//! - `cp.async`: its bytes may not be looked at, and its source not written, before the wait that covers them. Under an
//!   even seed they arrive at that wait, under an odd one at once.
//!
//! # What is reported
//! A finding is of a [`Kind`] and, but for the three [`Habit`]s of NVIDIA's own headers and samples, an error. An error ends
//! the launch as an [`Error`] that names the kernel, `file.cu:line` (compile with `-lineinfo`), block and thread;
//! [`Checks`] say whether habits are errors too, whether a launch keeps going where it can, and which kinds are notes, and
//! [`Emulator::findings`] gives what was noted, once for a kind and instruction, with its count. Found are out-of-bounds,
//! misaligned, freed and constant memory; reads of bytes or registers that
//! nothing has written (a register only when it reaches an address, a store, a branch, or what a barrier or a copy counts);
//! data races, with both sides; barriers and warp-wide instructions that not all lanes come to, or, where they are
//! `.aligned`, not at once; deadlocks; an instruction budget that is used up, each chunk of the grid having its own (see
//! `launch::chunks`). [`rules`] lists what a kernel for Hopper can break.
//! Of a warpgroup: registers touched under a product that no wait has covered; a missing `wgmma.fence`, proxy fence or
//! commit; bad descriptors, and operands that are out of bounds, not written, or written too late or too early; warps
//! that do not come to `wgmma` and `setmaxnreg` together or disagree; registers that the pool never has.
//! Of what runs beside the warps: ordinary writes that no proxy fence has made visible, `mbarrier.init` included; bytes
//! touched while a copy is under way to or from them; mbarriers that are not there, begun twice, come to too often, and
//! phases that lack arrivals or bytes; a block that leaves with copies under way or while others of its cluster may
//! touch its memory; tensor maps that are damaged or on the stack, boxes that begin within 16 bytes. A stored box ends at
//! whole 16 bytes, as the hardware's does. Of a kernel that overlaps the one before: what it touches too early.
//! A write that leaves a byte as it was is no race with another write. A failed `assert` is reported with its words.
//!
//! # How it is built
//!
//! ```text
//! isa -> numbers -> front
//!   \        \
//!    report -> machine -> exec -> launch -> Emulator
//! ```
//!
//! `isa` is the instruction set as plain data, an operation being one of eight families; `numbers` what instructions
//! compute, functions of registers alone; `front` reads PTX; `report` is what is found and counted; `machine` the state as
//! plain data; `exec` has a file for each family, whose matches name all of its members; `launch` runs a grid. None
//! uses one to its right.
//!
//! # What is not
//! `wgmma` on 8-bit and sparse operands; tensor copies by `im2col`, interleaved, or with maps changed on the device;
//! vector atomics; textures, surfaces, calls by address, `printf`; f64 with directed rounding; `.cc` on `mad`. Each is
//! refused by name: `printf` and such maps when they are come to, the others when the file is read. Fences, warp barriers,
//! waits at mbarriers, and those for `cp.async` that a warp has issued as one, order for their whole warp, so a race that
//! needs one lane's to be missing can be overlooked (an arrival at an mbarrier speaks for its own lanes only, and a wait
//! for bulk groups or for the kernel before for its own lane, until the warp comes to anything of the former). Lanes that
//! part at a branch are together again where its ways join, as the driver's compiler has it, so a `bar.warp.sync` that
//! stands there is not missed before an `.aligned` instruction. Scopes are taken at their widest: a fence or an atomic of
//! `.cta` orders as one of `.sys` does. A kernel that overlaps is held against the one before it, not against those before
//! that, which may still run if that one has not waited itself. A habit is known by its instructions: a read is the first of
//! a loop if some `atom.cas` behind it in the file compares with what it gave. A launch cannot keep going behind
//! barriers, deadlocks, what a warpgroup did wrong, `assert`, `trap` and a spent budget. Registers are counted, not limited. Times are not
//! modelled: clocks stand still.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod exec;
mod front;
mod isa;
mod launch;
mod machine;
mod numbers;
mod report;

pub use error::{Error, Kind, Result};
pub use isa::module::{Function, Module, Variable};
pub use isa::tensor_map::{Element, Swizzle, TensorMap};
pub use launch::{Args, Launch};
use machine::memory::{Memory, Region, State};
use machine::predecessor::Predecessor;
#[doc = include_str!("../RULES.md")]
pub mod rules {}

pub use report::checks::{Checks, Finding, Severity};
pub use report::counters::{Count, Counters};
pub use report::finding::Habit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Modules and the memory that they share: what a context is to the driver.
#[derive(Default)]
pub struct Emulator {
    /// What is an error.
    pub checks: Checks,
    /// What the last launch has noted.
    found: Vec<Finding>,
    memory: Memory,
    modules: Vec<Loaded>,
    /// The last kernel, if nothing has come behind it.
    last: Option<Predecessor>,
    /// The host has read since, so that it has ended.
    ended: AtomicBool,
}

struct Loaded {
    module: Arc<Module>,
    /// Addresses of its variables.
    symbols: Vec<u64>,
}

impl Loaded {
    fn has(&self, kernel: &str) -> bool {
        self.module.functions.iter().any(|f| f.entry && f.name == kernel)
    }
}

impl Emulator {
    /// One with a first module.
    pub fn new(module: Module) -> Result<Emulator> {
        let mut emulator = Emulator::default();
        emulator.load(Arc::new(module))?;
        Ok(emulator)
    }

    /// Loads a module: its variables get memory and their initial values. Kernels of all modules have different names.
    pub fn load(&mut self, module: Arc<Module>) -> Result<()> {
        let known = |name: &str| self.modules.iter().any(|m| m.has(name));
        let twice = module.functions.iter().find(|f| f.entry && known(&f.name));
        if let Some(twice) = twice {
            let what = format!("{}: a second kernel {}", module.name, twice.name);
            return Err(Error::Usage(what));
        }
        let first = self.memory.regions.len();
        let memory = &mut self.memory;
        let mut symbols = Vec::new();
        for (variable, constant) in &module.globals {
            let mut region = Region::new(&variable.name, variable.size);
            // CUDA zeroes what has no initialiser.
            region.data.fill(0);
            region.mark(0, variable.size, State::Written);
            region.data[..variable.init.len()].copy_from_slice(&variable.init);
            region.constant = *constant;
            symbols.push(memory.add(region));
        }
        for (i, (variable, _)) in module.globals.iter().enumerate() {
            for (at, name) in &variable.init_addresses {
                let other = module.globals.iter().position(|(v, _)| v.name == *name);
                let address = other.map_or(0, |o| symbols[o]);
                memory.regions[first + i].data[*at..at + 8].copy_from_slice(&address.to_le_bytes());
            }
        }
        self.modules.push(Loaded { module, symbols });
        Ok(())
    }

    /// Global memory that nothing has written, named for messages; gives its device address.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> u64 {
        self.memory.add(Region::new(name, bytes))
    }

    /// Gives memory back; a kernel that touches it afterwards is reported.
    pub fn free(&mut self, address: u64) -> Result<()> {
        let region = self.region(address, 0)?.0;
        let region = &mut self.memory.regions[region];
        *region = Region { freed: true, ..Region::new(&region.name, 0) };
        Ok(())
    }

    /// Gives memory another name for messages.
    pub fn rename(&mut self, address: u64, name: &str) -> Result<()> {
        let region = self.region(address, 0)?.0;
        let region = &mut self.memory.regions[region];
        if *region.name != *name {
            region.name = name.into();
        }
        Ok(())
    }

    /// Makes an allocation anew: parts `(from, bytes)` that nothing has written, and the rest for nobody to touch.
    pub fn divide(&mut self, address: u64, parts: &[(usize, usize)]) -> Result<()> {
        let (region, at) = self.region(address, 0)?;
        let region = &mut self.memory.regions[region];
        region.state.fill(State::Guard);
        for (from, bytes) in parts {
            region.data[at + from..at + from + bytes].fill(0xa5);
            region.mark(at + from, *bytes, State::Unwritten);
        }
        Ok(())
    }

    /// The bytes of a `const __grid_constant__ CUtensorMap` parameter; the array must be wholly within an allocation.
    pub fn tensor_map(&self, map: &TensorMap) -> Result<[u8; 128]> {
        let encoded = map.encode()?;
        let last = map.sizes[1..]
            .iter()
            .zip(&map.strides)
            .try_fold(0u64, |n, (size, stride)| n.checked_add((size - 1).checked_mul(*stride)?));
        let bytes = last.and_then(|n| n.checked_add(map.sizes[0].checked_mul(map.element.size() as u64)?));
        match bytes.and_then(|n| usize::try_from(n).ok()) {
            Some(bytes) => self.region(map.address, bytes).map(|_| encoded),
            None => {
                let what = format!("tensor map: {:?} by {:?} has no end", map.sizes, map.strides);
                Err(Error::Finding { kind: Kind::OutOfBounds, what })
            }
        }
    }

    /// Copies from the host.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let (region, at) = self.region(address, bytes.len())?;
        let region = &mut self.memory.regions[region];
        region.data[at..at + bytes.len()].copy_from_slice(bytes);
        region.mark(at, bytes.len(), State::Written);
        self.last = None;
        Ok(())
    }

    /// Sets every byte.
    pub fn fill(&mut self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        let (region, at) = self.region(address, bytes)?;
        let region = &mut self.memory.regions[region];
        region.data[at..at + bytes].fill(byte);
        region.mark(at, bytes, State::Written);
        self.last = None;
        Ok(())
    }

    /// Copies to the host; all of it must have been written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let (region, at) = self.region(address, bytes)?;
        self.ended.store(true, Ordering::Relaxed);
        let region = &self.memory.regions[region];
        region
            .readable(at, bytes)
            .map_err(|(kind, what)| Error::Finding { kind, what: format!("copy to the host: {what}") })?;
        Ok(region.data[at..at + bytes].to_vec())
    }

    fn region(&self, address: u64, bytes: usize) -> Result<(usize, usize)> {
        let found = self.memory.find(address).filter(|(r, at)| {
            let region = &self.memory.regions[*r];
            *at >= 0 && !region.freed && *at as usize + bytes <= region.data.len()
        });
        let found = found.map(|(r, at)| (r, at as usize));
        found.ok_or_else(|| {
            let what = format!("{bytes} bytes at {address:#x} are in no allocation");
            Error::Finding { kind: Kind::OutOfBounds, what }
        })
    }

    /// What the last launch has noted, by instruction: its notes, and, where it kept going, its errors, which
    /// [`Emulator::launch`] did not give. The one that ended it is not among them.
    pub fn findings(&self) -> &[Finding] {
        &self.found
    }

    /// Runs a kernel to its end and counts what it did; the first finding that is an error ends it: see [`Checks`].
    pub fn launch(&mut self, kernel: &str, launch: &Launch, args: &Args<'_>) -> Result<Counters> {
        let holder = self.modules.iter().position(|m| m.has(kernel));
        let Some(Loaded { module, symbols }) = self.modules.get(holder.unwrap_or(0)) else {
            return Err(Error::Usage(format!("no module is loaded, so there is no kernel {kernel}")));
        };
        let may_run = !self.ended.swap(false, Ordering::Relaxed) && launch.overlap && launch.seed & 1 == 1;
        let before = self.last.take().filter(|_| may_run);
        let how = (before.as_ref(), &self.checks);
        let (ran, found) = launch::check::run(module, &mut self.memory, symbols, kernel, launch, args, how);
        self.found = found;
        let ran = ran?;
        self.last = Some(Predecessor { kernel: kernel.to_string(), module: module.clone() });
        Ok(ran)
    }
}
