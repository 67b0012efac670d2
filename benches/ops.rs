//! `cargo bench --bench ops -- [filter]`: every op of the case table on the CPU at f32; where a GPU answers on it too, with
//! the layers of four models at 16384 tokens, by CUDA events with the level-2 cache emptied before each call.
//!
//! The cases are the tests' own, so what is timed is what is checked.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm2vec::bench::cases::{self, large::large};
use llm2vec::bench::subject::{Clock, Operands, Subject};
use llm2vec::device::Device;
use std::time::Duration;

fn devices() -> Vec<(&'static str, Device)> {
    let automatic = Device::by_name("auto").ok().filter(|device| matches!(device, Device::Gpu(_)));
    [("cpu", Device::cpu())].into_iter().chain(automatic.map(|gpu| ("cuda", gpu))).collect()
}

fn ops(c: &mut Criterion) {
    for (name, device) in devices() {
        let (operands, mut cases) = (Operands::new(&device), cases::all());
        if let Device::Gpu(_) = device {
            cases.extend(cases::device_only().into_iter().chain(large(16384)));
        }
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
