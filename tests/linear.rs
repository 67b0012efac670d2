//! The linear op's launches on the emulator cost what its plan says: flops exactly, bytes to 2 %, and no bank conflict.

use llm2vec::bench::cases::{self, Case, Fill};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::{DType, Device};
use llm2vec::kernels;
use llm2vec::tensor::Tensor;
use rayon::prelude::*;

fn operands(gpu: &Gpu, list: &[(&'static str, Fill)]) -> Vec<Tensor> {
    let place = |(name, fill): &(&'static str, Fill)| {
        let dtype = if ["a", "b", "da", "db"].contains(name) { DType::F32 } else { DType::Bf16 };
        fill.tensor(DType::F32, name).to_gpu(gpu, dtype).unwrap()
    };
    list.iter().map(place).collect()
}

/// What is wrong with a case's counters.
fn findings(case: &Case) -> Option<String> {
    let gpu = Gpu::emulated((8, 0)).unwrap();
    let (mut outputs, inputs) = (operands(&gpu, &case.outputs), operands(&gpu, &case.inputs));
    let mut result = Ok(());
    let counted = gpu.count(|| {
        result = (case.run)(&Device::Gpu(gpu.clone()), &mut outputs, &inputs);
        Ok(())
    });
    match result {
        Err(why) if why.to_string().contains("a GPU takes") => return None,
        other => other.unwrap_or_else(|e| panic!("{} {}: {e}", case.op, case.label)),
    }
    let (counted, mut wrong) = (counted.unwrap(), String::new());
    let sum = |of: fn(&llm2vec::device::emulator::Count) -> u64| {
        counted.iter().map(|(_, c)| of(&c.total)).sum::<u64>()
    };
    let (flops, bytes) = (sum(|c| c.flops) as usize, sum(|c| c.bytes) as usize);
    let plan = (case.plan.tensor_flops.unwrap(), case.plan.bytes.unwrap());
    if flops != plan.0 {
        wrong += &format!("{flops} flops, planned {}; ", plan.0);
    }
    if bytes.abs_diff(plan.1) * 50 > plan.1 {
        wrong += &format!("{bytes} bytes, planned {}; ", plan.1);
    }
    if sum(|c| c.conflicts) > 0 {
        wrong += &format!("{} bank conflicts; ", sum(|c| c.conflicts));
    }
    let launch = |(name, c): &(&str, llm2vec::device::emulator::Counters)| {
        format!(
            "\n    {name}: {} flops, {} bytes, {} conflicts",
            c.total.flops, c.total.bytes, c.total.conflicts
        )
    };
    let launches: String = counted.iter().map(launch).collect();
    Some(if wrong.is_empty() { wrong } else { format!("{} {}: {wrong}{launches}\n", case.op, case.label) })
}

#[test]
fn launches_cost_what_the_plan_says() {
    if kernels::FILES.iter().all(|f| f.images.is_empty()) {
        println!("skipped: this build holds no kernels (nvcc was not found)");
        return;
    }
    let cases: Vec<Case> = cases::all().into_iter().chain(cases::large_tiles()).collect();
    let linear = cases.par_iter().filter(|c| c.op.starts_with("lora_linear"));
    let findings: Vec<String> = linear.filter_map(findings).collect();
    assert!(findings.len() > 20, "{} cases ran", findings.len());
    let wrong: String = findings.concat();
    assert!(wrong.is_empty(), "\n{wrong}");
}
