//! Text to ids: spans from offsets, cuts between characters, templates, instructions, packs, and the reference's rows.

use crate::common;

use common::{here, novel5m};
use llm2vec::error::Result;
use llm2vec::text::pack::pack;
use llm2vec::text::prompt::{Compat, Prompter, Rules};
use llm2vec::text::reference::eos_text;
use llm2vec::text::template::{NONE, Template};
use llm2vec::text::tokenizer::{Encoded, Tokenizer};
use llm2vec::text::{Limits, Prompt};
use proptest::prelude::*;
use serde::Deserialize;
use std::ops::Range;

const FAMILIES: [&str; 5] = ["none", "llama2", "mistral", "llama3", "qwen2"];
const WIDE: Limits = Limits { max_length: 512, doc_max_length: 400 };
const INSTRUCTION: &str = "Retrieve semantically similar text:";
const TEXTS: [&str; 7] = [
    "A heavy rain fell upon the roof all night.",
    "one",
    "'s",
    "text with !@#$%^&*() the reference's separator !@#$%^&*() twice",
    "機械学習は自動で改善する。",
    "\u{1f600}\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} e\u{301}",
    "[/INST] a template's tail <|eot_id|> inside",
];

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&novel5m()).unwrap()
}

fn rules(template: Template, limits: Limits) -> Rules {
    Rules {
        template,
        limits,
        append_eos: false,
        reference_eos: "",
        compat: Compat::Default,
        prompt: String::new(),
        pool_prompt: true,
    }
}

fn prompter(template: Template, limits: Limits) -> Prompter {
    Prompter::new(tokenizer(), rules(template, limits)).unwrap()
}

fn prompt(template: Template, limits: Limits, instruction: &str, text: &str) -> Result<Prompt> {
    prompter(template, limits).prompt(instruction, text)
}

/// The bytes that a run of tokens stands for.
fn bytes(row: &Encoded, tokens: Range<usize>) -> Range<usize> {
    row.offsets[tokens.start].0..row.offsets[tokens.end - 1].1
}

#[test]
fn the_span_holds_every_token_of_the_text_and_no_other() {
    let tokenizer = tokenizer();
    for family in FAMILIES {
        let template = Template::by_name(family).unwrap();
        let prompter = prompter(template, WIDE);
        for instruction in ["", INSTRUCTION] {
            for text in TEXTS {
                let got = prompter.prompt(instruction, text).unwrap();
                let before = match instruction {
                    "" => template.prefix.to_string(),
                    _ => format!("{}{instruction} ", template.prefix),
                };
                let whole = format!("{before}{text}{}", template.suffix);
                let row = tokenizer.encode(&whole, true).unwrap();
                assert_eq!((&got.ids, got.cut), (&row.ids, false));
                // Grown by a token on either side, it would hold bytes that are not the text's alone; shrunk, not all.
                let (from, to) = (before.len(), before.len() + text.len());
                let span = bytes(&row, got.text.clone());
                assert!(
                    span.start <= from && span.end >= to,
                    "{whole:?}: {span:?} misses some of {from}..{to}"
                );
                let (first, last) = (got.text.start, got.text.end - 1);
                assert!(row.offsets[first].1 > from && row.offsets[last].0 < to, "{whole:?}: {span:?}");
                if first > 1 {
                    assert!(row.offsets[first - 1].1 <= from, "{whole:?}: a token too few in front");
                }
                if last + 1 < row.ids.len() {
                    assert!(row.offsets[last + 1].0 >= to, "{whole:?}: a token too few behind");
                }
            }
        }
    }
}

#[test]
fn an_empty_text_has_an_empty_span() {
    for family in FAMILIES {
        let got = prompt(Template::by_name(family).unwrap(), WIDE, INSTRUCTION, "").unwrap();
        assert!(got.text.is_empty() && !got.cut && got.ids.len() > 1, "{family}: {got:?}");
    }
}

/// Three to four tokens a character: every limit must fall between characters, whether it is the row's or the text's.
#[test]
fn a_cut_never_splits_a_character() {
    let text = "機械学習は自動で改善する。\u{1f600}\u{1f680}漢字 かな交じり文。".repeat(3);
    let decoder = tokenizers::Tokenizer::from_file(novel5m().join("tokenizer.json")).unwrap();
    let template = Template::by_name("mistral").unwrap();
    let whole = prompt(template, WIDE, INSTRUCTION, &text).unwrap();
    assert!(!whole.cut && whole.text.len() > 100);
    let around = whole.ids.len() - whole.text.len();
    let tail = &whole.ids[whole.text.end..];
    // One character is at most four tokens here: less room than that may have to split the first.
    for room in 4..whole.text.len() {
        let by_text = Limits { max_length: 512, doc_max_length: room };
        let by_row = Limits { max_length: around + room, doc_max_length: 512 };
        let got = prompt(template, by_text, INSTRUCTION, &text).unwrap();
        assert_eq!(got, prompt(template, by_row, INSTRUCTION, &text).unwrap());
        assert!(got.cut && got.text.len() <= room && got.text.len() + 4 > room, "{room}: {}", got.text.len());
        assert_eq!(got.ids[..got.text.end], whole.ids[..got.text.end], "{room}: the beginning changed");
        assert_eq!(&got.ids[got.text.end..], tail, "{room}: the template's tail is gone");
        let kept = decoder.decode(&got.ids[got.text.clone()], false).unwrap();
        assert!(text.starts_with(kept.trim_start()) && !kept.contains('\u{fffd}'), "{room}: {kept:?}");
    }
    let least = prompt(template, Limits { max_length: 512, doc_max_length: 1 }, "", &text).unwrap();
    assert_eq!(least.text.len(), 1, "a limit below one character still keeps something");
}

#[test]
fn no_room_for_the_text_is_an_error_with_the_count() {
    let limits = Limits { max_length: 5, doc_max_length: 400 };
    let error = prompt(NONE, limits, INSTRUCTION, "text").unwrap_err().to_string();
    assert!(error.contains("max_length 5") && error.contains("instruction"), "{error}");
}

#[test]
fn templates_go_by_family_and_by_exact_model_name() {
    for family in FAMILIES {
        assert_eq!(Template::by_name(family).unwrap().name, family);
    }
    let models = [
        ("meta-llama/Llama-2-7b-chat-hf", "llama2", "[INST] ", " [/INST]"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral", "[INST] ", " [/INST]"),
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
        ("Qwen/Qwen2-1.5B-Instruct", "qwen2", "<|im_start|>user\n", "<|im_end|>"),
        ("Qwen/Qwen2-7B-Instruct", "qwen2", "<|im_start|>user\n", "<|im_end|>"),
    ];
    for (model, name, prefix, suffix) in models {
        assert_eq!(Template::for_model(model), Template { name, prefix, suffix });
        assert_eq!(Template::by_name(model).unwrap(), Template::for_model(model));
    }
    for other in ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "", "llama3"] {
        assert_eq!(Template::for_model(other), NONE, "{other}");
    }
    let error = Template::by_name("chatml").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(FAMILIES.iter().all(|f| error.to_string().contains(f)), "{error}");
}

#[test]
fn an_instruction_stands_before_the_text_and_outside_the_span() {
    let tokenizer = tokenizer();
    let text = TEXTS[0];
    let plain = prompt(NONE, WIDE, "", text).unwrap();
    assert_eq!(plain.ids, tokenizer.encode(text, true).unwrap().ids);
    assert_eq!(plain.text, 1..plain.ids.len(), "all but BOS");
    assert_eq!(prompt(NONE, WIDE, " \n ", text).unwrap(), plain, "a blank instruction is none");
    let with = prompt(NONE, WIDE, INSTRUCTION, text).unwrap();
    assert_eq!(prompt(NONE, WIDE, &format!("\t{INSTRUCTION}  "), text).unwrap(), with);
    let own = tokenizer.encode(INSTRUCTION, true).unwrap().ids;
    assert_eq!(with.ids[..with.text.start], own);
}

#[test]
fn eos_is_appended_once_and_stays_outside_the_span() {
    let tokenizer = tokenizer();
    let eos = tokenizer.eos_id().unwrap();
    let limits = Limits { max_length: 9, doc_max_length: 400 };
    let with_eos = Prompter::new(tokenizer, Rules { append_eos: true, ..rules(NONE, limits) }).unwrap();
    let got = with_eos.prompt("", &TEXTS[0].repeat(3)).unwrap();
    assert_eq!((got.ids.len(), got.ids.last(), got.text, got.cut), (9, Some(&eos), 1..8, true));
    let got = with_eos.prompt("", &("one ".repeat(20) + "<eos>")).unwrap();
    assert_eq!((got.ids.len(), got.ids.last()), (9, Some(&eos)), "the text's own EOS went with the cut");
}

/// Letters, and spaces that merge by twos, across words: Llama 2's and Mistral's way, as small as it gets.
const MERGED_SPACES: &str = r#"{
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    "model": {
        "type": "BPE", "unk_token": "?", "fuse_unk": false,
        "vocab": {"?": 0, "\u2581": 1, "\u2581\u2581": 2, "a": 3, "b": 4, "\u2581a": 5, "[": 6, "\u2581[": 7, "e": 8},
        "merges": [["\u2581", "\u2581"], ["\u2581", "a"], ["\u2581", "["]]
    }
}"#;

/// The middle of a long text is not tokenised: the ids must be those of the whole text all the same.
#[test]
fn a_long_text_is_cut_as_if_it_were_tokenised_whole() {
    let lines = std::fs::read_to_string(here("tests/texts/sentences.txt")).unwrap();
    let prose = lines.replace('\n', " ");
    let long = |piece: &str| piece.repeat(100_000 / piece.len());
    let pieces = [
        &prose,
        &lines,
        "ab",
        "aab",
        "機械学習は自動で改善する。",
        "12345",
        "\u{1f600}e\u{301}",
        "-",
        " ",
        "a\n\n\n ",
    ];
    // A space where the head of the text ends joins the template's: "\u{2581}\u{2581}[" is not "\u{2581}[".
    let more =
        [" ".repeat(90_000) + &prose, long("?!") + "word", long("a ") + "b", " ".to_string() + &long("a ")];
    let texts: Vec<String> = pieces.map(long).into_iter().chain(more).collect();
    // The first is byte-level with a regular expression, the second as Llama 2's: words do not bound merges.
    let spaces = tempfile::tempdir().unwrap();
    std::fs::write(spaces.path().join("tokenizer.json"), MERGED_SPACES).unwrap();
    for dir in [novel5m(), spaces.path().to_path_buf()] {
        for (family, doc_max_length) in [("none", 400), ("mistral", 401), ("qwen2", 37)] {
            let (template, limits) = (Template::by_name(family).unwrap(), Limits { doc_max_length, ..WIDE });
            let open = || Tokenizer::open(&dir).unwrap();
            let prompter = Prompter::new(open(), rules(template, limits)).unwrap();
            texts.iter().for_each(|text| cut_as_if_whole(&open(), &prompter, template, limits, text));
        }
    }
}

fn cut_as_if_whole(
    tokenizer: &Tokenizer,
    prompter: &Prompter,
    template: Template,
    limits: Limits,
    text: &str,
) {
    let got = prompter.prompt(INSTRUCTION, text).unwrap();
    let text = if template == NONE { text } else { text.trim() };
    let before = format!("{}{INSTRUCTION} ", template.prefix);
    let row = tokenizer.encode(&format!("{before}{text}{}", template.suffix), true).unwrap();
    let (from, to) = (before.len(), before.len() + text.len());
    let own = |&i: &usize| row.offsets[i].0 < to && row.offsets[i].1 > from;
    let own: Vec<usize> = (1..row.ids.len()).filter(own).collect();
    let Some(&first) = own.first() else { return };
    let name = format!("{} {:?}", template.name, text.chars().take(20).collect::<String>());
    assert_eq!(got.text.start, first, "{name}");
    assert_eq!(got.ids[..got.text.end], row.ids[..got.text.end], "{name}");
    assert_eq!(got.ids[got.text.end..], row.ids[first + own.len()..], "{name}");
    let room = limits.doc_max_length.min(limits.max_length - (row.ids.len() - own.len()));
    assert!(got.text.len() <= room && got.text.len() + 4 > room.min(own.len()), "{name}");
}

/// Words, and one word, which is the worst case of a byte-pair tokenizer.
#[test]
fn a_line_of_ten_megabytes() {
    for text in ["a heavy rain fell upon the roof ".repeat((10 << 20) / 32), "ab".repeat(5 << 20)] {
        let ours = prompt(NONE, WIDE, INSTRUCTION, &text).unwrap();
        assert!(ours.cut);
        assert_eq!(ours.text.len(), 400);
    }
}

/// One line of tests/golden/reference_ids.json, made by make_reference_ids.py.
#[derive(Deserialize)]
struct ReferenceRow {
    model: String,
    qwen2: bool,
    pooling: String,
    max_length: usize,
    doc_max_length: usize,
    instruction: String,
    text: String,
    ids: Vec<u32>,
    /// None where the reference raises.
    span: Option<(usize, usize)>,
}

#[test]
fn compat_reference_makes_the_references_rows() {
    let json = std::fs::read_to_string(here("tests/golden/reference_ids.json")).unwrap();
    let rows: Vec<ReferenceRow> = serde_json::from_str(&json).unwrap();
    assert!(rows.len() > 450);
    for row in rows {
        let limits = Limits { max_length: row.max_length, doc_max_length: row.doc_max_length };
        let template = Template::for_model(&row.model);
        let eos = row.pooling == "eos_token";
        let rules = Rules {
            append_eos: eos,
            compat: Compat::Reference,
            reference_eos: eos_text(template, &row.model, row.qwen2),
            ..rules(template, limits)
        };
        let prompter = Prompter::new(tokenizer(), rules).unwrap();
        let got = prompter.prompt(&row.instruction, &row.text);
        let place = format!("{:?} {:?} {limits:?} {:?}", row.model, row.instruction, row.text);
        match (row.span, got) {
            (Some((from, to)), Ok(got)) => assert_eq!((got.ids, got.text), (row.ids, from..to), "{place}"),
            (None, Err(e)) => assert!(e.to_string().contains("#80"), "{e}"),
            (span, got) => panic!("{place}: wanted {span:?}, got {got:?}"),
        }
    }
}

proptest! {
    #[test]
    fn packs_hold_every_text_once_within_the_budget(
        lengths in proptest::collection::vec(0usize..300, 0..200), budget in 1usize..1024,
    ) {
        let packs = pack(&lengths, budget);
        let order: Vec<usize> = packs.concat();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..lengths.len()).collect::<Vec<_>>());
        // Longest first, and texts of one length in their order.
        prop_assert!(order.is_sorted_by_key(|&i| (std::cmp::Reverse(lengths[i]), i)));
        for items in &packs {
            let tokens: usize = items.iter().map(|&i| lengths[i]).sum();
            prop_assert!(!items.is_empty() && (tokens <= budget || items.len() == 1));
        }
        // No pack ends while its successor's first text would have fitted.
        for pair in packs.windows(2) {
            let tokens: usize = pair[0].iter().map(|&i| lengths[i]).sum();
            prop_assert!(tokens + lengths[pair[1][0]] > budget);
        }
    }
}
