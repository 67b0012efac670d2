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
use crate::ops::attention::Mask;
use crate::ops::dropout::Dropout;
use crate::ops::pool::Pooling;
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

/// The part that an operand plays; its element type on a GPU follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An activation, its gradient, or a frozen weight: bf16.
    Activation,
    /// A statistic, a loss, or what is learned, and its gradient: f32.
    Single,
    /// Row numbers, ids, starts: i32.
    Index,
    /// Room for activations: what an op leaves there says nothing.
    Room,
    /// What a clock says, i32: other at every call.
    Reading,
}

impl Role {
    /// Whether the same call leaves the same there.
    pub fn is_result(self) -> bool {
        !matches!(self, Role::Room | Role::Reading)
    }
}

/// A named operand of a case.
#[derive(Clone, Debug)]
pub struct Operand {
    /// As the op's own argument.
    pub name: &'static str,
    /// The part that it plays.
    pub role: Role,
    /// What it starts as.
    pub fill: Fill,
}

fn activation(name: &'static str, fill: Fill) -> Operand {
    Operand { name, role: Role::Activation, fill }
}

fn room(name: &'static str, shape: Vec<usize>) -> Operand {
    Operand { name, role: Role::Room, fill: Poison(shape) }
}

fn single(name: &'static str, fill: Fill) -> Operand {
    Operand { name, role: Role::Single, fill }
}

fn index(name: &'static str, fill: Fill) -> Operand {
    Operand { name, role: Role::Index, fill }
}

impl Operand {
    /// Its element type on a GPU.
    pub fn gpu_dtype(&self) -> DType {
        match self.role {
            Role::Activation | Role::Room => DType::Bf16,
            Role::Single => DType::F32,
            Role::Index | Role::Reading => DType::I32,
        }
    }

    /// It on a CPU that computes in `real`.
    pub fn tensor(&self, real: DType) -> Tensor {
        self.fill.tensor(real, self.name)
    }

    /// Bytes that it takes on a device.
    pub fn bytes(&self, device: &Device) -> usize {
        let size = match device {
            Device::Cpu(real) => real.size(),
            Device::Gpu(_) => self.gpu_dtype().size(),
        };
        self.fill.shape().iter().product::<usize>() * size
    }
}

/// How a case calls its op: device, outputs, inputs.
pub type Run = Box<dyn Fn(&Device, &mut [Tensor], &[Tensor]) -> Result<()> + Send + Sync>;

/// What makes a case what it is, as data; its label says the same to people.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// By their letters, in the label's order.
    pub sizes: Vec<(&'static str, usize)>,
    /// Rows of a product's segments; none where it has no adapter.
    pub segments: Vec<usize>,
    /// Which keys are seen, where the op attends.
    pub mask: Option<Mask>,
    /// How rows become a vector, where they do.
    pub pooling: Option<Pooling>,
    /// From the positive's score, above which a candidate does not count.
    pub margin: Option<f64>,
    /// Whether a loss rounds its vectors to bf16.
    pub rounded: bool,
    /// Whether [`DROPOUT`] is on.
    pub dropout: bool,
}

impl Facts {
    /// Of sizes alone.
    fn sizes<const COUNT: usize>(sizes: [(&'static str, usize); COUNT]) -> Facts {
        Facts { sizes: sizes.into(), ..Facts::default() }
    }

    /// The size with this letter.
    pub fn size(&self, letter: &str) -> Option<usize> {
        self.sizes.iter().find(|(name, _)| *name == letter).map(|(_, size)| *size)
    }

    /// The sizes as a label has them: `N=3 C=8`.
    fn spelled(&self) -> String {
        let sizes: Vec<String> = self.sizes.iter().map(|(letter, size)| format!("{letter}={size}")).collect();
        sizes.join(" ")
    }
}

/// One call of one op.
pub struct Case {
    /// The op's name.
    pub op: &'static str,
    /// Its sizes and rules, for people.
    pub label: String,
    /// The same for programs.
    pub facts: Facts,
    /// Operands that are written.
    pub outputs: Vec<Operand>,
    /// Operands that are read.
    pub inputs: Vec<Operand>,
    /// Floating-point operations, a multiply and an add being two.
    pub flops: usize,
    /// Elements that must at least be moved between memory and the op.
    pub elements: usize,
    /// The op as a chain of unfused steps, each rounded to bf16, on a CPU at `F64`: kernels may be off by twice as much as
    /// it is. Where there is none they sum in f32 and round once, at the end.
    pub unfused: Option<Run>,
    /// The call.
    pub run: Run,
}

/// A chain of unfused steps, as [`Case::unfused`] has it.
fn chain(steps: impl Fn(&mut [Tensor], &[Tensor]) -> Result<()> + Send + Sync + 'static) -> Option<Run> {
    Some(Box::new(move |_, o, i| steps(o, i)))
}

impl Case {
    /// Outputs and inputs on a CPU that computes in `real`.
    pub fn operands(&self, real: DType) -> (Vec<Tensor>, Vec<Tensor>) {
        let make = |list: &[Operand]| list.iter().map(|operand| operand.tensor(real)).collect();
        (make(&self.outputs), make(&self.inputs))
    }

    /// Bytes that must at least be moved on a device: [`Case::elements`] at the mean size of those that the operands hold,
    /// what is updated counted twice.
    pub fn bytes(&self, device: &Device) -> u64 {
        let outputs = self.outputs.iter().map(|o| (if let Poison(_) = o.fill { 1 } else { 2 }, o));
        let all = outputs.chain(self.inputs.iter().map(|o| (1, o)));
        let (count, bytes) = all.fold((0, 0), |(count, bytes), (times, o)| {
            (count + times * o.fill.shape().iter().product::<usize>(), bytes + times * o.bytes(device))
        });
        (self.elements as f64 * bytes as f64 / count as f64).round() as u64
    }
}

/// The dropout of every case that has one.
pub const DROPOUT: Dropout = Dropout { rate: 0.3, seed: 5, step: 7, site: 3, first: 11 };

/// The gradient of the mean loss in every case of a loss.
pub const DMEAN: f64 = 0.7;

/// Cases that only devices run: their kernels are chosen by size, and the f64 CPU takes long for theirs, or does the same as
/// in others.
pub fn device_only() -> Vec<Case> {
    let lists = [
        linear::large_tiles(),
        linear::lora_linear_swiglus(),
        linear::lora_linear_ropes(),
        losses::masked_xent_waves(),
        losses::contrastive_rings(),
        losses::contrastives_in_bf16(),
        rows::clocks(),
    ];
    lists.into_iter().flatten().collect()
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
        adamw::adds(),
    ];
    lists.into_iter().flatten().collect()
}
