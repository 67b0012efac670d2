//! Pipes as inputs and outputs.
#![cfg(target_os = "linux")]

use super::inputs::under;
use super::*;

#[test]
fn a_reader_that_has_seen_enough() {
    let (tiny, dir) = (Tiny::new(), folder());
    let many = dir.path().join("many.txt");
    // More than the pipe and all buffers hold.
    fs::write(&many, "one text\n".repeat(20_000)).unwrap();
    let encode = llm2vec(&["encode", "-m", tiny.path(), "-i", str(&many), "-o", "-"]);
    let run = under(r#"{ "$0" "$@"; echo "status $?" >&2; } | head -n 1"#, &encode).output().unwrap();
    let said = String::from_utf8(run.stderr.clone()).unwrap();
    assert!(said.ends_with("status 0\n") && !said.contains("error"), "{said}");
    assert_eq!(run.stdout.iter().filter(|b| **b == b'\n').count(), 1);
    assert!(passed(under(r#""$0" "$@" >&-"#, &encode).output().unwrap()).is_empty());
}

#[test]
fn what_cannot_be_read_twice_has_no_shards() {
    let (tiny, dir) = (Tiny::new(), folder());
    let pipe = dir.path().join("pipe.txt");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let encode = |more: &[&str]| llm2vec(&[&["encode", "-m", tiny.path(), "-o", "-"], more].concat());
    let shard = ["--shard", "1/2"];
    for input in ["-", "/dev/stdin", str(&pipe)] {
        let command = encode(&[&["-i", input], &shard[..]].concat());
        failed(fed(command, b"one\ntwo\n"), 2, &["--shard", "read twice", "save the texts to a file"]);
    }
    // A file behind /dev/stdin can, and a named pipe without shards is an input like others.
    let mut command = encode(&[&["-i", "/dev/stdin"], &shard[..]].concat());
    let run = command.stdin(fs::File::open(prose()).unwrap()).output().unwrap();
    assert_eq!(passed(run).lines().count(), 10);
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, "one\ntwo\nthree\n").unwrap()
    });
    assert_eq!(good(encode(&["-i", str(&pipe)])).lines().count(), 3);
    writer.join().unwrap();
}
