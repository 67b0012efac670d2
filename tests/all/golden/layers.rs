//! States of every layer, and of the causal mask, as the encoder gives them for each token of a text.

use super::{here, read_json};
use llm2vec::format::hf::Checkpoint;
use llm2vec::{Attention, Block, Empty, Encoder, EncoderOptions, Item, Level, Parts, Passage, WordPooling};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The golden's model with a tokenizer of words: `t94` is token 94.
fn folder(model: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(model).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let config = read_json(&dir.path().join("config.json")).unwrap();
    let vocab: Map<String, Value> =
        (0..config["vocab_size"].as_u64().unwrap()).map(|id| (format!("t{id}"), json!(id))).collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

fn text(ids: &Value) -> String {
    let words = ids.as_array().unwrap().iter().map(|id| format!("t{id}"));
    words.collect::<Vec<_>>().join(" ")
}

fn rows(options: &EncoderOptions, text: &str, level: Level) -> Block {
    let parts = Parts { level, word_pooling: WordPooling::Mean, empty: Empty::Error, normalize: false };
    let passage = Passage { item: Item { instruction: "", text }, words: None };
    let mut encoder = Encoder::open(options).unwrap();
    encoder.tokens(&[passage], parts, |_, _| {}).unwrap().remove(0).unwrap()
}

fn floats(golden: &Checkpoint, name: &str) -> Option<Vec<f32>> {
    let data = golden.get(name)?.data;
    Some(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// The goldens' own tolerance.
#[track_caller]
fn near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 2e-4 + 1e-4 * w.abs(), "{what}: {g}, Transformers says {w}");
    }
}

#[test]
fn every_layer_equals_transformers_hidden_states() {
    let (mut layers, mut causal) = (0, 0);
    for entry in std::fs::read_dir(here("tests/golden")).unwrap() {
        let dir = entry.unwrap().path();
        let Ok(json) = read_json(&dir.join("golden.json")) else { continue };
        let golden = Checkpoint::open_file(&dir.join("golden.safetensors")).unwrap();
        let model = folder(&dir.join("model"));
        let options = EncoderOptions::new(model.path().to_str().unwrap());
        let count =
            llm2vec::model::config::Config::parse(&read_json(&model.path().join("config.json")).unwrap());
        let count = count.unwrap().layers as i64;
        let k = json["layers_sentence"].as_u64().unwrap() as usize;
        let sentence = text(&json["token_ids"][k]);
        for layer in 0..=count {
            let Some(want) = floats(&golden, &format!("layer.{layer}")) else { continue };
            let name = format!("{}, layer {layer}", dir.display());
            let at = |layer| EncoderOptions {
                layer: Some(layer),
                attention: Some(Attention::Full),
                ..options.clone()
            };
            let got = rows(&at(layer), &sentence, Level::Token);
            near(&name, &got.vectors, &want);
            assert_eq!(got, rows(&at(layer - count - 1), &sentence, Level::Token), "{name} from the end");
            // A text's vector is the mean of the same states.
            let c = want.len() / got.offsets.len();
            let mean =
                |column: usize| want.iter().skip(column).step_by(c).sum::<f32>() / got.offsets.len() as f32;
            let mean: Vec<f32> = (0..c).map(mean).collect();
            near(&name, &rows(&at(layer), &sentence, Level::Text).vectors, &mean);
            layers += 1;
        }
        let ids = json["token_ids"].as_array().unwrap();
        for (k, ids) in ids.iter().enumerate() {
            let window = if json["window"].is_null() { "" } else { "window." };
            let Some(want) = floats(&golden, &format!("causal.{window}hidden.{k:02}")) else { continue };
            let options = EncoderOptions { attention: Some(Attention::Causal), ..options.clone() };
            let got = rows(&options, &text(ids), Level::Token);
            let c = got.vectors.len() / got.offsets.len();
            let places = golden.get(&format!("pos.{k:02}")).unwrap().data.as_chunks::<8>().0;
            let kept = places.iter().flat_map(|b| &got.vectors[i64::from_le_bytes(*b) as usize * c..][..c]);
            if !got.cut {
                near(&format!("{}, causal {k}", dir.display()), &kept.copied().collect::<Vec<_>>(), &want);
                causal += 1;
            }
        }
        for beyond in [count + 1, -count - 2] {
            let refused = Encoder::open(&EncoderOptions { layer: Some(beyond), ..options.clone() });
            let said = refused.err().unwrap().to_string();
            assert!(said.starts_with(&format!("layer {beyond}: the model has 0")), "{said}");
        }
    }
    assert!(layers >= 10 && causal >= 10, "{layers} layers, {causal} causal texts compared");
}
