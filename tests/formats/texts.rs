//! Texts that are read: line ends, encodings, compression, JSONL.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

use llm2vec::{
    error::Result,
    format::input::{self, Format, Record, Records},
};

use super::{folder, refused};

fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_string()
}

fn all(name: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let dir = folder();
    input::open(&write(dir.path(), name, bytes), None)?.collect()
}

fn texts(name: &str, bytes: &[u8]) -> Vec<String> {
    all(name, bytes).unwrap().into_iter().map(|r| r.text).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn lines_lose_their_ends_and_nothing_else() {
    assert_eq!(texts("a.txt", b""), [""; 0]);
    assert_eq!(texts("a.txt", b"one\r\n two \n\nlast"), ["one", " two ", "", "last"]);
    assert_eq!(texts("a.txt", b"a\rb\r\r\nc\r"), ["a\rb\r", "c\r"]);
    assert_eq!(texts("a.txt", "\u{feff}x\n\u{feff}y\n".as_bytes()), ["x", "\u{feff}y"]);
    let places: Vec<u64> = all("a", b"x\ny\n").unwrap().iter().map(|r| r.place).collect();
    assert_eq!(places, [1, 2]);
}

#[test]
fn invalid_utf8_names_line_and_byte() {
    let dir = folder();
    let path = write(dir.path(), "a.txt", b"good\nbad \xff here\nnever\n");
    let mut records = input::open(&path, None).unwrap();
    assert_eq!(records.next().unwrap().unwrap().text, "good");
    refused(records.next().unwrap(), &["a.txt", "line 2: invalid UTF-8 at byte 5"]);
    assert!(records.next().is_none(), "nothing follows an error");
}

#[test]
fn jsonl_fields() {
    let lines = b"{\"text\": \"a\"}\r\n {\"instruction\": \"do\", \"text\": \"b\\n\", \"id\": [1, {}]} \n{\"text\":\"\",\"instruction\":null}";
    let records = all("a.jsonl", lines).unwrap();
    let got: Vec<_> = records.iter().map(|r| (r.place, r.instruction.as_deref(), r.text.as_str())).collect();
    assert_eq!(got, [(1, None, "a"), (2, Some("do"), "b\n"), (3, None, "")]);
    let deep = format!("{{\"text\":\"a\",\"x\":{}", "[".repeat(1 << 20));
    for (line, words) in [
        ("", &["line 2", "blank"][..]),
        ("  \t", &["line 2", "blank"]),
        ("{}", &["line 2", "missing field `text`", "column 2"]),
        ("{\"text\": 5}", &["line 2", "column 10", "expected a string"]),
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
    assert_eq!(texts("a.json", line), ["{\"text\": \"a\"}"]);
    let dir = folder();
    let path = write(dir.path(), "a.dat", line);
    let records: Vec<_> = input::open(&path, Some(Format::Jsonl)).unwrap().map(|r| r.unwrap().text).collect();
    assert_eq!(records, ["a"]);
    refused(input::open(dir.path().to_str().unwrap(), None), &["folder"]);
    refused(input::open(dir.path().join("none").to_str().unwrap(), None), &["none"]);
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
