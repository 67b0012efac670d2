//! `encode -i - -o -` kept running by another program.

use super::*;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The program, and its lines as they come.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

const SOON: Duration = Duration::from_secs(60);
/// Long enough for an answer that should not come.
const LATER: Duration = Duration::from_millis(300);

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut command = llm2vec(&[&["encode", "-i", "-", "-o", "-"], args].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        let forward = move |stdout: ChildStdout| {
            for line in BufReader::new(stdout).lines() {
                let _ = sender.send(line.unwrap());
            }
        };
        std::thread::spawn(move || forward(stdout));
        Running { child, stdin, lines }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    #[track_caller]
    fn answer(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(SOON).expect("no answer came")).unwrap()
    }

    #[track_caller]
    fn silent(&self) {
        assert!(self.lines.recv_timeout(LATER).is_err(), "an answer to half a question");
    }

    /// Closes its input; status and stderr.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.stdin.take());
        let run = self.child.wait_with_output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    }
}

fn numbers(answer: &Value) -> Vec<f32> {
    let list = answer["embedding"].as_array().unwrap_or_else(|| panic!("{answer}"));
    list.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// Whether the format is said or seen in the first line.
#[test]
fn answers_come_when_the_input_pauses() {
    let (tiny, dir) = (Tiny::new(), folder());
    let texts = dir.path().join("a.txt");
    fs::write(&texts, "one\ntwo\nthree\nfour\nfive\n").unwrap();
    let want = vectors(&["-m", tiny.path(), "-i", str(&texts)]);
    for more in [&["--input-format", "jsonl"][..], &[]] {
        let mut run = Running::start(&[&["-m", tiny.path()], more].concat());
        run.write(b"{\"text\": \"one\", \"id\": \"a\"}\n");
        let first = run.answer();
        assert_eq!((&first["index"], &first["id"]), (&json!(0), &json!("a")));
        run.write(b"{\"text\": \"two\", \"id\": [2, null]}\n{\"text\": \"three\"}\n");
        let (second, third) = (run.answer(), run.answer());
        assert_eq!((&second["index"], &second["id"]), (&json!(1), &json!([2, null])));
        assert_eq!(third.get("id"), None);
        // Half a line is none, and does not hold up those before it; a blank line has no answer.
        run.write(b"{\"text\": \"four\"}\n\n \n{\"text\": ");
        let fourth = run.answer();
        run.silent();
        run.write(b"\"five\"}");
        run.silent();
        run.write(b"\n");
        let fifth = run.answer();
        assert_eq!(fifth["index"], json!(4));
        let got = [first, second, third, fourth, fifth].map(|answer| numbers(&answer)).concat();
        assert_eq!(got, want);
        let (status, said) = run.end();
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains("encoded 5 texts"), "{said}");
    }
    // Plain lines too; there the last need not end.
    let mut run = Running::start(&["-m", tiny.path(), "--quiet"]);
    run.write(b"one\ntw");
    assert_eq!(numbers(&run.answer()), want[..32]);
    run.write(b"o");
    drop(run.stdin.take());
    assert_eq!(numbers(&run.answer()), want[32..64]);
    assert_eq!(run.end(), (Some(0), String::new()));
}

#[test]
fn a_line_that_has_no_vector_has_an_error_and_ends_nothing() {
    let tiny = Tiny::new();
    let mut run = Running::start(&["-m", tiny.path(), "--input-format", "jsonl"]);
    for (line, words) in [
        (&b"{\"text\": \"\", \"id\": 5}\n"[..], &["line 1", "empty text", "--empty zero"][..]),
        (b"no JSON\n", &["line 2", "not a JSON object"]),
        (b"{\"text\": \"\xff\"}\n", &["line 3", "UTF-8"]),
        (b"{\"tokens\": [\"a\", 5]}\n", &["line 4", "list of words"]),
        (b"{\"id\": 1}\n", &["line 5", "no column \"text\", there are \"id\""]),
    ] {
        run.write(line);
        let answer = run.answer();
        let said = answer["error"].as_str().unwrap();
        assert!(words.iter().all(|w| said.contains(w)) && answer.get("embedding").is_none(), "{answer}");
    }
    // Beside good ones, each in its place.
    run.write(b"{\"text\": \"one\"}\n{\"text\": \"\", \"id\": 7}\n{\"tokens\": [\"t\", \"wo\"]}\n\n");
    let answers = [run.answer(), run.answer(), run.answer()];
    assert_eq!(answers.each_ref().map(|a| a["index"].as_u64().unwrap()), [5, 6, 7]);
    assert_eq!(answers.each_ref().map(|a| a.get("error").is_some()), [false, true, false]);
    assert_eq!(answers[1]["id"], json!(7));
    let (status, said) = run.end();
    assert_eq!(status, Some(1));
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: stdin: 6 of 8 lines got an error") && last.contains("line 1"), "{said}");
}

/// Twenty thousand at once, read while they are written: in order, and the vectors of a file.
#[test]
fn many_lines() {
    let (tiny, dir) = (Tiny::new(), folder());
    let texts: Vec<String> = (0..20_000).map(|i| format!("text {}", i % 977)).collect();
    let path = dir.path().join("many.txt");
    fs::write(&path, texts.join("\n")).unwrap();
    let want = vectors(&["-m", tiny.path(), "-i", str(&path)]);
    let mut run = Running::start(&["-m", tiny.path(), "--quiet"]);
    let mut stdin = run.stdin.take().unwrap();
    let lines: String =
        texts.iter().enumerate().map(|(i, text)| format!("{}\n", json!({"text": text, "id": i}))).collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    for (i, row) in want.chunks(32).enumerate() {
        let answer = run.answer();
        assert_eq!((&answer["index"], &answer["id"]), (&json!(i), &json!(i)));
        assert!(numbers(&answer) == row, "line {i}");
    }
    writer.join().unwrap();
    assert_eq!(run.end(), (Some(0), String::new()));
}

/// Whoever reads may leave: the next answer finds it out, and that is no error.
#[test]
fn a_peer_that_leaves() {
    let tiny = Tiny::new();
    let mut command = llm2vec(&["encode", "-m", tiny.path(), "-i", "-", "-o", "-", "--quiet"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"index\":0,"));
    drop(stdout);
    stdin.write_all(b"two\n").unwrap();
    // Its input is still open.
    let run = child.wait_with_output().unwrap();
    assert_eq!((run.status.code(), String::from_utf8(run.stderr).unwrap()), (Some(0), String::new()));
    drop(stdin);
}
