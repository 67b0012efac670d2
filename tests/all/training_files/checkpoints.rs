//! Checkpoints: bit-exact, whole or not at all, refused where they are damaged or another run's.

use super::{adapter, child, child_folder, normal, refused};
use llm2vec::error::Result;
use llm2vec::format::peft::Adapter;
use llm2vec::ops::dropout;
use llm2vec::pretrained::chain::Link;
use llm2vec::pretrained::settings::Settings;
use llm2vec::train::best::Best;
use llm2vec::train::checkpoint::{Checkpoint, Losses, Moments, Named, State, latest};
use llm2vec::train::folder::{Existing, Folder};
use llm2vec::train::identity::Identity;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn configuration() -> Value {
    json!({"lr": 0.1 + 0.2, "steps": 10, "stage": "mntp", "r": 2, "dropout": 1.0})
}

fn identity() -> Identity {
    let inputs = json!({"weights": "5 bytes, abc", "validation_file": "7 bytes, def"});
    Identity { configuration: configuration(), paths: json!({"model": "here", "data": null}), inputs }
}

/// Takes the folder, deletes what is to be deleted, and gives it back.
fn claim(output: &Path, existing: Existing) -> Result<Option<PathBuf>> {
    let folder = Folder::claim(output, existing)?;
    folder.clear()?;
    Ok(folder.resume.clone())
}

/// Numbers that printing or parsing would spoil: denormals, -0, NaN with a payload, sums that are no short decimals.
fn checkpoint(step: u64, size: usize) -> Checkpoint {
    let mut losses = Losses::default();
    (0..step).for_each(|i| losses.add(1.0 / (i as f64 + 3.0)));
    let mut m = normal(step + 7, size);
    m[..3].copy_from_slice(&[f32::from_bits(1), -0.0, f32::from_bits(0x7fc0_1234)]);
    // Names that are beginnings and ends of each other.
    let moments = |name: &str| Moments {
        name: name.into(),
        shape: vec![size / 4, 4],
        m: m.clone(),
        v: normal(step, size),
    };
    let link = Link { name: "mntp".into(), sha256: "ab".repeat(32), stage: Some("mntp".into()) };
    Checkpoint {
        state: State {
            step,
            seed: u64::MAX - 1,
            masks: dropout::FORMAT,
            position: json!({"file": 3, "byte": u64::MAX, "weight": 0.1f64 + 0.7}),
            configuration: configuration(),
            inputs: identity().inputs,
            losses,
            best: Some(Best { step: step / 2, value: 0.1 + 0.7, since: 3 }),
        },
        adapter: adapter(step),
        settings: Settings {
            pooling_mode: Some("mean".into()),
            adapters: Some(vec![link]),
            ..Settings::default()
        },
        extra: vec![Named { name: "head".into(), shape: vec![4], values: vec![-0.0, 1e-45, f32::MAX, 0.1] }],
        moments: ["q", "q.m", "q.v"].map(moments).to_vec(),
    }
}

/// Equality of bits: a NaN equals itself, 0 is not -0.
#[track_caller]
fn equal(got: &Checkpoint, wanted: &Checkpoint) {
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(got.state, wanted.state);
    assert_eq!(got.settings, wanted.settings);
    assert_eq!(got.adapter, Adapter { dir: got.adapter.dir.clone(), ..wanted.adapter.clone() });
    assert_eq!((got.extra.len(), got.moments.len()), (wanted.extra.len(), wanted.moments.len()));
    for (a, b) in got.extra.iter().zip(&wanted.extra) {
        assert_eq!((&a.name, &a.shape, bits(&a.values)), (&b.name, &b.shape, bits(&b.values)));
    }
    for (a, b) in got.moments.iter().zip(&wanted.moments) {
        assert_eq!((&a.name, &a.shape, bits(&a.m), bits(&a.v)), (&b.name, &b.shape, bits(&b.m), bits(&b.v)));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn checkpoints_round_trip_to_the_bit_and_the_last_k_stay() {
    let tmp = tempfile::tempdir().unwrap();
    let output = tmp.path().join("run");
    for step in [2, 9, 10, 100] {
        let written = checkpoint(step, 64);
        let dir = written.save(&output, 2).unwrap();
        equal(&Checkpoint::load(&dir, &identity()).unwrap(), &written);
    }
    assert_eq!(names(&output), ["checkpoint-10", "checkpoint-100"]);
    assert_eq!(latest(&output).unwrap().unwrap(), output.join("checkpoint-100"));
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "extra.safetensors",
        "llm2vec_config.json",
        "llm2vec_encoder.json",
        "optimizer.safetensors",
        "trainer_state.json",
    ];
    assert_eq!(names(&output.join("checkpoint-100")), files);
    // Saved again as it is, it stays; with other numbers, it is replaced.
    let again = checkpoint(100, 64);
    let touched = || fs::metadata(output.join("checkpoint-100")).unwrap().modified().unwrap();
    let before = touched();
    again.save(&output, 2).unwrap();
    assert_eq!(touched(), before);
    let mut other = again;
    other.state.seed = 1;
    equal(&Checkpoint::load(&other.save(&output, 2).unwrap(), &identity()).unwrap(), &other);
    assert_eq!(names(&output), ["checkpoint-10", "checkpoint-100"]);
}

#[test]
fn damaged_checkpoints_are_refused_by_the_name_of_the_file() {
    let tmp = tempfile::tempdir().unwrap();
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "extra.safetensors",
        "llm2vec_config.json",
        "optimizer.safetensors",
        "trainer_state.json",
    ] {
        let dir = checkpoint(1, 64).save(tmp.path(), 1).unwrap();
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() * 2 / 3] ^= 0x10;
        for damaged in [&whole[..whole.len() / 2], &[], &flipped] {
            fs::write(&path, damaged).unwrap();
            let words = [name, "checkpoint-1", "delete this folder"];
            refused(Checkpoint::load(&dir, &identity()), &words);
        }
        fs::remove_file(&path).unwrap();
        refused(Checkpoint::load(&dir, &identity()), &[name, "delete this folder"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn another_configuration_is_refused_by_the_keys_that_differ() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = checkpoint(1, 64).save(tmp.path(), 1).unwrap();
    let mut other = identity();
    other.configuration["lr"] = json!(0.3);
    other.configuration["r"] = json!(4);
    other.configuration["new"] = json!(true);
    let line = refused(
        Checkpoint::load(&dir, &other),
        &["lr 0.30000000000000004 there, 0.3 here", "r 2 there, 4 here", "new absent there, true here"],
    );
    assert!(!line.contains("steps") && !line.contains("stage"), "{line}");
    // Another path is no other run, other content is.
    let mut other = identity();
    other.paths["model"] = json!("there");
    Checkpoint::load(&dir, &other).unwrap();
    other.inputs["weights"] = json!("5 bytes, abd");
    refused(Checkpoint::load(&dir, &other), &["another input", "weights", "5 bytes, abc", "5 bytes, abd"]);
    // Validation may be left out.
    let mut other = identity();
    other.inputs.as_object_mut().unwrap().remove("validation_file");
    Checkpoint::load(&dir, &other).unwrap();
    other.inputs["validation_file"] = json!("8 bytes, def");
    refused(Checkpoint::load(&dir, &other), &["validation_file", "7 bytes, def", "8 bytes, def"]);
}

/// Edits a checkpoint's state; `seal` puts its hash right again, `None` is a state of before there was one.
fn edited(dir: &Path, seal: Option<bool>, edit: impl Fn(&mut Value)) {
    let path = dir.join("trainer_state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut state);
    if seal != Some(false) {
        state.as_object_mut().unwrap().remove("sha256");
    }
    if seal == Some(true) {
        let hash: Vec<String> =
            Sha256::digest(state.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
        state["sha256"] = json!(hash.concat());
    }
    fs::write(&path, state.to_string()).unwrap();
}

#[test]
fn an_edited_state_is_refused_and_one_without_a_hash_is_read() {
    let tmp = tempfile::tempdir().unwrap();
    let written = checkpoint(3, 64);
    let fresh = || written.save(tmp.path(), 1).unwrap();
    for edit in [
        |state: &mut Value| state["step"] = json!(2),
        |state: &mut Value| state["position"]["file"] = json!(4),
        |state: &mut Value| state["losses"]["sum"] = json!(0.5),
        |state: &mut Value| drop(state["files"].as_object_mut().unwrap().remove("extra.safetensors")),
    ] {
        let dir = fresh();
        edited(&dir, Some(false), edit);
        refused(Checkpoint::read(&dir), &["trainer_state.json", "changed since it was saved", "delete this"]);
        fs::remove_dir_all(dir).unwrap();
    }
    let dir = fresh();
    edited(&dir, Some(true), |_| {});
    equal(&Checkpoint::read(&dir).unwrap(), &written);
    // As it was written before there was a hash, or what was read was recorded, by a run without dropout: the paths are
    // compared.
    let no_dropout = |configuration: &mut Value| {
        (configuration["lora_dropout"], configuration["simcse_dropout"]) = (json!(0.0), json!(0.0));
    };
    edited(&dir, None, |state| {
        state.as_object_mut().unwrap().retain(|key, _| key != "inputs" && key != "masks");
        no_dropout(&mut state["configuration"]);
        state["configuration"]["model"] = json!("here");
        state["configuration"]["data"] = Value::Null;
    });
    let mut other = identity();
    no_dropout(&mut other.configuration);
    other.inputs["weights"] = json!("unknown then");
    Checkpoint::load(&dir, &other).unwrap();
    other.paths["model"] = json!("there");
    refused(Checkpoint::load(&dir, &other), &["model \"here\" there, \"there\" here"]);
    // Its folder says which step it is of.
    edited(&dir, None, |state| state["step"] = json!(2));
    refused(Checkpoint::read(&dir), &["is of step 2, which is not its folder's"]);
}

/// A run goes on under the masks that it began with; one without dropout has none.
#[test]
fn masks_of_another_format_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = checkpoint(3, 64).save(tmp.path(), 1).unwrap();
    let rates = |state: &mut Value, lora: f64, simcse: f64| {
        (state["configuration"]["lora_dropout"], state["configuration"]["simcse_dropout"]) =
            (json!(lora), json!(simcse));
    };
    let identity = |lora: f64, simcse: f64| {
        let mut state = json!({"configuration": configuration()});
        rates(&mut state, lora, simcse);
        Identity { configuration: state["configuration"].take(), ..identity() }
    };
    for (lora, simcse) in [(0.05, 0.0), (0.0, 0.3), (0.0, 0.0)] {
        let load = || Checkpoint::load(&dir, &identity(lora, simcse));
        edited(&dir, Some(true), |state| {
            rates(state, lora, simcse);
            state["masks"] = json!(dropout::FORMAT);
        });
        load().unwrap();
        // As versions before the field wrote it.
        edited(&dir, Some(true), |state| drop(state.as_object_mut().unwrap().remove("masks").unwrap()));
        if (lora, simcse) == (0.0, 0.0) {
            load().unwrap();
        } else {
            refused(
                load(),
                &["masks are of format 1", "(format 2)", "the version that began it", "Overwrite"],
            );
        }
    }
    edited(&dir, Some(true), |state| {
        rates(state, 0.05, 0.0);
        state["masks"] = json!(dropout::FORMAT + 1);
    });
    refused(Checkpoint::load(&dir, &identity(0.05, 0.0)), &["masks are of format 3", "(format 2)"]);
}

#[test]
fn a_folder_that_holds_a_run_is_refused_resumed_or_cleared() {
    let tmp = tempfile::tempdir().unwrap();
    let output = tmp.path().join("deep/run");
    assert_eq!(claim(&output, Existing::Refuse).unwrap(), None);
    assert_eq!(claim(&output, Existing::Resume).unwrap(), None); // killed before its first checkpoint
    let dir = checkpoint(5, 64).save(&output, 3).unwrap();
    fs::create_dir(output.join(".checkpoint-killed")).unwrap();
    fs::write(output.join(".adapter_model.safetensors.k1LLed"), "half").unwrap();
    fs::write(output.join(".tokenizer.json.k1LLed"), "half").unwrap();
    fs::write(output.join("notes.txt"), "mine").unwrap();
    let error = claim(&output, Existing::Refuse).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    refused::<()>(
        Err(error),
        &["deep/run", "already holds a run", "Existing::Resume", "Existing::Overwrite"],
    );
    assert_eq!(claim(&output, Existing::Resume).unwrap(), Some(dir));
    assert_eq!(names(&output), ["checkpoint-5", "notes.txt"]);
    assert_eq!(claim(&output, Existing::Overwrite).unwrap(), None);
    assert_eq!(names(&output), ["notes.txt"]);

    // What no run wrote is not deleted with one, be it in its folder.
    let dir = checkpoint(5, 64).save(&output, 3).unwrap();
    fs::create_dir(dir.join("mine")).unwrap();
    refused(claim(&output, Existing::Overwrite), &["checkpoint-5/mine", "no run wrote", "move it away"]);
    checkpoint(6, 64).save(&output, 1).unwrap();
    assert_eq!(names(&output), ["checkpoint-5", "checkpoint-6", "notes.txt"]);
    fs::remove_dir(dir.join("mine")).unwrap();
    checkpoint(7, 64).save(&output, 1).unwrap();
    assert_eq!(names(&output), ["checkpoint-7", "notes.txt"]);
    claim(&output, Existing::Overwrite).unwrap();
    assert_eq!(names(&output), ["notes.txt"]);

    fs::write(output.join("adapter_model.safetensors"), "").unwrap();
    refused(claim(&output, Existing::Overwrite), &["adapter_model.safetensors and no train_config.json"]);
    refused(claim(&output, Existing::Refuse), &["already holds a run"]);
    refused(claim(&output, Existing::Resume), &["no checkpoint to resume from"]);
    refused(claim(&crate::common::novel5m(), Existing::Overwrite), &["novel5m", "holds a model"]);
    assert!(crate::common::novel5m().join("model.safetensors").exists());
}

/// Saves one checkpoint after the other until it is killed.
#[test]
#[ignore = "run by the test below"]
fn endless_saves() {
    let Some(output) = child_folder() else { return };
    let from =
        latest(&output).unwrap().map_or(0, |dir| Checkpoint::load(&dir, &identity()).unwrap().state.step);
    for step in from + 1.. {
        checkpoint(step, 40_000).save(&output, 2).unwrap();
    }
}

/// Killed at any moment, a run leaves whole checkpoints only, and never fewer than it had.
#[test]
fn a_killed_run_leaves_whole_checkpoints() {
    let tmp = tempfile::tempdir().unwrap();
    let output = tmp.path().join("run");
    let mut last = 0;
    for round in 0..24u64 {
        claim(&output, Existing::Resume).unwrap();
        let mut process = child("training_files::checkpoints::endless_saves", &output);
        // Spread over the few milliseconds that a save takes, and its start.
        std::thread::sleep(Duration::from_micros(30_000 + round * round * 7919 % 90_000));
        process.kill().unwrap();
        process.wait().unwrap();
        let found: Vec<_> = names(&output).into_iter().filter(|n| n.starts_with("checkpoint-")).collect();
        let mut steps: Vec<u64> = Vec::new();
        for name in &found {
            let read = Checkpoint::load(&output.join(name), &identity()).unwrap();
            equal(&read, &checkpoint(read.state.step, 40_000));
            steps.push(read.state.step);
        }
        steps.sort();
        // Between the new one's rename and the old one's removal there are three.
        assert!(steps.len() <= 3 && (last < 2 || steps.len() >= 2), "{steps:?}");
        let newest = steps.last().copied().unwrap_or(0);
        assert!(newest >= last);
        last = newest;
    }
    assert!(last > 5, "only {last} checkpoints were saved: the kills came too early to prove anything");
}
