//! Hard negatives: those of sentence-transformers from the same vectors (`golden/make_hard_negatives.py`), what is never
//! one, and the command on a model, up to the training that reads its rows.

use crate::command::{Tiny, failed, folder, good, llm2vec, names, str};
use crate::common::here;
use llm2vec::encode::texts::Empty;
use llm2vec::eval::instructions::Instruction;
use llm2vec::eval::source::Vectors;
use llm2vec::format::npy;
use llm2vec::train::mine::{Form, Miner, Options, Rule, Sampling, Summary};
use llm2vec::{Encoder, EncoderOptions};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// Negatives by query.
type Mined = BTreeMap<String, Vec<String>>;

fn golden(name: &str) -> Value {
    let text = fs::read(here("tests/golden/hard_negatives.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()[name].take()
}

fn list(json: &Value) -> &Vec<Value> {
    json.as_array().unwrap()
}

fn text(json: &Value) -> String {
    json.as_str().unwrap().to_string()
}

fn jsonl(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

/// Pairs, a corpus and the vectors of their texts, in a folder.
struct Place {
    dir: TempDir,
    options: Options,
}

impl Place {
    fn new(rows: &[(String, String)], corpus: Option<&[String]>, vector: impl Fn(&str) -> Vec<f32>) -> Place {
        let dir = folder();
        let (data, output) = (dir.path().join("pairs.jsonl"), dir.path().join("mined.jsonl"));
        let pairs = rows.iter().map(|(query, positive)| json!({ "query": query, "positive": positive }));
        fs::write(&data, jsonl(pairs)).unwrap();
        let corpus_path = corpus.map(|corpus| {
            let path = dir.path().join("corpus.txt");
            fs::write(&path, corpus.join("\n")).unwrap();
            path
        });
        // Queries, then corpus, then positives, each text once.
        let once = |texts: Vec<&str>| {
            let mut seen = HashSet::new();
            texts.into_iter().filter(|text| seen.insert(text.trim())).map(str::to_string).collect::<Vec<_>>()
        };
        let documents = corpus.unwrap_or_default().iter().chain(rows.iter().map(|row| &row.1));
        let mut texts = once(rows.iter().map(|row| row.0.as_str()).collect());
        texts.extend(once(documents.map(String::as_str).collect()));
        let vectors: Vec<Vec<f32>> = texts.iter().map(|text| vector(text.trim())).collect();
        let mut bytes = npy::header("<f4", &[vectors.len() as u64, vectors[0].len() as u64]);
        vectors.iter().flatten().for_each(|v| bytes.extend(v.to_le_bytes()));
        fs::write(dir.path().join("vectors.npy"), bytes).unwrap();
        Place { dir, options: Options { data, corpus: corpus_path, output, ..Options::default() } }
    }

    /// A set of the golden file.
    fn golden(set: &Value, corpus: bool) -> Place {
        let rows: Vec<_> = list(&set["rows"]).iter().map(|row| (text(&row[0]), text(&row[1]))).collect();
        let texts: Vec<_> = list(&set["corpus"]).iter().map(text).collect();
        let vector =
            |text: &str| list(&set["vectors"][text]).iter().map(|v| v.as_f64().unwrap() as f32).collect();
        Place::new(&rows, corpus.then_some(&texts), vector)
    }

    fn vectors(&self) -> PathBuf {
        self.dir.path().join("vectors.npy")
    }

    fn run(&self, rule: Rule, form: Form, window: usize) -> Summary {
        let options = Options { rule, form, window, ..self.options.clone() };
        let mut vectors = Vectors::files(&[self.vectors()], |_, _| {}).unwrap();
        Miner::open(options).unwrap().run(&mut vectors, &Instruction::default()).unwrap()
    }

    /// The lines that were written.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.options.output).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// By triplets: the negatives of each query, which all of its positives share.
    fn mined(&self, rule: Rule) -> Mined {
        self.run(rule, Form::Triplet, 0);
        let mut mined: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        for line in self.lines() {
            let by_positive = mined.entry(text(&line["query"])).or_default();
            by_positive.entry(text(&line["positive"])).or_default().push(text(&line["negative"]));
        }
        let shared = |lists: BTreeMap<String, Vec<String>>| {
            let first = lists.values().next().unwrap().clone();
            assert!(lists.values().all(|list| *list == first));
            first
        };
        mined.into_iter().map(|(query, lists)| (query, shared(lists))).collect()
    }
}

fn rule(settings: &Value) -> Rule {
    let count = |name: &str| settings[name].as_u64().map(|n| n as usize);
    let number = |name: &str| settings[name].as_f64().map(|v| v as f32);
    Rule {
        negatives: count("num_negatives").unwrap(),
        range_min: count("range_min").unwrap_or(0),
        range_max: count("range_max"),
        max_score: number("max_score"),
        min_score: number("min_score"),
        absolute_margin: number("absolute_margin"),
        relative_margin: number("relative_margin"),
        ..Rule::default()
    }
}

fn wanted(case: &Value) -> Mined {
    let negatives = |list: &Vec<Value>| list.iter().map(|found| text(&found[0])).collect();
    let queries = case["mined"].as_object().unwrap().iter();
    queries.map(|(query, found)| (query.clone(), negatives(list(found)))).collect()
}

#[test]
fn negatives_are_those_of_sentence_transformers() {
    let mut found = 0;
    for name in ["one", "several", "unlike"] {
        let set = golden(name);
        for case in list(&set["cases"]) {
            let place = Place::golden(&set, case["corpus"] == true);
            let rule = rule(&case["settings"]);
            assert_eq!(place.mined(rule.clone()), wanted(case), "{name} {} {rule:?}", case["corpus"]);
            found += wanted(case).values().map(Vec::len).sum::<usize>();

            let whole: BTreeSet<String> = list(&case["whole"]).iter().map(text).collect();
            let summary = place.run(rule.clone(), Form::NTuple, 0);
            let lines = place.lines();
            assert_eq!(lines.iter().map(|line| text(&line["query"])).collect::<BTreeSet<_>>(), whole);
            assert_eq!((summary.lines, summary.repeated), (lines.len(), 1));
            assert_eq!(summary.lines + summary.lacking + summary.repeated, summary.rows);
            let last =
                if rule.negatives == 1 { "negative".into() } else { format!("negative_{}", rule.negatives) };
            assert!(lines.iter().all(|line| line.as_object().unwrap().len() == 2 + rule.negatives));
            assert!(lines.iter().all(|line| line[&last].is_string()), "{last}");
        }
    }
    assert!(found > 2000, "{found}");
}

/// sentence-transformers looks deeper for one query where another has more positives: beside one with four, its candidates
/// of a query with one are the seven nearest, not the four that `range_max` says.
#[test]
fn candidates_do_not_depend_on_other_queries() {
    let set = golden("deeper");
    let case = &list(&set["cases"])[0];
    let (theirs, rule) = (wanted(case), rule(&case["settings"]));
    let place = Place::golden(&set, true);
    let bounded = place.mined(rule.clone());
    let deeper = place.mined(Rule { range_max: Some(7), ..rule });
    assert_eq!(theirs.values().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(bounded["query 1"], theirs["query 1"]);
    assert_eq!(bounded["query 0"], theirs["query 0"][..1]);
    assert_eq!(bounded.get("query 2"), None);
    assert!(["query 0", "query 2"].iter().all(|query| deeper[*query] == theirs[*query]));
}

/// sentence-transformers gives a query its own text for a negative where that is another's positive.
#[test]
fn no_query_has_its_own_text_for_a_negative() {
    let set = golden("twin");
    for case in list(&set["cases"]) {
        let mined = Place::golden(&set, case["corpus"] == true).mined(rule(&case["settings"]));
        let theirs = wanted(case);
        assert_eq!(theirs["query 1"][0], "query 1");
        assert_eq!(mined["query 1"][..2], theirs["query 1"][1..]);
        assert!(!mined["query 1"].contains(&"query 1".to_string()));
    }
}

/// All texts on a circle, so near that whatever is not excluded is found.
fn circle(text: &str) -> Vec<f32> {
    let angle = text.bytes().map(f32::from).sum::<f32>() / 1e4;
    vec![angle.cos(), angle.sin()]
}

#[test]
fn no_positive_of_an_equal_query_is_mined() {
    let pair = |query: &str, positive: &str| (query.to_string(), positive.to_string());
    let rows = [
        pair("what is rain", "water from clouds"),
        pair("what is snow", "frozen water"),
        pair("  what is rain ", "drops that fall"),
        pair("what is hail", " water from clouds\t"),
        pair("what is rain", "drops that fall"),
    ];
    let corpus = ["  drops that fall", "ice", "water from clouds", "wind", "what is rain"].map(String::from);
    for corpus in [None, Some(&corpus[..])] {
        let place = Place::new(&rows, corpus, circle);
        let summary = place.run(Rule { negatives: 1, ..Rule::default() }, Form::Triplet, 0);
        assert_eq!((summary.queries, summary.repeated), (3, 1));
        assert_eq!((summary.positives.count(), summary.documents), (4, if corpus.is_some() { 6 } else { 3 }));
        // As many as there are: all that may be found are.
        place.run(Rule { negatives: 9, ..Rule::default() }, Form::Triplet, 0);
        let mut mined: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in place.lines() {
            mined.entry(text(&line["query"])).or_default().insert(text(&line["negative"]).trim().to_string());
        }
        let more = |texts: &[&str]| -> BTreeSet<String> {
            let others = if corpus.is_some() { &["ice", "wind", "what is rain"][..] } else { &[] };
            texts.iter().chain(others).map(|text| text.to_string()).collect()
        };
        let without_own = |mut texts: BTreeSet<String>| {
            texts.remove("what is rain");
            texts
        };
        assert_eq!(mined["what is rain"], without_own(more(&["frozen water"])));
        assert_eq!(mined["  what is rain "], mined["what is rain"]);
        assert_eq!(mined["what is snow"], more(&["water from clouds", "drops that fall"]));
        assert_eq!(mined["what is hail"], more(&["frozen water", "drops that fall"]));
    }
}

#[test]
fn windows_of_any_size_find_the_same() {
    let set = golden("several");
    let place = Place::golden(&set, true);
    let rule = Rule { relative_margin: Some(0.05), ..Rule::default() };
    let mut results = [0, 1, 7].map(|window| {
        let summary = place.run(rule.clone(), Form::NTuple, window);
        (summary, fs::read(&place.options.output).unwrap())
    });
    results.sort_by_key(|(_, bytes)| bytes.len());
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);

    // Likewise where a model embeds them.
    let tiny = Tiny::new();
    let mined = [0, 5].map(|window| {
        let options = EncoderOptions::new(tiny.path());
        let mut vectors = Vectors::model(Encoder::open(&options).unwrap(), Empty::Error, |_, _| {});
        let options = Options { rule: rule.clone(), form: Form::Triplet, window, ..place.options.clone() };
        Miner::open(options).unwrap().run(&mut vectors, &Instruction::default()).unwrap();
        fs::read(&place.options.output).unwrap()
    });
    assert!(mined[0] == mined[1] && !mined[0].is_empty());
}

#[test]
fn random_negatives_are_any_of_those_that_are_left() {
    let set = golden("one");
    let place = Place::golden(&set, true);
    let all = place.mined(Rule { negatives: 12, range_min: 2, range_max: Some(14), ..Rule::default() });
    let random = |seed| {
        let sampling = Sampling::Random;
        place.mined(Rule {
            negatives: 3,
            range_min: 2,
            range_max: Some(14),
            sampling,
            seed,
            ..Rule::default()
        })
    };
    let mut times = [0; 12];
    for seed in 0..60 {
        for (query, negatives) in random(seed) {
            let places: Vec<usize> =
                negatives.iter().map(|text| all[&query].iter().position(|t| t == text).unwrap()).collect();
            assert!(places.len() == 3 && places.is_sorted() && places.windows(2).all(|p| p[0] < p[1]));
            places.iter().for_each(|place| times[*place] += 1);
        }
    }
    // 14 queries, 60 seeds, each place in a quarter of them: 210, with a deviation of 12.6.
    assert!(times.iter().all(|n| (150..270).contains(n)), "{times:?}");
    assert_eq!(random(7), random(7));
    assert_ne!(random(7), random(8));
}

/// Rows of every form keep their positives and prompts; the figures are those of the lines.
#[test]
fn lines_are_rows_of_training() {
    let dir = folder();
    let (data, output) = (dir.path().join("rows.jsonl"), dir.path().join("mined.jsonl"));
    let rows = [
        json!({ "query": "a", "pos": ["b", "c"], "neg": ["d"], "prompt": "p: " }),
        json!({ "query": "e", "positive": "f", "negative": "g" }),
        json!({ "query": "" }),
        json!({ "query": "h", "positive": "i" }),
    ];
    fs::write(&data, jsonl(rows)).unwrap();
    let mut bytes = npy::header("<f4", &[7, 2]);
    let angles = [0.0, 0.5, 1.0, 0.1, 0.2, 0.6, 1.1f32];
    angles.iter().flat_map(|a| [a.cos(), a.sin()]).for_each(|v| bytes.extend(v.to_le_bytes()));
    let vectors = dir.path().join("vectors.npy");
    fs::write(&vectors, bytes).unwrap();
    let args = ["mine", "-i", str(&data), "-o", str(&output), "--vectors", str(&vectors), "--negatives", "2"];
    let table = good(llm2vec(&args));
    let lines = fs::read_to_string(&output).unwrap();
    let wanted = [
        r#"{"query":"a","positive":["b","c"],"negative_1":"f","negative_2":"i","prompt":"p: "}"#,
        r#"{"query":"e","positive":"f","negative_1":"c","negative_2":"b"}"#,
        r#"{"query":"h","positive":"i","negative_1":"f","negative_2":"c"}"#,
    ];
    assert_eq!(lines.lines().collect::<Vec<_>>(), wanted);
    let mean = |angles: &[f32]| angles.iter().map(|a| f64::from(a.cos())).sum::<f64>() / angles.len() as f64;
    let positives = mean(&[0.1, 0.2, 0.1, 0.1]);
    let negatives = mean(&[0.6, 1.1, 0.6, 1.1, 0.3, 0.4, 0.4, 0.8]);
    let row = table.lines().find(|line| line.starts_with("mean")).unwrap();
    let numbers: Vec<f64> = row.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect();
    assert!((numbers[0] - positives).abs() < 1e-4 && (numbers[1] - negatives).abs() < 1e-4, "{table}");
    assert!((numbers[2] - (positives - negatives)).abs() < 2e-4, "{table}");
    assert!(table.contains("3 queries, 4 documents") && table.contains("3 lines of 3 rows"), "{table}");

    let table = good(llm2vec(&[&args[..], &["--output-format", "triplet", "--max-score", "0.9"]].concat()));
    let lines = fs::read_to_string(&output).unwrap();
    assert_eq!(
        lines.lines().next(),
        Some(r#"{"query":"a","positive":["b","c"],"negative":"f","prompt":"p: "}"#)
    );
    assert_eq!(lines.lines().count(), 5);
    assert!(table.contains("1 with fewer than 2 negatives; try a larger --range-max"), "{table}");
    assert!(table.contains("3 candidates (37.50 %) taken away by --max-score 0.9"), "{table}");
}

#[test]
fn a_model_mines_what_it_is_trained_on() {
    let (tiny, dir) = (Tiny::new(), folder());
    let path = |name: &str| dir.path().join(name);
    let mut text = String::new();
    let packed = fs::File::open(here("tests/texts/triplets.jsonl.gz")).unwrap();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut text).unwrap();
    let rows: Vec<&str> = text.lines().take(40).collect();
    fs::write(path("pairs.jsonl"), rows.join("\n")).unwrap();
    let negatives = rows.iter().map(|row| {
        let row: Value = serde_json::from_str(row).unwrap();
        json!({ "body": row["negative"] })
    });
    fs::write(path("corpus.jsonl"), jsonl(negatives)).unwrap();
    let (data, corpus, mined, run) =
        (path("pairs.jsonl"), path("corpus.jsonl"), path("mined.jsonl"), path("run"));
    let own =
        ["mine", "-m", tiny.path(), "--data", str(&data), "-o", str(&mined), "--negatives", "2", "--quiet"];
    let mine = |flags: &[&str]| {
        good(llm2vec(&[&own, flags].concat()));
        fs::read_to_string(&mined).unwrap()
    };
    let plain = mine(&[]);
    let of_corpus = ["--corpus", str(&corpus), "--text-column", "body"];
    let larger = mine(&of_corpus);
    assert_ne!(plain, larger, "the corpus is mined");
    let queries = mine(&[&of_corpus[..], &["--instruction", "Find what means the same:"]].concat());
    assert_ne!(larger, queries, "the instruction stands in front of queries");
    assert_eq!(queries.lines().count(), 40);
    assert_eq!(names(dir.path()), ["corpus.jsonl", "mined.jsonl", "pairs.jsonl"]);

    let train = ["train", "supervised", "-m", tiny.path(), "--data", str(&mined), "-o", str(&run)];
    let small =
        ["--batch", "8", "--steps", "2", "--max-length", "32", "--warmup", "0", "--strict", "--quiet"];
    good(llm2vec(&[&train[..], &small].concat()));
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let first: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(first["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_mined_is_told_in_a_line() {
    let set = golden("one");
    let place = Place::golden(&set, false);
    let (data, output, vectors) = (&place.options.data, &place.options.output, place.vectors());
    let refused = |flags: &[&str], status: i32, words: &[&str]| {
        let own = ["mine", "--data", str(data), "-o", str(output), "--vectors", str(&vectors)];
        failed(llm2vec(&[&own, flags].concat()).output().unwrap(), status, words);
        assert!(!output.exists());
    };
    refused(&["--negatives", "0"], 2, &["--negatives 0"]);
    refused(&["--range-min", "5", "--range-max", "7"], 2, &["--range-max 7", "--range-min", "8 or more"]);
    refused(&["--max-score", "NaN"], 2, &["NaN"]);
    refused(&["--max-score", "-1"], 1, &["nothing is written", "--negatives", "--range-max"]);
    refused(&["--corpus", "/there/is/none"], 1, &["/there/is/none"]);
    let other = place.dir.path().join("other.npy");
    fs::copy(&vectors, &other).unwrap();
    refused(&["--vectors", str(&other)], 2, &["vectors", "were wanted"]);
    let own = ["mine", "--data", str(data), "-o", str(data), "--vectors", str(&vectors)];
    failed(llm2vec(&own).output().unwrap(), 2, &["--output", "one of the files read"]);
    let folder = ["mine", "--data", str(place.dir.path()), "-o", str(output), "--vectors", str(&vectors)];
    failed(llm2vec(&folder).output().unwrap(), 1, &["is a folder"]);
    failed(llm2vec(&["mine", "--data", str(data), "-o", str(output)]).output().unwrap(), 2, &["--model DIR"]);
}
