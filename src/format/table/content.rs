//! What an input is by its first bytes; its name decides only where they leave it open.

use csv::{ReaderBuilder, StringRecord};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::super::jsonl;
use super::{Format, list};

/// As much of an input as is looked at.
pub(super) const HEAD_BYTES: usize = 1 << 16;

/// What the first bytes of an input look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What can be read; text is what is not known to be something else.
    Known(Format),
    /// What cannot: what it is, and what to do.
    Other(String, &'static str),
}

/// Columns that a table's header is known by.
const COLUMNS: [&str; 20] = [
    "text",
    "sentence",
    "sentence1",
    "sentence2",
    "sentences",
    "query",
    "question",
    "positive",
    "negative",
    "anchor",
    "answer",
    "passage",
    "document",
    "content",
    "label",
    "labels",
    "score",
    "premise",
    "hypothesis",
    "title",
];
/// Records of a table that are compared with its header.
const RECORDS: usize = 50;
/// What may stand between values.
const DELIMITERS: [u8; 3] = [b',', b'\t', b';'];

const CONVERT: &str = "convert it to JSONL, one object with a \"text\" a line";
/// Of one object: what holds rows.
const ROWS: &str = "write its rows as an array, or one object a line";

/// First bytes that no text has.
const MAGICS: [(&[u8], &str, &str); 14] = [
    (b"FEA1", "a Feather table of the first version", "write it as Parquet or Feather 2"),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"PK\x03\x04", "a zip archive (.docx, .xlsx, .npz, .zip)", "take the text out of it first"),
    (b"\x1f\x8b", "packed by gzip, twice", "unpack it once"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd, twice", "unpack it once"),
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
    let (known, other) = (Content::Known, |what: &str, todo| Content::Other(what.into(), todo));
    if head.starts_with(b"PAR1") {
        return known(Format::Parquet);
    }
    if head.starts_with(b"ARROW1") || head.starts_with(b"\xff\xff\xff\xff") {
        return known(Format::Arrow);
    }
    if let Some((_, what, todo)) = MAGICS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return other(what, todo);
    }
    if safetensors(head) {
        return other("a safetensors file", "give the file of texts");
    }
    if utf16(head) {
        return other("UTF-16", "convert it to UTF-8");
    }
    if let Some(name @ ("parquet" | "arrow" | "feather")) = name
        && !head.is_empty()
    {
        return Content::Other(format!("not what its name says (.{name})"), "name it by what it is");
    }
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let json = match head.trim_ascii_start().first() {
        Some(b'{') => object(head, whole),
        Some(b'[') => array(head, whole, name == Some("json")).then_some(known(Format::Json)),
        _ => None,
    };
    let begins_like_an_object = head.trim_ascii_start().starts_with(b"{");
    match (json, name) {
        (Some(json), _) => json,
        (None, _) if is_table(head, whole, b',') || is_table(head, whole, b';') => known(Format::Csv),
        (None, _) if is_table(head, whole, b'\t') => known(Format::Tsv),
        (None, Some("csv")) => known(Format::Csv),
        (None, Some("tsv")) => known(Format::Tsv),
        // Its lines say better what is wrong with them.
        (None, Some("jsonl" | "ndjson")) => known(Format::Jsonl),
        (None, Some("json")) if begins_like_an_object => known(Format::Jsonl),
        (None, _) => known(Format::Text),
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

/// The JSON value that text begins with, if it does; true where it is only the beginning of one, that ends with the text.
fn first_value(text: &[u8]) -> (Option<Value>, bool) {
    let first = |text: &[u8]| match serde_json::Deserializer::from_slice(text).into_iter().next() {
        Some(Ok(value)) => (Some(value), false),
        Some(Err(e)) => (None, e.is_eof()),
        None => (None, true),
    };
    match first(text) {
        (None, false) => {
            jsonl::mended(&String::from_utf8_lossy(text)).map_or((None, false), |text| first(text.as_bytes()))
        }
        found => found,
    }
}

/// A `{` begins JSON lines, one object over many lines, or prose.
fn object(head: &[u8], whole: bool) -> Option<Content> {
    let first_line = head.trim_ascii_start().split(|&b| b == b'\n').next().unwrap_or_default();
    let jsonl = Content::Known(Format::Jsonl);
    match jsonl::parse::<Value>(&String::from_utf8_lossy(first_line)) {
        Ok(Value::Object(fields)) => return (!fields.is_empty()).then_some(jsonl),
        // A first line longer than what is looked at.
        Err(_) if !whole && first_line.len() >= head.trim_ascii_start().len() => {
            return first_value(head).1.then_some(jsonl);
        }
        _ => {}
    }
    let several = "one JSON object over several lines";
    match first_value(head) {
        (Some(Value::Object(fields)), _) if !fields.is_empty() => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            Some(Content::Other(format!("{several}, of {}", list(&keys)), ROWS))
        }
        (None, true) if !whole => Some(Content::Other(several.into(), ROWS)),
        _ => None,
    }
}

/// A `[` begins an array of objects, or prose; of other elements, where the name or their number says so.
fn array(head: &[u8], whole: bool, named: bool) -> bool {
    let inside = head.trim_ascii_start()[1..].trim_ascii_start();
    let objects = || {
        inside.starts_with(b"{")
            && match first_value(inside) {
                (Some(_), _) => true,
                (None, cut) => cut && (!whole || inside[1..].trim_ascii_start().starts_with(b"\"")),
            }
    };
    let several = || serde_json::from_slice::<Vec<IgnoredAny>>(head).map_or(!whole, |list| list.len() > 1);
    named || objects() || json(head, whole) && several()
}

/// A header of names, one of them of a column that people have, and as many fields in every record that follows.
fn is_table(head: &[u8], whole: bool, delimiter: u8) -> bool {
    let mut records = records(head, delimiter);
    if !whole && records.len() <= RECORDS {
        records.pop();
    }
    let Some((header, rows)) = records.split_first() else { return false };
    let name = |field: &str| {
        field.len() <= 40 && field.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    let known = |field: &str| COLUMNS.contains(&field.to_ascii_lowercase().as_str());
    header.len() > 1
        && header.iter().all(name)
        && header.iter().any(known)
        && !rows.is_empty()
        && rows.iter().all(|row| row.len() == header.len())
}

/// What stands between the values of a table that is known to be one: what divides its header most.
pub(super) fn delimiter(head: &[u8]) -> u8 {
    let columns = |&d: &u8| records(head, d).first().map_or(0, StringRecord::len);
    DELIMITERS.into_iter().rev().max_by_key(columns).unwrap_or(b',')
}

/// The header and the first records, as far as they are text.
fn records(head: &[u8], delimiter: u8) -> Vec<StringRecord> {
    let mut reader = ReaderBuilder::new();
    let mut reader = reader.has_headers(false).flexible(true).delimiter(delimiter).from_reader(head);
    reader.records().map_while(|record| record.ok()).take(RECORDS + 1).collect()
}
