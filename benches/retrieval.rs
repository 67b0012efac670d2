//! `cargo bench --bench retrieval`: exact top 1000 and top 10 of 1,000 queries over 98,304 documents of 1,024 numbers on
//! the CPU, against their products alone, in the same windows; at the end the ratios of the two, measured in turn.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm2vec::device::cpu::{Matrix, matmul};
use llm2vec::eval::nearest::Nearest;
use llm2vec::eval::similarity::normalize;
use std::hint::black_box;
use std::time::{Duration, Instant};

const QUERIES: usize = 1000;
const DOCUMENTS: usize = 98_304;
const WIDTH: usize = 1024;
const WINDOW: usize = 4096;
const KEPT: [usize; 2] = [1000, 10];
const ROUNDS: usize = 5;

/// Rows of random directions.
fn rows(n: usize, mut seed: u64) -> Vec<f32> {
    let number = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut rows: Vec<f32> = (0..n * WIDTH).map(number).collect();
    normalize(&mut rows, WIDTH);
    rows
}

fn products(queries: &[f32], documents: &[f32]) {
    let mut scores = vec![0.0; WINDOW * QUERIES];
    for window in documents.chunks(WINDOW * WIDTH) {
        let n = window.len() / WIDTH;
        let (a, b) = (Matrix::rows(window, n, WIDTH, WIDTH), Matrix::rows(queries, QUERIES, WIDTH, WIDTH));
        matmul(&mut scores, QUERIES, false, 1.0, a, b.t(), true);
        black_box(&scores);
    }
}

fn top(queries: &[f32], documents: &[f32], ids: &[String], k: usize) {
    let mut nearest = Nearest::new(queries.to_vec(), WIDTH, k);
    for (window, ids) in documents.chunks(WINDOW * WIDTH).zip(ids.chunks(WINDOW)) {
        nearest.add(window, ids, |_, _| false);
    }
    assert_eq!(black_box(nearest.into_hits()).queries().count(), QUERIES);
}

fn retrieval(c: &mut Criterion) {
    let (queries, documents) = (rows(QUERIES, 1), rows(DOCUMENTS, 2));
    let ids: Vec<String> = (0..DOCUMENTS).map(|i| format!("d{i}")).collect();
    let mut group = c.benchmark_group("retrieval");
    group.sample_size(10).warm_up_time(Duration::from_millis(100));
    group.throughput(Throughput::Elements((2 * QUERIES * DOCUMENTS * WIDTH) as u64));
    group.bench_function("products", |b| b.iter(|| products(&queries, &documents)));
    for k in KEPT {
        group.bench_function(format!("top {k}"), |b| b.iter(|| top(&queries, &documents, &ids, k)));
    }
    group.finish();

    let time = |run: &dyn Fn()| {
        let begun = Instant::now();
        run();
        begun.elapsed().as_secs_f64()
    };
    for k in KEPT {
        let ratio =
            |_| time(&|| products(&queries, &documents)) / time(&|| top(&queries, &documents, &ids, k));
        let mut ratios: Vec<f64> = (0..ROUNDS).map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let [least, median, most] = [0, ROUNDS / 2, ROUNDS - 1].map(|i| ratios[i]);
        println!(
            "top {k} runs at {median:.2} of the products' rate (median of {ROUNDS}, {least:.2} to {most:.2})"
        );
    }
}

criterion_group!(benches, retrieval);
criterion_main!(benches);
