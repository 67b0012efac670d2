//! `cargo bench --bench ops -- [filter]`: every op of the case table on the CPU at f32.
//!
//! The cases are the tests' own, so what is timed is what is checked.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm2vec::bench::cases;
use llm2vec::device::{DType, Device};
use std::time::Duration;

fn ops(c: &mut Criterion) {
    for case in cases::all() {
        let (mut outputs, inputs) = case.operands(DType::F32);
        let mut group = c.benchmark_group(case.op);
        group
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(20);
        group.throughput(Throughput::Bytes(4 * case.elements as u64));
        group.bench_function(&case.label, |b| b.iter(|| (case.run)(&Device::cpu(), &mut outputs, &inputs)));
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
