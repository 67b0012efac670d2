//! `llm2vec analyze`: what theory says of causal and full attention, figures by hand from the vectors of `encode`, and
//! what is refused.

use crate::command::{Tiny, failed, folder, good, llm2vec, prose, str, vectors};
use crate::common::{here, novel5m};
use llm2vec::eval::analyze::prefix;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TEXT: &str = "A heavy rain fell upon the roof all night, and nobody slept.";

struct Place {
    tiny: Tiny,
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { tiny: Tiny::new(), dir: folder() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        str(&self.path(name)).to_string()
    }

    /// Runs an analysis of the tiny model; its JSON, its table and its picture.
    #[track_caller]
    fn run(&self, question: &str, more: &[&str]) -> (Value, String, String) {
        let (json, svg) = (self.path("out.json"), self.path("out.svg"));
        let own = ["analyze", question, "-q", "-m", self.tiny.path(), "-o", str(&json), "--plot", str(&svg)];
        let table = good(llm2vec(&[&own[..], more].concat()));
        let json = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        (json, table, fs::read_to_string(svg).unwrap())
    }

    #[track_caller]
    fn refused(&self, question: &str, more: &[&str], status: i32, words: &[&str]) {
        let own = ["analyze", question, "-q", "-m", self.tiny.path()];
        failed(llm2vec(&[&own[..], more].concat()).output().unwrap(), status, words);
    }

    /// What `encode --level token` gives of a file under a mask, after a block.
    fn tokens(&self, file: &str, mask: &str, layer: usize) -> Vec<Vec<f32>> {
        let (layer, more) = (layer.to_string(), ["--level", "token", "--attention", mask, "--layer"]);
        let own = ["-q", "-m", self.tiny.path(), "-i", file];
        vectors(&[&own[..], &more, &[&layer]].concat()).chunks_exact(32).map(<[f32]>::to_vec).collect()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn floats(json: &Value) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(got: f64, wanted: f64) {
    assert!((got - wanted).abs() < 1e-5, "{got}, {wanted} was wanted");
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn states_that_no_mask_changes_are_the_same() {
    let place = Place::new();
    let (same, ..) = place.run("similarity", &["--text", TEXT, "--attention", "causal"]);
    let (json, table, svg) = place.run("similarity", &["--text", TEXT]);
    let report = &json["report"];
    let rows = |report: &Value| -> Vec<Vec<f64>> {
        report["similarity"].as_array().unwrap().iter().map(floats).collect()
    };
    assert!(rows(&same["report"]).iter().flatten().all(|v| *v == 1.0));
    assert_eq!(json["attention"], serde_json::json!(["causal", "full"]));

    let (rows, n) = (rows(report), report["tokens"].as_array().unwrap().len());
    assert!(rows.len() == 3 && n > 10 && rows.iter().all(|row| row.len() == n));
    // The embedding sees no other token. In the first block the last token sees all under either mask; from the second
    // on what it sees has changed.
    assert!(rows[0].iter().all(|v| *v == 1.0));
    near(rows[1][n - 1], 1.0);
    assert!(rows[1][..n - 1].iter().all(|v| *v < 1.0 - 1e-6), "{:?}", rows[1]);
    assert!(rows[2].iter().all(|v| *v < 1.0 - 1e-6), "{:?}", rows[2]);
    let text: String = report["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(text, TEXT);

    let file = place.write("text.txt", &TEXT.replace(" and", "\nand"));
    for (layer, row) in rows.iter().enumerate() {
        let one_line = place.write("line.txt", TEXT);
        let [causal, full] = ["causal", "full"].map(|mask| place.tokens(&one_line, mask, layer));
        causal.iter().zip(&full).zip(row).for_each(|((a, b), v)| near(*v, cosine(a, b)));
    }
    let means = floats(&report["mean_by_layer"]);
    near(means[2], mean(&rows[2]));
    near(report["mean"].as_f64().unwrap(), (means[1] + means[2]) / 2.0);
    assert!(table.contains(&format!("{:.4}", means[2])), "{table}");
    for word in ["cosine", "layer (0: embedding)", "token of the text", "causal and full attention"] {
        assert!(svg.contains(word), "{word} is not in the picture");
    }
    // Lines of a file are one text.
    assert_eq!(&place.run("similarity", &["--text", &file]).0["report"], report);
}

#[test]
fn a_prefix_knows_what_follows_under_full_attention_alone() {
    let place = Place::new();
    let (json, table, svg) = place.run("prefix", &[]);
    let cosines = |mask: &str, of: &str| -> Vec<f64> {
        let triples = json["reports"][mask]["triples"].as_array().unwrap();
        triples.iter().map(|t| t[of].as_f64().unwrap()).collect()
    };
    for of in ["positive", "negative"] {
        // Exact but for sums in f32, whose order follows the length of the text.
        let off = cosines("causal", of).iter().map(|v| (v - 1.0).abs()).fold(0.0, f64::max);
        assert!(off < 1e-12, "a causal prefix cannot see what follows: {off}");
    }
    let (positive, negative) = (cosines("full", "positive"), cosines("full", "negative"));
    assert!(positive.iter().chain(&negative).all(|v| *v < 1.0 - 1e-6));
    assert!(positive.iter().zip(&negative).all(|(p, n)| p != n));
    let (causal, full) = (&json["reports"]["causal"], &json["reports"]["full"]);
    assert_eq!(causal["separated"], 0, "rounding sets no triple apart");
    assert!(causal["mean_difference"].as_f64().unwrap().abs() < 1e-12);
    let apart = positive.iter().zip(&negative).filter(|(p, n)| p > n).count();
    assert_eq!(full["separated"], apart);
    near(full["mean_difference"].as_f64().unwrap(), mean(&positive) - mean(&negative));
    let bins = &json["histograms"]["full"];
    assert_eq!(
        (bins["edges"].as_array().unwrap().len(), bins["positive"].as_array().unwrap().len()),
        (16, 15)
    );
    for (mask, side) in [("causal", "positive"), ("full", "positive"), ("full", "negative")] {
        let counts = json["histograms"][mask][side].as_array().unwrap().iter();
        assert_eq!(counts.map(|v| v.as_u64().unwrap()).sum::<u64>(), 35);
    }
    assert!(table.contains("She loves summer") && table.contains(&format!("{apart} of 35")), "{table}");
    assert!(svg.contains("attention causal: 0 of 35 apart") && svg.contains("cosine of the prefix"));
    // Another pooling is of the prefix alone too, and one mask is one report.
    let (last, ..) = place.run("prefix", &["--pooling", "last", "--attention", "causal", "--layer", "1"]);
    assert!((last["reports"]["causal"]["mean_negative"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(last["reports"].as_object().unwrap().len(), 1);
}

/// The first triple, its prefix's tokens averaged from what `encode` says of each text.
#[test]
fn a_prefix_is_pooled_over_its_own_tokens() {
    let place = Place::new();
    let triple = &prefix::our_own().unwrap()[0];
    let vector = |end: &str| -> Vec<f32> {
        let file = place.write("line.txt", &format!("{} {end}", triple.prefix));
        let alone = place.write("prefix.txt", &triple.prefix);
        let count = place.tokens(&alone, "full", 2).len();
        let rows = place.tokens(&file, "full", 2);
        (0..32).map(|c| rows[..count].iter().map(|row| row[c]).sum::<f32>() / count as f32).collect()
    };
    let [q, positive, negative] = [&triple.query, &triple.positive, &triple.negative].map(|end| vector(end));
    let (json, ..) = place.run("prefix", &["--attention", "full"]);
    let got = &json["reports"]["full"]["triples"][0];
    near(got["positive"].as_f64().unwrap(), cosine(&q, &positive));
    near(got["negative"].as_f64().unwrap(), cosine(&q, &negative));
}

/// Our own triples are 35 different ones, whose ends differ.
#[test]
fn triples_are_well_formed() {
    let triples = prefix::our_own().unwrap();
    let read = prefix::read(&here("tests/texts/triples.jsonl")).unwrap();
    assert_eq!((triples.len(), &triples), (35, &read));
    for (i, t) in triples.iter().enumerate() {
        assert!(triples[..i].iter().all(|other| other.prefix != t.prefix), "{}", t.prefix);
        assert!(t.query != t.positive && t.query != t.negative && t.positive != t.negative, "{}", t.prefix);
    }
}

#[test]
fn anisotropy_is_the_mean_over_all_pairs() {
    let place = Place::new();
    let lines: Vec<String> = fs::read_to_string(prose()).unwrap().lines().take(4).map(String::from).collect();
    let file = place.write("lines.txt", &lines.join("\n"));
    let (json, table, svg) = place.run("anisotropy", &["--text", &file]);
    let one: Vec<String> =
        lines.iter().enumerate().map(|(i, l)| place.write(&format!("{i}.txt"), l)).collect();
    for (mask, layer) in [("causal", 0), ("causal", 2), ("full", 1), ("full", 2)] {
        let texts: Vec<Vec<Vec<f32>>> = one.iter().map(|file| place.tokens(file, mask, layer)).collect();
        let (mut between, mut within) = (Vec::new(), Vec::new());
        let all: Vec<(usize, &Vec<f32>)> =
            texts.iter().enumerate().flat_map(|(i, rows)| rows.iter().map(move |row| (i, row))).collect();
        for (i, (text, a)) in all.iter().enumerate() {
            for (other, b) in &all[..i] {
                let list = if text == other { &mut within } else { &mut between };
                list.push(cosine(a, b));
            }
        }
        let layer_flag = layer.to_string();
        let own = ["-q", "-m", place.tiny.path(), "-i", &file, "--attention", mask, "--layer", &layer_flag];
        let means: Vec<Vec<f32>> = vectors(&own).chunks_exact(32).map(<[f32]>::to_vec).collect();
        let pairs = (0..4).flat_map(|i| (0..i).map(move |j| (i, j)));
        let texts: Vec<f64> = pairs.map(|(i, j)| cosine(&means[i], &means[j])).collect();
        let got = &json["reports"][mask]["layers"][layer];
        near(got["tokens"].as_f64().unwrap(), mean(&between));
        near(got["tokens_of_one_text"].as_f64().unwrap(), mean(&within));
        near(got["texts"].as_f64().unwrap(), mean(&texts));
        assert_eq!(json["reports"][mask]["tokens"], all.len());
    }
    assert!(table.contains("causal: tokens of one text") && table.lines().count() == 4, "{table}");
    assert!(svg.contains("texts, full") && svg.contains("mean cosine of two"));
    let (few, ..) = place.run("anisotropy", &["--text", &file, "--limit", "2", "--attention", "full"]);
    assert_eq!((&few["reports"]["full"]["texts"], few["reports"].get("causal")), (&2.into(), None));
}

fn trained(place: &Place, out: &str) {
    let own = ["train", "simcse", "-m", place.tiny.path(), "--data", prose(), "-o", out, "--quiet"];
    let more = ["--steps", "6", "--save-steps", "2", "--batch", "4", "--max-length", "16", "--lr", "0.05"];
    good(llm2vec(&[&own[..], &more].concat()));
}

#[test]
fn efficiency_is_sts_of_every_checkpoint() {
    let place = Place::new();
    let (run, sts) = (place.path("run"), here("tests/texts/sts.tsv"));
    trained(&place, str(&run));
    let (json, table, svg) = place.run("efficiency", &["--run", str(&run), "--data", str(&sts)]);
    let points = json["curves"][0]["points"].as_array().unwrap();
    let steps: Vec<u64> = points.iter().map(|p| p["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 2, 4, 6]);
    let eval = |adapter: Option<PathBuf>| -> Value {
        let out = place.path("eval.json");
        let own = ["eval", "sts", "-q", "-m", place.tiny.path(), "--data", str(&sts), "-o", str(&out)];
        let adapter = adapter.map(|dir| str(&dir).to_string());
        let more: Vec<&str> = adapter.iter().flat_map(|dir| ["--adapter", dir]).collect();
        // What the run records: its length.
        let length = ["--max-length", "512"];
        good(llm2vec(&[&own[..], &more, &length].concat()));
        let json: Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
        json["mean_of_files"]["cosine_spearman"].clone()
    };
    assert_eq!(points[0]["cosine_spearman"], eval(None));
    for (step, point) in [(2, &points[1]), (6, &points[3])] {
        assert_eq!(point["cosine_spearman"], eval(Some(run.join(format!("checkpoint-{step}")))));
    }
    assert!(points[0]["cosine_spearman"] != points[3]["cosine_spearman"]);
    assert!(table.lines().count() == 5 && svg.contains("Spearman x 100") && svg.contains("step"), "{table}");
    // The same points from single adapters.
    let single = [2, 4, 6].map(|step| format!("{step}={}", run.join(format!("checkpoint-{step}")).display()));
    let own = ["--data", str(&sts), "--run", &single[2], "--run", &single[0], "--run", &single[1]];
    let (other, ..) = place.run("efficiency", &own);
    assert_eq!(other["curves"][0]["points"], json["curves"][0]["points"]);

    let sts = str(&sts);
    place.refused(
        "efficiency",
        &["--run", str(&run.join("checkpoint-2")), "--data", sts],
        1,
        &["STEP=FOLDER"],
    );
    place.refused("efficiency", &["--run", "nowhere", "--data", sts], 1, &["nowhere", "No such file"]);
    place.refused("efficiency", &["--run", "0=x", "--data", sts], 2, &["step 0 is the model"]);
    place.refused("efficiency", &["--run", "3=x,3=y", "--data", sts], 2, &["step 3 stands there twice"]);
}

#[test]
fn bad_inputs_are_one_line() {
    let place = Place::new();
    let one = place.write("one.txt", "A single line\n");
    let bad = place.write("bad.jsonl", "{\"prefix\": \"A\", \"query\": \"b\", \"positive\": \"c\"}\n");
    let empty = place.write(
        "empty.jsonl",
        "{\"prefix\": \" \", \"query\": \"b\", \"positive\": \"c\", \"negative\": \"d\"}\n",
    );
    let nothing = place.write("nothing.txt", "\n");
    place.refused("similarity", &["--text", "lost.txt"], 2, &["--text lost.txt", "no such file"]);
    place.refused("similarity", &["--text", &nothing], 1, &["nothing.txt"]);
    place.refused("similarity", &["--text", TEXT, "--attention", "window"], 2, &["sliding_window"]);
    place.refused("similarity", &["--text", &one, "-o", &one], 2, &["--output", "one of the files read"]);
    place.refused("similarity", &["--text", TEXT, "--plot", "no/folder.svg"], 1, &["there is no folder"]);
    place.refused("prefix", &["--triples", &bad], 1, &["bad.jsonl: line 1", "negative"]);
    place.refused("prefix", &["--triples", &empty], 1, &["empty.jsonl: line 1, prefix", "is empty"]);
    place.refused("prefix", &["--pooling", "bos"], 2, &["--pooling bos", "outside of the text"]);
    place.refused("prefix", &["--max-length", "6"], 2, &["triple 1", "a length limit cuts it"]);
    place.refused("prefix", &["--layer", "9"], 2, &["--layer 9"]);
    place.refused("anisotropy", &["--text", &one], 1, &["1 texts, at least two"]);
    place.refused("anisotropy", &["--text", "lost.txt"], 1, &["lost.txt", "No such file"]);
    let names: Vec<_> = fs::read_dir(place.dir.path()).unwrap().collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

/// The model that ships with the repository, which was pre-trained: its last layers differ between masks, its prefixes
/// too.
#[test]
fn a_trained_model_is_told_apart() {
    let dir = folder();
    let out = dir.path().join("s.json");
    let model = novel5m();
    good(llm2vec(&["analyze", "similarity", "-q", "-m", str(&model), "--text", TEXT, "-o", str(&out)]));
    let json: Value = serde_json::from_slice(&fs::read(Path::new(&out)).unwrap()).unwrap();
    let means = floats(&json["report"]["mean_by_layer"]);
    assert!(means[0] == 1.0 && means.iter().skip(1).all(|v| *v < 0.99), "{means:?}");
}
