//! `llm2vec eval suite`: killed and resumed against a straight run, against `eval TYPE`, and what is refused; tests/interop.py
//! has mteb read the results.

use crate::command::{Tiny, failed, folder, good, llm2vec, names};
use crate::common::here;
use llm2vec::eval::suite::{Kind, Set, paper15};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A tiny model and a set of six types, some of which are the paper's.
struct Place {
    tiny: Tiny,
    dir: TempDir,
}

const TASKS: [&str; 7] = ["scifact", "lines", "banking77", "halves", "sick-r.test", "few", "echo"];

impl Place {
    fn new() -> Place {
        let place = Place { tiny: Tiny::new(), dir: folder() };
        let lines = fs::read_to_string(here("tests/texts/sentences.txt")).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        let rows = |row: &dyn Fn(usize, &str) -> Value, count: usize| -> String {
            lines.iter().take(count).enumerate().map(|(i, line)| row(i, line).to_string() + "\n").collect()
        };
        let half = |line: &str| line.split_at(line.len() / 2).0.to_string();
        let labelled = |i: usize, line: &str| json!({ "text": line, "label": i % 2 });
        place.write(
            "data/retrieval/scifact/corpus.jsonl",
            &rows(&|i, t| json!({ "_id": i.to_string(), "text": t }), 8),
        );
        place.write(
            "data/retrieval/scifact/queries.jsonl",
            &rows(&|i, t| json!({ "_id": i.to_string(), "text": half(t) }), 4),
        );
        let qrels: String = (0..4).map(|i| format!("{i}\t{i}\t1\n")).collect();
        place.write("data/retrieval/scifact/qrels/test.tsv", &format!("query-id\tcorpus-id\tscore\n{qrels}"));
        place.write("data/lines/test.jsonl", &rows(&labelled, 12));
        for part in ["train", "test"] {
            place.write(&format!("data/banking77/{part}.jsonl"), &rows(&labelled, 18));
        }
        let pair = |i: usize, line: &str| json!({ "text1": line, "text2": half(line), "label": i % 2 });
        place.write("data/halves/test.jsonl", &rows(&pair, 10));
        // The last task, and long enough to be killed in it.
        let echo = |i: usize| {
            let line = lines[i % lines.len()];
            json!({ "source": format!("{i} {line}"), "target": format!("{i} {}", half(line)) }).to_string()
                + "\n"
        };
        place.write("data/echo/test.jsonl", &(0..1500).map(echo).collect::<String>());
        let sts = fs::read_to_string(here("tests/texts/sts.tsv")).unwrap();
        let some: String = sts.split_inclusive('\n').take(13).collect();
        place.write("data/sts/few.tsv", &some);
        place.write("data/sts/sick-r.test.tsv", &sts);
        place
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn run(&self, out: &str, more: &[&str]) -> Command {
        let own = ["eval", "suite", "-m", self.tiny.path(), "--data", "data", "-o", out];
        let mut command = llm2vec(&[&own[..], more].concat());
        command.current_dir(self.dir.path());
        command
    }

    /// Every file of a folder, without what is of the clock.
    fn files(&self, out: &str) -> BTreeMap<String, Value> {
        let dir = self.dir.path().join(out);
        let json = |name: String| {
            let mut json = self.json(&format!("{out}/{name}"));
            json.as_object_mut().unwrap().remove("evaluation_time");
            (name, json)
        };
        names(&dir).into_iter().filter(|name| name.ends_with(".json")).map(json).collect()
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&fs::read(self.dir.path().join(path)).unwrap()).unwrap()
    }
}

fn written(out: &Path) -> usize {
    let there = |name: &&String| name.ends_with(".json") && !name.starts_with('.');
    if out.exists() { names(out).iter().filter(there).count() } else { 0 }
}

#[test]
fn killed_and_resumed_it_is_a_straight_run_and_eval_agrees() {
    let place = Place::new();
    let straight = good(place.run("straight", &[]));
    let out = place.dir.path().join("out");
    for far in [1, 4] {
        let mut child = place.run("out", &["-q"]).spawn().unwrap();
        let begun = Instant::now();
        while written(&out) < far {
            assert!(begun.elapsed() < Duration::from_secs(120), "it never came so far");
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        let killed = child.wait().unwrap().signal() == Some(9);
        assert!(killed && written(&out) < TASKS.len(), "it ended before it was killed");
    }
    let before: Vec<_> = names(&out);
    let resumed = place.run("out", &[]).output().unwrap();
    let stderr = String::from_utf8(resumed.stderr).unwrap();
    assert_eq!(String::from_utf8(resumed.stdout).unwrap(), straight, "{stderr}");
    assert!(
        stderr.contains(" of 7 tasks are in out already") && stderr.contains("[7/7] bitext/echo; about"),
        "{stderr}"
    );
    assert!(before.iter().filter(|n| n.ends_with(".json") && !n.starts_with('.')).count() >= 4);
    assert_eq!(place.files("out"), place.files("straight"));
    assert_eq!(place.files("out").len(), TASKS.len() + 1);
    assert!(
        names(&out).iter().all(|name| name.ends_with(".json") || name == ".lock" || name.contains("lock")),
        "{:?}",
        names(&out)
    );
    // Once more: no model is loaded.
    let again = place.run("out", &[]).output().unwrap();
    assert!(!String::from_utf8(again.stderr).unwrap().contains("attention:"));

    agrees_with_eval(&place);
    averages(&place, &straight);
    refuses_other_settings(&place);
}

fn agrees_with_eval(place: &Place) {
    for (kind, data, task) in [
        ("retrieval", "retrieval/scifact", "scifact"),
        ("clustering", "lines", "lines"),
        ("classification", "banking77", "banking77"),
        ("pairs", "halves", "halves"),
        ("sts", "sts/sick-r.test.tsv", "sick-r.test"),
        ("bitext", "echo", "echo"),
    ] {
        let data = format!("data/{data}");
        let own = ["eval", kind, "-q", "-m", place.tiny.path(), "--data", &data, "-o", "eval.json"];
        let mut command = llm2vec(&own);
        command.current_dir(place.dir.path());
        good(command);
        let wanted = &place.json("eval.json")["scores"];
        let ours = place.json(&format!("out/{task}.json"));
        let ours = &ours["scores"]["test"][0];
        assert_eq!(ours["languages"], json!(["und-Zzzz"]), "mteb has no score of a task without a language");
        assert!(wanted["main_score"].is_f64(), "{kind}: {wanted}");
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(&ours[name], value, "{kind}: {name}");
        }
    }
}

fn averages(place: &Place, table: &str) {
    let summary = place.json("out/suite.json");
    let score = |task: &str| {
        place.json(&format!("out/{task}.json"))["scores"]["test"][0]["main_score"].as_f64().unwrap()
    };
    let of = |name: &str| {
        let list = summary["averages"].as_array().unwrap();
        list.iter().find(|a| a["of"] == name).unwrap()["main_score"].as_f64().unwrap()
    };
    assert!((of("sts") - (score("few") + score("sick-r.test")) / 2.0).abs() < 1e-12);
    assert!((of("all") - TASKS.iter().map(|t| score(t)).sum::<f64>() / 7.0).abs() < 1e-12);
    let line = table.lines().find(|line| line.starts_with("all ")).unwrap();
    assert!(line.ends_with(&format!("{:.2}", 100.0 * of("all"))), "{line}");
}

fn refuses_other_settings(place: &Place) {
    let before = place.files("out");
    for (flags, words) in [
        (&["--pooling", "last"][..], &["other settings", "pooling_mode"][..]),
        (&["--attention", "causal"], &["attention \"full\" there, \"causal\" here"]),
        (&["--layer", "1"], &["layer null there, 1 here"]),
        (&["--instructions", "paper"], &["scifact.json", "instruction"]),
        (&["--empty", "zero"], &["empty"]),
        (&["--dtype", "bf16"], &["device"]),
    ] {
        failed(place.run("out", flags).output().unwrap(), 2, words);
    }
    place.write("data/halves/test.jsonl", "{\"text1\": \"a\", \"text2\": \"b\", \"label\": 1}\n");
    failed(place.run("out", &[]).output().unwrap(), 2, &["halves.json", "data"]);
    // What does not touch that task goes on.
    good(place.run("out", &["--tasks", "few,STS/sick-r.test"]));
    place.write("out/echo.json", "{}");
    failed(
        place.run("out", &["--tasks", "echo"]).output().unwrap(),
        2,
        &["echo.json", "no `eval suite` wrote"],
    );
    assert_eq!(before["few.json"], place.files("out")["few.json"]);
}

#[test]
fn the_papers_tasks_by_their_names() {
    let place = Place::new();
    let run = place.run("out", &["--subset", "paper15", "--instructions", "paper"]).output().unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert!(
        run.status.success() && stderr.contains("12 of the paper's 15 tasks are not in the data: ArguAna, "),
        "{stderr}"
    );
    let files: Vec<String> = place.files("out").into_keys().collect();
    assert_eq!(files, ["Banking77Classification.json", "SICK-R.json", "SciFact.json", "suite.json"]);
    let json = place.json("out/SICK-R.json");
    assert_eq!(json["task_name"], "SICK-R");
    assert_eq!(json["llm2vec"]["settings"]["instruction"]["query"], "Retrieve semantically similar text:");
    assert_eq!(place.json("out/suite.json")["missing"].as_array().unwrap().len(), 12);

    // With the instruction of `eval --task`.
    let own = [
        "eval",
        "sts",
        "-q",
        "-m",
        place.tiny.path(),
        "--data",
        "data/sts/sick-r.test.tsv",
        "--task",
        "SICK-R",
    ];
    let mut command = llm2vec(&[&own[..], &["-o", "eval.json"]].concat());
    command.current_dir(place.dir.path());
    good(command);
    assert_eq!(json["scores"]["test"][0]["main_score"], place.json("eval.json")["scores"]["main_score"]);

    let set = |kind, name: &str| Set { kind, name: name.into(), path: name.into() };
    // A set of another type, and another part of the same one, are others.
    let sets = [set(Kind::Sts, "scifact"), set(Kind::Sts, "sick-r.train"), set(Kind::Sts, "stsb.test")];
    let found: Vec<&str> =
        paper15(&sets).into_iter().filter(|(_, set)| set.is_some()).map(|(n, _)| n).collect();
    assert_eq!(found, ["STSBenchmark"]);
}

#[test]
fn bad_suites_are_one_line() {
    let place = Place::new();
    place.write("none/notes.txt", "");
    for (flags, status, words) in [
        (&["--tasks", "lost"][..], 2, &["--tasks: no set is called lost", "retrieval/scifact"][..]),
        (&["--data", "none"], 1, &["none: holds no set of any type"]),
        (&["--data", "nowhere"], 1, &["nowhere", "No such file"]),
        (&["--data", "data/sts/few.tsv", "--subset", "paper15"], 1, &["none of the paper's 15 tasks"]),
        (&["--data", "data/sts/few.tsv,data/sts"], 2, &["are both few"]),
        (&["--instructions", "lost.json"], 1, &["lost.json"]),
        (&["--attention", "window"], 2, &["sliding_window"]),
    ] {
        let own = ["eval", "suite", "-m", place.tiny.path(), "-o", "out"];
        let data: &[&str] = if flags.contains(&"--data") { &[] } else { &["--data", "data"] };
        let mut command = llm2vec(&[&own[..], data, flags].concat());
        command.current_dir(place.dir.path());
        failed(command.output().unwrap(), status, words);
    }
    assert!(!place.dir.path().join("out").exists());
    failed(place.run(place.tiny.path(), &[]).output().unwrap(), 2, &["holds a model"]);
}
