//! The emulator as a GPU: memory, the workspace, recorded launches, and reports in the words of an op's parameters.

use crate::answers;

use llm2vec::device::gpu::{Gpu, Launch};
use llm2vec::device::{DType, Device};
use llm2vec::error::Result;
use llm2vec::launches::Draw;
use llm2vec::launches::dropout::{DropoutFwd, dropout_fwd};
use llm2vec::ops::attention::Heads;
use llm2vec::ops::embed::embed_fwd;
use llm2vec::ops::rope::rope_fwd;
use llm2vec::tensor::{Tensor, workspace_bytes};

/// An emulator, where there is something to run on it.
fn gpu() -> Option<Gpu> {
    answers::built().then(|| Gpu::emulated((8, 0)).unwrap())
}

fn level(gpu: &Gpu, shape: &[usize], value: f64) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_f64(DType::F32, shape, std::iter::repeat_n(value, n)).to_gpu(gpu, DType::Bf16).unwrap()
}

/// `y = x` for the `[n, 8]` of them: a dropout that keeps everything.
fn copy(gpu: &Gpu, y: &mut Tensor, x: &Tensor, n: i32) -> Result<()> {
    let launch = Launch::line((n as usize).div_ceil(256), 256);
    let dropout = Draw { key0: 1, key1: 2, least: 0, scale: 1.0, first: 0 };
    let arguments = DropoutFwd { y, x, n, c: 8, plane: 0, dropout };
    // SAFETY: on the emulator, which looks at every access.
    unsafe { dropout_fwd(gpu, launch, arguments) }
}

fn says<T>(result: Result<T>, words: &[&str]) {
    let said = result.err().map_or("nothing was wrong".into(), |e| e.to_string());
    assert!(words.iter().all(|w| said.contains(w)), "not {words:?}:\n{said}");
}

#[test]
fn reports_name_the_parameter_and_the_source_line() {
    let Some(gpu) = gpu() else { return };
    let (mut y, x) = (level(&gpu, &[4, 8], 0.0), level(&gpu, &[2, 8], 3.0));
    copy(&gpu, &mut y, &x, 2).unwrap();
    assert_eq!(y.to_f64()[..17], [[3.0; 16].as_slice(), &[0.0]].concat());
    let out = copy(&gpu, &mut y, &x, 3);
    says(out, &["dropout_fwd at ", "dropout.cu:", "read of 16 bytes, 0 bytes past the end of x (32 bytes)"]);
    drop(x);
    assert_eq!(y.clone().to_f64(), y.to_f64(), "a copy of its own");
    let other = Gpu::emulated((8, 0)).unwrap();
    says(copy(&other, &mut y.clone(), &y, 1), &["y is not on emulated (sm_80)"]);
}

#[test]
fn what_the_workspace_holds_is_unwritten_and_its_parts_are_apart() {
    let Some(gpu) = gpu() else { return };
    let mut y = level(&gpu, &[4, 8], 0.0);
    let take = || Tensor::workspace(&gpu, [(DType::Bf16, &[2, 8][..]), (DType::Bf16, &[3, 8][..])]);
    let [mut a, b] = take().unwrap();
    assert_eq!([a.shape(), b.shape()], [[2, 8], [3, 8]]);
    says(copy(&gpu, &mut y, &a, 2), &["uninitialised: read of the workspace+0"]);
    says(a.to_gpu(&gpu, DType::F32), &["uninitialised: read of the workspace+0"]);
    let x = level(&gpu, &[2, 8], 5.0);
    copy(&gpu, &mut a, &x, 2).unwrap();
    copy(&gpu, &mut y, &a, 2).unwrap();
    assert_eq!(y.to_f64()[15], 5.0);
    says(copy(&gpu, &mut a, &y, 3), &["write of 16 bytes at the workspace+32, between its variables"]);
    says(take(), &["taken while the op before still holds it"]);
    drop((a, b));
    let [a, _b] = take().unwrap();
    says(copy(&gpu, &mut y, &a, 1), &["uninitialised"]);
}

#[test]
fn the_workspace_grows_until_it_is_reserved() {
    let Some(gpu) = gpu() else { return };
    let take = |n: usize| Tensor::workspace(&gpu, [(DType::F32, &[n][..]), (DType::F64, &[n][..])]).map(drop);
    [10, 1000, 10].into_iter().try_for_each(take).unwrap();
    let needed = workspace_bytes(&[(DType::F32, &[2000]), (DType::F64, &[2000])]);
    assert_eq!(needed, 8192 + 256 + 16000);
    let mut inside = Ok(());
    let graph = gpu.capture(|| {
        inside = take(2000);
        take(10)
    });
    says(inside, &["an op takes a workspace of 24448 bytes, 12352 are there, and a graph is being captured"]);
    graph.unwrap();
    gpu.reserve(needed).unwrap();
    take(2000).unwrap();
    says(take(2001), &["24448 were reserved"]);
}

#[test]
fn a_recorded_graph_runs_when_it_is_replayed() {
    let Some(gpu) = gpu() else { return };
    let (mut y, x) = (level(&gpu, &[2, 8], 0.0), level(&gpu, &[2, 8], 3.0));
    let mut z = y.clone();
    let through = |y: &mut Tensor, z: &mut Tensor| {
        let [mut part] = Tensor::workspace(&gpu, [(DType::Bf16, &[2, 8][..])])?;
        copy(&gpu, &mut part, &x, 2)?;
        copy(&gpu, y, &part, 2)?;
        copy(&gpu, z, y, 1)
    };
    through(&mut y.clone(), &mut z.clone()).unwrap();
    let graph = gpu.capture(|| through(&mut y, &mut z)).unwrap();
    assert_eq!([y.to_f64()[0], z.to_f64()[0]], [0.0; 2]);
    let counted = gpu.count(|| graph.replay()).unwrap();
    assert_eq!(counted.iter().map(|(kernel, _)| *kernel).collect::<Vec<_>>(), ["dropout_fwd"; 3]);
    assert_eq!(
        (y.to_f64(), z.to_f64()[..9].to_vec()),
        (vec![3.0; 16], [[3.0; 8].as_slice(), &[0.0]].concat())
    );
    graph.replay().unwrap();
    // A report has the names of its own launch, not those of the last one recorded.
    let mut other = level(&gpu, &[2, 8], 0.0);
    let two = gpu.capture(|| copy(&gpu, &mut y, &other, 3).and_then(|()| copy(&gpu, &mut other, &x, 2)));
    says(two.unwrap().replay(), &["0 bytes past the end of x (32 bytes)"]);
    says(gpu.capture(|| gpu.memory(8).map(drop)), &["an allocation while launches are captured"]);
    says(
        gpu.capture(|| copy(&gpu, &mut y, &x, 2).and_then(|()| y.to_host().map(drop))),
        &["a copy to the host"],
    );
    assert_eq!(gpu.time(|| graph.replay()).unwrap(), 0.0);
}

#[test]
fn names_choose_the_generation() {
    let Some(_) = gpu() else { return };
    for (name, capability) in [("emulated", (8, 0)), ("emulated:80", (8, 0)), ("emulated:90", (9, 0))] {
        let Device::Gpu(gpu) = Device::by_name(name).unwrap() else { panic!("{name} is a GPU") };
        assert_eq!(gpu.capability(), capability);
        assert_eq!(gpu.name(), format!("emulated (sm_{}{})", capability.0, capability.1));
        // A portable kernel has PTX for both.
        let (mut y, x) = (level(&gpu, &[1, 8], 0.0), level(&gpu, &[1, 8], 3.0));
        copy(&gpu, &mut y, &x, 1).unwrap();
        assert_eq!(y.to_f64(), [3.0; 8]);
    }
    says(Device::by_name("emulated:75"), &["expected emulated, emulated:80 or emulated:90"]);
}

/// A kernel that meets a wrong index reads the first row in its place: there must be one.
#[test]
fn tables_without_rows_are_refused() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Gpu(gpu.clone());
    let ids = Tensor::zeros(DType::I32, &[2]).to_gpu(&gpu, DType::I32).unwrap();
    let out = embed_fwd(&device, &mut level(&gpu, &[2, 8], 0.0), &level(&gpu, &[0, 8], 0.0), &ids);
    says(out, &["embed_fwd", "a table without rows"]);
    let angles = Tensor::zeros(DType::F32, &[0, 8]).to_gpu(&gpu, DType::F32).unwrap();
    let heads = Heads { query: 1, key: 1, width: 16 };
    let out = rope_fwd(&device, &mut level(&gpu, &[2, 48], 0.0), &angles, &angles, &ids, heads);
    says(out, &["rope_fwd", "tables without positions"]);
}
