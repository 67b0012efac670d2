//! Reads what `kernels/*` says to the host, its KERNEL, KERNELS, PARAMS and EXPORT: `build.rs` and the tests include it.

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

/// One `KERNEL void name(parameters)`, or one of several that `KERNELS` declares at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// C name, not mangled.
    pub name: String,
    /// Of KERNELS.
    pub family: Option<Family>,
    /// Names and types, in their order.
    pub parameters: Vec<(String, Kind)>,
}

/// Which one of its KERNELS a kernel is.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Their name without what tells them apart.
    pub name: String,
    /// The constant in which they differ.
    pub constant: String,
    /// Its value.
    pub value: i32,
}

/// One `PARAMS struct Name { fields; functions };`: numbers that kernels take by value, as one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// C and Rust name.
    pub name: String,
    /// Name, Rust type and offset of each.
    pub fields: Vec<(String, &'static str, usize)>,
    /// Its size; there are no gaps.
    pub bytes: usize,
}

/// What a parameter is.
#[derive(Clone, Debug, PartialEq)]
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
    /// A PARAMS struct: its name.
    Params(String),
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
        if RESERVED.contains(&text.to_lowercase().as_str()) {
            return self.fail(format!("{of}: `{text}` is a word of Rust; rename it"));
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

/// Names that a field could not have in Rust.
const RESERVED: &[&str] = &[
    "as", "async", "await", "box", "crate", "dyn", "fn", "gen", "impl", "in", "let", "loop", "match", "mod",
    "move", "mut", "pub", "ref", "self", "trait", "type", "use", "where", "yield",
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

fn parameter(tokens: &[Token], of: &str, known: &[Params]) -> Result<(String, Kind)> {
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
        0 if words.len() == 1 && known.iter().any(|p| p.name == words[0]) => {
            Some(Kind::Params(words[0].to_string()))
        }
        0 => scalar(&words).map(Kind::Scalar),
        1 => element(&words).map(|dtype| Kind::Array { dtype, written: !is("const"), nullable }),
        _ => None,
    };
    match kind {
        Some(kind) => Ok((name.strip_suffix("_or_null").unwrap_or(name).to_string(), kind)),
        None => fail(format!(
            "`{shown}`: expected a number, a PARAMS struct, an array of bf16, float, double or int, or a \
             const __grid_constant__ CUtensorMap"
        )),
    }
}

/// Skips `__launch_bounds__(…)` and its like.
fn attributes(reader: &mut Reader) -> Result<()> {
    while reader.peek().starts_with("__") {
        let attribute = reader.next();
        reader.expect("(", attribute)?;
        reader.until(")", attribute)?;
    }
    Ok(())
}

/// `(parameters) {`.
fn parameters(reader: &mut Reader, of: &str, known: &[Params]) -> Result<Vec<(String, Kind)>> {
    reader.expect("(", of)?;
    let list = reader.until(")", of)?;
    let mut parameters: Vec<(String, Kind)> = Vec::new();
    for part in list.split(|t| t.text == ",").filter(|_| !list.is_empty()) {
        if part.is_empty() {
            return reader.fail(format!("{of}: an empty parameter"));
        }
        let next = parameter(part, of, known)?;
        name_collision(reader, of, &next.0, parameters.iter().map(|p| &p.0))?;
        parameters.push(next);
    }
    reader.expect("{", of)?;
    Ok(parameters)
}

/// Refuses what would be two fields of one name.
fn name_collision<'a>(
    reader: &Reader,
    of: &str,
    name: &str,
    before: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    match before.into_iter().find(|b| b.to_lowercase() == name.to_lowercase()) {
        Some(same) if same == name => reader.fail(format!("{of}: two parameters named `{name}`")),
        Some(other) => {
            reader.fail(format!("{of}: `{other}` and `{name}` are one name in lower case; rename one"))
        }
        None => Ok(()),
    }
}

fn kernel(reader: &mut Reader, known: &[Params]) -> Result<Entry> {
    reader.expect("void", "KERNEL")?;
    attributes(reader)?;
    let name = reader.name("KERNEL")?.to_string();
    let parameters = parameters(reader, &format!("KERNEL {name}"), known)?;
    Ok(Entry { name, family: None, parameters })
}

/// `(name, infix, CONSTANT, (values), attributes, (parameters) { body })`.
fn kernels(reader: &mut Reader, known: &[Params]) -> Result<Vec<Entry>> {
    reader.expect("(", "KERNELS")?;
    let name = reader.name("KERNELS")?.to_string();
    let of = format!("KERNELS {name}");
    reader.expect(",", &of)?;
    let infix = reader.name(&of)?;
    reader.expect(",", &of)?;
    let constant = reader.name(&of)?.to_string();
    reader.expect(",", &of)?;
    reader.expect("(", &of)?;
    let mut values: Vec<i32> = Vec::new();
    for token in reader.until(")", &of)?.iter().filter(|t| t.text != ",") {
        let Ok(value) = token.text.parse() else {
            let what = format!("{of}: `{}`, expected a number", token.text);
            return Err(Malformed { line: token.line, what });
        };
        if values.contains(&value) {
            return Err(Malformed { line: token.line, what: format!("{of}: {value} twice") });
        }
        values.push(value);
    }
    reader.expect(",", &of)?;
    attributes(reader)?;
    reader.expect(",", &of)?;
    let parameters = parameters(reader, &of, known)?;
    name_collision(reader, &of, &constant, parameters.iter().map(|p| &p.0))?;
    let entry = |&value: &i32| Entry {
        name: format!("{name}{infix}{value}"),
        family: Some(Family { name: name.clone(), constant: constant.clone(), value }),
        parameters: parameters.clone(),
    };
    Ok(values.iter().map(entry).collect())
}

/// The fields of a PARAMS struct, laid out as C does it; what gaps it would have is refused.
fn params_struct(reader: &mut Reader) -> Result<Params> {
    reader.expect("struct", "PARAMS")?;
    let name = reader.name("PARAMS")?.to_string();
    let of = format!("PARAMS {name}");
    reader.expect("{", &of)?;
    let (mut params, mut widest) = (Params { name, fields: Vec::new(), bytes: 0 }, 1);
    while reader.peek() != "}" {
        let Some(field) = member(reader, &of)? else { continue };
        let parts: Vec<&[Token]> = field.split(|t| t.text == ",").collect();
        let words: Vec<&str> = parts[0].iter().map(|t| t.text).collect();
        let kind = words.split_last().and_then(|(_, kind)| scalar(kind));
        let (Some(kind), true) = (kind, parts[1..].iter().all(|p| p.len() == 1)) else {
            let shown = field.iter().map(|t| t.text).collect::<Vec<_>>().join(" ");
            return reader.fail(format!("{of}: `{shown}`, expected numbers only, such as `float a, b;`"));
        };
        let size = if ["i64", "u64", "f64"].contains(&kind) { 8 } else { 4 };
        for part in parts {
            let name = Reader { tokens: &part[part.len() - 1..], at: 0 }.name(&of)?;
            name_collision(reader, &of, name, params.fields.iter().map(|f| &f.0))?;
            if params.bytes % size != 0 {
                return reader.fail(format!("{of}: a gap before `{name}`; put the wide fields first"));
            }
            params.fields.push((name.to_string(), kind, params.bytes));
            params.bytes += size;
            widest = widest.max(size);
        }
    }
    if params.fields.is_empty() || params.bytes % widest != 0 {
        let what = if params.fields.is_empty() { "no fields" } else { "a gap at its end; add a field" };
        return reader.fail(format!("{of}: {what}"));
    }
    Ok(params)
}

/// The next member of a struct, without its `;`, if it is no function.
fn member<'a>(reader: &mut Reader<'a>, of: &str) -> Result<Option<&'a [Token<'a>]>> {
    let (from, mut depth, mut function) = (reader.at, 0, false);
    loop {
        match reader.next() {
            "" => return reader.fail(format!("{of}: no `}}` at its end")),
            ";" if depth == 0 => break,
            "(" => function = true,
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth <= 0 && function {
                    return Ok(None);
                }
            }
            _ => {}
        }
    }
    Ok((!function).then(|| &reader.tokens[from..reader.at - 1]))
}

/// The PARAMS structs of one file.
pub fn params(source: &str) -> Result<Vec<Params>> {
    let tokens = tokens(source);
    let mut reader = Reader { tokens: &tokens, at: 0 };
    let mut list = Vec::new();
    while reader.at < tokens.len() {
        if reader.next() == "PARAMS" {
            list.push(params_struct(&mut reader)?);
        }
    }
    Ok(list)
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

/// Reads the source of one file, whose kernels may take these structs.
pub fn parse(stem: &str, source: &str, known: &[Params]) -> Result<Unit> {
    let tokens = tokens(source);
    let mut reader = Reader { tokens: &tokens, at: 0 };
    let mut unit = Unit { stem: stem.to_string(), ..Unit::default() };
    while reader.at < tokens.len() {
        let fresh = match reader.next() {
            "KERNEL" => vec![kernel(&mut reader, known)?],
            "KERNELS" => kernels(&mut reader, known)?,
            "EXPORT" => {
                let constant = constant(&mut reader, &unit.constants)?;
                unit.constants.push(constant);
                continue;
            }
            _ => continue,
        };
        let launcher = |k: &Entry| k.family.as_ref().map_or(k.name.clone(), |f| f.name.clone());
        for kernel in &fresh {
            let twice = |k: &Entry| k.name == kernel.name || launcher(k) == launcher(kernel);
            if unit.kernels.iter().any(twice) {
                return reader.fail(format!("KERNEL {}: a second one of this name", kernel.name));
            }
        }
        unit.kernels.extend(fresh);
    }
    Ok(unit)
}
