//! Tagged words from files: columns (CoNLL-2000, CoNLL-2003 and their kin), CoNLL-U, and JSON lines.
//!
//! * Columns: a word a line and blank lines between sentences; fields between tabs where the first word's line has one,
//!   else between white space. A `-DOCSTART-` line belongs to no sentence, nor does a comment `# name = …`.
//! * CoNLL-U (`.conllu`): ten columns between tabs; comments, ranges of words (`1-2`) and empty nodes (`1.1`) are left out.
//! * JSON lines (`.jsonl`, `.ndjson`): `{"tokens": […], "ner": […], …}`, a list for each layer of tags.

use crate::error::{Error, Result};
use crate::format::jsonl;
use crate::format::lines::Lines;
use crate::format::table::Format;
use crate::format::unpack::unpacked;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A sentence of tagged words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sentence {
    /// The line of the file that each word stands in, from 1.
    pub lines: Vec<u64>,
    /// The words.
    pub words: Vec<String>,
    /// A tag for each.
    pub tags: Vec<String>,
}

/// The sentences of a file, with one layer of its tags.
#[derive(Clone, Debug, PartialEq)]
pub struct Tagged {
    /// The file.
    pub path: PathBuf,
    /// What the layer is called.
    pub label: String,
    /// In order, none empty.
    pub sentences: Vec<Sentence>,
}

/// Names of columns by how many there are: CoNLL-2000, CoNLL-2003.
const NAMED: [&[&str]; 2] = [&["word", "pos", "chunk"], &["word", "pos", "chunk", "ner"]];

/// Those of CoNLL-U.
const CONLLU: [&str; 10] = ["id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"];

impl Tagged {
    /// Reads a file (`.gz` and `.zst` too). `label` names a layer of tags, or a column by its number from 1; none is the
    /// only one that there is.
    pub fn read(path: &Path, label: Option<&str>) -> Result<Tagged> {
        let mut lines = Lines::open(path)?;
        let mut file = Tagged { path: path.to_path_buf(), label: String::new(), sentences: Vec::new() };
        let conllu = unpacked(path).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("conllu"));
        match Format::of(path) {
            Format::Jsonl => file.json_lines(&mut lines, label)?,
            _ => file.columns(&mut lines, label, conllu)?,
        }
        if file.sentences.is_empty() {
            return Err(Error::file(path, "holds no word; sentences of tagged words were wanted"));
        }
        Ok(file)
    }

    fn columns(&mut self, lines: &mut Lines, label: Option<&str>, conllu: bool) -> Result<()> {
        let mut layout: Option<Layout> = None;
        let mut sentence = Sentence::default();
        while lines.read()? {
            let line = lines.text()?;
            if line.trim().is_empty() {
                self.end(&mut sentence);
                continue;
            }
            if line.starts_with('#') && (conllu || line.starts_with("# ") && line.contains(" = ")) {
                continue;
            }
            let tabs = conllu || layout.as_ref().map_or(line.contains('\t'), |layout| layout.tabs);
            let fields: Vec<&str> = if tabs {
                line.trim_end_matches('\t').split('\t').collect()
            } else {
                line.split_whitespace().collect()
            };
            if fields[0] == "-DOCSTART-" {
                self.end(&mut sentence);
                continue;
            }
            let layout = match &mut layout {
                Some(layout) => layout,
                none => none.insert(Layout::new(lines, fields.len(), tabs, conllu, label)?),
            };
            if fields.len() != layout.columns {
                let (got, wanted, first) = (fields.len(), layout.columns, layout.line);
                let as_first = if conllu { "in CoNLL-U".into() } else { format!("as in line {first}") };
                return Err(lines.wrong(format_args!("{got} columns, {wanted} were wanted {as_first}")));
            }
            if conllu && fields[0].contains(['-', '.']) {
                continue;
            }
            let [word, tag] = [layout.word, layout.tag].map(|column| fields[column]);
            if word.is_empty() || tag.is_empty() {
                let (what, column) =
                    if word.is_empty() { ("word", layout.word) } else { ("tag", layout.tag) };
                return Err(lines.wrong(format_args!("column {} is empty, a {what} was wanted", column + 1)));
            }
            sentence.lines.push(lines.place());
            sentence.words.push(word.to_string());
            sentence.tags.push(tag.to_string());
        }
        self.end(&mut sentence);
        self.label = layout.map_or(String::new(), |layout| layout.label);
        Ok(())
    }

    fn end(&mut self, sentence: &mut Sentence) {
        if !sentence.words.is_empty() {
            self.sentences.push(std::mem::take(sentence));
        }
    }

    fn json_lines(&mut self, lines: &mut Lines, label: Option<&str>) -> Result<()> {
        const WANTED: &str = r#"{"tokens": [words], "ner": [tags]} was wanted"#;
        let mut key: Option<String> = None;
        while lines.read()? {
            let line = lines.text()?;
            if line.trim().is_empty() {
                continue;
            }
            let parsed = jsonl::parse::<Value>(line);
            let wrong = |what: String| lines.wrong(format_args!("{what}; {WANTED}"));
            let Value::Object(fields) = parsed.map_err(wrong)? else {
                return Err(wrong("not a JSON object".into()));
            };
            let list = |key: &str| strings(&fields, key).map_err(|what| lines.wrong(what));
            let words = list("tokens")?;
            let key = match &mut key {
                Some(key) => key,
                none => none.insert(layer(&fields, label).map_err(|what| lines.wrong(what))?),
            };
            let tags = list(key)?;
            if tags.len() != words.len() {
                let (n, m) = (tags.len(), words.len());
                return Err(lines.wrong(format_args!("{n} tags in {key:?} for {m} words in \"tokens\"")));
            }
            if let Some(i) = words.iter().zip(&tags).position(|(w, t)| w.trim().is_empty() || t.is_empty()) {
                return Err(lines.wrong(format_args!("word {} or its tag is empty", i + 1)));
            }
            self.end(&mut Sentence { lines: vec![lines.place(); words.len()], words, tags });
        }
        self.label = key.unwrap_or_default();
        Ok(())
    }
}

/// Where word and tag stand in the lines of a file.
struct Layout {
    /// The line that it was read from.
    line: u64,
    tabs: bool,
    columns: usize,
    word: usize,
    tag: usize,
    label: String,
}

impl Layout {
    fn new(lines: &Lines, columns: usize, tabs: bool, conllu: bool, label: Option<&str>) -> Result<Layout> {
        if conllu && columns != CONLLU.len() {
            return Err(lines.wrong(format_args!("{columns} columns between tabs, CoNLL-U has 10")));
        }
        if columns < 2 {
            let what = "one column, a word and at least one tag were wanted, between tabs or white space";
            return Err(lines.wrong(what));
        }
        let names: &[&str] = if conllu {
            &CONLLU
        } else {
            NAMED.into_iter().find(|names| names.len() == columns).unwrap_or(&[])
        };
        let word = usize::from(conllu);
        let number = label.and_then(|label| label.parse().ok()).and_then(|n: usize| n.checked_sub(1));
        let named = label.and_then(|label| names.iter().position(|name| *name == label));
        let tag = match (label, number.or(named)) {
            // Only one, whatever it is called.
            (None, _) if columns == 2 => Some(1),
            (Some(label), None) if columns == 2 && label.parse::<usize>().is_err() => Some(1),
            (_, tag) => tag.filter(|tag| *tag < columns && *tag != word),
        };
        let Some(tag) = tag else {
            let shown = |i: usize| match names.get(i) {
                Some(name) => format!("{} ({name})", i + 1),
                None => format!("{}", i + 1),
            };
            let all: Vec<String> = (0..columns).filter(|i| *i != word).map(shown).collect();
            let what = match label {
                Some(label) => format!("there is no label {label:?}"),
                None => "which column holds the label was not said".into(),
            };
            return Err(lines.wrong(format_args!("{what}; the columns are {}", all.join(", "))));
        };
        let name = label.map(String::from).or(names.get(tag).map(|name| name.to_string()));
        let label = name.unwrap_or_else(|| format!("{}", tag + 1));
        Ok(Layout { line: lines.place(), tabs, columns, word, tag, label })
    }
}

/// The list of strings of a field, or what is wrong with it.
fn strings(fields: &Map<String, Value>, key: &str) -> std::result::Result<Vec<String>, String> {
    let Some(list) = fields.get(key) else { return Err(format!("there is no {key:?}")) };
    let strings = list.as_array().and_then(|list| {
        list.iter().map(|item| item.as_str().map(String::from)).collect::<Option<Vec<String>>>()
    });
    strings.ok_or_else(|| format!("{key:?} is no list of strings, one for each word was wanted"))
}

/// The key of the layer of tags: the one named, or the only one.
fn layer(fields: &Map<String, Value>, label: Option<&str>) -> std::result::Result<String, String> {
    let is_layer = |key: &&String| *key != "tokens" && strings(fields, key).is_ok();
    let layers: Vec<&String> = fields.keys().filter(is_layer).collect();
    let what = match (label, layers.as_slice()) {
        (Some(label), _) if fields.contains_key(label) && label != "tokens" => return Ok(label.into()),
        (None, [only]) => return Ok(only.to_string()),
        (Some(label), _) => format!("there is no label {label:?}"),
        (None, _) => "which list holds the label was not said".into(),
    };
    let names: Vec<&str> = layers.iter().map(|name| name.as_str()).collect();
    let there = if names.is_empty() { "none".into() } else { names.join(", ") };
    Err(format!("{what}; the lists of strings beside \"tokens\" are {there}"))
}
