//! `merge`, and `encode` with adapters: the same vectors, and the settings that travel along.

use super::*;

fn input() -> [&'static str; 2] {
    ["-i", prose()]
}

#[test]
fn a_merged_model_gives_the_vectors_of_its_adapters() {
    let tiny = Tiny::new();
    let (one, two, dir) = (tiny.adapter(1), tiny.adapter(2), folder());
    let (one, two) = (str(one.path()), str(two.path()));
    let plain = vectors(&[&["-m", tiny.path()], &input()[..]].concat());
    for adapters in [vec!["--adapter", one], vec!["--adapter", one, "--adapter", two]] {
        let merged = dir.path().join(adapters.len().to_string());
        good(llm2vec(&[&["merge", "-m", tiny.path(), "-o", str(&merged)], &adapters[..]].concat()));
        let live = vectors(&[&["-m", tiny.path(), "--pool-over", "all"], &adapters[..], &input()].concat());
        let whole = vectors(&[&["-m", str(&merged)], &input()[..]].concat());
        assert!(off(&whole, &live) <= 1e-5, "{}", off(&whole, &live));
        assert!(off(&plain, &live) > 1e-2, "the adapters do nothing");
        for file in
            ["config.json", "tokenizer.json", "tokenizer_config.json", "llm2vec_config.json", "README.md"]
        {
            assert!(merged.join(file).is_file(), "{file}");
        }
    }
    // One adapter merged, the other on top of the result.
    let first = dir.path().join("2");
    let stacked =
        vectors(&[&["-m", str(&first), "--adapter", two, "--pool-over", "text"], &input()[..]].concat());
    let both = vectors(&[&["-m", tiny.path(), "--adapter", one, "--adapter", two], &input()[..]].concat());
    assert!(off(&stacked, &both) <= 1e-5);
    // A list, as the environment variable takes it.
    let list = format!("{one},{two}");
    assert_eq!(vectors(&[&["-m", tiny.path(), "--adapter", &list], &input()[..]].concat()), both);
}

#[test]
fn merge_records_the_settings_and_encode_reads_them() {
    let tiny = Tiny::new();
    let (adapter, dir) = (tiny.adapter(1), folder());
    let (adapter, merged) = (str(adapter.path()), dir.path().join("merged"));
    let settings =
        ["--pooling", "weighted-mean", "--normalize", "--attention", "causal", "--pool-over", "all"];
    let lengths = ["--max-length", "20", "--doc-max-length", "20", "--template", "mistral"];
    let flags = [&settings[..], &lengths].concat();
    good(llm2vec(
        &[&["merge", "-m", tiny.path(), "--adapter", adapter, "-o", str(&merged)], &flags[..]].concat(),
    ));
    let theirs = hf::read_json(&merged.join("llm2vec_config.json")).unwrap();
    let wanted = json!({"pooling_mode": "weighted_mean", "max_length": 20, "doc_max_length": 20,
        "skip_instruction": false});
    assert_eq!(theirs, wanted);
    let mut ours = hf::read_json(&merged.join("llm2vec_encoder.json")).unwrap();
    let chain = ours.as_object_mut().unwrap().remove("adapters").unwrap();
    assert_eq!(chain.as_array().unwrap().len(), 1, "what was merged: {chain}");
    assert_eq!(ours, json!({"template": "mistral", "attention": "causal", "normalize": true}));
    let said = vectors(&[&["-m", tiny.path(), "--adapter", adapter], &flags[..], &input()].concat());
    let read = vectors(&[&["-m", str(&merged)], &input()[..]].concat());
    assert!(off(&read, &said) <= 1e-5, "{}", off(&read, &said));
    // A flag wins over the file.
    let last = vectors(&[&["-m", str(&merged), "--pooling", "last"], &input()[..]].concat());
    assert!(off(&last, &read) > 1e-2);
    let info = good(llm2vec(&["info", "-m", str(&merged)]));
    for word in
        ["Causal", "weighted_mean over all tokens, unit length", "mistral", "20 tokens a row, 20 of them"]
    {
        assert!(info.contains(word), "{word:?} is not in: {info}");
    }
    // Without our files, sentence-transformers' own say the same, but for the template.
    for name in ["llm2vec_config.json", "llm2vec_encoder.json"] {
        fs::remove_file(merged.join(name)).unwrap();
    }
    let read = vectors(&[&["-m", str(&merged), "--template", "mistral"], &input()[..]].concat());
    assert!(off(&read, &said) <= 1e-5, "{}", off(&read, &said));
}

#[test]
fn an_adapter_of_another_base_is_a_warning() {
    let tiny = Tiny::new();
    let adapter = tiny.adapter(1);
    let path = adapter.path().join("adapter_config.json");
    let mut config = hf::read_json(&path).unwrap();
    config["base_model_name_or_path"] = json!("someone/other-model");
    fs::write(&path, config.to_string()).unwrap();
    let run = llm2vec(&["info", "-m", tiny.path(), "--adapter", str(adapter.path())]).output().unwrap();
    let said = String::from_utf8(run.stderr.clone()).unwrap();
    assert!(said.starts_with("warning: ") && said.contains("someone/other-model"), "{said}");
    passed(run);
}

/// What `tests/interop.py --record` has seen of sentence-transformers, Transformers and the reference.
fn golden(path: &str) -> PathBuf {
    common::here("tests/golden/merged").join(path)
}

/// novel5m in f32, under the name that the fixtures have.
fn plain_base(dir: &Path) -> PathBuf {
    let base = dir.join("plain-base");
    fs::create_dir(&base).unwrap();
    let from = common::novel5m();
    for name in ["tokenizer.json", "special_tokens_map.json"] {
        fs::copy(from.join(name), base.join(name)).unwrap();
    }
    let changed = [
        ("config.json", "torch_dtype", json!("float32")),
        ("tokenizer_config.json", "model_input_names", json!(["input_ids", "attention_mask"])),
    ];
    for (name, key, value) in changed {
        let mut json = hf::read_json(&from.join(name)).unwrap();
        json[key] = value;
        fs::write(base.join(name), json.to_string()).unwrap();
    }
    let weights = hf::Checkpoint::open(&from).unwrap();
    let wide = |t: hf::RawTensor| -> Vec<f32> {
        t.data.as_chunks().0.iter().map(|c| half::bf16::from_le_bytes(*c).to_f32()).collect()
    };
    let values: Vec<_> = weights
        .names()
        .map(|name| weights.get(name).unwrap())
        .map(|t| (t.name.to_string(), t.shape.clone(), wide(t)))
        .collect();
    let tensors = values.iter().map(|(name, shape, values)| {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name} is bf16");
        (name.clone(), hf::Floats { shape: shape.clone(), values })
    });
    hf::write_safetensors(&base.join("model.safetensors"), tensors.collect()).unwrap();
    base
}

/// The folder that `merge` writes is the one that others opened, file by file; and its vectors are those that
/// sentence-transformers got from it.
#[test]
fn merged_folders_are_those_that_others_opened_to_the_same_vectors() {
    let dir = folder();
    let base = plain_base(dir.path());
    let texts = hf::read_json(&golden("texts.json")).unwrap();
    let lines = texts.as_array().unwrap().iter().map(|text| json!({"text": text}).to_string() + "\n");
    let input = dir.path().join("texts.jsonl");
    fs::write(&input, lines.collect::<String>()).unwrap();
    let expected = hf::Checkpoint::open_file(&golden("expected.safetensors")).unwrap();
    for (name, flags) in [
        ("mean", &["--pool-over", "all"][..]),
        ("eos-normalize", &["--pooling", "eos", "--normalize", "--max-length", "24"]),
        ("weighted-mean", &["--pooling", "weighted-mean", "--pool-over", "all"]),
        ("causal-last", &["--pooling", "last", "--attention", "causal"]),
    ] {
        let merged = dir.path().join(name);
        let adapter = golden("adapter");
        let args = ["merge", "-m", str(&base), "--adapter", str(&adapter), "-o", str(&merged)];
        good(llm2vec(&[&args[..], flags].concat()));
        same_files(&golden(name), &merged);

        let tensor = expected.get(name).unwrap();
        let wanted: Vec<f32> = tensor.data.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        let got = vectors(&["-m", str(&merged), "-i", str(&input)]);
        assert!(off(&got, &wanted) <= 1e-5, "{name}: {}", off(&got, &wanted));
    }
}

/// Every file of `wanted` is in `got`; JSON by what it says. Of the tokenizer there is the post-processor alone.
fn same_files(wanted: &Path, got: &Path) {
    for name in names(wanted) {
        let path = wanted.join(&name);
        if path.is_dir() {
            same_files(&path, &got.join(&name));
        } else if name == "post_processor.json" {
            let tokenizer = hf::read_json(&got.join("tokenizer.json")).unwrap();
            assert_eq!(tokenizer["post_processor"], hf::read_json(&path).unwrap());
        } else if name.ends_with(".json") {
            let [wanted, got] = [path, got.join(&name)].map(|path| hf::read_json(&path).unwrap());
            assert_eq!(got, wanted, "{name}");
        } else {
            let [wanted, got] = [path, got.join(&name)].map(|path| fs::read_to_string(path).unwrap());
            assert_eq!(got, wanted, "{name}");
        }
    }
}

/// What the attention is called by Transformers, text-embeddings-inference and the reference, for each family.
#[test]
fn merge_spells_the_attention_out_for_everybody() {
    let dir = folder();
    let merged = |folder: &Path, attention: &str, n: usize| {
        let out = dir.path().join(n.to_string());
        let args =
            ["merge", "-m", str(folder), "-o", str(&out), "--attention", attention, "--pool-over", "all"];
        good(llm2vec(&args));
        hf::read_json(&out.join("config.json")).unwrap()
    };
    for (n, (key, set)) in
        [("is_causal", false), ("use_bidirectional_attention", true)].into_iter().enumerate()
    {
        let tiny = Tiny::new();
        assert_eq!(merged(tiny.dir.path(), "full", 10 * n)[key], json!(set));
        let mut config = tiny.config.clone();
        config[key] = json!(set);
        fs::write(tiny.file("config.json"), config.to_string()).unwrap();
        let causal = merged(tiny.dir.path(), "causal", 10 * n + 1);
        assert!(causal.get(key).is_none(), "a causal folder says {key}: {}", causal[key]);
    }
    // Mistral: a window that is in force where config.json is silent must not narrow what was trained without one.
    let tiny = Tiny::new();
    for (n, window) in [json!(4), Value::Null].into_iter().enumerate() {
        let mut config = tiny.config.clone();
        config["model_type"] = json!("mistral");
        config["sliding_window"] = window.clone();
        fs::write(tiny.file("config.json"), config.to_string()).unwrap();
        assert_eq!(merged(tiny.dir.path(), "full", 100 + n).get("sliding_window"), Some(&Value::Null));
        if !window.is_null() {
            let kept = merged(tiny.dir.path(), "window", 200 + n);
            assert_eq!((&kept["sliding_window"], &kept["is_causal"]), (&window, &json!(false)));
        }
    }
}

/// A base without an adapter; everything beside the weights that a user would miss.
#[test]
fn a_base_is_exported_with_all_that_belongs_to_it() {
    let tiny = Tiny::new();
    for (name, text) in
        [("chat_template.jinja", "{{ messages }}"), ("merges.txt", "a b"), ("vocab.json", "{}")]
    {
        fs::write(tiny.file(name), text).unwrap();
    }
    let dir = folder();
    let out = dir.path().join("encoder");
    let run = llm2vec(&["merge", "-m", tiny.path(), "-o", str(&out), "--normalize"]).output().unwrap();
    let said = String::from_utf8(run.stderr.clone()).unwrap();
    passed(run);
    let notes = ["pools every token", "a text of over 400 tokens is cut at 512"];
    assert!(notes.iter().all(|note| said.contains(note)), "{said}");
    // Where the folder's vectors are those from before, nothing is said.
    let same = dir.path().join("same");
    let args = ["merge", "-m", tiny.path(), "-o", str(&same), "--pooling", "last", "--doc-max-length", "512"];
    let run = llm2vec(&args).output().unwrap();
    let said = String::from_utf8(run.stderr.clone()).unwrap();
    passed(run);
    assert!(!said.contains("note:"), "{said}");
    assert_eq!(
        vectors(&["-m", str(&same), "-i", prose()]),
        vectors(&["-m", tiny.path(), "-i", prose(), "--pooling", "last"])
    );
    for name in ["chat_template.jinja", "merges.txt", "vocab.json"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(tiny.file(name)).unwrap());
    }
    let exported = vectors(&["-m", str(&out), "-i", prose()]);
    let base = vectors(&["-m", tiny.path(), "-i", prose(), "--normalize", "--pool-over", "all"]);
    assert!(off(&exported, &base) <= 1e-6);
}

/// Twenty kills at moments spread over a merge: the folder is whole or is not there, and the next merge leaves nothing of
/// those that were killed.
#[test]
fn a_killed_merge_leaves_a_whole_folder_or_none() {
    let (model, adapter, dir) = (common::novel5m(), golden("adapter"), folder());
    let merge = |out: &Path| {
        llm2vec(&[
            "merge",
            "-m",
            str(&model),
            "--adapter",
            str(&adapter),
            "-o",
            str(out),
            "--pool-over",
            "all",
        ])
    };
    let whole = dir.path().join("whole");
    let start = std::time::Instant::now();
    good(merge(&whole));
    let (time, out) = (start.elapsed(), dir.path().join("out"));
    let mut unfinished = 0;
    for kill in 0..20 {
        let mut child = merge(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time * (kill + 1) / 20);
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            same_bytes(&whole, &out);
            fs::remove_dir_all(&out).unwrap();
        } else {
            unfinished += 1;
        }
    }
    assert!(unfinished > 0, "every merge was over before its kill");
    good(merge(&out));
    same_bytes(&whole, &out);
    assert_eq!(names(dir.path()), ["out", "whole"]);
}

/// The same files with the same bytes.
fn same_bytes(wanted: &Path, got: &Path) {
    assert_eq!(names(got), names(wanted));
    for name in names(wanted) {
        let [wanted, got] = [wanted.join(&name), got.join(&name)];
        match wanted.is_dir() {
            true => same_bytes(&wanted, &got),
            false => assert!(fs::read(&wanted).unwrap() == fs::read(&got).unwrap(), "{name}"),
        }
    }
}
