//! Model and adapter folders that are damaged, hostile, or not what we run.

use super::*;

const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn damaged_weight_files() {
    let tiny = Tiny::new();
    let path = tiny.file("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = |json: &str, data: usize| {
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
    };
    let two = |b: &str| {
        let t =
            |name: &str, at: &str| format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{at}}}"#);
        format!("{{{},{}}}", t("a", "[0,8]"), t("b", b))
    };
    let cases: [(Vec<u8>, &str); 9] = [
        (Vec::new(), "the file is empty"),
        (whole[..whole.len() - 1000].to_vec(), "truncated"),
        (whole[..100].to_vec(), "truncated"),
        (vec![0xff; 64], "100 MB"),
        ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "100 MB"),
        (header(&two("[4,12]"), 12), "overlaps"),
        (header(&two("[8,1008]"), 8), "shape"),
        (header(&two("[8,16]"), 8), "truncated"),
        (header("{}", 0), "no tensor model.embed_tokens.weight"),
    ];
    for (bytes, word) in cases {
        fs::write(&path, bytes).unwrap();
        tiny.refused(&[tiny.path(), word]);
    }
    fs::remove_file(&path).unwrap();
    tiny.refused(&["neither model.safetensors nor"]);
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    fs::write(tiny.file("model.safetensors.index.json"), index.to_string()).unwrap();
    tiny.refused(&["model-00001-of-00002.safetensors", "missing"]);
}

#[test]
fn weights_that_do_not_fit_the_configuration() {
    for (name, shape) in [
        ("model.norm.weight", vec![31]),
        ("model.embed_tokens.weight", vec![4095, 32]),
        ("model.layers.0.self_attn.k_proj.weight", vec![32, 32]),
        (UP, vec![48 * 32]),
        (UP, vec![48, 32, 1]),
    ] {
        let mut tiny = Tiny::new();
        *tiny.tensor(name) = Raw::of_value(&shape, 0.5);
        tiny.write();
        tiny.refused(&[name, &format!("{shape:?}"), "expected"]);
        // merge reads the same folder, and leaves nothing either.
        let (adapter, out) = (tiny.adapter(1), folder());
        let merged = out.path().join("merged");
        let args = ["merge", "-m", tiny.path(), "--adapter", str(adapter.path()), "-o", str(&merged)];
        failed(llm2vec(&args).output().unwrap(), 1, &[name, "expected"]);
        assert!(names(out.path()).is_empty());
    }
    let mut tiny = Tiny::new();
    tiny.tensors.retain(|(name, _)| name != UP);
    tiny.write();
    tiny.refused(&[tiny.path(), UP]);
    let mut tiny = Tiny::new();
    *tiny.tensor(UP) = Raw(Dtype::I32, vec![48, 32], vec![0; 48 * 32 * 4]);
    tiny.write();
    tiny.refused(&[UP, "I32", "F32, F16 or BF16"]);
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (name, value) in
        [(UP, f32::NAN), ("model.norm.weight", f32::INFINITY), ("model.embed_tokens.weight", f32::NAN)]
    {
        let mut tiny = Tiny::new();
        let data = &mut tiny.tensor(name).2;
        let last = data.len() - 4;
        data[last..].copy_from_slice(&value.to_le_bytes());
        tiny.write();
        tiny.refused(&[name, &value.to_string()]);
    }
    // Finite weights, and states that are not.
    let mut tiny = Tiny::new();
    *tiny.tensor(UP) = Raw::of_value(&[48, 32], f32::MAX);
    tiny.write();
    tiny.refused(&["line 1", "NaN or infinity"]);
    let checked =
        llm2vec(&["encode", "-m", tiny.path(), "-i", prose(), "-o", "-", "--check-finite"]).output().unwrap();
    failed(checked, 1, &["--check-finite: layer 1: gate_up has", "NaN or infinite, the first in row"]);
}

#[test]
fn configurations() {
    let mut tiny = Tiny::new();
    let good = tiny.config.clone();
    for (key, value, words) in [
        ("model_type", json!("gemma2"), ["gemma2", "llama, mistral or qwen2"]),
        ("hidden_act", json!("gelu"), ["gelu", "silu"]),
        ("quantization_config", json!({"quant_method": "awq"}), ["awq", "quantised"]),
        ("hidden_size", json!("wide"), ["hidden_size", "wide"]),
        ("hidden_size", json!(1u64 << 40), ["hidden_size", "1099511627776"]),
        ("hidden_size", json!(1 << 24), ["model.embed_tokens.weight", "expected"]),
        ("num_hidden_layers", json!(1 << 24), ["model.layers.2.", "no tensor"]),
        ("num_attention_heads", json!(1 << 24), ["multiple", "head_dim = 0"]),
        ("vocab_size", json!(1 << 24), ["model.embed_tokens.weight", "expected"]),
        ("head_dim", json!(1 << 24), ["q_proj", "expected"]),
        ("rope_scaling", json!({"rope_type": "yarn"}), ["yarn", "llama3"]),
    ] {
        tiny.config = good.clone();
        tiny.config[key] = value;
        fs::write(tiny.file("config.json"), tiny.config.to_string()).unwrap();
        let words = if key == "num_attention_heads" { &words[1..] } else { &words[..] };
        tiny.refused(words);
        // info sizes everything by the same file.
        failed(llm2vec(&["info", "-m", tiny.path()]).output().unwrap(), 1, words);
    }
    let config = tiny.file("config.json");
    for (text, word) in [
        ("", "EOF"),
        ("{\n\"hidden_size\": 3 2}", "line 2"),
        ("[1]", "not a JSON object"),
        ("\u{1}", "line 1"),
    ] {
        fs::write(&config, text).unwrap();
        tiny.refused(&["config.json", word]);
    }
    fs::write(&config, "[".repeat(1 << 20)).unwrap();
    tiny.refused(&["config.json", "recursion"]);
    fs::remove_file(&config).unwrap();
    tiny.refused(&["config.json"]);
}

/// The tokenizer's and the encoder's own files.
#[test]
fn other_files_of_a_model() {
    let tiny = Tiny::new();
    for (name, text, word) in [
        ("llm2vec_config.json", "{", "EOF"),
        ("llm2vec_config.json", r#"{"pooling_mode": "max"}"#, "`max`"),
        ("llm2vec_config.json", r#"{"template": "alpaca"}"#, "`alpaca`"),
        ("llm2vec_config.json", r#"{"attention": 7}"#, "attention"),
        ("tokenizer_config.json", "{\"bos_token\": ", "EOF"),
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer.json", "\u{0}", "tokenizer"),
    ] {
        let path = tiny.file(name);
        let before = fs::read(&path).ok();
        fs::write(&path, text).unwrap();
        tiny.refused(&[name, word]);
        match before {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    // Files that the tokenizers library reads and then panics on: here at their first use, or at once.
    let path = tiny.file("tokenizer.json");
    let whole = hf::read_json(&path).unwrap();
    // A part of a kind that nobody knows is named, inside a list too.
    for (at, value, words) in [
        ("/normalizer", json!({"type": "Fancy"}), ["its normalizer", "\"Fancy\""]),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "Fancy"}]}),
            ["its pre_tokenizer", "\"Fancy\""],
        ),
        ("/decoder", json!({"type": "Fuse2"}), ["its decoder", "\"Fuse2\""]),
        ("/model", json!({"type": "BPE2", "vocab": {}}), ["its model", "\"BPE2\""]),
    ] {
        let mut broken = whole.clone();
        *broken.pointer_mut(at).unwrap() = value;
        fs::write(&path, broken.to_string()).unwrap();
        tiny.refused(&["tokenizer.json", words[0], words[1]]);
    }
    for (at, value) in
        [("/post_processor/special_tokens", json!({})), ("/model/continuing_subword_prefix", json!("abc"))]
    {
        let mut broken = whole.clone();
        *broken.pointer_mut(at).unwrap() = value;
        fs::write(&path, broken.to_string()).unwrap();
        tiny.refused(&["tokenizer.json"]);
    }
    fs::remove_file(&path).unwrap();
    tiny.refused(&["tokenizer.json", "missing"]);
}

#[test]
fn token_ids_past_the_vocabulary() {
    let mut tiny = Tiny::new();
    tiny.config["vocab_size"] = json!(64);
    *tiny.tensor("model.embed_tokens.weight") = Raw::random(&[64, 32], 1);
    tiny.write();
    tiny.refused(&["sentences.txt", "line 1", "vocabulary has 64"]);
}

#[test]
fn adapters() {
    let tiny = Tiny::new();
    let refused = |adapter: &Path, words: &[&str]| {
        let args = ["encode", "-m", tiny.path(), "--adapter", str(adapter), "-i", prose(), "-o", "-"];
        failed(llm2vec(&args).output().unwrap(), 1, words);
    };
    let other = folder();
    let mut wide = Tiny::new().config;
    wide["intermediate_size"] = json!(64);
    random_adapter(other.path(), &Config::parse(&wide).unwrap(), 1);
    refused(other.path(), &["gate_proj of layer 0", "[64, 32]", "[48, 32]"]);
    wide["intermediate_size"] = json!(48);
    wide["num_hidden_layers"] = json!(3);
    random_adapter(other.path(), &Config::parse(&wide).unwrap(), 1);
    refused(other.path(), &["layer 2", "2 layers"]);
    let path = other.path().join("adapter_config.json");
    let mut config = hf::read_json(&path).unwrap();
    config["use_dora"] = json!(true);
    fs::write(&path, config.to_string()).unwrap();
    refused(other.path(), &["use_dora", "not supported"]);
    fs::write(&path, "{").unwrap();
    refused(other.path(), &["adapter_config.json", "EOF"]);
    refused(tiny.dir.path(), &["adapter_config.json", "--model"]);
    refused(Path::new("/no/such/folder"), &["/no/such/folder"]);
    let truncated = tiny.adapter(1);
    let path = truncated.path().join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refused(truncated.path(), &["adapter_model.safetensors", "truncated"]);
}

#[test]
fn model_folders_that_are_none() {
    for (model, words) in [
        ("/no/such/folder", ["/no/such/folder", "not a hub id"]),
        ("no-such/model", ["no-such/model", "no local copy"]),
        (prose(), ["sentences.txt", "is a file"]),
        ("", ["no such folder", "hub id"]),
    ] {
        failed(llm2vec(&["info", "-m", model]).output().unwrap(), 1, &words);
    }
    failed(
        llm2vec(&["info", "-m", Tiny::new().path(), "--device", "cuda"]).output().unwrap(),
        1,
        &["--device cpu"],
    );
}

#[test]
fn command_lines() {
    let tiny = Tiny::new();
    let (m, adapter) = (tiny.path(), tiny.adapter(1));
    let encode = |more: &[&'static str]| [&["encode", "-m", m, "-i", prose()], more].concat();
    let to = |more: &[&'static str]| [&encode(&["-o", "-"]), more].concat();
    for (args, word) in [
        (vec![], "Usage"),
        (vec!["embed"], "embed"),
        (vec!["encode", "-o", "-"], "--model"),
        (encode(&[]), "--output"),
        (encode(&["-o", "v.csv"]), ".npy, .safetensors or .jsonl"),
        (to(&["--frobnicate"]), "--frobnicate"),
        (to(&["--pooling", "max"]), "weighted-mean"),
        (to(&["--attention", "left"]), "full, causal, window"),
        (to(&["--attention", "window"]), "sliding_window"),
        (to(&["--template", "alpaca"]), "llama3"),
        (to(&["--device", "tpu"]), "tpu"),
        (to(&["--dtype", "f8"]), "f8"),
        (to(&["--output-dtype", "f64"]), "f64"),
        (to(&["--shard", "0/4"]), "2/4"),
        (to(&["--shard", "5/4"]), "2/4"),
        (to(&["--shard", "1"]), "2/4"),
        (to(&["--tokens", "0"]), "1 to"),
        (to(&["--tokens", "99999999"]), "1 to"),
        (to(&["--threads", "0"]), "1 to"),
        (to(&["--max-length", "0"]), "--max-length 0"),
        (to(&["--max-length", "18446744073709551615"]), "--max-length"),
        (to(&["--doc-max-length", "0"]), "--doc-max-length 0"),
        (to(&["--max-length", "-1"]), "-1"),
        (to(&["--nearest", "2"]), "share stdout"),
        (vec!["encode", "-m", m, "-o", "-", "--shard", "1/2"], "stdin"),
        (vec!["merge", "-m", m, "--adapter", str(adapter.path()), "-o", m], "exists"),
    ] {
        let run = llm2vec(&args).output().unwrap();
        if args.is_empty() {
            assert_eq!(run.status.code(), Some(2));
            assert!(String::from_utf8(run.stderr).unwrap().contains(word));
        } else {
            failed(run, 2, &[word]);
        }
    }
    for args in [vec!["--help"], vec!["encode", "--help"], vec!["merge", "--help"], vec!["info", "--help"]] {
        assert!(good(llm2vec(&args)).contains("Usage"));
    }
}
