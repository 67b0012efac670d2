//! Cases on a device: operands at the types that a GPU computes in, poison, guards, and the cases that a GPU has beside
//! those of the table.

use llm2vec::bench::cases::{self, Case, Facts, Fill, Operand, Role};
use llm2vec::device::gpu::Gpu;
use llm2vec::device::images::KernelSet;
use llm2vec::device::{DType, Device};
use llm2vec::error::Error;
use llm2vec::ops::adamw::{AdamW, adamw_step};
use llm2vec::ops::attention::{Heads, Mask, attention_fwd};
use llm2vec::ops::lora_linear::{Lora, lora_linear_bwd, lora_linear_fwd};
use llm2vec::ops::rmsnorm::rmsnorm_bwd;
use llm2vec::tensor::Tensor;

/// What the guards behind arrays hold, as elements of any type.
const MARK: f64 = 3.0;

/// Operands on a device, each with the rows of its guard, and what they hold there at the start.
pub struct Operands {
    pub there: Vec<Tensor>,
    guards: Vec<usize>,
    pub start: Vec<Tensor>,
}

impl Operands {
    pub fn new(gpu: &Gpu, list: &[Operand], guard: usize) -> Operands {
        let mut all = Operands { there: Vec::new(), guards: Vec::new(), start: Vec::new() };
        for operand in list {
            let (dtype, host) = (operand.gpu_dtype(), operand.tensor(DType::F64));
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

/// Why a case has no outputs.
#[derive(Debug)]
pub enum Failure {
    /// The op, or the device, has said no.
    Refused(Error),
    /// It has written where it must not.
    Wrote(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Failure::Refused(error) => error.fmt(f),
            Failure::Wrote(what) => f.write_str(what),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Refused(error)
    }
}

/// Runs a case on a device; gives the outputs, or what went wrong.
pub fn run(gpu: &Gpu, case: &Case, guard: usize) -> Result<Vec<Tensor>, Failure> {
    let mut outputs = Operands::new(gpu, &case.outputs, guard);
    let mut inputs = Operands::new(gpu, &case.inputs, guard);
    (case.run)(&Device::Gpu(gpu.clone()), &mut outputs.there, &inputs.there)?;
    gpu.synchronize()?;
    for (Operand { name, .. }, (there, start)) in
        case.inputs.iter().zip(inputs.there.iter().zip(&inputs.start))
    {
        if there.to_f64() != start.to_f64() {
            return Err(Failure::Wrote(format!("{name} was changed")));
        }
    }
    if !(outputs.guarded() && inputs.guarded()) {
        return Err(Failure::Wrote("something was written past the end of an array".into()));
    }
    Ok(outputs.there.iter().map(Tensor::to_host).collect::<Result<_, _>>()?)
}

/// The elements of tensors, to be compared bit by bit.
pub fn bits(tensors: &[Tensor]) -> Vec<u64> {
    tensors.iter().flat_map(|t| t.to_f64()).map(f64::to_bits).collect()
}

/// A case of the table whose op is asked for some of its outputs only, by `run`.
fn fewer(op: &str, label: &str, wanted: &[&str], run: cases::Run) -> Case {
    let case = cases::all().into_iter().find(|c| c.op == op && c.label == label).expect("such a case");
    let (all, whole) = (case.outputs, case.unfused.expect("a chain"));
    let kept: Vec<usize> = (0..all.len()).filter(|&i| wanted.contains(&all[i].name)).collect();
    let outputs = kept.iter().map(|&i| all[i].clone()).collect();
    let unfused: cases::Run = Box::new(move |d, o, i| {
        let mut every: Vec<Tensor> = all.iter().map(|operand| operand.tensor(DType::F64)).collect();
        whole(d, &mut every, i)?;
        o.iter_mut().zip(&kept).for_each(|(o, &at)| *o = every[at].clone());
        Ok(())
    });
    let label = format!("{label}, only {wanted:?}");
    Case { label, outputs, elements: 0, unfused: Some(unfused), run, ..case }
}

/// What the graph leaves out now and then: lse where no backward follows, y where it is still there, gradients of factors
/// that are frozen.
fn partial() -> [Case; 3] {
    const ROWS: [usize; 2] = [40, 64];
    const SCALES: [f64; 2] = [2.0, 0.5];
    let heads = Heads { query: 8, key: 2, width: 32 };
    let label = "N=65 K=552 M=104 R=8 rows=[40, 64] drop";
    [
        fewer(
            "attention_fwd",
            "[33, 5] H=8 G=2 D=32 Full",
            &["out"],
            Box::new(move |d, o, i| attention_fwd(d, &mut o[0], None, &i[0], &i[1], heads, Mask::Full, None)),
        ),
        fewer(
            "lora_linear_fwd",
            label,
            &["xa"],
            Box::new(|d, o, i| {
                let lora = Lora { a: &i[3], b: &i[4], rows: &ROWS, scales: &SCALES };
                let (xa, dropout) = (Some(&mut o[0]), Some(cases::DROPOUT));
                lora_linear_fwd(d, None, xa, &i[0], &i[1], None, Some(lora), None, dropout)
            }),
        ),
        fewer(
            "lora_linear_bwd",
            label,
            &["dx", "dxa"],
            Box::new(|d, o, i| {
                let [dx, dxa] = o else { unreachable!() };
                let lora = Lora { a: &i[4], b: &i[5], rows: &ROWS, scales: &SCALES };
                let dropout = Some(cases::DROPOUT);
                lora_linear_bwd(d, Some(dx), None, Some(dxa), &i[0], &i[1], None, &i[3], Some(lora), dropout)
            }),
        ),
    ]
}

/// Optional operands the other way round than in the table: a skip for the norm's backward, no clip for the optimiser.
fn more() -> [Case; 2] {
    let rows = vec![65, 40];
    let activation = |name, fill| Operand { name, role: Role::Activation, fill };
    let single = |name, fill| Operand { name, role: Role::Single, fill };
    let normal = |shape: &[usize]| Fill::Normal(shape.to_vec());
    let by = AdamW { rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1, step: 3 };
    let v = single("v", Fill::Level(vec![231], 0.5));
    let case = |op, label: &str, outputs, inputs, run| Case {
        op,
        label: label.into(),
        facts: Facts::default(),
        outputs,
        inputs,
        flops: 0,
        elements: 0,
        unfused: None,
        run,
    };
    [
        case(
            "rmsnorm_bwd",
            "with skip",
            vec![activation("dx", Fill::Poison(rows.clone()))],
            vec![
                activation("dy", normal(&rows)),
                activation("skip", normal(&rows)),
                activation("x", normal(&rows)),
                activation("w", normal(&[40])),
                single("rstd", Fill::Level(vec![65], 0.8)),
            ],
            Box::new(|d, o, i| rmsnorm_bwd(d, &mut o[0], &i[0], Some(&i[1]), &i[2], &i[3], &i[4])),
        ),
        case(
            "adamw_step",
            "without clip",
            ["p", "m"].map(|name| single(name, normal(&[231]))).into_iter().chain([v]).collect(),
            vec![single("g", normal(&[231]))],
            Box::new(move |d, o, i| {
                let [p, m, v] = o else { unreachable!() };
                adamw_step(d, p, m, v, &i[0], None, by)
            }),
        ),
    ]
}

/// The emulator of this compute capability, with the kernels that are for it alone.
pub fn emulated(capability: (u32, u32)) -> Gpu {
    let set = if capability == (9, 0) { KernelSet::Hopper } else { KernelSet::Portable };
    Gpu::emulated(capability).and_then(|gpu| gpu.with_kernels(set)).unwrap()
}

/// Ops that have kernels for Hopper.
pub fn on_hopper(case: &Case) -> bool {
    ["attention", "lora_linear", "masked_xent", "contrastive"].iter().any(|op| case.op.starts_with(op))
}

/// Every case that a device runs.
pub fn all() -> Vec<Case> {
    cases::all().into_iter().chain(cases::device_only()).chain(more()).chain(partial()).collect()
}
