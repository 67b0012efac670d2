//! The data side of training: rows and batches, blocks and masks, configurations and learning rates.

use crate::common;

mod forms;
mod masks;
mod setup;

use common::here;
use llm2vec::error::Result;
use llm2vec::rng::Stream;
use llm2vec::train::data::{Batch, Batches, Batching, Items, Position, Texts, Triples};
use llm2vec::train::instructions::Instructions;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The error's line, after a check that it holds all these words.
#[track_caller]
fn refused<T>(result: Result<T>, words: &[&str]) -> String {
    let line = result.err().expect("an error was wanted").to_string();
    assert!(
        words.iter().all(|w| line.contains(w)) && !line.contains('\n'),
        "{words:?} are not all in: {line}"
    );
    line
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn batching(size: usize, smallest: usize, same_set: bool) -> Batching {
    Batching { size, smallest, same_set }
}

fn numbered(n: usize) -> String {
    (0..n).map(|i| format!("text {i}\n")).collect()
}

/// Batches to the end of an epoch.
fn epoch<I: Items>(batches: &mut Batches<I>) -> Vec<Batch<I::Item>> {
    (0..batches.per_epoch()).map(|_| batches.next().unwrap()).collect()
}

fn triples(n: usize, set: &str) -> String {
    (0..n).map(|i| format!("{{\"query\": \"{set} {i}\", \"positive\": \"p {i}\"}}\n")).collect()
}

#[test]
fn rows_are_the_same_plain_and_packed() {
    let dir = folder();
    let text = "\u{feff}one\r\n  two \n\n\u{4e09}\nfour";
    let plain = write(&dir, "a.txt", text);
    let gz = dir.path().join("a.txt.gz");
    std::fs::write(&gz, gzip(text.as_bytes())).unwrap();
    let zst = dir.path().join("a.txt.zst");
    std::fs::write(&zst, zstd(text.as_bytes())).unwrap();
    let json = "{\"text\": \"one\"}\n  {\"text\": \"  two \", \"id\": 7}\n{\"text\": \"\"}\n{\"text\": \"三\"}\n{\"text\": \"four\"}";
    let json = write(&dir, "a.jsonl", json);
    for path in [plain, gz, zst, json] {
        let mut lines = Texts::lines(&path, true).unwrap();
        let read: Vec<String> = (0..5).map(|i| lines.read(i).unwrap()).collect();
        assert_eq!(read, ["one", "  two ", "", "三", "four"], "{}", path.display());
        let mut texts = Texts::open(&path, false).unwrap();
        assert_eq!((texts.report().rows, texts.report().bad), (4, 1));
        let read: Vec<String> = (0..4).map(|i| texts.read(i).unwrap()).collect();
        assert_eq!(read, ["one", "two", "三", "four"]);
        assert!(texts.report().named[0].contains("line 3:"), "{:?}", texts.report());
        refused(Texts::open(&path, true), &["line 3:", "blank"]);
    }
}

#[test]
fn every_epoch_has_every_row_once_in_its_own_order() {
    let dir = folder();
    let path = write(&dir, "a.txt", &numbered(103));
    let open = |seed| Batches::new(Texts::open(&path, true).unwrap(), batching(10, 1, false), seed).unwrap();
    let mut batches = open(42);
    assert_eq!(batches.per_epoch(), 11);
    let mut orders = BTreeSet::new();
    for n in 0..3 {
        let all = epoch(&mut batches);
        assert!(all.iter().enumerate().all(|(i, b)| (b.position.epoch, b.position.batch) == (n, i as u64)));
        assert_eq!(
            all.iter().map(|b| b.items.len()).collect::<Vec<_>>(),
            [[10; 10].to_vec(), vec![3]].concat()
        );
        let order: Vec<String> = all.into_iter().flat_map(|b| b.items).collect();
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 103);
        orders.insert(order);
    }
    orders.insert(epoch(&mut open(43)).into_iter().flat_map(|b| b.items).collect());
    assert_eq!(orders.len(), 4, "no two orders are alike");
    let again: Vec<String> = epoch(&mut open(42)).into_iter().flat_map(|b| b.items).collect();
    assert!(orders.contains(&again), "and the same seed gives the same");
}

#[test]
fn a_saved_position_goes_on_exactly() {
    let dir = folder();
    let path = write(&dir, "a.txt", &numbered(47));
    let open = |path: &Path, size, seed| {
        Batches::new(Texts::open(path, true).unwrap(), batching(size, 1, false), seed).unwrap()
    };
    let mut straight = open(&path, 5, 7);
    let mut saved = Vec::new();
    let run: Vec<_> = (0..25)
        .map(|_| {
            saved.push(serde_json::to_string(&straight.position()).unwrap());
            straight.next().unwrap()
        })
        .collect();
    for (at, saved) in saved.iter().enumerate() {
        let position: Position = serde_json::from_str(saved).unwrap();
        let mut resumed = open(&path, 5, 7);
        resumed.seek(position).unwrap();
        for wanted in &run[at..] {
            assert_eq!(resumed.next().unwrap(), *wanted, "resumed at {at}");
        }
    }
    let position: Position = serde_json::from_str(&saved[3]).unwrap();
    refused(open(&path, 6, 7).seek(position), &["other training data, batches or seed"]);
    refused(open(&path, 5, 8).seek(position), &["other training data, batches or seed"]);
    refused(open(&path, 5, 7).seek(Position { batch: 11, ..position }), &["batch 11 of an epoch of 10"]);
    let other = write(&dir, "a.txt", &numbered(47).replace("text 46", "text 64"));
    refused(open(&other, 5, 7).seek(position), &["other training data, batches or seed"]);
}

#[test]
fn supervised_batches_come_from_one_data_set_and_are_whole() {
    let dir = folder();
    for (set, n) in [("nli", 35), ("quora", 8), ("short", 3)] {
        write(&dir, &format!("{set}.jsonl"), &triples(n, set));
    }
    write(&dir, "README.md", "not data");
    let open = |smallest| {
        let triples = Triples::open(dir.path(), &Instructions::none(), true).unwrap();
        assert_eq!(triples.sets().collect::<Vec<_>>(), ["nli", "quora", "short"]);
        assert_eq!(triples.report().ignored, [dir.path().join("README.md")]);
        Batches::new(triples, batching(4, smallest, true), 42).unwrap()
    };
    for (smallest, per_epoch, rows) in [(4, 8 + 2, 40), (3, 9 + 2 + 1, 46), (1, 9 + 2 + 1, 46)] {
        let mut batches = open(smallest);
        assert_eq!(batches.per_epoch(), per_epoch);
        let mut orders = BTreeSet::new();
        for _ in 0..4 {
            let all = epoch(&mut batches);
            for b in &all {
                let set = ["nli", "quora", "short"][b.set];
                assert!(b.items.iter().all(|t| t.query.starts_with(set)), "{b:?}");
                assert!(b.items.len() >= smallest);
            }
            let sets: Vec<usize> = all.iter().map(|b| b.set).collect();
            assert!(!sets.is_sorted(), "the order of batches is shuffled across data sets: {sets:?}");
            let order: Vec<String> = all.into_iter().flat_map(|b| b.items).map(|t| t.query).collect();
            assert_eq!((order.len(), order.iter().collect::<BTreeSet<_>>().len()), (rows, rows));
            orders.insert(order);
        }
        assert_eq!(orders.len(), 4, "every epoch in its own order");
    }
    let mut left_out = open(4);
    let kept: Vec<BTreeSet<_>> = (0..2)
        .map(|_| epoch(&mut left_out).into_iter().flat_map(|b| b.items).map(|t| t.query).collect())
        .collect();
    assert_ne!(kept[0], kept[1], "not the same rows are left out every time");
    let triples = Triples::open(dir.path(), &Instructions::none(), true).unwrap();
    refused(Batches::new(triples, batching(36, 36, true), 42), &["has 35 rows", "batch of 36"]);
}

#[test]
fn bad_rows_are_counted_and_named_and_strict_stops_at_the_first() {
    let dir = folder();
    let good = "{\"query\": \"q\", \"positive\": \"p\", \"negative\": [\"n\", \"m\"]}";
    let bad = [
        ("not json", "column 2"),
        ("7", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("{\"query\": \"q\"}", "no \"positive\""),
        ("{\"query\": \" \", \"positive\": \"p\"}", "\"query\" is blank"),
        ("{\"query\": \"q\", \"positive\": 3}", "\"positive\" is not a string"),
        ("{\"query\": \"q\", \"positive\": \"p\", \"negative\": [\"n\", 1]}", "\"negative\" is not a string"),
        ("{\"query\": \"q\", \"positive\": \"p\", \"negative\": \"\"}", "\"negative\" is blank"),
        ("{\"query\": \"q\", \"positive\": \"p\"", "column"),
    ];
    let mut bytes = format!("{good}\n").into_bytes();
    for (line, _) in bad {
        bytes.extend(format!("{line}\n{good}\n").bytes());
    }
    bytes.extend(b"{\"query\": \"\xff\", \"positive\": \"p\"}\n");
    let path = dir.path().join("a.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let mut data = Triples::open(&path, &Instructions::none(), false).unwrap();
    let report = data.report().clone();
    assert_eq!((report.rows, report.bad, report.named.len()), (bad.len() + 1, bad.len() + 1, bad.len() + 1));
    for (i, (_, reason)) in bad.iter().enumerate() {
        let line = format!("a.jsonl: line {}: ", 2 * i + 2);
        let named = &report.named[i];
        assert!(named.contains(&line) && named.contains(reason), "{named} should have {line}{reason}");
    }
    assert!(report.named[bad.len()].contains("invalid UTF-8"));
    for i in 0..report.rows {
        assert_eq!(data.read(i).unwrap().negatives, ["n", "m"]);
    }
    refused(Triples::open(&path, &Instructions::none(), true), &["line 2:", "column 2"]);
    let many = write(&dir, "many.txt", &format!("one\n{}", "\n".repeat(1000)));
    let report = Texts::open(&many, false).unwrap().report().clone();
    assert_eq!((report.rows, report.bad, report.named.len()), (1, 1000, 20));
}

/// What Python's `json` writes and pandas leaves out: blank lines, NaN, half a surrogate pair; under any name.
#[test]
fn json_lines_as_python_writes_them_are_rows() {
    let dir = folder();
    let texts = "\n{\"text\": \"a\", \"score\": NaN}\n \t\r\n{\"text\": \"half \\ud83d pair\"}\n\n";
    let triple = "\n{\"query\": \"q\", \"positive\": \"p\", \"negative\": NaN, \"x\": -Infinity}\n\n";
    for name in ["a.jsonl", "train.json", "data"] {
        let mut data = Texts::open(&write(&dir, name, texts), true).unwrap();
        assert_eq!((data.report().rows, data.report().bad), (2, 0), "{name}");
        assert_eq!([0, 1].map(|i| data.read(i).unwrap()), ["a", "half \u{fffd} pair"]);
        assert_eq!(Texts::lines(&dir.path().join(name), true).unwrap().report().rows, 2);
        let mut data = Triples::open(&write(&dir, name, triple), &Instructions::none(), true).unwrap();
        assert_eq!((data.report().rows, data.read(0).unwrap().negatives.len()), (1, 0), "{name}");
    }
}

#[test]
fn no_data_is_an_error_that_says_what_is_missing() {
    let dir = folder();
    refused(Texts::open(dir.path(), false), &["holds no .txt, .jsonl, .json, .csv"]);
    refused(Texts::open(&dir.path().join("absent.txt"), false), &["absent.txt"]);
    refused(Texts::open(&write(&dir, "a.txt", ""), false), &["a.txt", "no row", "empty"]);
    refused(Texts::open(&write(&dir, "b.txt", "\n\n"), false), &["no row", "line 1", "blank"]);
    let half = dir.path().join("c.txt.gz");
    std::fs::write(&half, &gzip(numbered(1000).as_bytes())[..500]).unwrap();
    refused(Texts::open(&half, false), &["c.txt.gz", "cut short"]);
    let only = folder();
    write(&only, "a.jsonl", &triples(2, "a"));
    std::fs::write(only.path().join("a.jsonl.gz"), gzip(triples(2, "a").as_bytes())).unwrap();
    refused(Triples::open(only.path(), &Instructions::none(), false), &["a.jsonl.gz", "one data set"]);
    let path = write(&dir, "d.txt", &numbered(3));
    for bad in [batching(0, 1, false), batching(4, 0, false), batching(4, 5, false)] {
        refused(Batches::new(Texts::open(&path, false).unwrap(), bad, 1), &["batches of"]);
    }
    let few = Texts::open(&path, false).unwrap();
    refused(Batches::new(few, batching(4, 4, false), 1), &["3 rows", "batch of 4"]);
    let mut data =
        Triples::open(&write(&dir, "e.jsonl", &triples(2, "e")), &Instructions::none(), true).unwrap();
    write(&dir, "e.jsonl", &triples(2, "e").replace('{', "["));
    refused(data.read(1), &["e.jsonl", "line 2", "changed since"]);
}

#[test]
fn instructions_go_by_data_set_and_take_turns_by_line() {
    let dir = folder();
    let line = |i: usize| format!("{{\"query\": \"q{i}\", \"positive\": \"p\", \"negative\": \"n\"}}\n");
    for set in ["nq", "allnli"] {
        write(&dir, &format!("{set}.jsonl"), &[&line(0), "bad\n", &line(2), &line(3)].concat());
    }
    let maps = folder();
    let map = r#"{"nq": "Q", "allnli": ["A", {"query": "B", "document": "B"}], "unused": ""}"#;
    let map = Instructions::read(&write(&maps, "map.json", map)).unwrap();
    let mut data = Triples::open(dir.path(), &map, false).unwrap();
    let got: Vec<_> = (0..6)
        .map(|i| data.read(i).unwrap())
        .map(|t| (t.query, t.query_instruction, t.document_instruction))
        .collect();
    let wanted = [
        ("q0", "A", ""),
        ("q2", "A", ""),
        ("q3", "B", "B"),
        ("q0", "Q", ""),
        ("q2", "Q", ""),
        ("q3", "Q", ""),
    ];
    let wanted = wanted.map(|(q, i, d)| (q.to_string(), i.to_string(), d.to_string()));
    assert_eq!(got, wanted, "the line decides, bad ones counted");

    for (both, symmetric) in [(true, "Retrieve semantically similar text;"), (false, "")] {
        let mut data = Triples::open(dir.path(), &Instructions::e5(both), false).unwrap();
        let t = data.read(2).unwrap();
        assert_eq!(t.query_instruction, "Retrieve semantically similar text;");
        assert_eq!(t.document_instruction, symmetric);
        assert_eq!(data.read(0).unwrap().document_instruction, "");
    }
    write(&dir, "other.jsonl", &line(0));
    refused(Triples::open(dir.path(), &map, false), &["\"other\" has no instruction", "allnli, nq"]);
    for (bad, words) in
        [("[]", "object was wanted"), ("{\"a\": 3}", "\"a\" is 3"), ("{\"a\": {\"q\": \"\"}}", "\"a\" is")]
    {
        refused(Instructions::read(&write(&maps, "bad.json", bad)), &["bad.json", words]);
    }
}

proptest! {
    /// Any bytes are rows or a named error, in every reader, packed or not; what was indexed can be read.
    #[test]
    fn hostile_bytes_are_rows_or_errors(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just(b"\n".to_vec()), Just(b"{\"query\": \"q\", \"positive\": \"p\"}".to_vec()), Just(b"\r\n".to_vec()),
                Just(b"{\"text\": \"\\ud800\"}".to_vec()), Just(b"\xef\xbb\xbf".to_vec()), Just(b"[[[[".to_vec()),
                Just(b"{\"text\": \"t\", \"text\": 1e999}".to_vec()), proptest::collection::vec(any::<u8>(), 0..20),
            ],
            0..30,
        ),
        name in prop::sample::select(vec!["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.jsonl.zst"]),
    ) {
        let dir = folder();
        let path = dir.path().join(name);
        let bytes = pieces.concat();
        let packed = match name.rsplit('.').next() {
            Some("gz") => gzip(&bytes),
            Some("zst") => zstd(&bytes),
            _ => bytes,
        };
        std::fs::write(&path, packed).unwrap();
        let texts = [Texts::open(&path, false), Texts::lines(&path, false)];
        for mut texts in texts.into_iter().flatten() {
            let report = texts.report().clone();
            prop_assert!(report.named.len() == report.bad.min(20));
            prop_assert!((0..report.rows).all(|i| texts.read(i).is_ok()));
        }
        if let Ok(mut triples) = Triples::open(&path, &Instructions::none(), false) {
            let rows = triples.report().rows;
            prop_assert!((0..rows).all(|i| triples.read(i).is_ok()));
        }
    }
}

/// Chi-square of 24 orders of 4 items at 23 degrees of freedom: 49.7 is exceeded once in a thousand seeds.
#[test]
fn every_order_is_equally_likely() {
    let mut counts = std::collections::BTreeMap::new();
    let draws = 24_000;
    for seed in 0..draws {
        let mut items = [0, 1, 2, 3];
        Stream::new(seed, [1, 2, 3]).shuffle(&mut items);
        *counts.entry(items).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    let each = draws as f64 / 24.0;
    let chi: f64 = counts.values().map(|&n| (f64::from(n) - each).powi(2) / each).sum();
    assert!(chi < 49.7, "{chi}");
}

#[test]
fn the_real_data_is_read_whole() {
    let shared = here("../shared/data");
    if !shared.is_dir() {
        println!("skipped: no ../shared");
        return;
    }
    let texts = Texts::open(&shared.join("text/sentences.train.txt.gz"), true).unwrap();
    assert_eq!(texts.report().rows, 102_280);
    let mut batches = Batches::new(texts, batching(128, 2, false), 42).unwrap();
    assert_eq!(batches.per_epoch(), 102_280usize.div_ceil(128));
    assert_eq!(batches.next().unwrap().items.len(), 128);
    let novels = Texts::lines(&shared.join("text/novels.train.txt.gz"), true).unwrap();
    assert_eq!(novels.report().rows, 32_420);
    let mut nli = Triples::open(&shared.join("nli"), &Instructions::none(), true).unwrap();
    assert_eq!(nli.sizes(), [925, 12_004]);
    assert!((0..200).all(|i| nli.read(i).unwrap().negatives.len() == 1));
}
