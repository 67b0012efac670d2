//! What a run writes: never over what it reads, never into another's folder, and known to be possible beforehand.

use super::{Place, SMALL};
use crate::command::{Tiny, failed, good, llm2vec, names, str};
use crate::common;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Two runs into one folder: the second says who has it; a killed one has nothing.
#[test]
fn a_folder_that_another_run_has() {
    let place = Place::new();
    let (data, run) = (place.data("simcse"), place.path("run"));
    let long = ["--batch", "4", "--max-length", "24", "--steps", "100000", "--epochs", "100000"];
    let long = [&long[..], &["--save-steps", "1000000"]].concat();
    let mut first = place.train("simcse", &data, &long).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(run.join("log.jsonl")).map_or(0, |text| text.lines().count()) < 3 {
        assert!(Instant::now() < deadline, "no step in a minute");
        sleep(Duration::from_millis(2));
    }
    let who = format!("is being trained into by process {} on ", first.id());
    for flags in [&[][..], &["--resume"], &["--overwrite"]] {
        let output = place.train("simcse", &data, &[&SMALL[..], flags].concat()).output().unwrap();
        failed(output, 2, &[&who, "started ", "another folder"]);
    }
    // Nor do two runs write one log.
    let (other, log) = (place.path("other"), run.join("log.jsonl"));
    let args = ["train", "simcse", "-m", place.tiny.path(), "--data", str(&data), "-o", str(&other)];
    let output = llm2vec(&[&args, &SMALL[..], &["--quiet", "--log", str(&log)]].concat()).output().unwrap();
    failed(output, 2, &["log.jsonl is another run's"]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(names(&run).contains(&".llm2vec.lock".to_string()));
    good(place.train("simcse", &data, &SMALL));
    assert!(place.log().len() == 3 && !names(&run).iter().any(|name| name.starts_with('.')));
}

/// A folder's files, by name, with what is in them.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = names(dir).into_iter().map(|name| (dir.join(&name), name));
    entries
        .flat_map(|(path, name)| match path.is_dir() {
            true => contents(&path).into_iter().map(|(inner, b)| (format!("{name}/{inner}"), b)).collect(),
            false => vec![(name, fs::read(&path).unwrap())],
        })
        .collect()
}

#[test]
#[cfg(unix)]
fn an_input_is_no_output() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let (data, run, below) = (place.data("simcse"), place.path("run"), place.path("below"));
    let flags = [&SMALL[..], &["--save-steps", "1"]].concat();
    good(place.train("simcse", &data, &flags));
    fs::rename(&run, &below).unwrap();
    symlink(&below, place.path("link")).unwrap();
    symlink(below.join("checkpoint-2"), place.path("two")).unwrap();
    fs::hard_link(&data, place.path("hard.jsonl")).unwrap();
    symlink(&data, place.path("soft.svg")).unwrap();
    let config = place.write("config.json", "{}");
    let rows = place.write("rows.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
    let before = contents(place.dir.path());

    let own = |name: &str| str(&place.path(name)).to_string();
    let twisted = format!("{}/../below/.", str(&place.path("below")));
    let checkpoint = own("below/checkpoint-1");
    for (adapter, output, words) in [
        (own("below"), own("below"), "is --adapter itself"),
        (own("below"), own("link"), "is --adapter itself"),
        (twisted, own("link"), "is --adapter itself"),
        (checkpoint, own("below"), "delete or overwrite checkpoint-1"),
        (own("two"), own("link"), "delete or overwrite checkpoint-2"),
    ] {
        for more in [&["--overwrite"][..], &["--overwrite", "--continue"], &["--resume"], &[]] {
            let args = ["train", "simcse", "-m", place.tiny.path(), "--data", str(&data), "--quiet"];
            let named = ["--adapter", &adapter, "-o", &output];
            let run = llm2vec(&[&args, &named[..], &flags, more].concat()).output().unwrap();
            failed(run, 2, &[words]);
        }
    }
    for (flags, words) in [
        (vec!["--log", "train.txt"], vec!["--log", "would overwrite --data"]),
        (vec!["--log", "hard.jsonl"], vec!["--log", "hard.jsonl would overwrite --data"]),
        (vec!["--plot", "soft.svg"], vec!["--plot", "would overwrite --data"]),
        (vec!["--plot", "config.json"], vec!["--plot", "would overwrite --config"]),
        (vec!["--log", "below/adapter_config.json"], vec!["--log", "would overwrite --adapter"]),
        (vec!["--log", "a.svg", "--plot", "a.svg"], vec!["--log and --plot are both"]),
        (vec!["--plot", "run/train_config.json"], vec!["in the way of train_config.json"]),
        (vec!["--tensorboard", "run/checkpoint-3"], vec!["in the way of checkpoint-3"]),
    ] {
        let paths = flags.iter().map(|f| if f.starts_with('-') { f.to_string() } else { own(f) });
        let given: Vec<String> = paths.collect();
        let inputs = ["--adapter", str(&below), "--config", str(&config)];
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        place.refused("simcse", &data, &[&SMALL[..], &inputs, &given].concat(), 2, &words);
    }
    let log = ["--log", &own("rows.jsonl")];
    place.refused(
        "mntp",
        &data,
        &[&SMALL[..], &["--validation", str(&rows)], &log].concat(),
        2,
        &["--validation"],
    );
    let folder = place.path("sets");
    fs::create_dir(&folder).unwrap();
    fs::copy(&data, folder.join("a.txt")).unwrap();
    let log = ["--log", &own("sets/log.jsonl")];
    place.refused("simcse", &folder, &[&SMALL[..], &log].concat(), 2, &["read as a data set of --data"]);
    fs::remove_dir_all(&folder).unwrap();
    assert!(contents(place.dir.path()) == before, "an input was touched");
}

/// The settings that a run has written are its own; a new run does not write over those it is told.
#[test]
fn a_configuration_in_the_runs_own_folder() {
    let place = Place::new();
    let (data, run) = (place.data("simcse"), place.path("run"));
    good(place.train("simcse", &data, &SMALL));
    let before = contents(&run);
    let config = run.join("train_config.json");
    let again = |flag: &str| {
        let args = ["train", "simcse", "--config", str(&config), flag, "--quiet"];
        llm2vec(&args).output().unwrap()
    };
    failed(again("--overwrite"), 2, &["--config", "delete or overwrite train_config.json"]);
    assert_eq!(again("--resume").status.code(), Some(0));
    assert!(contents(&run) == before);
}

/// What cannot be written is known before the first step, and before an old run is deleted.
#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new();
    let data = place.data("simcse");
    let own = |name: &str| str(&place.path(name)).to_string();
    fs::create_dir(place.path("folder")).unwrap();
    place.write("file", "");
    place.write("notes.jsonl", "mine\n");
    good(place.train("simcse", &data, &SMALL));
    let before = contents(&place.path("run"));
    let mut cases = vec![
        (["--plot", "nowhere/a.svg"], vec!["nowhere", "create it first"]),
        (["--plot", "folder"], vec!["is a folder", "file name was wanted"]),
        (["--plot", "file/a.svg"], vec!["file"]),
        (["--log", "nowhere/a.jsonl"], vec!["nowhere", "create it first"]),
        (["--log", "folder"], vec!["is a folder", "file name was wanted"]),
        (["--log", "notes.jsonl"], vec!["notes.jsonl: line 1", "name another"]),
        (["--tensorboard", "file"], vec!["is a file", "a folder was wanted"]),
        (["--tensorboard", "file/events"], vec!["below a file", "a folder was wanted"]),
    ];
    if cfg!(target_os = "linux") {
        // Where even root writes nothing.
        cases.push((["--plot", "/proc/a.svg"], vec!["/proc/a.svg"]));
        cases.push((["--log", "/proc/a.jsonl"], vec!["/proc/a.jsonl"]));
        cases.push((["--tensorboard", "/proc/events"], vec!["/proc/events"]));
    }
    for ([flag, name], words) in cases {
        let path = if name.starts_with('/') { name.to_string() } else { own(name) };
        let flags = [&SMALL[..], &["--overwrite", flag, &path]].concat();
        failed(place.train("simcse", &data, &flags).output().unwrap(), 1, &words);
        assert!(contents(&place.path("run")) == before, "{flag} {name}: the old run was touched");
    }
    // In its own folder, which is not there yet.
    let (fresh, plot) = (place.path("fresh"), place.path("fresh/a.svg"));
    let args = ["train", "simcse", "-m", place.tiny.path(), "--data", str(&data), "-o", str(&fresh)];
    good(llm2vec(&[&args, &SMALL[..], &["--quiet", "--plot", str(&plot)]].concat()));
    assert!(plot.exists());
}

/// The last step's numbers are looked at as any's: what is not finite is not saved.
#[test]
fn an_update_that_is_not_finite_is_not_saved() {
    let place = Place::new();
    for stage in super::STAGES {
        let data = place.data(stage);
        let flags =
            ["--batch", "4", "--max-length", "24", "--warmup", "0", "--lr", "1e38", "--save-steps", "1"];
        let head = if stage == "mntp" { &["--train-head"][..] } else { &[] };
        let words = ["step 1", "not finite", "layer 0", "last checkpoint is kept", "lower learning rate"];
        let run = place.train(stage, &data, &[&flags[..], &["--steps", "1"], head].concat()).output();
        failed(run.unwrap(), 1, &words);
        assert_eq!(names(&place.path("run")), ["log.jsonl", "train_config.json"], "{stage}");
        fs::remove_dir_all(place.path("run")).unwrap();
    }
}

/// A model and data are known by what is in them, whatever their names.
#[test]
fn a_resumed_run_knows_its_inputs_by_content() {
    let place = Place::new();
    let (data, run) = (place.data("mntp"), place.path("run"));
    let valid = place.write("valid.txt", &super::shipped("persuasion.valid.txt.gz", 40));
    let flags = [&SMALL[..], &["--save-steps", "1", "--grouping", "lines", "--resume"]].concat();
    let train = |model: &str, data: &Path, valid: &Path| {
        let own = ["train", "mntp", "-m", model, "--data", str(data), "-o", str(&run), "--quiet"];
        llm2vec(&[&own, &flags[..], &["--validation", str(valid)]].concat())
    };
    let mut tiny = Tiny::new();
    good(train(tiny.path(), &data, &valid));
    let adapter = fs::read(run.join("adapter_model.safetensors")).unwrap();
    // Another spelling, another place.
    let (moved, other) = (place.path("moved"), place.path("moved/train.txt"));
    fs::create_dir(&moved).unwrap();
    for name in names(tiny.dir.path()) {
        fs::copy(tiny.file(&name), moved.join(&name)).unwrap();
    }
    fs::copy(&data, &other).unwrap();
    let spelled = format!("{}/./", tiny.path());
    for model in [spelled.as_str(), str(&moved)] {
        fs::remove_dir_all(run.join("checkpoint-3")).unwrap();
        good(train(model, if model == spelled { &data } else { &other }, &valid));
        assert!(fs::read(run.join("adapter_model.safetensors")).unwrap() == adapter, "{model}");
    }
    // One number, one key, one letter.
    let weights = fs::read(tiny.file("model.safetensors")).unwrap();
    tiny.tensor("model.norm.weight").2[1] ^= 1;
    tiny.write();
    let refused = |words: &[&str]| failed(train(tiny.path(), &data, &valid).output().unwrap(), 1, words);
    refused(&["checkpoint-3", "another input", "weights"]);
    fs::write(tiny.file("model.safetensors"), weights).unwrap();
    for name in ["config.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(tiny.file(name)).unwrap();
        fs::write(tiny.file(name), text.replacen('{', "{\"note\": 1, ", 1)).unwrap();
        refused(&["another input", name]);
        fs::write(tiny.file(name), text).unwrap();
    }
    let text = fs::read_to_string(&valid).unwrap();
    fs::write(&valid, text.replacen('e', "i", 1)).unwrap();
    refused(&["another input", "validation_file"]);
    fs::write(&valid, text).unwrap();
    good(train(tiny.path(), &data, &valid));
}

/// A position that its step does not lead to, in a state of before states had a hash.
#[test]
fn a_position_that_is_not_its_steps() {
    let place = Place::new();
    let data = place.data("simcse");
    let flags = [&SMALL[..], &["--save-steps", "1"]].concat();
    good(place.train("simcse", &data, &flags));
    let path = place.path("run/checkpoint-3/trainer_state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("sha256");
    let resume = [&flags[..], &["--resume"]].concat();
    fs::write(&path, state.to_string()).unwrap();
    good(place.train("simcse", &data, &resume));
    for (key, value) in [("epoch", 1), ("batch", 2), ("batch", 1000)] {
        let mut edited = state.clone();
        edited["position"][key] = value.into();
        fs::write(&path, edited.to_string()).unwrap();
        let words = if value == 1000 { "makes no sense" } else { "after step 3 it is batch 3 of epoch 0" };
        failed(place.train("simcse", &data, &resume).output().unwrap(), 1, &[words]);
    }
}

/// An instruction file, and an adapter that is trained on, are inputs as the others are.
#[test]
fn instructions_and_continued_adapters_are_known_by_content() {
    let place = Place::new();
    let config = common::config(place.tiny.dir.path());
    let start = place.path("start");
    fs::create_dir(&start).unwrap();
    common::random_adapter(&start, &config, 1);
    let told = place.write("told.json", r#"{"triplets": "read"}"#);
    let more = ["--instructions", str(&told), "--adapter", str(&start), "--continue", "--resume"];
    let flags = [&SMALL[..], &["--save-steps", "1", "--warmup", "0"], &more].concat();
    let data = place.data("supervised");
    good(place.train("supervised", &data, &flags));
    let refused = |word: &str| {
        let output = place.train("supervised", &data, &flags).output().unwrap();
        failed(output, 1, &["another input", word]);
    };
    place.write("told.json", r#"{"triplets": "reed"}"#);
    refused("instructions");
    place.write("told.json", r#"{"triplets": "read"}"#);
    common::random_adapter(&start, &config, 2);
    refused("continued adapter");
}
