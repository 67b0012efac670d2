//! Evaluation: the correlations against hand and SciPy, the files' refusals, and the command against PyTorch's scores.

use crate::common;

use common::{here, novel5m};
use llm2vec::eval::correlation::{pearson, ranks, spearman};
use llm2vec::eval::sts;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

#[track_caller]
fn near(got: Option<f64>, wanted: f64) {
    let got = got.expect("a correlation");
    assert!((got - wanted).abs() < 1e-14, "{got}, {wanted} was wanted");
}

#[test]
fn correlations_by_hand() {
    near(pearson(&[1., 2., 3., 4., 5.], &[2., 1., 4., 3., 5.]), 0.8);
    near(pearson(&[1., 2., 3.], &[1., 4., 9.]), 8.0 / (2.0f64 * 294.0 / 9.0).sqrt());
    near(spearman(&[1., 2., 3.], &[1., 4., 9.]), 1.0);
    near(spearman(&[1., 2., 3.], &[9., 4., 1.]), -1.0);
    // Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
    assert_eq!(ranks(&[1., 2., 2., 3.]), [1., 2.5, 2.5, 4.]);
    near(spearman(&[1., 2., 2., 3.], &[1., 3., 2., 4.]), 4.5 / 22.5f64.sqrt());
    assert_eq!(ranks(&[7., 0., -0., 7., 7.]), [4., 1.5, 1.5, 4., 4.]);
    // A shift leaves both alone, however large it is against the spread.
    near(pearson(&[1e6, 1e6 + 1., 1e6 + 2.], &[0., 1., 2.]), 1.0);
    for (x, y) in [(vec![], vec![]), (vec![1.], vec![2.]), (vec![0.1; 3], vec![1., 2., 3.])] {
        assert_eq!((pearson(&x, &y), spearman(&y, &x)), (None, None), "{x:?}");
    }
}

/// `scipy.stats.pearsonr` and `spearmanr` (1.17.1) of the same hundred numbers, most of them tied.
#[test]
fn correlations_by_scipy() {
    let x: Vec<f64> = (0..100).map(|i| f64::from(i * 7919 % 101 % 13)).collect();
    let y: Vec<f64> = (0..100).map(|i| f64::from(i * i * 31 % 97 % 17) + 0.5 * x[i as usize]).collect();
    near(pearson(&x, &y), 0.33233563410826694);
    near(spearman(&x, &y), 0.30135043119014143);
}

const HEADER: &str = "subset\tscore\tsentence1\tsentence2";

#[test]
fn bad_rows_name_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.tsv");
    for (text, words) in [
        ("", vec!["line 1", "header"]),
        ("a\t1\tx\ty\n", vec!["line 1", "header"]),
        (&format!("{HEADER}\n"), vec!["no pair"]),
        (&format!("{HEADER}\na\t1\tx\ty\na\t2\tx\n"), vec!["line 3", "3 fields", "4 were wanted"]),
        (&format!("{HEADER}\na\t2\tx\ty\tz\n"), vec!["line 2", "5 fields"]),
        (&format!("{HEADER}\n\n"), vec!["line 2", "1 fields"]),
        (&format!("{HEADER}\na\tfour\tx\ty\n"), vec!["line 2", "\"four\"", "a number was wanted"]),
        (&format!("{HEADER}\na\tNaN\tx\ty\n"), vec!["line 2", "\"NaN\""]),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = sts::read(&path).unwrap_err().to_string();
        for word in words.into_iter().chain(["bad.tsv"]) {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
    let error = sts::files(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(error.contains("no .tsv file"), "{error}");
}

/// Any table with the columns: the pairs of the TSV file.
#[test]
fn pairs_come_from_any_table() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        sts::read(&path)
    };
    let want = read("a.tsv", &format!("{HEADER}\n\t4.5\tx, y\tz\n\t1\t\"u\tv\n")).unwrap();
    let csv = "score,id,sentence1,sentence2\n4.5,1,\"x, y\",z\n1,2,\"\"\"u\",v\n";
    let rows = "{\"score\": 4.5, \"sentence1\": \"x, y\", \"sentence2\": \"z\"}\n\
                {\"score\": 1, \"sentence1\": \"\\\"u\", \"sentence2\": \"v\"}\n";
    let array = format!("[{}]", rows.trim().replace('\n', ",\n"));
    for (name, text) in [("a.csv", csv), ("b.txt", csv), ("a.jsonl", rows), ("a.json", &array)] {
        let mut got = read(name, text).unwrap();
        for (got, want) in got.iter_mut().zip(&want) {
            got.line = want.line;
        }
        assert_eq!(got, want, "{name}");
    }
    for (text, words) in [
        ("score,sentence1\n1,a\n", ["line 1", "the columns are \"score\", \"sentence1\""]),
        ("score,sentence1,sentence2\nhigh,a,b\n", ["row 1, line 2", "invalid type: string \"high\""]),
        ("score,sentence1,sentence2\n1,a,b\n,a,b\n", ["row 2, line 3", "invalid type: null"]),
    ] {
        let error = read("b.csv", text).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
    }
}

fn eval_sts(data: &[&Path], flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm2vec"));
    command.env("LLM2VEC_DEVICE", "cpu").args(["eval", "sts", "--quiet", "--model"]).arg(novel5m());
    command.args(data.iter().flat_map(|d| [Path::new("--data"), d]));
    command.args(flags).output().unwrap()
}

fn report(data: &[&Path], flags: &[&str]) -> (Value, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scores.json");
    let output = eval_sts(data, &[flags, &["--output", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    (json, String::from_utf8(output.stdout).unwrap())
}

/// The table and the JSON are of the same numbers, which follow from the vectors that `encode` writes.
#[test]
fn our_own_pairs() {
    let data = here("tests/texts/sts.tsv");
    let (json, table) = report(&[&data], &[]);
    let file = &json["scores"];
    assert_eq!((file["pairs"].as_u64(), file["subsets"].as_object().unwrap().len()), (Some(60), 4));
    let overall = 100.0 * file["cosine_spearman"].as_f64().unwrap();
    assert_eq!(file["main_score"], file["cosine_spearman"]);
    let line: Vec<&str> = table.lines().find(|l| l.contains("(all)")).unwrap().split_whitespace().collect();
    assert_eq!(line[..4], ["sts.tsv", "(all)", "60", &format!("{overall:.2}")]);
    assert!(overall > 50.0, "the shipped model orders these pairs better than that: {overall}");
    assert_eq!(json["settings"]["attention"], "full");

    let dir = tempfile::tempdir().unwrap();
    let (texts, vectors) = (dir.path().join("texts.txt"), dir.path().join("vectors.jsonl"));
    let pairs = sts::read(&data).unwrap();
    let lines: Vec<String> = pairs.iter().flat_map(|p| p.sentences.clone()).collect();
    std::fs::write(&texts, lines.join("\n")).unwrap();
    let mut encode = Command::new(env!("CARGO_BIN_EXE_llm2vec"));
    encode
        .args(["encode", "--device", "cpu", "-q", "-m"])
        .arg(novel5m())
        .arg("-i")
        .arg(&texts)
        .arg("-o")
        .arg(&vectors);
    assert!(encode.status().unwrap().success());
    let row = |line: &str| -> Vec<f64> {
        let json: Value = serde_json::from_str(line).unwrap();
        json["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let rows: Vec<Vec<f64>> = std::fs::read_to_string(&vectors).unwrap().lines().map(row).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |p: &[Vec<f64>]| dot(&p[0], &p[1]) / (dot(&p[0], &p[0]) * dot(&p[1], &p[1])).sqrt();
    let cosines: Vec<f64> = rows.chunks(2).map(cosine).collect();
    let scores: Vec<f64> = pairs.iter().map(|p| p.score).collect();
    assert!((overall / 100.0 - spearman(&cosines, &scores).unwrap()).abs() < 1e-9);

    let (both, table) = report(&[&data, &data], &[]);
    assert_eq!(both["scores"]["pairs"], 120);
    assert_eq!(both["mean_of_files"]["cosine_spearman"], file["cosine_spearman"]);
    assert!(table.contains("(mean of files)"), "{table}");
}

#[test]
fn empty_sentences_are_errors_unless_they_are_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gap.tsv");
    let rows = "s\t1\tA dog runs.\t\ns\t2\tA dog runs.\tA cat runs.\ns\t5\tA dog runs.\tA dog runs.\n";
    std::fs::write(&path, format!("{HEADER}\n{rows}")).unwrap();
    let output = eval_sts(&[&path], &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("gap.tsv: line 2, sentence 2: an empty text"), "{error}");
    // Cosines 0, less than 1, and 1.
    let (json, _) = report(&[&path], &["--empty", "zero"]);
    assert_eq!(json["scores"]["cosine_spearman"].as_f64().unwrap().round(), 1.0);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_first() {
    let output = eval_sts(&[&here("tests/texts/sts.tsv")], &["--output", "/nowhere/at/all/scores.json"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("there is no folder /nowhere/at/all"), "{error}");
}

/// The figures of a PyTorch run with the same model and pooling (all tokens, BOS included), Spearman x 100.
#[test]
fn scores_equal_pytorch() {
    let dir = here("../shared/data/sts");
    if !dir.is_dir() {
        println!("skipped: no ../shared");
        return;
    }
    for (file, attention, wanted) in [
        ("stsb.dev.tsv", "full", "52.97"),
        ("stsb.test.tsv", "full", "39.90"),
        ("stsb.dev.tsv", "causal", "50.99"),
        ("sts13.test.tsv", "full", "44.50"),
    ] {
        let (json, _) = report(&[&dir.join(file)], &["--pool-over", "all", "--attention", attention]);
        let got = format!("{:.2}", 100.0 * json["scores"]["cosine_spearman"].as_f64().unwrap());
        assert_eq!(got, wanted, "{file}, {attention}");
    }
}
