//! The emulator as a GPU: launchers, memory and graph are those of `cuda`; every instruction is checked and counted.

use super::emulator::{self, Counters, Emulator, Module};
use super::images::{Kernel, choose_ptx};
use super::launch::{Argument, Launch, TensorMap, Tiles};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Multiprocessors. So few make a grid that is sized by them walk its rows more than once.
pub const PROCESSORS: usize = 4;

/// Clusters of a persistent kernel that run at a time: two, which may meet, and have several tiles each to go on to.
const RESIDENT: u32 = 2;

/// An open emulator.
pub struct Emulated {
    /// `emulated (sm_80)`.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    state: Mutex<State>,
}

struct State {
    emulator: Emulator,
    /// Files whose PTX it has.
    loaded: Vec<&'static str>,
    seed: u64,
    counted: Option<Vec<(&'static str, Counters)>>,
    recorded: Option<Vec<Action>>,
}

/// What a stream does in order.
#[derive(Clone)]
enum Action {
    Launch { kernel: &'static str, launch: emulator::Launch, arguments: Vec<Vec<u8>> },
    Fill { address: u64, byte: u8, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Divide { address: u64, parts: Vec<(usize, usize)> },
    Rename { address: u64, name: String },
}

/// Recorded actions.
pub struct Graph(Vec<Action>);

impl std::fmt::Debug for Emulated {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Emulated {
    /// A GPU that runs the PTX which one of this compute capability would. `LLM2VEC_EMULATOR_SEED` picks the schedule.
    pub fn open(capability: (u32, u32)) -> Result<Emulated> {
        let seed = match std::env::var("LLM2VEC_EMULATOR_SEED") {
            Ok(text) => text.trim().parse().map_err(|_| {
                Error::usage(format!("LLM2VEC_EMULATOR_SEED={text}: expected a whole number from 0"))
            })?,
            Err(_) => 0,
        };
        let mut emulator = Emulator::default();
        // Our own kernels have no habits to be forgiven.
        emulator.checks.strict = true;
        let state = State { emulator, loaded: Vec::new(), seed, counted: None, recorded: None };
        let name = format!("emulated (sm_{}{})", capability.0, capability.1);
        Ok(Emulated { name, capability, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Picks the schedule of later launches.
    pub fn seed(&self, seed: u64) {
        self.state().seed = seed;
    }

    /// Memory that nothing has written, named for reports.
    pub fn allocate(&self, name: &str, bytes: usize) -> Result<u64> {
        Ok(self.state().emulator.allocate(name, bytes))
    }

    /// Gives it back.
    pub fn free(&self, address: u64) {
        // From `allocate`, freed once, by the one owner.
        let _ = self.state().emulator.free(address);
    }

    /// Names memory for reports.
    pub fn rename(&self, address: u64, name: &str) {
        let _ = self.state().queue(Action::Rename { address, name: name.into() });
    }

    /// Copies to the device.
    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        self.state().emulator.write(to, from).map_err(failure)
    }

    /// Copies to the host; all of it must have been written.
    pub fn read(&self, to: &mut [u8], from: u64) -> Result<()> {
        to.copy_from_slice(&self.state().emulator.read(from, to.len()).map_err(failure)?);
        Ok(())
    }

    /// Copies on the device; all of it must have been written.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.state().queue(Action::Copy { to, from, bytes })
    }

    /// Sets every byte.
    pub fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        self.state().queue(Action::Fill { address, byte, bytes })
    }

    /// Makes memory anew: parts `(from, bytes)` that nothing has written, and between them what nobody may touch.
    pub fn divide(&self, address: u64, parts: Vec<(usize, usize)>) -> Result<()> {
        self.state().queue(Action::Divide { address, parts })
    }

    /// Runs a kernel, or records it.
    pub fn launch(&self, kernel: &Kernel, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let mut state = self.state();
        if !state.loaded.contains(&kernel.file.stem) {
            let module = self.module(kernel)?;
            state.load(kernel.file.stem, module)?;
        }
        let (mut grid, block, shared) = (launch.grid, launch.block, launch.shared as usize);
        let (cluster, overlap) = (launch.cluster, launch.overlap);
        if launch.persistent {
            grid[0] = grid[0].min(RESIDENT * cluster[0]);
        }
        let launch =
            emulator::Launch { grid, block, cluster, shared, overlap, ..emulator::Launch::default() };
        let arguments = arguments.iter().map(bytes).collect();
        state.queue(Action::Launch { kernel: kernel.name, launch, arguments })
    }

    /// Parses a file's PTX once a process: tests open many emulators.
    fn module(&self, kernel: &Kernel) -> Result<Arc<Module>> {
        type Parsed = HashMap<(&'static str, &'static str), Arc<Module>>;
        static PARSED: Mutex<Option<Parsed>> = Mutex::new(None);
        let image = kernel.image(&self.name, self.capability, choose_ptx)?;
        let mut parsed = PARSED.lock().unwrap_or_else(|e| e.into_inner());
        let parsed = parsed.get_or_insert_default();
        let key = (kernel.file.stem, image.target);
        if let Some(module) = parsed.get(&key) {
            return Ok(module.clone());
        }
        let text = String::from_utf8_lossy(image.bytes.strip_suffix(b"\0").unwrap_or(image.bytes));
        let module = Module::parse(&format!("{}.{}.ptx", key.0, key.1), &text).map_err(failure)?;
        Ok(parsed.entry(key).or_insert(Arc::new(module)).clone())
    }

    /// Runs `ptx` in place of what the build holds of file `stem`, none of whose kernels has been launched here.
    pub fn substitute(&self, stem: &'static str, ptx: &str) -> Result<()> {
        let module = Module::parse(&format!("{stem}.ptx"), ptx).map_err(failure)?;
        self.state().load(stem, Arc::new(module))
    }

    /// What each launch of `body` did.
    pub fn count(&self, body: impl FnOnce() -> Result<()>) -> Result<Vec<(&'static str, Counters)>> {
        self.state().counted = Some(Vec::new());
        let done = body();
        let counted = self.state().counted.take();
        done.map(|()| counted.unwrap_or_default())
    }

    /// A tensor map.
    pub fn tensor_map(&self, address: u64, tiles: &Tiles) -> Result<TensorMap> {
        let map = emulator::TensorMap {
            element: if tiles.float { emulator::Element::F32 } else { emulator::Element::Bf16 },
            address,
            sizes: tiles.sizes.clone(),
            strides: tiles.strides.clone(),
            tile: tiles.tile.clone(),
            steps: vec![1; tiles.tile.len()],
            swizzle: tiles.swizzle,
        };
        let bytes = self.state().emulator.tensor_map(&map).map_err(failure)?;
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(TensorMap(words))
    }

    /// Records what `body` queues.
    pub fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.state().recorded = Some(Vec::new());
        let done = body();
        let recorded = self.state().recorded.take();
        done.map(|()| Graph(recorded.unwrap_or_default()))
    }

    /// Does what was recorded.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        let mut state = self.state();
        graph.0.iter().try_for_each(|action| state.queue(action.clone()))
    }
}

impl State {
    fn load(&mut self, stem: &'static str, module: Arc<Module>) -> Result<()> {
        self.emulator.load(module).map_err(failure)?;
        self.loaded.push(stem);
        Ok(())
    }

    fn queue(&mut self, action: Action) -> Result<()> {
        if let Some(recorded) = &mut self.recorded {
            recorded.push(action);
            return Ok(());
        }
        match action {
            Action::Launch { kernel, launch, arguments } => {
                let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
                let workers = rayon::current_num_threads();
                let launch = emulator::Launch { seed: self.seed, workers, ..launch };
                let counters = self.emulator.launch(kernel, &launch, &arguments).map_err(failure)?;
                if let Some(counted) = &mut self.counted {
                    counted.push((kernel, counters));
                }
                Ok(())
            }
            Action::Fill { address, byte, bytes } => {
                self.emulator.fill(address, byte, bytes).map_err(failure)
            }
            Action::Copy { to, from, bytes } => {
                let copied = self.emulator.read(from, bytes).map_err(failure)?;
                self.emulator.write(to, &copied).map_err(failure)
            }
            Action::Divide { address, parts } => self.emulator.divide(address, &parts).map_err(failure),
            Action::Rename { address, name } => self.emulator.rename(address, &name).map_err(failure),
        }
    }
}

/// What the emulator refuses or reports, as an error of ours. A `From` would leave many a `?` elsewhere with two choices.
pub fn failure(error: emulator::Error) -> Error {
    match error {
        emulator::Error::Usage(what) => Error::usage(what),
        emulator::Error::Ptx { file, what } => Error::file(file, what),
        emulator::Error::Finding { kind, what } => Error::Finding { kind, what },
    }
}

/// An argument as the parameter's bytes.
fn bytes(argument: &Argument) -> Vec<u8> {
    match argument {
        Argument::Null => vec![0; 8],
        Argument::Address(x) | Argument::U64(x) => x.to_le_bytes().into(),
        Argument::I32(x) => x.to_le_bytes().into(),
        Argument::U32(x) => x.to_le_bytes().into(),
        Argument::I64(x) => x.to_le_bytes().into(),
        Argument::F32(x) => x.to_le_bytes().into(),
        Argument::F64(x) => x.to_le_bytes().into(),
        Argument::Bytes(x) => x.to_vec(),
        Argument::Map(map) => map.0.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}
