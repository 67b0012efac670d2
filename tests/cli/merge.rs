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
