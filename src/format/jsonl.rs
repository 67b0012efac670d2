//! One line of JSONL, or one element of an array, as Python's `json` writes it too.

use serde::de::DeserializeOwned;

/// Parses one value. `NaN`, `Infinity` and `-Infinity`, which JSON does not have, are read as null, and half a
/// surrogate pair as U+FFFD: they do no harm in fields that are not read. The error is what is wrong, and where.
pub fn parse<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line)
        .or_else(|e| mended(line).map_or(Err(e), |line| serde_json::from_str(&line)))
        .map_err(|e| {
            let said = e.to_string();
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
            let line = if e.line() > 1 { format!("line {} of it, ", e.line()) } else { String::new() };
            format!("{line}column {}: {said}", e.column())
        })
}

/// The text with what Python writes beyond JSON replaced by JSON; `None` if there is no such thing.
pub(super) fn mended(text: &str) -> Option<String> {
    let (mut made, mut quoted, mut changed) = (String::with_capacity(text.len()), false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let number = ["NaN", "Infinity", "-Infinity"].into_iter().find(|n| !quoted && rest.starts_with(n));
        let taken = match (c, number) {
            (_, Some(number)) => {
                made.push_str("null");
                changed = true;
                number.len()
            }
            ('\\', _) if quoted => {
                let escape = escape(rest);
                if escape.1 {
                    made.push_str(&rest[..escape.0])
                } else {
                    made.push_str("\\ufffd")
                }
                changed |= !escape.1;
                escape.0
            }
            _ => {
                quoted ^= c == '"';
                made.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    changed.then_some(made)
}

/// How long the escape at the start of `rest` is, and whether it is more than half a surrogate pair.
fn escape(rest: &str) -> (usize, bool) {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => (12, true),
        (Some(0xD800..0xE000), _) => (6, false),
        (Some(_), _) => (6, true),
        (None, _) => (1 + rest[1..].chars().next().map_or(0, char::len_utf8), true),
    }
}
