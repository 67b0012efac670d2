//! `encode` and `info` as they should go: every way in, every way out, every way to say a setting.

use super::*;
use half::f16;
use llm2vec::format::hf::Checkpoint;

fn novel() -> String {
    str(&common::novel5m()).to_string()
}

fn embeddings(jsonl: &str) -> Vec<f32> {
    let mut all = Vec::new();
    for (i, line) in jsonl.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["index"], json!(i));
        all.extend(line["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32));
    }
    all
}

#[test]
fn every_way_in_gives_the_same_vectors() {
    let (model, dir) = (novel(), folder());
    let text = fs::read(prose()).unwrap();
    let lines = String::from_utf8(text.clone()).unwrap();
    let jsonl: String = lines.lines().map(|l| format!("{}\n", json!({"text": l}))).collect();
    let gz = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zst =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let whole = vectors(&["-m", &model, "-i", prose()]);
    assert_eq!(whole.len(), 21 * 256);
    for (name, bytes) in [
        ("a.txt.gz", gz(&text)),
        ("a.zst", zst(&text)),
        ("a.jsonl", jsonl.clone().into_bytes()),
        ("a.jsonl.gz", gz(jsonl.as_bytes())),
        ("a.jsonl.zst", zst(jsonl.as_bytes())),
        ("a.txt", lines.replace('\n', "\r\n").into_bytes()),
        ("b.txt", lines.trim_end().as_bytes().to_vec()),
        ("c.txt", [b"\xef\xbb\xbf", &text[..]].concat()),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(vectors(&["-m", &model, "-i", str(&path)]), whole, "{name}");
    }
    // Through the pipes, as text and as JSONL.
    let piped = |more: &[&str], input: &[u8]| {
        let command = llm2vec(&[&["encode", "-m", &model, "-o", "-"], more].concat());
        embeddings(&passed(fed(command, input)))
    };
    assert_eq!(piped(&[], &text), whole);
    assert_eq!(piped(&["-i", "-", "--input-format", "jsonl"], jsonl.as_bytes()), whole);
}

#[test]
fn a_row_may_bring_its_own_instruction() {
    let (model, dir) = (novel(), folder());
    let path = dir.path().join("a.jsonl");
    let (one, two) = ("Find the weather:", "Name the animal:");
    let text = "A cold wind was blowing, and the horses galloped along the road.";
    let row = |instruction: Option<&str>| match instruction {
        Some(i) => json!({"instruction": i, "text": text}),
        None => json!({"text": text}),
    };
    let all = [Some(one), Some(two), None, Some("")];
    fs::write(&path, all.map(|i| format!("{}\n", row(i))).concat()).unwrap();
    let rows = vectors(&["-m", &model, "-i", str(&path), "--instruction", two]);
    let [first, second, third, fourth] = [0, 1, 2, 3].map(|i| &rows[i * 256..][..256]);
    let plain = dir.path().join("plain.txt");
    fs::write(&plain, text).unwrap();
    let with = |i: &str| vectors(&["-m", &model, "-i", str(&plain), "--instruction", i]);
    for (got, want) in [(first, with(one)), (second, with(two)), (third, with(two)), (fourth, with(""))] {
        assert!(off(got, &want) <= 1e-5, "{}", off(got, &want));
    }
    assert!(off(first, second) > 1e-2 && off(third, fourth) > 1e-2);
}

/// The numbers in an output file, scales applied, whatever its kind and type.
fn read_any(path: &Path, dtype: &str) -> Vec<f32> {
    let floats =
        |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
    let (mut values, scales) = match path.extension().unwrap().to_str().unwrap() {
        "npy" => {
            let scales = path.with_extension("scale.npy");
            (rows(path), if dtype == "i8" { rows(&scales) } else { vec![] })
        }
        "safetensors" => {
            let file = Checkpoint::open_file(path).unwrap();
            let (x, scale) = (file.get("embeddings").unwrap(), file.get("scale"));
            assert_eq!(x.shape, [21, 256]);
            let values = match dtype {
                "f32" => floats(x.data),
                "f16" => x.data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
                _ => x.data.iter().map(|&b| f32::from(b as i8)).collect(),
            };
            (values, scale.map_or(vec![], |s| floats(s.data)))
        }
        _ => {
            let text = fs::read_to_string(path).unwrap();
            let scale = |l: &str| serde_json::from_str::<Value>(l).unwrap()["scale"].as_f64();
            (embeddings(&text), text.lines().filter_map(scale).map(|s| s as f32).collect())
        }
    };
    assert_eq!(scales.len(), if dtype == "i8" { 21 } else { 0 }, "{}", path.display());
    values.chunks_mut(256).zip(&scales).for_each(|(row, s)| row.iter_mut().for_each(|v| *v *= s));
    values
}

#[test]
fn all_kinds_and_types_of_output_agree() {
    let (model, dir) = (novel(), folder());
    let whole = vectors(&["-m", &model, "-i", prose()]);
    for dtype in ["f32", "f16", "i8"] {
        let files = ["v.npy", "v.safetensors", "v.jsonl"].map(|name| {
            let path = dir.path().join(name);
            let args = ["encode", "-m", &model, "-i", prose(), "-o", str(&path), "--output-dtype", dtype];
            good(llm2vec(&args));
            read_any(&path, dtype)
        });
        assert!(files[0] == files[1] && files[0] == files[2], "{dtype}");
        for (row, want) in files[0].chunks(256).zip(whole.chunks(256)) {
            let most = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (got, want) in row.iter().zip(want) {
                let near = match dtype {
                    "f32" => got == want,
                    "f16" => *got == f16::from_f32(*want).to_f32(),
                    _ => (got - want).abs() <= 0.501 * most / 127.0,
                };
                assert!(near, "{dtype}: {got} for {want}");
            }
        }
    }
    let left = names(dir.path());
    assert_eq!(left, ["v.jsonl", "v.npy", "v.safetensors", "v.scale.npy"]);
}

#[test]
fn shards_one_after_the_other_are_the_whole() {
    let model = novel();
    let base = ["-m", &model, "-i", prose()];
    let whole = vectors(&base);
    for n in [1, 2, 4, 21, 30] {
        let shard = |i: usize| vectors(&[&base[..], &["--shard", &format!("{i}/{n}")]].concat());
        let joined: Vec<f32> = (1..=n).flat_map(shard).collect();
        assert!(off(&joined, &whole) <= 1e-5, "{n} shards: {}", off(&joined, &whole));
    }
}

#[test]
fn settings_from_the_environment_equal_flags() {
    let (model, dir) = (novel(), folder());
    let flags = [
        "--pooling",
        "weighted-mean",
        "--normalize",
        "--attention",
        "causal",
        "--instruction",
        "Say it:",
        "--pool-over",
        "all",
        "--template",
        "mistral",
        "--max-length",
        "24",
        "--doc-max-length",
        "6",
    ];
    let said = vectors(&[&["-m", &model, "-i", prose()], &flags[..]].concat());
    let out = dir.path().join("v.safetensors");
    let mut command = llm2vec(&["encode"]);
    for (key, value) in [
        ("MODEL", model.as_str()),
        ("INPUT", prose()),
        ("OUTPUT", str(&out)),
        ("POOLING", "weighted_mean"),
        ("NORMALIZE", "1"),
        ("ATTENTION", "causal"),
        ("INSTRUCTION", "Say it:"),
        ("POOL_OVER", "all"),
        ("TEMPLATE", "mistral"),
        ("MAX_LENGTH", "24"),
        ("DOC_MAX_LENGTH", "6"),
        ("TOKENS", "64"),
        ("THREADS", "1"),
        ("QUIET", "true"),
        ("OUTPUT_DTYPE", "f32"),
        ("DEVICE", "cpu"),
        ("DTYPE", "f32"),
        ("EMPTY", "error"),
    ] {
        command.env(format!("LLM2VEC_{key}"), value);
    }
    let run = command.output().unwrap();
    assert!(run.stderr.is_empty(), "quiet: {}", String::from_utf8_lossy(&run.stderr));
    passed(run);
    assert!(off(&read_any(&out, "f32"), &said) <= 1e-5);
    // A flag wins.
    command.args(["--pooling", "last", "-o", str(&dir.path().join("w.safetensors"))]);
    passed(command.output().unwrap());
    assert!(off(&read_any(&dir.path().join("w.safetensors"), "f32"), &said) > 1e-2);
    let mut info = llm2vec(&["info", "-m", &model]);
    info.env("LLM2VEC_NORMALIZE", "0").env("LLM2VEC_POOLING", "eos");
    let info = good(info);
    assert!(info.contains("eos_token") && !info.contains("unit length"), "{info}");
}

#[test]
fn names_of_the_reference_and_of_text_embeddings_inference() {
    let model = novel();
    let pooled = |name: &str| {
        vectors(&["--model-id", &model, "--max-batch-tokens", "1024", "-i", prose(), "--pooling", name])
    };
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for (ours, theirs) in [
        ("weighted-mean", "weighted_mean"),
        ("eos", "eos_token"),
        ("last", "last_token"),
        ("bos", "bos_token"),
    ] {
        let vectors = pooled(ours);
        assert_eq!(vectors, pooled(theirs), "{ours}");
        assert!(seen.iter().all(|other| *other != vectors), "{ours} is another pooling's");
        seen.push(vectors);
    }
    assert_eq!(pooled("bos"), pooled("cls"));
    let typed = |name: &str| vectors(&["-m", &model, "-i", prose(), "--dtype", name]);
    let (f32s, bf16s) = (typed("float32"), typed("bfloat16"));
    assert_eq!((&f32s, &bf16s), (&typed("f32"), &typed("bf16")));
    let distance = off(&bf16s, &f32s);
    assert!(0.0 < distance && distance < 0.05, "{distance}");
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let (model, dir) = (novel(), folder());
    let bytes = |threads: &str, dtype: &str| {
        let out = dir.path().join("v.npy");
        let args = ["-t", threads, "--dtype", dtype, "-i", prose(), "-o", str(&out)];
        good(llm2vec(&[&["encode", "-m", &model], &args[..]].concat()));
        fs::read(&out).unwrap()
    };
    for dtype in ["f32", "bf16"] {
        assert!(bytes("1", dtype) == bytes("2", dtype), "{dtype}");
    }
}

#[test]
fn nearest_prints_every_text_and_its_neighbours() {
    let model = novel();
    let out = good(llm2vec(&["encode", "-m", &model, "-i", prose(), "--nearest", "3"]));
    let texts = fs::read_to_string(prose()).unwrap();
    let blocks: Vec<Vec<&str>> = out.split_terminator("\n\n").map(|b| b.lines().collect()).collect();
    assert_eq!(blocks.len(), texts.lines().count());
    for (block, text) in blocks.iter().zip(texts.lines()) {
        assert_eq!((block[0], block.len()), (text, 4));
        let scores: Vec<f32> = block[1..].iter().map(|l| l[..8].trim().parse().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|s| (-1.0..=1.0).contains(s)));
        for line in &block[1..] {
            assert!(texts.lines().any(|t| t == &line[9..]) && &line[9..] != text, "{line:?}");
        }
    }
}

#[test]
fn info_says_what_would_run() {
    let model = novel();
    let info = good(llm2vec(&["info", "-m", &model, "--dtype", "bf16", "--pooling", "eos", "-t", "1"]));
    for words in [
        "Llama, 6 layers, width 256, feed-forward 688",
        "8 query, 4 key/value, width 32",
        "4096 rows",
        "5.402 M",
        "bf16 on disk, bf16 in memory",
        "Full",
        "eos_token over the text's own tokens",
        "512 tokens a row, 400 of them text",
        "cpu, 1 threads",
        "weights ",
        "activations ",
    ] {
        assert!(info.contains(words), "{words:?} is not in: {info}");
    }
}

#[cfg(unix)]
#[test]
fn a_model_by_its_name_in_the_cache() {
    let (tiny, cache) = (Tiny::new(), folder());
    let root = cache.path().join("models--org--tiny");
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::create_dir_all(root.join("snapshots")).unwrap();
    fs::write(root.join("refs/main"), "abc").unwrap();
    std::os::unix::fs::symlink(tiny.dir.path(), root.join("snapshots/abc")).unwrap();
    let mut command = llm2vec(&["encode", "-m", "org/tiny", "-i", prose(), "-o", "-"]);
    command.env("HF_HUB_CACHE", cache.path());
    let by_name = embeddings(&passed(command.output().unwrap()));
    assert_eq!(by_name, vectors(&["-m", tiny.path(), "-i", prose()]));
}

/// The first numbers, then unit length, as sentence-transformers' `truncate_dim` with `normalize_embeddings`; a merged folder
/// keeps the cut; what makes no vectors of texts refuses it.
#[test]
fn dimensions_cut_and_then_normalise() {
    let (model, dir) = (novel(), folder());
    let whole = vectors(&["-m", &model, "-i", prose()]);
    let cut = vectors(&["-m", &model, "-i", prose(), "--dimensions", "48"]);
    let first: Vec<f32> = whole.chunks(256).flat_map(|row| &row[..48]).copied().collect();
    assert_eq!(cut, first);
    let unit = vectors(&["-m", &model, "-i", prose(), "--dimensions", "48", "--normalize"]);
    for (row, wanted) in unit.chunks(48).zip(first.chunks(48)) {
        let norm = wanted.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!(row.iter().zip(wanted).all(|(x, w)| (f64::from(*x) - f64::from(*w) / norm).abs() < 1e-7));
    }
    let merged = dir.path().join("merged");
    good(llm2vec(&["merge", "-m", &model, "--dimensions", "48", "--pool-over", "all", "-o", str(&merged)]));
    let again = vectors(&["-m", str(&merged), "-i", prose()]);
    assert_eq!(again.len(), 21 * 48);

    let bits = vectors(&["-m", &model, "-i", prose(), "--dimensions", "48", "--output-dtype", "binary"]);
    assert_eq!(bits.len(), 21 * 6);
    let run = |more: &[&str]| {
        let out = dir.path().join("v.npy");
        let base = ["encode", "-m", &model, "-i", prose(), "-o", str(&out)];
        llm2vec(&[&base[..], more].concat()).output().unwrap()
    };
    failed(run(&["--dimensions", "257"]), 2, &["--dimensions 257: 1 to 256"]);
    failed(run(&["--dimensions", "0"]), 2, &["--dimensions 0: 1 to 256"]);
    failed(run(&["--dimensions", "48", "--level", "word"]), 2, &["--dimensions cuts the vectors of texts"]);
    failed(run(&["--dimensions", "44", "--output-dtype", "ubinary"]), 2, &["44 elements", "multiple of 8"]);
}
