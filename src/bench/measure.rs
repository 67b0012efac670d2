//! How cases are timed: rounds across all of them, so that a machine that grows warm or busy is so for each alike.

use super::cases::Case;
use super::record::{Counted, Roof, Row, Spread};
use super::rival::Python;
use super::roof::{Bounds, better, bounds, share};
use super::subject::{Clock, Operands, Subject};
use crate::device::Device;
use crate::device::emulator::Counters;
use crate::device::gpu::Gpu;
use crate::error::{Error, Result, Setting, Spelling, message};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_fit_and_leave_nothing_out() {
        assert_eq!(groups(&[3, 4, 5, 1, 20, 2], 10), [0..2, 2..4, 4..5, 5..6]);
        assert_eq!(groups(&[1, 1, 9], 10), [0..2, 2..3]);
        assert!(groups(&[], 10).is_empty());
    }
}
