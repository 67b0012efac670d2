//! A function's body: declarations, labels, and instructions up to their operands.

use super::allocate::allocate;
use super::body::{Body, Name, Operand};
use super::decode;
use super::joins::mark_joins;
use super::lex::Token;
use super::parser::{Parsed, place, spelled};
use super::shares::mark_shared;
use crate::isa::module::{Function, Inst, NOWHERE};
use crate::isa::op::{ControlOp, Op};
use crate::isa::operand::{Pred, Ty};
use crate::isa::space::{GUARD, MOST};
use std::collections::HashMap;

impl<'p, 'a> Body<'p, 'a> {
    /// Up to the closing brace.
    pub fn read(mut self) -> Parsed<Function> {
        self.function.start = self.parser.module.insts.len() as u32;
        while !self.scopes.is_empty() {
            let line = self.parser.line();
            match self.parser.next()? {
                Token::Sign('{') => {
                    self.scope_count += 1;
                    self.scopes.push((self.scope_count, HashMap::new()));
                    if self.scopes.len() > 64 {
                        return self.parser.wrong("more than 64 nested blocks");
                    }
                }
                Token::Sign('}') => drop(self.scopes.pop()),
                Token::Sign(';') => {}
                Token::Sign('@') => {
                    let not = self.parser.takes('!');
                    let word = self.parser.word()?;
                    let Pred::Reg(p, _) = self.pred_word(word, false)? else {
                        return self.parser.wrong("a guard is a predicate register");
                    };
                    let opcode = self.parser.word()?;
                    self.instruction(opcode, Some((p, not)), line)?;
                }
                Token::Word(word) if word.starts_with('.') => self.directive(word)?,
                Token::Word(word) if self.parser.takes(':') => self.label(word)?,
                Token::Word(word) => self.instruction(word, None, line)?,
                other => {
                    return self.parser.wrong(format!("{} begins no statement", spelled(Some(other))));
                }
            }
        }
        // Running off the end is a return.
        self.push(None, Op::Control(ControlOp::Ret), self.parser.line());
        self.function.end = self.parser.module.insts.len() as u32;
        self.resolve()?;
        let (start, module) = (self.function.start, &mut self.parser.module);
        let insts = &mut module.insts[start as usize..];
        mark_shared(insts);
        mark_joins(insts, start, &module.tables);
        self.function.registers = allocate(insts, start, &module.tables, self.function.registers);
        Ok(self.function)
    }

    fn directive(&mut self, word: &'a str) -> Parsed<()> {
        match word {
            ".loc" => self.loc = self.parser.loc()?,
            ".reg" => {
                let ty = self.parser.word()?;
                self.registers(ty)?;
            }
            // As the toolkit's headers have it, without a space.
            _ if word.starts_with(".reg.") => self.registers(&word[4..])?,
            ".pragma" => self.parser.skip_past(';')?,
            ".param" => {
                let (name, variable, ..) = self.parser.variable()?;
                let offset = (self.function.param_bytes as usize).next_multiple_of(variable.align);
                if offset + variable.size > 1 << 20 {
                    return self.parser.wrong("more than 1 MiB of parameters");
                }
                self.function.param_bytes = (offset + variable.size) as u32;
                self.declare(name.to_string(), Name::Param(offset as u32, variable.size as u32));
            }
            ".local" => {
                let (name, variable, ..) = self.parser.variable()?;
                let end = place(&mut self.function.locals, &variable, GUARD) + variable.size;
                if end > MOST as usize {
                    return self.parser.wrong("more than 1 MiB of local memory");
                }
                self.function.local_bytes = (end + GUARD) as u32;
                self.declare(name.to_string(), Name::Local(self.function.locals.len() as u32 - 1));
            }
            ".shared" => {
                let (name, variable, ..) = self.parser.variable()?;
                let entry = self.function.entry;
                if variable.size as u64 > MOST {
                    return self.parser.wrong(format!("{} bytes of shared memory", variable.size));
                }
                if !entry && self.parser.module.functions.iter().any(|f| f.entry && !f.shared.is_empty()) {
                    return self.parser.wrong("a function's shared variable behind a kernel's: not modelled");
                }
                let last = self.parser.module.shared.last();
                let from = last.filter(|_| entry).map_or(0, |v| v.offset + v.size + GUARD);
                let ours = if entry { &mut self.function.shared } else { &mut self.parser.module.shared };
                let offset = place(ours, &variable, from);
                self.declare(name.to_string(), Name::Shared(offset as u64));
            }
            other => return self.parser.wrong(format!("`{other}` is not known in a function")),
        }
        Ok(())
    }

    fn declare(&mut self, name: String, meaning: Name) {
        if let Some((_, names)) = self.scopes.last_mut() {
            names.insert(name, meaning);
        }
    }

    /// `.reg .b32 %r<7>, %x;`
    fn registers(&mut self, ty: &str) -> Parsed<()> {
        let ty = if ty == ".v2" || ty == ".v4" { "" } else { ty };
        let Some(ty) = Ty::parse(ty.trim_start_matches('.')) else {
            return self.parser.wrong(format!("registers of type `{ty}` are not modelled"));
        };
        loop {
            let name = self.parser.word()?;
            if self.parser.takes('<') {
                let n = self.parser.count()?;
                self.parser.expect('>')?;
                if n > MOST >> 4 {
                    return self.parser.wrong(format!("{n} registers"));
                }
                for i in 0..n {
                    self.register(format!("{name}{i}"), ty)?;
                }
            } else {
                self.register(name.to_string(), ty)?;
            }
            if !self.parser.takes(',') {
                break;
            }
        }
        self.parser.expect(';')
    }

    fn register(&mut self, name: String, ty: Ty) -> Parsed<()> {
        let next = if ty == Ty::Pred { &mut self.function.predicates } else { &mut self.function.registers };
        let slot = *next;
        *next += 1;
        if u64::from(slot) > MOST >> 4 {
            return self.parser.wrong("more than 65536 registers");
        }
        self.declare(name, if ty == Ty::Pred { Name::Pred(slot) } else { Name::Reg(slot) });
        Ok(())
    }

    fn label(&mut self, word: &'a str) -> Parsed<()> {
        if self.parser.takes_word(".branchtargets") {
            let mut list = vec![self.parser.word()?];
            while self.parser.takes(',') {
                list.push(self.parser.word()?);
            }
            let index = self.parser.module.tables.len() as u32;
            self.parser.module.tables.push(Vec::new());
            let scopes = self.scopes.iter().map(|s| s.0).collect();
            self.tables.push((index, scopes, list, self.parser.line()));
            self.table_names.insert(word, index);
            return self.parser.expect(';');
        }
        let scope = self.scopes.last().map_or(0, |s| s.0);
        if self.labels.insert((scope, word), self.parser.module.insts.len() as u32).is_some() {
            return self.parser.wrong(format!("label {word} is there twice"));
        }
        Ok(())
    }

    fn push(&mut self, guard: Option<(u32, bool)>, op: Op, line: u32) {
        self.parser.module.insts.push(Inst {
            guard,
            op,
            shares: Box::default(),
            join: NOWHERE,
            joins: false,
            loc: self.loc,
            line,
        });
    }

    fn instruction(&mut self, opcode: &'a str, guard: Option<(u32, bool)>, line: u32) -> Parsed<()> {
        let mut operands = Vec::new();
        while !self.parser.takes(';') {
            operands.push(self.operand()?);
            if !self.parser.takes(',') && self.parser.peek() != Some(Token::Sign(';')) {
                let got = spelled(self.parser.peek());
                return self.parser.wrong(format!("expected `,` or `;` in {opcode}, got {got}"));
            }
        }
        let parts: Vec<&str> = opcode.split('.').collect();
        let op = decode::instruction(self, &parts, &operands)
            .map_err(|(_, what)| (line, format!("{opcode}: {what}")))?;
        self.push(guard, op, line);
        Ok(())
    }

    fn operand(&mut self) -> Parsed<Operand<'a>> {
        if self.parser.takes('{') {
            let mut list = vec![self.operand_in_list()?];
            while self.parser.takes(',') {
                list.push(self.operand_in_list()?);
            }
            self.parser.expect('}')?;
            return Ok(Operand::Vector(list));
        }
        if self.parser.takes('[') {
            let word = self.parser.word()?;
            let mut offset = 0i64;
            while !self.parser.takes(']') {
                match self.parser.next()? {
                    Token::Sign(',') => {
                        let Operand::Vector(list) = self.operand()? else {
                            return self.parser.wrong("expected coordinates in braces");
                        };
                        self.parser.expect(']')?;
                        return Ok(Operand::Box(word, offset, list));
                    }
                    Token::Sign('+') => offset = offset.wrapping_add(self.parser.integer()?),
                    Token::Sign('-') => offset = offset.wrapping_sub(self.parser.integer()?),
                    other => return self.parser.wrong(format!("{} in an address", spelled(Some(other)))),
                }
            }
            return Ok(Operand::Memory(word, offset));
        }
        if self.parser.takes('(') {
            let mut list = Vec::new();
            while !self.parser.takes(')') {
                list.push(self.parser.word()?);
                self.parser.takes(',');
            }
            return Ok(Operand::List(list));
        }
        self.operand_in_list()
    }

    fn operand_in_list(&mut self) -> Parsed<Operand<'a>> {
        let (not, minus) = (self.parser.takes('!'), self.parser.takes('-'));
        let word = self.parser.word()?;
        if self.parser.takes('|') {
            return Ok(Operand::Pair(word, self.parser.word()?));
        }
        Ok(Operand::Word { word, minus, not })
    }

    fn resolve(&mut self) -> Parsed<()> {
        let find = |scopes: &[u32], label: &'a str, line: u32| {
            let found = scopes.iter().rev().find_map(|s| self.labels.get(&(*s, label)));
            found.copied().ok_or((line, format!("label {label} is nowhere in {}", self.function.name)))
        };
        for (at, scopes, label, line) in &self.jumps {
            let to = find(scopes, label, *line)?;
            self.parser.module.insts[*at].op = Op::Control(ControlOp::Bra { to });
        }
        for (table, scopes, labels, line) in &self.tables {
            let targets = labels.iter().map(|l| find(scopes, l, *line)).collect::<Parsed<Vec<u32>>>()?;
            self.parser.module.tables[*table as usize] = targets;
        }
        Ok(())
    }
}
