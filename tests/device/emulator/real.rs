//! The same kernels on a GPU, where one answers: what the emulator says a machine does is held against one.

use super::suite::*;
use crate::{answers, ptx};
use llm2vec::device::gpu::{self, Argument, Gpu, Memory, Tiles};
use llm2vec::device::images::{File, Image, Kernel};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether a GPU answers. Says why none does, once.
fn answers() -> bool {
    static ANSWERS: OnceLock<bool> = OnceLock::new();
    *ANSWERS.get_or_init(|| {
        let gpu = answers::cuda();
        if let Some(gpu) = &gpu {
            println!("the emulator's kernels run on {} too", gpu.name());
        }
        gpu.is_some()
    })
}

static RAN: AtomicUsize = AtomicUsize::new(0);
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Hands what a GPU gives for [`super::suite::run`] to a judge. What none does is said, with how many that makes.
pub fn also(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>], judge: impl Fn(&[Vec<u8>])) {
    let why = match run(ptx, kernel, launch, args) {
        Ok(there) => {
            RAN.fetch_add(1, Ordering::Relaxed);
            return judge(&there);
        }
        Err(why) => why,
    };
    let (ran, skipped) = (RAN.load(Ordering::Relaxed), 1 + SKIPPED.fetch_add(1, Ordering::Relaxed));
    println!("skipped on a GPU: {kernel}: {why} ({skipped} runs skipped, {ran} done so far)");
}

/// A kernel as the build would have given it, for good.
fn leaked(ptx: &str, kernel: &str, hopper: bool) -> Kernel {
    let bytes: &'static [u8] = Box::leak(format!("{ptx}\0").into_bytes().into_boxed_slice());
    let target = if hopper { "compute_90a" } else { "compute_80" };
    let images = Box::leak(Box::new([Image { target, bytes }]));
    let file: &'static File =
        Box::leak(Box::new(File { stem: "test", kernels: &[], images, resources: &[] }));
    Kernel { name: Box::leak(kernel.to_string().into_boxed_str()), file }
}

/// What [`super::suite::run`] gives, by a GPU; or why none does.
fn run(
    ptx: &str,
    kernel: &str,
    launch: &Launch,
    args: &[Arg<'_>],
) -> std::result::Result<Vec<Vec<u8>>, &'static str> {
    if !answers() {
        return Err("none answers");
    }
    // One for each run: kernels of different files may have one name.
    let gpu = Gpu::cuda(0).unwrap();
    let hopper = ptx.contains(".target sm_90a");
    if hopper && gpu.capability() != (9, 0) {
        return Err("it is for sm_90a");
    }
    let (mut arrays, mut maps) = (Vec::new(), Vec::new());
    for arg in args {
        let (start, bytes, map) = match arg {
            Arg::In(start) => (Some(*start), start.len(), None),
            Arg::Map(start, map) => (Some(*start), start.len(), Some(map)),
            Arg::Scratch(bytes) => (None, *bytes, None),
            Arg::ScratchMap(bytes, map) => (None, *bytes, Some(map)),
            Arg::Freed(_) => return Err("it touches freed memory"),
            Arg::Int(_) | Arg::Long(_) => {
                arrays.push(None);
                maps.push(None);
                continue;
            }
        };
        let mut memory: Memory = gpu.memory(bytes).unwrap();
        if let Some(start) = start {
            memory.write(0, start).unwrap();
        }
        maps.push(match map {
            Some(map) => {
                let tiles = tiles(map).ok_or("the driver layer makes no such map")?;
                Some(gpu.tensor_map(&memory, &tiles).unwrap())
            }
            None => None,
        });
        arrays.push(Some(memory));
    }
    let mut values = Vec::new();
    for ((arg, array), map) in args.iter().zip(&arrays).zip(&maps) {
        values.push(match (arg, array, map) {
            (Arg::Int(n), ..) => Argument::I32(*n),
            (Arg::Long(n), ..) => Argument::Address(*n),
            (_, _, Some(map)) => Argument::Map(map),
            (_, Some(memory), None) => Argument::Address(memory.address()),
            _ => unreachable!("every other argument is an array"),
        });
    }
    let (grid, block, cluster, shared) = (launch.grid, launch.block, launch.cluster, launch.shared as u32);
    let launch = gpu::Launch { grid, block, cluster, shared, overlap: false, persistent: false };
    // SAFETY: the arguments are those that the emulator has taken for this kernel, arrays are live until it is done.
    unsafe { gpu.launch(&leaked(ptx, kernel, hopper), launch, &values) }.unwrap();
    gpu.synchronize().unwrap();
    let read = |memory: &Memory| {
        let mut bytes = vec![0; memory.bytes()];
        memory.read(0, &mut bytes).unwrap();
        bytes
    };
    Ok(arrays.iter().flatten().map(read).collect())
}

/// The map as the driver layer takes it: of bf16 or f32, every element.
fn tiles(map: &TensorMap) -> Option<Tiles> {
    let float = match map.element {
        Element::F32 => true,
        Element::Bf16 => false,
        _ => return None,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => gpu::Swizzle::None,
        Swizzle::B32 => gpu::Swizzle::B32,
        Swizzle::B64 => gpu::Swizzle::B64,
        Swizzle::B128 => gpu::Swizzle::B128,
    };
    let (sizes, strides, tile) = (map.sizes.clone(), map.strides.clone(), map.tile.clone());
    map.steps.iter().all(|&s| s == 1).then_some(Tiles { float, sizes, strides, tile, swizzle })
}

#[test]
fn what_is_exact_is_read_from_the_kernel() {
    for (text, kernel, exact) in [
        (BASICS, "vector_add", true),
        (BASICS, "block_scan", true),
        (BASICS, "scalar_zoo", false),
        (GEMM, "gemm", false),
    ] {
        assert_eq!(ptx::is_exact(text, kernel), exact, "{kernel}");
    }
}
