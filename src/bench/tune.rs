//! Which tiles are the faster for products on the GPU that is there: each is held to the bits of the default, then timed in turn with
//! it.

use super::cases::Case;
use super::check::outputs;
use super::measure::Deadline;
use super::record::{Spread, now};
use super::subject::Operands;
use crate::device::Device;
use crate::device::choice::{Table, Tile, bucket};
use crate::device::gpu::Gpu;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::time::Duration;

/// What all ops may take, and one: its checks and its rounds.
pub const TOTAL: Duration = Duration::from_secs(60);
/// Likewise.
pub const EACH: Duration = Duration::from_secs(2);
/// Times that all tiles of an op are timed, in turn.
const ROUNDS: usize = 5;
/// Tiles replace the default's only if the default takes so much longer.
const GAIN: f64 = 1.03;
/// A sample lasts about so long, in seconds: short calls are repeated.
const SAMPLE: f64 = 0.01;

/// What was found for one call.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The calls that it stands for.
    pub bucket: String,
    /// The fastest tiles, where they are faster than the default by enough; and the default's time over its own.
    pub best: Option<(Tile, f64)>,
    /// What was dropped, or why nothing was timed.
    pub notes: Vec<String>,
}

/// The calls that a case stands for; nothing where there is no choice.
pub fn subject(case: &Case) -> Option<String> {
    let sizes = ["N", "K", "M"].iter().map(|l| case.facts.size(l)).collect::<Option<Vec<usize>>>();
    let suffix = if case.facts.segments.is_empty() { " plain" } else { "" };
    let has = ["lora_linear_fwd", "lora_linear_bwd"].contains(&case.op);
    has.then(|| Some(bucket(&format!("{}{suffix}", case.op), &sizes?))).flatten()
}

/// Finds the fastest tiles of each case's calls until the time is over; each bucket's first case stands for it.
///
/// Errors where the device does; a case that it refuses is left out.
pub fn tune(gpu: &Gpu, cases: &[Case], say: &dyn Fn(String)) -> Result<(Table, Vec<Found>)> {
    let (mut found, total) = (Vec::<Found>::new(), Deadline::new(Some(TOTAL)));
    let operands = Operands::new(&Device::Gpu(gpu.clone()));
    let gpu = gpu.clone().tuned(None);
    for case in cases {
        let Some(bucket) = subject(case).filter(|b| found.iter().all(|f| f.bucket != *b)) else { continue };
        if total.over(1.0) {
            let notes = vec![format!("not timed: {} s were over", TOTAL.as_secs())];
            found.push(Found { bucket, best: None, notes });
            continue;
        }
        say(format!("{bucket}: {} {}", case.op, case.label));
        match one(&gpu, &operands, case) {
            Ok((best, notes)) => found.push(Found { bucket, best, notes }),
            Err(Error::Limit { .. }) => {}
            Err(e) => found.push(Found { bucket, best: None, notes: vec![e.to_string()] }),
        }
    }
    let picks = found.iter().filter_map(|f| Some((f.bucket.clone(), f.best?.0))).collect();
    Ok((Table { date: now(), picks }, found))
}

type Best = Option<(Tile, f64)>;

/// The fastest tiles of a case that give the default's bits, and what was dropped.
fn one(gpu: &Gpu, operands: &Operands, case: &Case) -> Result<(Best, Vec<String>)> {
    let deadline = Deadline::new(Some(EACH));
    let by = |tile: Tile| Device::Gpu(gpu.clone().only(tile));
    let of = |device: &Device| Ok::<_, Error>(bits(case, &outputs(operands, device, case)?));
    let wanted = of(&Device::Gpu(gpu.clone()))?;
    let (mut right, mut notes) = (Vec::new(), Vec::new());
    for tile in Tile::ALL {
        match of(&by(tile))? == wanted {
            true => right.push(tile),
            false => notes.push(format!("{} dropped: gives other bits", tile.name())),
        }
    }
    let default = Device::Gpu(gpu.clone());
    let devices: Vec<Device> = [default].into_iter().chain(right.iter().map(|&tile| by(tile))).collect();
    let Some(times) = timed(gpu, operands, case, &devices, &deadline)? else {
        notes.push(format!("not timed: {ROUNDS} rounds take more than {} s", EACH.as_secs()));
        return Ok((None, notes));
    };
    let gains = right.iter().zip(&times[1..]).map(|(&tile, time)| (tile, times[0] / time));
    let best = gains.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, gain)| *gain >= GAIN);
    Ok((best, notes))
}

/// The median time of each device's calls, in turn and hot; nothing where the time is over before the last round.
fn timed(
    gpu: &Gpu,
    operands: &Operands,
    case: &Case,
    devices: &[Device],
    deadline: &Deadline,
) -> Result<Option<Vec<f64>>> {
    let (mut outputs, inputs) = (operands.list(&case.outputs)?, operands.list(&case.inputs)?);
    let mut call = |device: &Device, times: usize| -> Result<f64> {
        let all = gpu.time(|| (0..times).try_for_each(|_| (case.run)(device, &mut outputs, &inputs)))?;
        Ok(f64::from(all) * 1e-3 / times as f64)
    };
    let repeats = (SAMPLE / call(&devices[0], 1)?.max(1e-6)).clamp(1.0, 1000.0) as usize;
    let mut samples = vec![Vec::new(); devices.len()];
    for _ in 0..ROUNDS {
        if deadline.over(1.0) {
            return Ok(None);
        }
        for (device, samples) in devices.iter().zip(&mut samples) {
            samples.push(call(device, repeats)?);
        }
    }
    Ok(samples.iter().map(|samples| Some(Spread::of(samples)?.median)).collect())
}

/// The results' bits.
fn bits(case: &Case, outputs: &[Tensor]) -> Vec<u64> {
    let results = case.outputs.iter().zip(outputs).filter(|(operand, _)| operand.role.is_result());
    results.flat_map(|(_, tensor)| tensor.to_f64()).map(f64::to_bits).collect()
}
