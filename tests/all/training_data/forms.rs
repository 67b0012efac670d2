//! Rows of training data as people have them: any table, the forms of sentence-transformers and FlagEmbedding.

use super::{folder, gzip, refused, triples, write};
use llm2vec::train::data::{Batches, Items, Texts, Triple, Triples};
use llm2vec::train::instructions::Instructions;
use std::path::Path;

fn open(path: &Path) -> llm2vec::error::Result<Triples> {
    Triples::open(path, &Instructions::none(), true)
}

fn read(path: &Path) -> Vec<Triple> {
    let mut data = open(path).unwrap();
    (0..data.report().rows).map(|i| data.read(i).unwrap()).collect()
}

/// Query, positive and negatives of every row of a file.
fn parts(name: &str, text: &str) -> Vec<(String, String, Vec<String>)> {
    let dir = folder();
    let rows = read(&write(&dir, name, text)).into_iter();
    rows.map(|t| (t.query, t.positive, t.negatives)).collect()
}

fn part(query: &str, positive: &str, negatives: &[&str]) -> (String, String, Vec<String>) {
    (query.into(), positive.into(), negatives.iter().map(|n| n.to_string()).collect())
}

#[test]
fn triples_are_read_in_every_form() {
    for (name, text, want) in [
        ("a.jsonl", "{\"anchor\": \"q\", \"positive\": \"p\", \"negative\": \"n\"}", part("q", "p", &["n"])),
        ("a.jsonl", "{\"question\": \"q\", \"answer\": \"p\"}", part("q", "p", &[])),
        ("a.jsonl", "{\"sentence1\": \"q\", \"sentence2\": \"p\"}", part("q", "p", &[])),
        (
            "a.jsonl",
            "{\"query\": \"q\", \"pos\": [\"p\"], \"neg\": [\"n\", \"m\"]}",
            part("q", "p", &["n", "m"]),
        ),
        (
            "a.json",
            "[{\"query\": \"q\", \"positive\": \"p\", \"negative\": [\"n\", \"m\"]}]",
            part("q", "p", &["n", "m"]),
        ),
        ("a.csv", "anchor,positive,negative\nq,\"p, p\",\"n\nn\"\n", part("q", "p, p", &["n\nn"])),
        ("a.txt", "query\tpositive\tnegative\nq\tp\tn\n", part("q", "p", &["n"])),
        // By their numbers, not as text; as many as the row has.
        (
            "a.csv",
            "query,answer,negative_10,negative_2,negative_1,score\nq,p,k,m,,0.5\n",
            part("q", "p", &["m", "k"]),
        ),
        ("a.csv", "id,query,positive,negative\n1,q,p,\n", part("q", "p", &[])),
        (
            "a.jsonl",
            "{\"query\": \"q\", \"positive\": \"p\", \"negative_1\": NaN, \"negative_2\": \"n\"}",
            part("q", "p", &["n"]),
        ),
    ] {
        assert_eq!(parts(name, text), [want], "{text}");
    }
}

#[test]
fn rows_that_are_no_triple_say_why() {
    let dir = folder();
    for (name, text, words) in [
        (
            "a.jsonl",
            "{\"premise\": \"a\", \"hypothesis\": \"b\"}",
            &["no \"query\" (nor \"anchor\"", "there is \"hypothesis\", \"premise\""][..],
        ),
        ("a.jsonl", "{\"query\": \"q\", \"pos\": []}", &["\"pos\" is an empty list"]),
        ("a.jsonl", "{\"query\": \"q\", \"pos\": [\" \"]}", &["\"pos\" is blank"]),
        (
            "a.jsonl",
            "{\"query\": \"q\", \"positive\": \"p\", \"negative_1\": 3}",
            &["\"negative_1\" is not a string"],
        ),
        (
            "a.jsonl",
            "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"score\": 0.2}",
            &["line 1", "pair with a \"score\""],
        ),
        ("a.csv", "query,positive,label\nq,p,0\n", &["row 1, line 2", "pair with a \"label\""]),
        ("a.csv", "id,text\n1,a\n", &["no \"query\"", "there is \"id\", \"text\""]),
        ("a.csv", "query,text\n1,a\n", &["no \"positive\"", "there is \"query\", \"text\""]),
        ("a.csv", "query,positive\nq\n", &["row 1, line 2: 1 field"]),
        ("a.json", "[{\"query\": \"q\", \"positive\": \"p\"},\n{\"query\": }]", &["element 2, line 2"]),
        ("a.txt", "Once upon a time.\n", &["line 1", "expected value", "\"query\""]),
    ] {
        refused(open(&write(&dir, name, text)), &[&[name], words].concat());
    }
    // Left out one by one, or with the file where no row could be one.
    let ragged = write(&dir, "b.csv", "query,positive\nq,p\nq\nq2,p2\n");
    let data = Triples::open(&ragged, &Instructions::none(), false).unwrap();
    assert_eq!((data.report().rows, data.report().bad), (2, 1));
    assert!(data.report().named[0].contains("row 2, line 3"), "{:?}", data.report());
    let other = write(&dir, "c.csv", "id,text\n1,a\n");
    refused(Triples::open(&other, &Instructions::none(), false), &["c.csv", "no \"query\""]);
}

/// Each positive of a row has its turn, an epoch each, and a position that is sought gives the same one.
#[test]
fn several_positives_take_turns_and_a_prompt_is_the_querys() {
    let dir = folder();
    let line = |i: usize| {
        format!(
            "{{\"query\": \"q{i}\", \"pos\": [\"a{i}\", \"b{i}\", \"c{i}\"], \"neg\": [\"n\"], \"prompt\": \"Find: \"}}\n"
        )
    };
    let path = write(&dir, "a.jsonl", &(0..4).map(line).collect::<String>());
    let batches = || Batches::new(open(&path).unwrap(), super::batching(2, 2, true), 1).unwrap();
    let mut straight = batches();
    let mut drawn = Vec::new();
    for _ in 0..8 {
        let at = straight.position();
        let batch = straight.next().unwrap();
        let mut resumed = batches();
        resumed.seek(at).unwrap();
        assert_eq!(resumed.next().unwrap().items, batch.items);
        drawn.extend(batch.items.into_iter().map(|t| (batch.position.epoch, t)));
    }
    for (epoch, triple) in drawn {
        let turn = ["a", "b", "c", "a"][epoch as usize];
        assert_eq!(triple.positive, triple.query.replace('q', turn));
        assert_eq!((triple.query_instruction.as_str(), triple.document_instruction.as_str()), ("Find: ", ""));
    }
}

/// Rows of a table are the same as those of JSON lines, and so are instructions that take turns; a folder has all.
#[test]
fn tables_are_data_sets_as_json_lines_are() {
    let dir = folder();
    let rows = triples(5, "x");
    let array = format!("[{}]", rows.trim().replace('\n', ", "));
    let csv: String = (0..5).map(|i| format!("x {i},p {i}\n")).collect();
    write(&dir, "lines.jsonl", &rows);
    write(&dir, "array.json", &array);
    write(&dir, "table.csv", &format!("query,positive\n{csv}"));
    std::fs::write(
        dir.path().join("packed.tsv.gz"),
        gzip(format!("query\tpositive\n{csv}").replace(',', "\t").as_bytes()),
    )
    .unwrap();
    write(&dir, "notes.md", "none");
    let maps = folder();
    let map = r#"{"array": ["A", "B"], "lines": ["A", "B"], "packed": ["A", "B"], "table": ["A", "B"]}"#;
    let map = Instructions::read(&write(&maps, "map.json", map)).unwrap();
    let mut data = Triples::open(dir.path(), &map, true).unwrap();
    assert_eq!(data.sets().collect::<Vec<_>>(), ["array", "lines", "packed", "table"]);
    assert_eq!((data.sizes(), data.report().ignored.len()), (vec![5; 4], 1));
    let all: Vec<Triple> = (0..20).map(|i| data.read(i).unwrap()).collect();
    for set in all.chunks(5) {
        assert_eq!(set, &all[..5]);
    }
    assert_eq!((all[3].query.as_str(), all[3].query_instruction.as_str()), ("x 3", "B"));
}

#[test]
fn texts_come_from_a_column_of_any_table() {
    let dir = folder();
    for (name, text) in [
        ("a.csv", "id,body\n1,one\n2,\"two, too\"\n"),
        ("a.tsv", "id\tbody\n1\tone\n2\ttwo, too\n"),
        ("a.json", "[{\"body\": \"one\"}, {\"body\": \"two, too\"}]"),
        ("b.json", "[\"one\", \"two, too\"]"),
        ("a.jsonl", "{\"body\": \"one\"}\n{\"body\": \"two, too\"}\n"),
    ] {
        let path = write(&dir, name, text);
        for texts in [Texts::open_in(&path, Some("body"), true), Texts::lines_in(&path, Some("body"), true)] {
            let mut texts = texts.unwrap();
            assert_eq!([0, 1].map(|i| texts.read(i).unwrap()), ["one", "two, too"], "{name}");
        }
        if name != "b.json" {
            refused(Texts::open(&path, false), &[name, "\"text\"", "\"body\""]);
        }
    }
    for (name, bytes) in [("x.txt", "PAR1\u{15}\u{4}"), ("x.txt", "{\n\"text\": \"a\"\n}\n")] {
        let path = write(&dir, name, bytes);
        refused(Texts::lines(&path, false), &[name]);
        refused(open(&path), &[name]);
    }
}
