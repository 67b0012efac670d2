//! MTEB's newer clustering: its figures on the same draws, both layouts and where they are known from, what is refused.

use super::{blobs, golden, near, take};
use crate::command::{failed, folder, good, llm2vec, str};
use llm2vec::eval::clustering::Options;
use llm2vec::eval::sampled::Sampled;
use llm2vec::eval::source::Vectors;
use llm2vec::eval::suite::{Kind, sets};
use llm2vec::format::npy;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A set of this layout, and a file of its rows' vectors.
fn set(dir: &Path, labels: &[Value], x: &[f32], width: usize) -> (PathBuf, PathBuf) {
    let (rows, vectors) = (dir.join("test.jsonl"), dir.join("rows.npy"));
    let line = |(i, labels): (usize, &Value)| {
        format!("{}\n", json!({ "sentences": i.to_string(), "labels": labels }))
    };
    fs::write(&rows, labels.iter().enumerate().map(line).collect::<String>()).unwrap();
    let mut bytes = npy::header("<f4", &[labels.len() as u64, width as u64]);
    x.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    fs::write(&vectors, bytes).unwrap();
    (rows, vectors)
}

/// Every draw of every level, of all rows and of drawn ones.
#[test]
fn levels_equal_mteb() {
    for (case, wanted) in golden("sampled").iter().enumerate() {
        let ((x, _, width), dir) = (blobs(wanted, 0), folder());
        let labels: Vec<Value> = take(&wanted["labels"]);
        let (rows, vectors) = set(dir.path(), &labels, &x, width);
        let options = Options {
            clustering_batch_size: take(&wanted["batch"]),
            seed: take(&wanted["seed"]),
            bootstraps: take(&wanted["bootstraps"]),
            documents_per_cluster: take(&wanted["documents_per_cluster"]),
            documents: take(&wanted["documents"]),
            ..Options::default()
        };
        let mut vectors = Vectors::files(&[vectors], |_, _| {}).unwrap();
        let got = Sampled::read(&rows).unwrap().run(&mut vectors, "", options).unwrap();
        let levels: Vec<Vec<f64>> = take(&wanted["levels"]);
        assert_eq!(got.subsets.len(), levels.len());
        let figures = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            [("v_measure", json!(mean)), ("v_measure_std", json!(square.sqrt()))]
        };
        let all = ("all".to_string(), got.clone());
        let parts = got.subsets.iter().zip(&levels).map(|(part, level)| (part, level.clone()));
        for ((name, part), values) in parts.chain([(&all, levels.concat())]) {
            for (figure, wanted) in figures(&values) {
                near(part.value(figure).unwrap(), &wanted, 1e-9, &format!("case {case}, {name}, {figure}"));
            }
        }
        assert_eq!(got.main, "v_measure");
    }
}

/// A label and a list of one are the same set; the command and the suite know it by its columns, whatever else there is.
#[test]
fn both_layouts_are_known_by_their_columns() {
    let case = &golden("sampled")[0];
    let ((x, y, width), dir) = (blobs(case, 0), folder());
    let flags = ["--documents-per-cluster", "150", "--bootstraps", "4", "--clustering-batch-size", "512"];
    let scores = |name: &str, label: &dyn Fn(usize) -> Value, more: &[&str]| -> Value {
        let place = dir.path().join(name);
        fs::create_dir(&place).unwrap();
        let labels: Vec<Value> = y.iter().map(|y| label(*y)).collect();
        let (_, vectors) = set(&place, &labels, &x, width);
        let out = place.join("scores.json");
        let own =
            ["eval", "clustering", "-q", "--data", str(&place), "--vectors", str(&vectors), "-o", str(&out)];
        good(llm2vec(&[&own[..], &flags, more].concat()));
        serde_json::from_slice::<Value>(&fs::read(out).unwrap()).unwrap()["scores"].take()
    };
    let one = scores("one", &|y| json!(format!("l{y}")), &[]);
    let levels: Vec<Vec<f64>> = take(&case["levels"]);
    let mean = levels[0].iter().sum::<f64>() / levels[0].len() as f64;
    near(one["main_score"].as_f64().unwrap(), &json!(mean), 1e-9, "by the command");
    assert_eq!(one["subsets"]["Level 0"]["labels"], 5);
    assert_eq!(scores("list", &|y| json!([format!("l{y}")]), &[]), one);
    let drawn = scores("drawn", &|y| json!(y), &["--documents", "120"]);
    assert_eq!((&drawn["rows"], &drawn["subsets"]["Level 0"]["rows"]), (&json!(120), &json!(120)));
    // More than there are is all of them, in an order that was drawn.
    assert_eq!(scores("many", &|y| json!(y), &["--documents", "1000"])["rows"], 300);

    let older = dir.path().join("older");
    fs::create_dir(&older).unwrap();
    fs::write(older.join("test.jsonl"), "{\"text\": \"a\", \"label\": 1}\n").unwrap();
    let found = sets(dir.path()).unwrap();
    let names: Vec<(&str, Kind)> = found.iter().map(|set| (&*set.name, set.kind)).collect();
    assert_eq!(names, ["drawn", "list", "many", "older", "one"].map(|name| (name, Kind::Clustering)));
}

#[test]
fn bad_sets_are_told_in_a_line() {
    let row = |labels: Value| json!({ "sentences": "a", "labels": labels }).to_string();
    let (good, two) = (row(json!("x")), row(json!(["x", 1])));
    for (rows, flags, words) in [
        (vec![good.clone(), row(Value::Null)], vec![], vec!["line 2", "labels", "was wanted"]),
        (vec![good.clone(), row(json!(1.5))], vec![], vec!["line 2", "labels", "was wanted"]),
        (vec![two.clone(), row(json!([["x"]]))], vec![], vec!["line 2", "labels", "was wanted"]),
        (vec![two.clone(), row(json!([]))], vec![], vec!["line 2", "labels", "none"]),
        (vec![good.clone(), "{\"labels\": 1}".into()], vec![], vec!["line 2", "sentences"]),
        (vec!["{\"sentences\": \"a\"}".into(), good.clone()], vec![], vec!["line 1", "labels"]),
        (
            vec!["{\"sentences\": [\"a\", \"b\"], \"labels\": [1, 2]}".into()],
            vec![],
            vec!["line 1", "string"],
        ),
        (vec![good.clone(), "{".into()], vec![], vec!["line 2"]),
        (vec![good.clone(), two.clone()], vec!["--bootstraps", "0"], vec!["bootstrap", "at least 1"]),
        (vec![good.clone(), two.clone()], vec!["--documents-per-cluster", "0"], vec!["at least 1"]),
        (vec![good.clone(), two.clone()], vec!["--clustering-batch-size", "0"], vec!["at least 1"]),
        (vec![good.clone(), two.clone()], vec!["--documents", "0"], vec!["at least 1"]),
        // Two clusters of one row.
        (
            vec![row(json!(1)), row(json!(2))],
            vec!["--documents-per-cluster", "1"],
            vec!["1 rows", "at least 2"],
        ),
    ] {
        let dir = folder();
        let (_, vectors) = set(dir.path(), &vec![json!(0); rows.len()], &vec![1.0; rows.len()], 1);
        fs::write(dir.path().join("test.jsonl"), rows.join("\n") + "\n").unwrap();
        let own = ["eval", "clustering", "--data", str(dir.path()), "--vectors", str(&vectors)];
        let output = llm2vec(&[&own[..], &flags].concat()).output().unwrap();
        failed(output, if flags.is_empty() { 1 } else { 2 }, &words);
    }
}
