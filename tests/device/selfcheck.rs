//! The self-check of kernels for Hopper: on the emulator, and against a false driver whose kernels for Hopper are right, hang, fault or
//! answer wrongly.
#![cfg(target_os = "linux")]

use crate::answers;
use crate::command;
use crate::driver::driver;

use answers::built;
use command::{Tiny, folder, llm2vec, prose};
use llm2vec::bench::check::{FAMILIES, compare, file, verdict};
use llm2vec::device::cuda::Description;
use llm2vec::device::gpu::Gpu;
use std::path::Path;
use std::process::Command;

#[test]
fn kernels_for_hopper_pass_their_own_check_on_the_emulator() {
    if built() {
        let gpu = Gpu::emulated((9, 0)).unwrap();
        for family in FAMILIES {
            assert_eq!(compare(&gpu, family).unwrap(), None, "{family}");
        }
    }
}

/// Encodes with the false driver, and gives what was said and which kernels ran.
fn encoded(driver: &Path, cache: &Path, how: &str, more: &[&str]) -> (String, String) {
    let (tiny, log) = (Tiny::wide(64), driver.join("log"));
    let encode =
        ["encode", "-m", tiny.path(), "-i", prose(), "-o", "-", "--device", "cuda", "--tokens", "64"];
    let mut command = llm2vec(&[&encode[..], more].concat());
    command.env("LD_LIBRARY_PATH", driver).env("FAKE_LOG", &log).env("XDG_CACHE_HOME", cache);
    let output = command.env("FAKE_SM90", how).output().unwrap();
    (String::from_utf8(output.stderr).unwrap(), std::fs::read_to_string(&log).unwrap())
}

/// Of a family that hangs, faults or is wrong nothing runs, one line says so, and the next run knows it without trying. Where two
/// hang, the time is over for the others.
#[test]
fn what_is_wrong_on_a_gpu_is_found_and_left_out() {
    let Some(driver) = driver().filter(|_| built()) else { return };
    let hopper = |log: &str| log.contains("lora_linear_fwd_sm90");
    for (how, says) in
        [("", ""), ("hang", "not done after"), ("fault", "ILLEGAL_ADDRESS"), ("wrong", "by portable")]
    {
        let cache = folder();
        let (said, log) = encoded(driver.path(), cache.path(), how, &[]);
        assert!(said.contains("trying the kernels for Hopper once"), "{how}: {said}");
        let warnings: Vec<&str> =
            said.lines().filter(|line| line.starts_with("warning: kernels of")).collect();
        assert_eq!(warnings.len(), if how.is_empty() { 0 } else { FAMILIES.len() }, "{how}: {said}");
        let answers = warnings.iter().enumerate().all(|(i, line)| {
            let says = if how == "hang" && i >= 2 { "not tried: the 10 s for all were over" } else { says };
            line.contains(says) && line.contains("left out on Fake 0")
        });
        assert!(answers, "{how}: {said}");
        assert_eq!(hopper(&log), how.is_empty(), "{how}: {said}{log}");
        let (again, log) = encoded(driver.path(), cache.path(), how, &[]);
        assert!(!again.contains("Hopper"), "{how}: {again}");
        assert_eq!(hopper(&log), how.is_empty(), "{how}: {log}");
        let files: Vec<_> = std::fs::read_dir(cache.path().join("llm2vec")).unwrap().collect();
        assert_eq!(files.len(), 1);
    }
}

/// Nothing is tried where it is not wanted, or where nothing could be kept.
#[test]
fn nothing_is_tried_without_need() {
    let Some(driver) = driver().filter(|_| built()) else { return };
    let cache = folder();
    let (said, log) = encoded(driver.path(), cache.path(), "hang", &["--kernels", "portable"]);
    assert!(!said.contains("Hopper") && !log.contains("_sm90"), "{said}{log}");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    std::fs::write(cache.path().join("llm2vec"), "").unwrap();
    let (said, log) = encoded(driver.path(), cache.path(), "hang", &[]);
    let warning = said.lines().find(|line| line.starts_with("warning: ")).unwrap_or_default();
    assert!(warning.contains("kernels for Hopper are left out") && warning.contains("llm2vec"), "{said}");
    assert!(!log.contains("_sm90"), "{log}");
}

/// A process that does not start says nothing of the kernels: they stay out, and the next start tries them again.
#[test]
fn what_could_not_be_tried_is_not_kept() {
    let gpu = Description { name: "Fake 0".into(), capability: (9, 0), memory: 1 << 30, processors: 132 };
    let cache = folder();
    let none = verdict(&gpu, cache.path(), |_| Command::new("/no/such/program"), drop).unwrap();
    assert_eq!(none.wrong.len(), FAMILIES.len());
    assert!(none.wrong.values().all(|why| why.starts_with("no process could be started")), "{none:?}");
    assert!(!file(cache.path(), &gpu).exists());
    let one = verdict(&gpu, cache.path(), |_| Command::new("true"), drop).unwrap();
    assert!(one.wrong.is_empty() && file(cache.path(), &gpu).exists());
    let kept = verdict(&gpu, cache.path(), |_| Command::new("false"), drop).unwrap();
    assert_eq!(kept, one, "nothing is tried twice");
}
