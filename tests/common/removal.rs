//! PTX lines that synchronise, to be taken out one at a time.

/// What such a line holds.
const WORDS: &[&str] = &[
    "bar.sync",
    "bar.warp.sync",
    "barrier.sync",
    "barrier.cluster",
    "cp.async.wait",
    "cp.async.bulk.wait",
    "membar",
    "fence.",
    "wgmma.fence",
    "wgmma.wait",
];

/// The kernel's lines that synchronise, by their number in the file.
pub fn synchronising(ptx: &str, kernel: &str) -> Vec<(usize, String)> {
    let from = ptx.lines().position(|l| l.contains(&format!(".entry {kernel}("))).unwrap();
    let lines = ptx.lines().enumerate().skip(from);
    let body = lines.take_while(|(_, l)| *l != "}");
    let found = body.filter(|(_, l)| WORDS.iter().any(|w| l.contains(w)));
    found.map(|(i, l)| (i, l.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

/// The file without that line. Lines keep their numbers.
pub fn without(ptx: &str, line: usize) -> String {
    let kept = ptx.lines().enumerate().map(|(i, l)| if i == line { "" } else { l });
    kept.collect::<Vec<_>>().join("\n")
}
