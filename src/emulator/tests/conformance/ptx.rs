//! What tests read from PTX: the lines that synchronise, to be taken out one at a time, and whether a kernel's bits are known.
#![allow(dead_code)] // each test file uses its own part

/// What a line that synchronises holds.
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

/// The kernel's lines, by their number in the file.
fn body<'a>(ptx: &'a str, kernel: &str) -> impl Iterator<Item = (usize, &'a str)> {
    let from = ptx.lines().position(|l| l.contains(&format!(".entry {kernel}("))).unwrap();
    ptx.lines().enumerate().skip(from).take_while(|(_, l)| *l != "}")
}

/// Those of them that synchronise.
pub fn synchronising(ptx: &str, kernel: &str) -> Vec<(usize, String)> {
    let found = body(ptx, kernel).filter(|(_, l)| WORDS.iter().any(|w| l.contains(w)));
    found.map(|(i, l)| (i, l.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

/// The file without that line. Lines keep their numbers.
pub fn without(ptx: &str, line: usize) -> String {
    let kept = ptx.lines().enumerate().map(|(i, l)| if i == line { "" } else { l });
    kept.collect::<Vec<_>>().join("\n")
}

/// A kernel whose numbers the ISA gives to the bit. Matrix products sum in an order of the machine's own, and `.approx` functions
/// have errors.
pub fn is_exact(ptx: &str, kernel: &str) -> bool {
    body(ptx, kernel).all(|(_, l)| !["mma", ".approx", "call"].iter().any(|word| l.contains(word)))
}
