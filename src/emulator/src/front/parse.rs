//! A PTX file to a [`Module`]: directives, variables, functions. Instructions are read in `function`.

use super::body::Body;
use super::lex::{Token, number, tokens};
use super::parser::{Parsed, Parser, Wrong, place, spelled};
use crate::error::{Error, Result};
use crate::isa::module::{Function, Module, Variable};
use crate::isa::operand::Ty;
use crate::isa::space::MOST;
use std::collections::HashMap;

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

    fn global(&mut self, constant: bool) -> Parsed<()> {
        let (name, mut variable, _, ty) = self.variable()?;
        if self.takes('=') {
            self.initialiser(&mut variable, ty)?;
            variable.size = variable.size.max(variable.init.len());
        }
        self.expect(';')?;
        let all = variable.size + self.module.globals.iter().map(|(other, _)| other.size).sum::<usize>();
        if all as u64 > MOST << 7 {
            return self.wrong(format!("{all} bytes of variables, at most {} are held here", MOST << 7));
        }
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
                ".maxnctapersm" => drop(self.count()?),
                ".maxclusterrank" => function.most_cluster = Some(self.count()?.min(MOST) as u32),
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
                ".explicitcluster" => function.explicit_cluster = true,
                ".noreturn" => {}
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
}

#[cfg(test)]
mod tests {
    use crate::isa::module::Module;

    /// Sizes in a damaged file are no reason to take so much memory.
    #[test]
    fn variables_take_what_they_need_and_no_more_than_there_is() {
        let parse = |variables: &str| {
            let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
            Module::parse("a.ptx", &format!("{head}{variables}"))
        };
        let module = parse(".global .align 1 .b8 a[100000000] = {1, 2};").unwrap();
        let (variable, _) = &module.globals[0];
        assert_eq!((variable.size, &variable.init[..]), (100_000_000, &[1, 2][..]));
        let many = parse(".global .align 1 .b8 a[100000000];\n.global .align 1 .b8 b[100000000];");
        let said = many.map(|_| ()).unwrap_err().to_string();
        assert!(said.contains("200000000 bytes of variables, at most 134217728 are held here"), "{said}");
    }
}
