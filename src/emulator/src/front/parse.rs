//! A PTX file to a [`Module`]: directives, variables, functions. Instructions are read in `body`.

use super::body::Body;
use super::lex::{Token, number, tokens};
use crate::error::{Error, Result};
use crate::isa::module::{Function, Loc, Module, Variable};
use crate::isa::operand::Ty;
use crate::isa::space::{GUARD, MOST};
use std::collections::HashMap;

/// A line and what is wrong with it.
pub type Wrong = (u32, String);

/// What a part of the parser gives.
pub type Parsed<T> = std::result::Result<T, Wrong>;

/// Tokens with a place in them, and the module so far.
pub struct Parser<'a> {
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
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

impl Module {
    /// Reads PTX text; `name` is for messages.
    pub fn parse(name: &str, text: &str) -> Result<Module> {
        let wrong = |(line, what): Wrong| Error::ptx(name, format!("line {line}: {what}"));
        let mut parser = Parser {
            tokens: tokens(text).map_err(wrong)?,
            at: 0,
            module: Module { name: name.to_string(), ..Module::default() },
            functions: HashMap::new(),
            globals: HashMap::new(),
            shared: HashMap::new(),
            consts: HashMap::new(),
        };
        parser.file().map_err(wrong)?;
        let mut module = parser.module;
        module.fix_up().map_err(|what| Error::ptx(name, what))?;
        Ok(module)
    }

    /// What can only be checked when everything is read.
    fn fix_up(&mut self) -> std::result::Result<(), String> {
        if self.target == 0 {
            return Err("no .target; is this a PTX file?".to_string());
        }
        for (variable, _) in &self.globals {
            for (_, name) in &variable.init_addresses {
                if !self.globals.iter().any(|(v, _)| v.name == *name) {
                    return Err(format!(
                        "{} is initialised with {name}, which is no variable",
                        variable.name
                    ));
                }
            }
        }
        Ok(())
    }
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

    fn file(&mut self) -> Parsed<()> {
        while self.peek().is_some() {
            match self.word()? {
                ".version" => drop(self.word()?),
                ".target" => {
                    let target = self.word()?;
                    let digits = target.trim_start_matches("sm_").trim_end_matches(['a', 'f']);
                    self.module.target = match digits.parse() {
                        Ok(n @ 20..=200) => n,
                        _ => {
                            return self
                                .wrong(format!("target `{target}`: expected sm_80, sm_90a and the like"));
                        }
                    };
                    while self.takes(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    if self.integer()? != 64 {
                        return self.wrong("only 64-bit addresses are modelled");
                    }
                }
                ".visible" | ".extern" | ".weak" | ".common" | ".FORCE_INLINE" => {}
                ".entry" => self.function(true)?,
                ".func" => self.function(false)?,
                ".global" => self.global(false)?,
                ".const" => self.global(true)?,
                ".shared" => self.module_shared()?,
                ".file" => {
                    let index = self.count()? as u32;
                    let Token::Text(name) = self.next()? else { return self.wrong("expected a file name") };
                    self.module.files.insert(index, name.to_string());
                    while self.takes(',') {
                        self.integer()?;
                    }
                }
                ".pragma" => self.skip_past(';')?,
                ".section" => {
                    self.skip_past('{')?;
                    self.skip_past('}')?;
                }
                other => return self.wrong(format!("`{other}` is not known here")),
            }
        }
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

    fn global(&mut self, constant: bool) -> Parsed<()> {
        let (name, mut variable, _, ty) = self.variable()?;
        if self.takes('=') {
            self.initialiser(&mut variable, ty)?;
            variable.size = variable.size.max(variable.init.len());
            variable.init.resize(variable.size, 0);
        }
        self.expect(';')?;
        self.globals.insert(name, self.module.globals.len() as u32);
        self.module.globals.push((variable, constant));
        Ok(())
    }

    fn initialiser(&mut self, variable: &mut Variable, ty: Ty) -> Parsed<()> {
        let mut depth = 0;
        loop {
            match self.next()? {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                Token::Sign(',') => {}
                Token::Sign('-') => {
                    self.at -= 1;
                    let n = self.integer()?;
                    variable.init.extend(&n.to_le_bytes()[..ty.size()]);
                }
                Token::Word(word) => match number(word) {
                    Some(n) => variable.init.extend(&n.to_le_bytes()[..ty.size()]),
                    None if ty.size() == 8 => {
                        let name = if word == "generic" {
                            self.expect('(')?;
                            let name = self.word()?;
                            self.expect(')')?;
                            name
                        } else {
                            word
                        };
                        variable.init_addresses.push((variable.init.len(), name.to_string()));
                        variable.init.extend([0; 8]);
                    }
                    None => {
                        return self
                            .wrong(format!("`{word}` initialises a variable narrower than an address"));
                    }
                },
                other => return self.wrong(format!("{} in an initialiser", spelled(Some(other)))),
            }
            if depth <= 0 {
                return Ok(());
            }
        }
    }

    /// Outside functions: static ones stand at the front of every kernel's shared memory.
    fn module_shared(&mut self) -> Parsed<()> {
        let (name, variable, open, _) = self.variable()?;
        self.expect(';')?;
        if open {
            self.shared.insert(name, None);
            return Ok(());
        }
        if variable.size as u64 > MOST {
            return self.wrong(format!("{} bytes of shared memory", variable.size));
        }
        let offset = place(&mut self.module.shared, &variable, 0);
        self.shared.insert(name, Some(offset as u64));
        Ok(())
    }

    fn function(&mut self, entry: bool) -> Parsed<()> {
        let mut function = Function { entry, ..Function::default() };
        if !entry && self.takes('(') {
            function.results = self.parameters(&mut function.param_bytes)?;
        }
        let name = self.word()?;
        function.name = name.to_string();
        if self.takes('(') {
            function.params = self.parameters(&mut function.param_bytes)?;
        }
        let mut body = false;
        while !self.takes(';') {
            if self.takes('{') {
                body = true;
                break;
            }
            match self.word()? {
                ".maxntid" | ".reqntid" => {
                    let mut threads = self.count()?;
                    while self.takes(',') {
                        threads = threads.saturating_mul(self.count()?);
                    }
                    function.most_threads = Some(threads.min(MOST) as u32);
                }
                ".maxnreg" => function.most_registers = Some(self.count()?.min(MOST) as u32),
                ".minnctapersm" => function.least_blocks = self.count()?.min(MOST) as u32,
                ".maxnctapersm" | ".maxclusterrank" => drop(self.count()?),
                ".reqnctapercluster" => {
                    let mut extents = [1; 3];
                    for (i, extent) in extents.iter_mut().enumerate() {
                        if i == 0 || self.takes(',') {
                            *extent = self.count()?.min(MOST) as u32;
                        }
                    }
                    function.cluster = Some(extents);
                }
                ".pragma" => self.skip_past(';')?,
                ".noreturn" | ".explicitcluster" => {}
                other => return self.wrong(format!("`{other}` is not known at a function")),
            }
        }
        let index = match self.functions.get(name) {
            Some(i) => *i,
            None => {
                self.module.functions.push(Function::default());
                self.module.functions.len() as u32 - 1
            }
        };
        if self.module.functions[index as usize].end > self.module.functions[index as usize].start {
            return self.wrong(format!("{name} is there twice"));
        }
        self.functions.insert(name, index);
        // Known by name and parameters before its body is read: it may call itself.
        self.module.functions[index as usize] = function.clone();
        if body {
            let function = Body::new(self, function).read()?;
            self.module.functions[index as usize] = function;
        }
        Ok(())
    }

    fn parameters(&mut self, bytes: &mut u32) -> Parsed<Vec<Variable>> {
        let mut list = Vec::new();
        while !self.takes(')') {
            match self.word()? {
                ".param" => {}
                other => return self.wrong(format!("expected .param, got `{other}`")),
            }
            let (_, mut variable, ..) = self.variable()?;
            variable.offset = (*bytes as usize).next_multiple_of(variable.align);
            let end = variable.offset + variable.size;
            if end > 1 << 16 {
                return self.wrong("more than 64 KiB of parameters");
            }
            *bytes = end as u32;
            list.push(variable);
            self.takes(',');
        }
        Ok(list)
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
