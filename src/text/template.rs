//! Chat templates: what stands around a text, by the reference's rules.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A prefix and a suffix around instruction and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// The name that the setting takes and `llm2vec_config.json` records.
    pub name: &'static str,
    /// What stands in front.
    pub prefix: &'static str,
    /// What stands behind.
    pub suffix: &'static str,
}

/// No template.
pub const NONE: Template = Template { name: "none", prefix: "", suffix: "" };

const ALL: [Template; 5] = [
    NONE,
    Template { name: "llama2", prefix: "[INST] ", suffix: " [/INST]" },
    Template { name: "mistral", prefix: "[INST] ", suffix: " [/INST]" },
    Template { name: "llama3", prefix: "<|start_header_id|>user<|end_header_id|>\n\n", suffix: "<|eot_id|>" },
    Template { name: "qwen2", prefix: "<|im_start|>user\n", suffix: "<|im_end|>" },
];

/// The names that the reference gives a template, and no others.
const MODELS: [(&str, usize); 5] = [
    ("meta-llama/Llama-2-7b-chat-hf", 1),
    ("mistralai/Mistral-7B-Instruct-v0.2", 2),
    ("meta-llama/Meta-Llama-3-8B-Instruct", 3),
    ("Qwen/Qwen2-1.5B-Instruct", 4),
    ("Qwen/Qwen2-7B-Instruct", 4),
];

/// By its name.
impl Serialize for Template {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(self.name)
    }
}

/// By its name, as [`Template::by_name`] takes it.
impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Template, D::Error> {
        Template::by_name(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl Template {
    /// By family name, or by the full name of a model that has one.
    pub fn by_name(name: &str) -> Result<Template> {
        let family = ALL.iter().find(|t| t.name == name).copied();
        let model = || MODELS.iter().find(|(m, _)| *m == name).map(|&(_, i)| ALL[i]);
        family.or_else(model).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|t| t.name).collect();
            Error::usage(format!("template `{name}`: expected one of {}", names.join(", ")))
        })
    }

    /// What the reference chooses for `config.json`'s `_name_or_path`: an exact match, else none.
    pub fn for_model(name: &str) -> Template {
        MODELS.iter().find(|(m, _)| *m == name).map_or(NONE, |&(_, i)| ALL[i])
    }
}
