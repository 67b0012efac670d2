//! `cargo bench --bench ops -- [filter]`: every op of the case table on the CPU at f32, and where a GPU answers on it too, there
//! by CUDA events with the level-2 cache emptied before each call.
//!
//! The cases are the tests' own, so what is timed is what is checked. `llm2vec bench ops` has the sizes of real models.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm2vec::bench::cases;
use llm2vec::bench::measure::{Clock, Operands, Subject};
use llm2vec::device::Device;
use llm2vec::device::gpu::Gpu;
use llm2vec::kernels;
use std::time::Duration;

fn devices() -> Vec<(&'static str, Device)> {
    let built = kernels::FILES.iter().any(|f| !f.images.is_empty());
    let gpu = if built { Gpu::cuda(0).ok() } else { None };
    [("cpu", Device::cpu())].into_iter().chain(gpu.map(|gpu| ("cuda", Device::Gpu(gpu)))).collect()
}

fn ops(c: &mut Criterion) {
    for (name, device) in devices() {
        let (operands, cases) = (Operands::new(&device), cases::all());
        let mut clock = Clock::new(&device).unwrap();
        for case in &cases {
            // A GPU takes not every size of the table.
            let Ok(mut subject) = Subject::new(&operands, case) else { continue };
            let mut group = c.benchmark_group(format!("{name}/{}", case.op));
            group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
            group.sample_size(20).throughput(Throughput::Bytes(case.bytes(&device)));
            group.bench_function(&case.label, |b| match &device {
                Device::Cpu(_) => b.iter(|| subject.call(&device)),
                Device::Gpu(_) => b.iter_custom(|calls| {
                    let one = |_| clock.time(1, || subject.call(&device)).unwrap();
                    Duration::from_secs_f64((0..calls).map(one).sum())
                }),
            });
        }
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
