//! How a model wants to be used as an encoder: the reference's `llm2vec_config.json`, and beside it a file of ours for
//! what the reference has no key for. Its loader hands every key of its file to a constructor, which stops at one that
//! it does not know.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chain::Link;
use crate::{
    error::{Error, Result},
    format::{atomic, hf::read_json},
};

/// The reference's file: four keys, `pooling_mode`, `max_length`, `doc_max_length`, `skip_instruction`.
pub const REFERENCE_FILE: &str = "llm2vec_config.json";

/// Ours: `template`, `attention`, `normalize`, `adapters`.
pub const FILE: &str = "llm2vec_encoder.json";

const REFERENCE_KEYS: [&str; 4] = ["pooling_mode", "max_length", "doc_max_length", "skip_instruction"];

/// Both files as one. What is `None` is not written. Older folders of ours have all keys in the reference's file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Settings {
    /// Which hidden states make the vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling_mode: Option<String>,
    /// The most tokens of an instruction and a text together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// The most tokens of a text alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_max_length: Option<usize>,
    /// Whether the instruction's tokens are left out of the pooling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_instruction: Option<bool>,
    /// The chat template around a text, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The attention mask it was trained with: full, causal or window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// Whether vectors are scaled to length 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Beside an adapter: the adapters that it was trained on top of, from the model up. Beside a model: those that
    /// were merged into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<Link>>,
}

impl Settings {
    /// The settings in `dir`, if there are any. A key in our file wins.
    pub fn read(dir: &Path) -> Result<Option<Settings>> {
        let paths = [REFERENCE_FILE, FILE].map(|name| dir.join(name));
        let mut settings = None;
        for path in paths.iter().filter(|path| path.exists()) {
            let json = read_json(path)?;
            let Value::Object(keys) = &json else {
                return Err(Error::file(path, "a JSON object was wanted; see the README for its keys"));
            };
            read_keys(path, keys, settings.get_or_insert_default())?;
        }
        Ok(settings)
    }

    /// Writes both files into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_value(self).map_err(|e| Error::file(dir, e.to_string()))?;
        let (mut theirs, mut ours) = (Map::new(), Map::new());
        for (key, value) in json.as_object().into_iter().flatten() {
            let file = if REFERENCE_KEYS.contains(&key.as_str()) { &mut theirs } else { &mut ours };
            file.insert(key.clone(), value.clone());
        }
        atomic::write_json(&dir.join(REFERENCE_FILE), &theirs)?;
        atomic::write_json(&dir.join(FILE), &ours)
    }
}

/// Takes over the keys of one file, one by one, so that the message can name the key. A key with null is absent, one
/// that we do not know is somebody else's.
fn read_keys(path: &Path, keys: &Map<String, Value>, into: &mut Settings) -> Result<()> {
    for (key, value) in keys.iter().filter(|(_, value)| !value.is_null()) {
        let bad = |wanted: &str| Error::file(path, format!("{key:?} is {value}, {wanted} was wanted"));
        let text = || value.as_str().map(str::to_string).ok_or_else(|| bad("a string"));
        let count = || {
            let n = value.as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
            n.ok_or_else(|| bad("a whole number above 0"))
        };
        let flag = || value.as_bool().ok_or_else(|| bad("true or false"));
        match key.as_str() {
            "pooling_mode" => into.pooling_mode = Some(text()?),
            "max_length" => into.max_length = Some(count()?),
            "doc_max_length" => into.doc_max_length = Some(count()?),
            "skip_instruction" => into.skip_instruction = Some(flag()?),
            "template" => into.template = Some(text()?),
            "attention" => into.attention = Some(text()?),
            "normalize" => into.normalize = Some(flag()?),
            "adapters" => {
                let list = Vec::deserialize(value).map_err(|_| bad(r#"a list of {"name", "sha256"}"#))?;
                into.adapters = Some(list);
            }
            _ => {}
        }
    }
    Ok(())
}
