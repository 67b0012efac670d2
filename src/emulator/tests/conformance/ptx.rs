//! What tests read from PTX: the lines that synchronise, to be taken out one at a time, and whether a kernel's bits are known.
#![allow(dead_code)] // each test file uses its own part

/// What a line that synchronises holds: barriers, fences, waits, and what those wait for.
const WORDS: &[&str] = &[
    "bar.sync",
    "bar.arrive",
    "bar.warp.sync",
    "barrier.sync",
    "barrier.arrive",
    "barrier.cluster",
    "cp.async.wait",
    "cp.async.bulk.wait",
    "cp.async.bulk.commit",
    "membar",
    "fence.",
    "mbarrier.",
    "wgmma.fence",
    "wgmma.commit",
    "wgmma.wait",
    "setmaxnreg",
    "griddepcontrol.wait",
];

/// The kernel's lines, by their number in the file. Inline assembly has braces of its own.
fn body<'a>(ptx: &'a str, kernel: &str) -> impl Iterator<Item = (usize, &'a str)> {
    let from = ptx.lines().position(|l| l.contains(&format!(".entry {kernel}("))).unwrap();
    let braces = |l: &str| l.matches('{').count() as i32 - l.matches('}').count() as i32;
    let (mut depth, mut inside) = (0, false);
    let lines = ptx.lines().enumerate().skip(from);
    lines.take_while(move |(_, l)| {
        depth += braces(l);
        let ended = inside && depth == 0;
        inside |= depth > 0;
        !ended
    })
}

/// Those of them that synchronise. What copies is none, though it names an mbarrier.
pub fn synchronising(ptx: &str, kernel: &str) -> Vec<(usize, String)> {
    let orders = |l: &str| !l.contains("::complete_tx") && WORDS.iter().any(|w| l.contains(w));
    let found = body(ptx, kernel).filter(|(_, l)| orders(l));
    found.map(|(i, l)| (i, l.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

/// The file without that line: a wait at an mbarrier says yes in its place. Lines keep their numbers.
pub fn without(ptx: &str, line: usize) -> String {
    let kept = ptx.lines().enumerate().map(|(i, l)| if i == line { instead(l) } else { l.to_string() });
    kept.collect::<Vec<_>>().join("\n")
}

/// What stands in a line's place when that is taken out.
fn instead(line: &str) -> String {
    let operand = |after: &str| {
        let rest = line.split_once(after).map(|(_, rest)| rest.trim_start());
        rest.and_then(|rest| rest.split([',', ' ']).next()).unwrap_or_default()
    };
    match (
        line.contains("mbarrier.try_wait") || line.contains("mbarrier.test_wait"),
        line.contains("selp.s32"),
    ) {
        (false, _) => String::new(),
        (true, true) => format!("mov.u32 {}, 1;", operand("selp.s32")),
        (true, false) => format!("setp.eq.u32 {}, 0, 0;", operand(".b64")),
    }
}

/// A kernel whose numbers the ISA gives to the bit. Matrix products sum in an order of the machine's own, and `.approx` functions
/// have errors.
pub fn is_exact(ptx: &str, kernel: &str) -> bool {
    body(ptx, kernel).all(|(_, l)| !["mma", ".approx", "call"].iter().any(|word| l.contains(word)))
}
