//! Two writers of one output at once, and folders that vanish under one.

use super::shim::{Fault, calls, under};
use super::{BEFORE, Job, comparable, files, is_hidden, leftovers, quick};
use crate::command::{Tiny, folder, good, llm2vec, names, prose, str};
use crate::common::amount;
use llm2vec::format::npy;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Both at once.
fn together(mut commands: [Command; 2]) -> [Output; 2] {
    let quiet = |c: &mut Command| c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let children = commands.each_mut().map(quiet);
    children.map(|child| child.wait_with_output().unwrap())
}

/// One clear line, of a folder that another has written or of one that has gone.
#[track_caller]
fn one_line(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    assert!(matches!(output.status.code(), Some(1 | 2)) && errors == 1, "{:?} {said}", output.status);
    assert!(!said.contains("panicked") && said.contains(words), "{said}");
}

/// Of two encodings of one output, the later is what stays, whole.
#[test]
fn two_encodings_of_one_output() {
    let tiny = Tiny::new();
    let short = folder();
    let texts = short.path().join("short.txt");
    fs::write(&texts, "one\ntwo\n").unwrap();
    for ending in ["npy", "safetensors", "jsonl"] {
        let dir = folder();
        let out = dir.path().join("v").with_extension(ending);
        let encode =
            |input: &str| llm2vec(&["encode", "-m", tiny.path(), "-i", input, "-o", str(&out), "-q"]);
        let straight = [prose(), str(&texts)].map(|input| {
            good(encode(input));
            fs::read(&out).unwrap()
        });
        for _ in 0..amount("LLM2VEC_KILLS", 10) / 2 {
            for output in together([encode(prose()), encode(str(&texts))]) {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            assert!(straight.contains(&fs::read(&out).unwrap()));
            assert_eq!(names(dir.path()).len(), 1);
        }
    }
}

/// A killed encoding leaves no scales of its own beside the rows of the one before.
#[test]
fn rows_and_scales_are_of_one_run() {
    let job = Job::new("encode-npy");
    let (dir, log) = (quick(), folder());
    let log = log.path().join("calls");
    let adapter = ["--adapter", str(job.adapter.path())];
    let run = |more: &[&str]| job.command(dir.path(), more);
    let states = [&adapter[..], &[]].map(|more| {
        good(run(more));
        files(dir.path())
    });
    assert!(states[0].len() == 2 && states[0]["v.scale.npy"] != states[1]["v.scale.npy"]);
    let (mut call, mut alone) = (0, 0);
    loop {
        call += 1;
        good(run(&adapter));
        let mut command = run(&[]);
        under(&mut command, dir.path(), Fault::Kill, (call, false), &log);
        if command.status().unwrap().success() {
            break;
        }
        let mut left = files(dir.path());
        left.retain(|name, _| !is_hidden(name));
        let whole = left.len() == 2 || !left.contains_key("v.npy");
        alone += usize::from(left.len() < 2);
        assert!(
            whole && states.iter().any(|state| left.iter().all(|(name, bytes)| &state[name] == bytes)),
            "{call}"
        );
    }
    assert!(alone > 0 && calls(&log).len() == call - 1, "{alone} of {call}");
}

/// Of two merges into one folder, one writes it and the other says that it is there.
#[test]
fn two_merges_into_one_folder() {
    let job = Job::new("merge");
    let straight = job.straight(&[]);
    for _ in 0..amount("LLM2VEC_KILLS", 10) / 2 {
        let dir = job.fresh();
        let ends = together([job.command(dir.path(), &[]), job.command(dir.path(), &[])]);
        let lost: Vec<&Output> = ends.iter().filter(|output| !output.status.success()).collect();
        assert!(lost.len() <= 1, "none has written it");
        lost.iter().for_each(|output| one_line(output, "output"));
        assert_eq!(comparable(dir.path()), straight);
    }
}

/// Of two runs into one folder, the second is refused or, where the first has ended, finds it complete.
#[test]
fn two_runs_into_one_folder() {
    let job = Job::new("mntp");
    let straight = job.straight(&[]);
    for _ in 0..amount("LLM2VEC_KILLS", 10) / 2 {
        let dir = job.fresh();
        let ends = together([job.command(dir.path(), &[]), job.command(dir.path(), &[])]);
        let lost: Vec<&Output> = ends.iter().filter(|output| !output.status.success()).collect();
        assert!(lost.len() <= 1, "none has written it");
        lost.iter().for_each(|output| one_line(output, "is being trained into by"));
        assert_eq!(comparable(dir.path()), straight);
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "no {what} in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The folder of an encoding goes while it waits for texts.
#[test]
fn the_folder_of_an_encoding_vanishes() {
    let (tiny, dir) = (Tiny::new(), folder());
    let below = dir.path().join("below");
    for ending in ["npy", "safetensors", "jsonl"] {
        fs::create_dir(&below).unwrap();
        let out = below.join("v").with_extension(ending);
        let mut command = llm2vec(&["encode", "-m", tiny.path(), "-o", str(&out)]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        until("output", || !names(&below).is_empty());
        fs::remove_dir_all(&below).unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        one_line(&child.wait_with_output().unwrap(), str(&out));
        assert!(!below.exists());
    }
}

/// The folder of a run goes in the middle: it ends with one line, and what it has made anew is whole or nothing.
#[test]
fn the_folder_of_a_run_vanishes() {
    for stage in ["mntp", "simcse", "supervised"] {
        let job = Job::new(stage);
        let dir = job.fresh();
        let run = dir.path().join(job.output());
        let mut command = job.command(dir.path(), &["--steps", "100000"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("checkpoint", || run.join("checkpoint-2").exists());
        // A run that writes at this moment keeps the folder from going.
        until("removal", || fs::remove_dir_all(&run).is_ok() || !run.exists());
        one_line(&child.wait_with_output().unwrap(), str(&run));
        assert_eq!(leftovers(dir.path()), [""; 0]);
    }
}

/// A model that goes while its texts are read was mapped, and is read to the end.
#[test]
fn the_folder_of_a_model_vanishes() {
    let (tiny, dir) = (Tiny::new(), folder());
    let out = dir.path().join("v.npy");
    fs::write(&out, BEFORE).unwrap();
    let mut command = llm2vec(&["encode", "-m", tiny.path(), "-o", str(&out)]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    until("output", || names(dir.path()).len() > 1);
    fs::remove_dir_all(tiny.dir.path()).unwrap();
    child.stdin.take().unwrap().write_all(b"one\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(npy::read(&out).unwrap().shape, [1, 32]);
}
