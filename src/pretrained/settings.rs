//! How a model wants to be used as an encoder: `llm2vec_config.json`, and what sentence-transformers writes.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::Link;
use crate::{
    error::{Error, Result},
    format::{atomic, hf::read_json},
};

/// The name of the file.
pub const FILE: &str = "llm2vec_config.json";

/// `llm2vec_config.json`: the reference's four keys and four of ours. What is `None` is not written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which hidden states make the vector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling_mode: Option<String>,
    /// The most tokens of an instruction and a text together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// The most tokens of a text alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_max_length: Option<usize>,
    /// Whether the instruction's tokens are left out of the pooling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_instruction: Option<bool>,
    /// The chat template around a text, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The attention mask it was trained with: full, causal or window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// Whether vectors are scaled to length 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Beside an adapter: the adapters that it was trained on top of, from the model up. Beside a model: those that
    /// were merged into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<Link>>,
}

impl Settings {
    /// The settings in `dir`, if there are any.
    pub fn read(dir: &Path) -> Result<Option<Settings>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let json = read_json(&path)?;
        if !json.is_object() {
            return Err(Error::file(&path, "a JSON object was wanted; see the README for its keys"));
        }
        // Key by key, so that the message can name the key.
        let bad = |key: &str, wanted: &str| {
            let got = json.get(key).unwrap_or(&Value::Null);
            Error::file(&path, format!("{key:?} is {got}, {wanted} was wanted"))
        };
        let text = |key| match json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v.as_str().map(|s| Some(s.to_string())).ok_or_else(|| bad(key, "a string")),
        };
        let count = |key| match json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => {
                let n = v.as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
                n.map(Some).ok_or_else(|| bad(key, "a whole number above 0"))
            }
        };
        let flag = |key| match json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| bad(key, "true or false")),
        };
        Ok(Some(Settings {
            pooling_mode: text("pooling_mode")?,
            max_length: count("max_length")?,
            doc_max_length: count("doc_max_length")?,
            skip_instruction: flag("skip_instruction")?,
            template: text("template")?,
            attention: text("attention")?,
            normalize: flag("normalize")?,
            adapters: match json.get("adapters") {
                None | Some(Value::Null) => None,
                Some(v) => Some(
                    Vec::deserialize(v).map_err(|_| bad("adapters", r#"a list of {"name", "sha256"}"#))?,
                ),
            },
        }))
    }

    /// Writes the settings into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        atomic::write_json(&dir.join(FILE), self)
    }
}
