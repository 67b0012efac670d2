//! attention's kernels do what their headers say, counted by the emulator: bytes, tensor-core operations, banks.

use llm2vec::bench::cases::{self, Case, Fill};
use llm2vec::device::emulator::Counters;
use llm2vec::device::gpu::Gpu;
use llm2vec::device::{DType, Device};
use llm2vec::kernels;
use llm2vec::ops::attention::{Heads, Mask, attention_bwd_cost, attention_fwd_cost};
use llm2vec::tensor::Tensor;
use rayon::prelude::*;

/// Runs a case on the emulator; gives what its kernels did, or the refusal.
fn counted(case: &Case) -> Result<Vec<(&'static str, Counters)>, String> {
    let gpu = Gpu::emulated((8, 0)).unwrap();
    let make = |list: &[(&'static str, Fill)]| -> Vec<Tensor> {
        let dtype = |name: &str, fill: &Fill| match fill {
            Fill::Ints(..) => DType::I32,
            _ if name == "lse" => DType::F32,
            _ => DType::Bf16,
        };
        let there = |(name, fill): &(&'static str, Fill)| {
            fill.tensor(DType::F64, name).to_gpu(&gpu, dtype(name, fill)).unwrap()
        };
        list.iter().map(there).collect()
    };
    let (mut outputs, inputs) = (make(&case.outputs), make(&case.inputs));
    let body = || (case.run)(&Device::Gpu(gpu.clone()), &mut outputs, &inputs);
    gpu.count(body).map_err(|e| e.to_string())
}

#[test]
fn costs_are_those_that_the_emulator_counts() {
    if kernels::FILES.iter().all(|f| f.images.is_empty()) {
        println!("skipped: this build holds no kernels (nvcc was not found)");
        return;
    }
    let cases: Vec<Case> = cases::all().into_iter().filter(|c| c.op.starts_with("attention")).collect();
    let ran = cases.par_iter().filter(|case| {
        let what = format!("{} {}", case.op, case.label);
        let counters = match counted(case) {
            Ok(counters) => counters,
            Err(why) => {
                assert!(why.contains("a GPU takes D in [16, 32, 64, 80, 96, 128]"), "{what}: {why}");
                return false;
            }
        };
        let sum = |of: fn(&Counters) -> u64| counters.iter().map(|(_, c)| of(c)).sum::<u64>() as f64;
        let (bytes, flops) = (case.plan.bytes.unwrap(), case.plan.tensor_flops.unwrap());
        assert_eq!(sum(|c| c.total.flops), flops as f64, "{what}: operations of tensor cores");
        let off = sum(|c| c.total.bytes) / bytes as f64 - 1.0;
        assert!(off.abs() < 0.02, "{what}: bytes are off by {off:.4} of {bytes}");
        for (kernel, counters) in &counters {
            let first = counters.lines.iter().find(|(_, c)| c.conflicts > 0);
            assert!(first.is_none(), "{what}: {kernel} has bank conflicts: {first:?}");
        }
        true
    });
    assert!(ran.count() > 60);
}

/// Sentences fill tiles: no more than three times the operations of pairs that are seen, and as many bytes as the operands have
/// but for keys that two tiles read.
#[test]
fn sentences_fill_tiles() {
    let lengths: Vec<usize> = (0..400).map(|i| 20 + i * 7 % 41).collect();
    let starts: Vec<i32> = (0..=400).map(|i| lengths[..i].iter().sum::<usize>() as i32).collect();
    let pairs: usize = lengths.iter().map(|n| n * n).sum();
    let (h, d, n) = (32, 128, starts[400] as usize);
    let heads = Heads { query: h, key: h, width: d };
    let forward = attention_fwd_cost(&starts, heads, Mask::Full);
    let backward = attention_bwd_cost(&starts, heads, Mask::Full);
    let share = |flops: usize, products: usize| flops as f64 / (2 * products * h * d * pairs) as f64;
    println!("operations {:.2} and {:.2} of those seen", share(forward.flops, 2), share(backward.flops, 7));
    println!("bytes {:.2} of the operands'", forward.bytes as f64 / (h * n * (8 * d + 4)) as f64);
    assert!(share(forward.flops, 2) < 2.5 && share(backward.flops, 7) < 2.0);
    assert!((forward.bytes as f64) < 1.2 * (h * n * (8 * d + 4)) as f64);
    // One long text has nothing to leave out.
    let long = [0, 4096];
    assert_eq!(attention_fwd_cost(&long, heads, Mask::Full).flops, 4 * h * d * 4096 * 4096);
    assert_eq!(attention_bwd_cost(&long, heads, Mask::Full).flops, 14 * h * d * 4096 * 4096);
    let causal =
        attention_fwd_cost(&long, heads, Mask::Causal).flops as f64 / (2 * h * d * 4096 * 4097) as f64;
    assert!(causal < 1.02, "{causal}");
}
