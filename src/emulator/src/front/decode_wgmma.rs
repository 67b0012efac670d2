//! `wgmma` and `setmaxnreg`.

use super::body::{Body, Operand};
use super::common::unknown;
use super::lex::number;
use super::parser::Parsed;
use crate::isa::op::{FenceOp, GroupOp, Op};
use crate::isa::operand::{NONE, Src};
use crate::isa::product::{Element, Left, Wgmma};

/// `wgmma.mma_async.sync.aligned.m64nNkK.f32.T.T` and its companions.
pub fn decode<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match (&parts[1..], operands) {
        ([act @ ("inc" | "dec"), "sync", "aligned", "u32"], [Operand::Word { word, .. }]) => {
            match number(word) {
                Some(n) if (24..=256).contains(&n) && n % 8 == 0 => {
                    Ok(Op::Group(GroupOp::SetRegisters { count: n as u32, more: *act == "inc" }))
                }
                _ => body.parser.wrong("a multiple of 8 registers from 24 to 256 was expected"),
            }
        }
        (["fence", "sync", "aligned"], []) => Ok(Op::Fence(FenceOp::WgmmaFence)),
        (["commit_group", "sync", "aligned"], []) => Ok(Op::Fence(FenceOp::WgmmaCommit)),
        (["wait_group", "sync", "aligned"], [Operand::Word { word, .. }]) => match number(word) {
            Some(n) if n < 1 << 16 => Ok(Op::Group(GroupOp::WgmmaWait { pending: n as usize })),
            _ => body.parser.wrong("expected a number of groups"),
        },
        (["mma_async", "sp", ..], _) => body.parser.wrong("sparse operands are not modelled"),
        (["mma_async", "sync", "aligned", shape, sum, a, b], _) => {
            product(body, [shape, sum, a, b], operands)
        }
        _ => unknown(body),
    }
}

fn product<'a>(
    body: &mut Body<'_, 'a>,
    [shape, sum, a, b]: [&str; 4],
    operands: &[Operand<'a>],
) -> Parsed<Op> {
    let element = match (a, b, sum) {
        ("f16", "f16", "f16" | "f32") => Element::F16,
        ("bf16", "bf16", "f32") => Element::Bf16,
        ("tf32", "tf32", "f32") => Element::Tf32,
        _ => return body.parser.wrong(format!("sums in {sum} of {a} by {b} are not modelled")),
    };
    let k = element.depth();
    let n = shape.strip_prefix("m64n").and_then(|s| s.strip_suffix(&format!("k{k}")));
    let n = n.and_then(|n| n.parse::<usize>().ok()).filter(|n| (8..=256).contains(n) && n % 8 == 0);
    let Some(n) = n else { return body.parser.wrong(format!("`{shape}` is no shape for {a}")) };
    let half = sum == "f16";
    let registers = if half { n / 4 } else { n / 2 };
    let [Operand::Vector(d), a, b, scale, rest @ ..] = operands else {
        return body.parser.wrong("expected registers in braces, A, B and a predicate");
    };
    if d.len() != registers {
        return body.parser.wrong(format!("{} registers, {registers} were expected", d.len()));
    }
    let left = match a {
        Operand::Vector(a) if a.len() == 4 => {
            let mut s = [Src::Const(0); 4];
            for (s, o) in s.iter_mut().zip(a) {
                *s = body.source(o)?;
            }
            Left::Registers(s)
        }
        Operand::Vector(a) => return body.parser.wrong(format!("A has {} registers, 4 are due", a.len())),
        a => Left::Shared(body.source(a)?),
    };
    let mut flags = [false; 4];
    let majors = if element == Element::Tf32 { 0 } else { 2 };
    let majors = if matches!(left, Left::Registers(_)) { majors / 2 } else { majors };
    if rest.len() != 2 + majors {
        return body.parser.wrong(format!("{} immediate operands, {} were expected", rest.len(), 2 + majors));
    }
    for (i, (flag, o)) in flags.iter_mut().zip(rest).enumerate() {
        *flag = match (i, o) {
            (0 | 1, Operand::Word { word: "1", minus, .. }) => *minus,
            (2 | 3, Operand::Word { word: "0", minus: false, .. }) => false,
            (2 | 3, Operand::Word { word: "1", minus: false, .. }) => true,
            _ => return body.parser.wrong("scales are 1 and -1, transpositions 0 and 1"),
        };
    }
    // With A in registers the one transposition is B's.
    let across = if majors == 1 { [false, flags[2]] } else { [flags[2], flags[3]] };
    let d = d.iter().map(|o| body.target(o)).collect::<Parsed<Vec<u32>>>()?;
    if d.contains(&NONE) {
        return body.parser.wrong("`_` is no accumulator");
    }
    let (b, scale) = (body.source(b)?, body.predicate(scale)?);
    let negate = [flags[0], flags[1]];
    Ok(Op::Group(GroupOp::Wgmma(Box::new(Wgmma { element, n, half, d, a: left, b, scale, negate, across }))))
}
