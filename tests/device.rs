//! Every op that has a kernel, on a GPU, against the f64 CPU at the inputs that the GPU holds. Says "skipped" where no GPU
//! answers; REQUIRE_GPU=1 makes that an error.

use llm2vec::bench::cases::{self, Case, Fill};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::{DType, Device};
use llm2vec::kernels;
use llm2vec::ops::adamw::{AdamW, adamw_step};
use llm2vec::ops::rmsnorm::rmsnorm_bwd;
use llm2vec::tensor::Tensor;

/// Operands that are statistics, f32 on a GPU; by op without its suffix. Others are activations, or integers.
const STATISTICS: &[(&str, &[&str])] = &[
    ("rmsnorm", &["rstd"]),
    ("rope", &["cos", "sin"]),
    ("pool", &["y", "dy"]),
    ("narrow", &["x"]),
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

/// Optional operands the other way round than in the table: a skip for the norm's backward, no clip for the optimiser.
fn more() -> [Case; 2] {
    let (rows, normal) = (vec![65, 40], |shape: &[usize]| Fill::Normal(shape.to_vec()));
    let by = AdamW { rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1, step: 3 };
    let case = |op, label: &str, outputs, inputs, run| Case {
        op,
        label: label.into(),
        outputs,
        inputs,
        flops: 0,
        elements: 0,
        run,
    };
    [
        case(
            "rmsnorm_bwd",
            "with skip",
            vec![("dx", Fill::Poison(rows.clone()))],
            vec![
                ("dy", normal(&rows)),
                ("skip", normal(&rows)),
                ("x", normal(&rows)),
                ("w", normal(&[40])),
                ("rstd", Fill::Level(vec![65], 0.8)),
            ],
            Box::new(|d, o, i| rmsnorm_bwd(d, &mut o[0], &i[0], Some(&i[1]), &i[2], &i[3], &i[4])),
        ),
        case(
            "adamw_step",
            "without clip",
            vec![("p", normal(&[231])), ("m", normal(&[231])), ("v", Fill::Level(vec![231], 0.5))],
            vec![("g", normal(&[231]))],
            Box::new(move |d, o, i| {
                let [p, m, v] = o else { unreachable!() };
                adamw_step(d, p, m, v, &i[0], None, by)
            }),
        ),
    ]
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
    for case in cases::all().into_iter().chain(more()) {
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
