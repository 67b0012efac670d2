//! Opcodes to operations. What is not known is refused, opcode and modifier by name.

use super::body::{Body, Operand};
use super::common::{alu_op, expect, last_type, unknown};
use super::lex::number;
use super::parser::Parsed;
use super::{decode_async, decode_memory, decode_mma, decode_wgmma};
use crate::isa::module::Variable;
use crate::isa::op::{BarrierOp, ControlOp, FenceOp, Flush, Ftz, Op, RegisterOp, WarpOp};
use crate::isa::operand::{AluFn, Barrier, Logic, NONE, Pred, Rmw, Shuffle, Src, Ty, Vote};
use crate::numbers::{alu, convert, float};

/// Modifiers that change nothing here: who may see what and when, and caches, are modelled at their strongest.
const IGNORED: &[&str] = &["uni", "sync", "aligned", "cta", "gpu", "sys", "cluster"];

/// `parts` is the opcode split at its dots.
pub fn instruction<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    if decode_async::knows(parts) {
        return decode_async::instruction(body, parts, operands);
    }
    match parts[0] {
        "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "prefetch" | "prefetchu"
        | "discard" | "applypriority" | "createpolicy" | "cvta" => {
            decode_memory::instruction(body, parts, operands)
        }
        "mma" => decode_mma::decode(body, parts, operands),
        "wgmma" | "setmaxnreg" => decode_wgmma::decode(body, parts, operands),
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent"
        | "griddepcontrol" => control(body, parts, operands),
        "bar" | "barrier" | "membar" | "fence" => synchronise(body, parts, operands),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => across_lanes(body, parts, operands),
        "setp" | "selp" | "slct" => choose(body, parts, operands),
        "cvt" => convert(body, parts, operands),
        "mov" => mov(body, parts, operands),
        _ => arithmetic(body, parts, operands),
    }
}

/// Two 16-bit integers in a register.
fn pairs(name: &str, ty: &str) -> Option<AluFn> {
    use alu::alu;
    fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
        u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
    }
    Some(match (name, ty) {
        ("add", "u16x2" | "s16x2") => alu!(u32: |a, b, _| halves(a, b, u16::wrapping_add)),
        ("min", "u16x2") => alu!(u32: |a, b, _| halves(a, b, u16::min)),
        ("max", "u16x2") => alu!(u32: |a, b, _| halves(a, b, u16::max)),
        ("min", "s16x2") => alu!(u32: |a, b, _| halves(a, b, |x, y| (x as i16).min(y as i16) as u16)),
        ("max", "s16x2") => alu!(u32: |a, b, _| halves(a, b, |x, y| (x as i16).max(y as i16) as u16)),
        _ => return None,
    })
}

fn arithmetic<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    if let [name, ty @ ("u16x2" | "s16x2")] = parts {
        return match pairs(name, ty) {
            Some(f) => alu_op(body, f, Ftz::NONE, false, operands),
            None => unknown(body),
        };
    }
    let ty = last_type(body, parts)?;
    let middle = &parts[1.min(parts.len() - 1)..parts.len() - 1];
    let has = |m: &str| middle.contains(&m);
    if ty == Ty::Pred {
        return logic(body, parts[0], operands);
    }
    if parts[0] == "lop3" {
        expect(body, operands, 5..=5)?;
        let table = match &operands[4] {
            Operand::Word { word, .. } => number(word).filter(|t| *t < 256),
            _ => None,
        };
        let Some(table) = table else { return body.parser.wrong("the table is no number below 256") };
        let s = [body.source(&operands[1])?, body.source(&operands[2])?, body.source(&operands[3])?];
        return Ok(Op::Register(RegisterOp::Lop3 { d: body.target(&operands[0])?, s, table: table as u8 }));
    }
    if parts[0] == "bfi" {
        expect(body, operands, 5..=5)?;
        let mut s = [Src::Const(0); 4];
        for (s, o) in s.iter_mut().zip(&operands[1..]) {
            *s = body.source(o)?;
        }
        return Ok(Op::Register(RegisterOp::Bfi {
            d: body.target(&operands[0])?,
            s,
            bits: ty.size() as u8 * 8,
        }));
    }
    let carries = has("cc") || parts[0] == "addc" || parts[0] == "subc";
    if carries && matches!(parts[0], "add" | "addc" | "sub" | "subc") {
        expect(body, operands, 3..=3)?;
        return Ok(Op::Register(RegisterOp::Carry {
            wide: ty.size() == 8,
            subtract: parts[0].starts_with("sub"),
            takes: parts[0].ends_with('c'),
            gives: has("cc"),
            d: body.target(&operands[0])?,
            s: [body.source(&operands[1])?, body.source(&operands[2])?],
        }));
    }
    let floats = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::F32 | Ty::F64);
    let sat = has("sat");
    let Some(ftz) = flushed(parts[0], ty, has("ftz")) else { return unknown(body) };
    let mode: Vec<&str> =
        middle.iter().copied().filter(|m| *m != "ftz" && !(floats && *m == "sat")).collect();
    let mode = mode.join(".");
    let f = if floats { float::function(parts[0], &mode, ty) } else { alu::integer(parts[0], &mode, ty) };
    match f {
        Some(_) if sat && ty != Ty::F32 => unknown(body),
        Some(f) => alu_op(body, f, ftz, sat, operands),
        None => unknown(body),
    }
}

/// What `.ftz` does, where it is given, to an operation whose operands and result are of one type; `None` where it may not
/// stand. bf16 has it with `ex2` alone, whose f16 has none.
fn flushed(name: &str, ty: Ty, given: bool) -> Option<Ftz> {
    if !given {
        return Some(Ftz::NONE);
    }
    let flush = Flush::of_type(ty)?;
    let stands = match flush {
        Flush::Bf16 => name == "ex2",
        Flush::F16 => !matches!(name, "ex2" | "tanh" | "mov"),
        Flush::F32 | Flush::None => name != "mov",
    };
    stands.then_some(Ftz::both(flush))
}

fn logic<'a>(body: &mut Body<'_, 'a>, name: &str, operands: &[Operand<'a>]) -> Parsed<Op> {
    let f = match name {
        "mov" => Logic::Mov,
        "not" => Logic::Not,
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return unknown(body),
    };
    let n = if matches!(f, Logic::Mov | Logic::Not) { 2 } else { 3 };
    expect(body, operands, n..=n)?;
    let Operand::Word { word, .. } = &operands[0] else { return body.parser.wrong("expected a predicate") };
    let d = body.pred_target(word)?;
    let a = body.predicate(&operands[1])?;
    let b = if n == 3 { body.predicate(&operands[2])? } else { Pred::Const(false) };
    Ok(Op::Register(RegisterOp::Logic { f, d, a, b }))
}

fn mov<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    expect(body, operands, 2..=2)?;
    let ty = last_type(body, parts)?;
    match (&operands[0], &operands[1]) {
        _ if parts.len() != 2 => unknown(body),
        _ if ty == Ty::Pred => logic(body, "mov", operands),
        (Operand::Vector(to), from) if (2..=4).contains(&to.len()) => {
            let mut d = [NONE; 4];
            for (d, o) in d.iter_mut().zip(to) {
                *d = body.target(o)?;
            }
            Ok(Op::Register(RegisterOp::Unpack {
                d,
                n: to.len() as u8,
                s: body.source(from)?,
                bits: (ty.size() * 8 / to.len()) as u8,
            }))
        }
        (to, Operand::Vector(from)) if (2..=4).contains(&from.len()) => {
            let mut s = [body.constant(0); 4];
            for (s, o) in s.iter_mut().zip(from) {
                *s = body.source(o)?;
            }
            Ok(Op::Register(RegisterOp::Pack {
                d: body.target(to)?,
                s,
                n: from.len() as u8,
                bits: (ty.size() * 8 / from.len()) as u8,
            }))
        }
        _ => arithmetic(body, parts, operands),
    }
}

fn convert<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    if parts.len() < 3 {
        return unknown(body);
    }
    let (to, from) = (parts[parts.len() - 2], last_type(body, parts)?);
    let middle = &parts[1..parts.len() - 2];
    let (ftz, sat) = (middle.contains(&"ftz"), middle.contains(&"sat"));
    let mode: Vec<&str> = middle.iter().copied().filter(|m| *m != "ftz" && *m != "sat").collect();
    let mode = mode.join(".");
    // Only an f32 is flushed, on the side that has it.
    let flush = |ty| if ftz && ty == Some(Ty::F32) { Flush::F32 } else { Flush::None };
    let flush = Ftz { reads: flush(Some(from)), gives: flush(Ty::parse(to)) };
    if ftz && flush == Ftz::NONE {
        return unknown(body);
    }
    let f = match (to, Ty::parse(to)) {
        ("tf32" | "f16x2" | "bf16x2", _) if ftz => None,
        ("tf32", _) if mode == "rna" && from == Ty::F32 => Some(convert::tf32()),
        (_, Some(to @ (Ty::F16x2 | Ty::Bf16x2))) if from == Ty::F32 => convert::pair(to, &mode),
        (_, Some(to)) if Ty::Pred != to => convert::function(to, from, &mode, sat),
        _ => None,
    };
    let float = to == "f32" && sat;
    match f {
        Some(_) if sat && to.starts_with(['f', 'b']) && !float => unknown(body),
        Some(f) => alu_op(body, f, flush, float, operands),
        None => unknown(body),
    }
}

fn choose<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ty = last_type(body, parts)?;
    if parts[0] == "selp" && parts.len() == 2 {
        expect(body, operands, 4..=4)?;
        let s = [body.source(&operands[1])?, body.source(&operands[2])?];
        let (d, p) = (body.target(&operands[0])?, body.predicate(&operands[3])?);
        return Ok(Op::Register(RegisterOp::Selp { d, s, p, bits: ty.size() as u8 * 8 }));
    }
    if parts[0] != "setp" {
        return unknown(body);
    }
    let middle: Vec<&str> = parts[1..parts.len() - 1].iter().copied().filter(|m| *m != "ftz").collect();
    let ftz = match parts.contains(&"ftz") {
        false => Some(Flush::None),
        true => Flush::of_type(ty).filter(|flush| *flush != Flush::Bf16),
    };
    let Some(ftz) = ftz else { return unknown(body) };
    let combine = match middle.get(1) {
        None => None,
        Some(&"and") => Some(Logic::And),
        Some(&"or") => Some(Logic::Or),
        Some(&"xor") => Some(Logic::Xor),
        Some(_) => return unknown(body),
    };
    let Some(f) = middle.first().and_then(|name| alu::compare(name, ty)).filter(|_| middle.len() <= 2) else {
        return unknown(body);
    };
    expect(body, operands, 3..=4)?;
    let (p, q) = match &operands[0] {
        Operand::Word { word, .. } => (body.pred_target(word)?, NONE),
        Operand::Pair(p, q) => (body.pred_target(p)?, body.pred_target(q)?),
        _ => return body.parser.wrong("expected a predicate"),
    };
    let combine = match (combine, operands.get(3)) {
        (Some(logic), Some(o)) => Some((logic, body.predicate(o)?)),
        (None, None) => None,
        _ => return body.parser.wrong("a predicate to combine with, or none, was expected"),
    };
    let s = [body.source(&operands[1])?, body.source(&operands[2])?];
    Ok(Op::Register(RegisterOp::Setp { f, p, q, s, combine, ftz }))
}

fn control<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match (parts[0], operands) {
        ("bra", [Operand::Word { word, .. }]) => Ok(body.jump(word)),
        ("brx", [index, Operand::Word { word, .. }]) => {
            Ok(Op::Control(ControlOp::Brx { table: body.table(word)?, index: body.source(index)? }))
        }
        ("ret", []) => Ok(Op::Control(ControlOp::Ret)),
        ("exit", []) => Ok(Op::Control(ControlOp::Exit)),
        ("trap" | "brkpt", []) => Ok(Op::Control(ControlOp::Trap)),
        ("griddepcontrol", []) if parts[1..] == ["wait"] => Ok(Op::Control(ControlOp::GridWait)),
        ("griddepcontrol", []) if parts[1..] == ["launch_dependents"] => Ok(Op::Control(ControlOp::Nop)),
        ("nanosleep" | "pmevent", _) => Ok(Op::Control(ControlOp::Nop)),
        ("call", [Operand::Word { word, .. }]) => call(body, &[], word, &[]),
        ("call", [Operand::Word { word, .. }, Operand::List(args)]) => call(body, &[], word, args),
        ("call", [Operand::List(results), Operand::Word { word, .. }]) => call(body, results, word, &[]),
        ("call", [Operand::List(results), Operand::Word { word, .. }, Operand::List(args)]) => {
            call(body, results, word, args)
        }
        _ => unknown(body),
    }
}

fn call<'a>(body: &mut Body<'_, 'a>, results: &[&'a str], name: &str, args: &[&'a str]) -> Parsed<Op> {
    let Some(&function) = body.parser.functions.get(name) else {
        return body
            .parser
            .wrong(format!("{name} is no function of this file (calls by address are not modelled)"));
    };
    let callee = &body.parser.module.functions[function as usize];
    let (into, out) = (callee.params.clone(), callee.results.clone());
    if into.len() != args.len() || out.len() != results.len() {
        return body.parser.wrong(format!("{name} takes {} and gives {} values", into.len(), out.len()));
    }
    let mut map = |names: &[&str], list: &[Variable]| {
        let pairs = names.iter().zip(list);
        pairs
            .map(|(n, v)| Ok((body.param_offset(n, v.size as u32)?, v.offset as u32, v.size as u32)))
            .collect::<Parsed<Vec<_>>>()
    };
    let (args, results) = (map(args, &into)?, map(results, &out)?);
    Ok(Op::Control(ControlOp::Call { function, args, results }))
}

fn synchronise<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    if matches!(parts[0], "membar" | "fence") {
        let known = ["gl", "cta", "sys", "gpu", "cluster", "sc", "acq_rel"];
        return if parts[1..].iter().all(|p| known.contains(p)) {
            Ok(Op::Fence(FenceOp::Fence))
        } else {
            unknown(body)
        };
    }
    if parts.contains(&"warp") {
        expect(body, operands, 1..=1)?;
        return Ok(Op::Barrier(BarrierOp::WarpSync { mask: body.source(&operands[0])? }));
    }
    let aligned = parts[0] == "bar" || parts.contains(&"aligned");
    let words: Vec<&str> = parts[1..].iter().copied().filter(|p| *p != "aligned" && *p != "cta").collect();
    let kind = match words[..] {
        ["sync"] => Barrier::Sync,
        ["arrive"] => Barrier::Arrive,
        ["red", "and", "pred"] => Barrier::RedAnd,
        ["red", "or", "pred"] => Barrier::RedOr,
        ["red", "popc", "u32"] => Barrier::RedPopc,
        _ => return unknown(body),
    };
    let (mut d, mut p, mut rest) = (NONE, Pred::Const(true), operands);
    if let (Barrier::RedAnd | Barrier::RedOr | Barrier::RedPopc, [to, middle @ .., from]) = (kind, operands) {
        d = match (kind, to) {
            (Barrier::RedPopc, _) => body.target(to)?,
            (_, Operand::Word { word, .. }) => body.pred_target(word)?,
            _ => return unknown(body),
        };
        p = body.predicate(from)?;
        rest = middle;
    }
    expect(body, rest, 1..=2)?;
    let count = rest.get(1).map(|o| body.source(o)).transpose()?;
    Ok(Op::Barrier(BarrierOp::Barrier { kind, aligned, id: body.source(&rest[0])?, count, p, d }))
}

fn across_lanes<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    // `uni` is a mode of `vote`.
    let ignored = |p: &&str| IGNORED.contains(p) && !(*p == "uni" && parts[0] == "vote");
    let words: Vec<&str> = parts.iter().copied().filter(|p| !ignored(p)).collect();
    let pair = |body: &mut Body<'_, 'a>, o: &Operand<'a>| match o {
        Operand::Pair(d, p) => Ok((body.target_word(d)?, body.pred_target(p)?)),
        o => Ok((body.target(o)?, NONE)),
    };
    match (&words[..], operands) {
        (["activemask", "b32"], [d]) => Ok(Op::Register(RegisterOp::ActiveMask { d: body.target(d)? })),
        (["shfl", mode, "b32"], [to, a, b, c, mask]) => {
            let mode = match *mode {
                "up" => Shuffle::Up,
                "down" => Shuffle::Down,
                "bfly" => Shuffle::Bfly,
                "idx" => Shuffle::Idx,
                _ => return unknown(body),
            };
            let (d, p) = pair(body, to)?;
            let s = [body.source(a)?, body.source(b)?, body.source(c)?];
            Ok(Op::Warp(WarpOp::Shfl { mode, d, p, s, mask: body.source(mask)? }))
        }
        (["vote", mode, ty @ ("pred" | "b32")], [Operand::Word { word, .. }, a, mask]) => {
            let (mode, d) = match (*mode, *ty) {
                ("all", "pred") => (Vote::All, body.pred_target(word)?),
                ("any", "pred") => (Vote::Any, body.pred_target(word)?),
                ("uni", "pred") => (Vote::Uni, body.pred_target(word)?),
                ("ballot", "b32") => (Vote::Ballot, body.target_word(word)?),
                _ => return unknown(body),
            };
            Ok(Op::Warp(WarpOp::Vote { mode, d, a: body.predicate(a)?, mask: body.source(mask)? }))
        }
        (["match", kind @ ("any" | "all"), bits @ ("b32" | "b64")], [to, a, mask]) => {
            let (d, p) = pair(body, to)?;
            let (a, mask) = (body.source(a)?, body.source(mask)?);
            Ok(Op::Warp(WarpOp::Match {
                all: *kind == "all",
                bits: if *bits == "b32" { 32 } else { 64 },
                d,
                p,
                a,
                mask,
            }))
        }
        (["elect", "b32"] | ["elect"], [to, mask]) => {
            let (d, p) = pair(body, to)?;
            Ok(Op::Warp(WarpOp::Elect { d, p, mask: body.source(mask)? }))
        }
        (["redux", f, ty @ ("u32" | "s32" | "b32")], [d, a, mask]) => {
            let f = match *f {
                "add" => Rmw::Add,
                "min" => Rmw::Min,
                "max" => Rmw::Max,
                "and" => Rmw::And,
                "or" => Rmw::Or,
                "xor" => Rmw::Xor,
                _ => return unknown(body),
            };
            let (d, a, mask) = (body.target(d)?, body.source(a)?, body.source(mask)?);
            Ok(Op::Warp(WarpOp::Redux { f, signed: *ty == "s32", d, a, mask }))
        }
        _ => unknown(body),
    }
}
