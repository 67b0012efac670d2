//! Every op that has a kernel, against the f64 CPU at the inputs that the device holds: on the emulator under several
//! schedules, and on a GPU where one answers (REQUIRE_GPU=1 makes its absence an error).
//!
//! `LLM2VEC_SEEDS=20` runs so many schedules of each case.

use crate::answers;
mod counts;
use crate::ptx;
use crate::run;

use answers::built;
use llm2vec::bench::cases::{self, Case, Facts, Operand, Role};
use llm2vec::device::emulator::{Counters, Module};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::images::{File, KernelSet, choose_ptx};
use llm2vec::device::{DType, Device};
use llm2vec::error::Error;
use llm2vec::launches as kernels;
use llm2vec::ops::attention::Heads;
use llm2vec::ops::contrastive::{InfoNce, LossDtype, contrastive_bwd, contrastive_fwd};
use llm2vec::ops::dropout::Dropout;
use llm2vec::ops::lora_linear::{Lora, lora_linear_fwd};
use llm2vec::ops::rope::rope_fwd;
use llm2vec::ops::swiglu::swiglu_fwd;
use llm2vec::rng::normal;
use llm2vec::tensor::Tensor;
use rayon::prelude::*;
use run::{Failure, Operands, bits, run};
use std::collections::BTreeMap;

/// Bytes behind each array of a real GPU that nothing may change. The emulator knows itself where an array ends.
const GUARD: usize = 4096;
/// Ops whose products are as exact as the hardware's sums are, which no ISA gives.
const ON_TENSOR_CORES: [&str; 4] = ["attention", "lora_linear", "masked_xent", "contrastive"];
/// Schedules of each case.
const SEEDS: u64 = 5;

/// Whether an error is larger; a NaN is larger than anything.
fn beyond(error: f64, most: f64) -> bool {
    error > most || error.is_nan()
}

/// Largest and root-mean-square difference.
fn error(got: &[f64], exact: &[f64]) -> [f64; 2] {
    let apart = got.iter().zip(exact).map(|(g, e)| (g - e).abs());
    let most = apart.clone().fold(0.0, |most, x| if beyond(x, most) { x } else { most });
    [most, (apart.map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt()]
}

/// The largest error of a row against its own size: one wrong row of many hides in a whole tensor's.
fn worst_row(got: &[f64], exact: &[f64], row: usize) -> f64 {
    let rows = got.chunks(row).zip(exact.chunks(row)).map(|(got, exact)| {
        let [_, size] = error(&vec![0.0; exact.len()], exact);
        let [_, off] = error(got, exact);
        if off == 0.0 { 0.0 } else { off / size }
    });
    rows.fold(0.0, |most, x| if beyond(x, most) { x } else { most })
}

/// The outputs that are right for what the operands hold on the device, by `with`.
fn on_cpu(gpu: &Gpu, case: &Case, with: &cases::Run) -> Vec<Vec<f64>> {
    let mut outputs = Operands::new(gpu, &case.outputs, 0).start;
    let inputs = Operands::new(gpu, &case.inputs, 0).start;
    with(&Device::cpu_f64(), &mut outputs, &inputs).unwrap();
    outputs.iter().map(Tensor::to_f64).collect()
}

/// What is too far off the f64 CPU: further than f32 sums and one rounding at the end are, or than twice what a chain of
/// unfused bf16 steps is, where the op would be one.
fn compare(gpu: &Gpu, case: &Case, got: &[Tensor]) -> Vec<String> {
    let exact = on_cpu(gpu, case, &case.run);
    let chain = case.unfused.as_ref().map(|unfused| on_cpu(gpu, case, unfused));
    let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
    // A loss is a difference of numbers as large as this: it has their last places, not its own.
    let lse = case.outputs.iter().position(|operand| operand.name == "lse").map_or(0.0, |o| rms(&exact[o]));
    let mut findings = Vec::new();
    for (o, operand) in case.outputs.iter().enumerate().filter(|(_, operand)| operand.role.is_result()) {
        let name = operand.name;
        let (got, exact) = (got[o].to_f64(), &exact[o]);
        let typical = rms(exact);
        // Half a unit in the last place of bf16.
        let unit = if operand.gpu_dtype() == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
        let last = if ["loss", "total"].contains(&name) { 4.0 * f64::from(f32::EPSILON) * lse } else { 0.0 };
        let allowed = |e: f64| unit * e.abs() + 1e-5 * typical.max(e.abs()) + last;
        let Some(chain) = &chain else {
            let wrong = got.iter().zip(exact).position(|(g, e)| beyond((g - e).abs(), allowed(*e)));
            findings.extend(wrong.map(|i| format!("{name}[{i}] = {}, exact {}", got[i], exact[i])));
            continue;
        };
        let one: Vec<f64> = exact.iter().map(|e| e + allowed(*e)).collect();
        let row = operand.fill.shape().last().copied().unwrap_or(1);
        let errors = |x: &[f64]| {
            let [most, typical] = error(x, exact);
            [most, typical, worst_row(x, exact, row)]
        };
        let (one, chain, off) = (errors(&one), errors(&chain[o]), errors(&got));
        for (kind, i) in [("largest", 0), ("root-mean-square", 1), ("worst row's", 2)] {
            let most = (2.0 * chain[i]).max(one[i]);
            if beyond(off[i], most) {
                findings.push(format!("{name}: {kind} error {:.3e}, of at most {most:.3e}", off[i]));
            }
        }
    }
    findings
}

/// Whether a GPU may refuse a case for its sizes: rows that are no whole vectors, or heads of no width that kernels have.
fn odd(case: &Case) -> bool {
    let rows = if case.op.starts_with("lora_linear") { ["K", "M"] } else { ["C", "F"] };
    let apart = |letter: &str, of: usize| case.facts.size(letter).is_some_and(|size| size % of != 0);
    apart("D", 16) || rows.iter().any(|letter| apart(letter, 8))
}

/// Runs every case and compares; gives the launches of an emulator, by their case.
fn all_on(open: &(dyn Fn() -> Gpu + Sync), seeds: u64, guard: usize) -> Vec<(Case, Counted)> {
    let hopper = open().hopper("lora_linear");
    let cases: Vec<Case> = run::all().into_iter().filter(|case| !hopper || run::on_hopper(case)).collect();
    let count = cases.len();
    let ran = cases.into_par_iter().map(|case| {
        let (gpu, what) = (open(), format!("{} {}", case.op, case.label));
        let ran = one(&gpu, &case, seeds, guard);
        assert_eq!(ran.is_none(), odd(&case), "{what}: refused, or not, against what a GPU takes");
        let (counted, findings) = ran?;
        let findings = findings.into_iter().map(|f| format!("{what}: {f}")).collect::<Vec<_>>();
        Some(((case, counted), findings))
    });
    let ran: Vec<_> = ran.flatten().collect();
    println!("{} of {} cases on {}", ran.len(), count, open().name());
    let (counted, findings): (Vec<_>, Vec<_>) = ran.into_iter().unzip();
    let findings = findings.concat();
    assert!(findings.is_empty(), "on {}:\n{}\n", open().name(), findings.join("\n"));
    counted
}

type Counted = Vec<(&'static str, Counters)>;

/// Runs a case under so many schedules; gives what the first counted, and what is wrong. Nothing where it is refused.
fn one(gpu: &Gpu, case: &Case, seeds: u64, guard: usize) -> Option<(Counted, Vec<String>)> {
    let mut first = None;
    gpu.seed(0);
    let counted = gpu.count(|| {
        first = Some(run(gpu, case, guard));
        Ok(())
    });
    let first = match first.unwrap() {
        Ok(outputs) => outputs,
        Err(Failure::Refused(Error::Limit { .. })) => return None,
        Err(why) => return Some((Vec::new(), vec![why.to_string()])),
    };
    let (mut findings, counted) = (compare(gpu, case, &first), counted.unwrap());
    findings.extend(counts::conflicts(&counted));
    let is_result = |list: &[Operand]| list.iter().all(|operand| operand.role != Role::Reading);
    for seed in 1..seeds {
        gpu.seed(seed);
        match run(gpu, case, guard) {
            Err(why) => findings.push(format!("seed {seed}: {why}")),
            Ok(again) if is_result(&case.outputs) && bits(&first) != bits(&again) => {
                findings.push(format!("run {seed} gives other bits"))
            }
            Ok(_) => {}
        }
    }
    Some((counted, findings))
}

/// The chains that kernels are measured by are right themselves: as near as some roundings to bf16 leave them.
#[test]
fn unfused_chains_agree_with_their_ops() {
    let gpu = Gpu::emulated((8, 0)).unwrap();
    let mut ops = std::collections::BTreeSet::new();
    for case in run::all() {
        let Some(unfused) = &case.unfused else { continue };
        ops.insert(case.op);
        let (exact, chain) = (on_cpu(&gpu, &case, &case.run), on_cpu(&gpu, &case, unfused));
        for ((Operand { name, .. }, exact), chain) in case.outputs.iter().zip(&exact).zip(&chain) {
            let size = error(&vec![0.0; exact.len()], exact);
            let off = error(chain, exact);
            // A sum of terms that cancel keeps their roundings; over a tensor that evens out.
            for (off, most) in off.into_iter().zip([0.03 * size[0], 0.01 * size[1]]) {
                let what = format!("{} {}: {name}", case.op, case.label);
                assert!(!beyond(off, most), "{what} is off by {off:.3e}, of at most {most:.3e}");
            }
        }
    }
    assert_eq!(ops.len(), 8, "{ops:?}");
}

/// What one launch does of two rounds to bf16 between them, as where it is written to memory.
#[test]
fn a_fused_product_has_the_bits_of_two_launches() {
    if !built() {
        return;
    }
    let gpu = run::emulated((9, 0)).with_kernels(KernelSet::Hopper).unwrap();
    let list =
        || run::all().into_iter().filter(|case| case.op.starts_with("lora_linear_") && run::on_hopper(case));
    let mut fused = BTreeMap::new();
    for (one, two) in list().zip(list()) {
        let (op, dropout) = (one.op, one.facts.dropout.then_some(cases::DROPOUT));
        let Some(apart) = two_launches(op, one.facts.clone(), dropout) else { continue };
        let [got, wanted] = [(one, true), (Case { run: apart, ..two }, false)].map(|(case, as_it_is)| {
            let mut outputs = Vec::new();
            let counted = gpu.count(|| {
                outputs = run(&gpu, &case, 0).unwrap_or_else(|_| panic!("{}", case.label));
                Ok(())
            });
            let names: Vec<_> = counted.unwrap().into_iter().map(|(kernel, _)| kernel).collect();
            if as_it_is && !names.iter().any(|name| ["rope_fwd", "swiglu_fwd"].contains(name)) {
                *fused.entry(op).or_insert(0) += 1;
            }
            if op == "lora_linear_swiglu_fwd" {
                outputs.remove(1);
            }
            bits(&outputs)
        });
        assert!(got == wanted, "{op}");
    }
    // One product is too small for wide tiles, and heads of 32 are none of the kernels'.
    let wanted = [("lora_linear_rope_fwd", 4), ("lora_linear_swiglu_fwd", 6)];
    assert!(fused.iter().eq(wanted.iter().map(|(op, count)| (op, count))), "{fused:?}");
}

/// The same by the ops of two launches.
fn two_launches(op: &str, facts: Facts, dropout: Option<Dropout>) -> Option<cases::Run> {
    match op {
        "lora_linear_swiglu_fwd" => Some(Box::new(move |d, o, i| {
            let [act, y, xa @ ..] = o else { unreachable!() };
            let lora = i.get(2).map(|a| Lora { a, b: &i[3], rows: &facts.segments, scales: &[2.0, 0.5] });
            lora_linear_fwd(d, Some(y), xa.first_mut(), &i[0], &i[1], None, lora, None, dropout)?;
            swiglu_fwd(d, act, y)
        })),
        "lora_linear_rope_fwd" => Some(Box::new(move |d, o, i| {
            let size = |letter| facts.size(letter).unwrap();
            let heads = Heads { query: size("H"), key: size("G"), width: size("D") };
            let [qkv, xa @ ..] = o else { unreachable!() };
            let lora =
                i.get(5).map(|a| Lora { a, b: &i[6], rows: &facts.segments, scales: &[2.0, 0.5, 0.0] });
            lora_linear_fwd(d, Some(qkv), xa.first_mut(), &i[0], &i[1], i.get(7), lora, None, dropout)?;
            rope_fwd(d, qkv, &i[2], &i[3], &i[4], heads)
        })),
        _ => None,
    }
}

fn seeds() -> u64 {
    let asked = std::env::var("LLM2VEC_SEEDS").ok().map(|n| n.parse().expect("LLM2VEC_SEEDS: a number"));
    asked.unwrap_or(SEEDS)
}

#[test]
fn kernels_agree_with_the_f64_cpu_on_the_emulator() {
    if built() {
        let ran = [(8, 0), (9, 0)].map(|capability| all_on(&|| run::emulated(capability), seeds(), 0));
        let ran = ran.into_iter().flatten().collect::<Vec<_>>();
        let findings = counts::sectors(&ran);
        assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
        counts::as_committed(&ran);
        let ran: Counted = ran.into_iter().flat_map(|(_, counted)| counted).collect();
        for file in kernels::FILES {
            resident_as_planned(file, &ran);
        }
    }
}

/// A multiprocessor of an H100 holds as many blocks as `__launch_bounds__` asks registers for, by the largest shared memory
/// that a launch adds.
fn resident_as_planned(file: &File, ran: &Counted) {
    let ptx = choose_ptx(file.images, (9, 0)).unwrap();
    let ptx = std::str::from_utf8(ptx.bytes).unwrap().trim_end_matches('\0');
    let module = Module::parse(file.stem, ptx).unwrap();
    for resource in file.resources.iter().filter(|r| r.target.starts_with("sm_90")) {
        let (kernel, target) = (resource.kernel, resource.target);
        let launches = ran.iter().filter(|(name, _)| *name == kernel);
        let dynamic = launches.map(|(_, c)| c.dynamic).max();
        let dynamic = dynamic.unwrap_or_else(|| panic!("no case ran {kernel}"));
        let planned = module.functions.iter().find(|f| f.name == kernel).unwrap().least_blocks.max(1);
        let (blocks, _) = resource.occupancy(resource.threads, dynamic as u32);
        assert!(
            blocks >= planned,
            "{kernel} on {target}: {blocks} blocks with {dynamic} bytes, {planned} planned"
        );
    }
}

/// Cases of kernels whose bits the ISA gives, with the emulator's outputs.
fn exact() -> Vec<(Case, Vec<u64>)> {
    let is_exact = |kernel: &str| {
        let file = kernels::FILES.iter().find(|f| f.kernels.contains(&kernel)).unwrap();
        let ptx = choose_ptx(file.images, (8, 0)).unwrap();
        ptx::is_exact(std::str::from_utf8(ptx.bytes).unwrap(), kernel)
    };
    let may = |case: &Case| {
        let same = case.outputs.iter().all(|operand| operand.role.is_result());
        same && !odd(case) && !ON_TENSOR_CORES.iter().any(|op| case.op.starts_with(op))
    };
    let ran = run::all().into_par_iter().filter(may).filter_map(|case| {
        let (gpu, mut outputs) = (Gpu::emulated((8, 0)).unwrap(), Vec::new());
        let counted = gpu.count(|| {
            outputs = run(&gpu, &case, 0).unwrap();
            Ok(())
        });
        counted.unwrap().iter().all(|(kernel, _)| is_exact(kernel)).then(|| (case, bits(&outputs)))
    });
    ran.collect()
}

#[test]
fn kernels_agree_with_the_f64_cpu_and_the_emulator_on_a_gpu() {
    if let Some(gpu) = answers::cuda().filter(|_| built()) {
        // One after the other: they share its workspace.
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        alone.install(|| all_on(&|| gpu.clone(), 2, GUARD));
        if gpu.capability() == (9, 0) {
            alone.install(|| all_on(&|| gpu.clone().with_kernels(KernelSet::Hopper).unwrap(), 2, GUARD));
        }
        let exact = exact();
        println!("{} cases bit for bit", exact.len());
        for (case, outputs) in &exact {
            let same = bits(&run(&gpu, case, GUARD).unwrap()) == *outputs;
            assert!(same, "{} {}: other bits than the emulator's", case.op, case.label);
        }
    }
}

/// That something is compared bit for bit where a GPU answers: 40 cases of 12 ops. Those of 3 more were too until what
/// ptxas may contract did not count as exact: their kernels have a product that reaches a sum, neither with a rounding.
#[test]
fn many_kernels_are_exact() {
    if built() {
        let exact = exact();
        let ops: std::collections::BTreeSet<_> = exact.iter().map(|(case, _)| case.op).collect();
        assert!(ops.len() == 12 && exact.len() >= 30, "{} cases of {ops:?}", exact.len());
    }
}

/// Unit vectors of 4096 numbers at the supervised scale: in bf16 the loss and both gradients are those of the rounded vectors, by
/// either set of kernels, and as near to the exact ones as the kernel's head says.
#[test]
fn the_loss_in_bf16_is_that_of_rounded_vectors() {
    if !built() {
        return;
    }
    let [p, m, c] = [24, 48, 4096];
    let noise = normal(3, (p + m) * c);
    let unit = |row: usize, like: usize| {
        let own = |k: usize| noise[row * c + k] + 0.4 * noise[like * c + k];
        let length = (0..c).map(|k| own(k) * own(k)).sum::<f64>().sqrt();
        (0..c).map(move |k| own(k) / length).collect::<Vec<f64>>()
    };
    let q: Vec<f64> = (0..p).flat_map(|r| unit(r, r)).collect();
    let k: Vec<f64> = (0..m).flat_map(|r| unit(p + r, r % p)).collect();
    let (q, k) = (Tensor::from_f64(DType::F32, &[p, c], q), Tensor::from_f64(DType::F32, &[m, c], k));
    let run = |device: &Device, dtype: LossDtype| {
        let held = |t: &Tensor| match device {
            Device::Cpu(real) => Tensor::from_f64(*real, t.shape(), t.to_f64()),
            Device::Gpu(gpu) => t.to_gpu(gpu, DType::F32).unwrap(),
        };
        let rule = InfoNce { scale: 50.0, margin: None, dtype };
        let room = |shape: &[usize]| held(&Tensor::zeros(DType::F32, shape));
        let ([mut total, mut loss, mut lse], q, k) = ([&[2][..], &[p], &[p]].map(room), held(&q), held(&k));
        let [mut dq, mut dk] = [p, m].map(|rows| room(&[rows, c]));
        contrastive_fwd(device, &mut total, &mut loss, &mut lse, &q, &k, None, rule).unwrap();
        contrastive_bwd(device, &mut dq, &mut dk, &q, &k, None, &lse, rule, 1.0).unwrap();
        [loss, dq, dk].map(|t| t.to_f64())
    };
    let [exact, rounded] = [LossDtype::F32, LossDtype::Bf16].map(|dtype| run(&Device::cpu_f64(), dtype));
    assert!((0.1..10.0).contains(&(exact[0].iter().sum::<f64>() / p as f64)), "{:?}", exact[0]);
    for gpu in [(8, 0), (9, 0)].map(run::emulated) {
        for (dtype, right, most) in [(LossDtype::F32, &exact, 1e-5), (LossDtype::Bf16, &rounded, 4e-3)] {
            let got = run(&Device::Gpu(gpu.clone()), dtype);
            let off = |right: &[Vec<f64>; 3]| -> [f64; 3] {
                std::array::from_fn(|i| {
                    let [_, size] = error(&vec![0.0; right[i].len()], &right[i]);
                    error(&got[i], &right[i])[1] / size
                })
            };
            println!("{} {dtype:?}: off by {:?}, off the exact by {:?}", gpu.name(), off(right), off(&exact));
            assert!(off(right).iter().all(|off| !beyond(*off, most)), "{dtype:?}: {:?}", off(right));
            assert!(off(&exact).iter().all(|off| !beyond(*off, 1e-2)), "{dtype:?}: {:?}", off(&exact));
        }
    }
}
