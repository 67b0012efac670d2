//! What is known of a function while it is read, and what its operands mean.

use super::lex::number;
use super::parser::{Parsed, Parser};
use crate::isa::module::{Function, Variable};
use crate::isa::op::{ControlOp, Op};
use crate::isa::operand::{Addr, LANES, NONE, Pred, Src};
use crate::isa::special::SPECIAL;
use std::collections::HashMap;

/// A name's meaning in a function.
#[derive(Clone, Copy, Debug)]
pub enum Name {
    Reg(u32),
    Pred(u32),
    /// Offset and bytes in param space.
    Param(u32, u32),
    /// Offset in shared memory.
    Shared(u64),
    /// Of the function's local variables.
    Local(u32),
}

/// An operand as it is written.
#[derive(Clone, Debug)]
pub enum Operand<'a> {
    /// A register, a variable or a number; minus, not.
    Word { word: &'a str, minus: bool, not: bool },
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `[a + 4]`
    Memory(&'a str, i64),
    /// `[map, {x, y}]`
    Box(&'a str, i64, Vec<Operand<'a>>),
    /// `d | p`
    Pair(&'a str, &'a str),
    /// `(a, b)` of a call.
    List(Vec<&'a str>),
}

/// Reads one function's body.
pub struct Body<'p, 'a> {
    /// Where tokens come from, and module-wide names.
    pub parser: &'p mut Parser<'a>,
    pub function: Function,
    /// Innermost last.
    pub scopes: Vec<(u32, HashMap<String, Name>)>,
    pub scope_count: u32,
    pub labels: HashMap<(u32, &'a str), u32>,
    /// (instruction, scopes, label, line): targets to be filled in.
    pub jumps: Vec<(usize, Vec<u32>, &'a str, u32)>,
    pub tables: Vec<(u32, Vec<u32>, Vec<&'a str>, u32)>,
    pub table_names: HashMap<&'a str, u32>,
    pub loc: u32,
}

impl<'p, 'a> Body<'p, 'a> {
    /// For a function whose head is read.
    pub fn new(parser: &'p mut Parser<'a>, function: Function) -> Self {
        let param = |v: &Variable| (v.name.clone(), Name::Param(v.offset as u32, v.size as u32));
        let names = function.results.iter().chain(&function.params).map(param).collect();
        Body {
            parser,
            function,
            scopes: vec![(0, names)],
            scope_count: 0,
            labels: HashMap::new(),
            jumps: Vec::new(),
            tables: Vec::new(),
            table_names: HashMap::new(),
            loc: u32::MAX,
        }
    }

    pub fn lookup(&self, word: &str) -> Option<Name> {
        self.scopes.iter().rev().find_map(|(_, names)| names.get(word).copied())
    }

    /// A constant's slot.
    pub fn constant(&mut self, value: u64) -> Src {
        let next = self.parser.module.consts.len() as u32;
        let slot = *self.parser.consts.entry(value).or_insert(next);
        if slot == next {
            self.parser.module.consts.push([value; LANES]);
        }
        Src::Const(slot)
    }

    fn source_word(&mut self, word: &str, minus: bool) -> Parsed<Src> {
        if let Some(n) = number(word) {
            return Ok(self.constant(if minus { n.wrapping_neg() } else { n }));
        }
        match self.lookup(word) {
            Some(Name::Reg(slot)) => return Ok(Src::Reg(slot)),
            Some(Name::Param(offset, _)) => return Ok(self.constant(offset.into())),
            Some(Name::Shared(offset)) => return Ok(self.constant(offset)),
            Some(Name::Local(variable)) => return Ok(Src::Local(variable)),
            Some(Name::Pred(_)) => return self.parser.wrong(format!("`{word}` is a predicate")),
            None => {}
        }
        if word == "WARP_SZ" {
            return Ok(self.constant(LANES as u64));
        }
        if let Some(i) = SPECIAL.iter().position(|s| *s == word) {
            return Ok(Src::Env(i as u32));
        }
        match self.parser.shared.get(word) {
            Some(Some(offset)) => {
                let offset = *offset;
                return Ok(self.constant(offset));
            }
            Some(None) => return Ok(Src::Env(SPECIAL.len() as u32 - 1)),
            None => {}
        }
        match self.parser.globals.get(word) {
            Some(i) => Ok(Src::Env(SPECIAL.len() as u32 + i)),
            None => self.parser.wrong(format!("`{word}` is not declared")),
        }
    }

    /// An operand that is read.
    pub fn source(&mut self, operand: &Operand<'a>) -> Parsed<Src> {
        match operand {
            Operand::Word { word, minus, not: false } => self.source_word(word, *minus),
            _ => self.parser.wrong("expected a register or a number"),
        }
    }

    /// A register that is written; `_` is nowhere.
    pub fn target(&mut self, operand: &Operand<'a>) -> Parsed<u32> {
        match operand {
            Operand::Word { word: "_", .. } => Ok(NONE),
            Operand::Word { word, minus: false, not: false } => self.target_word(word),
            _ => self.parser.wrong("expected a register to write to"),
        }
    }

    /// The same by its name.
    pub fn target_word(&mut self, word: &str) -> Parsed<u32> {
        match self.lookup(word) {
            Some(Name::Reg(slot)) => Ok(slot),
            _ if word == "_" => Ok(NONE),
            _ => self.parser.wrong(format!("`{word}` is no register that can be written")),
        }
    }

    /// A predicate that is read.
    pub fn predicate(&mut self, operand: &Operand<'a>) -> Parsed<Pred> {
        match operand {
            Operand::Word { word, minus: false, not } => self.pred_word(word, *not),
            // `-1` is how nvcc writes true.
            Operand::Word { word, minus: true, not: false } if number(word).is_some() => {
                self.pred_word(word, false)
            }
            _ => self.parser.wrong("expected a predicate"),
        }
    }

    pub fn pred_word(&mut self, word: &str, not: bool) -> Parsed<Pred> {
        match (self.lookup(word), number(word)) {
            (Some(Name::Pred(slot)), _) => Ok(Pred::Reg(slot, not)),
            (None, Some(n)) => Ok(Pred::Const((n != 0) != not)),
            (None, None) if word == "%is_explicit_cluster" && !not => {
                Ok(Pred::Env(SPECIAL.iter().position(|s| *s == word).unwrap_or(0) as u32))
            }
            _ => self.parser.wrong(format!("`{word}` is no predicate")),
        }
    }

    /// Whether the operand names a predicate.
    pub fn is_predicate(&self, operand: &Operand<'a>) -> bool {
        matches!(operand, Operand::Word { word, .. } if matches!(self.lookup(word), Some(Name::Pred(_))))
    }

    /// A predicate that is written.
    pub fn pred_target(&mut self, word: &str) -> Parsed<u32> {
        match self.lookup(word) {
            _ if word == "_" => Ok(NONE),
            Some(Name::Pred(slot)) => Ok(slot),
            _ => self.parser.wrong(format!("`{word}` is no predicate")),
        }
    }

    /// `[base + offset]`
    pub fn address(&mut self, operand: &Operand<'a>) -> Parsed<Addr> {
        match operand {
            Operand::Memory(word, offset) => self.place(word, *offset),
            _ => self.parser.wrong("expected an address in brackets"),
        }
    }

    /// The same by its parts.
    pub fn place(&mut self, base: &str, offset: i64) -> Parsed<Addr> {
        Ok(Addr { base: self.source_word(base, false)?, offset })
    }

    /// The offset of a variable of param space, which a callee takes or gives as one of so many bytes.
    pub fn param_offset(&mut self, word: &str, bytes: u32) -> Parsed<u32> {
        match self.lookup(word) {
            Some(Name::Param(offset, own)) if own == bytes => Ok(offset),
            Some(Name::Param(_, own)) => {
                self.parser.wrong(format!("`{word}` has {own} bytes, {bytes} were expected"))
            }
            _ => self.parser.wrong(format!("`{word}` is no parameter")),
        }
    }

    /// A branch whose target is filled in at the end.
    pub fn jump(&mut self, label: &'a str) -> Op {
        let scopes = self.scopes.iter().map(|s| s.0).collect();
        self.jumps.push((self.parser.module.insts.len(), scopes, label, self.parser.line()));
        Op::Control(ControlOp::Bra { to: 0 })
    }

    /// A table of targets by its name.
    pub fn table(&mut self, name: &str) -> Parsed<u32> {
        match self.table_names.get(name) {
            Some(i) => Ok(*i),
            None => self.parser.wrong(format!("`{name}` is no list of targets")),
        }
    }
}
