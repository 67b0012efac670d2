//! Rows of words by a model: one pass over several layers, states one token earlier, and which stacks want those.

use crate::command::folder;
use crate::common::{novel5m, random_adapter};
use llm2vec::encode::words::{Features, LabelPosition, WordRows};
use llm2vec::eval::probe;
use llm2vec::eval::words::features::Extractor;
use llm2vec::eval::words::task::WordTask;
use llm2vec::format::input::joined;
use llm2vec::format::peft::Adapter;
use llm2vec::pretrained::chain::{self, Link};
use llm2vec::pretrained::names::Located;
use llm2vec::{Attention, Empty, Encoder, EncoderOptions, Error, Item, Level, Parts, Passage, WordPooling};
use serde_json::json;
use std::cell::Cell;
use std::fs;
use std::rc::Rc;

const SENTENCES: [&[&str]; 4] = [
    &["Anne", "walked", "to", "Kellynch", "Hall", "."],
    &["antidisestablishmentarianism", "bored", "Sir", "Walter"],
    &["x"],
    &["She", "would", "not", "overdrive", "disinterestedness", "!"],
];

fn options() -> EncoderOptions {
    EncoderOptions::new(novel5m().to_str().unwrap())
}

fn rows(layers: &[usize], pooling: WordPooling, position: LabelPosition) -> WordRows {
    WordRows { layers: layers.to_vec(), pooling, position }
}

fn words(encoder: &mut Encoder, rows: &WordRows) -> Vec<Features> {
    let owned = SENTENCES.map(|words| words.iter().map(|w| w.to_string()).collect::<Vec<_>>());
    let texts = owned.map(|words| joined(&words));
    let passages: Vec<Passage> = texts
        .iter()
        .map(|(text, words)| Passage { item: Item { instruction: "", text }, words: Some(words) })
        .collect();
    encoder.words(&passages, rows, |_, e: Error| e, |_, _| {}).unwrap()
}

/// Rows of tokens or words of one layer, by the path of `encode`.
fn blocks(encoder: &mut Encoder, level: Level) -> Vec<llm2vec::Block> {
    let texts = SENTENCES.map(|words| words.join(" "));
    let passages: Vec<Passage> =
        texts.iter().map(|text| Passage { item: Item { instruction: "", text }, words: None }).collect();
    let parts = Parts { level, word_pooling: WordPooling::Mean, empty: Empty::Zero, normalize: false };
    encoder.tokens(&passages, parts, |_, _| {}).unwrap().into_iter().map(Result::unwrap).collect()
}

/// Bit for bit what a pass for each layer gives, the last with its norm and the embedding too.
#[test]
fn one_pass_has_the_rows_of_every_layer() {
    let all = [0, 1, 3, 5, 6];
    let mut encoder = Encoder::open(&options()).unwrap();
    let got = words(&mut encoder, &rows(&all, WordPooling::Mean, LabelPosition::Same));
    for (which, layer) in all.into_iter().enumerate() {
        let mut alone = Encoder::open(&EncoderOptions { layer: Some(layer as i64), ..options() }).unwrap();
        let wanted = blocks(&mut alone, Level::Word);
        for (got, wanted) in got.iter().zip(&wanted) {
            assert_eq!(got.layers[which], wanted.vectors, "layer {layer}");
            assert_eq!(got.words.len(), wanted.offsets.len());
        }
    }
    // A model that ends at block 3 has no final norm.
    let mut short = Encoder::open(&EncoderOptions { layer: Some(3), ..options() }).unwrap();
    let short = words(&mut short, &rows(&[1, 3], WordPooling::Mean, LabelPosition::Same));
    for (got, short) in got.iter().zip(&short) {
        assert_eq!(short.layers, [&got.layers[1][..], &got.layers[2]]);
    }
}

/// Two layers of tags of the same words cost a pass, and a task is what a probe gives on its own.
#[test]
fn labels_of_a_folder_share_a_pass() {
    let dir = folder();
    let line = |i: usize| {
        let words = SENTENCES[i % 4];
        let tags = |n: usize| words.iter().map(|w| ["O", "B-X", "I-X"][w.len() % n]).collect::<Vec<_>>();
        json!({ "tokens": words, "chunk": tags(2), "ner": tags(3) }).to_string() + "\n"
    };
    for (name, count) in [("few.train.jsonl", 12), ("few.dev.jsonl", 4), ("few.test.jsonl", 4)] {
        fs::write(dir.path().join(name), (0..count).map(line).collect::<String>()).unwrap();
    }
    let (seen, load) = (Rc::new(Cell::new(0)), Box::new(|| Encoder::open(&options())));
    let count = Rc::clone(&seen);
    let rows = rows(&[6], WordPooling::Mean, LabelPosition::Same);
    let of = json!("novel5m");
    let mut extractor =
        Extractor::new(None, of, rows, load, move |texts, _| count.set(count.get() + texts)).unwrap();
    let probe = probe::Options { rate: 0.05, ..probe::Options::default() };
    for (label, classes) in [("chunk", 2), ("ner", 3)] {
        let task = WordTask::read(&format!("{}:{label}", dir.path().join("few").display())).unwrap();
        assert_eq!((task.id(), task.main()), (format!("few/{label}"), "f1"));
        let (report, scores) = task.run(&mut extractor, probe, |_, _, _| {}).unwrap();
        let layer = &report.layers[0];
        // The validation file has the test file's words, which cost no pass either.
        assert_eq!((report.classes.len(), seen.get()), (classes, 12 + 4));
        assert_eq!((scores.value("f1"), &*scores.main), (Some(layer.test.f1), "f1"));
        assert_eq!(scores.subsets[0].1.value("f1"), Some(layer.validation.as_ref().unwrap().f1));
        assert!(layer.test.f1 > 0.0);
    }
}

/// w1 = mean(BOS, t11), w2 = mean(t12, t21, …): every token's row moves one place to the word behind it.
#[test]
fn rows_before_are_those_of_the_paper() {
    let mut encoder =
        Encoder::open(&EncoderOptions { attention: Some(Attention::Causal), ..options() }).unwrap();
    let c = encoder.row_width(Level::Token);
    let tokens = blocks(&mut encoder, Level::Token);
    let before = words(&mut encoder, &rows(&[6], WordPooling::Mean, LabelPosition::Before));
    let first = words(&mut encoder, &rows(&[6], WordPooling::First, LabelPosition::Before));
    // No token of a text has reached it, so BOS is the same in every sentence.
    let bos = first[0].layers[0][..c].to_vec();
    let mut several = 0;
    for ((sentence, tokens), (before, first)) in SENTENCES.iter().zip(&tokens).zip(before.iter().zip(&first))
    {
        assert_eq!(before.words, (0..sentence.len()).collect::<Vec<_>>());
        assert!(bos.iter().zip(&first.layers[0]).all(|(a, b)| (a - b).abs() < 1e-5));
        let (text, mut end) = (sentence.join(" "), 0);
        let shifted: Vec<&[f32]> = std::iter::once(&bos[..]).chain(tokens.vectors.chunks_exact(c)).collect();
        for (word, got) in sentence.iter().zip(before.layers[0].chunks_exact(c)) {
            let start = end + text[end..].find(word).unwrap();
            end = start + word.len();
            let own = |o: &&(usize, &std::ops::Range<usize>)| o.1.start < end && o.1.end > start;
            let places: Vec<usize> =
                tokens.offsets.iter().enumerate().filter(|o| own(&&(o.0, o.1))).map(|o| o.0).collect();
            several += usize::from(places.len() > 1);
            for (i, got) in got.iter().enumerate() {
                let mean = places.iter().map(|&t| shifted[t][i]).sum::<f32>() / places.len() as f32;
                assert!((got - mean).abs() < 1e-5, "{word}, {i}: {got}, {mean} was wanted");
            }
        }
    }
    assert!(several >= 3, "{several} words of several tokens");
}

/// By the run's own record, and by what is recorded of those below; never by what a folder is called.
#[test]
fn a_stack_knows_that_mntp_is_in_it() {
    let dir = folder();
    let adapter = |name: &str, stage: Option<&str>| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        random_adapter(&path, &crate::common::config(&novel5m()), 1);
        if let Some(stage) = stage {
            fs::write(path.join("train_config.json"), format!("{{\"stage\": \"{stage}\"}}")).unwrap();
        }
        let opened = Adapter::open(&path).unwrap();
        Link::new(&Located::folder(path), &opened)
    };
    let (a, b) = (adapter("first", Some("mntp")), adapter("second", Some("simcse")));
    assert_eq!(chain::mntp(&[b.clone(), a.clone()]), Some(&a));
    assert_eq!(chain::mntp(std::slice::from_ref(&b)), None);
    // A checkpoint is of the run in whose folder it lies, another folder there is not.
    assert!(chain::mntp(&[adapter("first/checkpoint-3", None)]).is_some());
    assert_eq!(chain::mntp(&[adapter("first/other", None)]), None);
    assert_eq!(chain::mntp(&[adapter("Some-Model-mntp", None), adapter("mntp", Some("supervised"))]), None);
    // A published one has no record of its run; its repository's name is its own.
    let at = Located {
        name: "org/LLM2Vec-Some-Model-mntp".into(),
        dir: dir.path().join("Some-Model-mntp"),
        hub: true,
    };
    let published = Link::new(&at, &Adapter::open(&at.dir).unwrap());
    assert_eq!(chain::mntp(std::slice::from_ref(&published)), Some(&published));
    // What is recorded of it goes with it, and a record of before says nothing of the stage.
    let again: Link = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
    assert_eq!(again, a);
    let old: Link = serde_json::from_str(r#"{"name": "mntp", "sha256": "00"}"#).unwrap();
    assert_eq!(chain::mntp(&[old]), None);
}
