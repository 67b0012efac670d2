//! Every op that has a kernel, on a GPU, against the f64 CPU at the inputs that the GPU holds. Says "skipped" where no GPU
//! answers; REQUIRE_GPU=1 makes that an error.

use llm2vec::bench::cases::{self, Case, Fill};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::{DType, Device};
use llm2vec::kernels;
use llm2vec::tensor::Tensor;

/// Operands that are statistics, f32 on a GPU; by op without its suffix. Others are activations, or integers.
const STATISTICS: &[(&str, &[&str])] = &[
    ("rmsnorm", &["rstd"]),
    ("rope", &["cos", "sin"]),
    ("pool", &["y", "dy"]),
    ("l2norm", &["x", "y", "norm", "dx", "dy"]),
    ("adamw", &["p", "m", "v", "g", "h", "norm"]),
];

fn dtype(op: &str, name: &str, fill: &Fill) -> DType {
    let statistic = STATISTICS.iter().any(|(noun, names)| op.starts_with(noun) && names.contains(&name));
    match fill {
        Fill::Ints(..) => DType::I32,
        _ if statistic => DType::F32,
        _ => DType::Bf16,
    }
}

/// The operands on the GPU, and what they hold there at f64.
fn both(gpu: &Gpu, op: &str, list: &[(&'static str, Fill)]) -> (Vec<Tensor>, Vec<Tensor>) {
    let pair = |(name, fill): &(&'static str, Fill)| {
        let there = fill.tensor(DType::F64, name).to_gpu(gpu, dtype(op, name, fill)).unwrap();
        let here = match fill {
            Fill::Ints(..) => there.to_host().unwrap(),
            _ => Tensor::from_f64(DType::F64, there.shape(), there.to_host().unwrap().to_f64()),
        };
        (there, here)
    };
    list.iter().map(pair).unzip()
}

/// Runs a case on the GPU and compares; gives the refusal where the op takes no such sizes there.
fn check(gpu: &Gpu, case: &Case) -> Result<(), String> {
    let (mut outputs, mut exact) = both(gpu, case.op, &case.outputs);
    let (inputs, exact_inputs) = both(gpu, case.op, &case.inputs);
    (case.run)(&Device::Gpu(gpu.clone()), &mut outputs, &inputs).map_err(|e| e.to_string())?;
    gpu.synchronize().unwrap();
    (case.run)(&Device::cpu_f64(), &mut exact, &exact_inputs).unwrap();
    for ((name, fill), (got, exact)) in case.outputs.iter().zip(outputs.iter().zip(&exact)) {
        let (got, exact) = (got.to_host().unwrap().to_f64(), exact.to_f64());
        let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
        // f32 sums, and for bf16 one rounding at the end: half a unit in its last place.
        let unit = if dtype(case.op, name, fill) == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
        for (i, (g, e)) in got.iter().zip(&exact).enumerate() {
            let most = unit * e.abs() + 1e-5 * rms.max(e.abs());
            assert!((g - e).abs() <= most, "{} {}: {name}[{i}] = {g}, exact {e}", case.op, case.label);
        }
    }
    for ((name, _), (there, here)) in case.inputs.iter().zip(inputs.iter().zip(&exact_inputs)) {
        let same = there.to_host().unwrap().to_f64() == here.to_f64();
        assert!(same, "{} {}: {name} was changed", case.op, case.label);
    }
    Ok(())
}

#[test]
fn kernels_agree_with_the_f64_cpu() {
    let built = kernels::FILES.iter().any(|f| !f.images.is_empty());
    let gpu = match Gpu::cuda(0) {
        Ok(gpu) if built => gpu,
        other => {
            let why = other.err().map_or("this build holds no kernels".into(), |e| e.to_string());
            let required = std::env::var("REQUIRE_GPU").is_ok_and(|v| !["", "0"].contains(&v.as_str()));
            assert!(!required, "REQUIRE_GPU is set: {why}");
            println!("skipped: {why}");
            return;
        }
    };
    let mut ran = Vec::new();
    for case in cases::all() {
        match check(&gpu, &case) {
            Ok(()) => ran.push(case.op),
            Err(why) => assert!(why.contains("a GPU takes") || why.contains("has no kernel yet"), "{why}"),
        }
    }
    for kernel in kernels::FILES.iter().flat_map(|f| f.kernels).filter(|k| **k != "adamw_square") {
        assert!(ran.contains(kernel), "no case ran {kernel}");
    }
    println!("{} cases on {}", ran.len(), gpu.name());
}
