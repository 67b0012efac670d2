//! Texts that are read: line ends, encodings, compression, JSONL.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

use llm2vec::{
    error::Result,
    format::input::{self, Format, Reading, Record, Records},
};

use super::{folder, refused};

pub(super) fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_string()
}

pub(super) fn all(name: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let dir = folder();
    input::open(&write(dir.path(), name, bytes), &Reading::default())?.collect()
}

pub(super) fn texts(name: &str, bytes: &[u8]) -> Vec<String> {
    all(name, bytes).unwrap().into_iter().map(|r| r.text).collect()
}

fn as_is(format: Format) -> Reading {
    Reading { format: Some(format), text_column: None }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn lines_lose_their_ends_and_nothing_else() {
    assert_eq!(texts("a.txt", b""), [""; 0]);
    assert_eq!(texts("a.txt", b"one\r\n two \n\nlast"), ["one", " two ", "", "last"]);
    assert_eq!(texts("a.txt", b"a\rb\r\r\nc\r"), ["a\rb\r", "c\r"]);
    assert_eq!(texts("a.txt", "\u{feff}x\n\u{feff}y\n".as_bytes()), ["x", "\u{feff}y"]);
    let places: Vec<u64> = all("a", b"x\ny\n").unwrap().iter().map(|r| r.place.line).collect();
    assert_eq!(places, [1, 2]);
}

#[test]
fn invalid_utf8_names_line_and_byte() {
    let dir = folder();
    let path = write(dir.path(), "a.txt", b"good\nbad \xff here\nnever\n");
    let mut records = input::open(&path, &Reading::default()).unwrap();
    assert_eq!(records.next().unwrap().unwrap().text, "good");
    refused(records.next().unwrap(), &["a.txt", "line 2: invalid UTF-8 at byte 5"]);
    assert!(records.next().is_none(), "nothing follows an error");
}

#[test]
fn jsonl_fields() {
    let lines = b"{\"text\": \"a\"}\r\n {\"instruction\": \"do\", \"text\": \"b\\n\", \"id\": [1, {}]} \n{\"text\":\"\",\"instruction\":null}";
    let records = all("a.jsonl", lines).unwrap();
    let got: Vec<_> =
        records.iter().map(|r| (r.place.line, r.instruction.as_deref(), r.text.as_str())).collect();
    assert_eq!(got, [(1, None, "a"), (2, Some("do"), "b\n"), (3, None, "")]);
    let deep = format!("{{\"text\":\"a\",\"x\":{}", "[".repeat(1 << 20));
    for (line, words) in [
        ("{}", &["line 2", "no column \"text\", there are none", "text_column"][..]),
        ("{\"texts\": \"a\"}", &["line 2", "no column \"text\", there are \"texts\""]),
        ("{\"text\": {\"0\": \"a\"}}", &["line 2", "\"text\" is an object", "orient"]),
        ("{\"text\": 5}", &["line 2", "\"text\" is a number, a string was wanted"]),
        ("{\"text\": \"a\"", &["line 2", "column 12"]),
        ("{\"text\": \"a\"} x", &["line 2", "column 15"]),
        ("{\"text\": \"a\", \"instruction\": 1}", &["line 2", "string"]),
        ("{\"text\": \"a\", \"text\": \"b\"}", &["line 2", "duplicate"]),
        ("[\"a\"]", &["line 2", "not a JSON object"]),
        ("\"a\"", &["line 2", "not a JSON object"]),
        (&deep, &["line 2", "EOF"]),
    ] {
        let line = refused(all("a.ndjson", format!("{{\"text\":\"a\"}}\n{line}\n").as_bytes()), words);
        assert!(!line.contains("line 1"), "serde's own line number got through: {line}");
    }
}

#[test]
fn format_follows_the_name_unless_said() {
    let line = b"{\"text\": \"a\"}\n";
    assert_eq!(texts("a.JSONL.GZ", &gzip(line)), ["a"]);
    assert_eq!(texts("a.ndjson.zst", &zstd(line)), ["a"]);
    // JSON lines are known by their first one, whatever the name.
    for name in ["a.json", "a.txt", "a", "a.json.gz"] {
        let bytes = if name.ends_with("gz") { gzip(line) } else { line.to_vec() };
        assert_eq!(texts(name, &bytes), ["a"], "{name}");
    }
    assert_eq!(texts("a.txt", b"\n\n{\"text\": \"a\"}\n"), ["a"]);
    let long = format!("{{\"text\": \"{}\"}}\n", "long ".repeat(50_000));
    assert_eq!(texts("a.json", long.as_bytes())[0].len(), 250_000);
    let dir = folder();
    let path = write(dir.path(), "a.dat", line);
    let records: Vec<_> =
        input::open(&path, &as_is(Format::Jsonl)).unwrap().map(|r| r.unwrap().text).collect();
    assert_eq!(records, ["a"]);
    refused(input::open(dir.path().to_str().unwrap(), &Reading::default()), &["folder"]);
    refused(input::open(dir.path().join("none").to_str().unwrap(), &Reading::default()), &["none"]);
}

#[test]
fn jsonl_as_python_writes_it() {
    assert_eq!(texts("a.jsonl", b"\n{\"text\": \"a\"}\n \t\r\n{\"text\": \"b\"}\n\n"), ["a", "b"]);
    let places: Vec<u64> =
        all("a.jsonl", b"\n{\"text\": \"a\"}\n").unwrap().iter().map(|r| r.place.line).collect();
    assert_eq!(places, [2], "a blank line is a line, but no record");
    for (line, text) in [
        (r#"{"text":"a","score":NaN}"#, "a"),
        (r#"{"score":[Infinity,-Infinity,{"x":NaN}],"text":"NaN \" Infinity \\"}"#, "NaN \" Infinity \\"),
        (r#"{"instruction":NaN,"text":"a"}"#, "a"),
        (r#"{"text": "half \ud83d pair"}"#, "half \u{fffd} pair"),
        (r#"{"text": "\ude00\ud83d\ud83d\ude00\ud83d"}"#, "\u{fffd}\u{fffd}😀\u{fffd}"),
        (r#"{"text": "\\ud83d \ud83d\u0041\\"}"#, "\\ud83d \u{fffd}A\\"),
    ] {
        assert_eq!(texts("a.jsonl", line.as_bytes()), [text], "{line}");
    }
    refused(all("a.jsonl", br#"{"text": NaN}"#), &["line 1", "is null, a string was wanted"]);
    refused(all("a.jsonl", br#"{"text": "\ud83d", "x": }"#), &["line 1", "column 25", "expected value"]);
    refused(all("a.jsonl", br#"{"text": "\ud83"#), &["line 1", "EOF"]);
}

/// What is certainly no text is refused by its content with what to do, unless it is said to be text.
#[test]
fn what_is_neither_text_nor_data_is_refused_by_content() {
    let pretty = b"{\n  \"text\": \"a\",\n  \"score\": NaN\n}\n";
    let nested = b"{\n  \"version\": 1,\n  \"data\": [{\"rows\": [{\"text\": \"a\"}]}]\n}\n";
    let long = [&b"{\n\"data\": [\n"[..], &b"{\"text\": \"a\"},\n".repeat(9000)].concat();
    let wide: Vec<u8> = "some words of text\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked = [&b"\xff\xfe"[..], &wide].concat();
    let safe = [&64u64.to_le_bytes()[..], b"{\"a\":{\"dtype\":\"F32\""].concat();
    let cases: [(&str, &[u8], &str); 17] = [
        ("a.json", pretty, "several lines"),
        ("a.txt", pretty, "several lines, of \"score\", \"text\""),
        ("a.txt", &[&pretty[..], pretty].concat(), "several lines"),
        ("a.json", nested, "several lines, of \"data\", \"version\""),
        ("a.txt", &long, "several lines"),
        ("a.npy", b"\x93NUMPY\x01\0", "NumPy"),
        ("a.docx", b"PK\x03\x04\x14\0", "zip"),
        ("a.txt.gz", &gzip(&gzip(b"some text\n")), "gzip, twice"),
        ("a.txt", &zstd(&zstd(b"some text\n")), "zstd, twice"),
        ("a.txt", &wide, "UTF-16"),
        ("a.txt", &marked, "UTF-16"),
        ("a.safetensors", &safe, "safetensors"),
        ("a.txt", b"%PDF-1.7\n", "PDF"),
        ("a.parquet", b"A heavy rain fell.\n", "not what its name says (.parquet)"),
        ("a.arrow", b"id,text\n1,a\n", "not what its name says (.arrow)"),
        ("a.csv", b"PK\x03\x04\x14\0", "zip"),
        ("a.txt.gz", &gzip(pretty), "several lines"),
    ];
    for (name, bytes, what) in cases {
        refused(all(name, bytes), &[name, what, "wanted: ", "input_format text"]);
    }
    let dir = folder();
    let path = write(dir.path(), "a.csv", b"id,text\n1,\"a\nb\"\n");
    assert_eq!(input::open(&path, &as_is(Format::Text)).unwrap().count(), 3);
    let path = write(dir.path(), "list.json", b"[{\"text\": \"a\"},\n{\"text\": \"b\"}]\n");
    assert_eq!(input::open(&path, &as_is(Format::Text)).unwrap().count(), 2);
}

/// Prose may begin like JSON, and have commas and tabs on every line.
#[test]
fn text_is_never_taken_for_data() {
    for text in [
        "[Illustration: a dog]\nOnce upon a time.\n",
        "[1] See the notes.\n[2] Likewise.\n",
        "[sic]\n",
        "[1]\nA chapter.\n",
        "[\"Halt!\", he said]\n",
        "{The curtain rises.}\nA street.\n",
        "{}\n{}\n",
        "{\nint x;\n}\n",
        "\"I am here,\" he said.\n\"And I,\" said she.\n",
        "\"One whole line in quotes.\"\n",
        "roses, red\nviolets, blue\nsugar, sweet\n",
        "Roses,red\nViolets,blue\n",
        "text, and more text\nmore, of it\n",
        "The text,which has no space after its commas\nThe query,likewise\n",
        "text\nsentence\nquery\n",
        "one\ttwo\nthree\tfour\n",
        "text,query\n",
        "text,query\nthis line has, as it happens, more commas\n",
        "The content\tof this\nline\tis tabbed\n",
        "PAR for the course\nPK was here\n",
        "NaN\nInfinity\n",
        "  [x] done\n  [ ] not done\n",
    ] {
        let lines: Vec<&str> = text.lines().collect();
        for name in ["a.txt", "a", "a.md"] {
            assert_eq!(texts(name, text.as_bytes()), lines);
        }
    }
    let mut files = 0;
    for folder in ["tests/texts", "../shared/data/text", "../shared/data/columns"]
        .map(|f| Path::new(env!("CARGO_MANIFEST_DIR")).join(f))
    {
        let Ok(entries) = fs::read_dir(&folder) else {
            println!("skipped: no {}", folder.display());
            continue;
        };
        for path in entries.map(|e| e.unwrap().path()) {
            if !path.to_str().unwrap().trim_end_matches(".gz").ends_with(".txt") {
                continue;
            }
            let read = |format: Reading| -> Vec<Record> {
                input::open(path.to_str().unwrap(), &format).unwrap().collect::<Result<_>>().unwrap()
            };
            assert!(read(Reading::default()) == read(as_is(Format::Text)), "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 3, "{files} files");
}

#[test]
fn compressed_inputs_of_several_members() {
    let gz = [gzip(b"one\ntw"), gzip(b""), gzip(b"o\nthree\n")].concat();
    assert_eq!(texts("a.txt.gz", &gz), ["one", "two", "three"]);
    let skippable = [&0x184D2A50u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
    let zst = [zstd(b"one\ntw"), skippable.clone(), zstd(b""), zstd(b"o\nthree\n")].concat();
    assert_eq!(texts("a.txt.zst", &zst), ["one", "two", "three"]);
    let long: String = (0..200_000).map(|i| format!("line number {i}\n")).collect();
    for (name, bytes) in [("a.gz", gzip(long.as_bytes())), ("a.zst", zstd(long.as_bytes()))] {
        let got = texts(name, &bytes);
        assert_eq!((got.len(), got[199_999].as_str()), (200_000, "line number 199999"));
        for cut in [bytes.len() - 1, bytes.len() / 2, 5, 1, 0] {
            refused(all(name, &bytes[..cut]), &[name, "damaged or cut short"]);
        }
        refused(all(name, b"plain text"), &["damaged"]);
    }
    refused(all("a.zst", &skippable[..9]), &["damaged"]);
    // A frame of `zstd --long=31`: no content size, a window of 2 GiB, one empty last block.
    refused(
        all("a.zst", b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"),
        &["line 1", "window of 2147483648", "--long"],
    );
    let mut wrong = zstd(long.as_bytes());
    if let Some(last) = wrong.last_mut() {
        *last ^= 1; // in the checksum, which ruzstd's own reader does not compare
    }
    refused(all("a.zst", &wrong), &["damaged"]);
}

#[test]
fn long_lines() {
    let ten = [vec![b'a'; 10 << 20], vec![b'\n', b'b']].concat();
    assert_eq!(texts("a", &ten).iter().map(String::len).collect::<Vec<_>>(), [10 << 20, 1]);
    let endless = Records::from_reader("endless", Format::Text, std::io::repeat(b'a').take(1 << 40));
    refused(endless.collect::<Result<Vec<_>>>(), &["endless", "line 1", "256 MiB"]);
}

/// Counted as the bytes lie in the file, packed or not: all of them are read at the end, and of a large file not all before.
#[test]
fn a_file_knows_how_far_it_has_been_read() {
    let (dir, text) = (folder(), "a line of some words\n".repeat(40_000));
    for (name, bytes) in [("a.txt", text.clone().into_bytes()), ("a.txt.gz", gzip(text.as_bytes()))] {
        let path = write(dir.path(), name, &bytes);
        let mut records = input::open(&path, &Reading::default()).unwrap();
        let progress = records.progress().unwrap();
        assert_eq!(progress.total, bytes.len() as u64);
        records.next().unwrap().unwrap();
        assert!(0 < progress.read() && (progress.read() < progress.total || name.ends_with("gz")));
        assert_eq!(records.by_ref().count(), 39_999);
        assert_eq!(progress.read(), progress.total, "{name}");
    }
    assert!(Records::from_reader("memory", Format::Text, &b"x"[..]).progress().is_none());
}
