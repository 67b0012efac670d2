//! Sums of gradients from GPU to GPU, without either: against a libnccl of our own (`tests/device/driver/libnccl.c`) beside the
//! false driver, which adds where it is to add. Each rank is this test in a process of its own.
#![cfg(target_os = "linux")]

use crate::answers::built;
use crate::command::{compiled, good, llm2vec};
use crate::driver::driver;
use llm2vec::device::gpu::Gpu;
use llm2vec::device::nccl::{self, Comm, Id};
use llm2vec::device::{DType, Device};
use llm2vec::error::Error;
use llm2vec::memory::Arena;
use llm2vec::rng::philox;
use llm2vec::tensor::Tensor;
use llm2vec::train::cards::Exchange;
use llm2vec::train::ranks::Reduce;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Elements of the gradients: more than an exchange takes at a time, fewer, none that four ranks share alike.
const SIZES: [usize; 6] = [1, 7, 1000, 64, 129, 3];
/// Elements of an exchange.
const ROOM: usize = 300;

/// The folder of the false driver and the false NCCL, compiled.
fn libraries(flags: &[&str]) -> Option<tempfile::TempDir> {
    let dir = driver().filter(|_| built())?;
    compiled(dir.path(), "libnccl.so.2", "libnccl.c", flags).then_some(dir)
}

/// This test as one of the ranks, with these settings.
fn rank(test: &str, dir: &Path, [rank, ranks]: [usize; 2], env: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("nccl::{test}"), "--exact", "--nocapture"])
        .envs([("LD_LIBRARY_PATH", dir), ("TMPDIR", dir), ("FAKE_LOG", &dir.join(format!("log-{rank}")))])
        .envs([("FAKE_APPEND", "1"), ("FAKE_RANK", &format!("{rank} {ranks}"))])
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn passed(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Which rank this process is, of how many.
fn place() -> Option<[usize; 2]> {
    let text = std::env::var("FAKE_RANK").ok()?;
    let (rank, ranks) = text.split_once(' ').unwrap();
    Some([rank, ranks].map(|n| n.parse().unwrap()))
}

/// The ranks' communicator; its id comes through a file.
fn joined(gpu: &Gpu, [rank, ranks]: [usize; 2]) -> Result<Comm, Error> {
    let file = std::env::temp_dir().join("id");
    if rank == 0 {
        fs::write(file.with_extension("part"), Id::new()?.0).unwrap();
        fs::rename(file.with_extension("part"), &file).unwrap();
    }
    while !file.exists() {
        sleep(Duration::from_millis(1));
    }
    Comm::join(gpu, Id(fs::read(file).unwrap().try_into().unwrap()), rank, ranks)
}

/// A rank's gradients: numbers of sizes so apart that another order of sums shows.
fn gradients(rank: usize) -> Vec<Vec<f32>> {
    let number = |tensor: usize, i: usize| {
        let [bits, size, ..] = philox([i as u32, tensor as u32, rank as u32, 0], [3, 5]);
        (f64::from(bits) / f64::from(u32::MAX) - 0.5) as f32 * 2f32.powi((size % 12) as i32)
    };
    (0..SIZES.len()).map(|t| (0..SIZES[t]).map(|i| number(t, i)).collect()).collect()
}

/// The sum over the ranks, as a tree or one after the other.
fn summed(ranks: usize, how: Reduce) -> Vec<Vec<f32>> {
    let add = |a: Vec<Vec<f32>>, b: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
        let sums = |(a, b): (Vec<f32>, Vec<f32>)| a.iter().zip(&b).map(|(a, b)| a + b).collect();
        a.into_iter().zip(b).map(sums).collect()
    };
    let mut all: Vec<Vec<Vec<f32>>> = (0..ranks).map(gradients).collect();
    if how == Reduce::Fast {
        return all.into_iter().reduce(add).unwrap();
    }
    while all.len() > 1 {
        all = all.chunks(2).map(|pair| add(pair[0].clone(), pair[1].clone())).collect();
    }
    all.remove(0)
}

/// Sums the gradients of all ranks, twice over.
fn exchanged(place: [usize; 2], how: Reduce) -> Result<Vec<Vec<f32>>, Error> {
    let gpu = Gpu::cuda(0)?;
    let (device, comm) = (Device::Gpu(gpu.clone()), joined(&gpu, place)?);
    let mut arena = Arena::new(&device);
    let mut room = Exchange::new(&mut arena, place[1], ROOM, how == Reduce::Tree);
    arena.finish()?;
    let mut sums = || -> Result<Vec<Vec<f32>>, Error> {
        let own = gradients(place[0]);
        let upload = |values: &Vec<f32>| {
            let host = Tensor::from_f64(DType::F32, &[values.len()], values.iter().map(|&x| x.into()));
            host.to_gpu(&gpu, DType::F32).unwrap()
        };
        let mut tensors: Vec<Tensor> = own.iter().map(upload).collect();
        room.sum(&device, &comm, tensors.iter_mut())?;
        tensors.iter().map(|tensor| Ok(tensor.read_f32()?.into_owned())).collect()
    };
    let (first, second) = (sums()?, sums()?);
    assert!(first == second, "what an exchange leaves behind is in the next");
    Ok(first)
}

/// Every rank has the sum of all, in the order of the sum through the host; and the calls are those that a group has to have.
#[test]
fn gradients_are_summed_from_gpu_to_gpu() {
    let how = how_of(std::env::var_os("FAKE_FAST").is_some());
    if let Some(place) = place() {
        let wanted = summed(place[1], how);
        assert!(exchanged(place, how).unwrap() == wanted, "rank {} of {}", place[0], place[1]);
        return;
    }
    assert!(summed(4, Reduce::Tree) != summed(4, Reduce::Fast), "another order would not show");
    let name = "gradients_are_summed_from_gpu_to_gpu";
    for (ranks, fast) in [(1, false), (2, false), (4, false), (4, true)] {
        let Some(dir) = libraries(&[]) else { return };
        let env = [("FAKE_FAST", "1")];
        let started: Vec<Child> =
            (0..ranks).map(|r| rank(name, dir.path(), [r, ranks], &env[..usize::from(fast)])).collect();
        started.into_iter().for_each(|child| passed(&child.wait_with_output().unwrap()));
        let last = ranks - 1;
        let log = fs::read_to_string(dir.path().join(format!("log-{last}"))).unwrap();
        let calls: Vec<&str> = log.lines().filter(|line| line.starts_with("nccl")).collect();
        let sums = calls_of_a_sum(ranks, how_of(fast));
        let begin = ["ncclGetUniqueId 0".into(), format!("ncclCommInitRank {last}")];
        let begin = &begin[usize::from(last > 0)..];
        assert_eq!(calls, [begin, &sums, &sums, &[format!("ncclCommDestroy {last}")]].concat());
        // The tree is one of kernels.
        let gathers = sums.iter().filter(|call| call.starts_with("ncclAllGather")).count();
        let adds = log.lines().filter(|line| line.starts_with("add_fwd ")).count();
        assert_eq!(adds, 2 * gathers * (ranks - 1), "{log}");
    }
}

fn how_of(fast: bool) -> Reduce {
    if fast { Reduce::Fast } else { Reduce::Tree }
}

/// What a rank asks of NCCL, with the f32 of each call: parts are ROOM over the ranks, up to a multiple of 64; the last is
/// what is left.
fn calls_of_a_sum(ranks: usize, how: Reduce) -> Vec<String> {
    let part = |elements: usize| elements.div_ceil(ranks).next_multiple_of(64);
    let (room, mut left) = (part(ROOM) * ranks, SIZES.iter().sum::<usize>());
    let mut calls = Vec::new();
    while left > 0 {
        let load = left.min(room);
        if how == Reduce::Fast {
            calls.push(format!("ncclAllReduce {load}"));
        } else {
            let n = part(load);
            calls.push("ncclGroupStart 0".into());
            calls.extend((0..ranks).flat_map(|_| [format!("ncclSend {n}"), format!("ncclRecv {n}")]));
            calls.extend([format!("ncclGroupEnd {}", 2 * ranks), format!("ncclAllGather {n}")]);
        }
        left -= load;
    }
    assert!(calls.len() > 2, "more than one load");
    calls
}

/// Whatever NCCL refuses is one line, and what waits for others is ended by force.
#[test]
fn a_failure_is_one_line() {
    if let Some(place) = place() {
        let how = how_of(std::env::var_os("FAKE_FAST").is_some());
        let error = exchanged(place, how).unwrap_err().to_string();
        let expected = std::env::var("EXPECTED").unwrap();
        assert!(error.contains(&expected) && !error.contains('\n'), "{error}");
        return;
    }
    let system = "unhandled system error (NCCL_DEBUG=WARN says more)";
    for (call, end) in [
        ("ncclGetUniqueId", None),
        ("ncclCommInitRank", None),
        ("ncclGroupStart", Some("ncclCommAbort")),
        ("ncclSend", Some("ncclCommAbort")),
        ("ncclRecv", Some("ncclCommAbort")),
        ("ncclGroupEnd", Some("ncclCommAbort")),
        ("ncclAllGather", Some("ncclCommAbort")),
        ("ncclAllReduce", Some("ncclCommAbort")),
        ("ncclCommGetAsyncError", Some("ncclCommAbort")),
    ] {
        let Some(dir) = libraries(&[]) else { return };
        let expected = match call {
            "ncclCommGetAsyncError" => "NCCL failed: remote process exited".into(),
            call => format!("{call} failed: {system}"),
        };
        let mut env = vec![("FAKE_FAIL", call), ("EXPECTED", &expected)];
        // 600 is CUDA_ERROR_NOT_READY: a kernel waits for a rank that is gone.
        env.extend((call == "ncclCommGetAsyncError").then_some(("FAKE_QUERY", "600")));
        env.extend((call == "ncclAllReduce").then_some(("FAKE_FAST", "1")));
        passed(&rank("a_failure_is_one_line", dir.path(), [0, 1], &env).wait_with_output().unwrap());
        let log = fs::read_to_string(dir.path().join("log-0")).unwrap();
        let ended = log.lines().find(|l| l.starts_with("ncclCommAbort") || l.starts_with("ncclCommDestroy"));
        assert_eq!(ended.map(|l| &l[..l.len() - 2]), end, "{call}: {log}");
    }
}

/// What does not lie where it is said to is refused before NCCL hears of it.
#[test]
fn memory_that_is_too_small_is_refused() {
    let name = "memory_that_is_too_small_is_refused";
    if let Some(place) = place() {
        let gpu = Gpu::cuda(0).unwrap();
        let comm = joined(&gpu, place).unwrap();
        let (mut small, mut large) = (gpu.memory(12).unwrap(), gpu.memory(16).unwrap());
        let says = |result: Result<(), Error>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(comm.sum(&mut small, 4), "4 numbers do not lie in 12 bytes of Fake 0");
        says(comm.gather(&small, &mut large, 4), "4 numbers do not lie");
        says(comm.exchange(&large, [&mut small].into_iter(), 4), "4 numbers do not lie");
        says(comm.exchange(&large, [].into_iter(), 4), "0 parts for 1 ranks");
        let mut elsewhere = Gpu::cuda(0).unwrap().memory(16).unwrap();
        says(comm.sum(&mut elsewhere, 4), "do not lie");
        return;
    }
    let Some(dir) = libraries(&[]) else { return };
    passed(&rank(name, dir.path(), [0, 1], &[]).wait_with_output().unwrap());
}

/// `doctor` says which NCCL there is, or why not; an old one is none.
#[test]
fn doctor_knows_the_library() {
    let Some(dir) = libraries(&[]) else { return };
    let line = || {
        let mut command = llm2vec(&["doctor"]);
        command.env("LD_LIBRARY_PATH", dir.path());
        let said = good(command);
        said.lines().find(|line| line.contains("  nccl ")).unwrap().to_string()
    };
    assert_eq!(line(), "PASS  nccl      2.30.3, for ranks that have a GPU each");
    assert!(compiled(dir.path(), "libnccl.so.2", "libnccl.c", &["-DOLD"]));
    let old = line();
    assert!(old.starts_with("WARN") && old.contains("libnccl.so.2: it has no ncclSend: NCCL 2.7"), "{old}");
    fs::remove_file(dir.path().join("libnccl.so.2")).unwrap();
    // Where a system has the library, it is found all the same.
    if nccl::version().is_err() {
        let none = line();
        assert!(none.starts_with("WARN") && none.contains("libnccl.so.2 was not found"), "{none}");
    }
}
