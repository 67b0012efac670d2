//! What the decoders of every family need.

use super::body::{Body, Operand};
use super::parser::Parsed;
use crate::isa::op::{Ftz, Op, RegisterOp};
use crate::isa::operand::{AluFn, Ty};

/// Fails unless there are so many operands.
pub fn expect(
    body: &Body<'_, '_>,
    operands: &[Operand<'_>],
    n: std::ops::RangeInclusive<usize>,
) -> Parsed<()> {
    if n.contains(&operands.len()) {
        return Ok(());
    }
    body.parser.wrong(format!("{} operands, {} to {} were expected", operands.len(), n.start(), n.end()))
}

/// The message for what this emulator has not learnt.
pub fn unknown<T>(body: &Body<'_, '_>) -> Parsed<T> {
    body.parser.wrong("no such instruction is modelled")
}

/// The last part as a type.
pub fn last_type(body: &Body<'_, '_>, parts: &[&str]) -> Parsed<Ty> {
    match parts.last().and_then(|t| Ty::parse(t)) {
        Some(ty) => Ok(ty),
        None => body.parser.wrong("it ends in no known type"),
    }
}

/// A function of one to three registers.
pub fn alu_op<'a>(
    body: &mut Body<'_, 'a>,
    f: AluFn,
    ftz: Ftz,
    sat: bool,
    operands: &[Operand<'a>],
) -> Parsed<Op> {
    expect(body, operands, 2..=4)?;
    let mut s = [body.constant(0); 3];
    for (s, o) in s.iter_mut().zip(&operands[1..]) {
        *s = body.source(o)?;
    }
    let n = operands.len() as u8 - 1;
    Ok(Op::Register(RegisterOp::Alu { f, d: body.target(&operands[0])?, s, n, ftz, sat }))
}
