//! What the emulator counts in each kernel of each case, beside the table that is committed.

use llm2vec::bench::cases::Case;
use llm2vec::device::emulator::Counters;
use llm2vec::launches::FILES;
use std::collections::BTreeMap;
use std::path::Path;

/// Bank conflicts, of which our kernels have none.
pub fn conflicts(counted: &[(&'static str, Counters)]) -> Vec<String> {
    let one = |(kernel, counters): &(&str, Counters)| {
        let lines = counters.lines.iter().filter(|(_, c)| c.conflicts > 0);
        let lines: Vec<_> = lines.map(|(at, c)| format!("{} at {at}", c.conflicts)).collect();
        (counters.total.conflicts > 0).then(|| format!("bank conflicts in {kernel}: {}", lines.join(", ")))
    };
    counted.iter().filter_map(one).collect()
}

/// Bytes from which on a launch says what its kernel does: fewer fill no sectors.
const FEW: u64 = 1 << 15;

/// Kernels that ask for more than a tenth more sectors than their bytes fill, in the best of their cases, and whose file's
/// head has no word about it under `Sectors`: a vector that went out in four parts, a row that every lane walks alone.
pub fn sectors(ran: &[(Case, Vec<(&'static str, Counters)>)]) -> Vec<String> {
    let mut best: BTreeMap<&str, f64> = BTreeMap::new();
    let launches = ran.iter().flat_map(|(_, counted)| counted);
    for (kernel, counters) in launches.filter(|(_, c)| c.total.bytes >= FEW) {
        let share = 32.0 * counters.total.sectors as f64 / counters.total.bytes as f64;
        let entry = best.entry(kernel).or_insert(share);
        *entry = entry.min(share);
    }
    let explained = |kernel: &str| {
        let file = FILES.iter().find(|file| file.kernels.contains(&kernel)).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(format!("{}.cu", file.stem));
        let text = std::fs::read_to_string(path).unwrap();
        let head = text.lines().take_while(|line| line.starts_with("//"));
        let mut section = head.skip_while(|line| !line.starts_with("// Sectors "));
        let first = section.next().unwrap_or_default().to_string();
        let rest = section.take_while(|line| line.starts_with("//     "));
        rest.fold(first, |all, line| all + line).contains(kernel)
    };
    let findings = best.iter().filter(|(kernel, share)| **share > 1.1 && !explained(kernel));
    findings
        .map(|(kernel, share)| format!("{kernel} asks for {share:.2} times the sectors of its bytes"))
        .collect()
}

/// Fails where a count is not the committed one: a kernel that moves more than it did is seen in the diff of the table.
pub fn as_committed(ran: &[(Case, Vec<(&'static str, Counters)>)]) {
    let Some(nvcc) = option_env!("LLM2VEC_NVCC") else { return };
    let head = format!(
        "# What each launch costs\n\n\
         Of the PTX by nvcc {nvcc}, counted by the emulator; written by `LLM2VEC_UPDATE=1 cargo test --release --test device cases::`. \
         Bytes that threads ask global memory for, most of them from L2; bytes touched, each once for reading and once for \
         writing; 32-byte sectors of the warps' accesses; operations of tensor cores. The head of each kernel's file has \
         the formula of a new row: it is right within 2 %.\n\n\
         | op | case | kernel | bytes | touched | sectors | tensor FLOPs |\n|---|---|---|--:|--:|--:|--:|\n"
    );
    let row = |case: &Case, (kernel, counters): &(&str, Counters)| {
        let (total, touched) = (&counters.total, counters.read + counters.written);
        let numbers = format!("{} | {touched} | {} | {}", total.bytes, total.sectors, total.flops);
        format!("| {} | {} | {kernel} | {numbers} |\n", case.op, case.label)
    };
    let rows = ran.iter().flat_map(|(case, launches)| launches.iter().map(move |launch| row(case, launch)));
    let text = head.clone() + &rows.collect::<String>();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/counts.md");
    if std::env::var("LLM2VEC_UPDATE").is_ok_and(|v| v == "1") {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    // Another nvcc may unroll otherwise.
    if committed.contains(&format!("nvcc {nvcc},")) {
        let new = text.lines().filter(|line| !committed.contains(*line));
        let new: Vec<&str> = new.take(20).collect();
        let what = "is out of date; LLM2VEC_UPDATE=1 writes it anew";
        assert!(committed == text, "{} {what}:\n{}", path.display(), new.join("\n"));
    }
}
