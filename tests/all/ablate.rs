//! `llm2vec ablate`: what it takes for a set, a whole run against one that was killed, and against `eval`.

use crate::command::{Tiny, failed, folder, good, llm2vec, names, str};
use crate::common::here;
use flate2::read::GzDecoder;
use llm2vec::eval::suite::{Kind, sets};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SEEDS: [u64; 2] = [1, 2];
/// Uni and Bi once, five trained variants for each seed; three poolings with two tasks, and words with two labels.
const SCORES: usize = (2 + 5 * SEEDS.len()) * (3 * 2 + 2);

/// A tiny model, and little data for every stage and two tasks.
struct Place {
    tiny: Tiny,
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { tiny: Tiny::new(), dir: folder() };
        let mut text = String::new();
        for (from, to) in [("persuasion.train.txt.gz", "text.txt"), ("triplets.jsonl.gz", "triplets.jsonl")] {
            text.clear();
            let file = fs::File::open(here("tests/texts").join(from)).unwrap();
            GzDecoder::new(file).read_to_string(&mut text).unwrap();
            place.write(to, &lines(&text, 40));
        }
        place.write(
            "tasks/sts/few.tsv",
            &lines(&fs::read_to_string(here("tests/texts/sts.tsv")).unwrap(), 13),
        );
        let prose = fs::read_to_string(here("tests/texts/sentences.txt")).unwrap();
        let pair = |(i, line): (usize, &str)| {
            format!(
                "{{\"text1\": {line:?}, \"text2\": {:?}, \"label\": {}}}\n",
                &line[..line.len() / 2],
                i % 2
            )
        };
        let pairs: String = prose.lines().take(10).enumerate().map(pair).collect();
        place.write("tasks/pairs/halves/test.jsonl", &pairs);
        let words: Vec<String> = prose.lines().take(18).map(tagged).collect();
        place.write("words/few.train.jsonl", &words[..12].concat());
        place.write("words/few.test.jsonl", &words[12..].concat());
        place.write("mntp.json", r#"{"save_steps": 2, "line_by_line": true, "max_seq_length": 24}"#);
        place
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The command with little training; paths are relative, so that two runs in two folders write the same.
    fn run(&self, out: &str, more: &[&str]) -> Command {
        let data =
            ["--mntp", "text.txt", "--simcse", "text.txt", "--supervised", "triplets.jsonl", "--quiet"];
        let steps = ["--mntp-config", "mntp.json", "--mntp-steps", "6", "--mntp-batch", "3"];
        let simcse = ["--simcse-steps", "3", "--simcse-batch", "4", "--simcse-max-length", "16"];
        // At a rate that sets the seeds apart within three steps of a warm-up.
        let supervised = [
            "--supervised-lr",
            "0.5",
            "--supervised-steps",
            "3",
            "--supervised-batch",
            "4",
            "--supervised-max-length",
            "16",
        ];
        let words = ["--words", "words/few:chunk", "words/few:upos", "--words-lr", "0.05", "--seeds", "1,2"];
        self.alone(out, &[&data[..], &steps, &simcse, &supervised, &words, more].concat())
    }

    /// The command with nothing but model and tasks.
    fn alone(&self, out: &str, more: &[&str]) -> Command {
        let own = ["ablate", "-m", self.tiny.path(), "--tasks", "tasks", "-o", out];
        let mut command = llm2vec(&[&own[..], more].concat());
        command.current_dir(self.dir.path());
        command
    }

    /// Every file below a folder, logs without what is of the clock.
    fn files(&self, out: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        walk(&self.dir.path().join(out), "", &mut files);
        files
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&fs::read(self.dir.path().join(path)).unwrap()).unwrap()
    }
}

fn lines(text: &str, count: usize) -> String {
    text.split_inclusive('\n').take(count).collect()
}

/// A line's words with tags that their letters give: spans of capitals, and what they begin with.
fn tagged(line: &str) -> String {
    let tokens: Vec<&str> = line.split_whitespace().collect();
    let capital = |i: usize| tokens[i].starts_with(char::is_uppercase);
    let chunk = |i: usize| match i {
        1.. if capital(i) && capital(i - 1) => "I-NP",
        _ if capital(i) => "B-NP",
        _ => "O",
    };
    let upos = |token: &&str| match token.to_lowercase().chars().next() {
        Some('a' | 'e' | 'i' | 'o' | 'u') => "VOWEL",
        Some(letter) if letter.is_alphabetic() => "CONSONANT",
        _ => "OTHER",
    };
    let chunks: Vec<&str> = (0..tokens.len()).map(chunk).collect();
    let upos: Vec<&str> = tokens.iter().map(upos).collect();
    serde_json::json!({ "tokens": tokens, "chunk": chunks, "upos": upos }).to_string() + "\n"
}

fn walk(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.map(|e| e.unwrap().path()) {
        let name = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            walk(&path, &name, files);
        } else if name.ends_with("/log.jsonl") {
            let line = |line: &str| {
                let mut json: Value = serde_json::from_str(line).unwrap();
                for key in ["tokens_per_second", "memory_mib"] {
                    json.as_object_mut().unwrap().remove(key);
                }
                json.to_string() + "\n"
            };
            let text = fs::read_to_string(&path).unwrap();
            files.insert(name, text.lines().map(line).collect::<String>().into_bytes());
        } else if let Ok(bytes) = fs::read(&path) {
            files.insert(name, bytes);
        }
    }
}

/// Starts the command and kills it as soon as the folder is so far.
fn killed(place: &Place, far: impl Fn(&Path) -> bool) {
    let mut child = place.run("out", &[]).spawn().unwrap();
    let begun = Instant::now();
    while !far(&place.dir.path().join("out")) {
        assert!(begun.elapsed() < Duration::from_secs(300), "it never came so far");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "it ended before it was killed");
}

fn scores(out: &Path) -> usize {
    let mut files = BTreeMap::new();
    walk(&out.join("scores"), "", &mut files);
    files.len()
}

#[test]
fn killed_and_resumed_it_is_a_straight_run_and_eval_agrees() {
    let place = Place::new();
    let table = good(place.run("out", &[]));
    let straight = place.files("out");
    // Configurations name their folder, so the other run has the same.
    fs::remove_dir_all(place.dir.path().join("out")).unwrap();
    killed(&place, |out| out.join("seed-1/mntp/checkpoint-2").exists());
    killed(&place, |out| out.join("seed-1/mntp.json").exists());
    killed(&place, |out| out.join("seed-1/bi-simcse").exists());
    killed(&place, |out| scores(out) > SCORES * 2 / 3);
    assert_eq!(good(place.run("out", &[])), table);
    let resumed = place.files("out");
    assert!(straight.keys().eq(resumed.keys()), "{:?}\n{:?}", straight.keys(), resumed.keys());
    for (name, bytes) in &straight {
        assert!(bytes == &resumed[name], "{name} differs");
    }
    assert_eq!(scores(&place.dir.path().join("out")), SCORES);

    // Once more, when all is there: nothing changes.
    assert_eq!(good(place.run("out", &[])), table);
    assert!(straight == place.files("out"));

    agrees_with_eval(&place);
    words_agree_with_eval(&place);
    sums_up(&place, &table);
    refuses_other_flags(&place);
}

/// Figures are those of `eval` with the same adapters, attention and pooling, bit for bit.
fn agrees_with_eval(place: &Place) {
    let two = ["--adapter", "out/seed-2/mntp", "--adapter", "out/seed-2/mntp-simcse"];
    let uni = ["--attention", "causal", "--adapter", "out/seed-1/uni-simcse"];
    for (kind, data, flags, folder) in [
        ("sts", "few.tsv", &two[..], "bi-mntp-simcse/seed-2/weighted-mean/sts.few"),
        ("pairs", "halves", &two, "bi-mntp-simcse/seed-2/mean/pairs.halves"),
        ("pairs", "halves", &uni, "uni-simcse/seed-1/eos/pairs.halves"),
        ("sts", "few.tsv", &["--attention", "causal"], "uni/untrained/mean/sts.few"),
        ("sts", "few.tsv", &["--attention", "full"], "bi/untrained/eos/sts.few"),
    ] {
        let data = format!("tasks/{kind}/{data}");
        let pooling = folder.split('/').nth(2).unwrap();
        let own = ["eval", kind, "-q", "-m", place.tiny.path(), "--data", &data, "--pooling", pooling];
        let mut command = llm2vec(&[&own[..], flags, &["-o", "eval.json"]].concat());
        good({
            command.current_dir(place.dir.path());
            command
        });
        let ours = place.json(&format!("out/scores/{folder}.json"));
        assert_eq!(ours["scores"], place.json("eval.json")["scores"], "{folder}");
    }
}

/// Likewise of words, read before each word where MNTP is in the stack.
fn words_agree_with_eval(place: &Place) {
    let two = ["--adapter", "out/seed-2/mntp", "--adapter", "out/seed-2/mntp-simcse"];
    for (flags, folder, label, main, position) in [
        (&two[..], "bi-mntp-simcse/seed-2", "chunk", "f1", "before"),
        (&two, "bi-mntp-simcse/seed-2", "upos", "accuracy", "before"),
        (&["--adapter", "out/seed-1/bi-simcse"], "bi-simcse/seed-1", "upos", "accuracy", "same"),
        (&["--attention", "causal"], "uni/untrained", "chunk", "f1", "same"),
    ] {
        let own = ["eval", "words", "-q", "-m", place.tiny.path(), "--data", "words/few", "--label", label];
        let mut command = llm2vec(&[&own[..], flags, &["--lr", "0.05", "-o", "eval.json"]].concat());
        command.current_dir(place.dir.path());
        good(command);
        let (theirs, file) = (place.json("eval.json"), format!("out/scores/{folder}/words/few.{label}.json"));
        let (ours, test) = (place.json(&file), &theirs["report"]["layers"][0]["test"]);
        assert_eq!((&theirs["label_position"], &ours["main"]), (&position.into(), &main.into()), "{file}");
        assert_eq!(
            (&ours["scores"]["main_score"], &ours["scores"]["recall"]),
            (&test[main], &test["recall"])
        );
        // A probe that learnt nothing would agree too.
        assert!(test[main].as_f64().unwrap() > 0.0, "{file}: {test}");
    }
}

/// Means and deviations, of what stands in the files of the scores.
fn sums_up(place: &Place, table: &str) {
    let results = place.json("out/results.json");
    let rows = results["sections"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 7 * 3);
    let score = |folder: &str, seed: &str, task: &str| {
        let json = place.json(&format!("out/scores/{folder}/{seed}/mean/{task}.json"));
        json["scores"]["main_score"].as_f64().unwrap()
    };
    let find =
        |variant: &str| rows.iter().find(|r| r["variant"] == variant && r["pooling"] == "mean").unwrap();
    let seeds = ["seed-1", "seed-2"].map(|seed| {
        ["sts.few", "pairs.halves"].map(|task| score("bi-mntp-supervised", seed, task)).iter().sum::<f64>()
            / 2.0
    });
    let (mean, row) = ((seeds[0] + seeds[1]) / 2.0, &find("Bi+MNTP+supervised")["average"]);
    assert!((row["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    // Of two values the sample standard deviation is their distance over the root of 2.
    let std = (seeds[0] - seeds[1]).abs() / 2f64.sqrt();
    assert!((row["std"].as_f64().unwrap() - std).abs() < 1e-12 && std > 0.0);
    assert!(find("Bi")["average"]["std"].is_null());
    let line = table.lines().find(|l| l.starts_with("| Bi+MNTP+supervised |")).unwrap();
    assert!(line.contains(&format!("{:.2} ± {:.2}", 100.0 * mean, 100.0 * std)), "{line}");
    let whole = fs::read_to_string(place.dir.path().join("out/table.md")).unwrap();
    let (sentences, words) = table.split_once("\n### words").unwrap();
    assert!(whole.starts_with(sentences.trim_end()) && whole.contains("sts/few"), "{whole}");
    assert!(whole.trim_end().ends_with(words.trim_end()), "{whole}");
    let svg = fs::read_to_string(place.dir.path().join("out/plot.svg")).unwrap();
    for name in ["Bi+MNTP+SimCSE", "weighted-mean", "average", "pairs"] {
        assert!(svg.contains(name), "{name} is not in the picture");
    }

    // Of words a row for each variant, and a column for each task with its measure.
    let words = &results["sections"][1];
    assert_eq!((&words["name"], words["rows"].as_array().unwrap().len()), (&"words".into(), 7));
    let simcse = words["rows"].as_array().unwrap().iter().find(|r| r["variant"] == "Bi+SimCSE").unwrap();
    let seeds = ["seed-1", "seed-2"].map(|seed| {
        let json = place.json(&format!("out/scores/bi-simcse/{seed}/words/few.upos.json"));
        json["scores"]["accuracy"].as_f64().unwrap()
    });
    let mean = simcse["tasks"]["few/upos"]["mean"].as_f64().unwrap();
    assert!((mean - (seeds[0] + seeds[1]) / 2.0).abs() < 1e-12 && simcse["average"].is_null());
    let svg = fs::read_to_string(place.dir.path().join("out/words.svg")).unwrap();
    for head in ["few/chunk, F1", "few/upos, accuracy"] {
        assert!(table.contains(head) && whole.contains(head) && svg.contains(head), "{head}\n{table}");
    }
}

fn refuses_other_flags(place: &Place) {
    let before = place.files("out");
    for (flags, words) in [
        (&["--pooling", "mean"][..], &["--pooling", "weighted-mean"][..]),
        (&["--mntp-validation", "text.txt"], &["--mntp-validation null there"]),
        (&["--simcse-lr", "0.1"], &["--simcse-lr 0.0003 there, 0.1 here"]),
        (&["--supervised-config", "mntp.json"], &["--supervised-config: line_by_line"]),
        (&["--dtype", "bf16"], &["--dtype"]),
        (&["--kernels", "portable"], &["--kernels absent there"]),
        (&["--label-position", "same"], &["--label-position absent there"]),
        (&["--words-steps", "5"], &["--words-steps 1500 there, 5 here"]),
    ] {
        failed(place.run("out", flags).output().unwrap(), 2, &[&["other flags"], words].concat());
    }
    assert!(before == place.files("out"));
    fs::create_dir(place.dir.path().join("mine")).unwrap();
    place.write("mine/notes.txt", "");
    failed(place.run("mine", &[]).output().unwrap(), 2, &["holds notes.txt", "no ablation.json"]);
    assert_eq!(names(&place.dir.path().join("mine")), ["notes.txt"]);
}

/// Where a word is read is not by the stack when it is said.
fn words_are_read_where_asked(place: &Place) {
    let scores = |position: &str| {
        let out = format!("words-{position}");
        let own =
            ["ablate", "-q", "-m", place.tiny.path(), "--words", "words/few:upos", "--words-lr", "0.05"];
        let mut command = llm2vec(&[&own[..], &["--label-position", position, "-o", &out]].concat());
        command.current_dir(place.dir.path());
        good(command);
        let own = ["eval", "words", "-q", "-m", place.tiny.path(), "--data", "words/few", "--label", "upos"];
        let asked = ["--attention", "full", "--lr", "0.05", "--label-position", position, "-o", "eval.json"];
        let mut command = llm2vec(&[&own[..], &asked].concat());
        command.current_dir(place.dir.path());
        good(command);
        let ours = place.json(&format!("{out}/scores/bi/untrained/words/few.upos.json"));
        let test = &place.json("eval.json")["report"]["layers"][0]["test"];
        assert_eq!(ours["scores"]["main_score"], test["accuracy"], "{position}");
        assert_eq!(place.json(&format!("{out}/ablation.json"))["--label-position"], position);
        ours["scores"].clone()
    };
    assert_ne!(scores("before"), scores("same"));
}

/// Without data for training there are the two rows that need none.
#[test]
fn untrained_variants_need_no_data() {
    let place = Place::new();
    let command = place.alone("out", &["--pooling", "mean,last"]);
    let table = good(command);
    assert!(table.contains("| Uni ") && table.contains("| Bi ") && !table.contains("MNTP"), "{table}");
    // By pooling, then by type.
    assert_eq!(table.lines().filter(|line| line.starts_with("| Uni ")).count(), 3, "{table}");
    assert_eq!(scores(&place.dir.path().join("out")), 8);

    // Words alone are a table alone.
    let mut command =
        llm2vec(&["ablate", "-m", place.tiny.path(), "--words", "words/few:upos", "-o", "words-out"]);
    command.current_dir(place.dir.path());
    let table = good(command);
    assert!(table.starts_with("### words") && !table.contains("sentences"), "{table}");
    let out = place.dir.path().join("words-out");
    assert_eq!(scores(&out), 2);
    assert!(out.join("words.svg").exists() && !out.join("plot.svg").exists());
    words_are_read_where_asked(&place);
}

#[test]
fn bad_tasks_are_refused_before_anything_is_made() {
    let place = Place::new();
    fs::create_dir(place.dir.path().join("nothing")).unwrap();
    for (tasks, status, words) in [
        ("nothing", 1, &["nothing: holds no set of any type", "test.jsonl"][..]),
        ("nowhere", 1, &["nowhere", "No such file"]),
        ("text.txt", 1, &["text.txt: line 1: not a JSON object", "sentence1"]),
        ("tasks/sts", 2, &["--tasks", "both sts/few"]),
    ] {
        failed(place.run("out", &["--tasks", tasks]).output().unwrap(), status, words);
    }
    for (flags, words) in [
        (["--seeds", "4,4"], ["--seeds", "4 stands there twice"]),
        (["--mntp-batch", "0"], ["--mntp-batch is 0", "at least 1"]),
        (["--words", "words/few:upos,words/few:upos"], ["--words", "both few/upos"]),
    ] {
        let mut command = place.alone("out", &["--mntp", "text.txt", flags[0], flags[1]]);
        failed(command.output().unwrap(), 2, &words);
    }
    for (words, rate, status, wanted) in [
        ("words/few:xpos", "0.1", 1, ["few.train.jsonl", "there is no label"]),
        ("words/few", "0.1", 1, ["few.train.jsonl", "chunk, upos"]),
        ("words/many:upos", "0.1", 1, ["words/many", "holds no train file"]),
        ("words/few:upos", "nan", 2, ["--words-lr NaN", "from 0 on"]),
    ] {
        let mut command = place.alone("out", &["--words", words, "--words-lr", rate]);
        failed(command.output().unwrap(), status, &wanted);
    }
    failed(place.alone("out", &["--simcse", "lost.txt"]).output().unwrap(), 1, &["lost.txt", "No such file"]);
    assert!(!place.dir.path().join("out").exists());
}

#[test]
fn types_of_sets_by_their_files() {
    let place = Place::new();
    let rows = [
        ("reranking", r#"{"query": "q", "positive": ["p"], "negative": ["n"]}"#),
        ("bitext", r#"{"source": "s", "target": "t"}"#),
        ("summary", r#"{"text": "", "human": ["h"], "machine": ["m"], "relevance": [1]}"#),
        ("clustering", r#"{"text": "t", "label": 1, "set": "s"}"#),
        ("classification", r#"{"text": "t", "label": "l"}"#),
        ("unknown", r#"{"premise": "p"}"#),
    ];
    for (kind, row) in rows {
        // The names of folders say nothing.
        place.write(&format!("tasks/more/{}/test.jsonl", &kind[..4]), row);
    }
    place.write("tasks/more/clas/train.jsonl", "");
    place.write("tasks/more/deep/corpus.jsonl", "");
    place.write("tasks/more/deep/queries.jsonl", "");
    place.write("tasks/more/deep/qrels/test.tsv", "query-id\tcorpus-id\tscore\n");
    place.write("tasks/more/notes.tsv", "a\tb\n");
    let found = sets(&place.dir.path().join("tasks")).unwrap();
    let found: Vec<String> = found.iter().map(|set| set.id()).collect();
    let wanted = [
        "bitext/bite",
        "classification/clas",
        "clustering/clus",
        "retrieval/deep",
        "reranking/rera",
        "summary/summ",
        "pairs/halves",
        "sts/few",
    ];
    assert_eq!(found, wanted);
    let shared = here("../shared/data");
    if !shared.is_dir() {
        println!("skipped: no ../shared");
        return;
    }
    let found = sets(&shared).unwrap();
    let count = |kind| found.iter().filter(|set| set.kind == kind).count();
    let kinds =
        [Kind::Retrieval, Kind::Classification, Kind::Clustering, Kind::Pairs, Kind::Sts, Kind::Bitext];
    assert_eq!(kinds.map(count), [2, 2, 1, 2, 9, 4]);
    assert!(str(&found[0].path).contains("bitext"));
}
