//! Launches that are recorded, and queued together as one graph.

use super::{Driver, Gpu};
use crate::device::{cuda, emulated};
use crate::error::Result;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A recorded sequence of launches.
pub struct Graph {
    gpu: Gpu,
    recording: Recording,
}

enum Recording {
    Cuda(cuda::Graph),
    Emulated(emulated::Graph),
}

impl Gpu {
    /// Records what `body` queues, which must not allocate, nor copy from or to the host, to be replayed at once.
    ///
    /// The memory that it uses must outlive the graph's last replay.
    pub fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.record(None, body)
    }

    /// [`Gpu::capture`]; an old graph of this GPU is brought up to the new recording where the driver can.
    fn record(&self, old: Option<Graph>, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.idle("a capture")?;
        self.held().capturing = true;
        let recording = match &*self.driver {
            Driver::Cuda(cuda) => {
                let old = old.and_then(|old| match old.recording {
                    Recording::Cuda(graph) => Some(graph),
                    Recording::Emulated(_) => None,
                });
                cuda.capture(old, body).map(Recording::Cuda)
            }
            Driver::Emulated(emulated) => emulated.capture(body).map(Recording::Emulated),
        };
        self.held().capturing = false;
        Ok(Graph { gpu: self.clone(), recording: recording? })
    }
}

impl Graph {
    /// Queues all of it.
    pub fn replay(&self) -> Result<()> {
        match (&*self.gpu.driver, &self.recording) {
            (Driver::Cuda(cuda), Recording::Cuda(graph)) => cuda.replay(graph),
            (Driver::Emulated(emulated), Recording::Emulated(graph)) => emulated.replay(graph),
            _ => unreachable!("a graph is of its own driver"),
        }
    }
}

/// Stretches of work between two copies from or to the host, each queued as one graph.
///
/// What a stretch launches follows from its pack and step: grids, sizes, the counters of dropout. So it is recorded every
/// time, and the executable graph of the last time is changed in place; only where the order or the number of its nodes is
/// another is there a new one. The default has no graphs: there, and on a CPU, a stretch is run as it comes.
#[derive(Clone, Default)]
pub struct Graphs {
    gpu: Option<Gpu>,
    ready: Rc<RefCell<HashMap<&'static str, Graph>>>,
}

impl Graphs {
    /// On a GPU; none where each kernel is waited for (`LLM2VEC_SYNC`), which a graph cannot do.
    pub fn of(gpu: &Gpu) -> Graphs {
        let waits = matches!(&*gpu.driver, Driver::Cuda(cuda) if cuda.waits());
        Graphs { gpu: (!waits).then(|| gpu.clone()), ready: Rc::default() }
    }

    /// Queues what `body` queues, under the conditions of [`Gpu::capture`]. Stretches of one name should be alike.
    pub fn run(&self, name: &'static str, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let _range = super::nvtx::range(name);
        let Some(gpu) = &self.gpu else { return body() };
        let old = self.ready.borrow_mut().remove(name);
        let graph = gpu.record(old, body)?;
        graph.replay()?;
        self.ready.borrow_mut().insert(name, graph);
        Ok(())
    }
}
