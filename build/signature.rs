//! Reads KERNEL and EXPORT lines of `kernels/*.cu` and writes the typed launchers: `build.rs` and the tests include it.

use std::fmt::Write;

/// What the host sees of one `.cu` file.
#[derive(Debug, Default, PartialEq)]
pub struct Unit {
    /// File name without `.cu`.
    pub stem: String,
    /// `EXPORT constexpr TYPE NAME = VALUE;`: name, Rust type, Rust expression.
    pub constants: Vec<(String, &'static str, String)>,
    /// Entry points, in their order.
    pub kernels: Vec<Entry>,
}

/// One `KERNEL void name(parameters)`.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// C name, not mangled.
    pub name: String,
    /// Names and types, in their order.
    pub parameters: Vec<(String, Kind)>,
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A number: its Rust type.
    Scalar(&'static str),
    /// An array on the device.
    Array {
        /// A `DType` variant.
        dtype: &'static str,
        /// Not `const`.
        written: bool,
        /// The name ends in `_or_null`.
        nullable: bool,
    },
    /// `const __grid_constant__ CUtensorMap`.
    TensorMap,
}

/// Where and why a file cannot be read.
#[derive(Debug, PartialEq)]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    /// One sentence.
    pub what: String,
}

type Result<T> = std::result::Result<T, Malformed>;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Words, numbers and signs, without comments and preprocessor lines.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut list, mut rest, mut line, mut fresh) = (Vec::new(), source, 1, true);
    let word = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if fresh && c == '#' {
            // A directive ends at the first line that does not end in a backslash.
            let ends = rest.match_indices('\n').map(|(at, _)| at).find(|&at| !rest[..at].ends_with('\\'));
            ends.unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if word(c) {
            rest.find(|c| !word(c) && c != '.').unwrap_or(rest.len())
        } else {
            c.len_utf8()
        };
        let (text, after) = rest.split_at(length);
        let comment = text.starts_with("//") || text.starts_with("/*");
        let directive = fresh && c == '#';
        if !(c.is_whitespace() || comment || directive) {
            list.push(Token { text, line });
        }
        fresh = (fresh && (c.is_whitespace() || comment)) || text.ends_with('\n');
        line += text.matches('\n').count();
        rest = after;
    }
    list
}

/// A place in the tokens.
struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |t| t.text)
    }

    fn fail<T>(&self, what: String) -> Result<T> {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        Err(Malformed { line: token.map_or(1, |t| t.line), what })
    }

    fn next(&mut self) -> &'a str {
        let text = self.peek();
        self.at += 1;
        text
    }

    fn expect(&mut self, wanted: &str, of: &str) -> Result<()> {
        if self.peek() != wanted {
            return self.fail(format!("{of}: expected `{wanted}`, got `{}`", self.peek()));
        }
        self.at += 1;
        Ok(())
    }

    fn name(&mut self, of: &str) -> Result<&'a str> {
        let text = self.peek();
        if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return self.fail(format!("{of}: expected a name, got `{text}`"));
        }
        if RESERVED.contains(&text) {
            return self.fail(format!("{of}: `{text}` is a word of Rust or of the launchers; rename it"));
        }
        self.at += 1;
        Ok(text)
    }

    /// The tokens up to `end`, which is taken too, with brackets in pairs.
    fn until(&mut self, end: &str, of: &str) -> Result<&'a [Token<'a>]> {
        let (from, mut depth) = (self.at, 0);
        while self.at < self.tokens.len() {
            match self.peek() {
                text if text == end && depth == 0 => {
                    self.at += 1;
                    return Ok(&self.tokens[from..self.at - 1]);
                }
                "(" => depth += 1,
                ")" => depth -= 1,
                "{" | ";" => break,
                _ => {}
            }
            self.at += 1;
        }
        self.fail(format!("{of}: no `{end}` before its end"))
    }
}

/// Names that a launcher could not have as a parameter.
const RESERVED: &[&str] = &[
    "as", "box", "crate", "dyn", "fn", "gpu", "impl", "in", "launch", "let", "loop", "match", "mod", "move",
    "mut", "pub", "ref", "self", "trait", "type", "use", "where",
];

/// C's scalar types and Rust's.
fn scalar(words: &[&str]) -> Option<&'static str> {
    Some(match words {
        ["int"] | ["int32_t"] => "i32",
        ["unsigned"] | ["unsigned", "int"] | ["uint32_t"] => "u32",
        ["long", "long"] | ["int64_t"] => "i64",
        ["unsigned", "long", "long"] | ["uint64_t"] | ["size_t"] => "u64",
        ["float"] => "f32",
        ["double"] => "f64",
        _ => return None,
    })
}

/// Element types of arrays: variants of `DType`.
fn element(words: &[&str]) -> Option<&'static str> {
    Some(match words {
        ["bf16"] => "Bf16",
        ["float"] => "F32",
        ["double"] => "F64",
        ["int"] | ["int32_t"] => "I32",
        _ => return None,
    })
}

fn parameter(tokens: &[Token], of: &str) -> Result<(String, Kind)> {
    let line = tokens.first().map_or(0, |t| t.line);
    let fail = |what: String| Err(Malformed { line, what: format!("{of}: {what}") });
    let shown = tokens.iter().map(|t| t.text).collect::<Vec<_>>().join(" ");
    let mut reader = Reader { tokens: &tokens[tokens.len().saturating_sub(1)..], at: 0 };
    let name = reader.name(of)?;
    let is = |word: &str| tokens.iter().any(|t| t.text == word);
    let stars = tokens.iter().filter(|t| t.text == "*").count();
    let words: Vec<&str> = tokens[..tokens.len() - 1].iter().map(|t| t.text).collect();
    let words: Vec<&str> = words
        .into_iter()
        .filter(|w| !["const", "__restrict__", "__grid_constant__", "*"].contains(w))
        .collect();
    let nullable = name.ends_with("_or_null");
    let kind = match stars {
        0 if nullable => return fail(format!("`{shown}` ends in _or_null and is no array")),
        0 if words == ["CUtensorMap"] && is("const") && is("__grid_constant__") => Some(Kind::TensorMap),
        0 => scalar(&words).map(Kind::Scalar),
        1 => element(&words).map(|dtype| Kind::Array { dtype, written: !is("const"), nullable }),
        _ => None,
    };
    match kind {
        Some(kind) => Ok((name.strip_suffix("_or_null").unwrap_or(name).to_string(), kind)),
        None => fail(format!(
            "`{shown}`: expected a number, an array of bf16, float, double or int, or a \
             const __grid_constant__ CUtensorMap"
        )),
    }
}

fn kernel(reader: &mut Reader) -> Result<Entry> {
    reader.expect("void", "KERNEL")?;
    while reader.peek().starts_with("__") {
        let attribute = reader.next();
        reader.expect("(", attribute)?;
        reader.until(")", attribute)?;
    }
    let name = reader.name("KERNEL")?.to_string();
    let of = format!("KERNEL {name}");
    reader.expect("(", &of)?;
    let list = reader.until(")", &of)?;
    let mut parameters: Vec<(String, Kind)> = Vec::new();
    for part in list.split(|t| t.text == ",").filter(|_| !list.is_empty()) {
        if part.is_empty() {
            return reader.fail(format!("{of}: an empty parameter"));
        }
        let next = parameter(part, &of)?;
        if parameters.iter().any(|(name, _)| *name == next.0) {
            return reader.fail(format!("{of}: two parameters named `{}`", next.0));
        }
        parameters.push(next);
    }
    reader.expect("{", &of)?;
    Ok(Entry { name, parameters })
}

fn constant(
    reader: &mut Reader,
    before: &[(String, &str, String)],
) -> Result<(String, &'static str, String)> {
    reader.expect("constexpr", "EXPORT")?;
    let of = reader.next();
    let Some(kind) = scalar(&[of]) else {
        return reader.fail(format!("EXPORT: type `{of}`, expected int, unsigned or float"));
    };
    let name = reader.name("EXPORT")?.to_string();
    reader.expect("=", &format!("EXPORT {name}"))?;
    let value = reader.until(";", &format!("EXPORT {name}"))?;
    let mut text = String::new();
    for token in value {
        let t = token.text;
        let number = t.starts_with(|c: char| c.is_ascii_digit());
        let known = before.iter().any(|(n, ..)| n == t) || ["+", "-", "*", "/", "(", ")"].contains(&t);
        if !number && !known {
            let what =
                format!("EXPORT {name}: `{t}`, expected numbers, + - * / and earlier EXPORTs of the file");
            return Err(Malformed { line: token.line, what });
        }
        let plain = if number && kind == "f32" { t.trim_end_matches('f') } else { t };
        text += if number && kind == "u32" { plain.trim_end_matches('u') } else { plain };
    }
    if text.is_empty() {
        return reader.fail(format!("EXPORT {name} has no value"));
    }
    Ok((name, kind, text))
}

/// Reads the source of one file.
pub fn parse(stem: &str, source: &str) -> Result<Unit> {
    let tokens = tokens(source);
    let mut reader = Reader { tokens: &tokens, at: 0 };
    let mut unit = Unit { stem: stem.to_string(), ..Unit::default() };
    while reader.at < tokens.len() {
        match reader.next() {
            "KERNEL" => {
                let kernel = kernel(&mut reader)?;
                if unit.kernels.iter().any(|k| k.name == kernel.name) {
                    return reader.fail(format!("KERNEL {}: a second one of this name", kernel.name));
                }
                unit.kernels.push(kernel);
            }
            "EXPORT" => {
                let constant = constant(&mut reader, &unit.constants)?;
                unit.constants.push(constant);
            }
            _ => {}
        }
    }
    Ok(unit)
}

/// The Rust module of one file: constants, kernels, launchers. It stands where `device::gpu`, `Tensor`, `DType` and
/// `Result` are in scope, beside a static `FILE` that holds its images.
pub fn launchers(unit: &Unit) -> String {
    let mut out = String::new();
    for (name, kind, value) in &unit.constants {
        writeln!(out, "/// EXPORT of kernels/{}.cu.\npub const {name}: {kind} = {value};", unit.stem)
            .unwrap();
    }
    for kernel in &unit.kernels {
        let name = &kernel.name;
        let parameters: Vec<String> =
            kernel.parameters.iter().map(|(name, kind)| format!("{name}: {}", rust_type(*kind))).collect();
        let arguments: Vec<String> =
            kernel.parameters.iter().map(|(name, kind)| argument(name, *kind)).collect();
        let fixed = "gpu: &Gpu, launch: Launch";
        let all = std::iter::once(fixed.to_string()).chain(parameters).collect::<Vec<_>>().join(", ");
        write!(
            out,
            "/// Launches KERNEL `{name}` of kernels/{stem}.cu.\n\
             pub fn {name}({all}) -> Result<()> {{\n\
             \x20   static KERNEL: Kernel = Kernel {{ name: \"{name}\", file: &FILE }};\n\
             \x20   let arguments = [{arguments}];\n\
             \x20   // SAFETY: in number, order and type these are the parameters of the signature that nvcc compiled; each\n\
             \x20   // array is alive and borrowed as the kernel uses it. The op has checked the shapes.\n\
             \x20   unsafe {{ gpu.launch(&KERNEL, launch, &arguments) }}\n\
             }}\n",
            stem = unit.stem,
            arguments = arguments.join(", "),
        )
        .unwrap();
    }
    out
}

fn rust_type(kind: Kind) -> String {
    match kind {
        Kind::Scalar(rust) => rust.into(),
        Kind::TensorMap => "&TensorMap".into(),
        Kind::Array { written, nullable, .. } => {
            let array = if written { "&mut Tensor" } else { "&Tensor" };
            if nullable { format!("Option<{array}>") } else { array.into() }
        }
    }
}

fn argument(name: &str, kind: Kind) -> String {
    match kind {
        Kind::Scalar(rust) => format!("Argument::{}({name})", rust.to_uppercase()),
        Kind::TensorMap => format!("Argument::Map({name})"),
        Kind::Array { dtype, nullable: false, .. } => {
            format!("{name}.argument(gpu, \"{name}\", DType::{dtype})?")
        }
        Kind::Array { dtype, nullable: true, .. } => {
            format!(
                "match {name} {{ Some(t) => t.argument(gpu, \"{name}\", DType::{dtype})?, None => Argument::Null }}"
            )
        }
    }
}
