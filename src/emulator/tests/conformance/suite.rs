//! Kernels that are right, with what they must give, and planted bugs: what runs them, and those that a GPU runs too.
//!
//! Two programs hold this: the emulator's own, whose `real` does nothing, and one beside a driver, whose `real` runs the
//! same kernels on a GPU and judges what that gives.
#![allow(dead_code)] // each program uses its own part

mod aligned;
pub mod asynchronous;
mod attention;
mod boxes;
pub mod bugs;
mod bulk_groups;
mod clusters;
mod conversions;
mod cooperative;
mod correct;
mod hopper;
mod mbarrier;
mod mma;
mod overlap;
mod rules;
mod scalar;
mod tables;
pub mod warpgroup;
mod wgmma;

use super::{SEEDS, ptx, real};
pub use ptx_emulator::{
    Checks, Counters, Element, Emulator, Kind, Launch, Module, Result, Swizzle, TensorMap,
};

pub const BASICS: &str = include_str!("ptx/basics.ptx");
pub const BUGS: &str = include_str!("ptx/bugs.ptx");
pub const GEMM: &str = include_str!("ptx/gemm.ptx");

/// An argument: an array (`Scratch` where nothing has been written), one that is given back before the launch, the
/// tensor map of either kind of array, or a number.
pub enum Arg<'a> {
    In(&'a [u8]),
    Scratch(usize),
    Freed(usize),
    Map(&'a [u8], TensorMap),
    ScratchMap(usize, TensorMap),
    Int(i32),
    Long(u64),
}

/// Runs a kernel of `ptx`, strictly, and gives the arrays as they are afterwards. Scratch arrays must be wholly written.
pub fn run(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) -> Result<(Vec<Vec<u8>>, Counters)> {
    let strict = Checks { strict: true, ..Checks::default() };
    let mut emulator = Emulator::new(Module::parse("test.ptx", ptx)?)?;
    emulator.checks = strict;
    run_on(&mut emulator, kernel, launch, args)
}

/// The same on an emulator, which says afterwards what it has noted.
pub fn run_on(
    emulator: &mut Emulator,
    kernel: &str,
    launch: &Launch,
    args: &[Arg<'_>],
) -> Result<(Vec<Vec<u8>>, Counters)> {
    let (mut arrays, mut values) = (Vec::new(), Vec::new());
    for (i, arg) in args.iter().enumerate() {
        let bytes = match arg {
            Arg::In(bytes) | Arg::Map(bytes, _) => bytes.len(),
            Arg::Scratch(bytes) | Arg::ScratchMap(bytes, _) | Arg::Freed(bytes) => *bytes,
            Arg::Int(_) | Arg::Long(_) => {
                values.push(match arg {
                    Arg::Long(n) => n.to_le_bytes().to_vec(),
                    Arg::Int(n) => n.to_le_bytes().to_vec(),
                    _ => Vec::new(),
                });
                continue;
            }
        };
        let address = emulator.allocate(&format!("arg{i}"), bytes);
        if let Arg::In(bytes) | Arg::Map(bytes, _) = arg {
            emulator.write(address, bytes)?;
        }
        match arg {
            Arg::Freed(_) => emulator.free(address)?,
            _ => arrays.push((address, bytes)),
        }
        values.push(match arg {
            Arg::Map(_, map) | Arg::ScratchMap(_, map) => {
                emulator.tensor_map(&TensorMap { address, ..map.clone() })?.to_vec()
            }
            _ => address.to_le_bytes().to_vec(),
        });
    }
    let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let counters = emulator.launch(kernel, launch, &values)?;
    let read = arrays.iter().map(|(address, bytes)| emulator.read(*address, *bytes));
    Ok((read.collect::<Result<_>>()?, counters))
}

/// The same under every seed: the bits must be equal.
pub fn under_seeds(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) -> (Vec<Vec<u8>>, Counters) {
    let first = run(ptx, kernel, launch, args).unwrap();
    for seed in SEEDS {
        let again = run(ptx, kernel, &Launch { seed, ..*launch }, args).unwrap();
        assert!(again.0 == first.0, "{kernel}: seed {seed} gives other bits");
    }
    first
}

/// Under every seed, and where a GPU answers there too: all give these bits.
pub fn run_all(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) -> (Vec<Vec<u8>>, Counters) {
    assert!(ptx::is_exact(ptx, kernel), "{kernel}: a GPU may give other bits, which somebody must judge");
    bits_all(ptx, kernel, launch, args)
}

/// The same where no order of float additions by atomics matters: a place gets one, or all are whole numbers.
pub fn bits_all(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) -> (Vec<Vec<u8>>, Counters) {
    let first = under_seeds(ptx, kernel, launch, args);
    real::also(ptx, kernel, launch, args, |there| {
        assert!(there == first.0, "{kernel}: a GPU gives other bits");
    });
    first
}

/// The same where the ISA does not say every bit (see [`ptx::is_exact`]): what the emulator gives is judged, and what a
/// GPU gives is as well.
pub fn judge_all(
    ptx: &str,
    kernel: &str,
    launch: &Launch,
    args: &[Arg<'_>],
    judge: impl Fn(&[Vec<u8>]),
) -> Counters {
    let (here, counters) = under_seeds(ptx, kernel, launch, args);
    judge(&here);
    real::also(ptx, kernel, launch, args, judge);
    counters
}

/// How many lines of a kernel synchronise, and those that can be taken out one at a time without a report, and without
/// other bits, under six schedules. `run` gives the outputs of a file under a seed.
pub fn survivors(
    ptx: &str,
    kernel: &str,
    run: impl Fn(&str, u64) -> Result<Vec<Vec<u8>>>,
) -> (usize, Vec<String>) {
    let (right, lines) = (run(ptx, 0).unwrap(), ptx::synchronising(ptx, kernel));
    let unnoticed = |(removed, _): &&(usize, String)| {
        let text = ptx::without(ptx, *removed);
        (0..6).all(|seed| run(&text, seed).is_ok_and(|out| out == right))
    };
    (lines.len(), lines.iter().filter(unnoticed).map(|(_, l)| l.clone()).collect())
}

/// The same on these arguments.
pub fn survivors_of(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) -> (usize, Vec<String>) {
    survivors(ptx, kernel, |text, seed| {
        run(text, kernel, &Launch { seed, ..*launch }, args).map(|(out, _)| out)
    })
}

/// Why lines may be left out: what they begin with, how many, the reason.
pub type Spare<'a> = &'a [(&'a str, usize, &'a str)];

/// So many lines synchronise, and those that survive are those that have a reason.
pub fn excused((lines, left): (usize, Vec<String>), count: usize, spare: Spare<'_>, kernel: &str) {
    let found = |opcode: &str| left.iter().filter(|line| line.starts_with(opcode)).count();
    let all = spare.iter().all(|(opcode, times, _)| found(opcode) == *times);
    let sum = spare.iter().map(|(_, times, _)| times).sum::<usize>();
    assert!(all && sum == left.len() && lines == count, "{kernel}: {lines} lines, unnoticed {left:?}");
}

pub fn line(blocks: u32, threads: u32) -> Launch {
    Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], ..Launch::default() }
}

pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub fn i32s(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

pub fn bytes_of<T: bytemuck::NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Numbers between -1 and 1, the same each time.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
