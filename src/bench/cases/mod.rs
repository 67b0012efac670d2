//! One table of cases for every op: shapes, inputs, cost, and how to run it on any device.
//!
//! A backward's case has the label of its forward's and names operands alike: an input `y` is the forward's output,
//! an input or initial value `dy` the gradient that reaches it, an output `dx` the gradient of the forward's input `x`.

mod adamw;
mod attention;
pub mod large;
mod linear;
mod losses;
mod rows;
mod unfused;

use crate::device::{DType, Device};
use crate::error::Result;
use crate::ops::Cost;
use crate::ops::dropout::Dropout;
use crate::rng::normal;
use crate::tensor::Tensor;

/// What an operand starts as.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Standard normal numbers in the device's float; in an output, a value that the op updates.
    Normal(Vec<usize>),
    /// The same times a number.
    Scaled(Vec<usize>, f64),
    /// This number everywhere.
    Level(Vec<usize>, f64),
    /// These integers.
    Ints(Vec<usize>, Vec<i32>),
    /// NaN: an output that must be overwritten everywhere.
    Poison(Vec<usize>),
    /// 7: an output that is added to.
    Added(Vec<usize>),
}

use Fill::{Added, Ints, Level, Normal, Poison, Scaled};

impl Fill {
    /// Dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Normal(s) | Scaled(s, _) | Level(s, _) | Ints(s, _) | Poison(s) | Added(s) => s,
        }
    }

    /// The same with other dimensions; integers end in zeros.
    pub fn reshaped(&self, shape: Vec<usize>) -> Fill {
        match self {
            Normal(_) => Normal(shape),
            Scaled(_, x) => Scaled(shape, *x),
            Level(_, x) => Level(shape, *x),
            Poison(_) => Poison(shape),
            Added(_) => Added(shape),
            Ints(_, v) => {
                let n = shape.iter().product();
                Ints(shape, v.iter().copied().chain(std::iter::repeat(0)).take(n).collect())
            }
        }
    }

    /// The operand on a CPU that computes in `real`; each name has its own random stream.
    pub fn tensor(&self, real: DType, name: &str) -> Tensor {
        let numel = self.shape().iter().product();
        let values = || {
            let seed = name.bytes().fold(0, |seed: u64, b| seed.wrapping_mul(31) + u64::from(b));
            normal(seed, numel)
        };
        let level = |x: f64| Tensor::from_f64(real, self.shape(), std::iter::repeat_n(x, numel));
        match self {
            Normal(s) => Tensor::from_f64(real, s, values()),
            Scaled(s, by) => Tensor::from_f64(real, s, values().into_iter().map(|x| x * by)),
            Level(_, x) => level(*x),
            Poison(_) => level(f64::NAN),
            Added(_) => level(7.0),
            Ints(s, v) => {
                let mut t = Tensor::zeros(DType::I32, s);
                if let Ok(to) = t.host_mut::<i32>() {
                    to.copy_from_slice(v);
                }
                t
            }
        }
    }
}

/// How a case calls its op: device, outputs, inputs.
pub type Run = Box<dyn Fn(&Device, &mut [Tensor], &[Tensor]) -> Result<()> + Send + Sync>;

/// One call of one op.
pub struct Case {
    /// The op's name.
    pub op: &'static str,
    /// Its sizes.
    pub label: String,
    /// Named operands that are written.
    pub outputs: Vec<(&'static str, Fill)>,
    /// Named operands that are read.
    pub inputs: Vec<(&'static str, Fill)>,
    /// Floating-point operations, a multiply and an add being two.
    pub flops: usize,
    /// Elements that must at least be moved between memory and the op.
    pub elements: usize,
    /// What its kernels are held to.
    pub plan: Plan,
    /// The call.
    pub run: Run,
}

/// What the kernels of a case are held to, beside its values.
#[derive(Default)]
pub struct Plan {
    /// The op as a chain of unfused steps, each rounded to bf16, on a CPU at `F64`: kernels may be off by twice as much as
    /// it is. Where there is none they sum in f32 and round once, at the end.
    pub unfused: Option<Run>,
    /// Bytes of global memory that they touch, each counted once for reading and once for writing: what is left for DRAM
    /// if the cache forgets nothing.
    pub once: Option<usize>,
    /// Bytes that their threads ask global memory for, most of them from L2.
    pub bytes: Option<usize>,
    /// Operations of tensor cores, as the emulator counts them; none where not said.
    pub tensor_flops: Option<usize>,
}

impl Plan {
    /// Bytes touched, each once.
    fn once(bytes: usize) -> Plan {
        Plan { once: Some(bytes), ..Plan::default() }
    }

    /// Also held to what its launches cost, all together.
    fn costing(self, launches: impl IntoIterator<Item = Cost>) -> Plan {
        let Cost { flops, bytes } = launches.into_iter().sum();
        Plan { bytes: Some(bytes), tensor_flops: Some(flops), ..self }
    }

    /// Twice the error of this chain, of outputs and inputs.
    fn chain(steps: impl Fn(&mut [Tensor], &[Tensor]) -> Result<()> + Send + Sync + 'static) -> Plan {
        Plan { unfused: Some(Box::new(move |_, o, i| steps(o, i))), ..Plan::default() }
    }
}

impl Case {
    /// Outputs and inputs on a CPU that computes in `real`.
    pub fn operands(&self, real: DType) -> (Vec<Tensor>, Vec<Tensor>) {
        let make = |list: &[(&str, Fill)]| list.iter().map(|(name, f)| f.tensor(real, name)).collect();
        (make(&self.outputs), make(&self.inputs))
    }

    /// Bytes that must at least be moved on a device: [`Case::elements`] at the mean size of those that the operands hold,
    /// what is updated counted twice.
    pub fn bytes(&self, device: &Device) -> u64 {
        let size = |name: &str, fill: &Fill| match device {
            Device::Cpu(real) => real.size(),
            Device::Gpu(_) => gpu_dtype(self.op, name, fill).size(),
        };
        let numel = |fill: &Fill| fill.shape().iter().product::<usize>();
        let updated = |fill: &Fill| if let Poison(_) = fill { 1 } else { 2 };
        let written = self.outputs.iter().map(|(name, f)| (updated(f) * numel(f), size(name, f)));
        let all = written.chain(self.inputs.iter().map(|(name, f)| (numel(f), size(name, f))));
        let (count, bytes) = all.fold((0, 0), |(n, b), (numel, size)| (n + numel, b + numel * size));
        (self.elements as f64 * bytes as f64 / count as f64).round() as u64
    }
}

/// The element type of an op's operand on a GPU: statistics f32, integers i32, all others bf16.
pub fn gpu_dtype(op: &str, name: &str, fill: &Fill) -> DType {
    let statistic = |(noun, names): &(&str, &[&str])| op.starts_with(noun) && names.contains(&name);
    match fill {
        Ints(..) => DType::I32,
        _ if STATISTICS.iter().any(statistic) => DType::F32,
        _ => DType::Bf16,
    }
}

/// Operands that are statistics, f32 on a GPU; by op without its suffix. Others are activations, or integers.
const STATISTICS: &[(&str, &[&str])] = &[
    ("rmsnorm", &["rstd"]),
    ("rope", &["cos", "sin"]),
    ("attention", &["lse"]),
    ("lora_linear", &["a", "b", "da", "db"]),
    ("pool", &["y", "dy"]),
    ("l2norm", &["x", "y", "norm", "dx", "dy"]),
    ("narrow", &["x"]),
    ("masked_xent", &["total", "loss", "lse", "dw"]),
    ("contrastive", &["q", "c", "dq", "dc", "total", "loss", "lse"]),
    ("adamw", &["p", "m", "v", "g", "h", "norm"]),
];

/// The dropout of every case that has one.
pub const DROPOUT: Dropout = Dropout { rate: 0.3, seed: 5, step: 7, site: 3, first: 11 };

/// The gradient of the mean loss in every case of a loss.
pub const DMEAN: f64 = 0.7;

/// Cases that only devices run: their kernels are chosen by size, and the f64 CPU takes long for theirs.
pub fn large_tiles() -> Vec<Case> {
    linear::large_tiles()
}

/// Every case of every op.
pub fn all() -> Vec<Case> {
    let lists = [
        rows::embeds(),
        rows::rmsnorms(),
        rows::ropes(),
        attention::attentions(),
        linear::lora_linears(),
        rows::swiglus(),
        rows::pools(),
        rows::l2norms(),
        rows::dropouts(),
        rows::narrows(),
        rows::finites(),
        losses::masked_xents(),
        losses::contrastives(),
        adamw::adamws(),
    ];
    lists.into_iter().flatten().collect()
}
