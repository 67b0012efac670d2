//! Names, settings, and the folders of sentence-transformers: what they say is taken over, or refused by name.

use super::*;
use llm2vec::pretrained::names::{Located, cached, hub_cache, locate, split};
use llm2vec::pretrained::pooling::PoolingMode;
use llm2vec::pretrained::sentence_transformers::{Modules, Step};

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn names_are_looked_up_in_the_cache() {
    let dir = folder();
    let cache = dir.path().join("hub");
    let root = cache.join("models--org--name");
    fs::create_dir_all(root.join("snapshots/abc1234f")).unwrap();
    let snapshot = |name: &str| root.join("snapshots").join(name);
    assert_eq!(cached("org/name", &cache).unwrap(), snapshot("abc1234f"));
    fs::create_dir_all(snapshot("def")).unwrap();
    refused(cached("org/name", &cache), &["2 snapshots"]);
    fs::create_dir_all(root.join("refs/pr")).unwrap();
    fs::write(root.join("refs/main"), "def\n").unwrap();
    fs::write(root.join("refs/pr/1"), "abc1234f").unwrap();
    assert_eq!(cached("org/name", &cache).unwrap(), snapshot("def"));
    for revision in ["refs/pr/1", "pr/1", "abc1234f", "abc1234"] {
        let found = cached(&format!("org/name@{revision}"), &cache);
        if revision == "refs/pr/1" {
            refused(found, &["no revision"]);
        } else {
            assert_eq!(found.unwrap(), snapshot("abc1234f"), "{revision}");
        }
    }
    for revision in ["v2", "abc", "", "../main", "."] {
        refused(cached(&format!("org/name@{revision}"), &cache), &["revision"]);
    }
    fs::write(root.join("refs/main"), "../../..").unwrap();
    refused(cached("org/name", &cache), &["not there"]);
    refused(cached("org/other", &cache), &["org/other", "models--org--other"]);
    for name in ["../x", "a/b/c", "/abs/olute", ""] {
        refused(cached(name, &cache), &["hub id"]);
    }
    let path = str(dir.path());
    assert_eq!(locate(path).unwrap(), Located::folder(path));
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    refused(locate(str(&file)), &["is a file"]);
}

#[test]
fn a_folder_may_have_a_comma_or_an_at_in_its_name() {
    let dir = folder();
    let names = ["a,b", "c@d", "e"].map(|name| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        str(&path).to_string()
    });
    let found = |given: &[String]| -> Vec<String> {
        split(given).iter().map(|name| locate(name).unwrap().name).collect()
    };
    assert_eq!(found(&names), names);
    assert_eq!(found(&[format!("{},{}", names[1], names[2])]), names[1..]);
}

/// huggingface_hub's order, and its `~` and `$NAME`.
#[test]
fn the_cache_is_where_huggingface_hub_has_it() {
    for (set, wanted) in [
        (&[][..], "/home/me/.cache/huggingface/hub"),
        (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
        (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/home/me/hf/hub"),
        (&[("HF_HOME", "$DISK/hf"), ("DISK", "/d")], "/d/hf/hub"),
        (&[("HF_HOME", "${DISK}s/$NONE/hf"), ("DISK", "/d")], "/ds/$NONE/hf/hub"),
        (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        (&[("HUGGINGFACE_HUB_CACHE", "~/old")], "/home/me/old"),
        (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "~")], "/home/me"),
        (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")], "/hf/hub"),
    ] {
        let var = |key: &str| {
            let all = [("HOME", "/home/me")].iter().chain(set).find(|(k, _)| *k == key);
            all.map(|(_, value)| value.to_string())
        };
        assert_eq!(hub_cache(var).unwrap(), Path::new(wanted), "{set:?}");
    }
}

#[test]
fn settings_round_trip() {
    let dir = folder();
    assert_eq!(Settings::read(dir.path()).unwrap(), None);
    let [theirs, ours] = ["llm2vec_config.json", "llm2vec_encoder.json"].map(|name| dir.path().join(name));
    let keys =
        r#"{"pooling_mode":"mean","max_length":512,"doc_max_length":400,"skip_instruction":true,"x":1}"#;
    fs::write(&theirs, keys).unwrap();
    let read = Settings::read(dir.path()).unwrap().unwrap();
    assert_eq!(
        (read.pooling_mode.as_deref(), read.max_length, read.skip_instruction),
        (Some("mean"), Some(512), Some(true))
    );
    let whole = Settings { attention: Some("causal".into()), normalize: Some(true), ..read };
    whole.write(dir.path()).unwrap();
    assert_eq!(Settings::read(dir.path()).unwrap().unwrap(), whole);
    // The reference's loader hands every key of its file to a constructor that knows four.
    let keys = hf::read_json(&theirs).unwrap();
    let keys: Vec<_> = keys.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["doc_max_length", "max_length", "pooling_mode", "skip_instruction"]);
    assert!(!fs::read_to_string(&ours).unwrap().contains("null"));
    // Folders of before have everything in one file.
    fs::remove_file(&ours).unwrap();
    fs::write(&theirs, serde_json::to_string(&whole).unwrap()).unwrap();
    assert_eq!(Settings::read(dir.path()).unwrap().unwrap(), whole);
    for (text, word) in
        [(r#"{"max_length":-1}"#, "max_length"), (r#"{"normalize":"yes"}"#, "normalize"), ("[]", "object")]
    {
        fs::write(&theirs, text).unwrap();
        refused(Settings::read(dir.path()), &["llm2vec_config.json", word]);
    }
}

/// A folder of sentence-transformers, file by file.
fn st_folder(modules: &[(&str, &str)], files: &[(&str, Value)]) -> TempDir {
    let dir = folder();
    let module = |(i, (class, path)): (usize, &(&str, &str))| json!({"idx": i, "name": i.to_string(), "path": path, "type": class});
    let list: Vec<Value> = modules.iter().enumerate().map(module).collect();
    fs::write(dir.path().join("modules.json"), json!(list).to_string()).unwrap();
    for (name, json) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, json.to_string()).unwrap();
    }
    dir
}

const OLD: [(&str, &str); 2] =
    [("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")];

fn read(modules: &[(&str, &str)], files: &[(&str, Value)]) -> Result<Modules> {
    let dir = st_folder(modules, files);
    Modules::read(dir.path()).map(Option::unwrap)
}

#[test]
fn every_pooling_mode_is_known_or_refused() {
    let pooling = |json: Value| read(&OLD, &[("1_Pooling/config.json", json)]);
    for (name, switch, mode) in [
        ("mean", "mean_tokens", PoolingMode::Mean),
        ("weightedmean", "weightedmean_tokens", PoolingMode::WeightedMean),
        ("lasttoken", "lasttoken", PoolingMode::Last),
        ("cls", "cls_token", PoolingMode::First),
    ] {
        assert_eq!(pooling(json!({"pooling_mode": name})).unwrap().pooling, mode);
        assert_eq!(pooling(json!({"pooling_mode": [name]})).unwrap().pooling, mode);
        assert_eq!(pooling(json!({format!("pooling_mode_{switch}"): true})).unwrap().pooling, mode);
        // The new key wins, as there.
        let both = json!({"pooling_mode": name, "pooling_mode_max_tokens": true});
        assert_eq!(pooling(both).unwrap().pooling, mode);
    }
    assert_eq!(pooling(json!({})).unwrap().pooling, PoolingMode::Mean, "sentence-transformers' default");
    for (json, word) in [
        (json!({"pooling_mode": "max"}), "max"),
        (json!({"pooling_mode": "mean_sqrt_len_tokens"}), "mean_sqrt_len_tokens"),
        (json!({"pooling_mode": ["mean", "cls"]}), "mean + cls"),
        (json!({"pooling_mode": 3}), "3"),
        (json!({"pooling_mode_max_tokens": true}), "max"),
        (json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}), "cls + mean"),
        (json!({"pooling_mode_splade": true, "pooling_mode_mean_tokens": true}), "splade"),
        (json!([]), "object"),
    ] {
        refused(pooling(json), &["1_Pooling", word]);
    }
}

#[test]
fn what_is_not_built_in_is_refused_by_name() {
    let more = |class: &str, files: &[(&str, Value)]| {
        let mut modules = OLD.to_vec();
        modules.push((class, "2_More"));
        read(&modules, files)
    };
    for class in ["LSTM", "CNN", "WeightedLayerPooling", "LayerNorm", "WordWeights", "Router"] {
        refused(more(&format!("sentence_transformers.models.{class}"), &[]), &["modules.json", class]);
    }
    refused(more("custom_st.Transformer", &[]), &["custom_st.Transformer", "code"]);
    let on_tokens = json!({"module_input_name": "token_embeddings"});
    refused(
        more("sentence_transformers.models.Normalize", &[("2_More/config.json", on_tokens)]),
        &["token_embeddings"],
    );
    let dense = |key: &str, value: Value| {
        let mut config = json!({"in_features": 4, "out_features": 2});
        config[key] = value;
        more("sentence_transformers.models.Dense", &[("2_More/config.json", config)])
    };
    refused(dense("activation_function", json!("torch.nn.modules.activation.GELU")), &["GELU"]);
    refused(dense("activation_function", json!("custom.Act")), &["custom.Act"]);
    refused(dense("in_features", json!(0)), &["in_features"]);
    refused(dense("bias", json!(true)), &["model.safetensors"]);
    let transformer = |json: Value| read(&OLD, &[("sentence_bert_config.json", json)]);
    for (key, value) in [
        ("transformer_task", json!("text-generation")),
        ("module_output_name", json!("sentence_embedding")),
        ("modality_config", json!({"message": {"method": "forward"}})),
        ("processing_kwargs", json!({"text": {"padding": false}})),
        ("tokenizer_name_or_path", json!("elsewhere")),
        ("tokenizer_args", json!({"truncation_side": "left"})),
        ("model_args", json!({"rope_scaling": 2})),
        ("max_seq_length", json!("long")),
        ("do_lower_case", json!(1)),
    ] {
        refused(transformer(json!({key: value})), &["sentence_bert_config.json", key]);
    }
    refused(read(&[OLD[0]], &[]), &["Pooling"]);
    refused(read(&[OLD[1]], &[]), &["Transformer"]);
    refused(read(&[(OLD[0].0, ""), (OLD[1].0, "../1_Pooling")], &[]), &["../1_Pooling"]);
    let prompts = json!({"prompts": {"query": "q: "}, "default_prompt_name": "passage"});
    refused(
        read(&OLD, &[("config_sentence_transformers.json", prompts)]),
        &["default_prompt_name", "passage"],
    );
}

#[test]
fn what_a_folder_says_is_taken_over() {
    let dense =
        [(OLD[0].0, "0_Transformer"), OLD[1], ("sentence_transformers.models.Normalize", "2_Normalize")];
    let modules = read(
        &dense,
        &[
            (
                "0_Transformer/sentence_bert_config.json",
                json!({"max_seq_length": 77, "do_lower_case": true, "config_args": {"is_causal": false}}),
            ),
            ("1_Pooling/config.json", json!({"pooling_mode": "mean", "include_prompt": false})),
            (
                "config_sentence_transformers.json",
                json!({"prompts": {"query": "q: "}, "truncate_dim": 8, "similarity_fn_name": "dot"}),
            ),
        ],
    )
    .unwrap();
    assert!(modules.transformer.ends_with("0_Transformer"));
    assert_eq!((modules.max_length, modules.lower_case, modules.include_prompt), (Some(77), true, false));
    assert!(matches!(modules.steps[..], [Step::Normalize, Step::Cut(8)]));
    assert_eq!(
        (modules.config["is_causal"].clone(), modules.similarity.as_deref()),
        (json!(false), Some("dot"))
    );
    assert_eq!(
        (modules.prompt(Some("query")).unwrap(), modules.prompt(None).unwrap()),
        ("q: ".into(), String::new())
    );
    refused(modules.prompt(Some("passage")), &["passage", "query"]);
}
