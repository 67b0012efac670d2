//! The processes that share a run, each a rank of MPI, and what they say to each other: vectors that are gathered, gradients
//! that are summed, whether one has failed.
//!
//! What is asked of all ranks begins with a few numbers from each: whether it goes on, and how much it has to say. A rank
//! that has failed says so at the next of these, so none waits for it, and the error is told once.

use crate::device::Device;
use crate::device::nccl::{self, Comm, Id};
use crate::error::{Error, Message, Result, Setting, message};
use crate::tensor::Tensor;
use crate::train::cards::Exchange;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// In which order the gradients of the ranks are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Reduce {
    /// As a binary tree over the slices: the same bits for any number of ranks.
    Tree,
    /// A rank adds its slices one after the other, the all-reduce of MPI or NCCL the ranks: their number decides the order.
    Fast,
}

/// By which way gradients go from rank to rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Transport {
    /// By NCCL where every rank has it and a GPU of its own, else by MPI.
    #[default]
    Auto,
    /// From GPU to GPU.
    Nccl,
    /// Through the host's memory.
    Mpi,
}

/// The part of a step that is this process's.
#[derive(Clone)]
pub struct Share {
    /// Slices of a step, over all ranks.
    pub slices: usize,
    /// How sums of gradients are added.
    pub reduce: Reduce,
    /// Who has the others.
    pub ranks: Rc<Ranks>,
}

impl Default for Share {
    /// All of it, in one slice.
    fn default() -> Share {
        Share { slices: 1, reduce: Reduce::Tree, ranks: Rc::default() }
    }
}

impl Share {
    /// This process's slices.
    pub fn own(&self) -> Range<usize> {
        let (each, rank) = (self.slices / self.ranks.size, self.ranks.rank);
        each * rank..each * (rank + 1)
    }

    /// The items of each slice: as they come, cut where their sizes' sum is nearest below an equal share. A slice is empty where an
    /// item is larger than its share.
    pub fn cut(&self, sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
        let ends: Vec<usize> = sizes
            .scan(0, |end, n| {
                Some(*{
                    *end += n;
                    end
                })
            })
            .collect();
        let all = ends.last().copied().unwrap_or(0);
        let bound = |slice: usize| ends.partition_point(|&end| end * self.slices <= all * slice);
        (0..self.slices).map(|slice| bound(slice)..bound(slice + 1)).collect()
    }
}

/// What a rank does beside its own work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Until all are where they ask each other for something.
    pub wait: Duration,
    /// From there until it is had.
    pub exchange: Duration,
}

/// The processes of a run, as one of them sees them.
pub struct Ranks {
    /// This one's number.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// A rank has left the others in the middle of something: nothing more is to be asked of all.
    broken: Cell<bool>,
    spent: Cell<Spent>,
    /// The GPUs of all, where gradients go from one to the other.
    comm: OnceCell<Comm>,
    #[cfg(feature = "mpi")]
    world: Option<world::World>,
}

impl Default for Ranks {
    /// This process alone.
    fn default() -> Ranks {
        Ranks::of(1)
    }
}

impl Ranks {
    /// Joins the ranks that this process was started with, `size` by its starter's word. For the thread that trains.
    #[cfg(feature = "mpi")]
    pub fn join(size: usize) -> Result<Ranks> {
        let world = world::World::join()?;
        let (rank, found) = world.place();
        let (broken, comm) = (Cell::new(false), OnceCell::new());
        let ranks = Ranks { rank, size: found, broken, spent: Cell::default(), comm, world: Some(world) };
        if found != size {
            let what = format!("was started as one of {size} ranks, and its MPI library sees {found}");
            let hint =
                "take that library's mpirun, or srun with its own protocol (pmix: Open MPI, pmi2: MPICH)";
            return Err(Error::unsupported(format!("this process {what}: {hint} ({})", library())));
        }
        Ok(ranks)
    }

    /// So many, of which the first alone is there: for a plan.
    pub fn of(size: usize) -> Ranks {
        Ranks {
            rank: 0,
            size,
            broken: Cell::new(false),
            spent: Cell::default(),
            comm: OnceCell::new(),
            #[cfg(feature = "mpi")]
            world: None,
        }
    }

    /// Whether this is the rank that writes and tells.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// What this rank has spent on the others since this was last asked.
    pub fn spent(&self) -> Option<Spent> {
        (self.size > 1).then(|| self.spent.take())
    }

    fn spend(&self, start: Instant, on: impl Fn(&mut Spent) -> &mut Duration) {
        let mut spent = self.spent.get();
        *on(&mut spent) += start.elapsed();
        self.spent.set(spent);
    }

    /// Whether all go on, and what each has to say. An error on any of them is one here.
    fn meet(&self, failed: bool, words: usize) -> Result<Vec<usize>> {
        let start = Instant::now();
        let said = self.exchange([u64::from(failed), words as u64]);
        self.spend(start, |spent| &mut spent.wait);
        match said.iter().position(|[failed, _]| *failed != 0) {
            Some(rank) => Err(Error::Elsewhere { rank }),
            None => Ok(said.into_iter().map(|[_, words]| words as usize).collect()),
        }
    }

    /// What every rank has to say, in their order.
    pub fn gather(&self, mine: &[u32]) -> Result<Vec<Vec<u32>>> {
        if self.size == 1 {
            return Ok(vec![mine.to_vec()]);
        }
        let (lengths, start) = (self.meet(false, mine.len())?, Instant::now());
        let said = self.collect(mine, &lengths);
        self.spend(start, |spent| &mut spent.exchange);
        Ok(said)
    }

    /// Every rank's bytes.
    fn bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let said = self.gather(&mine.iter().map(|&byte| byte.into()).collect::<Vec<u32>>())?;
        Ok(said.into_iter().map(|words| words.into_iter().map(|word| word as u8).collect()).collect())
    }

    /// The first rank's text, on all of them.
    pub fn tell(&self, text: &str) -> Result<String> {
        let said = self.bytes(if self.is_first() { text.as_bytes() } else { &[] })?.concat();
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Joins the GPUs of all ranks, where they can be. Gives the line that says how gradients go, where there is a choice.
    ///
    /// Errors where NCCL is wished for and one rank lacks what it takes, or NCCL fails.
    pub fn connect(&self, device: &Device, wish: Transport) -> Result<Option<Message>> {
        if self.size == 1 {
            return Ok(None);
        }
        let own = match wish {
            Transport::Mpi => Err("by its settings".into()),
            _ => card(device),
        };
        // What is in the way begins with a blank.
        let said = self.bytes(own.unwrap_or_else(|why| format!(" {why}")).as_bytes())?;
        let said: Vec<String> =
            said.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        match (hindrance(&said), device) {
            (Some(why), _) if wish == Transport::Nccl => {
                return Err(Error::device(message![Setting::Transport, format!(" nccl: {why}")]));
            }
            (Some(why), Device::Gpu(gpu)) if !gpu.is_emulated() => {
                return Ok(Some(format!("gradients: by MPI through the hosts' memory ({why})").into()));
            }
            (None, Device::Gpu(gpu)) => {
                let id = if self.is_first() { Id::new()?.0.to_vec() } else { Vec::new() };
                let Ok(id) = self.bytes(&id)?.concat().try_into().map(Id) else {
                    return Err(Error::device("NCCL's id has not come from rank 0"));
                };
                self.broken.set(true);
                let comm = Comm::join(gpu, id, self.rank, self.size).map_err(|e| self.own(e))?;
                self.broken.set(false);
                let _ = self.comm.set(comm);
            }
            _ => return Ok(None),
        }
        Ok(nccl::version().ok().map(|version| format!("gradients: by NCCL {version}").into()))
    }

    /// Whether gradients go from GPU to GPU; of a plan, whether they could.
    pub fn are_joined(&self, device: &Device) -> bool {
        let plan = self.size > 1 && self.is_plan();
        self.comm.get().is_some() || plan && matches!(device, Device::Gpu(gpu) if !gpu.is_emulated())
    }

    /// An error that is told here, for the others cannot be asked.
    fn own(&self, error: Error) -> Error {
        Error::Rank { rank: self.rank, error: Box::new(error) }
    }

    /// An error that names the ranks for which one of these, by SHA-256, is another than the first rank's.
    pub fn same(&self, things: &[(&str, [u8; 32])]) -> Result<()> {
        let words = |hash: &[u8; 32]| hash.map(u32::from);
        let all = self.gather(&things.iter().flat_map(|(_, hash)| words(hash)).collect::<Vec<_>>())?;
        for (i, (what, _)) in things.iter().enumerate() {
            let of = |rank: usize| &all[rank][i * 32..][..32];
            let others: Vec<_> =
                (0..self.size).filter(|&rank| of(rank) != of(0)).map(|r| r.to_string()).collect();
            if !others.is_empty() {
                let ranks = if others.len() == 1 { "rank" } else { "ranks" };
                let what =
                    format!("{ranks} {} of {} and rank 0 differ in {what}", others.join(", "), self.size);
                return Err(Error::unsupported(what));
            }
        }
        Ok(())
    }

    /// Leaves the sum over all ranks in each of these, the same bits on all, by the way of GPUs that are joined where there is
    /// `room` for it.
    pub fn sum<'a>(
        &self,
        device: &Device,
        tensors: impl Iterator<Item = &'a mut Tensor>,
        how: Reduce,
        room: Option<&mut Exchange>,
    ) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        self.meet(false, 0)?;
        let start = Instant::now();
        // Whoever fails in the middle leaves the others waiting: it ends without a word, and its starter ends them.
        self.broken.set(true);
        if let (Some(comm), Some(room)) = (self.comm.get(), room) {
            room.sum(device, comm, tensors).map_err(|e| self.own(e))?;
        } else {
            for tensor in tensors {
                let mut values = tensor.read_f32()?.into_owned();
                self.add(&mut values, how);
                tensor.write(&values)?;
            }
        }
        self.broken.set(false);
        self.spend(start, |spent| &mut spent.exchange);
        Ok(())
    }

    /// The end of something that all ranks do: where it failed on one, it has failed on all, and the first to fail says why.
    pub fn settle<T>(&self, ended: Result<T>) -> Result<T> {
        if self.size == 1
            || self.broken.get()
            || matches!(ended, Err(Error::Elsewhere { .. } | Error::Rank { .. }))
        {
            return ended;
        }
        // All know of a signal.
        let stopped = matches!(ended, Err(Error::Stopped { .. }));
        match self.meet(ended.is_err() && !stopped, 0) {
            Err(Error::Elsewhere { rank }) if rank == self.rank => {
                ended.map_err(|e| Error::Rank { rank, error: Box::new(e) })
            }
            Err(e) => Err(e),
            Ok(_) if stopped && !self.is_first() => Err(Error::Elsewhere { rank: 0 }),
            Ok(_) => ended,
        }
    }
}

/// Which GPU this is, of all machines', or why NCCL cannot be had.
fn card(device: &Device) -> std::result::Result<String, String> {
    let Device::Gpu(gpu) = device else { return Err("the CPU trains".into()) };
    let Some(slot) = gpu.slot().map_err(|e| e.to_string())? else { return Err("the emulator trains".into()) };
    nccl::version()?;
    // A machine that is started, by whichever name its containers call it.
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Ok(format!("{} {slot}", machine.trim()))
}

/// What keeps the ranks from joining their GPUs, by what each says of its own.
fn hindrance(said: &[String]) -> Option<String> {
    let lacks = said.iter().enumerate().find_map(|(rank, own)| Some((rank, own.strip_prefix(' ')?)));
    let shared = || {
        let pairs = (0..said.len()).flat_map(|rank| (0..rank).map(move |other| (other, rank)));
        pairs.into_iter().find(|&(other, rank)| said[other] == said[rank])
    };
    match lacks {
        Some((rank, why)) => Some(format!("rank {rank}: {why}")),
        None => shared().map(|(a, b)| format!("ranks {a} and {b} share a GPU, which NCCL refuses")),
    }
}

/// Without MPI there is one rank, which asks nobody.
#[cfg(not(feature = "mpi"))]
impl Ranks {
    fn is_plan(&self) -> bool {
        true
    }

    fn exchange(&self, mine: [u64; 2]) -> Vec<[u64; 2]> {
        vec![mine]
    }

    fn collect(&self, mine: &[u32], _: &[usize]) -> Vec<Vec<u32>> {
        vec![mine.to_vec()]
    }

    fn add(&self, _: &mut [f32], _: Reduce) {}
}

#[cfg(feature = "mpi")]
impl Ranks {
    fn is_plan(&self) -> bool {
        self.world.is_none()
    }

    fn exchange(&self, mine: [u64; 2]) -> Vec<[u64; 2]> {
        self.world.as_ref().map_or(vec![mine], |world| world.exchange(mine))
    }

    fn collect(&self, mine: &[u32], lengths: &[usize]) -> Vec<Vec<u32>> {
        self.world.as_ref().map_or(vec![mine.to_vec()], |world| world.collect(mine, lengths))
    }

    fn add(&self, values: &mut [f32], how: Reduce) {
        match (&self.world, how) {
            (Some(world), Reduce::Tree) => world.add_in_tree(values),
            (Some(world), Reduce::Fast) => world.add_fast(values),
            (None, _) => {}
        }
    }
}

#[cfg(feature = "mpi")]
impl Drop for Ranks {
    /// Takes leave of the others, unless they wait for something that will not come.
    fn drop(&mut self) {
        // The GPUs part before the processes do.
        drop(self.comm.take());
        if let Some(world) = self.world.take()
            && (self.broken.get() || std::thread::panicking())
        {
            std::mem::forget(world);
        }
    }
}

/// The MPI library of this build, in one line.
#[cfg(feature = "mpi")]
pub fn library() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    let words = version.lines().next().unwrap_or_default().trim_end_matches('\0').split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(feature = "mpi")]
mod world {
    use crate::error::{Error, Result};
    use mpi::Threading;
    use mpi::collective::SystemOperation;
    use mpi::datatype::{Partition, PartitionMut};
    use mpi::environment::Universe;
    use mpi::traits::{Communicator, CommunicatorCollectives};

    /// MPI, as long as this lives.
    pub struct World(Universe);

    impl World {
        pub fn join() -> Result<World> {
            match mpi::initialize_with_threading(Threading::Serialized) {
                Some((universe, _)) => Ok(World(universe)),
                None => Err(Error::unsupported("MPI was in use by this process before")),
            }
        }

        /// Rank and size.
        pub fn place(&self) -> (usize, usize) {
            let world = self.0.world();
            (world.rank() as usize, world.size() as usize)
        }

        /// Two numbers of every rank.
        pub fn exchange(&self, mine: [u64; 2]) -> Vec<[u64; 2]> {
            let mut all = vec![0; 2 * self.place().1];
            self.0.world().all_gather_into(&mine[..], &mut all[..]);
            all.as_chunks().0.to_vec()
        }

        /// So many words of every rank.
        pub fn collect(&self, mine: &[u32], lengths: &[usize]) -> Vec<Vec<u32>> {
            let (counts, starts) = layout(lengths);
            let mut all = vec![0; lengths.iter().sum()];
            let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
            self.0.world().all_gather_varcount_into(mine, &mut parts);
            let part = |(&n, &start): (&usize, &i32)| all[start as usize..][..n].to_vec();
            lengths.iter().zip(&starts).map(part).collect()
        }

        /// The sum over the ranks, added as a binary tree over their numbers: each adds its part of the elements, and tells it.
        pub fn add_in_tree(&self, values: &mut [f32]) {
            let (rank, size) = self.place();
            let n = values.len();
            let bounds: Vec<usize> = (0..=size).map(|r| r * n / size).collect();
            let lengths: Vec<usize> = bounds.windows(2).map(|b| b[1] - b[0]).collect();
            let (counts, starts) = layout(&lengths);
            let own = lengths[rank];
            let (from, at) = layout(&vec![own; size]);
            let mut parts = vec![0f32; own * size];
            {
                let send = Partition::new(&*values, &counts[..], &starts[..]);
                let mut receive = PartitionMut::new(&mut parts[..], &from[..], &at[..]);
                self.0.world().all_to_all_varcount_into(&send, &mut receive);
            }
            let mut apart = own;
            while own > 0 && apart < parts.len() {
                for pair in parts.chunks_mut(2 * apart) {
                    let (left, right) = pair.split_at_mut(apart);
                    left[..own].iter_mut().zip(&right[..own]).for_each(|(a, b)| *a += b);
                }
                apart *= 2;
            }
            let mut all = PartitionMut::new(values, &counts[..], &starts[..]);
            self.0.world().all_gather_varcount_into(&parts[..own], &mut all);
        }

        /// The sum over the ranks as MPI adds.
        pub fn add_fast(&self, values: &mut [f32]) {
            let mine = values.to_vec();
            self.0.world().all_reduce_into(&mine[..], values, SystemOperation::sum());
        }
    }

    /// Lengths and starts as MPI counts.
    fn layout(lengths: &[usize]) -> (Vec<i32>, Vec<i32>) {
        let counts = lengths.iter().map(|&n| n as i32).collect();
        let starts = lengths.iter().scan(0, |end, &n| {
            let start = *end;
            *end += n as i32;
            Some(start)
        });
        (counts, starts.collect())
    }
}
