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

/// What gives bits that the ISA leaves open: products summed in an order of the machine's own, functions with errors, code
/// that is not there to be read.
const OPEN: &[&str] = &["mma", ".approx", ".full", "call"];

/// A kernel whose numbers the ISA gives to the bit. Beside [`OPEN`], a sum by atomics has whatever order, and a product
/// that reaches a sum, neither with a rounding of its own, may be rounded once or twice, as ptxas likes: the kernels of
/// nvcc with `--fmad=false`, or with `__fmul_rn` and `__fadd_rn`, say `.rn`, and `fma` is always exact.
pub fn is_exact(ptx: &str, kernel: &str) -> bool {
    let lines: Vec<&str> = body(ptx, kernel).map(|(_, l)| l.split("//").next().unwrap_or("")).collect();
    let known = lines.iter().all(|l| !OPEN.iter().any(|word| l.contains(word)) && !adds_by_atomics(l));
    known && !may_be_contracted(&lines)
}

fn adds_by_atomics(line: &str) -> bool {
    let atomic = ["atom.", "red.", "cp.reduce."].iter().any(|op| line.contains(op));
    let float = [".f32", ".f64", ".f16", ".bf16"].iter().any(|ty| line.contains(ty));
    atomic && line.contains(".add") && float
}

/// Whether the result of a product reaches a sum, through moves and signs, and neither says how it rounds.
fn may_be_contracted(lines: &[&str]) -> bool {
    let instructions =
        lines.iter().flat_map(|l| l.split(';')).map(|l| l.trim().trim_start_matches('{').trim());
    let read: Vec<(&str, Vec<&str>)> = instructions.filter_map(instruction).collect();
    let rounds = |op: &str| op.split('.').any(|part| ["rn", "rz", "rm", "rp"].contains(&part));
    let is = |op: &str, of: &[&str]| {
        let (name, ty) = (op.split('.').next().unwrap_or(""), op.rsplit('.').next().unwrap_or(""));
        of.contains(&name) && (ty.starts_with('f') || ty.starts_with("bf")) && !rounds(op)
    };
    let mut products = std::collections::HashSet::new();
    // A second time for what a loop carries to its beginning.
    for (op, registers) in read.iter().chain(&read) {
        let [to, from @ ..] = &registers[..] else { continue };
        let takes = from.iter().any(|r| products.contains(r));
        if takes && is(op, &["add", "sub"]) {
            return true;
        }
        let passes = ["mov", "selp", "neg", "abs"].iter().any(|name| op.split('.').next() == Some(name));
        match takes && passes {
            true => products.extend(registers),
            false if is(op, &["mul"]) => drop(products.insert(*to)),
            false => {}
        }
    }
    false
}

/// An opcode, and its registers in their order.
fn instruction(text: &str) -> Option<(&str, Vec<&str>)> {
    let text = match text.strip_prefix('@') {
        Some(guarded) => guarded.split_once(char::is_whitespace)?.1.trim(),
        None => text,
    };
    let (op, operands) = text.split_once(char::is_whitespace)?;
    let registers =
        operands.split([',', ' ', '\t', '[', ']', '{', '}', '+', '|']).map(|r| r.trim_start_matches('-'));
    Some((op, registers.filter(|r| r.starts_with('%')).collect()))
}
