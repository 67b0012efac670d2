//! Every op that has a kernel, against the f64 CPU at the inputs that the device holds: on the emulator under several
//! schedules, and on a GPU where one answers (REQUIRE_GPU=1 makes its absence an error).
//!
//! `LLM2VEC_SEEDS=20` runs so many schedules of each case, however long it takes.

use llm2vec::bench::cases::{self, Case, Fill, Plan};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::{DType, Device};
use llm2vec::kernels;
use llm2vec::ops::adamw::{AdamW, adamw_step};
use llm2vec::ops::rmsnorm::rmsnorm_bwd;
use llm2vec::tensor::Tensor;
use rayon::prelude::*;

/// Operands that are statistics, f32 on a GPU; by op without its suffix. Others are activations, or integers.
const STATISTICS: &[(&str, &[&str])] = &[
    ("rmsnorm", &["rstd"]),
    ("rope", &["cos", "sin"]),
    ("attention", &["lse"]),
    ("lora_linear", &["a", "b", "da", "db"]),
    ("pool", &["y", "dy"]),
    ("l2norm", &["x", "y", "norm", "dx", "dy"]),
    ("contrastive", &["q", "c", "total", "loss", "lse", "dq", "dc"]),
    ("masked_xent", &["total", "loss", "lse", "dw"]),
    ("adamw", &["p", "m", "v", "g", "h", "norm"]),
];

/// Bytes behind each array of a real GPU that nothing may change. The emulator knows itself where an array ends.
const GUARD: usize = 4096;
/// What they hold, as elements of any type.
const MARK: f64 = 3.0;
/// Schedules of a case that moves few elements, and of one that moves many.
const SEEDS: [u64; 2] = [5, 1];
/// The most elements of few.
const FEW: usize = 1 << 16;

fn dtype(op: &str, name: &str, fill: &Fill) -> DType {
    let statistic = STATISTICS.iter().any(|(noun, names)| op.starts_with(noun) && names.contains(&name));
    match fill {
        Fill::Ints(..) => DType::I32,
        _ if statistic => DType::F32,
        _ => DType::Bf16,
    }
}

/// Operands on a device, each with the rows of its guard, and what they hold there at the start.
struct Operands {
    there: Vec<Tensor>,
    guards: Vec<usize>,
    start: Vec<Tensor>,
}

impl Operands {
    fn new(gpu: &Gpu, op: &str, list: &[(&'static str, Fill)], guard: usize) -> Operands {
        let mut all = Operands { there: Vec::new(), guards: Vec::new(), start: Vec::new() };
        for (name, fill) in list {
            let (dtype, host) = (dtype(op, name, fill), fill.tensor(DType::F64, name));
            let row: usize = host.shape()[1..].iter().product();
            let guard = guard.div_ceil(row * dtype.size());
            let mut shape = host.shape().to_vec();
            shape[0] += guard;
            let values = host.to_f64().into_iter().chain(std::iter::repeat_n(MARK, guard * row));
            let mut there = Tensor::from_f64(DType::F64, &shape, values).to_gpu(gpu, dtype).unwrap();
            there.set_rows(shape[0] - guard).unwrap();
            all.start.push(match dtype {
                DType::I32 => there.to_host().unwrap(),
                _ => Tensor::from_f64(DType::F64, there.shape(), there.to_f64()),
            });
            all.there.push(there);
            all.guards.push(guard);
        }
        all
    }

    /// Whether what lies behind each array is as it was.
    fn guarded(&mut self) -> bool {
        self.there.iter_mut().zip(&self.guards).all(|(t, guard)| {
            let (rows, end) = (t.shape()[0], t.numel());
            t.set_rows(rows + guard).unwrap();
            let intact = t.to_f64()[end..].iter().all(|x| *x == MARK);
            t.set_rows(rows).unwrap();
            intact
        })
    }
}

/// Largest and root-mean-square difference.
fn error(got: &[f64], exact: &[f64]) -> [f64; 2] {
    let apart = got.iter().zip(exact).map(|(g, e)| (g - e).abs());
    // A NaN is further away than anything.
    let most = apart.clone().fold(0.0, |most: f64, x| if x > most || x.is_nan() { x } else { most });
    [most, (apart.map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt()]
}

/// Runs a case on a device; gives the outputs, or the refusal where the op takes no such sizes there.
fn run(gpu: &Gpu, case: &Case, guard: usize) -> Result<Vec<Tensor>, String> {
    let name = format!("{} {} on {}", case.op, case.label, gpu.name());
    let mut outputs = Operands::new(gpu, case.op, &case.outputs, guard);
    let mut inputs = Operands::new(gpu, case.op, &case.inputs, guard);
    (case.run)(&Device::Gpu(gpu.clone()), &mut outputs.there, &inputs.there).map_err(|e| e.to_string())?;
    gpu.synchronize().unwrap_or_else(|e| panic!("{name}: {e}"));
    for ((operand, _), (there, start)) in case.inputs.iter().zip(inputs.there.iter().zip(&inputs.start)) {
        assert!(there.to_f64() == start.to_f64(), "{name}: {operand} was changed");
    }
    assert!(outputs.guarded() && inputs.guarded(), "{name}: written past the end of an array");
    Ok(outputs.there.iter().map(|t| t.to_host().unwrap()).collect())
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
        plan: Plan::default(),
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

/// Whether any kernel is there for the case's op. One that has none cannot say what sizes it would take.
fn has_kernels(case: &Case) -> bool {
    let noun = case.op.rsplit_once('_').map_or(case.op, |(noun, _)| noun);
    kernels::FILES.iter().any(|f| f.stem.starts_with(noun))
}

/// Runs every case and compares; gives the kernels that the emulator has launched.
fn all_on(
    open: &(dyn Fn() -> Gpu + Sync),
    seeds: impl Fn(&Case) -> u64 + Sync,
    guard: usize,
) -> Vec<&'static str> {
    let cases: Vec<Case> = cases::all().into_iter().chain(more()).filter(has_kernels).collect();
    let ran = cases.par_iter().map(|case| {
        let gpu = open();
        gpu.seed(0);
        let (mut first, what) = (Err(String::new()), format!("{} {}", case.op, case.label));
        let counted = gpu.count(|| {
            first = run(&gpu, case, guard);
            Ok(())
        });
        let first = match first {
            Ok(outputs) => outputs,
            Err(why) if why.contains("a GPU takes") || why.contains("has no kernel yet") => return None,
            Err(why) => panic!("{what}: {why}"),
        };
        compare(&gpu, case, &first);
        for seed in 1..seeds(case) {
            gpu.seed(seed);
            let again = run(&gpu, case, guard).unwrap_or_else(|e| panic!("{what}: {e}"));
            let bits = |t: &Tensor| t.to_f64().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let same = first.iter().zip(&again).all(|(a, b)| bits(a) == bits(b));
            assert!(same, "{what}: run {seed} gives other bits");
        }
        Some(counted.unwrap().into_iter().map(|(kernel, _)| kernel).collect::<Vec<_>>())
    });
    let ran: Vec<_> = ran.flatten().collect();
    println!("{} of {} cases on {}", ran.len(), cases.len(), open().name());
    ran.into_iter().flatten().collect()
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
