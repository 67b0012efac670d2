//! What the rows of a data set are to be read for.

use crate::error::{Error, Result};
use crate::format::hf::read_json;
pub use crate::format::instruction::Instruction;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Instructions by data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instructions(BTreeMap<String, Vec<Instruction>>);

/// The public replica of E5's training data (Wang et al., arXiv 2401.00368, table 12): data set, instruction, and
/// whether the task is symmetric. Two entries of one data set take turns by line.
const E5: [(&str, &str, bool); 16] = [
    ("allnli", "Given a premise, retrieve a hypothesis that is entailed by the premise", false),
    ("allnli", "Retrieve semantically similar text", true),
    ("dureader", "Given a Chinese search query, retrieve web passages that answer the question", false),
    (
        "eli5_question_answer",
        "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",
        false,
    ),
    ("fever", "Given a claim, retrieve documents that support or refute the claim", false),
    ("hotpot_qa", "Given a multi-hop question, retrieve documents that can help answer the question", false),
    ("miracl", "Given a question, retrieve Wikipedia passages that answer the question", false),
    ("mrtydi", "Given a question, retrieve Wikipedia passages that answer the question", false),
    ("msmarco_passage", "Given a web search query, retrieve relevant passages that answer the query", false),
    (
        "msmarco_document",
        "Given a web search query, retrieve relevant documents that answer the query",
        false,
    ),
    ("nq", "Given a question, retrieve Wikipedia passages that answer the question", false),
    (
        "quora_duplicates",
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        true,
    ),
    ("quora_duplicates", "Find questions that have the same meaning as the input question", true),
    ("squad", "Retrieve Wikipedia passages that answer the question", false),
    ("t2ranking", "Given a Chinese search query, retrieve web passages that answer the question", false),
    ("trivia_qa", "Retrieve Wikipedia passages that answer the question", false),
];

impl Instructions {
    /// None at all.
    pub fn none() -> Instructions {
        Instructions::default()
    }

    /// Those of `dataset_name: "E5"`, ending in `;` as the reference trains with them. Symmetric tasks have theirs on
    /// both sides, as the paper has it; `documents: false` leaves documents bare, as the released code does (Q-D2).
    pub fn e5(documents: bool) -> Instructions {
        let mut map: BTreeMap<String, Vec<Instruction>> = BTreeMap::new();
        for (set, text, symmetric) in E5 {
            let query = format!("{text};");
            let document = if symmetric && documents { query.clone() } else { String::new() };
            map.entry(set.into()).or_default().push(Instruction { query, document });
        }
        Instructions(map)
    }

    /// A JSON object, data set to instruction: a string for queries alone, `{"query": …, "document": …}`, or a list of
    /// these that take turns by line.
    pub fn read(path: &Path) -> Result<Instructions> {
        let json = read_json(path)?;
        let Some(fields) = json.as_object() else {
            let what = r#"a JSON object was wanted, {"data set": "instruction", …}"#;
            return Err(Error::file(path, what));
        };
        let mut map = BTreeMap::new();
        for (set, value) in fields {
            let list = match value {
                Value::Array(list) if !list.is_empty() => list.iter().map(Instruction::of).collect(),
                one => Instruction::of(one).map(|i| vec![i]),
            };
            let wanted = r#"a string, {"query": …, "document": …} or a list of these was wanted"#;
            let list = list.ok_or_else(|| Error::file(path, format!("{set:?} is {value}; {wanted}")))?;
            map.insert(set.clone(), list);
        }
        Ok(Instructions(map))
    }

    /// The instructions of a data set: nothing if there are none at all, an error if only it has none.
    pub fn of(&self, set: &str) -> Result<Vec<Instruction>> {
        match self.0.get(set) {
            Some(list) => Ok(list.clone()),
            None if self.0.is_empty() => Ok(Vec::new()),
            None => {
                let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
                let known = known.join(", ");
                let what = format!(
                    "data set {set:?} has no instruction, only {known} have; add {set:?}: \"\" for none"
                );
                Err(Error::unsupported(what))
            }
        }
    }
}
