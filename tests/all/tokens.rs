//! Rows for tokens and words: alignment against a slow check, cuts, what has no token, company, and the kernels.

use crate::answers;
use crate::command::Tiny;
use crate::common;

use common::{here, novel5m};
use llm2vec::text::tokenizer::Tokenizer;
use llm2vec::{
    Block, Compat, Device, Empty, Encoder, EncoderOptions, Item, Level, Parts, Passage, Template, WordPooling,
};
use std::ops::Range;
use std::path::{Path, PathBuf};

const ODD: [&str; 9] = [
    "A heavy rain fell upon the roof all night.",
    "  leading  and   doubled\tspaces \n and a line ",
    "naïve café — “quoted” … Überraschungsdonaudampfschiff",
    "日本語の文と中文句子。 機械学習 は",
    "smile \u{1f642} and flags \u{1f1f3}\u{1f1f1}! \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} e\u{301}",
    "\u{0} \u{7f} \u{fffd} \u{10ffff} \u{3000} \u{a0}x",
    "antidisestablishmentarianism's 3.14159 1,000,000 a_b[0]+1; don't",
    "x",
    "<bos> in the <s> text </s> [INST]",
];

fn options(model: &Path) -> EncoderOptions {
    EncoderOptions::new(model.to_str().unwrap())
}

fn parts(level: Level) -> Parts {
    Parts { level, word_pooling: WordPooling::Mean, empty: Empty::Zero, normalize: false }
}

fn passage<'a>(instruction: &'a str, text: &'a str) -> Passage<'a> {
    Passage { item: Item { instruction, text }, words: None }
}

fn blocks(encoder: &mut Encoder, passages: &[Passage], parts: Parts) -> Vec<Block> {
    let answers = encoder.tokens(passages, parts, |_, _| {}).unwrap();
    answers.into_iter().map(Result::unwrap).collect()
}

/// Words by looking at every character.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut inside = false;
    for (at, c) in text.char_indices() {
        match (c.is_whitespace(), inside) {
            (false, false) => words.push(at..at + c.len_utf8()),
            (false, true) => words.last_mut().unwrap().end = at + c.len_utf8(),
            (true, _) => {}
        }
        inside = !c.is_whitespace();
    }
    words
}

/// The models whose tokenizers differ: bytes, pieces with and without byte fallback.
fn models() -> Vec<PathBuf> {
    let more =
        ["babyllama105", "TinyStories-656K", "stories260K"].map(|m| here("../shared/data/models").join(m));
    let there = more.into_iter().filter(|m| m.join("model.safetensors").is_file());
    std::iter::once(novel5m()).chain(there).collect()
}

#[test]
fn words_are_the_tokens_that_share_a_byte_with_them() {
    let (mut several, mut compared) = (0, 0);
    let list = models();
    if list.len() == 1 {
        println!("skipped: no ../shared (one tokenizer of four)");
    }
    for (model, template) in list.iter().flat_map(|m| ["none", "llama2"].map(|t| (m, t))) {
        let template = Some(Template::by_name(template).unwrap());
        let mut encoder = Encoder::open(&EncoderOptions { template, ..options(model) }).unwrap();
        let c = encoder.row_width(Level::Token);
        let passages = ODD.map(|text| passage("Say it:", text));
        let tokens = blocks(&mut encoder, &passages, parts(Level::Token));
        for word_pooling in [WordPooling::First, WordPooling::Last, WordPooling::Mean] {
            let got = blocks(&mut encoder, &passages, Parts { word_pooling, ..parts(Level::Word) });
            for ((text, tokens), got) in ODD.iter().zip(&tokens).zip(got) {
                assert_eq!(got.offsets, words(text), "{text:?}");
                assert!(!got.cut && got.vectors.len() == c * got.offsets.len());
                for (word, row) in got.offsets.iter().zip(got.vectors.chunks(c)) {
                    let shares = |t: &Range<usize>| word.clone().any(|byte| t.contains(&byte));
                    let own = tokens.offsets.iter().zip(tokens.vectors.chunks(c)).filter(|(t, _)| shares(t));
                    let own: Vec<&[f32]> = own.map(|(_, row)| row).collect();
                    let column = |i: usize| match (word_pooling, own.as_slice()) {
                        (_, []) => 0.0,
                        (WordPooling::First, [first, ..]) => first[i],
                        (WordPooling::Last, [.., last]) => last[i],
                        (WordPooling::Mean, own) => own.iter().map(|r| r[i]).sum::<f32>() / own.len() as f32,
                    };
                    for (i, got) in row.iter().enumerate() {
                        let off = (got - column(i)).abs();
                        assert!(
                            off <= 1e-4,
                            "{} {text:?} {:?}: off by {off}",
                            model.display(),
                            &text[word.clone()]
                        );
                    }
                    several += usize::from(own.len() > 1);
                    compared += 1;
                }
            }
        }
    }
    assert!(several > 50, "{several} of {compared} words have several tokens");
    assert_eq!(compared, 300 * list.len(), "a tokenizer has all words of all texts");
}

/// Which rows a text's tokens are: those of the same row of ids under a mean over them.
#[test]
fn token_rows_are_the_text_s_own() {
    let mut encoder = Encoder::open(&options(&novel5m())).unwrap();
    let tokenizer = Tokenizer::open(&novel5m()).unwrap();
    let passages = ODD.map(|text| passage("", text));
    let rows = blocks(&mut encoder, &passages, parts(Level::Token));
    let texts = blocks(&mut encoder, &passages, parts(Level::Text));
    for ((text, rows), whole) in ODD.iter().zip(&rows).zip(texts) {
        let encoded = tokenizer.encode(text, true).unwrap();
        let own = encoded.offsets.iter().zip(&encoded.special).filter(|(_, special)| !**special);
        let own: Vec<Range<usize>> = own.map(|(o, _)| o.0..o.1).collect();
        assert_eq!(rows.offsets, own, "{text:?}");
        let mean = |i: usize| rows.vectors.iter().skip(i).step_by(256).sum::<f32>() / own.len() as f32;
        assert!(whole.vectors.iter().enumerate().all(|(i, v)| (v - mean(i)).abs() < 1e-4), "{text:?}");
    }
    // Alone and in company, bit for bit; and through packs of a few tokens.
    for (passage, rows) in passages.iter().zip(&rows) {
        assert_eq!(&blocks(&mut encoder, &[*passage], parts(Level::Token))[0], rows);
    }
    let small = EncoderOptions { tokens: Some(64), max_length: Some(64), ..options(&novel5m()) };
    let mut small = Encoder::open(&small).unwrap();
    assert!(blocks(&mut small, &passages, parts(Level::Token)) == rows);
    // Unit rows are asked for, and a text's are the options'.
    let unit = blocks(&mut small, &passages, Parts { normalize: true, ..parts(Level::Word) });
    for row in unit.iter().flat_map(|b| b.vectors.chunks(256)) {
        assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

/// As many words as fit whole: neither a word that has lost a token nor any behind it.
#[test]
fn a_cut_text_has_its_first_whole_words() {
    let model = novel5m();
    let tokenizer = Tokenizer::open(&model).unwrap();
    let mut whole = Encoder::open(&options(&model)).unwrap();
    for text in ODD {
        let ends = tokenizer.encode(text, false).unwrap().offsets;
        let all = blocks(&mut whole, &[passage("", text)], parts(Level::Word)).remove(0);
        for most in 1..=ends.len() + 1 {
            let limited = EncoderOptions { doc_max_length: Some(most), ..options(&model) };
            let mut encoder = Encoder::open(&limited).unwrap();
            let tokens = blocks(&mut encoder, &[passage("", text)], parts(Level::Token)).remove(0);
            let got = blocks(&mut encoder, &[passage("", text)], parts(Level::Word)).remove(0);
            let cut = tokens.offsets.len() < ends.len();
            assert_eq!((got.cut, tokens.cut), (cut, cut), "{text:?} in {most}");
            // A word is whole if the text's other tokens share no byte with it.
            let lost = &ends[tokens.offsets.len()..];
            let keeps = |w: &&Range<usize>| lost.iter().all(|&(from, to)| to <= w.start || from >= w.end);
            let kept = all.offsets.iter().take_while(keeps).count();
            assert_eq!(got.offsets, all.offsets[..kept], "{text:?} in {most}");
        }
    }
    // A word of many tokens that comes first leaves none, which is no error.
    let limited = EncoderOptions { doc_max_length: Some(1), ..options(&model) };
    let mut encoder = Encoder::open(&limited).unwrap();
    let strict = Parts { empty: Empty::Error, ..parts(Level::Word) };
    let got = blocks(&mut encoder, &[passage("", "antidisestablishmentarianism")], strict).remove(0);
    assert_eq!(got, Block { cut: true, ..Block::default() });
    // So long that it is not tokenised to its end.
    let long = "word ".repeat(100_000);
    let mut encoder = Encoder::open(&options(&model)).unwrap();
    let got = blocks(&mut encoder, &[passage("", &long)], parts(Level::Word)).remove(0);
    assert!(got.cut && got.offsets.len() > 100 && got.offsets.iter().all(|o| &long[o.clone()] == "word"));
}

/// An answer each, and errors where there is nothing to answer.
#[test]
fn what_has_no_token_is_said_or_is_zero() {
    let mut encoder = Encoder::open(&options(&novel5m())).unwrap();
    let words = [0..3, 4..4, 5..8];
    let given = Passage { words: Some(&words), ..passage("", "one  two") };
    let passages = [passage("", "one"), passage("", ""), given, passage("", "two")];
    let strict = Parts { empty: Empty::Error, ..parts(Level::Word) };
    let answers = encoder.tokens(&passages, strict, |_, _| {}).unwrap();
    let said = |i: usize| answers[i].as_ref().unwrap_err().to_string();
    assert!(answers[0].is_ok() && answers[3].is_ok());
    assert!(
        said(1).contains("empty text") && said(2).contains("word 2 has no token"),
        "{} {}",
        said(1),
        said(2)
    );
    let zero = blocks(&mut encoder, &passages, parts(Level::Word));
    assert_eq!((zero[1].vectors.len(), zero[2].vectors.len()), (0, 3 * 256));
    let nothing: Vec<bool> = zero[2].vectors.chunks(256).map(|row| row.iter().all(|v| *v == 0.0)).collect();
    assert_eq!(nothing, [false, true, false]);
    let reference = EncoderOptions { compat: Some(Compat::Reference), ..options(&novel5m()) };
    let answers = Encoder::open(&reference).unwrap().tokens(&passages, strict, |_, _| {}).unwrap();
    assert!(answers[0].as_ref().unwrap_err().to_string().starts_with("compat reference"));
}

/// The kernels' rows, in the emulator, within the rounding of bf16.
#[test]
fn rows_by_the_kernels() {
    if !answers::built() {
        return;
    }
    let tiny = Tiny::wide(64);
    let texts = ["A heavy rain fell.", "naïve snow"].map(|text| passage("", text));
    for layer in [None, Some(1), Some(0)] {
        let rows = |device| {
            let options = EncoderOptions {
                device,
                layer,
                tokens: Some(32),
                max_length: Some(32),
                ..options(tiny.dir.path())
            };
            let mut encoder = Encoder::open(&options).unwrap();
            [Level::Token, Level::Word].map(|level| blocks(&mut encoder, &texts, parts(level))).concat()
        };
        let [cpu, gpu] = ["cpu", "emulated"].map(|name| rows(Device::by_name(name).unwrap()));
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            assert_eq!(cpu.offsets, gpu.offsets);
            let off = crate::command::off(&gpu.vectors, &cpu.vectors);
            assert!(off < 0.03, "layer {layer:?}: off by {off}");
        }
    }
}
