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
use llm2vec::device::gpu::Gpu;
use llm2vec::device::images::{File, choose_ptx};
use llm2vec::error::Error;
use llm2vec::launches as kernels;
use ptx::{synchronising, without};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Schedules that each removal is tried under, until one notices; a single one where it is known that none has to.
const SEEDS: u64 = 4;
/// Cases that pass its line, and that it is tried with: so many from the smallest to the largest of at most so many
/// operations, and as many that pass it oftenest for what they cost. A loop that is passed once has nothing to wait for.
const CASES: usize = 4;
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
    (
        "attention_fwd_sm90",
        "barrier_sync(1",
        "the two consumers' turns are for speed; no result depends on them",
    ),
    (
        "attention_fwd_sm90",
        "at.keys_full(n)",
        "of a tile that is skipped: its values, which were sent for later, have come, and the other waits for its keys",
    ),
    (
        "attention_fwd_sm90_d64",
        "at.values_full(n)",
        "one consumer would have to be a ring of four stages behind the other; at D = 128 it has two, and this is noticed",
    ),
    (
        "attention_bwd_keys_sm90",
        "wgmma_commit",
        "the products of dv go with the group of those of dk, for which the same wait is",
    ),
    (
        "attention_bwd_keys_sm90",
        "at.known(n)",
        "one try of two, of statistics that were there long before in all of these runs",
    ),
    (
        "attention_bwd_keys_sm90",
        "fence_proxy_async",
        "the rows of dv have been written before the fence for those of dk",
    ),
    ("attention_bwd_keys_sm90", "cp_async_bulk_commit", "the store of dk goes with the group of that of dv"),
    (
        "attention_bwd_keys_sm90",
        "barrier_warpgroup(2",
        "a warpgroup's products are one to the emulator; on a GPU each of its warps reads and ends for itself",
    ),
    (
        "attention_bwd_queries_sm90",
        "mbarrier_arrive(at.posted(w))",
        "never passed: the first half of a slice has rows",
    ),
    (
        "attention_bwd_queries_sm90",
        "at.full(tile)",
        "of the tile or two that one half of a slice sees and the other does not: fewer than the ring has",
    ),
    ("_sm90", "at.ready(", "one try of two, of a slot that was ready long before in all of these runs"),
    (
        "contrastive_limit_sm90_1",
        "mbarrier_arrive(at.empty(held))",
        "of a tile's last stages: a block of these cases has one tile of the diagonal, and no next one that waits for them",
    ),
    (
        "_sm90",
        "__syncwarp",
        "the lanes that were not elected wait for the one that was; the emulator joins them itself",
    ),
];

/// A case that ran, with its right outputs.
struct Ran {
    case: Case,
    /// Lanes that passed a line of the kernels' PTX: file and line, as reports name them.
    passed: BTreeMap<String, u64>,
    /// The kernels that were launched.
    kernels: BTreeSet<&'static str>,
    /// Instructions of all kernels.
    issued: u64,
    outputs: Vec<u64>,
}

/// An emulator that counts by lines of these files' PTX, as it does where their sources are not named.
fn by_lines(capability: (u32, u32), files: &[&'static File]) -> Gpu {
    let gpu = emulated(capability);
    for file in files {
        let named = |l: &&str| l.trim_start().starts_with(".loc");
        let lines = ptx_of(file, capability).lines().map(|l| if named(&l) { "" } else { l });
        gpu.substitute(file, &lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
    gpu
}

fn all_cases(capability: (u32, u32), files: &[&'static File]) -> Vec<Ran> {
    let cases = all().into_par_iter().filter(|case| capability == (8, 0) || on_hopper(case));
    let ran = cases.map_init(
        || by_lines(capability, files),
        |gpu, case| {
            let mut outputs = None;
            let counted = gpu.count(|| {
                outputs = match run(gpu, &case, 0) {
                    Err(Failure::Refused(Error::Finding { what, .. })) => panic!("{}: {what}", case.label),
                    ran => ran.ok(),
                };
                Ok(())
            });
            let (mut passed, mut kernels, mut issued) = (BTreeMap::new(), BTreeSet::new(), 0);
            for (kernel, counters) in counted.unwrap() {
                kernels.insert(kernel);
                issued += counters.total.issued;
                for (line, count) in counters.lines.into_iter().filter(|(_, count)| count.lanes > 0) {
                    *passed.entry(line).or_default() += count.lanes;
                }
            }
            Some(Ran { case, passed, kernels, issued, outputs: bits(&outputs?) })
        },
    );
    let mut ran: Vec<Ran> = ran.flatten().collect();
    ran.sort_by_key(|r| r.issued);
    ran
}

/// The text that an emulator of this compute capability runs.
fn ptx_of(file: &'static File, capability: (u32, u32)) -> &'static str {
    let image = choose_ptx(file.images, capability).unwrap();
    std::str::from_utf8(image.bytes).unwrap().trim_end_matches('\0')
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

/// The text without the kernels that are none of these, which would take longer to parse than the others to run. Lines keep
/// their numbers.
fn only(ptx: &str, kernels: &BTreeSet<&str>) -> String {
    let (mut skipped, mut open) = (false, 0);
    let kept = ptx.lines().map(|line| {
        if let Some((_, rest)) = line.split_once(".entry ") {
            skipped = !kernels.contains(rest.split('(').next().unwrap_or_default());
        }
        let shown = if skipped { "" } else { line };
        open += line.matches('{').count();
        open -= line.matches('}').count();
        skipped &= open > 0 || !line.contains('}');
        shown
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// Why nobody has to notice, if there is a reason.
fn excuse(kernel: &str, source: &str) -> Option<&'static str> {
    REASONS.iter().find(|(name, words, _)| kernel.contains(name) && source.contains(words)).map(|r| r.2)
}

/// How it was noticed; nothing where it was not.
fn noticed(removal: &Removal, ptx: &str, capability: (u32, u32), ran: &[Ran]) -> Option<String> {
    let place = format!("{}.ptx:{}", removal.file.stem, removal.line + 1);
    let passes = |r: &Ran| r.passed.get(&place).copied();
    let fits: Vec<&Ran> = ran.iter().filter(|r| passes(r).is_some() && r.case.flops <= FLOPS).collect();
    let last = fits.len().saturating_sub(1);
    let mut spread: Vec<usize> =
        (0..CASES.min(fits.len())).map(|i| i * last / (CASES - 1).min(last).max(1)).collect();
    spread.dedup();
    let mut often: Vec<usize> = (0..fits.len()).collect();
    often.sort_by_key(|&i| std::cmp::Reverse(1_000_000 * passes(fits[i]).unwrap_or(0) / fits[i].issued));
    often.truncate(CASES);
    often.retain(|i| !spread.contains(i));
    let chosen: Vec<&Ran> = spread.iter().chain(&often).map(|&i| fits[i]).collect();
    let launched = chosen.iter().flat_map(|ran| &ran.kernels).copied().collect();
    let gpu = emulated(capability);
    gpu.substitute(removal.file, &only(&without(ptx, removal.line), &launched)).unwrap();
    let seeds = if excuse(removal.kernel, &removal.source).is_some() { 1 } else { SEEDS };
    for ran in chosen {
        for seed in 0..seeds {
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
        let why = excuse(k.0, &k.2).unwrap_or_default();
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
        let ran = all_cases(capability, &files);
        for file in files {
            let ptx = ptx_of(file, capability);
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
        assert!(
            excuse(r.kernel, &r.source).is_some(),
            "{}: `{}` of {} can go and nobody notices",
            r.kernel,
            r.instruction,
            r.source
        );
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    // Another nvcc may unroll otherwise.
    if committed.contains(&format!("nvcc {nvcc};")) {
        assert!(committed == text, "{} is out of date; LLM2VEC_UPDATE=1 writes it anew", path.display());
    }
}
