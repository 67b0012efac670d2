//! What the emulator counts in each kernel of each case, beside the table that is committed.

use llm2vec::bench::cases::Case;
use llm2vec::device::emulator::Counters;
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

/// Fails where a count is not the committed one: a kernel that moves more than it did is seen in the diff of the table.
pub fn as_committed(ran: &[(Case, Vec<(&'static str, Counters)>)]) {
    let Some(nvcc) = option_env!("LLM2VEC_NVCC") else { return };
    let head = format!(
        "# What each launch costs\n\n\
         Of the PTX by nvcc {nvcc}, counted by the emulator; written by `LLM2VEC_UPDATE=1 cargo test --release --test device`. \
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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/counts.md");
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
