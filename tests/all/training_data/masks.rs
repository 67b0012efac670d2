//! Blocks of tokens, and what is hidden in them.

use super::{folder, refused, write};
use crate::common::novel5m;
use llm2vec::text::tokenizer::Tokenizer;
use llm2vec::train::blocks::{Block, Blocks, Grouping};
use llm2vec::train::data::{Items, Texts};
use llm2vec::train::mask::{Draw, MaskToken, Masking, Strategy};

const BOS: u32 = 1;
const LENGTH: usize = 64;

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&novel5m()).unwrap()
}

/// Lines of 0 to 12 words; every seventh is blank.
fn lines(n: usize) -> Vec<String> {
    let words = ["the", "storm", "letter", "_", "Elizabeth's", "1813", "sea."];
    let line = |i: usize| {
        (0..(i % 7) * 2).map(|j| words[(i * 31 + j * j) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    (0..n).map(line).collect()
}

fn blocks(lines: &[String], grouping: Grouping, length: usize) -> Vec<Block> {
    let dir = folder();
    let mut texts = Texts::lines(&write(&dir, "a.txt", &(lines.join("\n") + "\n")), true).unwrap();
    let mut blocks = Blocks::new(&mut texts, &tokenizer(), grouping, length).unwrap();
    let all: Vec<Block> = (0..blocks.len()).map(|i| blocks.read(i).unwrap()).collect();
    assert_eq!(blocks.tokens() as usize, all.iter().map(|b| b.ids.len()).sum::<usize>());
    all
}

/// The ids of every line that is not blank.
fn ids(lines: &[String]) -> Vec<Vec<u32>> {
    let tokenizer = tokenizer();
    lines.iter().filter(|l| !l.is_empty()).map(|l| tokenizer.encode(l, true).unwrap().ids).collect()
}

#[test]
fn joined_blocks_are_the_references() {
    let lines = lines(2_300);
    let tokenizer = tokenizer();
    let got = blocks(&lines, Grouping::Joined, LENGTH);
    // group_texts, said again: one list per 1000 lines, slices of it, no rest.
    let mut wanted: Vec<Vec<u32>> = Vec::new();
    for group in [&lines[..1000], &lines[1000..2000], &lines[2000..]] {
        let joined: Vec<u32> = group.iter().flat_map(|l| tokenizer.encode(l, true).unwrap().ids).collect();
        assert_ne!(joined.len() % LENGTH, 0, "no rest to drop");
        wanted.extend((0..joined.len() / LENGTH).map(|i| joined[i * LENGTH..(i + 1) * LENGTH].to_vec()));
    }
    assert_eq!(got.iter().map(|b| b.ids.clone()).collect::<Vec<_>>(), wanted);
    assert!(got.iter().all(|b| b.starts == [0]), "attention crosses lines");
    assert!(got.iter().any(|b| b.ids.windows(2).any(|w| w == [BOS, BOS])), "a blank line is a lone BOS");
    for b in &got {
        assert!(b.ids.iter().zip(&b.special).all(|(&id, &special)| special == (id == BOS)));
    }
}

#[test]
fn documents_kept_apart_lose_no_token() {
    let lines = lines(2_300);
    let got = blocks(&lines, Grouping::Apart, LENGTH);
    assert_eq!(got.iter().flat_map(|b| b.ids.clone()).collect::<Vec<_>>(), ids(&lines).concat());
    let (last, whole) = got.split_last().unwrap();
    assert!(whole.iter().all(|b| b.ids.len() == LENGTH) && last.ids.len() <= LENGTH);
    for b in &got {
        let starts: Vec<usize> = (0..b.ids.len()).filter(|&i| i == 0 || b.ids[i] == BOS).collect();
        assert_eq!(b.starts, starts);
    }
}

#[test]
fn a_line_may_be_a_block() {
    let lines = lines(50);
    let got = blocks(&lines, Grouping::Lines, 9);
    let wanted: Vec<Vec<u32>> = ids(&lines).into_iter().map(|l| l.into_iter().take(9).collect()).collect();
    assert_eq!(got.iter().map(|b| b.ids.clone()).collect::<Vec<_>>(), wanted);
    assert!(got.iter().any(|b| b.ids.len() == 9) && got.iter().any(|b| b.ids.len() < 9));
    let dir = folder();
    let mut few = Texts::lines(&write(&dir, "a.txt", "one\n"), true).unwrap();
    refused(Blocks::new(&mut few, &tokenizer(), Grouping::Joined, 512), &["1 lines with", "no block of 512"]);
}

fn masking(strategy: Strategy, probability: f64) -> Masking {
    Masking { probability, strategy, mask: 3, vocab: 4096, seed: 42 }
}

/// 200,000 tokens of one id, BOS every 100.
fn uniform() -> Vec<Block> {
    let special: Vec<bool> = (0..500).map(|i| i % 100 == 0).collect();
    let ids = special.iter().map(|&s| if s { BOS } else { 77 }).collect();
    vec![Block { ids, special, starts: vec![0] }; 400]
}

#[test]
fn a_fifth_is_chosen_and_split_as_bert_does() {
    let blocks = uniform();
    let got = masking(Strategy::Bert, 0.2).apply(Draw::Step(0), 0, &blocks);
    let within = |count: usize, of: usize, p: f64| {
        let sigma = (of as f64 * p * (1.0 - p)).sqrt();
        assert!((count as f64 - of as f64 * p).abs() < 3.0 * sigma, "{count} of {of}, {p} was wanted");
    };
    let (all, chosen) = (400 * 495, got.rows.len());
    within(chosen, all, 0.2);
    let stands = |row: &i32| got.ids[*row as usize + 1];
    let hidden = got.rows.iter().filter(|r| stands(r) == 3).count();
    let kept = got.rows.iter().filter(|r| stands(r) == 77).count();
    within(hidden, chosen, 0.8 + 0.1 / 4096.0);
    within(kept, chosen, 0.1 + 0.1 / 4096.0);
    // Random ids: over the whole vocabulary, BOS and mask included, every sixteenth as often as any other.
    let random: Vec<i32> = got.rows.iter().map(stands).filter(|id| ![3, 77].contains(id)).collect();
    for part in 0..16 {
        within(random.iter().filter(|&&id| id / 256 == part).count(), random.len(), 1.0 / 16.0);
    }
    // What is not chosen stays; BOS always does.
    let ids: Vec<u32> = blocks.iter().flat_map(|b| b.ids.clone()).collect();
    let rows: std::collections::BTreeSet<i32> = got.rows.iter().copied().collect();
    for (i, (&id, &now)) in ids.iter().zip(&got.ids).enumerate() {
        assert!(rows.contains(&(i as i32 - 1)) && id != BOS || now == id as i32);
    }
}

#[test]
fn a_label_belongs_to_the_row_before_it() {
    let text = |ids: std::ops::Range<u32>, starts: &[usize]| Block {
        special: vec![false; ids.len()],
        ids: ids.collect(),
        starts: starts.to_vec(),
    };
    let blocks = [text(100..104, &[0]), text(200..205, &[0, 2])];
    let got = masking(Strategy::AllMask, 1.0).apply(Draw::Step(5), 0, &blocks);
    assert_eq!(got.ids, [3; 9]);
    assert_eq!(got.starts, [0, 4, 6, 9]);
    // No label for 100, 200 and 202: nothing stands before them in their sequence.
    assert_eq!(got.labels, [101, 102, 103, 201, 203, 204]);
    assert_eq!(got.rows, [0, 1, 2, 4, 6, 7]);
    let half = masking(Strategy::AllMask, 0.5).apply(Draw::Step(5), 0, &uniform());
    assert!(half.labels.iter().all(|&l| l == 77));
    assert!(half.rows.iter().all(|&r| half.ids[r as usize + 1] == 3));
    assert_eq!(half.ids.iter().filter(|&&id| id == 3).count(), half.rows.len());
}

#[test]
fn masks_follow_seed_step_and_block_but_not_the_batch() {
    let blocks = &uniform()[..8];
    let masking = masking(Strategy::Bert, 0.2);
    let whole = masking.apply(Draw::Step(9), 0, blocks);
    assert_eq!(masking.apply(Draw::Step(9), 0, blocks), whole);
    let halves =
        [masking.apply(Draw::Step(9), 0, &blocks[..4]), masking.apply(Draw::Step(9), 4, &blocks[4..])];
    assert_eq!([&halves[0].ids[..], &halves[1].ids].concat(), whole.ids);
    assert_eq!([&halves[0].labels[..], &halves[1].labels].concat(), whole.labels);
    let others = [
        masking.apply(Draw::Step(10), 0, blocks),
        masking.apply(Draw::Step(9 + (1 << 32)), 0, blocks),
        masking.apply(Draw::Evaluation, 0, blocks),
        masking.apply(Draw::Step(0), 0, blocks),
        Masking { seed: 43, ..masking }.apply(Draw::Step(9), 0, blocks),
    ];
    for (i, other) in others.iter().enumerate() {
        assert_ne!(other.rows, whole.rows, "{i}");
        assert!(others[..i].iter().all(|o| o.rows != other.rows), "{i}");
    }
    assert_eq!(masking.apply(Draw::Evaluation, 0, blocks), others[2]);
}

#[test]
fn mask_tokens_by_name() {
    let tokenizer = tokenizer();
    let blank = tokenizer.token_id("_").unwrap();
    let ids = [MaskToken::Auto, MaskToken::Blank, MaskToken::Eos, MaskToken::Mask]
        .map(|m| m.id(&tokenizer).unwrap());
    assert_eq!(ids, [3, blank, 2, 3]);
    let dir = folder();
    let json = std::fs::read_to_string(novel5m().join("tokenizer.json")).unwrap();
    write(&dir, "tokenizer.json", &json.replace("<mask>", "<other>"));
    let bare = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(MaskToken::Auto.id(&bare).unwrap(), blank, "without one of its own");
    refused(MaskToken::Mask.id(&bare), &["mask token `mask`", "`<mask>`"]);
    refused(MaskToken::Eos.id(&bare), &["mask token `eos`", "eos_token"]);
}
