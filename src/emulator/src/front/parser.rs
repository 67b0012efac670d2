//! Tokens one after the other, and what stands in functions and outside of them alike.

use super::lex::{Token, number};
use crate::isa::module::{Loc, Module, Variable};
use crate::isa::operand::Ty;
use crate::isa::space::{GUARD, MOST};
use std::collections::HashMap;

/// A line and what is wrong with it.
pub type Wrong = (u32, String);

/// What a part of the parser gives.
pub type Parsed<T> = std::result::Result<T, Wrong>;

/// Tokens with a place in them, and the module so far.
pub struct Parser<'a> {
    pub tokens: Vec<(Token<'a>, u32)>,
    pub at: usize,
    /// What has been read.
    pub module: Module,
    /// Function by name.
    pub functions: HashMap<&'a str, u32>,
    /// Variable of global memory by name.
    pub globals: HashMap<&'a str, u32>,
    /// Offset of a shared variable by name; `None` for dynamic shared memory.
    pub shared: HashMap<&'a str, Option<u64>>,
    /// Constants by value.
    pub consts: HashMap<u64, u32>,
}

impl<'a> Parser<'a> {
    /// The line of the next token.
    pub fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(1, |t| t.1)
    }

    /// An error here.
    pub fn wrong<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err((self.line(), what.into()))
    }

    /// The next token, not taken.
    pub fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.0)
    }

    /// Takes a token.
    pub fn next(&mut self) -> Parsed<Token<'a>> {
        match self.peek() {
            Some(t) => {
                self.at += 1;
                Ok(t)
            }
            None => self.wrong("the file ends here, in the middle of something; is it cut short?"),
        }
    }

    /// Takes `sign` if it is next.
    pub fn takes(&mut self, sign: char) -> bool {
        let there = self.peek() == Some(Token::Sign(sign));
        self.at += usize::from(there);
        there
    }

    /// Takes the word if it is next.
    pub fn takes_word(&mut self, word: &str) -> bool {
        let there = self.peek() == Some(Token::Word(word));
        self.at += usize::from(there);
        there
    }

    /// Must be next.
    pub fn expect(&mut self, sign: char) -> Parsed<()> {
        let got = self.peek();
        if self.takes(sign) {
            return Ok(());
        }
        self.wrong(format!("expected `{sign}`, got {}", spelled(got)))
    }

    /// A name.
    pub fn word(&mut self) -> Parsed<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            other => self.wrong(format!("expected a name, got {}", spelled(other))),
        }
    }

    /// A whole number, perhaps negative.
    pub fn integer(&mut self) -> Parsed<i64> {
        let negative = self.takes('-');
        let word = self.word()?;
        let Some(n) = number(word) else {
            return self.wrong(format!("expected a number, got `{word}`"));
        };
        Ok(if negative { (n as i64).wrapping_neg() } else { n as i64 })
    }

    /// A count that a real file can have.
    pub fn count(&mut self) -> Parsed<u64> {
        let n = self.integer()?;
        match u64::try_from(n) {
            Ok(n) if n <= MOST << 12 => Ok(n),
            _ => self.wrong(format!("{n} is no sensible count")),
        }
    }

    /// Skips to behind the next `sign`.
    pub fn skip_past(&mut self, sign: char) -> Parsed<()> {
        while self.next()? != Token::Sign(sign) {}
        Ok(())
    }

    /// `.align 16 .b8 name[12][4]`; the flag says that the first extent is open.
    pub fn variable(&mut self) -> Parsed<(&'a str, Variable, bool, Ty)> {
        let (mut align, mut ty, mut vector) = (0, None, 1);
        let name = loop {
            let word = self.word()?;
            match word {
                ".align" => align = self.count()? as usize,
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".ptr" | ".attribute" | ".managed" | ".global" | ".shared" | ".const" | ".local"
                | ".restrict" => {}
                _ => match word.strip_prefix('.') {
                    Some(rest) => match Ty::parse(rest) {
                        Some(t) => ty = Some(t),
                        None => return self.wrong(format!("`{word}` is no type of a variable")),
                    },
                    None => break word,
                },
            }
        };
        let Some(ty) = ty else { return self.wrong(format!("variable {name} has no type")) };
        let (mut size, mut open) = (ty.size() as u64 * vector, false);
        while self.takes('[') {
            if self.takes(']') {
                open = true;
                continue;
            }
            size = size.saturating_mul(self.count()?);
            self.expect(']')?;
        }
        let align = if align == 0 { ty.size() * vector as usize } else { align };
        if size > MOST << 10 || !align.is_power_of_two() || align > 1 << 16 {
            return self.wrong(format!("variable {name}: {size} bytes aligned to {align} is not sensible"));
        }
        let size = if open { 0 } else { size as usize };
        let name_owned = name.to_string();
        let (offset, init, init_addresses) = (0, Vec::new(), Vec::new());
        Ok((name, Variable { name: name_owned, size, align, offset, init, init_addresses }, open, ty))
    }

    /// The numbers of a `.loc` directive.
    pub fn loc(&mut self) -> Parsed<u32> {
        let (file, line) = (self.count()? as u32, self.count()? as u32);
        self.count()?;
        let mut loc = Loc { file, line, at: None };
        while self.takes(',') {
            match self.word()? {
                "function_name" => {
                    self.word()?;
                    if self.takes('+') {
                        self.integer()?;
                    }
                }
                "inlined_at" => {
                    let (file, line) = (self.count()? as u32, self.count()? as u32);
                    self.count()?;
                    // The call's own place may be inlined in turn: nvcc gives it its own line just before.
                    let known = self.module.locs.iter().rposition(|l| (l.file, l.line) == (file, line));
                    let index = known.unwrap_or_else(|| {
                        self.module.locs.push(Loc { file, line, at: None });
                        self.module.locs.len() - 1
                    });
                    loc.at = Some(index as u32);
                }
                other => return self.wrong(format!("`{other}` in .loc")),
            }
        }
        if self.module.locs.last() != Some(&loc) {
            self.module.locs.push(loc);
        }
        Ok(self.module.locs.len() as u32 - 1)
    }
}

/// Gives a variable its offset behind the others, with a gap that nobody may touch.
pub fn place(list: &mut Vec<Variable>, variable: &Variable, from: usize) -> usize {
    let end = list.last().map_or(from, |v| v.offset + v.size + GUARD);
    let offset = end.next_multiple_of(variable.align.max(16));
    list.push(Variable { offset, ..variable.clone() });
    offset
}

/// A token as a message shows it.
pub fn spelled(token: Option<Token<'_>>) -> String {
    match token {
        Some(Token::Word(w)) => format!("`{w}`"),
        Some(Token::Text(t)) => format!("{t:?}"),
        Some(Token::Sign(c)) => format!("`{c}`"),
        None => "the end of the file".to_string(),
    }
}
