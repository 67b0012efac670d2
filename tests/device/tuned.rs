//! The choice among tiles: on the emulator each runs where a table says so; on a false driver those that are faster end in the
//! table, and those whose bits differ do not.
#![cfg(target_os = "linux")]

use crate::answers;
use crate::command;
use crate::driver::driver;
use crate::run as device;

use answers::built;
use command::{Tiny, folder, good, llm2vec, prose, str};
use device::{all, bits, on_hopper, run};
use llm2vec::bench::cases::Case;
use llm2vec::bench::check::{file, verdict};
use llm2vec::bench::tune::subject;
use llm2vec::device::choice::{Table, Tile};
use llm2vec::device::cuda::Description;
use llm2vec::device::gpu::Gpu;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A case on the emulator, whose table has this for its bucket: the kernels, and the bits of its results.
fn chosen(case: &Case, bucket: &str, pick: Tile) -> Option<(Vec<&'static str>, Vec<u64>)> {
    let picks = BTreeMap::from([(bucket.to_string(), pick)]);
    let table = Table { date: "today".into(), picks };
    let gpu = Gpu::emulated((9, 0)).unwrap().checked(BTreeMap::new()).tuned(Some(table));
    let mut outputs = None;
    let counted = gpu.count(|| {
        outputs = run(&gpu, case, 0).ok();
        Ok(())
    });
    Some((counted.unwrap().into_iter().map(|(kernel, _)| kernel).collect(), bits(&outputs?)))
}

/// Every product goes by the bucket that the tuning knows its cases by; all tiles give the same bits.
#[test]
fn a_table_chooses_every_tile() {
    if !built() {
        return;
    }
    let mut found = BTreeSet::new();
    for case in all().into_iter().filter(|case| on_hopper(case) && case.flops <= 1 << 25) {
        let Some(bucket) = subject(&case) else { continue };
        let what = format!("{} {}", case.op, case.label);
        let Some((wide, right)) = chosen(&case, &bucket, Tile::Wide) else { continue };
        // Widths that only portable kernels take, and calls that ask for no product.
        if !wide.iter().any(|kernel| kernel.contains("_sm90")) {
            continue;
        }
        let (narrow, got) = chosen(&case, &bucket, Tile::Narrow).unwrap();
        for (kernels, columns) in [(wide, "_sm90_256"), (narrow, "_sm90_128")] {
            assert!(kernels.iter().any(|kernel| kernel.ends_with(columns)), "{what}: {kernels:?}");
        }
        assert!(got == right, "{what}: other bits in narrow tiles");
        found.insert((case.op, bucket.contains("plain")));
    }
    assert_eq!(found.len(), 4, "{found:?}");
}

/// A command on the false driver; what it said on both streams, and which kernels ran.
fn said(driver: &Path, cache: &Path, args: &[&str], env: &[(&str, &str)]) -> (String, String) {
    let log = driver.join("log");
    let mut command = llm2vec(args);
    command.env("LD_LIBRARY_PATH", driver).env("FAKE_LOG", &log).env("XDG_CACHE_HOME", cache);
    command.env("FAKE_MOST", (300 << 20).to_string()).envs(env.iter().copied());
    let output = command.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (said, fs::read_to_string(&log).unwrap_or_default())
}

/// A cache that knows all kernels of the false GPU to be right, and the file that says so.
fn known() -> (TempDir, PathBuf) {
    let gpu = Description { name: "Fake 0".into(), capability: (9, 0), memory: 1 << 30, processors: 132 };
    let dir = folder();
    let cache = dir.path().join("llm2vec");
    verdict(&gpu, &cache, |_| Command::new("true"), drop).unwrap();
    let kept = file(&cache, &gpu);
    assert!(kept.exists());
    (dir, kept)
}

#[test]
fn a_faster_variant_is_kept_and_one_with_other_bits_is_not() {
    let Some(driver) = driver().filter(|_| built()) else { return };
    let (driver, (cache, file), tiny) = (driver.path(), known(), Tiny::wide(64));
    // A pack of between 33 and 64 tokens.
    let text = cache.path().join("text.txt");
    fs::write(&text, "some words here and there ".repeat(7)).unwrap();
    let encode = ["encode", "-m", tiny.path(), "-i", str(&text), "-o", "-", "--device", "cuda"];
    let tune = ["bench", "tune", "-q", "-m", tiny.path(), "--tokens", "64", "--device", "cuda"];
    let (wide, encodes) = ("lora_linear_fwd_sm90_256", || said(driver, cache.path(), &encode, &[]).1);
    assert!(!encodes().contains(wide), "the default takes narrow tiles for few rows");
    let plain = said(driver, cache.path(), &tune, &[]).0;
    assert!(plain.contains("table: tuned ") && !plain.contains("wide"), "nothing is faster: {plain}");

    let faster = said(driver, cache.path(), &tune, &[("FAKE_FAST", wide)]).0;
    let row =
        faster.lines().find(|line| line.starts_with("lora_linear_fwd plain 64x64x")).unwrap_or_default();
    assert!(row.contains("wide") && row.contains("1.25"), "{faster}");
    let verdict: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let picks = verdict["table"]["picks"].as_object().unwrap();
    assert!(!picks.is_empty() && picks.values().all(|pick| pick == "wide"), "{verdict}");
    assert!(encodes().contains(wide), "a later run goes by the table");
    let doctor = said(driver, cache.path(), &["doctor"], &[]).0;
    assert!(doctor.contains("passed the self-check; table: tuned 20"), "{doctor}");

    let wrong = said(driver, cache.path(), &tune, &[("FAKE_FAST", wide), ("FAKE_WRONG", wide)]).0;
    assert!(wrong.contains("wide dropped: gives other bits"), "{wrong}");
    assert!(!encodes().contains(wide), "what was dropped is not taken: {wrong}");
}

/// What cannot be read or written is one warning, and the default.
#[test]
fn a_table_that_is_no_use_is_one_warning() {
    let Some(driver) = driver().filter(|_| built()) else { return };
    let (driver, (cache, file), tiny) = (driver.path(), known(), Tiny::wide(64));
    let tune = ["bench", "tune", "-q", "-m", tiny.path(), "--tokens", "64", "--device", "cuda"];
    let warnings = |args: &[&str]| {
        let text = said(driver, cache.path(), args, &[]).0;
        text.lines().filter(|line| line.starts_with("warning: ")).map(String::from).collect::<Vec<_>>()
    };
    assert!(warnings(&tune).is_empty());
    let mut verdict: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    verdict["table"] = json!({"picks": 7});
    fs::write(&file, verdict.to_string()).unwrap();
    let encode =
        ["encode", "-m", tiny.path(), "-i", prose(), "-o", "-", "--device", "cuda", "--tokens", "64"];
    let said = warnings(&encode);
    assert!(said.len() == 1 && said[0].contains("table of kernels cannot be read"), "{said:?}");
    assert!(said[0].ends_with("; the default is taken"), "{said:?}");
    fs::remove_file(file.with_extension("lock")).unwrap();
    fs::create_dir(file.with_extension("lock")).unwrap();
    let said = warnings(&tune);
    assert!(said.last().is_some_and(|line| line.contains("cannot be kept, the default stays: ")), "{said:?}");
}

#[test]
fn there_is_nothing_to_tune_without_hopper() {
    let one = |device: &str| good(llm2vec(&["bench", "tune", "--device", device]));
    let why = "products have a choice of tiles on compute capability 9.0\n";
    assert_eq!(one("cpu"), format!("nothing to tune on the CPU: {why}"));
    if built() {
        assert_eq!(one("emulated:90"), format!("nothing to tune on emulated (sm_90): {why}"));
    }
}
