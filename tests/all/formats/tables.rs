//! Tables that people have: arrays, CSV, TSV, Parquet and Arrow, packed or not, under any name.

use super::texts::{all, gzip, texts, write, zstd};
use super::{folder, refused};
use llm2vec::error::Result;
use llm2vec::format::input::{self, Format, Reading, Record, Records};
#[cfg(not(feature = "parquet"))]
use llm2vec::format::output::{Output, OutputDtype};

/// The texts of a file, of the column of this name.
fn column(name: &str, bytes: &[u8], column: &str) -> Result<Vec<Record>> {
    let dir = folder();
    let reading = Reading { format: None, text_column: Some(column.into()) };
    input::open(&write(dir.path(), name, bytes), &reading)?.collect()
}

fn shown(records: Result<Vec<Record>>) -> Vec<String> {
    records.unwrap().into_iter().map(|r| r.text).collect()
}

const ARRAY: &[u8] =
    b"[{\"text\": \"A heavy rain fell.\", \"id\": 7},\n{\"text\": \"half \\ud83d pair\", \"s\": NaN}]\n";
const CSV: &[u8] = b"id,text,note\r\n1,\"A heavy, heavy\nrain \"\"fell\"\".\",\r\n2,The dog ran.,x\r\n";

/// An array is read under any name, also where it is longer than what is looked at, packed, or begins with a mark.
#[test]
fn arrays_are_read_element_by_element() {
    let want = ["A heavy rain fell.", "half \u{fffd} pair"];
    for name in ["a.json", "a.txt", "a", "a.csv", "a.jsonl"] {
        assert_eq!(texts(name, ARRAY), want, "{name}");
        assert_eq!(texts(name, &[b"\xef\xbb\xbf", ARRAY].concat()), want, "{name}");
    }
    for (name, bytes) in [("a.json.gz", gzip(ARRAY)), ("a.txt", gzip(ARRAY)), ("a.json.zst", zstd(ARRAY))] {
        assert_eq!(texts(name, &bytes), want, "{name}");
    }
    let records = all("a.json", ARRAY).unwrap();
    assert_eq!((records[0].id.clone(), records[1].id.clone()), (Some(7.into()), None));
    let places: Vec<String> = records.iter().map(|r| r.place.to_string()).collect();
    assert_eq!(places, ["element 1, line 1", "element 2, line 2"]);
    assert_eq!(texts("a.json", b" [ ] "), [""; 0]);
    assert_eq!(texts("a.json", b"[\"one\"]"), ["one"]);
    assert_eq!(texts("a.txt", b"[\n\"one, \\\"]\",\n\"two\"\n]\n"), ["one, \"]", "two"]);
    let long =
        format!("[\n{}{{\"text\": \"end\"}}]", "  {\"text\": \"a\", \"x\": [{}, \"]\"]},\n".repeat(9000));
    let read = texts("a.txt", long.as_bytes());
    assert_eq!((read.len(), read[9000].as_str()), (9001, "end"));
}

#[test]
fn a_broken_array_names_element_and_line() {
    let array = |element: &str| {
        format!("[{{\"text\": \"a\"}},\n {{\"text\": \"b\"}},\n{element},\n{{\"text\": \"c\"}}]\n")
    };
    for (element, words) in [
        ("{\"text\": }", &["element 3, line 3: column 10"][..]),
        ("{\"text\": \"a\",\n \"x\": oops}", &["element 3, line 3: line 2 of it, column 7"]),
        (
            "{\"sentence\": \"a\"}",
            &["element 3, line 3", "no column \"text\", there are \"sentence\"", "text_column"],
        ),
        ("7", &["element 3, line 3", "not a JSON object"]),
        ("[\"a\"]", &["element 3, line 3", "not a JSON object"]),
        ("", &["element 3, line 3", "not a JSON object"]),
        ("{\"text\": \"a\"} {\"text\": \"b\"}", &["element 3, line 3: column 15"]),
        ("{\"text\": \"a\"", &["element 3, line 3", "file ends inside"]),
        ("{\"text\": \"a}", &["element 3, line 3"]),
    ] {
        refused(all("a.json", array(element).as_bytes()), words);
    }
    refused(all("a.json", b"[{\"text\": \"cut"), &["element 1, line 1", "file ends inside"]);
    refused(
        all("a.txt", b"[{\"text\": \"a\"}, {\"text\": \"cut"),
        &["element 2, line 1", "file ends inside"],
    );
    refused(all("a.json", b"[\"one\"]\n[\"two\"]\n"), &["line 2", "the array is over"]);
    refused(all("a.json", b"[\"one\"\n\"two\"]\n"), &["element 1, line 1", "column"]);
    refused(all("a.json", b"[{\"text\": \"a\"}\n"), &["file ends inside"]);
    let endless =
        Records::from_reader("endless", Format::Json, std::io::Read::take(std::io::repeat(b'['), 1 << 40));
    refused(endless.collect::<Result<Vec<_>>>(), &["endless", "element 1, line 1", "256 MiB"]);
}

/// By content under any name; quotes, commas and ends of lines inside a field; a column of another name.
#[test]
fn tables_of_separated_values_are_read_by_their_header() {
    let want = ["A heavy, heavy\nrain \"fell\".", "The dog ran."];
    let tabs =
        String::from_utf8_lossy(CSV).replace("heavy, ", "heavy; ").replace(',', "\t").replace(';', ",");
    let semicolons = String::from_utf8_lossy(CSV).replace("id,text,note", "id;text;note").replace("1,", "1;");
    let semicolons = semicolons.replace("\",", "\";").replace("2,The dog ran.,x", "2;The dog ran.;x");
    for name in ["x.csv", "x.txt", "x", "x.tsv", "x.jsonl"] {
        for bytes in [CSV, tabs.as_bytes(), semicolons.as_bytes()] {
            assert_eq!(texts(name, bytes), want, "{name}: {}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(texts(name, &[b"\xef\xbb\xbf", CSV].concat()), want, "{name}");
    }
    assert_eq!(texts("x.csv.gz", &gzip(CSV)), want);
    assert_eq!(texts("x.csv", &gzip(CSV)), want);
    assert_eq!(texts("x.tsv.zst", &zstd(tabs.as_bytes())), want);
    let records = all("x.csv", CSV).unwrap();
    assert_eq!(records[1].id, Some("2".into()), "text, whatever it looks like");
    let places: Vec<String> = records.iter().map(|r| r.place.to_string()).collect();
    assert_eq!(places, ["row 1, line 2", "row 2, line 4"]);
    assert_eq!(shown(column("x.csv", CSV, "note")), ["", "x"]);
    assert_eq!(texts("x.csv", b"text\none\n\"\"\n7\n"), ["one", "", "7"]);
    assert_eq!(texts("x.csv", b"text\n"), [""; 0], "a header alone");
    assert_eq!(texts("x.txt", b",sentence,text\n0,a,b\n1,c,d\n"), ["b", "d"], "pandas' index has no name");
    assert_eq!(shown(column("x.csv", "größe,текст\n1,два\n".as_bytes(), "текст")), ["два"]);
    let rows: String = (0..20_000).map(|i| format!("{i},a text of some words\n")).collect();
    assert_eq!(texts("a", &[b"id,text\n", rows.as_bytes()].concat()).len(), 20_000);
    let instructed = all("x.csv", b"text,instruction\na,do\nb,\n").unwrap();
    assert_eq!(
        (instructed[0].instruction.as_deref(), instructed[1].instruction.as_deref()),
        (Some("do"), None)
    );
}

#[test]
fn what_is_wrong_with_a_table_is_named() {
    for (bytes, words) in [
        (
            &b"id,text\n1,a\n2\n"[..],
            &["row 2, line 3: 1 field, the header has 2 columns (\"id\", \"text\")"][..],
        ),
        (b"id,text\n1,a,b\n", &["row 1, line 2: 3 fields"]),
        (b"id,text\n1,\"a\n2,b\n3,c\n", &["row 1, line 2", "its quote is not closed"]),
        (b"id,text\n1,a\n2,\xff\n", &["row 2, line 3: column \"text\": invalid UTF-8 at byte 1"]),
        (b"text,id,text\na,1,b\n", &["two columns are called \"text\""]),
        (b"id,sentence\n1,a\n", &["no column \"text\", there are \"id\", \"sentence\"", "text_column"]),
        (b"A heavy rain fell.\nThe dog ran.\n", &["no column \"text\", there are \"A heavy rain fell.\""]),
        (b"", &["no column \"text\", there are none"]),
    ] {
        refused(all("x.csv", bytes), &[&["x.csv"], words].concat());
    }
    refused(column("x.csv", CSV, "body"), &["no column \"body\", there are \"id\", \"text\", \"note\""]);
    // A name that says something else is said to.
    refused(all("x.jsonl", b"id,sentence\n1,a\n"), &["comma-separated", "though its name ends in .jsonl"]);
    refused(all("x.csv", b"{\"texts\": 1}\n"), &["JSON lines, though its name ends in .csv"]);
    let endless = std::io::Read::chain(&b"text\n\""[..], std::io::Read::take(std::io::repeat(b'a'), 1 << 40));
    let endless = Records::from_reader("endless", Format::Csv, endless);
    refused(endless.collect::<Result<Vec<_>>>(), &["endless", "256 MiB"]);
    let packed = gzip(&[CSV, &b"3,more,x\n".repeat(50_000)].concat());
    refused(all("x.csv.gz", &packed[..packed.len() / 2]), &["x.csv.gz", "cut short"]);
}

#[test]
fn the_text_of_json_may_have_another_name() {
    let lines = b"{\"sentence\": \"a\", \"id\": 3, \"instruction\": \"do\"}\n\n{\"sentence\": \"b\"}\n";
    let records = column("a.jsonl", lines, "sentence").unwrap();
    assert_eq!((records[0].id.clone(), records[0].instruction.as_deref()), (Some(3.into()), Some("do")));
    assert_eq!(records[1].text, "b");
    assert_eq!(shown(column("a.json", b"[{\"sentence\": \"a\"}, \"b\"]", "sentence")), ["a", "b"]);
    refused(
        all("a.txt", lines),
        &["line 1: no column \"text\", there are \"id\", \"instruction\", \"sentence\""],
    );
    refused(column("a.jsonl", b"{\"sentence\": [1]}", "sentence"), &["\"sentence\" is a list, a string"]);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    for (bytes, name) in
        [(b"PAR1\x15\x04", "Parquet"), (b"ARROW1", "Arrow"), (b"\xff\xff\xff\xff\x10\0", "Arrow")]
    {
        for file in ["a.parquet", "a.txt"] {
            refused(all(file, bytes), &[file, name, "--features parquet"]);
        }
    }
    let out = folder();
    let path = out.path().join("v.parquet");
    let made = Output::create(path.to_str().unwrap(), 8, OutputDtype::F32);
    refused(made.map(|_| ()), &["v.parquet", "--features parquet"]);
}
