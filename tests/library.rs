//! The library as another program uses it, with the command and without: feature `cli`.

use llm2vec::error::{Setting, Spelling};
use llm2vec::{Encoder, EncoderOptions, Stage, TrainConfig, Trainer, TrainerOptions};
use std::path::Path;
use std::process::Command;

const MODEL: &str = "tests/models/novel5m";

/// The names of all crates that a program gets with ours, under these flags.
fn dependencies(flags: &[&str]) -> Vec<String> {
    let mut tree = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    tree.args(["tree", "--locked", "--offline", "-p", "llm2vec", "-e", "normal", "--prefix", "none"]);
    let told = tree.args(flags).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told = String::from_utf8(told.stdout).unwrap();
    told.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_string())).collect()
}

/// What only a command needs stays out of the tree of who uses the library.
#[test]
fn without_the_command_its_crates_are_not_in_the_tree() {
    const OF_THE_COMMAND: [&str; 4] = ["clap", "indicatif", "plotters", "signal-hook"];
    let [with, without] = [dependencies(&[]), dependencies(&["--no-default-features"])];
    for name in OF_THE_COMMAND {
        assert!(with.iter().any(|n| n == name), "{name} is not even in the command's tree");
        assert!(!without.iter().any(|n| n == name), "{name} is in the library's tree");
    }
    assert!(without.iter().any(|n| n == "tokenizers"));
}

#[test]
fn texts_become_vectors() {
    let mut encoder = Encoder::open(&EncoderOptions::new(MODEL)).unwrap();
    let vectors = encoder.embed(&["Rain fell upon the roof.", "Snow lay upon the fields."]).unwrap();
    assert!(vectors.len() == 2 && vectors.iter().all(|v| v.len() == 256));
}

/// A setting is said by the field's name, is there for a program to read, and can be spelled another way.
#[test]
fn errors_name_a_setting_by_its_field() {
    let options = EncoderOptions { max_length: Some(0), ..EncoderOptions::new(MODEL) };
    let refused = Encoder::open(&options).err().expect("no length");
    assert_eq!(refused.to_string(), "max_length 0: expected 1 to 16777216");
    assert_eq!(refused.message().settings().collect::<Vec<_>>(), [Setting::MaxLength]);
    let loud = Spelling(|setting| setting.name().to_uppercase());
    assert_eq!(refused.message().spelled(loud), "MAX_LENGTH 0: expected 1 to 16777216");

    // Through an error around it.
    let mut encoder = Encoder::open(&EncoderOptions::new(MODEL)).unwrap();
    let refused = encoder.embed(&["", "Rain."]).unwrap_err();
    assert!(
        refused.to_string().starts_with("text 0: an empty text has nothing to pool; empty zero"),
        "{refused}"
    );
    assert_eq!(refused.message().settings().collect::<Vec<_>>(), [Setting::Empty]);
}

fn three_steps(folder: &Path) -> TrainConfig {
    TrainConfig {
        model_name_or_path: Some(MODEL.into()),
        train_file: Some("tests/texts/sentences.txt".into()),
        output_dir: Some(folder.to_string_lossy().into_owned()),
        stop_after_n_steps: 3,
        per_device_train_batch_size: 4,
        max_seq_length: 24,
        ..TrainConfig::new(Stage::Simcse)
    }
}

/// The same training with the command and without; a plot is drawn with it, and without it refused before any work.
#[test]
fn a_plot_needs_the_command_and_training_does_not() {
    let place = tempfile::tempdir().unwrap();
    let (run, plot) = (place.path().join("run"), place.path().join("loss.svg"));
    let options = || TrainerOptions::new(three_steps(&run));
    let drawn = Trainer::open(TrainerOptions { plot: Some(plot.clone()), ..options() });
    if cfg!(feature = "cli") {
        drawn.unwrap().run().unwrap();
        assert!(plot.exists());
        return;
    }
    let refused = drawn.err().expect("no plot").to_string();
    assert!(refused.starts_with("plot: ") && refused.contains("feature `cli`"), "{refused}");
    assert!(!run.exists(), "something was done before the refusal");
    assert_eq!(Trainer::open(options()).unwrap().run().unwrap().steps, 3);
}
