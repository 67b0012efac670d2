//! `llm2vec bench encode` and `train` against PyTorch: the same work, in turn, and what a rival that fails leaves of it.

use crate::command::*;
use crate::common;

use llm2vec::bench::record::{Record, Rival};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A bench of a small model on the CPU against this Python; and its record.
fn against(python: &Path, dir: &Path, args: &[&str]) -> (Output, Option<Record>) {
    let json = dir.join("record.json");
    let _ = fs::remove_file(&json);
    let more = ["-q", "--device", "cpu", "--rounds", "2", "--samples", "1", "-o", str(&json)];
    let rival = ["--against", "pytorch", "--python", str(python)];
    let output = llm2vec(&[&["bench"], args, &more, &rival].concat()).output().unwrap();
    let record = fs::read_to_string(&json).ok().map(|text| serde_json::from_str(&text).unwrap());
    (output, record)
}

/// The Python of `$PYTHON`, or python3, if it has what the rival imports.
fn torch() -> Option<PathBuf> {
    let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
    let found = Command::new(&python).args(["-c", "import torch, transformers, peft"]).output();
    found.is_ok_and(|o| o.status.success()).then(|| python.into())
}

#[test]
fn pytorch_does_the_same_work() {
    let Some(python) = torch() else {
        println!("skipped: no torch, transformers and peft for $PYTHON or python3");
        return;
    };
    let (dir, novel5m) = (folder(), common::novel5m());
    let small = ["-m", str(&novel5m), "--tokens", "96", "--length", "16", "--layers", "2"];
    let shape = ["--shape", "S-LLaMA-1.3B", "--layers", "1", "--tokens", "64", "--length", "16"];
    for (what, of) in [
        (&["encode"][..], &small),
        (&["train", "--stage", "simcse"], &small),
        (&["train", "--stage", "supervised", "--recompute"], &small),
        (&["train", "--stage", "mntp"], &shape),
    ] {
        let (output, record) = against(&python, dir.path(), &[what, &of[..]].concat());
        let text = passed(output);
        let row = &record.unwrap().rows[0];
        let Rival::Time(spread) = &row.rivals["eager"] else { panic!("{row:?}") };
        assert!(spread.samples == 2 && row.time.is_some_and(|t| t.samples == 2), "{row:?}");
        assert!(row.peak > Some(1 << 20) && row.rival_peaks["eager"] > 1 << 20, "{row:?}");
        let compared: Vec<&str> = row.apart.keys().map(String::as_str).collect();
        let wanted =
            if what[0] == "encode" { vec!["1 - cosine"] } else { vec!["loss", "norm of the gradient"] };
        assert_eq!(compared, wanted);
        assert!(row.apart.values().all(|&off| off < 1e-4), "{row:?}");
        assert!(text.contains("PyTorch eager") && text.contains("apart: "), "{text}");
    }
}

/// Rivals that answer as `benches/pytorch/train.py` does; the protocol without PyTorch.
#[cfg(unix)]
#[test]
fn a_rival_that_fails_is_a_row() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, novel5m) = (folder(), common::novel5m());
    let args = ["train", "-m", str(&novel5m), "--tokens", "64", "--length", "16", "--layers", "1"];
    let run = |orders: &str, more: &[&str]| {
        let path = dir.path().join("rival");
        let script =
            format!("#!/bin/sh\nread s; echo '{{\"name\": \"Rival 1\"}}'; while read o; do {orders}\ndone\n");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        against(&path, dir.path(), &[&args, more].concat())
    };
    let note = |record: Option<Record>, way: &str| match record.unwrap().rows[0].rivals.remove(way) {
        Some(Rival::Note(why)) => why,
        other => panic!("{other:?}"),
    };
    let full = r#"case $o in *check*) echo '{"error": "out of memory"}' ;; *) echo '{"eager": "out of memory (9.0 GiB were taken)"}' ;; esac"#;
    let svg = dir.path().join("a.svg");
    let (output, record) = run(full, &["--plot", str(&svg)]);
    let text = passed(output);
    let drawn = fs::read_to_string(&svg).unwrap();
    for words in [
        "tokens per second",
        "simcse, 4 texts of 16 tokens: llm2vec",
        "PyTorch eager",
        "out of memory (9.0 GiB",
    ] {
        assert!(drawn.contains(words), "{words}: {drawn}");
    }
    assert!(text.contains("llm2vec") && text.contains("out of memory (9.0 GiB were taken)"), "{text}");
    assert_eq!(note(record, "eager"), "out of memory (9.0 GiB were taken)");
    // One way that hangs, beside one that does not; each is a process.
    let hangs = r#"case $s in *'"compile":true'*) exec sleep 60 ;; esac
case $o in *check*) echo '{"error": "not now"}' ;; *) echo '{"eager": {"seconds": [0.5], "peak": 1073741824}}' ;; esac"#;
    let (output, record) = run(hangs, &["--compile", "--patience", "1"]);
    let (text, record) = (passed(output), record.unwrap());
    assert!(text.contains("1.0 GiB") && text.contains("has not answered for 1 s (--patience)"), "{text}");
    assert!(matches!(&record.rows[0].rivals["eager"], Rival::Time(t) if t.samples == 2), "{record:?}");
    assert_eq!(record.rows[0].time.map(|t| t.samples), Some(2));
    assert!(note(Some(record), "compile").contains("has not answered"));
    // Zeros for loss and gradient are not what ours are.
    let wrong = r#"f=${o#*:\"}; f=${f%%\"*}
case $o in *check*) head -c 8 /dev/zero > "$f"; echo '{}' ;; *) echo '{"eager": {"seconds": [0.5]}}' ;; esac"#;
    let (output, record) = run(wrong, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("not the same work: loss"), "{said}");
    assert!(record.unwrap().rows[0].failed);
    let (output, _) = against(&dir.path().join("nobody"), dir.path(), &args);
    failed(output, 1, &["cannot be started", "--python NAME"]);
}

/// A picture names what it shows, without colours to be looked up.
#[test]
fn a_plot_names_every_row() {
    let dir = folder();
    let svg = dir.path().join("a.svg");
    let ops = ["bench", "ops", "-q", "--device", "cpu", "--samples", "1", "--filter", "lora_linear_fwd N=65"];
    let plot = |more: &[&str]| llm2vec(&[&ops[..], &["--plot", str(&svg)], more].concat());
    good(plot(&["--rounds", "1"]));
    let drawn = fs::read_to_string(&svg).unwrap();
    let rows = ["K=48 M=40", "K=40 M=100 R=16 rows=[60, 10, 30] drop"]
        .map(|sizes| format!("lora_linear_fwd N=65 {sizes}"));
    let names = rows.each_ref().map(String::as_str);
    let roofline = ["roofline: both bounds", "FLOP per byte", "TFLOP/s", "copy ", "product "];
    for words in names.iter().chain(&roofline).chain(&["share of the roof", "cpu, f32"]) {
        assert!(drawn.contains(words), "{words}: {drawn}");
    }
    // Nothing was timed.
    let _ = fs::remove_file(&svg);
    let untimed = plot(&["--rounds", "0"]).output().unwrap();
    assert!(untimed.status.code() == Some(1) && !svg.exists());
    assert!(String::from_utf8_lossy(&untimed.stderr).contains("there is nothing to draw"), "{untimed:?}");
    let refused = llm2vec(&["bench", "ops", "--plot", "a.png"]).output().unwrap();
    failed(refused, 2, &["--plot a.png: expected a name that ends in .svg"]);
}
