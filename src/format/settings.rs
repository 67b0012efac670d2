//! How a model wants to be used as an encoder: `llm2vec_config.json`, and what sentence-transformers writes.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{atomic, chain::Link, hf::read_json};
use crate::error::{Error, Result};

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

/// sentence-transformers' switches, and our name of each pooling (none where we have no such pooling).
const ST_MODES: [(&str, Option<&str>); 7] = [
    ("pooling_mode_cls_token", Some("bos")),
    ("pooling_mode_mean_tokens", Some("mean")),
    ("pooling_mode_max_tokens", None),
    ("pooling_mode_mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", Some("weighted-mean")),
    ("pooling_mode_lasttoken", Some("last")),
    ("pooling_mode_splade", None),
];

/// The pooling that sentence-transformers' `1_Pooling/config.json` asks for, by our name; `None` without such a file.
pub fn st_pooling(dir: &Path) -> Result<Option<String>> {
    let path = dir.join("1_Pooling").join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    let json = read_json(&path)?;
    let on: Vec<_> = ST_MODES.iter().filter(|(key, _)| json.get(key) == Some(&Value::Bool(true))).collect();
    match on.as_slice() {
        [(_, Some(pooling))] => Ok(Some(pooling.to_string())),
        [] => Err(Error::file(&path, "no pooling mode is true; exactly one was wanted")),
        modes => {
            let keys: Vec<&str> = modes.iter().map(|(key, _)| *key).collect();
            let what = "one of mean, weightedmean, lasttoken, cls was wanted; choose with --pooling";
            Err(Error::Unsupported(format!(
                "{}: pooling by {} is not supported, {what}",
                path.display(),
                keys.join(" + ")
            )))
        }
    }
}

/// Writes what sentence-transformers needs to open a merged model: `modules.json`, `sentence_bert_config.json` and
/// `1_Pooling/config.json`.
pub fn write_st(dir: &Path, pooling: &str, dim: usize, max_length: usize) -> Result<()> {
    // The end-of-text token is the last one, and sentence-transformers has only the latter's name.
    let wanted = if pooling == "eos" { "last" } else { pooling };
    if !ST_MODES.iter().any(|(_, ours)| *ours == Some(wanted)) {
        let what =
            "has no name in sentence-transformers; one of mean, weighted-mean, last, eos, bos was wanted";
        return Err(Error::Unsupported(format!("pooling {pooling:?} {what}")));
    }
    let mut config = serde_json::Map::new();
    config.insert("word_embedding_dimension".to_string(), json!(dim));
    for (key, ours) in ST_MODES.iter().filter(|(key, _)| *key != "pooling_mode_splade") {
        config.insert(key.to_string(), json!(*ours == Some(wanted)));
    }
    config.insert("include_prompt".to_string(), json!(true));
    let folder = dir.join("1_Pooling");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    atomic::write_json(&folder.join("config.json"), &config)?;
    let module = |idx: usize, path: &str, class: &str| json!({"idx": idx, "name": idx.to_string(), "path": path, "type": format!("sentence_transformers.models.{class}")});
    let modules = json!([module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")]);
    atomic::write_json(&dir.join("modules.json"), &modules)?;
    let bert = json!({"max_seq_length": max_length, "do_lower_case": false});
    atomic::write_json(&dir.join("sentence_bert_config.json"), &bert)
}
