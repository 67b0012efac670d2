//! Every op that has a kernel, against the f64 CPU at the inputs that the device holds: on the emulator under several
//! schedules, and on a GPU where one answers (REQUIRE_GPU=1 makes its absence an error).
//!
//! `LLM2VEC_SEEDS=20` runs so many schedules of each case, however long it takes.

#[path = "device/run.rs"]
mod run;

use llm2vec::bench::cases::{self, Case};
use llm2vec::device::emulator::{Count, Counters};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::{DType, Device};
use llm2vec::kernels;
use llm2vec::tensor::Tensor;
use rayon::prelude::*;
use run::{Operands, bits, dtype, has_kernels, more, run};

/// Bytes behind each array of a real GPU that nothing may change. The emulator knows itself where an array ends.
const GUARD: usize = 4096;
/// Schedules of a case that moves few elements, and of one that moves many.
const SEEDS: [u64; 2] = [5, 1];
/// The most elements of few.
const FEW: usize = 1 << 16;

/// Largest and root-mean-square difference.
fn error(got: &[f64], exact: &[f64]) -> [f64; 2] {
    let apart = got.iter().zip(exact).map(|(g, e)| (g - e).abs());
    // A NaN is further away than anything.
    let most = apart.clone().fold(0.0, |most: f64, x| if x > most || x.is_nan() { x } else { most });
    [most, (apart.map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt()]
}

/// The outputs that are right for what the operands hold on the device, by `with`.
fn on_cpu(gpu: &Gpu, case: &Case, with: &cases::Run) -> Vec<Vec<f64>> {
    let mut outputs = Operands::new(gpu, case.op, &case.outputs, 0).start;
    let inputs = Operands::new(gpu, case.op, &case.inputs, 0).start;
    with(&Device::cpu_f64(), &mut outputs, &inputs).unwrap();
    outputs.iter().map(Tensor::to_f64).collect()
}

/// Compares with the f64 CPU: no further off than f32 sums and one rounding at the end are, or than twice what a chain of
/// unfused bf16 steps is, where the op would be one.
fn compare(gpu: &Gpu, case: &Case, got: &[Tensor]) {
    let exact = on_cpu(gpu, case, &case.run);
    let chain = case.plan.unfused.as_ref().map(|unfused| on_cpu(gpu, case, unfused));
    for (o, (name, fill)) in case.outputs.iter().enumerate() {
        let (got, exact) = (got[o].to_f64(), &exact[o]);
        let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
        // Half a unit in the last place of bf16.
        let unit = if dtype(case.op, name, fill) == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
        let allowed = |e: f64| unit * e.abs() + 1e-5 * rms.max(e.abs());
        let what = format!("{} {} on {}: {name}", case.op, case.label, gpu.name());
        let Some(chain) = &chain else {
            for (i, (g, e)) in got.iter().zip(exact).enumerate() {
                assert!((g - e).abs() <= allowed(*e), "{what}[{i}] = {g}, exact {e}");
            }
            continue;
        };
        let one: Vec<f64> = exact.iter().map(|e| e + allowed(*e)).collect();
        let (one, chain, off) = (error(&one, exact), error(&chain[o], exact), error(&got, exact));
        for (kind, i) in [("largest", 0), ("root-mean-square", 1)] {
            let most = (2.0 * chain[i]).max(one[i]);
            assert!(off[i] <= most, "{what}: {kind} error {:.3e}, of at most {most:.3e}", off[i]);
        }
    }
}

/// Whether a case was refused: its op takes no such sizes on a GPU, or has no kernel.
fn refused(why: &str) -> bool {
    why.contains("a GPU takes") || why.contains("has no kernel yet")
}

/// Runs every case and compares; gives the kernels that the emulator has launched.
fn all_on(
    open: &(dyn Fn() -> Gpu + Sync),
    seeds: impl Fn(&Case) -> u64 + Sync,
    guard: usize,
) -> Vec<&'static str> {
    let cases: Vec<Case> = cases::all().into_iter().chain(more()).filter(has_kernels).collect();
    let ran = cases.par_iter().map(|case| {
        let (gpu, what) = (open(), format!("{} {}", case.op, case.label));
        gpu.seed(0);
        let mut first = Err(String::new());
        let counted = gpu.count(|| {
            first = run(&gpu, case, guard);
            Ok(())
        });
        let (first, counted) = match first {
            Ok(outputs) => (outputs, counted.unwrap()),
            Err(why) if refused(&why) => return None,
            Err(why) => panic!("{what}: {why}"),
        };
        compare(&gpu, case, &first);
        if !counted.is_empty() {
            as_planned(case, &counted);
        }
        for seed in 1..seeds(case) {
            gpu.seed(seed);
            let again = run(&gpu, case, guard).unwrap_or_else(|e| panic!("{what}: seed {seed}: {e}"));
            assert!(bits(&first) == bits(&again), "{what}: run {seed} gives other bits");
        }
        Some(counted.into_iter().map(|(kernel, _)| kernel).collect::<Vec<_>>())
    });
    let ran: Vec<_> = ran.flatten().collect();
    println!("{} of {} cases on {}", ran.len(), cases.len(), open().name());
    ran.into_iter().flatten().collect()
}

/// Compares what the launches of a case have cost with its plan: bytes to 2 %, tensor cores exactly, no bank conflicts.
fn as_planned(case: &Case, counted: &[(&str, Counters)]) {
    let what = format!("{} {}", case.op, case.label);
    let sum = |of: fn(&Count) -> u64| counted.iter().map(|(_, c)| of(&c.total)).sum::<u64>() as usize;
    for (kernel, counters) in counted {
        let conflicts = counters.total.conflicts;
        assert!(conflicts == 0, "{what}: {conflicts} bank conflicts in {kernel}\n{}", counters.table());
    }
    let near = |found: usize, planned: usize, of: &str| {
        let off = found.abs_diff(planned);
        assert!(50 * off <= planned, "{what}: {found} {of}, {planned} were planned");
    };
    let once = counted.iter().map(|(_, c)| c.read + c.written).sum::<u64>() as usize;
    if let Some(planned) = case.plan.once {
        near(once, planned, "bytes touched");
        // What comes from the cache again, and what a sector holds beside what was asked for.
        let moved = 32 * sum(|c| c.sectors);
        assert!(case.elements <= FEW || moved <= 2 * planned, "{what}: {moved} bytes moved for {planned}");
    }
    if let Some(planned) = case.plan.bytes {
        near(sum(|c| c.bytes), planned, "bytes asked for");
    }
    let (flops, planned) = (sum(|c| c.flops), case.plan.tensor_flops.unwrap_or(0));
    assert!(flops == planned, "{what}: {flops} operations of tensor cores, {planned} were planned");
}

/// The chains that kernels are measured by are right themselves: as near as some roundings to bf16 leave them.
#[test]
fn unfused_chains_agree_with_their_ops() {
    let gpu = Gpu::emulated((8, 0)).unwrap();
    for case in cases::all() {
        let Some(unfused) = &case.plan.unfused else { continue };
        let (exact, chain) = (on_cpu(&gpu, &case, &case.run), on_cpu(&gpu, &case, unfused));
        for (((name, _), exact), chain) in case.outputs.iter().zip(&exact).zip(&chain) {
            let most = exact.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let [off, _] = error(chain, exact);
            assert!(
                off <= 0.03 * most,
                "{} {}: {name} is off by {off:.3e} of {most:.3e}",
                case.op,
                case.label
            );
        }
    }
}

fn built() -> bool {
    let built = kernels::FILES.iter().any(|f| !f.images.is_empty());
    if !built {
        println!("skipped: this build holds no kernels (nvcc was not found)");
    }
    built
}

fn seeds(case: &Case) -> u64 {
    let asked = std::env::var("LLM2VEC_SEEDS").ok().map(|n| n.parse().expect("LLM2VEC_SEEDS: a number"));
    asked.unwrap_or(SEEDS[usize::from(case.elements > FEW)])
}

#[test]
fn kernels_agree_with_the_f64_cpu_on_the_emulator() {
    if built() {
        let ran = all_on(&|| Gpu::emulated((8, 0)).unwrap(), seeds, 0);
        for kernel in kernels::FILES.iter().flat_map(|f| f.kernels) {
            assert!(ran.contains(kernel), "no case ran {kernel}");
        }
    }
}

#[test]
fn kernels_agree_with_the_f64_cpu_on_a_gpu() {
    match Gpu::cuda(0) {
        Ok(gpu) if built() => {
            all_on(&|| gpu.clone(), |_| 2, GUARD);
        }
        other => {
            let why = other.err().map_or("this build holds no kernels".into(), |e| e.to_string());
            let required = std::env::var("REQUIRE_GPU").is_ok_and(|v| !["", "0"].contains(&v.as_str()));
            assert!(!required, "REQUIRE_GPU is set: {why}");
            println!("skipped: {why}");
        }
    }
}
