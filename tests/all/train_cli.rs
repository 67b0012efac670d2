//! `llm2vec train` on bad input: one `error:` line that says what was got and what was wanted, and nothing lost.

use crate::command;
use crate::common;
mod configurations;
mod outputs;
mod settings;

use command::{Raw, Tiny, failed, folder, good, llm2vec, names, str};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const STAGES: [&str; 3] = ["mntp", "simcse", "supervised"];
const SMALL: [&str; 6] = ["--batch", "4", "--max-length", "24", "--steps", "3"];

/// A tiny model, a folder for data and runs.
struct Place {
    tiny: Tiny,
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { tiny: Tiny::new(), dir: folder() };
        place.write("train.txt", &shipped("persuasion.train.txt.gz", 40));
        place.write("triplets.jsonl", &shipped("triplets.jsonl.gz", 40));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn data(&self, stage: &str) -> PathBuf {
        self.path(if stage == "supervised" { "triplets.jsonl" } else { "train.txt" })
    }

    /// Trains into `run`.
    fn train(&self, stage: &str, data: &Path, flags: &[&str]) -> Command {
        let run = self.path("run");
        let own = ["train", stage, "-m", self.tiny.path(), "--data", str(data), "-o", str(&run), "--quiet"];
        llm2vec(&[&own, flags].concat())
    }

    /// Training is refused with these words before it has made anything.
    #[track_caller]
    fn refused(&self, stage: &str, data: &Path, flags: &[&str], status: i32, words: &[&str]) {
        failed(self.train(stage, data, flags).output().unwrap(), status, words);
        assert!(!self.path("run").exists(), "{stage} left {:?}", names(&self.path("run")));
    }

    fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("run/log.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn first_loss(&self, stage: &str, data: &Path, flags: &[&str]) -> f64 {
        good(self.train(stage, data, &[flags, &["--overwrite"]].concat()));
        self.log()[0]["loss"].as_f64().unwrap()
    }
}

/// The first lines of a text that ships with the repository.
fn shipped(name: &str, lines: usize) -> String {
    let mut text = String::new();
    let file = fs::File::open(common::here("tests/texts").join(name)).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text.split_inclusive('\n').take(lines).collect()
}

#[test]
fn too_little_data() {
    let place = Place::new();
    let missing = place.path("nowhere.txt");
    for stage in STAGES {
        let name = if stage == "supervised" { "small.jsonl" } else { "small.txt" };
        let empty = place.write(name, "");
        place.refused(stage, &empty, &SMALL, 1, &[name, "no row to train on", "it is empty"]);
        place.refused(stage, &missing, &SMALL, 1, &["nowhere.txt", "No such file"]);
        let one: String = fs::read_to_string(place.data(stage)).unwrap().lines().take(1).collect();
        let one = place.write(name, &one);
        match stage {
            // One row is little, but a masked row needs no other.
            "mntp" => {
                good(place.train(stage, &one, &[&SMALL[..], &["--grouping", "lines"]].concat()));
                fs::remove_dir_all(place.path("run")).unwrap();
                let words = ["1 lines", "no block of 512", "shorter blocks"];
                place.refused(stage, &one, &["--batch", "4"], 1, &words);
            }
            "simcse" => place.refused(stage, &one, &SMALL, 2, &["1 rows", "a batch of 4 has 2 at least"]),
            _ => place.refused(stage, &one, &SMALL, 2, &["1 rows", "a batch of 4 has 4 at least"]),
        }
    }
    let other = place.data("simcse");
    place.refused("supervised", &other, &SMALL, 1, &["train.txt: line 1", "\"query\"", "\"positive\""]);
    let blank = place.write("blank.txt", "\n  \n\t\n");
    place.refused("simcse", &blank, &SMALL, 1, &["blank.txt", "no row to train on"]);
    place.refused(
        "mntp",
        &blank,
        &[&SMALL[..], &["--grouping", "lines"]].concat(),
        1,
        &["3 lines", "no block"],
    );
}

#[test]
fn bad_rows_are_counted_or_end_it() {
    let place = Place::new();
    let rows = shipped("triplets.jsonl.gz", 12);
    let data = place.write("holes.jsonl", &format!("{rows}{{\"query\": \"q\"}}\n{rows}nonsense\n"));
    let run = place.path("run");
    let args = ["train", "supervised", "-m", place.tiny.path(), "--data", str(&data), "-o", str(&run)];
    let mut loud = llm2vec(&[&args, &SMALL[..]].concat());
    let output = loud.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    for words in [
        "data: 24 rows",
        "2 bad rows were left out",
        "line 13: no \"positive\"",
        "line 26",
        "memory: at most",
    ] {
        assert!(stderr.contains(words), "{words:?} is not in: {stderr}");
    }
    fs::remove_dir_all(place.path("run")).unwrap();
    let strict = [&SMALL[..], &["--strict"]].concat();
    place.refused("supervised", &data, &strict, 1, &["holes.jsonl: line 13", "\"positive\""]);
}

/// What is too long is cut: the same as if it had been that short, and no more tokens than allowed.
#[test]
fn rows_longer_than_the_maximum_are_cut() {
    let place = Place::new();
    let words = "the cat sat on the mat and said nothing at all to anyone ";
    let lines = |n: usize| (0..8).map(|i| format!("{i} {}\n", words.repeat(n))).collect::<String>();
    let (long, longer) = (place.write("long.txt", &lines(10)), place.write("longer.txt", &lines(300)));
    for (stage, flags) in [("simcse", vec![]), ("mntp", vec!["--grouping", "lines"])] {
        let flags = [&SMALL[..], &flags].concat();
        let loss = place.first_loss(stage, &long, &flags);
        assert_eq!(loss, place.first_loss(stage, &longer, &flags), "{stage}");
        assert!(loss > 0.0);
    }
    let flags = ["--max-length", "1", "--batch", "4", "--overwrite"];
    let output = place.train("simcse", &long, &flags).output().unwrap();
    failed(output, 2, &["--max-length 1", "leaves none for the text"]);
}

#[test]
fn one_row_a_batch_has_no_negatives() {
    let place = Place::new();
    for stage in ["simcse", "supervised"] {
        let words = ["--batch is 1", "the other rows of a batch are the negatives", "at least 2"];
        place.refused(stage, &place.data(stage), &["--batch", "1"], 2, &words);
    }
    // Masked training has a loss of its own for every row.
    good(place.train("mntp", &place.data("mntp"), &["--batch", "1", "--max-length", "24", "--steps", "2"]));
}

#[test]
fn equal_positives_may_be_spared() {
    let place = Place::new();
    let row = |i: usize| json!({"query": format!("question {i}"), "positive": "yes"});
    let equal = place.write("equal.jsonl", &(0..8).map(|i| format!("{}\n", row(i))).collect::<String>());
    // One text among four equal ones is found by chance; where its equals are spared it stands alone.
    let plain = place.first_loss("supervised", &equal, &SMALL);
    assert!((plain - 4f64.ln()).abs() < 1e-5, "{plain}");
    let spared = place.first_loss("supervised", &equal, &[&SMALL[..], &["--mask-false-negatives"]].concat());
    assert!(spared.abs() < 1e-5, "{spared}");
    // Where no texts are equal the flag changes nothing.
    let data = place.data("supervised");
    let plain = place.first_loss("supervised", &data, &SMALL);
    assert_eq!(
        place.first_loss("supervised", &data, &[&SMALL[..], &["--mask-false-negatives"]].concat()),
        plain
    );
}

#[test]
fn flags_out_of_range() {
    let place = Place::new();
    let (lines, triplets) = (place.data("mntp"), place.data("supervised"));
    for (flags, words) in [
        (["--rank", "0"], ["--rank is 0", "at least 1"]),
        (["--rank", "999999999999"], ["--rank is 999999999999", "at most 4096"]),
        (["--batch", "0"], ["--batch is 0", "at least 1"]),
        (["--batch", "1152921504606846976"], ["--batch is 1152921504606846976", "at most"]),
        (["--steps", "0"], ["--steps is 0", "at least 1"]),
        (["--lr", "0"], ["--lr is 0", "range"]),
        (["--lr", "nan"], ["--lr is NaN", "range"]),
        (["--alpha", "0"], ["--alpha is 0", "range"]),
        (["--lora-dropout", "1"], ["--lora-dropout is 1", "range"]),
        (["--mask-probability", "1.5"], ["--mask-probability is 1.5", "range"]),
        (["--mask-token", "star"], ["star", "auto, blank, eos, mask"]),
        (["--modules", "lm_head"], ["'lm_head' for '--modules", "q_proj, k_proj"]),
        (["--grouping", "pages"], ["pages", "joined, apart, lines"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--threads", "0"], ["--threads 0", "1 to 4096"]),
    ] {
        place.refused("mntp", &lines, &flags, 2, &words);
    }
    let both = ["--resume", "--overwrite"];
    place.refused("mntp", &lines, &both, 2, &["--resume", "--overwrite", "cannot be used"]);
    place.refused(
        "supervised",
        &triplets,
        &["--hard-negatives", "100000"],
        2,
        &["--hard-negatives is 100000", "at most 1000"],
    );
    place.refused("simcse", &lines, &["--continue"], 2, &["--continue needs an --adapter"]);
    let pooling = ["--pooling", "middle", "--batch", "4"];
    place.refused("simcse", &lines, &pooling, 2, &["middle", "weighted-mean"]);

    let (model, data) = (place.tiny.path(), str(&lines));
    let run = place.path("run");
    for (args, words) in [
        (vec!["--data", data, "-o", str(&run)], vec!["--model"]),
        (vec!["-m", model, "-o", str(&run)], vec!["no training data", "--data"]),
        (vec!["-m", model, "--data", data], vec!["--output"]),
    ] {
        failed(llm2vec(&[&["train", "mntp"], &args[..]].concat()).output().unwrap(), 2, &words);
    }
    assert!(!run.exists());
}

/// A plan that does not fit is refused with its numbers, and with what helps in this stage.
#[test]
fn too_large_a_plan() {
    let place = Place::new();
    for stage in STAGES {
        let data = match stage {
            // Whole batches only: there must be rows enough for one.
            "supervised" => place.write("many.jsonl", &shipped("triplets.jsonl.gz", 1).repeat(3000)),
            _ => place.data(stage),
        };
        let flags = ["--batch", "3000", "--max-length", "200000"];
        let flags =
            if stage == "mntp" { [&flags[..], &["--grouping", "lines"]].concat() } else { flags.to_vec() };
        let help = if stage == "mntp" { "--accumulation" } else { "--grad-cache" };
        let words = ["GiB (weights", "activations", "the device has", help, "--recompute"];
        place.refused(stage, &data, &flags, 1, &words);
        let flags = [&["--batch", "3000", "--max-length", "16000000"], &flags[4..]].concat();
        place.refused(stage, &data, &flags, 1, &["tokens, 2147483647 is the limit", help]);
    }
}

#[test]
fn a_mask_token_that_the_vocabulary_lacks() {
    let place = Place::new();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(place.tiny.file(file)).unwrap();
        fs::write(place.tiny.file(file), text.replace("<mask>", "<hide>").replace("mask_token", "other"))
            .unwrap();
    }
    let flags = [&SMALL[..], &["--mask-token", "mask"]].concat();
    place.refused("mntp", &place.data("mntp"), &flags, 1, &["mask token `mask`", "<mask>", "blank, eos"]);
    good(place.train("mntp", &place.data("mntp"), &[&SMALL[..], &["--mask-token", "eos"]].concat()));
}

#[test]
fn adapters_of_another_model() {
    let place = Place::new();
    let (data, other) = (place.data("simcse"), folder());
    common::random_adapter(other.path(), &common::config(&common::novel5m()), 1);
    let adapter = ["--adapter", str(other.path())];
    for more in [&[][..], &["--continue"]] {
        let flags = [&SMALL[..], &adapter, more].concat();
        place.refused("simcse", &data, &flags, 1, &["q_proj of layer 0", "[256, 256]", "[32, 32]"]);
    }
    let nothing = place.path("nothing");
    let flags = [&SMALL[..], &["--adapter", str(&nothing)]].concat();
    place.refused("simcse", &data, &flags, 1, &["nothing", "no such folder"]);
    // An old run survives the mistake.
    good(place.train("simcse", &data, &SMALL));
    let before = names(&place.path("run"));
    let flags = [&SMALL[..], &adapter, &["--continue", "--overwrite"]].concat();
    failed(place.train("simcse", &data, &flags).output().unwrap(), 1, &["q_proj of layer 0"]);
    assert_eq!(names(&place.path("run")), before);
}

#[test]
fn a_folder_that_holds_a_run() {
    let place = Place::new();
    let (data, run) = (place.data("simcse"), place.path("run"));
    let flags = [&SMALL[..], &["--save-steps", "1"]].concat();
    good(place.train("simcse", &data, &flags));
    let adapter = || fs::read(run.join("adapter_model.safetensors")).unwrap();
    let (first, before) = (adapter(), names(&run));
    let refuse = |flags: &[&str], status, words: &[&str]| {
        failed(place.train("simcse", &data, flags).output().unwrap(), status, words);
        assert!(adapter() == first && names(&run) == before, "the run was touched");
    };
    refuse(&flags, 2, &["run already holds a run", "--resume", "--overwrite"]);
    // Resumed at its end it is what it was.
    let resume = [&flags[..], &["--resume"]].concat();
    good(place.train("simcse", &data, &resume));
    assert!(adapter() == first && names(&run) == before);
    // Another configuration, and other data, by what differs.
    refuse(&[&resume[..], &["--lr", "1e-4"]].concat(), 1, &["learning_rate 0.00003 there, 0.0001 here"]);
    refuse(&[&resume[..], &["--rank", "8"]].concat(), 1, &["lora_r 16 there, 8 here"]);
    let text = fs::read_to_string(&data).unwrap();
    fs::write(&data, text.replacen("the", "teh", 1)).unwrap();
    refuse(&resume, 1, &["other training data", "the same again"]);
    fs::write(&data, text).unwrap();
    // A checkpoint that was cut short is named, and can be left out.
    let file = run.join("checkpoint-3/optimizer.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    refuse(&resume, 1, &["checkpoint-3", "optimizer.safetensors", "cut short", "delete this folder"]);
    fs::remove_dir_all(run.join("checkpoint-3")).unwrap();
    good(place.train("simcse", &data, &resume));
    assert!(adapter() == first && fs::read(&file).unwrap() == whole && names(&run) == before);
    // Cleared, it is a run of its own.
    let other = [&flags[..], &["--overwrite", "--seed", "7"]].concat();
    good(place.train("simcse", &data, &other));
    assert!(adapter() != first && names(&run) == before && place.log().len() == 3);
    // A model is never taken for a run.
    let model = ["train", "simcse", "-m", place.tiny.path(), "--data", str(&data), "-o", place.tiny.path()];
    let output = llm2vec(&[&model, &flags[..], &["--overwrite"]].concat()).output().unwrap();
    failed(output, 2, &["holds a model"]);
}

/// What was trained below has changed since: a resumed run would be another.
#[test]
fn a_layer_below_that_has_changed() {
    let place = Place::new();
    let (data, config) = (place.data("simcse"), common::config(place.tiny.dir.path()));
    let below = place.path("below");
    fs::create_dir(&below).unwrap();
    common::random_adapter(&below, &config, 1);
    let flags = [&SMALL[..], &["--save-steps", "1", "--adapter", str(&below)]].concat();
    good(place.train("simcse", &data, &flags));
    common::random_adapter(&below, &config, 2);
    let resume = [&flags[..], &["--resume"]].concat();
    failed(
        place.train("simcse", &data, &resume).output().unwrap(),
        1,
        &["checkpoint-3", "trained on top of below"],
    );
}

#[test]
fn a_loss_that_is_not_finite_ends_it() {
    let place = Place::new();
    for stage in STAGES {
        let flags = [&SMALL[..], &["--lr", "1e30", "--warmup", "0", "--save-steps", "1"]].concat();
        let words = ["step 2", "the loss", "not finite", "last checkpoint is kept", "lower learning rate"];
        failed(place.train(stage, &place.data(stage), &flags).output().unwrap(), 1, &words);
        assert_eq!(names(&place.path("run")), ["checkpoint-1", "log.jsonl", "train_config.json"]);
        assert_eq!(place.log().len(), 1);
        fs::remove_dir_all(place.path("run")).unwrap();
    }
}

#[test]
fn models_that_hold_no_numbers() {
    let mut place = Place::new();
    *place.tiny.tensor("model.norm.weight") = Raw::of_value(&[32], f32::NAN);
    place.tiny.write();
    let words = ["model.norm.weight", "NaN"];
    failed(place.train("simcse", &place.data("simcse"), &SMALL).output().unwrap(), 1, &words);
    fs::remove_file(place.tiny.file("tokenizer.json")).unwrap();
    failed(place.train("simcse", &place.data("simcse"), &SMALL).output().unwrap(), 1, &["tokenizer.json"]);
}

/// The keys of train_configs/{mntp/Sheared-Llama,simcse/Sheared-Llama,supervised/MetaLlama3.1}.json of the reference
/// as they are, but for paths and names of models.
fn reference(stage: &str, place: &Place) -> Value {
    let (model, run, data) = (place.tiny.path(), place.path("run"), place.path("train.txt"));
    let mut json = json!({
        "model_name_or_path": model, "output_dir": str(&run), "gradient_accumulation_steps": 1, "do_train": true,
        "overwrite_output_dir": true, "save_steps": 200, "stop_after_n_steps": 1000, "lora_r": 16,
        "gradient_checkpointing": true, "torch_dtype": "bfloat16", "attn_implementation": "flash_attention_2",
    });
    let contrastive = json!({
        "peft_model_name_or_path": str(&place.path("below")), "bidirectional": true, "pooling_mode": "mean",
        "remove_unused_columns": false, "disable_tqdm": false, "logging_steps": 50, "save_only_model": true, "seed": 42,
    });
    let own = match stage {
        "mntp" => json!({
            "dataset_name": "wikitext", "dataset_config_name": "wikitext-103-raw-v1", "do_eval": true,
            "per_device_train_batch_size": 32, "per_device_eval_batch_size": 32, "max_seq_length": 512,
            "mask_token_type": "blank", "data_collator_type": "default", "mlm_probability": 0.2,
            "evaluation_strategy": "steps", "eval_steps": 100,
        }),
        "simcse" => json!({
            "simcse_dropout": 0.3, "dataset_name": "Wiki1M", "dataset_file_path": str(&data), "learning_rate": 3e-5,
            "loss_scale": 20, "per_device_train_batch_size": 128, "max_seq_length": 128,
        }),
        _ => json!({
            "dataset_name": "E5", "dataset_file_path": str(&place.path("echo-data")), "learning_rate": 2e-4,
            "num_train_epochs": 3, "warmup_steps": 300, "per_device_train_batch_size": 64,
            "per_device_eval_batch_size": 64, "max_seq_length": 512,
        }),
    };
    let fields = json.as_object_mut().unwrap();
    let parts = if stage == "mntp" { vec![own] } else { vec![contrastive, own] };
    parts.iter().for_each(|part| fields.extend(part.as_object().unwrap().clone()));
    json
}

#[test]
fn the_references_configurations_run() {
    let place = Place::new();
    let data = place.write("train.txt", &shipped("persuasion.train.txt.gz", 1000));
    let rows = shipped("triplets.jsonl.gz", 64);
    fs::create_dir(place.path("echo-data")).unwrap();
    place.write("echo-data/allnli.jsonl", &rows);
    place.write("echo-data/nq.jsonl", &rows);
    fs::create_dir(place.path("below")).unwrap();
    common::random_adapter(&place.path("below"), &common::config(place.tiny.dir.path()), 1);
    for stage in STAGES {
        let json = reference(stage, &place);
        let config = place.write("reference.json", &json.to_string());
        let mut args = vec!["train", stage, "--config", str(&config), "--steps", "2", "--quiet"];
        if stage == "mntp" {
            // Which the reference takes from the hub, by `dataset_name`.
            args.extend(["--data", str(&data)]);
        }
        good(llm2vec(&args));
        assert_eq!(place.log().len(), 2, "{stage}");
        let saved: Value =
            serde_json::from_slice(&fs::read(place.path("run/train_config.json")).unwrap()).unwrap();
        for key in ["max_seq_length", "per_device_train_batch_size", "lora_r", "gradient_checkpointing"] {
            assert_eq!(saved[key], json[key], "{stage}: {key}");
        }
        // What was saved runs again, and gives the same.
        let adapter = || fs::read(place.path("run/adapter_model.safetensors")).unwrap();
        let before = adapter();
        let again = place.path("again.json");
        fs::copy(place.path("run/train_config.json"), &again).unwrap();
        good(llm2vec(&["train", stage, "--config", str(&again), "--quiet"]));
        assert!(adapter() == before, "{stage}");
    }
    let mut json = reference("simcse", &place);
    json["mlm_probabilty"] = json!(0.2);
    let config = place.write("wrong.json", &json.to_string());
    let run = llm2vec(&["train", "simcse", "--config", str(&config)]).output().unwrap();
    failed(run, 1, &["wrong.json", "unknown key \"mlm_probabilty\"", "\"mlm_probability\" meant"]);
    place.write("wrong.json", "{\"lora_r\": 16,}");
    failed(llm2vec(&["train", "simcse", "--config", str(&config)]).output().unwrap(), 1, &["wrong.json"]);
}
