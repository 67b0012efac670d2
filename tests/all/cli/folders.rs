//! Folders and names of other tools: sentence-transformers' to the vectors that it gives itself, the hub's cache, and
//! the published layout of adapters that name their base.

use super::*;
use llm2vec::format::hf::Checkpoint;
use tempfile::TempDir;

/// What the library itself gave: `tests/golden/make_sentence_transformers.py`.
fn golden(path: &str) -> PathBuf {
    common::here("tests/golden/sentence_transformers").join(path)
}

/// A whole folder: novel5m with the files of `name` over it.
fn whole(name: &str) -> TempDir {
    fn over(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap().path()) {
            let target = to.join(entry.file_name().unwrap());
            match entry.is_dir() {
                true => {
                    fs::create_dir_all(&target).unwrap();
                    over(&entry, &target);
                }
                false => drop(fs::copy(&entry, &target).unwrap()),
            }
        }
    }
    let dir = folder();
    over(&common::novel5m(), dir.path());
    over(&golden(name), dir.path());
    dir
}

/// The texts of the fixtures as JSONL, since they begin and end with spaces.
fn texts(dir: &Path) -> PathBuf {
    let texts = hf::read_json(&golden("texts.json")).unwrap();
    let lines = texts.as_array().unwrap().iter().map(|text| json!({"text": text}).to_string() + "\n");
    let path = dir.join("texts.jsonl");
    fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

fn f32s(file: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = file.get(name).unwrap();
    tensor.data.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect()
}

/// stderr of a run that must succeed.
fn said(args: &[&str]) -> String {
    let run = llm2vec(args).output().unwrap();
    let said = String::from_utf8(run.stderr.clone()).unwrap();
    passed(run);
    said
}

#[test]
fn sentence_transformers_folders_give_its_vectors() {
    let expected = Checkpoint::open_file(&golden("expected.safetensors")).unwrap();
    let names: Vec<&str> = expected.names().collect();
    assert_eq!(names.len(), 17);
    for case in names {
        let (name, prompt) = case.split_once('+').map_or((case, None), |(name, prompt)| (name, Some(prompt)));
        let dir = whole(name);
        let texts = texts(dir.path());
        let mut args = vec!["-m", str(dir.path()), "-i", str(&texts)];
        args.extend(prompt.iter().flat_map(|name| ["--prompt", name]));
        let (got, wanted) = (vectors(&args), f32s(&expected, case));
        assert_eq!(got.len(), wanted.len(), "{case}");
        let most = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let size = wanted.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(most <= 1e-5 * size.max(1.0), "{case}: off by {most}, the largest number is {size}");
    }
}

/// The same for folders that users brought.
#[test]
fn folders_of_users_give_sentence_transformers_vectors() {
    let cases = common::here("../shared/cases");
    if !cases.is_dir() {
        return eprintln!("skipped: no ../shared");
    }
    let input = cases.join("inputs/three.txt");
    for entry in fs::read_dir(cases.join("expected")).unwrap().map(|e| e.unwrap().path()) {
        let model = cases.join("models").join(entry.file_stem().unwrap());
        let (got, wanted) = (vectors(&["-m", str(&model), "-i", str(&input)]), rows(&entry));
        let most = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == wanted.len() && most <= 1e-5, "{}: off by {most}", model.display());
    }
}

#[test]
fn flags_win_over_what_a_folder_says() {
    let dir = whole("dense");
    let (model, texts) = (str(dir.path()), texts(dir.path()));
    let run = |more: &[&str]| vectors(&[&["-m", model, "-i", str(&texts)], more].concat());
    let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!(run(&[]).chunks(24).all(|row| (norm(row) - 1.0).abs() < 1e-5));
    assert!(run(&["--normalize=false"]).chunks(24).all(|row| (norm(row) - 1.0).abs() > 1e-2));
    let prompts = whole("prompts");
    let run = |more: &[&str]| vectors(&[&["-m", str(prompts.path()), "-i", str(&texts)], more].concat());
    assert_ne!(run(&[]), run(&["--prompt", "document"]));
    assert_ne!(run(&[]), run(&["--instruction", "Say what this is about:"]));
    assert_ne!(run(&[]), run(&["--pool-over", "text"]));
    assert_ne!(run(&[]), run(&["--max-length", "8"]));
    let wrong = |more: &[&str]| {
        llm2vec(&[&["encode", "-m", str(prompts.path()), "-i", str(&texts), "-o", "-"], more].concat())
    };
    failed(wrong(&["--prompt", "passage"]).output().unwrap(), 2, &["`passage`", "document, query"]);
    let bare =
        llm2vec(&["encode", "-m", str(&common::novel5m()), "-i", str(&texts), "-o", "-", "--prompt", "q"]);
    failed({ bare }.output().unwrap(), 2, &["no prompts", "--instruction"]);
}

/// Flag, our own file, config.json, sentence-transformers, full; and which it was is said.
#[test]
fn attention_is_decided_in_order_and_said() {
    let (dir, out) = (whole("mean"), folder());
    let (model, texts, out) = (str(dir.path()), texts(dir.path()), out.path().join("v.npy"));
    let run = |more: &[&str]| {
        let args = ["encode", "-m", model, "-i", str(&texts), "-o", str(&out)];
        let said = said(&[&args[..], more].concat());
        let line = said.lines().find(|l| l.starts_with("attention: ")).unwrap_or_default();
        (line.to_string(), rows(&out))
    };
    let (line, causal) = run(&[]);
    assert!(
        line.starts_with("attention: causal, by sentence-transformers") && line.contains("--attention full"),
        "{line}"
    );
    let (line, full) = run(&["--attention", "full"]);
    assert_eq!(line, "attention: full, by --attention");
    assert!(off(&causal, &full) > 1e-2);
    let set = |key: &str, value: Value| {
        let mut config = hf::read_json(&dir.path().join("config.json")).unwrap();
        config[key] = value;
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    };
    set("use_bidirectional_attention", json!(true));
    assert_eq!(
        run(&[]),
        ("attention: full, by \"use_bidirectional_attention\": true in config.json".into(), full.clone())
    );
    set("is_causal", json!(true));
    assert_eq!(run(&[]), ("attention: causal, by \"is_causal\": true in config.json".into(), causal.clone()));
    fs::write(dir.path().join("llm2vec_encoder.json"), r#"{"attention": "full"}"#).unwrap();
    let (line, got) = run(&[]);
    assert!(line.contains("llm2vec_encoder.json") && got == full, "{line}");
    assert_eq!(run(&["--attention", "causal"]).1, causal);
    let said = said(&["encode", "-m", str(&common::novel5m()), "-i", str(&texts), "-o", str(&out)]);
    assert!(said.contains("attention: full, by LLM2Vec's default"), "{said}");
}

/// A hub cache with the layout of the published models; the base is novel5m.
struct Cache(TempDir);

impl Cache {
    fn new() -> Cache {
        let cache = Cache(folder());
        let base = cache.snapshot("mistralai/Mistral-7B-Instruct-v0.2", "main");
        for name in names(&common::novel5m()) {
            fs::copy(common::novel5m().join(&name), base.join(&name)).unwrap();
        }
        cache
    }

    /// A new snapshot of a repository, under this branch.
    fn snapshot(&self, id: &str, branch: &str) -> PathBuf {
        let root = self.0.path().join("hub").join(format!("models--{}", id.replace('/', "--")));
        let commit = format!("{:040x}", id.len() * 31 + branch.len());
        fs::create_dir_all(root.join("refs")).unwrap();
        fs::write(root.join("refs").join(branch), &commit).unwrap();
        let snapshot = root.join("snapshots").join(commit);
        fs::create_dir_all(&snapshot).unwrap();
        snapshot
    }

    /// A published adapter: what PEFT writes, its base the bare model.
    fn adapter(&self, id: &str, branch: &str, seed: u64) -> PathBuf {
        let at = self.snapshot(id, branch);
        random_adapter(&at, &common::config(&common::novel5m()), seed);
        let path = at.join("adapter_config.json");
        let mut config = hf::read_json(&path).unwrap();
        config["base_model_name_or_path"] = json!("mistralai/Mistral-7B-Instruct-v0.2");
        fs::write(path, config.to_string()).unwrap();
        at
    }

    fn run(&self, args: &[&str]) -> Command {
        let mut command = llm2vec(args);
        command.env("HF_HOME", self.0.path());
        command
    }

    fn vectors(&self, args: &[&str]) -> Vec<f32> {
        let out = self.0.path().join("out.npy");
        good(self.run(&[&["encode", "-i", prose(), "-o", str(&out)], args].concat()));
        rows(&out)
    }
}

const BASE: &str = "mistralai/Mistral-7B-Instruct-v0.2";
const MNTP: &str = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp";
const SIMCSE: &str = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-unsup-simcse";

#[test]
fn published_repositories_are_models_by_their_names() {
    let cache = Cache::new();
    let mntp = cache.adapter(MNTP, "main", 1);
    // As published: the base's config.json and tokenizer beside the adapter.
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(common::novel5m().join(name), mntp.join(name)).unwrap();
    }
    let simcse = cache.adapter(SIMCSE, "main", 2);
    let stacked = cache.vectors(&["-m", BASE, "--adapter", MNTP, "--adapter", SIMCSE]);
    let alone = cache.vectors(&["-m", BASE, "--adapter", MNTP]);
    assert!(off(&stacked, &alone) > 1e-2);
    assert_eq!(cache.vectors(&["-m", MNTP]), alone);
    assert_eq!(cache.vectors(&["-m", MNTP, "--adapter", SIMCSE]), stacked);
    assert_eq!(cache.vectors(&["-m", SIMCSE]), stacked, "what its name says lies below it");
    assert_eq!(cache.vectors(&["-m", BASE, "--adapter", str(&mntp), "--adapter", str(&simcse)]), stacked);
    // The template is that of the name asked for, or of the base behind it; a folder has none.
    for model in [BASE, MNTP] {
        assert!(good(cache.run(&["info", "-m", model])).contains("template     mistral"), "{model}");
    }
    assert!(good(cache.run(&["info", "-m", str(&common::novel5m())])).contains("template     none"));
    // SimCSE without what it was trained on top of would give vectors that look right.
    let missing = cache.run(&["info", "-m", BASE, "--adapter", SIMCSE]).output().unwrap();
    failed(
        missing,
        1,
        &["trained on top of", "-mntp", "--adapter McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp before"],
    );
    fs::remove_dir_all(cache.0.path().join("hub").join(format!("models--{}", MNTP.replace('/', "--"))))
        .unwrap();
    let missing = cache.run(&["info", "-m", SIMCSE]).output().unwrap();
    failed(missing, 1, &["by its name it was trained on top of", "download it first"]);
}

#[test]
fn a_revision_is_a_branch_or_a_commit() {
    let cache = Cache::new();
    cache.adapter("me/adapter", "main", 1);
    let second = cache.adapter("me/adapter", "v2", 2);
    let run = |name: &str| cache.vectors(&["-m", BASE, "--adapter", name]);
    let (main, other) = (run("me/adapter"), run("me/adapter@v2"));
    assert!(off(&main, &other) > 1e-2);
    let commit = second.file_name().unwrap().to_str().unwrap();
    assert_eq!(run(&format!("me/adapter@{commit}")), other);
    assert_eq!(run("me/adapter@main"), main);
    let wrong = cache.run(&["info", "-m", BASE, "--adapter", "me/adapter@v3"]).output().unwrap();
    failed(wrong, 1, &["me/adapter@v3", "no revision"]);
}

/// Training writes such a folder too: it is a model by itself where its base is at hand.
#[test]
fn an_adapter_that_names_its_base_is_a_model() {
    let tiny = Tiny::new();
    let adapter = tiny.adapter(3);
    let path = adapter.path().join("adapter_config.json");
    let mut config = hf::read_json(&path).unwrap();
    config["base_model_name_or_path"] = json!(tiny.path());
    fs::write(&path, config.to_string()).unwrap();
    let stacked = vectors(&["-m", tiny.path(), "-i", prose(), "--adapter", str(adapter.path())]);
    assert_eq!(vectors(&["-m", str(adapter.path()), "-i", prose()]), stacked);
    config["base_model_name_or_path"] = json!("no/where");
    fs::write(&path, config.to_string()).unwrap();
    let run = llm2vec(&["info", "-m", str(adapter.path())]).output().unwrap();
    failed(run, 1, &["adapter_config.json", "no/where", "--adapter"]);
    config["base_model_name_or_path"] = Value::Null;
    fs::write(&path, config.to_string()).unwrap();
    let run = llm2vec(&["info", "-m", str(adapter.path())]).output().unwrap();
    failed(run, 1, &["names no base_model_name_or_path"]);
    // Two that name each other have no end.
    config["base_model_name_or_path"] = json!(str(adapter.path()));
    fs::write(&path, config.to_string()).unwrap();
    let run = llm2vec(&["info", "-m", str(adapter.path())]).output().unwrap();
    failed(run, 1, &["adapters on adapters"]);
}
