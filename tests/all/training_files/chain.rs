//! An adapter without those that it was trained on top of is refused.

use super::{adapter, refused};
use crate::common::novel5m;
use llm2vec::error::Result;
use llm2vec::format::hf::{self, Checkpoint};
use llm2vec::format::peft::{Adapter, save};
use llm2vec::pretrained::chain::Link;
use llm2vec::pretrained::names::Located;
use llm2vec::pretrained::open::{Options, Setup};
use llm2vec::pretrained::settings::Settings;
use llm2vec::train::checkpoint::write_adapter;
use std::path::{Path, PathBuf};
use std::process::Command;

fn open(model: &Path, adapters: &[&Path]) -> Result<Setup> {
    let mut options = Options::new(model.to_string_lossy());
    options.adapters = adapters.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    Setup::open(&options)
}

fn link_of(dir: &Path) -> Link {
    Link::new(&Located::folder(dir), &Adapter::open(dir).unwrap())
}

/// The adapter of `seed`, written as a run on top of `below` writes it.
fn train(dir: &Path, seed: u64, below: &[&Path]) -> PathBuf {
    std::fs::create_dir(dir).unwrap();
    let settings = open(&novel5m(), below).unwrap().settings();
    write_adapter(dir, &adapter(seed), &settings).unwrap();
    dir.to_path_buf()
}

#[test]
fn adapters_are_taken_in_the_order_of_their_training_only() {
    let tmp = tempfile::tempdir().unwrap();
    let mntp = train(&tmp.path().join("mntp"), 1, &[]);
    let simcse = train(&tmp.path().join("simcse"), 2, &[&mntp]);
    let other = train(&tmp.path().join("other"), 3, &[]);
    let model = novel5m();
    let names = |setup: Setup| setup.files.chain.into_iter().map(|l| l.name).collect::<Vec<_>>();
    assert_eq!(names(open(&model, &[&mntp, &simcse]).unwrap()), ["mntp", "simcse"]);
    assert_eq!(names(open(&model, &[&mntp]).unwrap()), ["mntp"]);

    refused(
        open(&model, &[&simcse]),
        &["simcse: was trained on top of mntp (", "the bare model", "adapters mntp before it"],
    );
    refused(open(&model, &[&simcse, &mntp]), &["simcse: was trained on top of mntp"]);
    refused(open(&model, &[&other, &simcse]), &["here it is put on other", "adapters mntp"]);
    refused(open(&model, &[&mntp, &other]), &["other: was trained on top of the bare model", "no other"]);
    refused(open(&model, &[&mntp, &mntp, &simcse]), &["mntp: was trained on top of the bare model"]);

    // A layer that was trained further under the same name is another layer.
    save(&mntp, &adapter(4)).unwrap();
    refused(open(&model, &[&mntp, &simcse]), &["simcse: was trained on top of mntp", "put on mntp"]);
    // No record, as PEFT writes it: no check.
    std::fs::remove_file(simcse.join("llm2vec_encoder.json")).unwrap();
    assert_eq!(names(open(&model, &[&simcse]).unwrap()), ["simcse"]);
    std::fs::write(simcse.join("llm2vec_config.json"), r#"{"adapters": ["mntp"]}"#).unwrap();
    refused(open(&model, &[&simcse]), &["llm2vec_config.json", "\"adapters\"", "sha256"]);
}

#[test]
fn a_merged_model_remembers_what_is_in_it() {
    let tmp = tempfile::tempdir().unwrap();
    let mntp = train(&tmp.path().join("mntp"), 1, &[]);
    let simcse = train(&tmp.path().join("simcse"), 2, &[&mntp]);
    let merged = tmp.path().join("merged");
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm2vec"));
    command.arg("merge").arg("-m").arg(novel5m()).arg("--adapter").arg(&mntp).arg("-o").arg(&merged);
    assert!(command.status().unwrap().success());
    assert_eq!(open(&merged, &[&simcse]).unwrap().files.chain.len(), 2);
    refused(open(&merged, &[&mntp, &simcse]), &["mntp: was trained on top of the bare model"]);
    let recorded = Settings::read(&merged).unwrap().unwrap().adapters.unwrap();
    assert_eq!(recorded, [link_of(&mntp)]);
}

/// The link is of the numbers: another form of the same file gives the same, another scale does not.
#[test]
fn links_are_of_what_an_adapter_does() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = train(&tmp.path().join("a"), 1, &[]);
    let link = link_of(&dir);
    assert_eq!(link.sha256.len(), 64);

    let file = dir.join("adapter_model.safetensors");
    let tensors = Checkpoint::open_file(&file).unwrap();
    let read = |name: &str| {
        let t = tensors.get(name).unwrap();
        let values: Vec<f32> = t.data.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        (t.shape, values)
    };
    let names: Vec<&str> = tensors.names().collect();
    let values: Vec<_> = names.iter().map(|n| read(n)).collect();
    let longer = names.iter().map(|n| n.replace("base_model.model.layers", "base_model.model.model.layers"));
    let views =
        longer.zip(&values).map(|(name, (shape, v))| (name, hf::Floats { shape: shape.clone(), values: v }));
    hf::write_safetensors(&file, views.collect()).unwrap();
    let again = Adapter::open(&dir).unwrap();
    assert_eq!(Link::new(&Located::folder(&dir), &again), link);

    let mut scaled = again.clone();
    scaled.pairs[0].scale *= 2.0;
    let mut nudged = again;
    nudged.pairs[0].b[511] += 1e-7;
    for other in [scaled, nudged] {
        assert_ne!(Link::new(&Located::folder(&dir), &other).sha256, link.sha256);
    }
}
