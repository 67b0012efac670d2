//! Limits of memory, of threads and of files: one line, and no abort.
#![cfg(target_os = "linux")]

use super::inputs::under;
use super::*;

/// More threads than there is address space for: the same error of the system as of a limit of processes, also for root.
#[test]
fn no_threads_to_be_had() {
    let tiny = Tiny::new();
    let script = r#"ulimit -v 600000; exec "$0" "$@""#;
    let run = |command: &Command| under(script, command).env("RAYON_NUM_THREADS", "4096").output().unwrap();
    let info = ["info", "-m", tiny.path()];
    failed(run(&llm2vec(&info)), 1, &["cannot start the threads", "ulimit -u", "--threads"]);
    failed(run(&llm2vec(&[&info[..], &["-t", "4000"]].concat())), 1, &["cannot start 4000 threads"]);
}

/// Whatever the limit, the end is a result or one line; there is a range where the plan is what refuses, with numbers.
#[test]
fn address_space() {
    let model = common::novel5m();
    let command = llm2vec(&["encode", "-m", str(&model), "-i", prose(), "-o", "-", "-t", "1", "-q"]);
    let mut refused_by_plan = 0;
    for kib in (64 << 10..1 << 20).step_by(6 << 10) {
        let run = under(&format!(r#"ulimit -v {kib}; exec "$0" "$@""#), &command).output().unwrap();
        let said = String::from_utf8(run.stderr.clone()).unwrap();
        match run.status.code() {
            Some(0) => break,
            code => {
                assert_eq!(code, Some(1), "{kib} KiB: {said}");
                assert!(said.starts_with("error: ") && said.lines().count() == 1, "{kib} KiB: {said}");
                refused_by_plan += u32::from(said.contains("the plan needs"));
            }
        }
    }
    assert!(refused_by_plan > 0);
}
