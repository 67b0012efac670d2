//! Word-level tasks: spans against seqeval (`golden/make_spans.py`), readers of tagged files, features by a model, and the
//! command.

mod command;
mod features;

use crate::command::{folder, str};
use crate::common::here;
use llm2vec::eval::words::data::{DataSet, Files};
use llm2vec::eval::words::reader::Tagged;
use llm2vec::eval::words::{scores, spans};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn tags(sentences: &Value) -> Vec<Vec<&str>> {
    sentences.as_array().unwrap().iter().map(|s| s.as_str().unwrap().split(' ').collect()).collect()
}

#[track_caller]
fn near(got: &[f64], wanted: &Value, what: &str) {
    for (got, wanted) in got.iter().zip(wanted.as_array().unwrap()) {
        let wanted = wanted.as_f64().unwrap();
        assert!((got - wanted).abs() < 1e-6, "{what}: {got}, {wanted} was wanted");
    }
}

/// IOB1, IOB2, IOBES, malformed tags, types that are never there or never answered.
#[test]
fn spans_equal_seqeval() {
    let file = fs::read(here("tests/golden/spans.json")).unwrap();
    let cases: Value = serde_json::from_slice(&file).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let (name, truth, answers) =
            (case["name"].as_str().unwrap(), tags(&case["truth"]), tags(&case["answers"]));
        for (sentence, wanted) in answers.iter().zip(case["spans"].as_array().unwrap()) {
            let got: Vec<Value> =
                spans::spans(sentence).iter().map(|s| serde_json::json!([s.kind, s.first, s.last])).collect();
            assert_eq!(&Value::from(got), wanted, "{name}: {sentence:?}");
        }
        let got = scores::scores(&truth, &answers, true);
        near(&[got.accuracy], &Value::from(vec![case["accuracy"].clone()]), name);
        near(&[got.precision, got.recall, got.f1], &case["micro"], name);
        let mean = got.macro_average;
        near(&[mean.precision, mean.recall, mean.f1], &case["macro"], name);
        let by_type = case["by_type"].as_object().unwrap();
        assert_eq!(got.by_class.len(), by_type.len(), "{name}");
        for (kind, wanted) in by_type {
            let f = got.by_class[kind];
            near(&[f.precision, f.recall, f.f1, f.support as f64], wanted, &format!("{name}, {kind}"));
        }
        let words: usize = got.confusion.counts.iter().flatten().sum();
        assert_eq!((words, got.sentences), (got.words, truth.len()), "{name}");
    }
}

#[test]
fn plain_tags() {
    let truth = vec![vec!["A", "B", "B"], vec![], vec!["C"]];
    let got = scores::scores(&truth, &[vec!["A", "B", "A"], vec![], vec!["A"]], false);
    assert_eq!((got.accuracy, got.words, got.sentences), (0.5, 4, 2));
    assert_eq!(got.confusion.tags, ["A", "B", "C"]);
    assert_eq!(got.confusion.counts, [[1, 0, 0], [1, 1, 0], [1, 0, 0]]);
    assert_eq!((got.by_class["B"].precision, got.by_class["B"].recall), (1.0, 0.5));
    assert!((got.recall - 0.5).abs() < 1e-12 && (got.precision - 4.0 / 9.0).abs() < 1e-12);
}

/// A file of this name and text, read.
fn read(name: &str, text: &str, label: Option<&str>) -> Result<Tagged, String> {
    let dir = folder();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    Tagged::read(&path, label).map_err(|e| e.to_string())
}

fn shown(file: &Tagged) -> String {
    let word = |(word, tag): (&String, &String)| format!("{word}/{tag}");
    let sentence = |s: &llm2vec::eval::words::reader::Sentence| {
        s.words.iter().zip(&s.tags).map(word).collect::<Vec<_>>().join(" ")
    };
    file.sentences.iter().map(sentence).collect::<Vec<_>>().join(" | ")
}

const CONLL: &str =
    "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP I-PER\r\n";

const CONLLU: &str = "# sent_id = 1\n# text = can't\n1-2\tcan't\t_\t_\t_\t_\t_\t_\t_\t_\n\
    1\tca\tcan\tAUX\tMD\t_\t0\troot\t_\t_\n2\tn't\tnot\tPART\tRB\t_\t1\tadvmod\t_\t_\n\
    2.1\tdo\tdo\tVERB\tVB\t_\t_\t_\t_\t_\n\n# sent_id = 2\n1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_\n";

#[test]
fn files_of_tagged_words() {
    let conll = |label| read("eng.train", CONLL, Some(label)).unwrap();
    assert_eq!(shown(&conll("ner")), "EU/I-ORG rejects/O | Peter/I-PER");
    assert_eq!(shown(&conll("pos")), "EU/NNP rejects/VBZ | Peter/NNP");
    let third = conll("3");
    assert_eq!((third.label.as_str(), &third.sentences), ("3", &conll("chunk").sentences));
    assert_eq!(conll("ner").sentences[1].lines, [7]);
    // Two columns are a word and its tag, whatever that is called; a word between tabs may hold a space.
    let two = "New York\tB-LOC\n# in\tO\n";
    assert_eq!(shown(&read("a.conll", two, None).unwrap()), "New York/B-LOC # in/O");
    assert_eq!(read("a.conll", two, Some("ner")).unwrap().label, "ner");
    assert_eq!(shown(&read("a.iob2", "# sent_id = 3\na\tO\n", None).unwrap()), "a/O");
    let conllu = |label| shown(&read("x-ud-train.conllu", CONLLU, Some(label)).unwrap());
    assert_eq!(conllu("upos"), "ca/AUX n't/PART | Go/VERB");
    assert_eq!(conllu("xpos"), "ca/MD n't/RB | Go/VB");
    let json = "{\"tokens\": [\"a\", \"b\"], \"ner\": [\"O\", \"B-X\"], \"id\": 3}\n\n{\"tokens\": [], \"ner\": []}\n";
    let got = read("a.jsonl", json, None).unwrap();
    assert_eq!((shown(&got).as_str(), got.label.as_str()), ("a/O b/B-X", "ner"));
}

#[track_caller]
fn refused(name: &str, text: &str, label: Option<&str>, words: &[&str]) {
    let error = read(name, text, label).unwrap_err();
    assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{words:?}: {error}");
}

#[test]
fn bad_files_say_where() {
    refused(
        "a.conll",
        "a b c\nd e\n",
        Some("2"),
        &["a.conll: line 2", "2 columns, 3 were wanted as in line 1"],
    );
    refused("a.conll", "a b c\n", None, &["line 1", "which column", "2 (pos), 3 (chunk)"]);
    refused("a.conll", "a b c d e\n", Some("ner"), &["no label \"ner\"", "2, 3, 4, 5"]);
    refused("a.conll", "a b c\n", Some("1"), &["no label \"1\""]);
    refused("a.conll", "a b c\n", Some("0"), &["no label \"0\""]);
    refused("a.conll", "word\n", None, &["line 1", "one column"]);
    refused("a.conll", "a\t\tO\nb\t\tO\n", Some("2"), &["line 1: column 2 is empty, a tag"]);
    refused("a.conll", "\n\n", None, &["holds no word"]);
    refused("a.conllu", "1\ta\tb\n", Some("upos"), &["line 1", "3 columns", "CoNLL-U has 10"]);
    refused("a.conllu", CONLLU, None, &["which column", "4 (upos)"]);
    refused(
        "a.jsonl",
        "{\"tokens\": [\"a\"], \"ner\": []}\n",
        None,
        &["line 1: 0 tags in \"ner\" for 1 words"],
    );
    refused(
        "a.jsonl",
        "{\"tokens\": [\"a\"], \"x\": [\"b\"], \"y\": [\"c\"]}",
        None,
        &["line 1", "are x, y"],
    );
    refused("a.jsonl", "{\"tokens\": [\"a\"], \"x\": [\"b\"]}", Some("ner"), &["no label \"ner\"", "are x"]);
    refused(
        "a.jsonl",
        "{\"tokens\": [\"a\"], \"x\": [1]}",
        Some("x"),
        &["line 1: \"x\" is no list of strings"],
    );
    refused("a.jsonl", "{\"x\": [\"a\"]}", Some("x"), &["line 1: there is no \"tokens\""]);
    refused("a.jsonl", "{\"tokens\": [\" \"], \"x\": [\"a\"]}", Some("x"), &["line 1: word 1"]);
    refused("a.jsonl", "[1]", Some("x"), &["line 1: not a JSON object"]);
}

/// Writes these files into a new folder.
fn set(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = folder();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    let path = dir.path().to_path_buf();
    (dir, path)
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn sets_are_found_in_folders() {
    let (_dir, path) =
        set(&[("UD-train.conllu", ""), ("UD-dev.conllu", ""), ("b.train.jsonl", ""), ("notes", "")]);
    let error = Files::find(&path).unwrap_err().to_string();
    assert!(error.contains("2 train files (UD-train.conllu, b.train.jsonl"), "{error}");
    let files = Files::find(&path.join("UD")).unwrap();
    assert_eq!([name(&files.train), name(&files.test)], ["UD-train.conllu", "UD-dev.conllu"]);
    assert_eq!(files.validation, None);
    let error = Files::find(&path.join("b")).unwrap_err().to_string();
    assert!(error.contains("no test or dev file"), "{error}");
    let (_dir, path) = set(&[("train.txt", ""), ("testa.txt", ""), ("testb.txt", "")]);
    let files = Files::find(Path::new(str(&path))).unwrap();
    assert_eq!(name(&files.test), "testb.txt");
    assert_eq!(files.validation.as_deref().map(name), Some("testa.txt"));
}

#[test]
fn tags_are_checked() {
    let data = |train: &str, test: &str| {
        let (_dir, path) = set(&[("train.txt", train), ("test.txt", test)]);
        DataSet::read(&Files::find(&path).unwrap(), None).map_err(|e| e.to_string())
    };
    assert!(data("a B-X\nb O\n", "a I-X\n").unwrap().spans);
    assert!(!data("a NN\nb O\n", "a XX\n").unwrap().spans);
    let error = data("a B-X\nb O\n", "a O\n\nb X-Y\n").unwrap_err();
    assert!(error.contains("test.txt: line 3: tag \"X-Y\"; O, B-TYPE or I-TYPE"), "{error}");
    let error = data("a B-X\nb O\nc I-\n", "a O\n").unwrap_err();
    assert!(error.contains("train.txt: line 3: tag \"I-\""), "{error}");
    let error = data("a O\nb O\n", "a O\n").unwrap_err();
    assert!(error.contains("train.txt: every tag is \"O\", at least two"), "{error}");
}
