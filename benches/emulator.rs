//! `cargo bench --bench emulator`: lane-instructions a second of the emulator with every check on, on one core and on all.
//!
//! Arithmetic without memory, a sum of vectors, a matrix product (`cp.async`, `ldmatrix`, `mma.sync`), ops of our own, and the
//! whole case table. Of a matrix product and an attention by `wgmma` it is multiplications a second. `taskset -c 0` makes all
//! cores one.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm2vec::bench::cases;
use llm2vec::bench::subject::{Operands, Subject};
use llm2vec::device::Device;
use llm2vec::device::emulator::{Count, Element, Emulator, Launch, Module, Swizzle, TensorMap};
use llm2vec::device::gpu::Gpu;
use llm2vec::launches as kernels;
use std::sync::Arc;
use std::time::Duration;

const ARITHMETIC: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry arithmetic(.param .u64 out, .param .u32 n)
{
    .reg .pred %p; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %d<4>;
    ld.param.u64 %d0, [out]; ld.param.u32 %r0, [n];
    mov.u32 %r1, %tid.x; mov.u32 %r2, 0; mov.u32 %r3, 7; mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f3F000000;
again:
    mad.lo.u32 %r3, %r3, %r1, %r2;
    xor.b32 %r4, %r3, %r2;
    shl.b32 %r5, %r4, 3;
    add.u32 %r3, %r5, %r3;
    fma.rn.f32 %f2, %f0, %f1, %f1;
    mul.f32 %f3, %f2, %f1;
    add.f32 %f0, %f3, %f1;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p, %r2, %r0;
    @%p bra again;
    cvta.to.global.u64 %d1, %d0;
    mov.u32 %r4, %ctaid.x;
    mad.lo.u32 %r1, %r4, 128, %r1;
    mul.wide.u32 %d2, %r1, 4;
    add.u64 %d3, %d1, %d2;
    cvt.rn.f32.u32 %f1, %r3;
    add.f32 %f0, %f0, %f1;
    st.global.f32 [%d3], %f0;
    ret;
}
";

/// An argument: an array of so many bytes, with values or without, the tensor map of such an array of bf16, rows by columns, in
/// boxes of 64 x 64, or a number as the parameter's bytes.
enum Arg {
    In(usize),
    Out(usize),
    InMap(usize, usize),
    OutMap(usize, usize),
    Number(Vec<u8>),
}

fn int(n: i32) -> Arg {
    Arg::Number(n.to_le_bytes().into())
}

/// A kernel with its arguments, ready to be launched again and again.
struct Foreign {
    emulator: Emulator,
    kernel: &'static str,
    launch: Launch,
    values: Vec<Vec<u8>>,
}

impl Foreign {
    fn new(ptx: &str, kernel: &'static str, grid: u32, block: u32, shared: usize, args: Vec<Arg>) -> Foreign {
        let mut emulator = Emulator::default();
        emulator.load(Arc::new(Module::parse(kernel, ptx).unwrap())).unwrap();
        let array = |emulator: &mut Emulator, bytes: usize, holds: bool| {
            let address = emulator.allocate("array", bytes);
            if holds {
                // 0.5, 1.0 and 2.0 as bf16, and as f32 numbers near to them.
                let values: Vec<u8> =
                    (0..bytes / 2).flat_map(|i| [0x3f00u16, 0x3f80, 0x4000][i % 3].to_le_bytes()).collect();
                emulator.write(address, &values).unwrap();
            }
            address
        };
        let map = |emulator: &mut Emulator, rows: usize, columns: usize, holds: bool| {
            let map = TensorMap {
                element: Element::Bf16,
                address: array(emulator, 2 * rows * columns, holds),
                sizes: vec![columns as u64, rows as u64],
                strides: vec![2 * columns as u64],
                tile: vec![64, 64],
                steps: vec![1, 1],
                swizzle: Swizzle::B128,
            };
            emulator.tensor_map(&map).unwrap().to_vec()
        };
        let values = args.into_iter().map(|arg| match arg {
            Arg::In(bytes) => array(&mut emulator, bytes, true).to_le_bytes().to_vec(),
            Arg::Out(bytes) => array(&mut emulator, bytes, false).to_le_bytes().to_vec(),
            Arg::InMap(rows, columns) => map(&mut emulator, rows, columns, true),
            Arg::OutMap(rows, columns) => map(&mut emulator, rows, columns, false),
            Arg::Number(bytes) => bytes,
        });
        let values = values.collect();
        let launch = Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared, ..Launch::default() };
        Foreign { emulator, kernel, launch, values }
    }

    /// Launches it; gives what it did.
    fn run(&mut self, workers: usize) -> Count {
        let values: Vec<&[u8]> = self.values.iter().map(Vec::as_slice).collect();
        let launch = Launch { workers, ..self.launch };
        self.emulator.launch(self.kernel, &launch, &values).unwrap().total
    }

    /// Times it, on one core and on all.
    fn time(&mut self, c: &mut Criterion, elements: impl Fn(&Count) -> u64) {
        let count = self.run(1);
        let mut group = c.benchmark_group(self.kernel);
        settings(&mut group, elements(&count));
        for (name, workers) in [("one core", 1), ("all cores", 0)] {
            group.bench_function(name, |b| b.iter(|| self.run(workers)));
        }
    }
}

fn settings(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, lanes: u64) {
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group.sample_size(20).throughput(Throughput::Elements(lanes));
}

/// PTX that is not ours.
fn foreign(c: &mut Criterion) {
    const BASICS: &str = include_str!("../src/emulator/tests/conformance/ptx/basics.ptx");
    const GEMM: &str = include_str!("../src/emulator/tests/conformance/ptx/gemm.ptx");
    let (n, m, k) = (1 << 18, 256usize, 512usize);
    let mut subjects = [
        Foreign::new(ARITHMETIC, "arithmetic", 64, 128, 0, vec![Arg::Out(64 * 512), int(1000)]),
        Foreign::new(
            BASICS,
            "vector_add4",
            (n / 128) as u32,
            128,
            0,
            vec![Arg::Out(16 * n), Arg::In(16 * n), Arg::In(16 * n), int(n as i32)],
        ),
        Foreign::new(
            GEMM,
            "gemm",
            16,
            128,
            0,
            vec![Arg::Out(4 * m * m), Arg::In(2 * m * k), Arg::In(2 * m * k), int(m as i32), int(k as i32)],
        ),
    ];
    subjects[2].launch.grid = [4, 4, 1];
    subjects.iter_mut().for_each(|subject| subject.time(c, |count| count.lanes));
}

/// The same with products of warpgroups.
fn warpgroups(c: &mut Criterion) {
    const GEMM: &str = include_str!("../src/emulator/tests/conformance/ptx/gemm_sm90.ptx");
    const ATTENTION: &str = include_str!("../src/emulator/tests/conformance/ptx/attention_sm90.ptx");
    let (m, n, k) = (512, 256, 512);
    let args = vec![Arg::InMap(m, k), Arg::InMap(n, k), Arg::OutMap(m, n), int(k as i32)];
    let mut gemm = Foreign::new(GEMM, "gemm_k_major", 0, 384, 3 * 32768, args);
    (gemm.launch.grid, gemm.launch.cluster) = ([m as u32 / 128, n as u32 / 128, 1], [2, 1, 1]);
    let (t, heads) = (384, 2);
    let map = || Arg::InMap(t, heads * 128);
    let args = vec![map(), map(), map(), Arg::OutMap(t, heads * 128), int(t as i32)];
    let mut attention = Foreign::new(ATTENTION, "attention", 0, 288, 10 * 16384, args);
    attention.launch.grid = [t as u32 / 128, heads as u32, 1];
    for subject in [&mut gemm, &mut attention] {
        subject.time(c, |count| count.flops / 2);
    }
}

/// Whether this build holds kernels.
fn built() -> bool {
    kernels::FILES.iter().any(|f| !f.images.is_empty())
}

/// The largest case of some of our ops, on all cores, with the making of its launches.
fn ours(c: &mut Criterion) {
    if !built() {
        return;
    }
    let gpu = Gpu::emulated((8, 0)).unwrap();
    let device = Device::Gpu(gpu.clone());
    let (operands, mut cases) = (Operands::new(&device), cases::all());
    cases.sort_by_key(|case| std::cmp::Reverse(case.flops));
    for op in ["rmsnorm_fwd", "attention_fwd", "attention_bwd", "lora_linear_fwd", "lora_linear_bwd"] {
        let taken = cases.iter().filter(|case| case.op == op);
        let Some(mut subject) = taken.filter_map(|case| Subject::new(&operands, case).ok()).next() else {
            continue;
        };
        let counted = gpu.count(|| subject.call(&device)).unwrap();
        let mut group = c.benchmark_group(op);
        settings(&mut group, counted.iter().map(|(_, counters)| counters.total.lanes).sum());
        group.bench_function("all cores", |b| b.iter(|| subject.call(&device).unwrap()));
    }
}

/// Every case of the table that has kernels, one after the other.
fn table(c: &mut Criterion) {
    if !built() {
        return;
    }
    let gpu = Gpu::emulated((8, 0)).unwrap();
    let device = Device::Gpu(gpu.clone());
    let (operands, cases) = (Operands::new(&device), cases::all());
    let (mut subjects, mut lanes) = (Vec::new(), 0);
    for mut subject in cases.iter().filter_map(|case| Subject::new(&operands, case).ok()) {
        if let Ok(counted) = gpu.count(|| subject.call(&device)) {
            lanes += counted.iter().map(|(_, counters)| counters.total.lanes).sum::<u64>();
            subjects.push(subject);
        }
    }
    let mut group = c.benchmark_group("case table");
    settings(&mut group, lanes);
    group.sample_size(10);
    let each = |subjects: &mut Vec<Subject>| subjects.iter_mut().for_each(|s| s.call(&device).unwrap());
    group.bench_function("all cores", |b| b.iter(|| each(&mut subjects)));
}

criterion_group!(benches, foreign, warpgroups, ours, table);
criterion_main!(benches);
