//! Damaged files without end, at each boundary where the program reads what others wrote: a value or an error, never a
//! panic, an abort, a hang, or more memory than its bound.
//!
//! Each boundary is fuzzed in a process of its own under a limit of its address space. Input `n` of a boundary is the same
//! on every machine; the process writes `n` down before it reads the input, so that any end of it names the input.

use super::inputs::{BOUNDARIES, Boundary};
use super::quick;
use crate::command::{folder, str};
use crate::common::amount;
use llm2vec::error::panics_are_errors;
use llm2vec::rng::Stream;
use std::fs;
use std::io::{Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Address space of a process, MiB: of the program, its threads and what a file of a few hundred KiB may take.
const ADDRESS_SPACE: usize = 3 << 10;
/// The most memory a process may ever have held, MiB.
const MEMORY: usize = 512;
/// No input may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers that sizes, counts and rates are not.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "3",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4611686018427387904",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "-0.0",
    "1e-320",
    "0.5",
];

/// JSON values in place of others.
const VALUES: [&str; 14] = [
    "null",
    "true",
    "false",
    "\"\"",
    "\"\\ud800\"",
    "\"../x\"",
    "\"None\"",
    "[]",
    "[[]]",
    "{}",
    "{\"\":0}",
    "[0,-1]",
    "[null]",
    "\"\\u0000\"",
];

/// Random numbers of one input.
pub struct Chance(Stream);

impl Chance {
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n.max(1) as u32) as usize
    }

    pub fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// A place, and another at or behind it, mostly near.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let most = self.one(&[4, 40, 4000]);
        from..(from + self.below(most)).min(length)
    }
}

/// Where a JSON value, or a number of any text, begins and ends near a place.
fn value(bytes: &[u8], from: usize) -> std::ops::Range<usize> {
    let starts = |b: &u8| b":,[(= ".contains(b);
    let start = bytes[from..].iter().position(starts).map_or(bytes.len(), |at| from + at + 1);
    let ends = |b: &u8| b",]})\n;".contains(b);
    start..bytes[start..].iter().position(ends).map_or(bytes.len(), |at| start + at)
}

/// One change of some bytes.
fn change(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    let range = chance.range(bytes.len());
    match chance.below(14) {
        0 if !bytes.is_empty() => {
            let at = chance.below(bytes.len());
            bytes[at] ^= 1 << chance.below(8);
        }
        1 if !bytes.is_empty() => {
            let at = chance.below(bytes.len());
            bytes[at] = chance.below(256) as u8;
        }
        2 => bytes.truncate(range.start),
        3 => drop(bytes.drain(range)),
        4 => {
            let copy = bytes[range.clone()].to_vec();
            bytes.splice(range.end..range.end, copy);
        }
        5 => {
            let copy = bytes[range].repeat(1 + chance.below(200));
            let at = chance.below(bytes.len() + 1);
            bytes.splice(at..at, copy);
        }
        6 => {
            let from = chance.range(other.len());
            bytes.splice(range, other[from].to_vec());
        }
        // Numbers and values of texts.
        7 | 8 => {
            let number = chance.one(&NUMBERS);
            let place = value(bytes, range.start);
            bytes.splice(place, number.bytes());
        }
        9 => {
            let new = chance.one(&VALUES);
            let place = value(bytes, range.start);
            bytes.splice(place, new.bytes());
        }
        10 => {
            let (a, b) = (value(bytes, range.start), value(bytes, chance.below(bytes.len() + 1)));
            let copy = bytes[b].to_vec();
            bytes.splice(a, copy);
        }
        // Numbers of binary headers.
        11 if bytes.len() > 8 => {
            let numbers = [0, 1, 8, u64::MAX, u64::MAX - 7, 1 << 31, 1 << 32, 1 << 61, i64::MAX as u64];
            let number = chance.one(&numbers).to_le_bytes();
            let width = chance.one(&[1, 2, 4, 8]);
            let at = if chance.below(2) == 0 { 0 } else { chance.below(bytes.len() - 8) };
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        12 => {
            let text = chance.one(&["[", "{\"a\":", "(", "\"", "\n", "\u{fffd}", "\\u", "9"]);
            let times = chance.one(&[1, 10, 200, 30_000]);
            bytes.splice(range, text.repeat(times).bytes());
        }
        _ => {
            let at = range.start.min(bytes.len() / 2);
            bytes.rotate_left(at);
        }
    }
}

/// Input `number` of a boundary: a seed with some changes.
fn input(boundary: &Boundary, seeds: &[Vec<u8>], number: u64) -> (Vec<u8>, Chance) {
    let name = boundary.name.bytes().fold(7u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    let mut chance = Chance(Stream::new(number, [name, 0, 0]));
    let (mut bytes, other) = (chance.one(seeds), chance.one(seeds));
    for _ in 0..1 + chance.below(5) {
        change(&mut bytes, &other, &mut chance);
    }
    (bytes, chance)
}

/// Fuzzes one boundary till its time is over; the first inputs are the seeds themselves, which it takes.
#[test]
#[ignore = "run by the tests below"]
fn child() {
    let Some(name) = std::env::var_os("FUZZED") else { return };
    let boundary = BOUNDARIES.iter().find(|b| *b.name == *name).unwrap();
    let dir = quick();
    let seeds = (boundary.seeds)(dir.path());
    for (place, seed) in seeds.iter().enumerate() {
        let mut chance = Chance(Stream::new(0, [0; 3]));
        assert!((boundary.read)(dir.path(), seed, &mut chance), "seed {place} is refused");
    }
    let log = Path::new(&std::env::var_os("FUZZ_LOG").unwrap()).to_path_buf();
    let mut current = fs::File::create(&log).unwrap();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // One that becomes an error is none of ours.
        if !panics_are_errors() {
            hook(info);
        }
    }));
    let end = Instant::now() + Duration::from_secs(amount("FUZZ_SECONDS", 0) as u64);
    let from = amount("FUZZ_FROM", 0) as u64;
    let (mut number, mut taken, mut slowest) = (from, 0u64, (Duration::ZERO, 0));
    while Instant::now() < end {
        current.rewind().unwrap();
        current.write_all(format!("{number:20}").as_bytes()).unwrap();
        let (bytes, mut chance) = input(boundary, &seeds, number);
        let started = Instant::now();
        let read = catch_unwind(AssertUnwindSafe(|| (boundary.read)(dir.path(), &bytes, &mut chance)));
        taken += u64::from(read.expect("no panic"));
        slowest = slowest.max((started.elapsed(), number));
        assert!(slowest.0 < PATIENCE, "input {number} took {:?}", slowest.0);
        number += 1;
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let (inputs, slowest) = (number - from, slowest.0.as_millis());
    println!("FIGURES {inputs} inputs, {taken} taken, peak {} MiB, slowest {slowest} ms", peak >> 10);
    // A page of Parquet says in 31 bits how large it is unpacked, and its library makes room for that, for every column of a
    // table at once: the address space is its bound.
    let most = if boundary.name == "parquet" { ADDRESS_SPACE } else { MEMORY };
    assert!(peak >> 10 < most, "{} MiB of memory, at most {most} was wanted", peak >> 10);
}

fn fuzz(name: &str) {
    let seconds = amount("LLM2VEC_FUZZ_SECONDS", 6);
    let dir = folder();
    let log = dir.path().join("number");
    let limit = format!(r#"ulimit -v {}; ulimit -c 0; exec "$0" "$@""#, ADDRESS_SPACE << 10);
    let mut command = Command::new("sh");
    command.args(["-c", &limit]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "faults::fuzz::child", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env("FUZZED", name).env("FUZZ_LOG", &log).env("FUZZ_SECONDS", seconds.to_string());
    command.env("RAYON_NUM_THREADS", "2").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let (id, last) = (child.id(), Instant::now() + Duration::from_secs(seconds as u64) + 3 * PATIENCE);
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = ended.clone();
    // What hangs is ended, and its input named below.
    let watch = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            if Instant::now() > last {
                drop(Command::new("kill").args(["-9", &id.to_string()]).status());
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let output = child.wait_with_output().unwrap();
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    watch.join().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let number = fs::read_to_string(&log).unwrap_or_default();
    let again = format!("FUZZED={name} FUZZ_FROM={} FUZZ_SECONDS=1 FUZZ_LOG={}", number.trim(), str(&log));
    assert!(output.status.success(), "{name}: {:?} at {again}\n{said}\n{wrong}", output.status);
    let figures = said.lines().find_map(|line| line.split_once("FIGURES ")).expect("figures").1;
    println!("{name}: {seconds} s, {figures}");
}

macro_rules! boundaries {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*

        #[test]
        fn every_boundary_is_fuzzed() {
            let mut here = vec![$(stringify!($name)),*];
            if cfg!(feature = "parquet") {
                here.push("parquet");
            }
            assert_eq!(BOUNDARIES.iter().map(|boundary| boundary.name).collect::<Vec<_>>(), here);
        }
    };
}

boundaries! {
    safetensors shards config adapter_config adapter tokenizer tokenizer_config jsonl json csv tsv text packed npy vectors
    modules settings tagged pairs checkpoint ptx
}

#[cfg(feature = "parquet")]
#[test]
fn parquet() {
    fuzz("parquet");
}
