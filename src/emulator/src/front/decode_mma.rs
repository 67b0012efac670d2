//! `mma.sync`: shapes, types and registers.

use super::body::{Body, Operand};
use super::common::unknown;
use super::parser::Parsed;
use crate::isa::op::{Op, WarpOp};
use crate::isa::operand::{LANES, Src};
use crate::isa::product::{Element, Mma, Sum};
use crate::numbers::mma::{M, N};

/// `mma.sync.aligned.m16n8kK.row.col.D.A.B.C`
pub fn decode<'a>(body: &mut Body<'_, 'a>, parts: &[&'a str], operands: &[Operand<'a>]) -> Parsed<Op> {
    let ["sync", "aligned", shape, "row", "col", d, a, b, c] = parts[1..] else { return unknown(body) };
    let elements = [a, b].map(Element::parse);
    let ([Some(a), Some(b)], true) = (elements, c == d) else { return unknown(body) };
    let (sum, k) = match (d, a, b, shape) {
        ("f16", Element::F16, Element::F16, "m16n8k16") => (Sum::F16, 16),
        ("f16", Element::F16, Element::F16, "m16n8k8") => (Sum::F16, 8),
        ("f32", Element::F16 | Element::Bf16, _, "m16n8k16") if a == b => (Sum::F32, 16),
        ("f32", Element::F16 | Element::Bf16, _, "m16n8k8") if a == b => (Sum::F32, 8),
        ("f32", Element::Tf32, Element::Tf32, "m16n8k8") => (Sum::F32, 8),
        ("f32", Element::Tf32, Element::Tf32, "m16n8k4") => (Sum::F32, 4),
        ("s32", Element::S8 | Element::U8, Element::S8 | Element::U8, "m16n8k32") => (Sum::S32, 32),
        ("s32", Element::S8 | Element::U8, Element::S8 | Element::U8, "m16n8k16") => (Sum::S32, 16),
        _ => return unknown(body),
    };
    let [Operand::Vector(d), Operand::Vector(la), Operand::Vector(lb), Operand::Vector(c)] = operands else {
        return body.parser.wrong("expected four lists of registers");
    };
    let pack = 4 / a.size();
    let (na, nb, nd) = (M * k / LANES / pack, N * k / LANES / pack, if sum == Sum::F16 { 2 } else { 4 });
    if (d.len(), la.len(), lb.len(), c.len()) != (nd, na, nb, nd) {
        return body.parser.wrong(format!("expected {nd}, {na}, {nb} and {nd} registers"));
    }
    let d = d.iter().map(|o| body.target(o)).collect::<Parsed<_>>()?;
    let [la, lb, c] = [la, lb, c].map(|l| l.iter().map(|o| body.source(o)).collect::<Parsed<Vec<Src>>>());
    Ok(Op::Warp(WarpOp::Mma(Box::new(Mma { elements: [a, b], sum, k, d, a: la?, b: lb?, c: c? }))))
}
