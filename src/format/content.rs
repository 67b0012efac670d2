//! What an input is by its first bytes, for files whose name does not say it or says it wrongly.

use serde::de::IgnoredAny;
use serde_json::Value;

use super::jsonl;

/// As much of an input as is looked at.
pub(super) const HEAD_BYTES: usize = 1 << 16;

/// What the first bytes of an input look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing that is known not to be lines of text.
    Text,
    /// JSON objects, one a line, with one of the fields that are read.
    JsonLines,
    /// Neither: what it is, and what to do.
    Other(&'static str, &'static str),
}

/// Fields that JSON lines are known by: those of texts and of training rows.
const FIELDS: [&str; 4] = ["text", "tokens", "query", "positive"];
/// Columns that a table's header is known by.
const COLUMNS: [&str; 12] = [
    "text",
    "sentence",
    "sentence1",
    "sentence2",
    "query",
    "positive",
    "negative",
    "anchor",
    "passage",
    "document",
    "content",
    "question",
];
/// Records of a table that are compared with its header.
const RECORDS: usize = 50;

const CONVERT: &str = "convert it to JSONL, one object with a \"text\" a line";
const UNPACK: &str = "unpack it, or name it by its packing (.gz, .zst)";
const TABLE: &str = "convert it to JSONL: pandas' to_json(orient=\"records\", lines=True)";

/// JSON lines that nothing can be read from.
const NO_FIELD: Content =
    Content::Other("JSON without a \"text\"", "name the field to read \"text\", one object a line");

/// First bytes that no text has.
const MAGICS: [(&[u8], &str, &str); 17] = [
    (b"PAR1", "a Parquet table", TABLE),
    (b"ARROW1", "an Arrow or Feather table", TABLE),
    (b"FEA1", "a Feather table", TABLE),
    (b"\xff\xff\xff\xff", "an Arrow stream or another binary file", TABLE),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"PK\x03\x04", "a zip archive (.docx, .xlsx, .npz, .zip)", "take the text out of it first"),
    (b"\x1f\x8b", "packed by gzip", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", UNPACK),
    (b"BZh91AY&SY", "packed by bzip2", "unpack it first"),
    (b"\xfd7zXZ\x00", "packed by xz", "unpack it first"),
    (b"%PDF-", "a PDF", "take the text out of it first"),
    (b"SQLite format 3\x00", "a SQLite database", CONVERT),
    (b"\x89HDF\r\n", "an HDF5 file", CONVERT),
    (b"\x80\x04\x95", "a Python pickle", CONVERT),
    (b"GGUF", "a GGUF model", "give the file of texts"),
    (b"\xff\xfe", "UTF-16", "convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16", "convert it to UTF-8"),
];

/// Judges `head`, the first bytes of an input and `whole` if there are no more; `name` is its ending in lower case.
pub(super) fn content(head: &[u8], whole: bool, name: Option<&str>) -> Content {
    if let Some((_, what, todo)) = MAGICS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Content::Other(what, todo);
    }
    if safetensors(head) {
        return Content::Other("a safetensors file", "give the file of texts");
    }
    if utf16(head) {
        return Content::Other("UTF-16", "convert it to UTF-8");
    }
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let json = match head.trim_ascii_start().first() {
        Some(b'{') => objects(head, whole),
        Some(b'[') => array(head, whole, name == Some("json")),
        _ => Content::Text,
    };
    match (name, json) {
        (Some("csv" | "tsv"), _) => Content::Other("a table by its name", TABLE),
        // Its lines say better what is wrong with them.
        (Some("jsonl" | "ndjson"), Content::Text | NO_FIELD) => Content::JsonLines,
        (Some("json"), Content::Text) if head.trim_ascii_start().starts_with(b"{") => Content::JsonLines,
        (_, Content::Text) if table(head, whole, ',') => {
            Content::Other("a table of comma-separated values", TABLE)
        }
        (_, Content::Text) if table(head, whole, '\t') => {
            Content::Other("a table of tab-separated values", TABLE)
        }
        (_, json) => json,
    }
}

/// The length of a header in eight bytes, and the header, an object.
fn safetensors(head: &[u8]) -> bool {
    head.first_chunk::<8>().is_some_and(|n| u64::from_le_bytes(*n) < 1 << 32) && head.get(8) == Some(&b'{')
}

/// Without a byte-order mark: every other byte is zero, but for a few.
fn utf16(head: &[u8]) -> bool {
    let zeros = |from: usize| head.iter().skip(from).step_by(2).filter(|&&b| b == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    head.len() >= 4 && even.max(odd) * 2 > head.len() / 2 && even.min(odd) * 50 < even.max(odd)
}

/// Whether all of `head` is JSON, or the beginning of JSON that goes on behind it.
fn json(head: &[u8], whole: bool) -> bool {
    let sound = |bytes: &[u8]| match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => true,
        Err(e) => e.is_eof() && !whole,
    };
    sound(head)
        || jsonl::mended(&String::from_utf8_lossy(head)).is_some_and(|mended| sound(mended.as_bytes()))
}

/// A `{` begins JSON lines, one object over many lines, or prose.
fn objects(head: &[u8], whole: bool) -> Content {
    let mut lines = head.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let first = lines.next().unwrap_or_default();
    match jsonl::parse::<Value>(&String::from_utf8_lossy(first)) {
        Ok(Value::Object(fields)) if FIELDS.iter().any(|&f| fields.contains_key(f)) => Content::JsonLines,
        Ok(Value::Object(fields)) if !fields.is_empty() => NO_FIELD,
        // A first line longer than what is looked at.
        Err(_) if !whole && first.len() >= head.trim_ascii_start().len() && json(head, whole) => {
            Content::JsonLines
        }
        Err(_) if json(head, whole) => Content::Other("one JSON object over several lines", CONVERT),
        _ => Content::Text,
    }
}

/// A `[` begins an array of objects, or prose; of strings and numbers, where the name or their number says so.
fn array(head: &[u8], whole: bool, named: bool) -> Content {
    let inside = head.trim_ascii_start()[1..].trim_ascii_start();
    let objects = inside.first() == Some(&b'{');
    let several = || serde_json::from_slice::<Vec<IgnoredAny>>(head).map_or(!whole, |list| list.len() > 1);
    match json(head, whole) {
        true if objects || named || several() => Content::Other("a JSON array", CONVERT),
        false if named => Content::Other("not one JSON array, though it begins like one", CONVERT),
        _ => Content::Text,
    }
}

/// A header of names, one of them of a column that holds texts, and as many fields in every record that follows.
fn table(head: &[u8], whole: bool, comma: char) -> bool {
    let text = String::from_utf8_lossy(head);
    let mut records = records(&text, comma);
    if !whole {
        records.pop();
    }
    let Some((header, rows)) = records.split_first() else { return false };
    let name = |field: &String| {
        field.len() <= 40 && field.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    let known = |field: &String| COLUMNS.contains(&field.to_ascii_lowercase().as_str());
    header.len() > 1
        && header.iter().all(name)
        && header.iter().any(known)
        && !rows.is_empty()
        && rows.iter().all(|row| row.len() == header.len())
}

/// The first records of a table, quoted fields over several lines included.
fn records(text: &str, comma: char) -> Vec<Vec<String>> {
    let (mut records, mut fields, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' if quoted || field.is_empty() => quoted = !quoted,
            '\n' if !quoted => {
                fields.push(std::mem::take(&mut field).trim_end_matches('\r').to_string());
                let blank = fields.len() == 1 && fields[0].is_empty();
                let record = std::mem::take(&mut fields);
                if !blank {
                    records.push(record);
                }
                if records.len() == RECORDS {
                    return records;
                }
            }
            c if c == comma && !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if !fields.is_empty() || !field.is_empty() {
        fields.push(field);
        records.push(fields);
    }
    records
}
