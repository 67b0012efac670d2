//! What a row of training data may look like: ours, those of sentence-transformers, FlagEmbedding's.
//!
//! | from | query | positive | negatives |
//! |---|---|---|---|
//! | ours | `query` | `positive` | `negative`, one or a list |
//! | sentence-transformers | `anchor`, `query`, `question` | `positive`, `answer` | `negative`, or `negative_1`, `negative_2` … |
//! | pairs | `sentence1` | `sentence2` | |
//! | FlagEmbedding | `query`, with `prompt` in front | `pos`, a list | `neg`, a list |

use crate::format::jsonl;
use crate::format::table::list;
use serde_json::{Map, Value};

type Fields = Map<String, Value>;

const QUERY: [&str; 4] = ["query", "anchor", "question", "sentence1"];
const POSITIVE: [&str; 4] = ["positive", "pos", "answer", "sentence2"];
const NEGATIVE: [&str; 3] = ["negative", "negatives", "neg"];
/// What a positive may be called where rows say how alike their texts are.
const JUDGED: [&str; 3] = ["score", "label", "labels"];

/// A query, what answers it and what does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// In front of the query, where the row says so.
    pub prompt: Option<String>,
    /// The query.
    pub query: String,
    /// What answers it, one or more.
    pub positives: Vec<String>,
    /// Hard negatives, none or more.
    pub negatives: Vec<String>,
}

/// The fields of an object, or what is wrong with it.
fn object(row: &str, wanted: &str) -> Result<Fields, String> {
    match jsonl::parse(row) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(format!("not a JSON object; {wanted} was wanted")),
        Err(what) => Err(format!("{what}; {wanted} was wanted")),
    }
}

/// The text in a column of a row, or what is wrong.
pub(super) fn text(row: &str, column: &str) -> Result<String, String> {
    let fields = object(row, &format!("{{{column:?}: …}}"))?;
    match fields.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{column:?} is not a string")),
        None => Err(lacking(&format!("{column:?}"), fields.keys())),
    }
}

/// The triple that a row is, or what is wrong.
pub(super) fn triple(row: &str) -> Result<Form, String> {
    let fields = object(row, r#"{"query": …, "positive": …, "negative": …}"#)?;
    let [query, positive] = keys(fields.keys())?;
    check_judged(&fields, query)?;
    let one = |key: &str| filled(key, &fields[key]);
    let positives = filled_list(positive, &fields[positive])?;
    if positives.is_empty() {
        return Err(format!("{positive:?} is an empty list"));
    }
    let mut negatives = Vec::new();
    for key in NEGATIVE {
        if let Some(value) = fields.get(key).filter(|value| !value.is_null()) {
            negatives.extend(filled_list(key, value)?);
        }
    }
    for (key, value) in numbered(&fields) {
        // A table has as many columns as its longest row needs.
        if value.as_str().is_none_or(|text| !text.trim().is_empty()) {
            negatives.push(filled(key, value)?);
        }
    }
    let prompt = fields.get("prompt").and_then(Value::as_str).map(String::from);
    Ok(Form { prompt, query: one(query)?, positives, negatives })
}

/// The names of query and positive among columns, or which is missing.
pub(super) fn keys<'a>(
    columns: impl Iterator<Item = &'a String> + Clone,
) -> Result<[&'static str; 2], String> {
    let find = |names: [&'static str; 4]| {
        let found = names.into_iter().find(|name| columns.clone().any(|column| column == name));
        found.ok_or_else(|| {
            let [first, others @ ..] = names.map(|name| format!("{name:?}"));
            lacking(&format!("{first} (nor {})", others.join(", ")), columns.clone())
        })
    };
    Ok([find(QUERY)?, find(POSITIVE)?])
}

fn lacking<'a>(what: &str, columns: impl Iterator<Item = &'a String>) -> String {
    let columns: Vec<String> = columns.cloned().collect();
    let there = if columns.is_empty() { "nothing".into() } else { list(&columns) };
    format!("no {what}; there is {there}")
}

/// Refuses a pair that is judged: whether its texts are alike is not said by its names.
fn check_judged(fields: &Fields, query: &str) -> Result<(), String> {
    let judged = JUDGED.into_iter().find(|key| {
        let judges = query == "sentence1" || key.starts_with("label");
        judges && fields.get(*key).is_some_and(|value| !value.is_null())
    });
    match judged {
        None => Ok(()),
        Some(key) => Err(format!(
            "a pair with a {key:?} may be of unlike texts; keep the alike ones and leave the column {key:?} out"
        )),
    }
}

/// `negative_1`, `negative_2` … in the order of their numbers, those that are there.
fn numbered(fields: &Fields) -> Vec<(&String, &Value)> {
    let number = |key: &str| key.strip_prefix("negative_")?.parse::<u32>().ok();
    let mut found: Vec<(u32, (&String, &Value))> = fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .filter_map(|(key, value)| Some((number(key)?, (key, value))))
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, field)| field).collect()
}

fn filled(key: &str, value: &Value) -> Result<String, String> {
    match value.as_str() {
        Some(text) if !text.trim().is_empty() => Ok(text.to_string()),
        Some(_) => Err(format!("{key:?} is blank")),
        None => Err(format!("{key:?} is not a string")),
    }
}

fn filled_list(key: &str, value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(list) => list.iter().map(|value| filled(key, value)).collect(),
        one => Ok(vec![filled(key, one)?]),
    }
}
