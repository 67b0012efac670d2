//! Any one barrier, wait or fence taken out of our own kernels is noticed by the emulator: a report, or other bits. What
//! is not stands in `tests/snapshots/removals.md` with the reason.
//!
//! `LLM2VEC_UPDATE=1 cargo test --release --test device removals::` writes that table anew.

use crate::answers;
use crate::ptx;
use crate::run as device;

use device::{Failure, all, bits, emulated, on_hopper, run};
use llm2vec::bench::cases::Case;
use llm2vec::device::emulator::Kind;
use llm2vec::device::images::{File, choose_ptx};
use llm2vec::error::Error;
use llm2vec::launches as kernels;
use ptx::{synchronising, without};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// Schedules that each removal is tried under, until one notices.
const SEEDS: u64 = 4;
/// Cases of its kernel that it is tried with, small ones first: so many between the smallest and the largest of at most
/// so many operations. A loop that is passed once has nothing to wait for.
const CASES: usize = 8;
const FLOPS: usize = 1 << 28;

/// Reports that a missing order has.
const KINDS: [Kind; 7] = [
    Kind::Race,
    Kind::Uninitialised,
    Kind::Access,
    Kind::Fence,
    Kind::Barrier,
    Kind::Deadlock,
    Kind::Warpgroup,
];

/// Removals that nobody notices, and why that is right: what the kernel's name holds, words of the source line, reason.
const REASONS: &[(&str, &str, &str)] = &[
    (
        "_sm90",
        "setmaxnreg_inc",
        "registers that ptxas would have to spill; the emulator has as many as are named",
    ),
    (
        "_sm90",
        "wgmma_fence",
        "between stages nothing touches the sums; ptxas puts one there itself where it is not",
    ),
    ("_sm90", "wgmma_wait<1>", "a tile's first stage has none before it, unless it has ranks"),
    ("_sm90", "at.ready(", "one try of two, of a slot that was ready long before in all of these runs"),
    ("_sm90", "at.staged(", "one try of two, of a panel that was staged long before in all of these runs"),
    (
        "_sm90",
        "__syncwarp",
        "the lanes that were not elected wait for the one that was; the emulator joins them itself",
    ),
];

/// A case that ran, with the kernels that it launched and its right outputs.
struct Ran {
    case: Case,
    launched: BTreeSet<&'static str>,
    outputs: Vec<u64>,
}

fn all_cases(capability: (u32, u32)) -> Vec<Ran> {
    let cases = all().into_par_iter().filter(|case| capability == (8, 0) || on_hopper(case));
    let ran = cases.filter_map(|case| {
        let gpu = emulated(capability);
        let mut outputs = None;
        let counted = gpu.count(|| {
            outputs = run(&gpu, &case, 0).ok();
            Ok(())
        });
        let launched = counted.unwrap().into_iter().map(|(kernel, _)| kernel).collect();
        Some(Ran { case, launched, outputs: bits(&outputs?) })
    });
    let mut ran: Vec<Ran> = ran.collect();
    ran.sort_by_key(|r| r.case.flops);
    ran
}

/// One line taken out.
struct Removal {
    file: &'static File,
    kernel: &'static str,
    line: usize,
    instruction: String,
    /// The source line that it comes from.
    source: String,
}

/// How it was noticed; nothing where it was not.
fn noticed(removal: &Removal, ptx: &str, capability: (u32, u32), ran: &[Ran]) -> Option<String> {
    let gpu = emulated(capability);
    gpu.substitute(removal.file, &without(ptx, removal.line)).unwrap();
    let fits = |r: &&Ran| r.launched.contains(removal.kernel) && r.case.flops <= FLOPS;
    let fits: Vec<&Ran> = ran.iter().filter(fits).collect();
    for ran in fits.iter().step_by(fits.len().div_ceil(CASES).max(1)).chain(fits.iter().rev().take(2)) {
        for seed in 0..SEEDS {
            gpu.seed(seed);
            match run(&gpu, &ran.case, 0) {
                Err(Failure::Refused(Error::Finding { kind, .. })) if KINDS.contains(&kind) => {
                    return Some(kind.to_string());
                }
                Err(why) => panic!("no report: {why}"),
                Ok(outputs) if bits(&outputs) != ran.outputs => return Some("other bits".into()),
                Ok(_) => {}
            }
        }
    }
    None
}

/// The source line of a PTX line: `file.cu: text`, of the caller's where it was inlined.
fn source(ptx: &str, line: usize) -> String {
    let before: Vec<&str> = ptx.lines().take(line).collect();
    let Some(loc) = before.iter().rev().find_map(|l| l.trim().strip_prefix(".loc")) else {
        return String::new();
    };
    let place = loc.rsplit("inlined_at").next().unwrap_or(loc);
    let numbers: Vec<usize> = place.split([' ', '\t', ',']).filter_map(|w| w.parse().ok()).collect();
    let [file, at, ..] = numbers[..] else { return String::new() };
    let named = ptx.lines().find_map(|l| l.trim().strip_prefix(&format!(".file\t{file} ")));
    let path = named.and_then(|l| l.split('"').nth(1)).unwrap_or_default();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default();
    let line: String = text.lines().nth(at - 1).unwrap_or_default().trim().chars().take(70).collect();
    let name = path.rsplit('/').next().unwrap_or_default();
    format!("{name}: {}", line.replace('|', "\\|"))
}

fn removals(file: &'static File, ptx: &str) -> Vec<Removal> {
    let of = |kernel: &&'static str| {
        let lines = synchronising(ptx, kernel).into_iter();
        let kernel = *kernel;
        lines.map(move |(line, instruction)| Removal {
            file,
            kernel,
            line,
            instruction,
            source: source(ptx, line),
        })
    };
    file.kernels.iter().flat_map(of).collect()
}

/// A row a source line: kernel, instruction, source, how many there are in PTX, how many were noticed, how or why not.
fn rows(found: &[(Removal, Option<String>)]) -> Vec<String> {
    let key = |r: &Removal| (r.kernel, r.instruction.clone(), r.source.clone());
    let mut keys: Vec<_> = found.iter().map(|(r, _)| key(r)).collect();
    keys.dedup();
    let mut seen = BTreeSet::new();
    keys.retain(|k| seen.insert(k.clone()));
    let row = |k: &(&str, String, String)| {
        let all: Vec<_> = found.iter().filter(|(r, _)| key(r) == *k).collect();
        let how: BTreeSet<&str> = all.iter().filter_map(|(_, how)| how.as_deref()).collect();
        let how: Vec<&str> = how.into_iter().collect();
        let missed = all.iter().filter(|(_, how)| how.is_none()).count();
        let why = REASONS.iter().find(|r| k.0.contains(r.0) && k.2.contains(r.1)).map_or("", |r| r.2);
        let note =
            if missed == 0 { how.join(", ") } else { format!("{} not noticed: {why}", how.join(", ")) };
        format!("| {} | `{}` | `{}` | {} | {} | {note} |", k.0, k.1, k.2, all.len(), all.len() - missed)
    };
    keys.iter().map(row).collect()
}

#[test]
fn every_barrier_wait_and_fence_of_our_kernels_is_needed() {
    let Some(nvcc) = option_env!("LLM2VEC_NVCC").filter(|_| answers::built()) else { return };
    let mut found = Vec::new();
    for capability in [(8, 0), (9, 0)] {
        // Portable kernels are the same on both.
        let mine = |f: &&&'static File| f.stem.ends_with("_sm90") == (capability.0 == 9);
        let files: Vec<&'static File> = kernels::FILES.iter().filter(mine).copied().collect();
        if files.is_empty() {
            continue;
        }
        let ran = all_cases(capability);
        for file in files {
            let image = choose_ptx(file.images, capability).unwrap();
            let ptx = std::str::from_utf8(image.bytes).unwrap().trim_end_matches('\0');
            found.par_extend(removals(file, ptx).into_par_iter().map(|removal| {
                let how = noticed(&removal, ptx, capability, &ran);
                (removal, how)
            }));
        }
    }
    let table = rows(&found);
    let head = format!(
        "# Barriers, waits and fences of our kernels, each taken out alone\n\n\
         Of the PTX by nvcc {nvcc}; written by `LLM2VEC_UPDATE=1 cargo test --release --test device removals::`. The last three columns: \
         lines in the PTX, how many of them are noticed when they go, how.\n\n\
         | kernel | instruction | source | lines | noticed | how |\n|---|---|---|---|---|---|\n"
    );
    let text = format!("{head}{}\n", table.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/removals.md");
    if std::env::var("LLM2VEC_UPDATE").is_ok_and(|v| v == "1") {
        std::fs::write(&path, &text).unwrap();
    }
    for (r, _) in found.iter().filter(|(_, how)| how.is_none()) {
        let excused =
            REASONS.iter().any(|(kernel, words, _)| r.kernel.contains(kernel) && r.source.contains(words));
        assert!(excused, "{}: `{}` of {} can go and nobody notices", r.kernel, r.instruction, r.source);
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    // Another nvcc may unroll otherwise.
    if committed.contains(&format!("nvcc {nvcc};")) {
        assert!(committed == text, "{} is out of date; LLM2VEC_UPDATE=1 writes it anew", path.display());
    }
}
