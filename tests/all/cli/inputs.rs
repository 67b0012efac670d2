//! Texts that are damaged, disks that are full, runs that are killed: one clear line, and nothing half written.

use super::*;
use flate2::{Compression, write::GzEncoder};
use std::time::{Duration, Instant};

/// `encode` of these bytes, under this file name, fails with these words, and an older output is left as it was.
#[track_caller]
fn refused(tiny: &Tiny, name: &str, bytes: &[u8], words: &[&str]) {
    let dir = folder();
    let (input, out) = (dir.path().join(name), dir.path().join("v.npy"));
    fs::write(&input, bytes).unwrap();
    fs::write(&out, "what was there").unwrap();
    let run = llm2vec(&["encode", "-m", tiny.path(), "-i", str(&input), "-o", str(&out)]).output();
    failed(run.unwrap(), 1, &[&[name], words].concat());
    assert_eq!(fs::read(&out).unwrap(), b"what was there");
    assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn texts() {
    let tiny = Tiny::new();
    let packed = gz(&fs::read(prose()).unwrap());
    let cases: [(&str, &[u8], &[&str]); 21] = [
        ("a.txt", b"", &["holds no text"]),
        ("a.jsonl", b"", &["holds no text"]),
        ("a.txt.gz", &gz(b""), &["holds no text"]),
        ("a.txt", b"one\n\nthree\n", &["line 2", "--empty zero"]),
        ("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"\"}\n", &["line 2", "--empty zero"]),
        ("a.txt", b"one\ntwo\n\xc3\x28\n", &["line 3", "UTF-8"]),
        ("a.jsonl", b"{\"text\": \"\xff\"}\n", &["line 1", "UTF-8"]),
        ("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"tw", &["line 2", "EOF"]),
        ("list.json", b"[{\"text\": \"one\"},\n7]\n", &["element 2, line 2", "not a JSON object"]),
        ("x.csv", b"id,body\n1,one\n", &["there are \"id\", \"body\"", "--text-column"]),
        ("x.csv", b"id,text\n1,one\n2,\n", &["row 2, line 3", "--empty zero"]),
        ("f.csv", b"A heavy rain fell.\nThe dog ran.\n", &["no column \"text\"", "A heavy rain fell."]),
        ("x.txt", b"PAR1\x15\x04\x00", &["x.txt"]),
        ("a.txt", b"{\n\"text\": \"a\"\n}\n", &["several lines", "--input-format text"]),
        ("a.jsonl", b"{\"texts\": \"one\"}\n", &["line 1", "there are \"texts\"", "--text-column"]),
        ("a.jsonl", b"{\"text\": 7}\n", &["line 1", "string"]),
        ("a.jsonl", b"[\"one\"]\n", &["line 1", "not a JSON object"]),
        ("a.txt.gz", &packed[..packed.len() / 2], &["gzip", "cut short"]),
        ("a.txt.gz", b"plain text\n", &["gzip", "damaged"]),
        ("a.txt.zst", b"plain text\n", &["zstd", "damaged"]),
        ("a.txt", &[b"fine\n".repeat(40_000), b"\xff\n".to_vec()].concat(), &["line 40001", "UTF-8"]),
    ];
    for (name, bytes, words) in cases {
        refused(&tiny, name, bytes, words);
    }
    let own = tiny.file("own.jsonl");
    fs::write(&own, "{\"text\": \"one\"}\n").unwrap();
    let args = ["encode", "-m", tiny.path(), "-i", str(&own), "-o", str(&own)];
    failed(llm2vec(&args).output().unwrap(), 2, &["own.jsonl is the input"]);
    assert!(fs::read_to_string(&own).unwrap().contains("one"));
    let run = |input: &[u8]| fed(llm2vec(&["encode", "-m", tiny.path(), "-o", "-"]), input);
    failed(run(b""), 1, &["stdin", "holds no text"]);
    // A line between others has its error there too (cli::peer).
    let mut second = run(b"one\n\n");
    assert_eq!(std::mem::take(&mut second.stdout).iter().filter(|b| **b == b'\n').count(), 2);
    failed(second, 1, &["stdin", "line 2"]);
    let from =
        |input: &str| llm2vec(&["encode", "-m", tiny.path(), "-o", "-", "-i", input]).output().unwrap();
    failed(from("/no/such/file.txt"), 1, &["/no/such/file.txt"]);
    failed(from(tiny.path()), 1, &["is a folder"]);
}

/// JSON lines are read as such under any name, blank lines skipped, as `train` reads them; a flag overrules.
#[test]
fn json_lines_under_any_name() {
    let tiny = Tiny::new();
    let lines = b"{\"text\": \"one\", \"score\": NaN}\n\n{\"text\": \"half \\ud83d\"}\n\n";
    let run = |name: &str, bytes: &[u8], more: &[&str]| {
        let dir = folder();
        let input = dir.path().join(name);
        fs::write(&input, bytes).unwrap();
        vectors(&[&["-m", tiny.path(), "-i", str(&input)], more].concat())
    };
    let want = run("a.txt", "one\nhalf \u{fffd}\n".as_bytes(), &[]);
    for name in ["a.jsonl", "a.json", "a.txt"] {
        assert_eq!(run(name, lines, &[]), want, "{name}");
    }
    let prose = b"A dog, it ran.\nA cat, it sat.\n";
    assert_eq!(run("f.csv", prose, &["--input-format", "text"]), run("f.txt", prose, &[]));
    for (name, bytes) in [
        ("a.json", &b"[{\"text\": \"one\", \"score\": NaN}, \"half \\ud83d\"]"[..]),
        ("a.txt", "id,text\n1,one\n2,half \u{fffd}\n".as_bytes()),
        ("a.tsv.gz", &gz("id\ttext\n1\tone\n2\thalf \u{fffd}\n".as_bytes())),
    ] {
        assert_eq!(run(name, bytes, &[]), want, "{name}");
    }
    let column = b"text,body\nno,one\nno,two\n";
    assert_eq!(run("a.csv", column, &["--text-column", "body"])[..32], want[..32]);
    let as_text = run("a.json", b"{\"text\": \"one\"}\n", &["--input-format", "text"]);
    assert_ne!(as_text, want[..32]);
}

#[test]
fn an_empty_line_may_be_a_vector_of_zeros() {
    let tiny = Tiny::new();
    let run = |input: &[u8]| {
        let command = llm2vec(&["encode", "-m", tiny.path(), "-o", "-", "--empty", "zero"]);
        let out = passed(fed(command, input));
        let line = |l: &str| serde_json::from_str::<Value>(l).unwrap()["embedding"].clone();
        out.lines().map(line).collect::<Vec<_>>()
    };
    let (with, without) = (run(b"one\n\nthree\n"), run(b"one\nthree\n"));
    assert_eq!([&with[0], &with[2]], [&without[0], &without[1]]);
    assert_eq!(with[1], json!(vec![0.0; 32]));
    assert_eq!(run(b"\n"), [json!(vec![0.0; 32])]);
}

/// A line of 10 MB is a text like others: cut, with a warning, and without the memory to tokenise all of it.
#[test]
fn a_line_of_ten_megabytes() {
    let tiny = Tiny::new();
    let out = folder();
    let npy = out.path().join("v.npy");
    for line in [b"word ".repeat(2_000_000), b"w".repeat(10_000_000)] {
        let input = [&b"one\n"[..], &line, b"\ntwo\n"].concat();
        let run = fed(llm2vec(&["encode", "-m", tiny.path(), "-o", str(&npy)]), &input);
        let said = String::from_utf8(run.stderr.clone()).unwrap();
        passed(run);
        assert_eq!(npy::read(&npy).unwrap().shape, [3, 32]);
        assert!(said.contains("warning: 1 texts were cut"), "{said}");
        if let Some((_, peak)) = said.split_once("peak ") {
            let mib: u64 = peak.split(' ').next().unwrap().parse().unwrap();
            assert!(mib < 200, "{mib} MiB");
        }
    }
}

#[test]
fn places_where_no_output_can_be() {
    let tiny = Tiny::new();
    let (dir, adapter) = (folder(), tiny.adapter(1));
    let missing = dir.path().join("missing");
    fs::create_dir(dir.path().join("folder.npy")).unwrap();
    let encode = |out: PathBuf| {
        llm2vec(&["encode", "-m", tiny.path(), "-i", prose(), "-o", str(&out)]).output().unwrap()
    };
    failed(encode(missing.join("v.npy")), 1, &["no folder", "create it first"]);
    failed(encode(dir.path().join("folder.npy")), 1, &["is a folder"]);
    failed(encode(Path::new(prose()).join("v.npy")), 1, &["sentences.txt"]);
    let into = missing.join("merged");
    let args = ["merge", "-m", tiny.path(), "--adapter", str(adapter.path()), "-o", str(&into)];
    failed(llm2vec(&args).output().unwrap(), 1, &[str(&missing)]);
    assert_eq!(names(dir.path()), ["folder.npy"]);
}

/// Through `sh`, for what only a shell can set up; `$0` and on are the command.
#[cfg(target_os = "linux")]
pub fn under(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(command.get_program()).args(command.get_args());
    command.get_envs().filter(|(_, v)| v.is_none()).for_each(|(k, _)| {
        shell.env_remove(k);
    });
    shell.stdin(Stdio::null());
    shell
}

#[cfg(target_os = "linux")]
#[test]
fn full_disks() {
    let tiny = Tiny::new();
    let (adapter, dir) = (tiny.adapter(1), folder());
    let encode = ["encode", "-m", tiny.path(), "-i", prose()];
    let to_stdout = [&encode[..], &["-o", "-"]].concat();
    for args in [&to_stdout, &[&encode[..], &["--nearest", "2"]].concat(), &vec!["info", "-m", tiny.path()]] {
        let run = under(r#"exec "$0" "$@" >/dev/full"#, &llm2vec(args)).output().unwrap();
        failed(run, 1, &["stdout", if args == &to_stdout { "disk is full" } else { "No space left" }]);
    }
    // The log is not the result: without room for it, the run goes on.
    let (v, w) = (dir.path().join("v.npy"), dir.path().join("w.npy"));
    good(under(r#"exec "$0" "$@" 2>/dev/full"#, &llm2vec(&[&encode[..], &["-o", str(&v)]].concat())));
    assert_eq!(npy::read(&v).unwrap().shape, [21, 32]);

    let (texts, merged) = (folder(), dir.path().join("merged"));
    let many = texts.path().join("many.txt");
    fs::write(&many, "one text\n".repeat(1000)).unwrap();
    let merge = ["merge", "-m", tiny.path(), "--adapter", str(adapter.path()), "-o", str(&merged)];
    let encode = ["encode", "-m", tiny.path(), "-i", str(&many), "-o", str(&w)];
    for args in [&encode[..], &merge] {
        let run = under(r#"ulimit -f 1; exec "$0" "$@""#, &llm2vec(args)).output().unwrap();
        failed(run, 1, &["File too large"]);
        assert_eq!(names(dir.path()), ["v.npy"]);
    }
    for (args, word) in [(&encode[..], "disk is full"), (&merge[..], "No space left")] {
        let script = r#"mount -t tmpfs -o size=64k tmpfs "$DISK" && exec "$0" "$@"; exit 99"#;
        let mut own = Command::new("unshare");
        let shell = under(script, &llm2vec(args));
        own.arg("-rm").arg(shell.get_program()).args(shell.get_args()).env("DISK", dir.path());
        match own.output() {
            Ok(run) if run.status.code() == Some(1) && !run.stderr.starts_with(b"unshare") => {
                failed(run, 1, &[word]);
            }
            Ok(run) if run.status.success() => panic!("a disk of 64 kB was not full"),
            _ => println!("skipped: no disk of our own can be mounted here"),
        }
    }
}

/// A reader that has seen enough and left is no reason to panic.
#[cfg(unix)]
#[test]
fn a_closed_pipe() {
    let tiny = Tiny::new();
    let encode = ["encode", "-m", tiny.path(), "-i", prose()];
    let run = |args: &[&str]| {
        let mut command = llm2vec(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    passed(run(&["info", "-m", tiny.path()]));
    passed(run(&[&encode[..], &["--nearest", "2"]].concat()));
    passed(run(&[&encode[..], &["-o", "-"]].concat()));
}

#[cfg(unix)]
#[test]
fn a_killed_run_leaves_nothing_under_the_final_name() {
    let tiny = Tiny::new();
    for (name, old) in [("v.npy", None), ("v.safetensors", Some("what was there")), ("v.jsonl", None)] {
        let dir = folder();
        let out = dir.path().join(name);
        old.iter().for_each(|old| fs::write(&out, old).unwrap());
        let mut command = llm2vec(&["encode", "-m", tiny.path(), "-o", str(&out)]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // More than one window: the first is written while the second waits for the rest of the input.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&b"one text\n".repeat(33_000)).unwrap();
        let start = Instant::now();
        let written = || {
            let hidden = names(dir.path()).into_iter().find(|n| n.starts_with('.'));
            hidden.map_or(0, |n| fs::metadata(dir.path().join(n)).map_or(0, |m| m.len()))
        };
        while written() < 1 << 20 {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing is written");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        drop(stdin);
        assert_eq!(fs::read_to_string(&out).ok().as_deref(), old);
    }
}
