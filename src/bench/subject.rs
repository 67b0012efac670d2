//! What is timed: a case with its operands on a device, call by call, under a clock.

use super::cases::{Case, Fill, Operand};
use crate::device::gpu::{Gpu, Memory};
use crate::device::{DType, Device};
use crate::error::Result;
use crate::model::weights::packs;
use crate::ops::clock::clock_fwd;
use crate::rng::normal;
use crate::tensor::Tensor;
use std::time::Instant;

/// A prime, so that no row of a matrix is like another: to draw as many numbers as a large operand has takes minutes.
pub const DRAWN: usize = 1_000_003;

/// More than the level-2 cache of any GPU.
const FLUSH: usize = 256 << 20;

/// A sample on the CPU lasts at least this long, in seconds: short calls are repeated.
const SHORTEST: f64 = 2e-3;

/// Tensors for a case on a device, filled from a pool of normal numbers.
pub struct Operands {
    /// Where they lie.
    pub device: Device,
    numbers: Vec<f64>,
}

impl Operands {
    /// The same numbers in every run.
    pub fn new(device: &Device) -> Operands {
        Operands { device: device.clone(), numbers: normal(17, DRAWN) }
    }

    /// One list of a case's operands; each name begins somewhere else in the pool.
    pub fn list(&self, list: &[Operand]) -> Result<Vec<Tensor>> {
        list.iter().map(|operand| self.one(operand)).collect()
    }

    fn one(&self, operand: &Operand) -> Result<Tensor> {
        let shape = operand.fill.shape();
        let first = operand.name.bytes().fold(0, |h: usize, b| (h * 31 + usize::from(b)) % DRAWN);
        // Numbers are drawn and multiplied, or all are one.
        let (scale, level) = match &operand.fill {
            Fill::Normal(_) => (1.0, None),
            Fill::Scaled(_, by) => (*by, None),
            Fill::Level(_, x) => (1.0, Some(*x)),
            Fill::Poison(_) => (1.0, Some(f64::NAN)),
            Fill::Added(_) => (1.0, Some(7.0)),
            Fill::Ints(shape, values) => return ints(&self.device, shape, values),
        };
        match &self.device {
            Device::Cpu(real) => {
                let numel = shape.iter().product();
                let values = self.numbers.iter().cycle().skip(first).take(numel);
                Ok(Tensor::from_f64(*real, shape, values.map(|x| level.unwrap_or(x * scale))))
            }
            Device::Gpu(gpu) => {
                let numel = shape.iter().product::<usize>().min(DRAWN);
                let values: Vec<f64> = match level {
                    Some(x) => vec![x; numel],
                    None => self.numbers.iter().cycle().skip(first).take(numel).map(|x| x * scale).collect(),
                };
                Tensor::repeated_on(gpu, operand.gpu_dtype(), shape, &values)
            }
        }
    }

    /// Bytes that a case's operands take.
    pub fn size(&self, case: &Case) -> u64 {
        case.outputs.iter().chain(&case.inputs).map(|operand| operand.bytes(&self.device) as u64).sum()
    }
}

/// Calls that make a sample long enough, by the seconds of one.
fn repeats(one: f64) -> usize {
    (SHORTEST / one).ceil().clamp(1.0, 1e6) as usize
}

/// Integers on a device.
pub fn ints(device: &Device, shape: &[usize], values: &[i32]) -> Result<Tensor> {
    let mut t = Tensor::zeros(DType::I32, shape);
    t.host_mut()?.copy_from_slice(values);
    match device {
        Device::Cpu(_) => Ok(t),
        Device::Gpu(gpu) => t.to_gpu(gpu, DType::I32),
    }
}

/// A case with its operands.
pub struct Subject<'a> {
    /// What is called.
    pub case: &'a Case,
    outputs: Vec<Tensor>,
    inputs: Vec<Tensor>,
    /// Calls in a sample; 0 before the first.
    repeats: usize,
    /// Seconds of a call.
    pub samples: Vec<f64>,
    /// MHz behind each of them, where there is a clock.
    pub clocks: Vec<f64>,
}

impl<'a> Subject<'a> {
    /// Made, and run once.
    pub fn new(operands: &Operands, case: &'a Case) -> Result<Subject<'a>> {
        let (outputs, inputs) = (operands.list(&case.outputs)?, operands.list(&case.inputs)?);
        let mut subject =
            Subject { case, outputs, inputs, repeats: 0, samples: Vec::new(), clocks: Vec::new() };
        if packs(&operands.device) {
            subject.pack()?;
        }
        subject.call(&operands.device)?;
        if let Device::Gpu(gpu) = &operands.device {
            gpu.synchronize()?;
        }
        Ok(subject)
    }

    /// Its weight packed, as models on the CPU have theirs.
    fn pack(&mut self) -> Result<()> {
        for (operand, input) in self.case.inputs.iter().zip(&mut self.inputs) {
            if let ("w", &[m, k], true) =
                (operand.name, input.shape(), self.case.op.starts_with("lora_linear"))
            {
                let mut panels = Tensor::panels(DType::F32, [m, k]);
                panels.put_rows(0, input.host::<f32>()?)?;
                *input = panels;
            }
        }
        Ok(())
    }

    /// The call that is timed.
    pub fn call(&mut self, device: &Device) -> Result<()> {
        (self.case.run)(device, &mut self.outputs, &self.inputs)
    }

    /// Takes so many samples.
    pub fn sample(&mut self, clock: &mut Clock, samples: usize) -> Result<()> {
        let device = clock.device.clone();
        if self.repeats == 0 {
            self.repeats = match device {
                // The call that made it ready was cold, and too long to go by.
                Device::Cpu(_) => repeats(clock.time(1, || self.call(&device))?),
                Device::Gpu(_) => 1,
            };
        }
        for _ in 0..samples {
            let time = clock.time(self.repeats, || self.call(&device))?;
            self.samples.push(time);
            self.clocks.extend(clock.mhz()?);
        }
        Ok(())
    }
}

/// How long a multiprocessor's clock is watched: a hundred steps of a timer that steps once a microsecond.
const WATCHED_NANOSECONDS: usize = 100_000;
/// Looks at the timer in that time, at most.
const LOOKS: usize = 1 << 20;

/// MHz of so many cycles in so many nanoseconds; nothing where no time has passed.
fn megahertz(cycles: i32, nanoseconds: i32) -> Option<f64> {
    (nanoseconds > 0).then(|| 1e3 * f64::from(cycles) / f64::from(nanoseconds))
}

/// Times calls: on a GPU by events, its level-2 cache emptied before each.
pub struct Clock {
    device: Device,
    flush: Option<Memory>,
    /// [2], of a real GPU.
    read: Option<Tensor>,
}

impl Clock {
    /// For a device.
    pub fn new(device: &Device) -> Result<Clock> {
        let flush = match device {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Some(gpu.memory(FLUSH)?),
        };
        let real = gpu(device).filter(|gpu| !gpu.is_emulated());
        let read = real.map(|_| ints(device, &[2], &[0, 0])).transpose()?;
        Ok(Clock { device: device.clone(), flush, read })
    }

    /// MHz that a GPU's multiprocessor runs at behind what was timed last; nothing elsewhere.
    pub fn mhz(&mut self) -> Result<Option<f64>> {
        let Some(read) = &mut self.read else { return Ok(None) };
        clock_fwd(&self.device, read, LOOKS, WATCHED_NANOSECONDS)?;
        match read.to_host()?.host::<i32>()? {
            &[cycles, nanoseconds] => Ok(megahertz(cycles, nanoseconds)),
            _ => Ok(None),
        }
    }

    /// Seconds of one call; on the CPU the mean of `repeats`.
    pub fn time(&mut self, repeats: usize, mut body: impl FnMut() -> Result<()>) -> Result<f64> {
        match &self.device {
            Device::Cpu(_) => {
                let start = Instant::now();
                (0..repeats).try_for_each(|_| body())?;
                Ok(start.elapsed().as_secs_f64() / repeats as f64)
            }
            Device::Gpu(gpu) => {
                // Queued, it also hides what the host takes to queue the call.
                if let Some(flush) = &mut self.flush {
                    flush.fill(1)?;
                }
                Ok(f64::from(gpu.time(body)?) * 1e-3)
            }
        }
    }
}

/// An emulated or real GPU, if the device is one.
pub fn gpu(device: &Device) -> Option<&Gpu> {
    match device {
        Device::Cpu(_) => None,
        Device::Gpu(gpu) => Some(gpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_stands_still_has_no_rate() {
        assert_eq!(megahertz(198_123, 100_064).map(|mhz| mhz.round()), Some(1980.0));
        assert_eq!([megahertz(0, 0), megahertz(5, 0)], [None, None]);
    }

    #[test]
    fn short_calls_are_repeated() {
        assert_eq!([1.0, 1e-3, 0.9e-3, 0.0].map(repeats), [1, 2, 3, 1_000_000]);
    }
}
