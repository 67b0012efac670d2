//! Signals that end a run, and what a killed one left: nothing unfinished stays.
#![cfg(target_os = "linux")]

use super::*;
use llm2vec::cli::signal::watch;
use llm2vec::device::mapped::Mapped;
use std::process::Child;
use std::time::{Duration, Instant};

/// `encode` to `out`, once its temporary file is there; it waits for texts.
fn waiting(tiny: &Tiny, out: &Path) -> Child {
    let mut command = llm2vec(&["encode", "-m", tiny.path(), "-o", str(out)]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while unfinished(out.parent().unwrap()).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "no temporary file");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

fn unfinished(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|n| n.starts_with('.')).collect()
}

fn kill(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_signal_leaves_no_temporary_file() {
    let tiny = Tiny::new();
    for (signal, name, status) in
        [("-INT", "SIGINT", 130), ("-TERM", "SIGTERM", 143), ("-HUP", "SIGHUP", 129)]
    {
        let dir = folder();
        let out = dir.path().join("v.npy");
        fs::write(&out, "what was there").unwrap();
        let mut child = waiting(&tiny, &out);
        let stdin = child.stdin.take();
        kill(&child, signal);
        failed(child.wait_with_output().unwrap(), status, &["stopped by", name]);
        drop(stdin);
        assert_eq!(names(dir.path()), ["v.npy"]);
        assert_eq!(fs::read(&out).unwrap(), b"what was there");
    }
}

#[test]
fn nohup_stays_nohup() {
    let (tiny, dir) = (Tiny::new(), folder());
    let out = dir.path().join("v.npy");
    let shell = r#"trap '' HUP; exec "$0" "$@""#;
    let mut command = super::inputs::under(shell, &llm2vec(&["encode", "-m", tiny.path(), "-o", str(&out)]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while unfinished(dir.path()).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "no temporary file");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(&child, "-HUP");
    child.stdin.take().unwrap().write_all(b"one\n").unwrap();
    passed(child.wait_with_output().unwrap());
    assert_eq!(npy::read(&out).unwrap().shape, [1, 32]);
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    let (tiny, dir) = (Tiny::new(), folder());
    let out = dir.path().join("v.npy");
    let mut killed = waiting(&tiny, &out);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let left = unfinished(dir.path());
    assert_eq!(left.len(), 1);
    // A living run's file and people's own are not leftovers.
    fs::write(dir.path().join(".v.npy.backup"), "mine").unwrap();
    fs::write(dir.path().join(".w.npy.A1b2C3"), "another output's").unwrap();
    let mut alive = waiting(&tiny, &out);
    let start = Instant::now();
    let others =
        || unfinished(dir.path()).into_iter().filter(|n| n.starts_with(".v.npy.") && !n.ends_with("backup"));
    while others().any(|n| n == left[0]) || others().count() == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", names(dir.path()));
        std::thread::sleep(Duration::from_millis(10));
    }
    good(llm2vec(&["encode", "-m", tiny.path(), "-i", prose(), "-o", str(&out)]));
    assert_eq!(npy::read(&out).unwrap().shape, [21, 32]);
    alive.stdin.take().unwrap().write_all(b"one\n").unwrap();
    passed(alive.wait_with_output().unwrap());
    assert_eq!(npy::read(&out).unwrap().shape, [1, 32]);
    assert_eq!(names(dir.path()), [".v.npy.backup", ".w.npy.A1b2C3", "v.npy"]);

    // Folders alike: this one belongs to nobody.
    let adapter = tiny.adapter(1);
    for name in [".merge-A1b2C3", ".merge-folder"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("config.json"), "{}").unwrap();
    }
    let merged = dir.path().join("merged");
    good(llm2vec(&["merge", "-m", tiny.path(), "--adapter", str(adapter.path()), "-o", str(&merged)]));
    assert_eq!(names(dir.path()), [".merge-folder", ".v.npy.backup", ".w.npy.A1b2C3", "merged", "v.npy"]);
}

/// Reads a map whose file has been cut short, as the program does a model's.
#[test]
#[ignore = "run by the test below"]
fn shrunk() {
    let Some(path) = std::env::var_os("SHRUNK_FILE") else { return };
    watch().unwrap();
    let map = Mapped::open(path.as_ref()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let sum: u64 = map.iter().map(|b| u64::from(*b)).sum();
    println!("{sum}");
}

#[test]
fn a_file_that_shrinks_under_its_map() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "cli::signals::shrunk", "--ignored", "--nocapture"]).env("SHRUNK_FILE", &path);
    let run = command.output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains("model.safetensors: was cut short"), "{said}");
}
