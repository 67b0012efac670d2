//! Ranges for Nsight Systems: against a libnvToolsExt of our own that writes down what begins and ends, beside the false driver.
#![cfg(target_os = "linux")]

use crate::answers;
use crate::command;
use crate::driver::driver;

use answers::built;
use command::{Tiny, compiled, failed, folder, llm2vec, passed, prose};
use std::fs;
use std::path::Path;
use std::process::Output;

/// Encodes with the false driver; gives how it went, and what the driver and the ranges wrote down.
fn encoded(driver: &Path, nvtx: &str) -> (Output, Vec<String>) {
    let (tiny, log, cache) = (Tiny::wide(64), driver.join("log"), folder());
    let _ = fs::remove_file(&log);
    let encode = [
        "encode",
        "-m",
        tiny.path(),
        "-i",
        prose(),
        "-o",
        "-",
        "--device",
        "cuda",
        "--kernels",
        "portable",
        "--tokens",
        "64",
    ];
    let mut command = llm2vec(&encode);
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("FAKE_LOG", &log)
        .env("FAKE_APPEND", "1")
        .env("XDG_CACHE_HOME", cache.path());
    let output = command.env("LLM2VEC_NVTX", nvtx).output().unwrap();
    let log = fs::read_to_string(&log).unwrap_or_default();
    (output, log.lines().map(String::from).collect())
}

#[test]
fn each_launch_is_in_a_range_of_its_op() {
    let Some(driver) = driver().filter(|_| built()) else { return };
    // Where a system has the library, it is found all the same.
    let (output, log) = encoded(driver.path(), "1");
    if !output.status.success() {
        failed(output, 1, &["LLM2VEC_NVTX", "libnvToolsExt was not found"]);
        assert!(!log.iter().any(|line| line.starts_with("rmsnorm_fwd")), "{log:?}");
    }
    assert!(compiled(driver.path(), "libnvToolsExt.so", "libnvToolsExt.c", &[]));
    let (output, log) = encoded(driver.path(), "0");
    passed(output);
    assert!(!log.iter().any(|line| line.starts_with("push")), "off is off");
    let (output, log) = encoded(driver.path(), "1");
    passed(output);
    let (mut open, mut launches): (Vec<&str>, usize) = (Vec::new(), 0);
    for line in &log {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("push", name) => open.push(name),
            ("pop", _) => assert!(open.pop().is_some(), "a range ends that did not begin: {log:?}"),
            // A launch is a kernel's name and its grid.
            (kernel, grid)
                if grid.split([' ', ',']).take(6).filter(|n| n.parse::<u32>().is_ok()).count() == 6 =>
            {
                launches += 1;
                let op = open.last().unwrap_or_else(|| panic!("{kernel} is in no range: {log:?}"));
                assert!(kernel.starts_with(op.trim_end_matches("_fwd")), "{kernel} in a range of {op}");
            }
            _ => {}
        }
    }
    assert!(open.is_empty() && launches > 10, "{open:?} {log:?}");
}
