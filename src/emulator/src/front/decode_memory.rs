//! Loads, stores, atomics, asynchronous copies: opcodes to operations.

use super::body::{Body, Operand};
use super::common::{alu_op, expect, last_type, unknown};
use super::lex::number;
use super::parser::Parsed;
use crate::isa::op::{ControlOp, CopyOp, Ftz, MemoryOp, Op, RegisterOp, WarpOp};
use crate::isa::operand::{NONE, Order, Rmw, Space, Src, Ty};
use crate::numbers::alu::alu;

/// What an access's modifiers say.
struct Access {
    space: Space,
    order: Order,
    vector: usize,
    operation: Option<Rmw>,
}

fn access(body: &Body<'_, '_>, parts: &[&str]) -> Parsed<Access> {
    let order = Order { strong: false, acquire: false, release: false };
    let mut access = Access { space: Space::Generic, order, vector: 1, operation: None };
    let atomic = matches!(parts[0], "atom" | "red");
    for part in &parts[1..parts.len() - 1] {
        match *part {
            "global" => access.space = Space::Global,
            "const" => access.space = Space::Const,
            "shared" | "shared::cta" => access.space = Space::Shared,
            "shared::cluster" => access.space = Space::Cluster,
            "local" => access.space = Space::Local,
            "param" | "param::entry" | "param::func" => access.space = Space::Param,
            "volatile" | "relaxed" | "mmio" => access.order.strong = true,
            "acquire" => access.order = Order { strong: true, acquire: true, ..access.order },
            "release" => access.order = Order { strong: true, release: true, ..access.order },
            "acq_rel" => access.order = Order { strong: true, acquire: true, release: true },
            "v2" => access.vector = 2,
            "v4" => access.vector = 4,
            "add" if atomic => access.operation = Some(Rmw::Add),
            "min" if atomic => access.operation = Some(Rmw::Min),
            "max" if atomic => access.operation = Some(Rmw::Max),
            "and" if atomic => access.operation = Some(Rmw::And),
            "or" if atomic => access.operation = Some(Rmw::Or),
            "xor" if atomic => access.operation = Some(Rmw::Xor),
            "exch" if atomic => access.operation = Some(Rmw::Exch),
            "cas" if atomic => access.operation = Some(Rmw::Cas),
            "inc" if atomic => access.operation = Some(Rmw::Inc),
            "dec" if atomic => access.operation = Some(Rmw::Dec),
            "weak" | "cta" | "gpu" | "sys" | "cluster" | "nc" | "noftz" | "ca" | "cg" | "cs" | "lu"
            | "cv" | "wb" | "wt" => {}
            hint if hint.starts_with("L1::") || hint.starts_with("L2::") => {}
            other => return body.parser.wrong(format!("modifier `.{other}` is not modelled")),
        }
    }
    Ok(access)
}

/// Decodes one of this family.
pub fn instruction<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match parts[0] {
        "prefetch" | "prefetchu" | "discard" | "applypriority" => Ok(Op::Control(ControlOp::Nop)),
        "createpolicy" => {
            expect(body, operands, 1..=4)?;
            let zero = body.constant(0);
            Ok(Op::Register(RegisterOp::Alu {
                f: alu!(u64: |a, _, _| a),
                d: body.target(&operands[0])?,
                s: [zero; 3],
                n: 1,
                ftz: Ftz::NONE,
                sat: false,
            }))
        }
        "cvta" => cvta(body, parts, operands),
        "ld" | "ldu" => load(body, parts, operands),
        "st" => store(body, parts, operands),
        "atom" | "red" => atomic(body, parts, operands),
        "ldmatrix" | "stmatrix" => matrices(body, parts, operands),
        _ => copy(body, parts, operands),
    }
}

/// The generic address space has a window for shared and one for local memory; the others are where they are.
fn cvta<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    use crate::isa::space::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
    let words: Vec<&str> = parts[1..].iter().copied().filter(|p| *p != "to").collect();
    let to = parts.contains(&"to");
    let f = match (words.as_slice(), to) {
        (["global" | "const", "u64"], _) => alu!(u64: |a, _, _| a),
        (["param" | "param::entry", "u64"], false) => alu!(u64: |a, _, _| a | PARAM_WINDOW),
        (["param" | "param::entry", "u64"], true) => alu!(u64: |a, _, _| a ^ PARAM_WINDOW),
        (["shared" | "shared::cta" | "shared::cluster", "u64"], false) => {
            alu!(u64: |a, _, _| a | SHARED_WINDOW)
        }
        (["shared" | "shared::cta" | "shared::cluster", "u64"], true) => {
            alu!(u64: |a, _, _| a ^ SHARED_WINDOW)
        }
        (["local", "u64"], false) => alu!(u64: |a, _, _| a | LOCAL_WINDOW),
        (["local", "u64"], true) => alu!(u64: |a, _, _| a ^ LOCAL_WINDOW),
        _ => return unknown(body),
    };
    expect(body, operands, 2..=2)?;
    alu_op(body, f, Ftz::NONE, false, operands)
}

fn load<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ty = last_type(body, parts)?;
    let access = access(body, parts)?;
    expect(body, operands, 2..=3)?;
    let mut d = [NONE; 4];
    match &operands[0] {
        Operand::Vector(list) if list.len() == access.vector => {
            for (d, o) in d.iter_mut().zip(list) {
                *d = body.target(o)?;
            }
        }
        one if access.vector == 1 => d[0] = body.target(one)?,
        _ => return body.parser.wrong(format!("expected {} registers", access.vector)),
    }
    if access.vector * ty.size() > 16 || ty == Ty::Pred {
        return unknown(body);
    }
    let addr = body.address(&operands[1])?;
    Ok(Op::Memory(MemoryOp::Ld {
        space: access.space,
        ty,
        d,
        n: access.vector as u8,
        addr,
        order: access.order,
    }))
}

fn store<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ty = last_type(body, parts)?;
    let access = access(body, parts)?;
    expect(body, operands, 2..=3)?;
    let mut s = [Src::Const(0); 4];
    match &operands[1] {
        Operand::Vector(list) if list.len() == access.vector => {
            for (s, o) in s.iter_mut().zip(list) {
                *s = body.source(o)?;
            }
        }
        one if access.vector == 1 => s[0] = body.source(one)?,
        _ => return body.parser.wrong(format!("expected {} registers", access.vector)),
    }
    if access.vector * ty.size() > 16 || ty == Ty::Pred || access.space == Space::Const {
        return unknown(body);
    }
    let addr = body.address(&operands[0])?;
    Ok(Op::Memory(MemoryOp::St {
        space: access.space,
        ty,
        s,
        n: access.vector as u8,
        addr,
        order: access.order,
    }))
}

fn atomic<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ty = last_type(body, parts)?;
    let access = access(body, parts)?;
    let Some(f) = access.operation else { return unknown(body) };
    let result = usize::from(parts[0] == "atom");
    let values = if f == Rmw::Cas { 2 } else { 1 };
    expect(body, operands, 1 + result + values..=2 + result + values)?;
    let floats = matches!(ty, Ty::F32 | Ty::F64 | Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2);
    let space = matches!(access.space, Space::Generic | Space::Global | Space::Shared | Space::Cluster);
    if !space || access.vector != 1 || ty.size() < 2 || floats && f != Rmw::Add {
        return unknown(body);
    }
    let d = if result == 1 { body.target(&operands[0])? } else { NONE };
    let addr = body.address(&operands[result])?;
    let mut s = [body.constant(0); 2];
    for (s, o) in s.iter_mut().take(values).zip(&operands[result + 1..]) {
        *s = body.source(o)?;
    }
    Ok(Op::Memory(MemoryOp::Atom { space: access.space, ty, f, d, addr, s, order: access.order }))
}

fn matrices<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let mut n = 0;
    for part in &parts[1..] {
        match *part {
            "sync" | "aligned" | "m8n8" | "shared" | "shared::cta" | "b16" | "trans" => {}
            "x1" => n = 1,
            "x2" => n = 2,
            "x4" => n = 4,
            other => return body.parser.wrong(format!("modifier `.{other}` is not modelled")),
        }
    }
    let store = parts[0] == "stmatrix";
    let (list, addr) = match operands {
        [Operand::Vector(list), addr] if !store => (list, addr),
        [addr, Operand::Vector(list)] if store => (list, addr),
        _ => return body.parser.wrong("expected registers in braces and an address"),
    };
    if list.len() != n || n == 0 {
        return body.parser.wrong(format!("expected {n} registers"));
    }
    let (trans, addr) = (parts.contains(&"trans"), body.address(addr)?);
    if store {
        let mut s = [Src::Const(0); 4];
        for (s, o) in s.iter_mut().zip(list) {
            *s = body.source(o)?;
        }
        return Ok(Op::Warp(WarpOp::Stmatrix { s, n: n as u8, trans, addr }));
    }
    let mut d = [NONE; 4];
    for (d, o) in d.iter_mut().zip(list) {
        *d = body.target(o)?;
    }
    Ok(Op::Warp(WarpOp::Ldmatrix { d, n: n as u8, trans, addr }))
}

/// `cp.async`; its bulk forms are read elsewhere.
fn copy<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match (&parts[1..], operands) {
        (["async", "commit_group"], []) => Ok(Op::Copy(CopyOp::CpCommit)),
        (["async", "wait_all"], []) => Ok(Op::Copy(CopyOp::CpWait { pending: 0, all: true })),
        (["async", "wait_group"], [Operand::Word { word, .. }]) => match number(word) {
            Some(n) if n < 1 << 16 => Ok(Op::Copy(CopyOp::CpWait { pending: n as u32, all: false })),
            _ => body.parser.wrong("expected a number of groups"),
        },
        (
            ["async", "ca" | "cg", "shared" | "shared::cta", "global", hints @ ..],
            [to, from, size, rest @ ..],
        ) if hints.iter().all(|h| h.starts_with("L2::")) && rest.len() <= 2 => {
            let size = match size {
                Operand::Word { word, .. } => number(word).filter(|n| [4, 8, 16].contains(n)),
                _ => None,
            };
            let Some(size) = size else { return body.parser.wrong("a copy has 4, 8 or 16 bytes") };
            if rest.first().is_some_and(|o| body.is_predicate(o)) {
                return body.parser.wrong("the form that ignores its source is not modelled");
            }
            // With a cache hint the last operand is the policy.
            let policy = hints.contains(&"L2::cache_hint");
            let source = if policy && rest.len() == 1 { None } else { rest.first() };
            let source = source.map(|o| body.source(o)).transpose()?;
            Ok(Op::Copy(CopyOp::CpAsync {
                to: body.address(to)?,
                from: body.address(from)?,
                size: size as u8,
                source,
            }))
        }
        _ => unknown(body),
    }
}
