//! The same kernels on a GPU, where one answers: what the emulator says a machine does is held against one.

use super::*;
use llm2vec::device::gpu::{self, Argument, Gpu, Memory, Tiles};
use llm2vec::device::images::{File, Image, Kernel};
use std::sync::OnceLock;

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

/// A kernel whose numbers the ISA does not give to the bit: matrix products sum in an order of the machine's own, and
/// `.approx` functions have errors.
pub fn is_exact(ptx: &str, kernel: &str) -> bool {
    let from = ptx.find(&format!(".entry {kernel}(")).unwrap_or(0);
    let text = &ptx[from..];
    let text = &text[..text[1..].find(".entry ").map_or(text.len(), |end| end + 1)];
    !["mma", ".approx", "call"].iter().any(|word| text.contains(word))
}

/// What [`run`] gives, by a GPU; nothing where none answers or it is not made for this PTX or these maps.
pub fn run(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) -> Option<Vec<Vec<u8>>> {
    if !answers() {
        return None;
    }
    // One for each run: kernels of different files may have one name.
    let gpu = Gpu::cuda(0).unwrap();
    let hopper = ptx.contains(".target sm_90a");
    if hopper && gpu.capability() != (9, 0) {
        println!("skipped on {}: {kernel} is for sm_90a", gpu.name());
        return None;
    }
    let [cluster, 1, 1] = launch.cluster else { return None };
    let bytes: &'static [u8] = Box::leak(format!("{ptx}\0").into_bytes().into_boxed_slice());
    let target = if hopper { "compute_90a" } else { "compute_80" };
    let images = Box::leak(Box::new([Image { target, bytes }]));
    let file: &'static File =
        Box::leak(Box::new(File { stem: "test", kernels: &[], images, resources: &[] }));
    let name: &'static str = Box::leak(kernel.to_string().into_boxed_str());
    let (mut arrays, mut maps) = (Vec::new(), Vec::new());
    for arg in args {
        let (Arg::In(bytes) | Arg::Map(bytes, _)) = arg else {
            arrays.push(if let Arg::Scratch(bytes) = arg { Some(gpu.memory(*bytes).unwrap()) } else { None });
            maps.push(None);
            continue;
        };
        let mut memory: Memory = gpu.memory(bytes.len()).unwrap();
        memory.write(0, bytes).unwrap();
        maps.push(match arg {
            Arg::Map(_, map) => Some(gpu.tensor_map(&memory, &tiles(map)?).unwrap()),
            _ => None,
        });
        arrays.push(Some(memory));
    }
    let mut values = Vec::new();
    for ((arg, array), map) in args.iter().zip(&arrays).zip(&maps) {
        values.push(match (arg, array, map) {
            (Arg::Int(n), ..) => Argument::I32(*n),
            (_, _, Some(map)) => Argument::Map(map),
            (_, Some(memory), None) => Argument::Address(memory.address()),
            _ => unreachable!("every other argument is an array"),
        });
    }
    let (grid, block, shared) = (launch.grid, launch.block, launch.shared as u32);
    let launch = gpu::Launch { grid, block, cluster, shared, overlap: false };
    // SAFETY: the arguments are those that the emulator has taken for this kernel, arrays are live until it is done.
    unsafe { gpu.launch(&Kernel { name, file }, launch, &values) }.unwrap();
    gpu.synchronize().unwrap();
    let read = |memory: &Memory| {
        let mut bytes = vec![0; memory.bytes()];
        memory.read(0, &mut bytes).unwrap();
        bytes
    };
    Some(arrays.iter().flatten().map(read).collect())
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
    for (ptx, kernel, exact) in [
        (BASICS, "vector_add", true),
        (BASICS, "block_scan", true),
        (BASICS, "scalar_zoo", false),
        (GEMM, "gemm", false),
    ] {
        assert_eq!(is_exact(ptx, kernel), exact, "{kernel}");
    }
}
