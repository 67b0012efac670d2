//! What texts are to be read for, as JSON files say it.

use serde::Serialize;
use serde_json::Value;

/// In front of queries, and in front of documents; either may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// For queries, and for all texts of a task that has no documents.
    pub query: String,
    /// For documents: the positives and negatives of training, the candidates of reranking.
    pub document: String,
}

impl Instruction {
    /// Of a string, for queries alone, or of `{"query": …, "document": …}`; nothing where it is neither.
    pub fn of(value: &Value) -> Option<Instruction> {
        match value {
            Value::String(query) => Some(Instruction { query: query.clone(), document: String::new() }),
            Value::Object(fields) if fields.keys().all(|k| k == "query" || k == "document") => {
                let text = |key| fields.get(key).map_or(Some(""), Value::as_str).map(str::to_string);
                Some(Instruction { query: text("query")?, document: text("document")? })
            }
            _ => None,
        }
    }

    /// (query, document).
    pub fn into_pair(self) -> (String, String) {
        (self.query, self.document)
    }
}
