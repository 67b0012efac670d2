//! Clusters, mbarriers, bulk copies, proxy fences: opcodes to operations.

use super::body::{Body, Operand};
use super::common::{alu_op, expect, last_type, unknown};
use super::lex::number;
use super::parser::Parsed;
use crate::isa::copy::{Bulk, End};
use crate::isa::mbarrier::{Mbar, What};
use crate::isa::op::{BarrierOp, CopyOp, FenceOp, Ftz, Op, RegisterOp};
use crate::isa::operand::{NONE, Proxy, Rmw, Space, Src, Ty};
use crate::numbers::alu::alu;

/// Whether an opcode is of this family.
pub fn knows(parts: &[&str]) -> bool {
    let second = parts.get(1).copied().unwrap_or("");
    match parts[0] {
        "mbarrier" | "mapa" | "getctarank" => true,
        "barrier" => second == "cluster",
        "st" | "red" => second == "async",
        "fence" => parts.contains(&"proxy") || second == "mbarrier_init",
        "cp" => parts.contains(&"bulk") || parts.contains(&"mbarrier"),
        _ => false,
    }
}

/// Decodes one of this family.
pub fn instruction<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    match parts[0] {
        "mbarrier" => mbarrier(body, parts, operands),
        "barrier" => cluster_barrier(body, parts, operands),
        "fence" => fence(body, parts),
        "mapa" | "getctarank" => address(body, parts, operands),
        "st" | "red" => store(body, parts, operands),
        _ if parts.contains(&"mbarrier") => copies(body, parts, operands),
        _ if parts.contains(&"prefetch") => prefetch(body, parts, operands),
        _ if parts.contains(&"commit_group") => Ok(Op::Copy(CopyOp::BulkCommit)),
        _ if parts.contains(&"wait_group") => wait_group(body, parts, operands),
        _ => bulk(body, parts, operands),
    }
}

/// The rest of an opcode's parts when the known ones are gone, in any order.
fn all_known(body: &Body<'_, '_>, parts: &[&str], known: &[&str]) -> Parsed<()> {
    match parts.iter().find(|p| !known.contains(p)) {
        Some(other) => body.parser.wrong(format!("modifier `.{other}` is not modelled")),
        None => Ok(()),
    }
}

fn space(parts: &[&str]) -> Space {
    match parts.iter().find(|p| p.starts_with("shared")) {
        Some(&"shared::cluster") => Space::Cluster,
        Some(_) => Space::Shared,
        None => Space::Generic,
    }
}

fn cluster_barrier(body: &mut Body<'_, '_>, parts: &[&str], operands: &[Operand<'_>]) -> Parsed<Op> {
    expect(body, operands, 0..=0)?;
    all_known(body, &parts[2..], &["arrive", "wait", "release", "relaxed", "acquire", "aligned"])?;
    let has = |word: &str| parts.contains(&word);
    if has("arrive") == has("wait") {
        return unknown(body);
    }
    Ok(Op::Barrier(BarrierOp::ClusterBarrier {
        wait: has("wait"),
        aligned: has("aligned"),
        relaxed: has("relaxed"),
    }))
}

fn fence(body: &mut Body<'_, '_>, parts: &[&str]) -> Parsed<Op> {
    const BOTH: &[Proxy] = &[Proxy::Shared, Proxy::Global, Proxy::Mbarriers];
    const SHARED: &[Proxy] = &[Proxy::Shared, Proxy::Mbarriers];
    Ok(match parts[1..] {
        ["mbarrier_init", "release", "cluster"] => {
            Op::Fence(FenceOp::ProxyFence { proxies: &[Proxy::Mbarriers], release: true })
        }
        ["proxy", "async"] => Op::Fence(FenceOp::ProxyFence { proxies: BOTH, release: false }),
        ["proxy", "async", "global"] => {
            Op::Fence(FenceOp::ProxyFence { proxies: &[Proxy::Global], release: false })
        }
        ["proxy", "async", "shared::cta" | "shared::cluster"] => {
            Op::Fence(FenceOp::ProxyFence { proxies: SHARED, release: false })
        }
        ["proxy", "async::generic", "release", restrict, "cluster"]
            if restrict.starts_with("sync_restrict::shared::") =>
        {
            Op::Fence(FenceOp::ProxyFence { proxies: SHARED, release: true })
        }
        ["proxy", "async::generic", "acquire", restrict, "cluster"]
            if restrict.starts_with("sync_restrict::shared::") =>
        {
            Op::Fence(FenceOp::Fence)
        }
        // Maps are sealed when they are made, and aliases are not modelled: nothing is left to order.
        ["proxy", "alias"] => Op::Fence(FenceOp::Fence),
        ["proxy", "tensormap::generic", "acquire" | "release", "cta" | "cluster" | "gpu" | "sys"] => {
            Op::Fence(FenceOp::Fence)
        }
        _ => return unknown(body),
    })
}

fn address<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    all_known(body, &parts[1..], &["shared::cluster", "u32", "u64"])?;
    if parts[0] == "mapa" {
        expect(body, operands, 3..=3)?;
        let s = [body.source(&operands[1])?, body.source(&operands[2])?];
        return Ok(Op::Register(RegisterOp::Mapa { d: body.target(&operands[0])?, s }));
    }
    expect(body, operands, 2..=2)?;
    Ok(Op::Register(RegisterOp::Rank { d: body.target(&operands[0])?, s: body.source(&operands[1])? }))
}

fn mbarrier<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let known = [
        "b64",
        "shared",
        "shared::cta",
        "shared::cluster",
        "release",
        "relaxed",
        "acquire",
        "cta",
        "cluster",
        "parity",
        "expect_tx",
        "noComplete",
    ];
    let (name, rest) = (parts.get(1).copied().unwrap_or(""), parts.get(2..).unwrap_or(&[]));
    all_known(body, rest, &known)?;
    let (has, space) = (|word: &str| rest.contains(&word), space(rest));
    let relaxed = has("relaxed");
    let (what, at) = match name {
        "init" => {
            expect(body, operands, 2..=2)?;
            (What::Init { count: body.source(&operands[1])? }, 0)
        }
        "inval" => {
            expect(body, operands, 1..=1)?;
            (What::Inval, 0)
        }
        "expect_tx" | "complete_tx" => {
            expect(body, operands, 2..=2)?;
            let tx = body.source(&operands[1])?;
            (if name == "expect_tx" { What::Expect { tx } } else { What::Complete { tx } }, 0)
        }
        "arrive" | "arrive_drop" => {
            expect(body, operands, 2..=3)?;
            let d = body.target(&operands[0])?;
            if space == Space::Cluster && d != NONE {
                return body
                    .parser
                    .wrong("an arrival at another block's mbarrier gives no state: `_` was expected");
            }
            let value = operands.get(2).map(|o| body.source(o)).transpose()?;
            let (count, tx) = if has("expect_tx") { (None, value) } else { (value, None) };
            (What::Arrive { d, count, tx, drop: name == "arrive_drop", last: !has("noComplete"), relaxed }, 1)
        }
        "test_wait" | "try_wait" => {
            expect(body, operands, 3..=4)?;
            let Operand::Word { word, .. } = &operands[0] else {
                return body.parser.wrong("expected a predicate");
            };
            let (p, phase) = (body.pred_target(word)?, body.source(&operands[2])?);
            (What::Wait { p, phase, parity: has("parity"), relaxed }, 1)
        }
        "pending_count" => {
            expect(body, operands, 2..=2)?;
            return alu_op(body, alu!(u64: |a, _, _| a & 0xffff_ffff), Ftz::NONE, false, operands);
        }
        _ => return unknown(body),
    };
    Ok(Op::Barrier(BarrierOp::Mbarrier(Box::new(Mbar { what, space, addr: body.address(&operands[at])? }))))
}

fn copies<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    all_known(body, &parts[1..], &["async", "mbarrier", "arrive", "noinc", "shared", "shared::cta", "b64"])?;
    expect(body, operands, 1..=1)?;
    let what = What::Copies { counted: parts.contains(&"noinc") };
    Ok(Op::Barrier(BarrierOp::Mbarrier(Box::new(Mbar {
        what,
        space: space(&parts[1..]),
        addr: body.address(&operands[0])?,
    }))))
}

fn wait_group(body: &mut Body<'_, '_>, parts: &[&str], operands: &[Operand<'_>]) -> Parsed<Op> {
    all_known(body, &parts[1..], &["async", "bulk", "wait_group", "read"])?;
    match operands {
        [Operand::Word { word, .. }] => match number(word) {
            Some(n) if n < 1 << 16 => {
                Ok(Op::Copy(CopyOp::BulkWait { pending: n as u32, read: parts.contains(&"read") }))
            }
            _ => body.parser.wrong("expected a number of groups"),
        },
        _ => body.parser.wrong("expected a number of groups"),
    }
}

fn operation(word: &str) -> Option<Rmw> {
    Some(match word {
        "add" => Rmw::Add,
        "min" => Rmw::Min,
        "max" => Rmw::Max,
        "and" => Rmw::And,
        "or" => Rmw::Or,
        "xor" => Rmw::Xor,
        "inc" => Rmw::Inc,
        "dec" => Rmw::Dec,
        _ => return None,
    })
}

/// `st.async` and `red.async`
fn store<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ty = last_type(body, parts)?;
    let f = parts.iter().find_map(|p| operation(p));
    let known = [
        "async",
        "weak",
        "relaxed",
        "cluster",
        "shared::cluster",
        "mbarrier::complete_tx::bytes",
        "v2",
        "v4",
        "add",
        "min",
        "max",
        "and",
        "or",
        "xor",
        "inc",
        "dec",
    ];
    all_known(body, &parts[1..parts.len() - 1], &known)?;
    expect(body, operands, 3..=3)?;
    let wide = if parts.contains(&"v4") { 4 } else { 1 + usize::from(parts.contains(&"v2")) };
    let list = match &operands[1] {
        Operand::Vector(list) => list.iter().map(|o| body.source(o)).collect::<Parsed<Vec<Src>>>()?,
        one => vec![body.source(one)?],
    };
    if list.len() != wide || !matches!(ty.size(), 4 | 8) || f.is_some() != (parts[0] == "red") {
        return unknown(body);
    }
    Ok(Op::Copy(CopyOp::Bulk(Box::new(Bulk {
        from: End::Registers(list, ty),
        to: End::Shared(body.address(&operands[0])?),
        size: None,
        mbarrier: Some(body.address(&operands[2])?),
        mask: None,
        reduce: f.map(|f| (f, Some(ty))),
    }))))
}

/// `cp.async.bulk.prefetch.L2.global` and `cp.async.bulk.prefetch.tensor.2d.L2.global.tile`
fn prefetch<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let known = [
        "async",
        "bulk",
        "prefetch",
        "tensor",
        "L2",
        "global",
        "tile",
        "L2::cache_hint",
        "1d",
        "2d",
        "3d",
        "4d",
        "5d",
    ];
    all_known(body, &parts[1..], &known)?;
    let n = if parts.contains(&"tensor") { 1 } else { 2 } + usize::from(parts.contains(&"L2::cache_hint"));
    expect(body, operands, n..=n)?;
    let dimensions = parts.iter().find_map(|p| p.strip_suffix('d')?.parse::<usize>().ok());
    let (from, size) = match (&operands[0], dimensions) {
        (Operand::Box(map, offset, list), Some(d)) if d == list.len() => {
            let coords = list.iter().map(|o| body.source(o)).collect::<Parsed<Vec<Src>>>()?;
            (End::Box(body.place(map, *offset)?, coords), None)
        }
        (_, Some(_)) => {
            return body.parser.wrong("expected a tensor map with as many coordinates as the opcode says");
        }
        (address, None) => (End::Global(body.address(address)?), Some(body.source(&operands[1])?)),
    };
    Ok(Op::Copy(CopyOp::Prefetch { from, size }))
}

fn bulk<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let tensor = parts.contains(&"tensor");
    let mut spaces = Vec::new();
    let (mut f, mut ty, mut told, mut multicast, mut hint) = (None, None, None, 0, 0);
    for part in &parts[1..] {
        match *part {
            "reduce" | "async" | "bulk" | "tensor" | "tile" | "noftz" | "1d" | "2d" | "3d" | "4d" | "5d" => {}
            "global" | "shared::cta" | "shared::cluster" => spaces.push(*part),
            "bulk_group" => told = Some(false),
            "mbarrier::complete_tx::bytes" => told = Some(true),
            "multicast::cluster" => multicast = 1,
            "L2::cache_hint" => hint = 1,
            word => match (operation(word), Ty::parse(word)) {
                (Some(op), _) => f = Some(op),
                (None, Some(t)) if parts[1] == "reduce" => ty = Some(t),
                _ => return body.parser.wrong(format!("modifier `.{word}` is not modelled")),
            },
        }
    }
    let (Some(told), &[to, from]) = (told, &spaces[..]) else { return unknown(body) };
    let halves = matches!(ty, Some(Ty::F16 | Ty::Bf16)) && matches!(f, Some(Rmw::Add | Rmw::Min | Rmw::Max));
    let floats = !halves && matches!(ty, Some(Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64));
    let reduces = parts[1] == "reduce";
    let whole = reduces == f.is_some() && reduces == (ty.is_some() || tensor && f.is_some());
    let pair = match (to, from) {
        ("shared::cluster" | "shared::cta", "global") => told && !reduces,
        ("shared::cluster", "shared::cta") => told && !tensor,
        ("global", "shared::cta") => !told,
        _ => false,
    };
    let all = multicast == 0 || (to, from) == ("shared::cluster", "global");
    if !whole || floats && f != Some(Rmw::Add) || !pair || !all {
        return unknown(body);
    }
    let sized = usize::from(!tensor);
    let n = 2 + sized + usize::from(told) + multicast + hint;
    expect(body, operands, n..=n)?;
    let end = |body: &mut Body<'_, 'a>, o: &Operand<'a>, space: &str| {
        Ok(match (space, o) {
            ("global", Operand::Box(map, offset, list)) if tensor => {
                let coords = list.iter().map(|o| body.source(o)).collect::<Parsed<Vec<Src>>>()?;
                End::Box(body.place(map, *offset)?, coords)
            }
            ("global", _) => End::Global(body.address(o)?),
            _ => End::Shared(body.address(o)?),
        })
    };
    let dimensions = parts.iter().find_map(|p| p.strip_suffix('d')?.parse::<usize>().ok());
    let boxed =
        operands.iter().find_map(|o| if let Operand::Box(_, _, l) = o { Some(l.len()) } else { None });
    if tensor && (boxed != dimensions || boxed.is_none()) {
        return body.parser.wrong("expected a tensor map with as many coordinates as the opcode says");
    }
    let bar = 2 + sized;
    Ok(Op::Copy(CopyOp::Bulk(Box::new(Bulk {
        to: end(body, &operands[0], to)?,
        from: end(body, &operands[1], from)?,
        size: if tensor { None } else { Some(body.source(&operands[2])?) },
        mbarrier: if told { Some(body.address(&operands[bar])?) } else { None },
        mask: if multicast == 1 { Some(body.source(&operands[bar + 1])?) } else { None },
        reduce: f.map(|f| (f, ty)),
    }))))
}
