//! What is said on stderr is one line that a terminal shows as it is, whatever files are called and hold.

use super::*;

/// Colours, a title for the window, a bell, a deletion, the other direction of writing, the end of a line.
const HOSTILE: &str = "a\u{1b}[31m\u{1b}]0;x\u{7}\u{7f}\u{9b}b\u{202e}txt\u{2066}\n\r\tc\u{feff}";

/// The one error line of a run that fails.
#[track_caller]
fn line_of(args: &[&str]) -> String {
    let run = llm2vec(args).output().unwrap();
    let line = String::from_utf8(run.stderr.clone()).unwrap();
    failed(run, 1, &[]);
    let line = line.strip_suffix('\n').unwrap();
    // Before it, what was decided about the model.
    let line = line.lines().find(|l| !l.starts_with("attention: ")).unwrap_or_default().to_string();
    assert!(line.starts_with("error: "), "{line}");
    let raw: Vec<char> = line.chars().filter(|c| c.is_control() || HOSTILE[1..].contains(*c)).collect();
    assert!(raw.iter().all(|c| c.is_ascii() && !c.is_control()), "{raw:?} in {line:?}");
    line
}

#[cfg(unix)]
#[test]
fn names_of_files() {
    let (tiny, dir) = (Tiny::new(), folder());
    let missing = dir.path().join(HOSTILE);
    let line = line_of(&["encode", "-m", tiny.path(), "-i", str(&missing), "-o", "-"]);
    for word in
        ["a\\u{1b}[31m\\u{1b}]0;x\\u{7}\\u{7f}\\u{9b}b\\u{202e}txt\\u{2066}  \\tc\\u{feff}", "No such file"]
    {
        assert!(line.contains(word), "{word} is not in: {line}");
    }
    line_of(&["encode", "-m", str(&missing), "-i", prose(), "-o", "-"]);
    let folder_missing = missing.join("v.npy");
    line_of(&["encode", "-m", tiny.path(), "-i", prose(), "-o", str(&folder_missing)]);
    // A name in Greek and one with an accent are what they are.
    let greek = dir.path().join("κείμενα é.txt");
    let line = line_of(&["encode", "-m", tiny.path(), "-i", str(&greek), "-o", "-"]);
    assert!(line.contains("κείμενα é.txt"), "{line}");
}

#[test]
fn contents_of_files() {
    let tiny = Tiny::new();
    let texts = tiny.file("texts.jsonl");
    fs::write(&texts, json!({"text": "one", HOSTILE: 1, "instruction": {}}).to_string()).unwrap();
    line_of(&["encode", "-m", tiny.path(), "-i", str(&texts), "-o", "-"]);
    let mut config = tiny.config.clone();
    for long in [HOSTILE.to_string(), HOSTILE.repeat(5000), "é".repeat(100_000)] {
        config["model_type"] = json!(long);
        config["architectures"] = json!([long]);
        fs::write(tiny.file("config.json"), config.to_string()).unwrap();
        let line = line_of(&["encode", "-m", tiny.path(), "-i", prose(), "-o", "-"]);
        assert!(line.contains("config.json") || line.contains("é") || line.contains("31m"), "{line}");
        assert!(line.chars().count() < 2100, "{} characters", line.chars().count());
        assert_eq!(line.contains("characters left out"), long.len() > 1000, "{line}");
    }
}

/// A panic of the tokenizers library is an error like others, also where backtraces of bugs are asked for.
#[test]
fn a_panic_that_is_an_error() {
    let tiny = Tiny::new();
    let path = tiny.file("tokenizer.json");
    let whole = hf::read_json(&path).unwrap();
    for (at, value) in
        [("/post_processor/special_tokens", json!({})), ("/model/continuing_subword_prefix", json!("abc"))]
    {
        let mut broken = whole.clone();
        *broken.pointer_mut(at).unwrap() = value;
        fs::write(&path, broken.to_string()).unwrap();
        let mut command = llm2vec(&["encode", "-m", tiny.path(), "-i", prose(), "-o", "-"]);
        let run = command.env("RUST_BACKTRACE", "1").output().unwrap();
        let lines =
            run.stderr.split(|b| *b == b'\n').filter(|l| !l.is_empty() && !l.starts_with(b"attention: "));
        assert_eq!(lines.count(), 1);
        failed(run, 1, &["tokenizer.json"]);
    }
}
