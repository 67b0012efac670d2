//! The files of a sentence-transformers folder: `modules.json`, a folder per module, prompts.

use crate::error::{Error, Result};
use crate::format::{atomic, hf::read_json};
use serde_json::{Value, json};
use std::path::Path;

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
