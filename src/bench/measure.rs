//! How cases are timed: rounds across all of them, so that a machine that grows warm or busy is so for each alike.

use super::cases::large::roofs;
use super::cases::{Case, Fill, Operand};
use super::record::{Counted, Rival, Roof, Row, Spread};
use super::rival::Python;
use crate::device::emulator::Counters;
use crate::device::gpu::{Gpu, Memory};
use crate::device::{DType, Device};
use crate::error::{Error, Result, Setting, Spelling, message};
use crate::ops::clock::clock_fwd;
use crate::rng::normal;
use crate::tensor::Tensor;
use std::time::{Duration, Instant};

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Times through all cases; 0 runs each once, untimed.
    pub rounds: usize,
    /// Times that a case is timed in a round.
    pub samples: usize,
    /// After so long no round begins; what was timed until then is all.
    pub time: Option<Duration>,
    /// How notes name a setting.
    pub spelling: Spelling,
}

/// When rounds end.
pub struct Deadline {
    start: Instant,
    time: Option<Duration>,
}

impl Deadline {
    /// The clock starts.
    pub fn new(time: Option<Duration>) -> Deadline {
        Deadline { start: Instant::now(), time }
    }

    /// Whether this part of the time is over.
    pub fn over(&self, part: f64) -> bool {
        self.time.is_some_and(|time| self.start.elapsed() >= time.mul_f64(part))
    }
}

/// A prime, so that no row of a matrix is like another: to draw as many numbers as a large operand has takes minutes.
pub(super) const DRAWN: usize = 1_000_003;

/// More than the level-2 cache of any GPU.
const FLUSH: usize = 256 << 20;

/// A sample on the CPU lasts at least this long, in seconds: short calls are repeated.
const SHORTEST: f64 = 2e-3;

/// Tensors for a case on a device, filled from a pool of normal numbers.
pub struct Operands {
    device: Device,
    numbers: Vec<f64>,
}

impl Operands {
    /// The same numbers in every run.
    pub fn new(device: &Device) -> Operands {
        Operands { device: device.clone(), numbers: normal(17, DRAWN) }
    }

    /// One list of a case's operands; each name begins somewhere else in the pool.
    pub(super) fn list(&self, list: &[Operand]) -> Result<Vec<Tensor>> {
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
    fn size(&self, case: &Case) -> u64 {
        case.outputs.iter().chain(&case.inputs).map(|operand| operand.bytes(&self.device) as u64).sum()
    }
}

/// Calls that make a sample long enough, by the seconds of one.
fn repeats(one: f64) -> usize {
    (SHORTEST / one).ceil().clamp(1.0, 1e6) as usize
}

/// Integers on a device.
pub(super) fn ints(device: &Device, shape: &[usize], values: &[i32]) -> Result<Tensor> {
    let mut t = Tensor::zeros(DType::I32, shape);
    t.host_mut()?.copy_from_slice(values);
    match device {
        Device::Cpu(_) => Ok(t),
        Device::Gpu(gpu) => t.to_gpu(gpu, DType::I32),
    }
}

/// A case with its operands.
pub struct Subject<'a> {
    case: &'a Case,
    outputs: Vec<Tensor>,
    inputs: Vec<Tensor>,
    /// Calls in a sample; 0 before the first.
    repeats: usize,
    samples: Vec<f64>,
    /// MHz behind each of them, where there is a clock.
    clocks: Vec<f64>,
}

impl<'a> Subject<'a> {
    /// Made, and run once.
    pub fn new(operands: &Operands, case: &'a Case) -> Result<Subject<'a>> {
        let (outputs, inputs) = (operands.list(&case.outputs)?, operands.list(&case.inputs)?);
        let mut subject =
            Subject { case, outputs, inputs, repeats: 0, samples: Vec::new(), clocks: Vec::new() };
        subject.call(&operands.device)?;
        if let Device::Gpu(gpu) = &operands.device {
            gpu.synchronize()?;
        }
        Ok(subject)
    }

    /// With its weight as bf16 panels.
    fn packed(mut self) -> Result<Subject<'a>> {
        if let Some(at) = self.case.inputs.iter().position(|operand| operand.name == "w") {
            let w = &self.inputs[at];
            let mut panels = Tensor::panels(DType::Bf16, [w.shape()[0], w.shape()[1]]);
            panels.put_rows(0, w.host::<f32>()?)?;
            self.inputs[at] = panels;
        }
        Ok(self)
    }

    /// The call that is timed.
    pub fn call(&mut self, device: &Device) -> Result<()> {
        (self.case.run)(device, &mut self.outputs, &self.inputs)
    }

    fn sample(&mut self, clock: &mut Clock, samples: usize) -> Result<()> {
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

/// The cases that the roof is measured by, in sizes that a device needs to reach it.
pub fn bounds(device: &Device) -> [Case; 2] {
    match device {
        // Fewer rows do not reach it.
        Device::Cpu(_) => roofs(8192, 2048),
        Device::Gpu(_) => roofs(65536, 8192),
    }
}

/// The roof as it is measured: a copy and a product, as far as the device has them.
#[derive(Default)]
pub struct Bounds<'a>([Option<Subject<'a>>; 2]);

impl<'a> Bounds<'a> {
    /// Of [`bounds`]; on the CPU the product's weight may be packed bf16 panels.
    pub fn new(operands: &Operands, cases: &'a [Case; 2], panels: bool) -> Bounds<'a> {
        let [copy, mut product] = cases.each_ref().map(|case| Subject::new(operands, case).ok());
        if panels {
            product = product.and_then(|product| product.packed().ok());
        }
        Bounds([copy, product])
    }

    /// Times both.
    pub fn sample(&mut self, clock: &mut Clock, samples: usize) -> Result<()> {
        self.0.iter_mut().flatten().try_for_each(|bound| bound.sample(clock, samples))
    }

    /// By the medians so far.
    pub fn roof(&self, device: &Device) -> Roof {
        let rate = |bound: &Option<Subject>, amount: fn(&Device, &Case) -> f64| {
            let bound = bound.as_ref()?;
            Some(amount(device, bound.case) / Spread::of(&bound.samples)?.median)
        };
        Roof {
            bytes_per_second: rate(&self.0[0], |device, case| case.bytes(device) as f64),
            flops_per_second: rate(&self.0[1], |_, case| case.flops as f64),
            product: gpu(device).map(|_| "our own kernel".into()),
        }
    }
}

/// Times every case; `rival` times its own way of each in between. The roof comes first in every round.
pub fn ops(
    device: &Device,
    cases: &[Case],
    settings: Settings,
    mut rival: Option<&mut Python>,
    say: &dyn Fn(String),
) -> Result<(Vec<Row>, Roof)> {
    let (operands, mut clock) = (Operands::new(device), Clock::new(device)?);
    let mut rows: Vec<Row> = cases.iter().map(|case| blank(device, case)).collect();
    let bounds = bounds(device);
    let mut bounds =
        if settings.rounds > 0 { Bounds::new(&operands, &bounds, false) } else { Bounds::default() };
    let sizes: Vec<u64> = cases.iter().map(|case| operands.size(case)).collect();
    let deadline = Deadline::new(settings.time);
    for group in groups(&sizes, device.available().map_or(u64::MAX, |free| free / 2)) {
        if group.start > 0 && deadline.over(1.0) {
            let over = message!["not timed: ", Setting::Seconds, " were over"].spelled(settings.spelling);
            rows[group].iter_mut().for_each(|row| row.note = Some(over.clone()));
            continue;
        }
        let mut subjects: Vec<Option<Subject>> = Vec::new();
        for i in group.clone() {
            say(format!("preparing {} of {}: {} {}", i + 1, cases.len(), cases[i].op, cases[i].label));
            subjects.push(prepared(&operands, &cases[i], &mut rows[i]));
        }
        // Groups share the time by their cases; each has a round.
        let part = group.end as f64 / cases.len() as f64;
        for round in 1..=settings.rounds {
            if round > 1 && deadline.over(part) {
                break;
            }
            say(format!("round {round} of {}, cases to {} of {}", settings.rounds, group.end, cases.len()));
            bounds.sample(&mut clock, settings.samples)?;
            for (i, subject) in group.clone().zip(&mut subjects) {
                if let Some(Err(e)) = subject.as_mut().map(|s| s.sample(&mut clock, settings.samples)) {
                    fail(&mut rows[i], &e);
                    *subject = None;
                }
                if let (Some(rival), Some(_)) = (rival.as_deref_mut(), &*subject) {
                    rival.run(i, settings.samples);
                }
            }
        }
        for (i, subject) in group.zip(&subjects) {
            rows[i].time = subject.as_ref().and_then(|s| Spread::of(&s.samples));
            rows[i].clock_mhz = subject.as_ref().and_then(|s| Some(Spread::of(&s.clocks)?.median));
            if let Some(rival) = rival.as_deref_mut() {
                rows[i].rivals = rival.taken(i);
            }
        }
    }
    let roof = better(bounds.roof(device), &rows);
    rows.iter_mut().for_each(|row| row.share = share(row, &roof));
    Ok((rows, roof))
}

/// What every case costs on an emulated GPU, counted in one call.
pub fn costs(gpu: &Gpu, cases: &[Case], say: &dyn Fn(String)) -> Result<Vec<Row>> {
    let device = Device::Gpu(gpu.clone());
    let operands = Operands::new(&device);
    let one = |(i, case): (usize, &Case)| {
        say(format!("counting {} of {}: {} {}", i + 1, cases.len(), case.op, case.label));
        let mut row = blank(&device, case);
        match counted(gpu, &operands, case) {
            Ok(counted) => row.counted = Some(counted),
            Err(e) => fail(&mut row, &e),
        }
        Ok(row)
    };
    cases.iter().enumerate().map(one).collect()
}

fn counted(gpu: &Gpu, operands: &Operands, case: &Case) -> Result<Counted> {
    let (mut outputs, inputs) = (operands.list(&case.outputs)?, operands.list(&case.inputs)?);
    let launches = gpu.count(|| (case.run)(&operands.device, &mut outputs, &inputs))?;
    let mut sum = Counted::default();
    for (kernel, counters) in launches {
        let total = counters.total;
        sum.bytes += total.bytes;
        sum.touched += counters.read + counters.written;
        sum.sectors += 32 * total.sectors;
        sum.flops += total.flops;
        sum.conflicts += total.conflicts;
        sum.kernels.push(resources(gpu, kernel, &counters));
    }
    Ok(sum)
}

/// A kernel with what ptxas says that it takes on this GPU, launched like this.
fn resources(gpu: &Gpu, kernel: &str, launched: &Counters) -> String {
    let (major, minor) = gpu.capability();
    let target = format!("sm_{major}{minor}");
    let all = crate::kernels::FILES.iter().flat_map(|f| f.resources);
    let of = all.filter(|r| r.kernel == kernel).find(|r| r.target.trim_end_matches('a') == target);
    of.map_or(kernel.into(), |r| {
        let (blocks, part) = r.occupancy(launched.threads, launched.dynamic as u32);
        format!("{kernel} ({} registers, {blocks} blocks = {:.0} % occupancy)", r.registers, 100.0 * part)
    })
}

/// A row without measurements.
pub fn blank(device: &Device, case: &Case) -> Row {
    let (bytes, flops) = (case.bytes(device), case.flops as u64);
    Row { op: case.op.into(), label: case.label.clone(), bytes, flops, ..Row::default() }
}

/// A case ready to be timed, or a note in its row.
fn prepared<'a>(operands: &Operands, case: &'a Case, row: &mut Row) -> Option<Subject<'a>> {
    match Subject::new(operands, case) {
        Ok(subject) => Some(subject),
        Err(e) => {
            fail(row, &e);
            None
        }
    }
}

/// Notes why a row has no numbers: a refusal of the op's is none of ours.
pub fn fail(row: &mut Row, error: &Error) {
    (row.failed, row.note) = (!matches!(error, Error::Limit { .. }), Some(error.to_string()));
}

/// Runs of neighbours that fit `most` bytes together; one that does not is tried alone.
fn groups(sizes: &[u64], most: u64) -> Vec<std::ops::Range<usize>> {
    let (mut list, mut first, mut sum) = (Vec::new(), 0, 0);
    for (i, &size) in sizes.iter().enumerate() {
        if i > first && sum + size > most {
            list.push(first..i);
            (first, sum) = (i, 0);
        }
        sum += size;
    }
    list.extend((first < sizes.len()).then_some(first..sizes.len()));
    list
}

/// The roof with the product of the rival's that is faster, if one is.
fn better(roof: Roof, rows: &[Row]) -> Roof {
    let products = rows.iter().flat_map(|row| {
        let plain = row.rivals.iter().filter(|(name, _)| name.starts_with("F.linear"));
        plain.filter_map(|(name, rival)| match rival {
            Rival::Time(t) => Some((row.flops as f64 / t.median, name)),
            Rival::Note(_) => None,
        })
    });
    match products.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((rate, name)) if roof.flops_per_second.is_none_or(|ours| rate > ours) => {
            Roof { flops_per_second: Some(rate), product: Some(format!("the rival's {name}")), ..roof }
        }
        _ => roof,
    }
}

/// The least time that the roof leaves for the bytes and the operations of a row, over its median.
fn share(row: &Row, roof: &Roof) -> Option<f64> {
    let least = |amount: u64, rate: Option<f64>| rate.map(|r| amount as f64 / r);
    let (bytes, flops) = (least(row.bytes, roof.bytes_per_second)?, least(row.flops, roof.flops_per_second)?);
    Some(bytes.max(flops) / row.time?.median)
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
    fn the_roof_is_the_better_product() {
        let time = |median: f64| Rival::Time(Spread { median, least: median, samples: 1 });
        let rivals = [("F.linear (cuBLAS)", 1e-3), ("bound: F.linear, no adapter", 1e-9), ("peft", 1e-9)];
        let rivals = rivals.into_iter().map(|(name, s)| (name.to_string(), time(s))).collect();
        let rows = [Row { flops: 1_000_000_000, rivals, ..Row::default() }, Row::default()];
        let ours = |rate| Roof {
            flops_per_second: Some(rate),
            product: Some("our own kernel".into()),
            ..Roof::default()
        };
        assert_eq!(better(ours(2e12), &rows), ours(2e12));
        let theirs = better(ours(0.5e12), &rows);
        assert_eq!(theirs.flops_per_second, Some(1e12));
        assert_eq!(theirs.product.as_deref(), Some("the rival's F.linear (cuBLAS)"));
    }

    #[test]
    fn a_clock_that_stands_still_has_no_rate() {
        assert_eq!(megahertz(198_123, 100_064).map(|mhz| mhz.round()), Some(1980.0));
        assert_eq!([megahertz(0, 0), megahertz(5, 0)], [None, None]);
    }

    #[test]
    fn short_calls_are_repeated() {
        assert_eq!([1.0, 1e-3, 0.9e-3, 0.0].map(repeats), [1, 2, 3, 1_000_000]);
    }

    #[test]
    fn groups_fit_and_leave_nothing_out() {
        assert_eq!(groups(&[3, 4, 5, 1, 20, 2], 10), [0..2, 2..4, 4..5, 5..6]);
        assert_eq!(groups(&[1, 1, 9], 10), [0..2, 2..3]);
        assert!(groups(&[], 10).is_empty());
    }
}
